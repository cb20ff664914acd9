"""The OpenAPI 3.1 description of a running service, made from the model's signature."""

import math
from typing import TYPE_CHECKING, Any

from modelyard import __version__
from modelyard.data.preprocess import describe
from modelyard.serving.tensors import NAMES
from modelyard.spec.signature import ImageInput, NaturalInput, TableInput, Tensor, TextInput

if TYPE_CHECKING:
    from modelyard.serving.plane import Plane

Schema = dict[str, Any]


def openapi(plane: "Plane") -> Schema:
    """The document that ``GET /openapi.json`` gives."""
    model = f"/v2/models/{plane.model}"
    return {
        "openapi": "3.1.0",
        "info": {
            "title": plane.model,
            "version": str(plane.version),
            "description": f"{plane.manifest.description}\n\nServed by Modelyard {__version__}, bundle {plane.digest}.".strip(),
        },
        "paths": {
            "/predict": {"post": _predict(plane)},
            f"{model}/infer": {"post": _infer()},
            model: {"get": _get("Names, types and shapes of the model's tensors")},
            f"{model}/ready": {"get": _get("Whether the model is ready", "503")},
            "/v2": {"get": _get("The server and its extensions")},
            "/v2/health/live": {"get": _get("Whether inference makes progress", "503")},
            "/v2/health/ready": {
                "get": _get("200 once the golden request gave the recorded answer", "503")
            },
            "/metrics": {"get": _get("Metrics for Prometheus", content="text/plain")},
        },
        "components": {
            "schemas": {
                "Error": _object({"error": {"type": "string"}}, ["error"]),
                "Predictions": _predictions(plane),
                "InferRequest": _infer_body(plane.signature.inputs, request=True),
                "InferResponse": _infer_body(plane.signature.outputs, request=False),
            }
        },
    }


def _predict(plane: "Plane") -> Schema:
    return {
        "summary": "Plain input to an answer",
        "description": f"It takes {describe(plane.manifest.input)['summary']}.",
        "requestBody": {"required": True, "content": _natural(plane.manifest.input)},
        "responses": _responses("Predictions"),
    }


def _infer() -> Schema:
    body = {"application/json": {"schema": {"$ref": "#/components/schemas/InferRequest"}}}
    raw = {"schema": {"type": "string", "contentEncoding": "binary"}}
    return {
        "summary": "Open Inference Protocol v2: tensors to tensors",
        "description": "With the binary tensor extension raw tensors follow the JSON, "
        "whose length the header Inference-Header-Content-Length gives.",
        "requestBody": {"required": True, "content": {**body, "application/octet-stream": raw}},
        "responses": _responses("InferResponse"),
    }


def _responses(name: str) -> Schema:
    answers: Schema = {
        "200": {
            "description": "The answer",
            "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{name}"}}},
        }
    }
    for code, text in (
        ("400", "The request is wrong"),
        ("404", "No such model"),
        ("413", "The body is too large"),
        ("415", "The body is of another kind"),
        ("503", "Not ready or overloaded; Retry-After says when to try again"),
        ("504", "No answer in time"),
    ):
        answers[code] = {
            "description": text,
            "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
        }
    return answers


def _get(summary: str, *codes: str, content: str = "application/json") -> Schema:
    answers: Schema = {"200": {"description": summary, "content": {content: {}}}}
    answers |= {code: {"description": "It is not"} for code in codes}
    return {"summary": summary, "responses": answers}


def _natural(natural: NaturalInput) -> Schema:
    about = describe(natural)
    if isinstance(natural, ImageInput):
        file = {"type": "string", "contentMediaType": "application/octet-stream"}
        form = _object({"file": {"type": "array", "items": file}}, ["file"])
        kinds = [*about["media_types"], "application/octet-stream"]
        return {kind: {"schema": {}} for kind in kinds} | {"multipart/form-data": {"schema": form}}
    item = about["schema"]
    choices = [
        _object({"row": item}, ["row"]),
        _object({"rows": {"type": "array", "items": item}}, ["rows"]),
    ]
    example = {"row": about["example"]}
    content: Schema = {
        "application/json": {"schema": {"anyOf": [*choices, item]}, "example": example}
    }
    if isinstance(natural, TableInput):
        content["text/csv"] = {"schema": {"type": "string"}}
    if isinstance(natural, TextInput):
        content["text/plain"] = {"schema": {"type": "string"}}
    return content


def _predictions(plane: "Plane") -> Schema:
    classes = list(plane.manifest.task.classes)
    if classes:
        odds = {"type": "number", "minimum": 0, "maximum": 1}
        answer = _object(
            {
                "label": {"enum": classes},
                "probability": odds,
                "probabilities": _object(dict.fromkeys(classes, odds), classes),
            },
            ["label", "probability", "probabilities"],
        )
    else:
        answer = _object({"value": {"type": "number"}}, ["value"])
    return _object(
        {
            "model": {"type": "string"},
            "version": {"type": "integer"},
            "digest": {"type": "string"},
            "predictions": {"type": "array", "items": answer},
        },
        ["model", "version", "digest", "predictions"],
    )


def _infer_body(tensors: tuple[Tensor, ...], *, request: bool) -> Schema:
    key = "inputs" if request else "outputs"
    items = [
        _object(
            {
                "name": {"const": tensor.name},
                "datatype": {"const": NAMES[tensor.dtype]},
                "shape": {
                    "type": "array",
                    "items": {"type": "integer", "minimum": 1},
                    "examples": [[size or 1 for size in tensor.shape]],
                },
                "data": {
                    "type": "array",
                    "description": f"{math.prod(size or 1 for size in tensor.shape)} values a row, flat or nested",
                },
            },
            ["name", "datatype", "shape"],
        )
        for tensor in tensors
    ]
    names = ["id"] if request else ["id", "model_name", "model_version"]
    texts = {name: {"type": "string"} for name in names}
    return _object({**texts, key: {"type": "array", "items": {"anyOf": items}}}, [key])


def _object(properties: Schema, required: list[str]) -> Schema:
    return {"type": "object", "properties": properties, "required": required}
