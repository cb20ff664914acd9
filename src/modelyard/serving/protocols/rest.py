"""REST: the Open Inference Protocol v2, ``POST /predict`` for plain input, pages for people.

It only translates; the plane validates, batches and infers.
"""

import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from modelyard import __version__
from modelyard.serving.exchange import (
    body_seconds,
    counted,
    error_response,
    json_response,
    off_loop,
    read_body,
    room_for,
)
from modelyard.serving.metrics import CONTENT_TYPE
from modelyard.serving.natural import read_items
from modelyard.serving.openapi import openapi
from modelyard.serving.pages import docs, page_headers, playground
from modelyard.serving.protocols.base import Protocol
from modelyard.serving.tensors import NAMES, decode_request, encode_response
from modelyard.spec.errors import NotFoundError, nearest
from modelyard.spec.signature import Tensor

if TYPE_CHECKING:
    from modelyard.serving.plane import Plane

EXTENSIONS = ["binary_tensor_data"]
_HEADER_LENGTH = "Inference-Header-Content-Length"


class Rest(Protocol):
    """Routes of one plane."""

    def mount(self, plane: "Plane") -> list[Any]:
        self._plane = plane
        model = "/v2/models/{model}"
        versioned = f"{model}/versions/{{version}}"
        room = room_for(plane)
        infer = counted(plane, "open-inference", self._infer, room)
        predict = counted(plane, "predict", self._predict, room)
        routes = [
            Route("/", self._playground),
            Route("/docs", self._docs),
            Route("/openapi.json", self._openapi),
            Route("/metrics", self._metrics),
            Route("/samples/{number:int}", _found(self._sample)),
            Route("/predict", predict, methods=["POST"]),
            Route("/v2", self._server),
            Route("/v2/", self._server),
            Route("/v2/health/live", self._live),
            Route("/v2/health/ready", self._ready),
        ]
        for path in (model, versioned):
            routes += [
                Route(path, _found(self._model)),
                Route(f"{path}/ready", _found(self._model_ready)),
                Route(f"{path}/infer", infer, methods=["POST"]),
            ]
        return routes

    # --- inference --------------------------------------------------------------------------

    async def _infer(self, request: Request) -> Response:
        started = time.monotonic()
        plane = self._plane
        self._check_model(request)
        body = await read_body(request, plane.max_request_bytes, body_seconds(plane))
        asked = await off_loop(
            len(body), decode_request, body, request.headers.get(_HEADER_LENGTH), plane.signature
        )
        deadline = None if asked.timeout_seconds is None else started + asked.timeout_seconds
        outputs = await plane.infer(asked.inputs, deadline)
        size = sum(array.nbytes for array in outputs.values())
        content, header = await off_loop(
            size, encode_response, asked, outputs, plane.model, str(plane.version)
        )
        if header is None:
            return Response(content, media_type="application/json")
        return Response(
            content,
            headers={_HEADER_LENGTH: str(header)},
            media_type="application/octet-stream",
        )

    async def _predict(self, request: Request) -> Response:
        plane = self._plane
        body = await read_body(request, plane.max_request_bytes, body_seconds(plane))
        items = await read_items(request.headers, body, plane.manifest.input)
        predictions = await plane.predict(items)
        return json_response(
            {
                "model": plane.model,
                "version": plane.version,
                "digest": plane.digest,
                "predictions": predictions,
            }
        )

    # --- health and metadata ----------------------------------------------------------------

    async def _server(self, _: Request) -> Response:
        return json_response(
            {"name": "modelyard", "version": __version__, "extensions": EXTENSIONS}
        )

    async def _live(self, _: Request) -> Response:
        alive = self._plane.alive
        return json_response({"live": alive}, 200 if alive else 503)

    async def _ready(self, _: Request) -> Response:
        ready = self._plane.ready
        return json_response({"ready": ready}, 200 if ready else 503)

    async def _model(self, request: Request) -> Response:
        self._check_model(request)
        plane = self._plane
        return json_response(
            {
                "name": plane.model,
                "versions": [str(plane.version)],
                "platform": f"{plane.manifest.runtime}_onnx",
                "inputs": [_described(tensor) for tensor in plane.signature.inputs],
                "outputs": [_described(tensor) for tensor in plane.signature.outputs],
            }
        )

    async def _model_ready(self, request: Request) -> Response:
        self._check_model(request)
        ready = self._plane.ready
        return json_response({"name": self._plane.model, "ready": ready}, 200 if ready else 503)

    def _check_model(self, request: Request) -> None:
        name = request.path_params["model"]
        version = request.path_params.get("version", str(self._plane.version))
        if name != self._plane.model:
            close = nearest(name, [self._plane.model])
            raise NotFoundError(
                f"there is no model {name!r} here",
                f"did you mean {close!r}?" if close else f"it serves {self._plane.model!r}",
            )
        if version != str(self._plane.version):
            raise NotFoundError(
                f"model {name!r} has no version {version!r} here",
                f"it serves version {self._plane.version}",
            )

    # --- for people and for Prometheus ------------------------------------------------------

    async def _playground(self, _: Request) -> Response:
        return Response(
            playground(self._plane.metadata(), len(self._plane.manifest.samples)),
            headers=page_headers(),
        )

    async def _docs(self, _: Request) -> Response:
        return Response(docs(openapi(self._plane)), headers=page_headers())

    async def _openapi(self, _: Request) -> Response:
        return json_response(openapi(self._plane))

    async def _metrics(self, _: Request) -> Response:
        return Response(self._plane.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _sample(self, request: Request) -> Response:
        """A natural input that travels with the bundle, for the playground's examples."""
        number, samples = request.path_params["number"], self._plane.manifest.samples
        if number >= len(samples):
            raise NotFoundError(f"there is no sample {number}", f"there are {len(samples)}")
        path = self._plane.sample_path(samples[number])
        kind = "application/json" if path.suffix == ".json" else f"image/{path.suffix[1:]}"
        return Response(path.read_bytes(), media_type=kind)


def _found(
    handler: Callable[[Request], Awaitable[Response]],
) -> Callable[[Request], Awaitable[Response]]:
    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except NotFoundError as error:
            return error_response(error)

    return answer


def _described(tensor: Tensor) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": NAMES[tensor.dtype],
        "shape": [-1 if size is None else size for size in tensor.shape],
    }
