"""The pages of a service, for people: a playground made from the signature, and its API's description.

Everything is in the page itself; the content security policy allows nothing from elsewhere.
"""

import base64
import hashlib
import html
import json
from functools import cache
from pathlib import Path
from typing import Any

_HERE = Path(__file__).parent


@cache
def _asset(name: str) -> str:
    return (_HERE / "static" / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"


@cache
def page_headers() -> dict[str, str]:
    """Headers of both pages: only our own script and style may run."""
    policy = (
        f"default-src 'none'; script-src {_hash(_asset('playground.js'))}; "
        f"style-src {_hash(_asset('style.css'))}; img-src 'self' blob: data:; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    return {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Security-Policy": policy,
        "X-Content-Type-Options": "nosniff",
        "Referrer-Policy": "no-referrer",
    }


def playground(about: dict[str, Any], samples: int) -> str:
    """Drop a picture or fill in a row; see the answer, its probabilities and how long it took."""
    # "<" would let a class name such as "</script>" end the block.
    data = json.dumps(about | {"samples": samples}).replace("<", "\\u003c")
    body = (
        f"<header><h1>{html.escape(about['model'])}</h1>"
        f"<p>version {about['version']} · <code>{html.escape(about['digest'][:19])}</code> · "
        f"<a href='/docs'>API</a> · <a href='/metrics'>metrics</a></p>"
        f"<p>{html.escape(about['description'])}</p></header>"
        "<main><section id='ask'></section><section id='answer' aria-live='polite'></section></main>"
        f"<script type='application/json' id='about'>{data}</script>"
        f"<script>{_asset('playground.js')}</script>"
    )
    return _page(about["model"], body)


def docs(document: dict[str, Any]) -> str:
    """The OpenAPI document as one readable page."""
    info = document["info"]
    parts = [
        f"<header><h1>{html.escape(info['title'])} <small>version {html.escape(info['version'])}</small></h1>",
        f"<p>{html.escape(info['description'])}</p>",
        "<p><a href='/'>playground</a> · <a href='/openapi.json'>openapi.json</a></p></header><main>",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            parts.append(_operation(method, path, operation))
    for name, schema in document["components"]["schemas"].items():
        parts.append(
            f"<section id='{html.escape(name)}'><h2>{html.escape(name)}</h2>{_json(schema)}</section>"
        )
    return _page(f"{info['title']} API", "".join(parts) + "</main>")


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    text = [
        f"<section><h2><code>{method.upper()} {html.escape(path)}</code></h2>",
        f"<p>{html.escape(operation['summary'])}</p>",
    ]
    if "description" in operation:
        text.append(f"<p>{html.escape(operation['description'])}</p>")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        text.append(f"<h3>{html.escape(kind)}</h3>{_json(content.get('schema', {}))}")
    rows = "".join(
        f"<tr><td><code>{code}</code></td><td>{html.escape(answer['description'])}</td></tr>"
        for code, answer in operation["responses"].items()
    )
    return "".join([*text, f"<table>{rows}</table></section>"])


def _json(content: Any) -> str:
    return (
        f"<pre>{html.escape(json.dumps(content, indent=2, ensure_ascii=False))}</pre>"
        if content
        else ""
    )


def _page(title: str, body: str) -> str:
    return (
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{html.escape(title)}</title><style>{_asset('style.css')}</style></head>"
        f"<body>{body}</body></html>"
    )
