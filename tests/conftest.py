"""What the tests share: a model store of their own, and a network that takes a millisecond to create."""

from __future__ import annotations

import gc
import logging
import os
import resource
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports bentoml, which reads both at its first import.
os.environ["BENTOML_DO_NOT_TRACK"] = "True"
os.environ["BENTOML_HOME"] = tempfile.mkdtemp(prefix="podium-tests-")

import numpy as np
import pytest

pytest.register_assert_rewrite("tests.fakes")

from export.__main__ import ACTIONS
from export.__main__ import main as export_main
from export.store import manifest_of, save
from models.preprocess import Preprocess, default_labels
from serving.artifact import Artifact, find

if TYPE_CHECKING:
    from playwright.sync_api import Browser

    from tests.fakes.server import Server

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
BROWSER_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
SHAPE = (32, 32, 3)  # of what `tiny_onnx` takes


def tiny_onnx(path: Path, classes: int = 10, size: int = 32) -> Path:
    """A classifier in the documented form (uint8 NHWC in, probabilities out): mean colour, one matrix, softmax."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    weights = np.random.default_rng(0).normal(size=(3, classes)).astype(np.float32) / 16
    graph = helper.make_graph(
        [
            helper.make_node("Cast", ["image"], ["float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["float", "axes"], ["mean"], keepdims=0),
            helper.make_node("MatMul", ["mean", "weights"], ["logits"]),
            helper.make_node("Softmax", ["logits"], ["probabilities"], axis=-1),
        ],
        "tiny",
        [helper.make_tensor_value_info("image", TensorProto.UINT8, ["batch", size, size, 3])],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["batch", classes])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(np.array([1, 2]), "axes")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def save_tiny(folder: Path, network: str = "tiny", classes: int = 10, weights: str = "untrained") -> Artifact:
    """`tiny_onnx` saved in the model store under the name `network`, with `weights` as the kind of its weights."""
    manifest = manifest_of(
        network,
        {"kind": weights, "origin": "seed 0", "sha256": None, "license": None},
        Preprocess(resize=36, crop=32),
        classes,
        max_batch=64,
    )
    manifest["files"] = {"fp32.onnx": {"engines": ["onnxruntime", "openvino"], "precision": "fp32"}}
    return save(manifest, {"fp32.onnx": tiny_onnx(folder / "fp32.onnx", classes)}, default_labels(classes))


def export(*argv: object) -> int:
    """`python -m export`, without tuning (which takes seconds) unless --tune asks for it."""
    words = [str(word) for word in argv]
    untuned = words and words[0] not in ACTIONS and "--tune" not in words
    return export_main([*words, "--no-tune"] if untuned else words)


def pytest_unconfigure() -> None:
    shutil.rmtree(os.environ["BENTOML_HOME"], ignore_errors=True)


@pytest.fixture(scope="session")
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    return save_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def lenet5() -> Artifact:
    assert export("lenet5") == 0
    return find("lenet5")


@pytest.fixture(scope="session")
def efficientnet_lite0() -> Artifact:
    """A trained classifier of photographs."""
    assert export("--module", "examples/efficientnet_lite0.py:network") == 0
    return find("efficientnet_lite0")


@pytest.fixture(scope="session")
def server(tiny: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A service with `tiny` that accepts bodies of up to 100 kB."""
    from tests.fakes.server import serve

    log = tmp_path_factory.mktemp("serve") / "log"
    with serve(log, PODIUM_MODELS=tiny.tag, PODIUM_MAX_BODY_MB="0.1") as running:
        yield running


@pytest.fixture(scope="module")
def frozen() -> Iterator[None]:
    """Full garbage collections skip what existed before the module: all imports and all earlier tests."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium. A module that uses it may not hold async tests: the driver of the browser runs an event loop."""
    from playwright.sync_api import sync_playwright

    executable = next(filter(None, map(shutil.which, BROWSERS)), None)
    if executable is None:
        assert "CI" not in os.environ, f"none of {', '.join(BROWSERS)} is installed; `.ci/run` installs one"
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed; on Debian and Ubuntu: apt-get install chromium")
    with sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=executable, args=BROWSER_FLAGS)
        yield launched
        launched.close()


@pytest.fixture(autouse=True)
def audible() -> None:
    """Messages of our loggers reach pytest, whatever BentoML or a fuzzer has set in this process before."""
    for name in ("bentoml", "bentoml.podium"):
        logger = logging.getLogger(name)
        logger.propagate, logger.disabled = True, False
    logging.getLogger("bentoml.podium").setLevel(logging.NOTSET)


@contextmanager
def room(size: int) -> Iterator[None]:
    """A disk that is nearly full: no file can exceed `size` bytes, in this process and in those that it starts."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
