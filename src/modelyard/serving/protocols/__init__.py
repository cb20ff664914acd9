"""The protocols' table: how clients can talk to a service."""

from modelyard.spec.plugins import Plugin

BUILT_IN = {
    "rest": Plugin(
        "modelyard.serving.protocols.rest:Rest",
        "Open Inference Protocol v2 over HTTP, and POST /predict",
        "serving",
    ),
}
