"""Stands in for llama-server: answers at once, each time as if it had taken a tenth of a second.

What it answers says how it was asked: `predicted_n` is 100 times the number of its process among
those that were started in its folder, plus the number of the request to that process.
"""

from __future__ import annotations

import json
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from itertools import pairwise
from pathlib import Path

PROGRAM = '#!/bin/sh\nexec {python} {script} "$@" --folder {folder}\n'


class Handler(BaseHTTPRequestHandler):
    """Says that it is ready, and answers."""

    questions = 0
    process = 0

    def do_GET(self) -> None:
        """The model is loaded."""
        self._reply({"status": "ok"})

    def do_POST(self) -> None:
        """An answer; a request for no tokens is refused."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not asked["n_predict"]:
            self._reply({"error": {"message": "no tokens are wanted"}}, 400)
            return
        Handler.questions += 1
        tokens = 100 * self.process + self.questions
        self._reply({"timings": {"predicted_n": tokens, "predicted_ms": 100.0}, "asked": asked})

    def _reply(self, answer: object, status: int = 200) -> None:
        self.send_response(status)
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode())

    def log_message(self, *_: object) -> None:
        """Nothing is logged."""


def write_program(folder: Path, before: str = "") -> Path:
    """An executable in `folder` that takes llama-server's options; `before` is shell."""
    text = PROGRAM.format(python=sys.executable, script=__file__, folder=folder)
    program = folder / "llama-server"
    program.write_text(text.replace("\n", f"\n{before}\n", 1))
    program.chmod(0o755)
    return program


def serve(port: int, folder: Path) -> None:
    """Answer until the process is ended."""
    started = folder / "started"
    with started.open("a") as file:
        file.write("x")
    Handler.process = started.stat().st_size
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    given = dict(pairwise(sys.argv))
    serve(int(given["--port"]), Path(given["--folder"]))
