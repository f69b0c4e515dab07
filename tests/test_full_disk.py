"""A full disk, simulated by a limit on the size of each file: a write that only saves time is skipped, every other
failure ends with one line, and no half-written file is left.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import bentoml
import numpy as np
import pytest

from export.__main__ import main as export
from export.store import artifacts, save
from models import weights
from models.console import Failure, unwritable
from models.preprocess import default_labels
from serving import runtime
from serving.artifact import Artifact, find
from tests.conftest import ROOT, SHAPE, room, save_tiny, tiny_onnx
from tests.fakes.pictures import jpeg
from tests.fakes.server import ended, serve

pytestmark = pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211")


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_the_service_starts_and_answers(tiny: Artifact, tmp_path: Path, engine: str) -> None:
    # Room for the temporary folder, but not for the compiled network that OpenVINO would cache.
    with room(1000), serve(tmp_path / "log", PODIUM_MODELS=tiny.tag, PODIUM_ENGINE=engine) as server:
        status, answer = server.classify(jpeg())
        assert (status, answer["engine"]) == (200, engine)


def test_without_a_temporary_folder_the_service_says_so(tiny: Artifact) -> None:
    with room(0):
        status, _, errors = ended(PODIUM_MODELS=tiny.tag)
    [line] = errors.splitlines()
    assert status == 1 and "No usable temporary directory" in line and "TMPDIR" in line


def test_openvino_runs_without_its_cache(tiny: Artifact) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, *SHAPE), dtype=np.uint8)
    want = runtime.open(tiny, "openvino").run(images)
    with room(1000):
        opened = runtime.open(tiny, "openvino", lean=True)
    np.testing.assert_array_equal(opened.run(images), want)


def test_an_export_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {a.tag for a in artifacts()}
    capsys.readouterr()
    with room(1000):
        assert export(["--onnx", str(tiny_onnx(tmp_path / "own.onnx")), "--no-tune"]) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("python -m export: cannot ") and "TMPDIR" in line
    assert {a.tag for a in artifacts()} == before


def saved(artifact: Artifact, graph: Path) -> Artifact:
    return save({**artifact.manifest, "files": {"fp32.onnx": {}}}, {"fp32.onnx": graph}, default_labels(10))


def test_a_failed_save_leaves_no_half_written_version(tmp_path: Path) -> None:
    artifact = save_tiny(tmp_path, "squeezed")
    # First no room for the graph; then room for all, but the store cannot record which version is the newest.
    with (
        room(500),
        pytest.raises(Failure, match=r"cannot save squeezed .*File too large.*BENTOML_HOME names its folder"),
    ):
        saved(artifact, tmp_path / "fp32.onnx")
    latest = artifact.folder.parent / "latest"
    latest.unlink()
    latest.mkdir()
    with pytest.raises(Failure, match="cannot save squeezed"):
        saved(artifact, tmp_path / "fp32.onnx")
    latest.rmdir()
    assert [a.tag for a in artifacts() if a.network == "squeezed"] == [artifact.tag]
    assert find("squeezed").version == artifact.version
    bentoml.models.delete(artifact.tag)


class Publisher(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "5000")
        self.end_headers()
        self.wfile.write(bytes(5000))

    def log_message(self, *_: object) -> None:
        pass


def test_weights_that_do_not_fit_on_the_disk_are_an_error(tmp_path: Path) -> None:
    with HTTPServer(("127.0.0.1", 0), Publisher) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/weights.pth"
        with (
            room(1000),
            pytest.raises(weights.WeightsError, match=r"cannot keep weights\.pth\.part in .*PODIUM_CACHE") as told,
        ):
            weights.download(address, tmp_path / "weights.pth.part")
        assert not isinstance(told.value, weights.Unreachable)  # in which case `auto` takes untrained weights
        weights.download(address, tmp_path / "weights.pth.part")
        server.shutdown()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_an_output_that_cannot_be_written_ends_in_one_line() -> None:
    buffered = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    command = [sys.executable, "-m", "models", "list", "--set", "five"]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(command, cwd=ROOT, env=buffered, stdout=full, stderr=subprocess.PIPE, text=True)
    [line] = done.stderr.splitlines()
    assert done.returncode == 1 and line.startswith("python -m models: cannot write a file: No space left on device; ")


def test_only_write_errors_are_explained() -> None:
    assert "choose a place" in str(unwritable(PermissionError(errno.EACCES, "Permission denied", "/etc/x")))
    assert "/etc/x" in str(unwritable(OSError(errno.EROFS, "Read-only file system", "/etc/x")))
    assert unwritable(FileNotFoundError(errno.ENOENT, "No such file or directory", "x")) is None
