"""The proxies of `deploy/` in front of a service, each with its own configuration and a free port."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.fakes.server import PATIENCE, Server

DEPLOY = ROOT / "deploy"


def missing(program: str, package: str) -> str | None:
    return None if shutil.which(program) else f"{program} is not installed; apt-get install {package}"


needs_nginx = pytest.mark.skipif(bool(reason := missing("nginx", "nginx")), reason=reason or "")
needs_haproxy = pytest.mark.skipif(bool(reason := missing("haproxy", "haproxy")), reason=reason or "")


def free_ports(count: int) -> list[int]:
    with ExitStack() as held:
        return [held.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(count)]


@contextmanager
def behind_nginx(service: Server, folder: Path) -> Iterator[Server]:
    """`service` behind nginx with `deploy/nginx.conf`."""
    [port] = free_ports(1)
    site = (DEPLOY / "nginx.conf").read_text("utf-8").replace("127.0.0.1:3000", f"127.0.0.1:{service.port}")
    (folder / "site.conf").write_text(site.replace("listen 8080;", f"listen 127.0.0.1:{port};"), "utf-8")
    folders = "".join(
        f"{name}_temp_path {folder}/{name};" for name in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    (folder / "nginx.conf").write_text(
        f"daemon off; pid {folder}/pid; error_log stderr crit; events {{}}"
        f"http {{ access_log off; {folders} include {folder}/site.conf; }}",
        "utf-8",
    )
    command = ["nginx", "-c", str(folder / "nginx.conf"), "-e", "stderr", "-p", str(folder)]
    with running(command, Server(port, service.process, service.log)) as front:
        yield front


@contextmanager
def behind_haproxy(service: Server) -> Iterator[Server]:
    """`service`, in place of both replicas, behind HAProxy with `deploy/haproxy.cfg`."""
    port, figures = free_ports(2)
    addresses = {
        "PODIUM_BIND": f"127.0.0.1:{port}",
        "PODIUM_FIGURES": f"127.0.0.1:{figures}",
        "PODIUM_REPLICA_1": f"127.0.0.1:{service.port}",
        "PODIUM_REPLICA_2": f"127.0.0.1:{service.port}",
    }
    command = ["haproxy", "-db", "-f", str(DEPLOY / "haproxy.cfg")]
    with running(command, Server(port, service.process, service.log), **addresses) as front:
        yield front


@contextmanager
def running(command: list[str], front: Server, **environment: str) -> Iterator[Server]:
    with subprocess.Popen(command, env={**os.environ, **environment}, stdout=subprocess.DEVNULL) as proxy:
        try:
            front.until_ready(200)
            yield front
        finally:
            proxy.terminate()
            proxy.wait(PATIENCE)
