"""The HTTP application: the chosen protocols' routes around one plane."""

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from modelyard.serving.exchange import error_response, json_response
from modelyard.serving.plane import Plane
from modelyard.serving.protocols import BUILT_IN
from modelyard.serving.protocols.base import Protocol
from modelyard.spec.plugins import load


def create_app(plane: Plane, protocols: tuple[str, ...] = ("rest",)) -> Starlette:
    """An ASGI application. Raises UsageError for an unknown protocol."""
    routes = []
    for name in protocols:
        protocol: Protocol = load("protocols", name, BUILT_IN)()
        routes += protocol.mount(plane)
    app = Starlette(
        routes=routes, exception_handlers={HTTPException: _http_error, Exception: _failure}
    )
    # A redirect of a POST loses its body in many clients; the paths are exact instead.
    app.router.redirect_slashes = False
    return app


async def _http_error(request: Request, error: Exception) -> Response:
    code = error.status_code if isinstance(error, HTTPException) else 500
    headers = dict(error.headers or {}) if isinstance(error, HTTPException) else {}
    texts = {
        404: f"there is nothing at {request.url.path}; GET /docs lists what there is",
        405: f"{request.method} is not allowed here; allowed: {headers.get('Allow', 'see /docs')}",
    }
    return json_response({"error": texts.get(code, str(error))}, code, headers)


async def _failure(_: Request, error: Exception) -> Response:
    return error_response(error)
