"""`bentoml serve` in a process of its own, and how to ask it over a socket."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

from tests.conftest import ROOT

BENTOML = [str(Path(sys.executable).with_name("bentoml"))]
PATIENCE = 60.0


@dataclass
class Server:
    port: int
    process: subprocess.Popen[bytes]
    log: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def connect(self) -> HTTPConnection:
        return HTTPConnection("127.0.0.1", self.port, timeout=30)

    def ask(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[int, bytes]:
        with closing(self.connect()) as connection:
            connection.request(method, path, body, headers or {})
            response = connection.getresponse()
            return response.status, response.read()

    def classify(self, body: bytes, path: str = "/classify", kind: str = "image/jpeg") -> tuple[int, dict[str, Any]]:
        status, answer = self.ask("POST", path, body, {"Content-Type": kind})
        return status, json.loads(answer)

    def ready(self) -> int:
        """The status of `/readyz`, 0 if nothing listens on the port."""
        try:
            return self.ask("GET", "/readyz")[0]
        except OSError:
            return 0

    def until_ready(self, status: int) -> None:
        end = time.monotonic() + PATIENCE
        while self.ready() != status:
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()
            time.sleep(0.02)


@contextmanager
def serve(log: Path, *arguments: str, cwd: Path = ROOT, **environment: str) -> Iterator[Server]:
    """`bentoml serve` on a free port, once it is ready; it is stopped at the end."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    command = [*BENTOML, "serve", *arguments, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=cwd, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT
        )
    server = Server(port, process, log)
    try:
        server.until_ready(200)
        yield server
    finally:
        process.terminate()
        process.wait(PATIENCE)


def ended(port: int = 0, **environment: str) -> tuple[int, str, str]:
    """The exit status, output and errors of a `bentoml serve` that cannot serve."""
    command = [*BENTOML, "serve", "--host", "127.0.0.1", "--port", str(port)]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            output, errors = process.communicate(timeout=PATIENCE)
        finally:
            process.terminate()
    return process.returncode, output, errors
