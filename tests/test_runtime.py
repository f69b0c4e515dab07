"""What runs an artifact: the engine named or an error, never another one in its place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.console import Failure
from serving import runtime
from serving.runtime import Artifact, ArtifactError, OnnxRuntimeCuda, available, choose, installed, open
from tests.conftest import save_tiny


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Any:
    """ONNX Runtime's session as it is on a machine with CUDA: it records what it is given to run."""
    import onnxruntime as ort

    class Session:
        providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
        ran: tuple[Any, ...] = ()

        def __init__(self, path: str, options: Any, providers: Any) -> None:
            assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
            assert [name for name, _ in providers] == ["CUDAExecutionProvider"]

        def get_providers(self) -> list[str]:
            return list(self.providers)

        def get_inputs(self) -> list[Any]:
            return [type("Input", (), {"name": "image"})]

        def run(self, _: None, feed: dict[str, Any]) -> list[Any]:
            (batch,) = feed.values()
            Session.ran += (batch.copy(),)
            return [batch.reshape(len(batch), -1)[:, :4].astype(np.float32)]

    monkeypatch.setattr(ort, "InferenceSession", Session)
    return Session


def test_cuda_that_falls_back_to_the_cpu_is_refused(session: Any) -> None:
    session.providers = ("CPUExecutionProvider",)
    with pytest.raises(ArtifactError, match="gave CPUExecutionProvider in place of CUDAExecutionProvider"):
        OnnxRuntimeCuda(Path("fp32.onnx"), "fp32", 1)


def test_cuda_pads_batches_to_powers_of_two_and_gives_back_what_was_asked(session: Any) -> None:
    engine = OnnxRuntimeCuda(Path("fp32.onnx"), "fp32", 1)
    images = np.random.default_rng(0).integers(0, 256, (7, 2, 2, 1), dtype=np.uint8)
    for count in (5, 1, 7, 3):
        np.testing.assert_array_equal(engine.run(images[:count]), images[:count].reshape(count, 4))
    assert [len(batch) for batch in session.ran] == [8, 1, 8, 4]
    engine.close()


def test_engines_that_need_a_gpu_are_available_only_with_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "installed", lambda: ("onnxruntime", "onnxruntime-cuda", "tensorrt"))
    for has_gpu, expected in ((False, ("onnxruntime",)), (True, ("onnxruntime", "onnxruntime-cuda", "tensorrt"))):
        monkeypatch.setattr(runtime, "_has_gpu", lambda has_gpu=has_gpu: has_gpu)
        available.cache_clear()
        assert available() == expected
    available.cache_clear()


def test_the_cpu_wheel_is_not_taken_for_the_gpu_one() -> None:
    assert "onnxruntime" in installed()
    assert "onnxruntime-cuda" not in installed()


@pytest.mark.parametrize("engine", ["tensorrt", "onnxruntime-cuda"])
def test_an_engine_that_is_not_here_is_named_with_its_extra(engine: str, tiny: Artifact) -> None:
    if engine in available():
        pytest.skip(f"{engine} runs here")
    with pytest.raises(ArtifactError, match=rf"{engine} (is not installed; pip install 'podium\[|needs an NVIDIA GPU)"):
        choose(tiny, engine)


def test_a_plan_that_does_not_fit_its_record_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest's record goes with the file to the adapter, which holds it against the machine."""
    artifact = save_tiny(tmp_path, "planned")
    record = artifact.manifest["files"]["fp32.onnx"]
    record |= {"engines": ["tensorrt"], "plan": {"engine": "tensorrt", "gpu": "another"}}
    given = []

    class Adapter:
        def __init__(self, *arguments: Any) -> None:
            given.extend(arguments)
            raise Failure("the plan was built for GPU another")

    monkeypatch.setitem(runtime.ENGINES, "tensorrt", Adapter)
    monkeypatch.setattr(runtime, "available", lambda: ("tensorrt",))
    with pytest.raises(Failure, match="built for GPU another"):
        open(artifact, "tensorrt")
    assert given[-1] == {"engine": "tensorrt", "gpu": "another"}


def test_a_file_the_engine_cannot_read_is_named(tmp_path: Path) -> None:
    artifact = save_tiny(tmp_path, "unreadable")
    graph = artifact.folder / "fp32.onnx"
    graph.write_bytes(b"not a graph")
    artifact.manifest["files"]["fp32.onnx"]["sha256"] = runtime.sha256(graph)
    for engine in ("onnxruntime", "openvino"):
        with pytest.raises(ArtifactError, match=rf"{engine} cannot load fp32\.onnx"):
            open(artifact, engine)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_answer_outlives_the_next_call(engine: str, tiny: Artifact) -> None:
    opened = open(tiny, engine)
    first = opened.run(np.zeros((1, 32, 32, 3), np.uint8))
    kept = first.copy()
    opened.run(np.full((1, 32, 32, 3), 255, np.uint8))
    np.testing.assert_array_equal(first, kept)
    opened.close()
