"""Stands in for ``python -m modelyard.serving``: same arguments, no model, started in a tenth of a second.

Answers ``POST /double`` with twice the number, ``/slow`` after some seconds, ``/echo`` with what it
got, and has no metrics once after ``/spoil``. The bundle folder's ``behaviour.json`` may make it misbehave.
"""

import argparse
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

parser = argparse.ArgumentParser()
for name in ("bundle", "host", "ready-file", "digest", "model", "protocols"):
    parser.add_argument(f"--{name}", required=True)
for name in ("port", "replica", "threads", "version", "parent-pid"):
    parser.add_argument(f"--{name}", type=int, required=True)
parser.add_argument("--max-batch", type=int)
parser.add_argument("--max-request-bytes", type=int)
parser.add_argument("--timeout-seconds", type=float)
options = parser.parse_args()

METRICS = """# HELP modelyard_toy_total Requests.
# TYPE modelyard_toy_total counter
modelyard_toy_total{model="toy"} %d
"""
count = 0
pages = [METRICS]
"""The next pages of metrics; the last one stays."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path == "/metrics":
            page = pages.pop(0) if len(pages) > 1 else pages[0]
            self.answer(page.replace("%d", str(count)))
        elif self.path.startswith("/slow"):
            print("slow request", flush=True)
            time.sleep(float(self.path.partition("=")[2]))
            self.answer({"pid": os.getpid()})
        elif self.path == "/die":
            os._exit(7)
        elif self.path == "/half":
            self.send_response(200)
            self.send_header("Content-Length", "100")
            self.end_headers()
            self.wfile.write(b"only this")
            self.close_connection = True
        else:
            self.answer({"version": options.version, "pid": os.getpid()})

    do_HEAD = do_GET

    def do_POST(self) -> None:
        global count
        count += 1
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/double":
            answer = {"answer": 2 * json.loads(body)["x"]}
            self.answer(answer | {"version": options.version, "replica": options.replica})
        elif self.path == "/spoil":
            pages.insert(0, "<html>busy</html>")
            self.answer({"replica": options.replica})
        else:
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.answer({"headers": headers, "path": self.path, "size": len(body)})

    def answer(self, value: Any) -> None:
        content = (value if isinstance(value, str) else json.dumps(value)).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("X-Digest", options.digest)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


def follow_parent() -> None:
    while os.getppid() == options.parent_pid:
        time.sleep(0.1)
    os._exit(0)


bundle = Path(options.bundle)
if not bundle.is_dir():
    print(f"there is no bundle at {bundle}")
    sys.exit(1)
file = bundle / "behaviour.json"
behaviour = json.loads(file.read_text()) if file.exists() else {}
threading.Thread(target=follow_parent, daemon=True).start()
time.sleep(behaviour.get("start_seconds", 0))
if "fail" in behaviour:
    print(behaviour["fail"])
    sys.exit(1)
server = Server((options.host, options.port), Handler)
about = {"pid": os.getpid(), "host": options.host, "port": server.server_port}
about |= {"version": options.version, "digest": options.digest}
temporary = Path(f"{options.ready_file}.new")
temporary.write_text(json.dumps(about))
temporary.rename(options.ready_file)
print("ready", flush=True)
server.serve_forever()
