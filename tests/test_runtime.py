"""What runs an artifact: the engine named or an error, never another one in its place."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from models.console import Failure
from serving import runtime
from serving.artifact import Artifact, ArtifactError, sha256
from serving.engines import OnnxRuntime, OnnxRuntimeCuda
from serving.runtime import available, choose, installed, open, unusable
from tests.conftest import SHAPE, save_tiny, tiny_onnx


class Value:
    """ONNX Runtime's OrtValue in the GPU's memory: one place, written and read by copies."""

    def __init__(self, shape: list[int], dtype: Any, device: str, index: int) -> None:
        assert (device, index) == ("cuda", 0)
        self.memory = np.zeros(shape, dtype)

    @classmethod
    def ortvalue_from_shape_and_type(cls, *arguments: Any) -> Value:
        return cls(*arguments)

    def update_inplace(self, array: np.ndarray[Any, Any]) -> None:
        assert array.shape == self.memory.shape and array.dtype == self.memory.dtype
        self.memory[:] = array

    def numpy(self) -> np.ndarray[Any, Any]:
        return self.memory.copy()


class Binding:
    def __init__(self) -> None:
        self.bound: dict[str, Value] = {}

    def bind_ortvalue_input(self, name: str, value: Value) -> None:
        self.bound[name] = value

    bind_ortvalue_output = bind_ortvalue_input


class Session:
    """ONNX Runtime's session as it is on a machine with CUDA: the first run of a graph's name captures the places it
    reads and writes, and later runs replay those, whatever is bound by then. It gives the first four bytes back.
    """

    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    made: ClassVar[list[Session]] = []

    def __init__(self, path: str, options: Any, providers: Any) -> None:
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        [(name, self.how)] = providers
        assert name == "CUDAExecutionProvider"
        self.graphs: dict[str, tuple[Value, Value]] = {}
        self.runs: list[str] = []
        Session.made.append(self)

    def get_providers(self) -> list[str]:
        return list(self.providers)

    def get_inputs(self) -> list[Any]:
        return [SimpleNamespace(name="image", shape=["batch", 2, 2, 1])]

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(name="probabilities", shape=["batch", 4])]

    def io_binding(self) -> Binding:
        return Binding()

    def run_with_iobinding(self, binding: Binding, options: Any) -> None:
        name = options.get_run_config_entry("gpu_graph_id")
        bound = (binding.bound["image"], binding.bound["probabilities"])
        source, target = self.graphs.setdefault(name, bound)
        target.memory[:] = source.memory.reshape(len(source.memory), 4)
        self.runs.append(name)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Any:
    import onnxruntime as ort

    monkeypatch.setattr(ort, "InferenceSession", Session)
    monkeypatch.setattr(ort, "OrtValue", Value)
    monkeypatch.setattr(Session, "made", [])
    return Session


def test_cuda_that_falls_back_to_the_cpu_is_refused(session: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "providers", ("CPUExecutionProvider",))
    with pytest.raises(ArtifactError, match="gave CPUExecutionProvider in place of CUDAExecutionProvider"):
        OnnxRuntimeCuda(Path("fp32.onnx"), "fp32", 1)


def test_cuda_pads_to_buckets_and_gives_back_what_was_asked(session: Any) -> None:
    engine = OnnxRuntimeCuda(Path("fp32.onnx"), "fp32", 1, max_batch=7)
    images = np.random.default_rng(0).integers(0, 256, (21, 2, 2, 1), dtype=np.uint8)
    # 21 images are more than the largest bucket, the power of two that holds `max_batch`.
    for count in (5, 1, 7, 3, 8, 21, 5):
        np.testing.assert_array_equal(engine.run(images[:count]), images[:count].reshape(count, 4))
    [made] = session.made
    assert made.runs == ["8", "1", "8", "4", "8", "8", "8", "8", "8"]
    assert (made.how["enable_cuda_graph"], made.how["prefer_nhwc"], made.how["use_tf32"]) == ("1", "1", "0")
    engine.close()
    engine.close()


def test_every_bucket_has_a_graph_and_buffers_of_its_own(session: Any) -> None:
    engine = OnnxRuntimeCuda(Path("fp32.onnx"), "fp32", 1)
    for count in (1, 2, 4, 1, 2, 4):
        engine.run(np.full((count, 2, 2, 1), count, np.uint8))
    [made] = session.made
    assert {name: len(source.memory) for name, (source, _) in made.graphs.items()} == {"1": 1, "2": 2, "4": 4}
    memory = [id(value.memory) for pair in made.graphs.values() for value in pair]
    assert len(set(memory)) == 6


def test_cuda_s_calls_are_onnx_runtime_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same buffers, bindings and options with the real library, on the device that every machine has."""
    import onnxruntime as ort

    real, allocate = ort.InferenceSession, ort.OrtValue.ortvalue_from_shape_and_type

    def on_cpu(path: str, options: Any, providers: Any) -> Any:
        opened = real(path, providers=["CPUExecutionProvider"])
        monkeypatch.setattr(opened, "get_providers", lambda: [providers[0][0]])
        return opened

    monkeypatch.setattr(ort, "InferenceSession", on_cpu)
    monkeypatch.setattr(
        ort.OrtValue, "ortvalue_from_shape_and_type", lambda shape, dtype, device, index: allocate(shape, dtype, "cpu")
    )
    path = tiny_onnx(tmp_path / "fp32.onnx")
    images = np.random.default_rng(0).integers(0, 256, (5, *SHAPE), dtype=np.uint8)
    expected = real(str(path), providers=["CPUExecutionProvider"]).run(None, {"image": images})[0]
    engine = OnnxRuntimeCuda(path, "fp32", 1, max_batch=2)
    first = engine.run(images)
    kept = first.copy()
    np.testing.assert_allclose(first, expected, rtol=1e-5)
    engine.run(images[::-1])
    np.testing.assert_array_equal(first, kept)


