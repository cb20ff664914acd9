"""``yard doctor``: what this machine has, what is missing, and how to mend it."""

import argparse
import os
import platform
import shutil
from pathlib import Path

EXTRAS = {
    "torch": "pytorch", "onnx": "pytorch", "onnxscript": "pytorch", "onnxruntime": "serving", "starlette": "serving",
    "uvicorn": "serving", "prometheus_client": "serving", "matplotlib": "report", "tensorboard": "tensorboard",
    "sklearn": "templates",
}  # fmt: skip
DISTRIBUTIONS = {"sklearn": "scikit-learn", "prometheus_client": "prometheus-client"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(parsed: argparse.Namespace) -> int:
    from modelyard.cli.output import print_json, print_table

    rows = [*_machine(), *_packages(), *_programs()]
    print_json(rows) if parsed.json else print_table(rows, empty="nothing")
    return 1 if any(row["state"] == "bad" for row in rows) else 0


def _row(name: str, state: str, found: str, mend: str = "") -> dict[str, str]:
    return {"what": name, "state": state, "found": found, "mend": mend}


def _machine() -> list[dict[str, str]]:
    free = shutil.disk_usage(Path.cwd()).free / 1e9
    writable = os.access(Path.cwd(), os.W_OK)
    return [
        _row("python", "ok", platform.python_version()),
        _row("cores", "ok", str(os.cpu_count())),
        _row(
            "disk",
            "ok" if free > 1 else "bad",
            f"{free:.1f} GB free",
            "" if free > 1 else "free some space",
        ),
        _row(
            "this folder",
            "ok" if writable else "bad",
            "writable" if writable else "read-only",
            "" if writable else "go elsewhere",
        ),
    ]


def _packages() -> list[dict[str, str]]:
    from importlib.metadata import PackageNotFoundError, version

    rows = []
    for package, extra in EXTRAS.items():
        try:
            rows.append(_row(package, "ok", version(DISTRIBUTIONS.get(package, package))))
        except PackageNotFoundError:
            rows.append(_row(package, "missing", "", f"pip install 'modelyard[{extra}]'"))
    return rows


def _programs() -> list[dict[str, str]]:
    rows = []
    for program, use in {
        "prometheus": "scrapes a service's metrics",
        "grafana-server": "shows the dashboard",
    }.items():
        path = shutil.which(program)
        rows.append(
            _row(
                program, "ok" if path else "optional", path or "not installed", "" if path else use
            )
        )
    return rows
