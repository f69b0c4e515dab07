"""The blocks of the README, run in order as a reader would type them."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(sh|python)\n(.*?)^```", README, re.M | re.S)
READY_WITHIN_S = 120


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def serving(command: str, environment: dict[str, str], port: int, log: Path) -> Iterator[None]:
    with log.open("w") as output:
        process = subprocess.Popen(
            ["bash", "-c", f"exec env {command}"], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
                    break
            except OSError:
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.1)
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


@pytest.mark.slow
def test_the_blocks_run_in_order(tmp_path: Path) -> None:
    port = free_port()
    environment = {
        **os.environ,
        "BENTOML_HOME": str(tmp_path / "bentoml"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }
    with_server = None
    outputs = []
    try:
        for language, block in BLOCKS:
            block = block.replace("3000", str(port))
            if block.startswith(("make ", "# not run")):
                continue
            if "bentoml serve" in block:
                with_server = serving(block.strip(), environment, port, tmp_path / "server.log")
                with_server.__enter__()
                continue
            command = ["bash", "-euo", "pipefail", "-c", block] if language == "sh" else [sys.executable, "-c", block]
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"
            outputs.append(done.stdout)
    finally:
        if with_server is not None:
            with_server.__exit__(None, None, None)
    everything = "\n".join(outputs)
    for expected in ("resnext50_32x4d", "is whole", '"label": "Egyptian cat"', '"label": "7"', "report.html"):
        assert expected in everything


def test_the_make_targets_that_it_names_exist() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    named = set(re.findall(r"(?:^|`)make ([a-z]+)\b", README, re.M))
    assert {"demo", "test"} <= named
    assert all(re.search(rf"^{target}:", makefile, re.M) for target in named)


def test_the_files_that_it_links_or_lists_exist() -> None:
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    tree = re.search(r"^```\n(.*?)^```", README[README.index("## The house") :], re.M | re.S)
    assert tree is not None
    drawn = [line.split()[0] for line in tree.group(1).splitlines()]
    assert links
    assert all((ROOT / name).exists() for name in (*links, *drawn))
