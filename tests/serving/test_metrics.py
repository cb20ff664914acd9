import numpy as np
from prometheus_client.parser import text_string_to_metric_families

from modelyard.serving.metrics import Metrics


def values(metrics: Metrics) -> dict[str, float]:
    """Sample name with its labels (without model and version) to value."""
    found = {}
    for family in text_string_to_metric_families(metrics.text().decode()):
        for sample in family.samples:
            labels = {k: v for k, v in sample.labels.items() if k not in ("model", "version")}
            found[sample.name + "".join(f"|{k}={v}" for k, v in sorted(labels.items()))] = (
                sample.value
            )
    return found


def test_what_happened_is_counted() -> None:
    metrics = Metrics("digits", 3, "sha256:1", ("cat", "dog"))
    metrics.request("predict", 200, 0.004)
    metrics.batch(8, 0.002, [0.001, 0.003])
    metrics.shed("deadline")
    metrics.watch(lambda: 5.0, lambda: True)
    seen = values(metrics)
    assert seen["modelyard_model_info|digest=sha256:1"] == 1
    assert seen["modelyard_request_duration_seconds_count|code=200|protocol=predict"] == 1
    assert seen["modelyard_batch_size_sum"] == 8
    assert seen["modelyard_inference_duration_seconds_count"] == 1
    assert seen["modelyard_queue_duration_seconds_count"] == 2
    assert seen["modelyard_queue_depth"] == 5
    assert seen["modelyard_ready"] == 1
    assert seen["modelyard_shed_total|reason=deadline"] == 1
    assert seen["modelyard_shed_total|reason=rows"] == 0  # there before it happens, for rate()
    assert seen["process_resident_memory_bytes"] > 0


def test_labels_are_counted_as_they_are_predicted() -> None:
    many = Metrics("m", 1, "", ("a", "b", "c"))
    many.answers(np.array([[0, 5, 1], [9, 0, 0], [0, 1, 0]], np.float32))
    assert [values(many)[f"modelyard_predictions_total|label={x}"] for x in "abc"] == [1, 2, 0]
    two = Metrics("m", 1, "", ("no", "yes"))  # one logit for two classes
    two.answers(np.array([[-1.0], [2.0], [3.0]], np.float32))
    assert values(two)["modelyard_predictions_total|label=yes"] == 2
    number = Metrics("m", 1, "")  # a regression has no labels
    number.answers(np.array([[1.0]], np.float32))
    assert not [name for name in values(number) if name.startswith("modelyard_predictions")]
