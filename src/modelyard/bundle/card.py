"""The model card: what a bundle is, how it was made and measured, and how to use it, in Markdown.

The front matter is Hugging Face's ``model-index`` form, so that hubs show the metrics.
"""

import html
import json
import re
from collections.abc import Sequence
from pathlib import Path

from modelyard.bundle.format import GOLDEN, MODEL, BundleManifest
from modelyard.data.mixed import column_names
from modelyard.spec.records import Dataset, Run
from modelyard.spec.signature import ImageInput, MixedInput, TableInput, TextInput

_WORST = 5
_LIMITS = """\
The numbers above were measured on samples from the same source as the training data. They say
nothing about data that differs from it: other cameras, other places, other times, other people.
Whoever uses the model should measure it on their own data first, and keep watching it afterwards.

The model was not examined for fairness between groups of people, nor for resistance to input made
to deceive it. Decisions that matter to someone's health, rights or safety need a person who can
overrule the model."""
_MEANING = {
    "classification": "Probabilities are the model's own and were not calibrated: 0.9 need not mean right\n"
    "nine times in ten. Input of none of the classes still gets one of them.",
    "regression": "The answer is a single number without an interval: it does not tell how sure the model is.",
}


def write_card(manifest: BundleManifest, run: Run, dataset: Dataset) -> str:
    """The whole card as text."""
    parts = [
        _front_matter(manifest, dataset),
        f"# {manifest.name}\n\n{manifest.description or _what_it_does(manifest)}",
        "## What it takes and gives\n\n" + _signature(manifest),
        "## Data\n\n" + _data(dataset),
        "## Results\n\n" + _metrics(run) + _confusions(manifest, run),
        "## Training\n\n" + _training(manifest, run),
        "## Parity with the framework\n\n" + _parity(manifest),
        "## How to use\n\n" + _usage(manifest),
        "## Limits and intended use\n\n" + _limits(manifest),
        "## Where it comes from\n\n" + _lineage(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def _front_matter(manifest: BundleManifest, dataset: Dataset) -> str:
    """YAML; every text is written as JSON, which YAML reads and which needs no other quoting."""
    task = _task_name(manifest)
    lines = [
        "---",
        "library_name: onnx",
        f"pipeline_tag: {task}",
        f"tags: [modelyard, onnx, {task}]",
        "model-index:",
        f"  - name: {json.dumps(manifest.name)}",
        "    results:",
    ]
    by_split: dict[str, list[tuple[str, float]]] = {}
    for key, value in sorted(manifest.metrics.items()):
        split, _, metric = key.rpartition("/")
        by_split.setdefault(split or "test", []).append((metric, value))
    for split, metrics in by_split.items():
        place = {"name": manifest.name, "type": dataset.source, "split": split}
        lines += [
            f"      - task: {{type: {task}}}",
            f"        dataset: {json.dumps(place)}",
            "        metrics:",
            *(
                f"          - {{type: {metric}, value: {_number(value)}}}"
                for metric, value in metrics
            ),
        ]
    if not by_split:
        lines[-1] = "    results: []"
    return "\n".join([*lines, "---"])


def _number(value: float) -> str:
    """As YAML 1.1 reads a float: ``1e-07`` without a dot would be a word."""
    text = repr(value)
    return text.replace("e", ".0e") if "e" in text and "." not in text else text


def _task_name(manifest: BundleManifest) -> str:
    kind = manifest.task.type
    if isinstance(manifest.input, ImageInput):
        return f"image-{kind}"
    if isinstance(manifest.input, TextInput):
        return f"text-{kind}"
    if isinstance(manifest.input, MixedInput):
        return f"multimodal-{kind}"
    return f"tabular-{kind}"


def _what_it_does(manifest: BundleManifest) -> str:
    if manifest.task.classes:
        return f"Tells which of {len(manifest.task.classes)} classes ({_target(manifest)}) a sample belongs to."
    return f"Predicts a number ({_target(manifest)})."


def _target(manifest: BundleManifest) -> str:
    return f"`{manifest.task.target}`"


def _signature(manifest: BundleManifest) -> str:
    if isinstance(manifest.input, ImageInput):
        size = f"{manifest.input.width} × {manifest.input.height} pixels, {manifest.input.color}"
        takes = f"an image file of any size, resized to {size}"
    elif isinstance(manifest.input, TableInput):
        names = ", ".join(f"`{_text(column.name)}`" for column in manifest.input.columns)
        takes = f"a table's row with the columns {names}"
    elif isinstance(manifest.input, TextInput):
        takes = f"a text, of which the first {manifest.input.length} {manifest.input.tokens} count"
    elif isinstance(manifest.input, MixedInput):
        names = ", ".join(f"`{_text(name)}`" for name in column_names(manifest.input))
        takes = f"a row with the columns {names}"
        if manifest.input.image:
            takes += f" (`{_text(manifest.input.image_column)}`: a picture's file in base64)"
    else:
        takes = f"numbers in nested lists of shape {list(manifest.input.shape)}"
    rows = [
        (kind, tensor.name, tensor.dtype, _shape(tensor.shape))
        for kind, tensors in (
            ("input", manifest.signature.inputs),
            ("output", manifest.signature.outputs),
        )
        for tensor in tensors
    ]
    gives = (
        "its label and the probability of every class"
        if manifest.task.classes
        else f"a number, {_target(manifest)}"
    )
    return f"As a service it takes {takes}, and answers with {gives}.\n\n" + _table(
        ("tensor of `model.onnx`", "name", "type", "shape"), rows
    )


def _shape(shape: tuple[int | None, ...]) -> str:
    return " × ".join("batch" if size is None else str(size) for size in shape)


def _data(dataset: Dataset) -> str:
    splits = ", ".join(f"{name} {count}" for name, count in dataset.splits.items())
    lines = [
        # The last name only: a card is published, the rest of the path is about this machine.
        f"{dataset.samples} samples from `{_text(Path(dataset.path).name)}` (source `{dataset.source}`); splits: {splits}.",
    ]
    if dataset.task.classes:
        names = ", ".join(_text(name) for name in dataset.task.classes)
        lines.append(f"{len(dataset.task.classes)} classes: {names}.")
    findings = [f"- {finding.severity}: {_text(finding.message)}" for finding in dataset.quality]
    lines.append(
        "What the quality report noticed:\n\n" + "\n".join(findings)
        if findings
        else "The quality report noticed nothing."
    )
    return "\n\n".join(lines)


def _metrics(run: Run) -> str:
    splits = sorted({key.rpartition("/")[0] for key in run.metrics})
    names = sorted({key.rpartition("/")[2] for key in run.metrics})
    if not names:
        return "No metrics were recorded."

    def cell(split: str, name: str) -> str:
        value = run.metrics.get(f"{split}/{name}" if split else name)
        return "–" if value is None else f"{value:.4g}"

    rows = [(name, *(cell(split, name) for split in splits)) for name in names]
    return _table(("metric", *(split or "all" for split in splits)), rows)


def _confusions(manifest: BundleManifest, run: Run) -> str:
    """The cells off the diagonal that hold most samples."""
    classes = manifest.task.classes
    if not run.confusion:
        return ""
    cells = [
        (count, classes[true], classes[predicted])
        for true, row in enumerate(run.confusion)
        for predicted, count in enumerate(row)
        if count and true != predicted
    ]
    if not cells:
        return "\n\nNo sample of the test split was put into a wrong class."
    worst = sorted(cells, key=lambda cell: (-cell[0], cell[1:]))[:_WORST]
    return "\n\nMost frequent mistakes on the test split:\n\n" + _table(
        ("true", "predicted", "samples"), [(true, wrong, str(n)) for n, true, wrong in worst]
    )


def _training(manifest: BundleManifest, run: Run) -> str:
    best = f", the best checkpoint at step {run.best.step}" if run.best else ""
    lines = [
        f"{manifest.framework} on {run.world_size or 1} worker process(es), {run.step} steps in "
        f"{run.seconds:.0f} s ({run.samples_per_second:.0f} samples/s){best}; "
        f"{run.restarts} restart(s) after lost workers."
    ]
    settings = [
        (key, value)
        for key, value in sorted(run.inputs.items())
        if key.startswith(("train.", "model."))
    ]
    if settings:
        lines.append(_table(("setting", "value"), settings))
    lines.append(
        "Environment: " + ", ".join(f"{k} {v}" for k, v in manifest.environment.items()) + "."
    )
    return "\n\n".join(lines)


def _parity(manifest: BundleManifest) -> str:
    parity = manifest.parity
    return (
        f"On {parity.samples} samples the largest difference between {parity.framework} and "
        f"{parity.runtime} was {parity.largest_error:.2e} (limit {parity.limit:.0e}; absolute up to 1, "
        f"relative above). One sample on one thread took {parity.framework_milliseconds:.3g} ms in the framework, "
        f"{parity.runtime_milliseconds:.3g} ms in the runtime.\n\n"
        f"`{GOLDEN}` holds inputs and the framework's outputs; a service is ready only after it has "
        "given the same ones."
    )


def _usage(manifest: BundleManifest) -> str:
    image = isinstance(manifest.input, ImageInput)
    sample = manifest.samples[0].file if manifest.samples else "sample.json"
    sent = f"-F file=@{sample}" if image else f"-H 'content-type: application/json' -d @{sample}"
    tensors = manifest.signature.inputs
    zeros = [
        f"np.zeros(({', '.join('1' if n is None else str(n) for n in t.shape)}), dtype=np.{t.dtype})"
        for t in tensors
    ]
    given = ", ".join(f'"{t.name}": {z}' for t, z in zip(tensors, zeros, strict=True))
    return f"""\
Behind a running service (`yard up`), with a sample of this bundle:

```
curl {sent} http://127.0.0.1:8080/predict
```

In Python, without Modelyard; `inputs` must be prepared as `bundle.json` says under `input`:

```python
import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("{MODEL}")
inputs = {{{given}}}
[outputs] = session.run(None, inputs)
```"""


def _limits(manifest: BundleManifest) -> str:
    return "\n\n".join(filter(None, [_MEANING.get(manifest.task.type), _LIMITS]))


def _lineage(manifest: BundleManifest) -> str:
    rows = [(name, f"`{value}`") for name, value in manifest.lineage.items() if value]
    return _table(("what", "identity"), [*rows, ("exported", manifest.created)])


def _table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heading, tuple("---" for _ in heading), *(tuple(map(_text, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(value: str) -> str:
    """Words from data, made harmless for Markdown: one line, no table bars, no tags."""
    flat = re.sub(r"\s+", " ", str(value)).strip()
    return html.escape(flat, quote=False).replace("|", "\\|")
