"""Ask a model for answers: the running service where there is one, else the bundle opened here."""

import urllib.error
import urllib.request
from collections.abc import Sequence
from typing import Any

import msgspec

from modelyard.bundle.format import read_manifest
from modelyard.data.preprocess import encode
from modelyard.flow import ProjectLike, open_project
from modelyard.spec.errors import DataError, DeploymentError, MissingExtraError, YardError
from modelyard.store import Store, registry
from modelyard.tasks import open_task
from modelyard.tasks.parts import by_name
from modelyard.way import open_target


def predict(
    project: ProjectLike, items: Sequence[Any], *, reference: str = ""
) -> list[dict[str, Any]]:
    """Answers for natural input: image bytes, rows (dicts) or nested lists.

    A running service is asked; without one, or with ``reference`` (``digits:3``), the bundle is
    opened in this process.
    """
    opened, store = open_project(project)
    if not reference:
        deployment = open_target(opened.deploy.target).observe(store.deployment_folder(opened.name))
        if deployment and deployment.state in ("ready", "degraded"):
            return ask(deployment.url, items)
    return predict_here(store, reference or opened.name, items)


def predict_here(store: Store, reference: str, items: Sequence[Any]) -> list[dict[str, Any]]:
    """Open the bundle of ``reference`` in this process and answer ``items``."""
    folder = registry.unpack(store, registry.resolve(store, reference).digest)
    manifest = read_manifest(folder)
    try:
        from modelyard.serving.runtime.onnxruntime import OnnxRuntime
    except ModuleNotFoundError as error:
        raise MissingExtraError(f"a prediction needs {error.name}", "serving") from error
    runtime = OnnxRuntime()
    runtime.open(folder, manifest.signature, threads=1)
    inputs = encode(manifest.input, list(items))
    outputs = runtime.run(by_name(manifest.signature, inputs))
    return open_task(manifest.task).decode(outputs[manifest.signature.outputs[0].name])


def ask(url: str, items: Sequence[Any]) -> list[dict[str, Any]]:
    """Send natural input to a running service, one request for rows and one for each image."""
    if not items:
        return []
    if isinstance(items[0], bytes):
        return [answer for item in items for answer in _post(url, item, "application/octet-stream")]
    return _post(url, msgspec.json.encode({"rows": list(items)}), "application/json")


def _post(url: str, body: bytes, content_type: str) -> list[dict[str, Any]]:
    """``POST /predict``. Raises DeploymentError with the service's own words."""
    request = urllib.request.Request(f"{url}/predict", body, {"Content-Type": content_type})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310
            answer: list[dict[str, Any]] = msgspec.json.decode(response.read())["predictions"]
            return answer
    except urllib.error.HTTPError as error:
        raise _refused(error.code, error.read()) from error
    except OSError as error:
        raise DeploymentError(
            f"the service at {url} does not answer: {error}",
            "see `yard status`; bring it up with `yard up`",
        ) from error


def _refused(code: int, body: bytes) -> YardError:
    """The service's own words, whether it found fault with the input or with itself."""
    try:
        reason = str(msgspec.json.decode(body)["error"])
    except (msgspec.DecodeError, KeyError, TypeError):
        reason = body.decode(errors="replace").strip() or "without a reason"
    if code < 500 and code != 429:
        return DataError(
            f"the service cannot take this input: {reason}",
            "mend the input; `/docs` of the service describes it",
        )
    return DeploymentError(
        f"the service answered {code}: {reason}", "see `yard logs` and `yard status`"
    )