@pytest.mark.gpu
def test_cuda_gives_the_cpu_s_answers(tmp_path: Path) -> None:
    if "onnxruntime-cuda" not in available():
        pytest.skip(unusable("onnxruntime-cuda"))
    from export.to_onnx import to_onnx
    from models.weights import load

    network = load("lenet5", "untrained")
    to_onnx(network, tmp_path / "fp32.onnx", 8)
    images = np.random.default_rng(0).integers(0, 256, (11, *network.preprocess.shape), dtype=np.uint8)
    expected = OnnxRuntime(tmp_path / "fp32.onnx", "fp32", 1).run(images)
    engine = OnnxRuntimeCuda(tmp_path / "fp32.onnx", "fp32", 1, max_batch=8)
    for count in (1, 3, 11, 3, 8):  # each bucket is captured, then replayed
        np.testing.assert_allclose(engine.run(images[:count]), expected[:count], atol=1e-4)
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
    given: list[Any] = []

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
    artifact.manifest["files"]["fp32.onnx"]["sha256"] = sha256(graph)
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


@pytest.mark.parametrize(
    ("quota", "allowed"), [("max 100000", 4), ("150000 100000", 2), ("20000 100000", 1), ("900000 100000", 4)]
)
def test_a_containers_quota_counts_as_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str, allowed: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(4)), raising=False)
    monkeypatch.setattr(runtime, "CPU_MAX", tmp_path / "cpu.max")
    assert runtime.cores() == 4
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert runtime.cores() == allowed


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_batch_that_cannot_be_written_or_is_not_in_one_piece_is_taken_as_it_is(tiny: Artifact, engine: str) -> None:
    """Engines share a batch's memory where they can. Of one that has to be copied the copy must outlive the call."""
    opened = runtime.open(tiny, engine)
    wide = np.random.default_rng(0).integers(0, 256, (4, *SHAPE[:2], 6), np.uint8)
    want = [opened.run(np.ascontiguousarray(wide[i : i + 1, ..., :3])).copy() for i in range(4)]
    for i in range(4):
        fixed = np.ascontiguousarray(wide[i : i + 1, ..., :3])
        fixed.flags.writeable = False
        for batch in (wide[i : i + 1, ..., :3], fixed):
            np.testing.assert_array_equal(opened.run(batch), want[i])
    opened.close()
