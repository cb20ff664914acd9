"""An event as named numbers at a step: what TensorBoard and MLflow are told."""

from modelyard.spec.records import AnyEvent, Evaluated, RunFinished, StepDone


def scalars_of(event: AnyEvent) -> tuple[int, dict[str, float]] | None:
    """Step, and tag to value."""
    match event:
        case StepDone():
            return event.step, _step_scalars(event)
        case Evaluated():
            return event.step, {f"{event.split}/{k}": v for k, v in event.metrics.items()}
        case RunFinished(metrics=metrics) if metrics:
            return event.step, {f"best/{name}": value for name, value in metrics.items()}
        case _:
            return None


def _step_scalars(event: StepDone) -> dict[str, float]:
    optional = {
        "train/tokens_per_second": event.tokens_per_second,
        "train/gradient_norm": event.gradient_norm,
        "use/waiting_for_data": event.data_wait,
        "use/memory_gb": None if event.memory is None else event.memory / 1e9,
        "use/gpu_memory_gb": None if event.device_memory is None else event.device_memory / 1e9,
        "use/busy_cores": event.cpu,
        "use/gpu_busy": event.device_use,
    }
    return {
        "train/loss": event.loss,
        "train/learning_rate": event.learning_rate,
        "train/samples_per_second": event.samples_per_second,
        "train/epoch": event.epoch,
        **{tag: value for tag, value in optional.items() if value is not None},
    }
