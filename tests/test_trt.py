"""The TensorRT adapter, against a CUDA that checks what is done to it, and against a real one where there is one."""

from __future__ import annotations

import gc
import logging
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.console import Failure
from serving import trt
from serving.trt import RTX_CAPABILITIES, Gpu, PlanError, TensorRt, TensorRtRtx, check_record, gpu, load_module
from tests.conftest import room, tiny_onnx
from tests.fakes.tensorrt import CLASSES, HERE, SHAPE, Bench, FakeCuda, expected, images

pytestmark = pytest.mark.usefixtures("frozen")  # most tests end in a full garbage collection


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(tmp_path, monkeypatch)


# --- running ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 4, 5, 8, 11])
def test_every_image_gets_its_own_scores(bench: Bench, engine: str, count: int) -> None:
    runtime = bench.open(engine)
    np.testing.assert_allclose(runtime.run(images(4, seed=9)), expected(images(4, seed=9)), rtol=1e-6)
    scores = runtime.run(images(count))
    assert scores.shape == (count, CLASSES)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected(images(count)), rtol=1e-6)
    runtime.close()


def test_scores_outlive_the_next_run(bench: Bench) -> None:
    runtime = bench.open()
    first = runtime.run(images(4, seed=1))
    runtime.run(images(4, seed=2))
    runtime.close()
    np.testing.assert_allclose(first, expected(images(4, seed=1)), rtol=1e-6)


def test_a_run_is_one_graph_launch_and_one_wait(bench: Bench) -> None:
    runtime = bench.open()
    bench.cuda.calls.clear()
    runtime.run(images(3))
    assert bench.cuda.calls == ["cudaGraphLaunch", "cudaStreamSynchronize"]
    assert bench.state().seen["execute_async_v3"] == 6, "each of three buckets ran once and was captured once"
    runtime.run(images(4 + 4 + 1))
    assert bench.cuda.calls.count("cudaGraphLaunch") == 4
    runtime.close()


def test_an_array_that_is_not_contiguous_is_run_right(bench: Bench) -> None:
    runtime = bench.open()
    strided = images(8)[::2, ::-1]
    np.testing.assert_allclose(runtime.run(strided), expected(np.ascontiguousarray(strided)), rtol=1e-6)
    runtime.close()


@pytest.mark.parametrize(
    "batch", [np.zeros((1, 5, 4, 3), np.uint8), np.zeros((1, *SHAPE), np.float32), np.zeros(SHAPE, np.uint8)]
)
def test_a_batch_of_another_form_is_refused(bench: Bench, batch: Any) -> None:
    runtime = bench.open()
    with pytest.raises(Failure, match=r"the plan takes uint8 \[n, 4, 4, 3\], this is"):
        runtime.run(batch)
    runtime.close()


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_what_cannot_be_captured_runs_without_a_graph(
    bench: Bench, engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    bench.state(engine).capturable = False
    with caplog.at_level(logging.WARNING):
        runtime = bench.open(engine)
    assert "cannot capture batch 4" in caplog.text
    np.testing.assert_allclose(runtime.run(images(5)), expected(images(5)), rtol=1e-6)
    assert "cudaStreamBeginCapture" not in bench.cuda.calls
    runtime.close()
    bench.assert_nothing_left()


# --- what is acquired is released -------------------------------------------------------------------------------------


def test_close_frees_everything_in_order(bench: Bench) -> None:
    runtime = bench.open()
    bench.cuda.journal.clear()
    runtime.close()
    bench.assert_nothing_left()
    order = list(dict.fromkeys(bench.cuda.journal))
    assert order == [
        "free executable",
        "free Context",
        "free device",
        "free pinned",
        "free Engine",
        "free Runtime",
        "free stream",
    ]
    runtime.close()
    with pytest.raises(Failure, match="is closed"):
        runtime.run(images(1))


def test_the_scratch_memory_is_shared_and_all_memory_is_allocated_once(bench: Bench) -> None:
    runtime = bench.open()
    sizes = sorted(memory.nbytes for kind, memory in bench.cuda.live.values() if kind in ("device", "pinned"))
    image, score = 4 * int(np.prod(SHAPE)), 4 * CLASSES * 4
    assert sizes == sorted([1000, image, image, score, score])
    before = dict.fromkeys(bench.cuda.live)
    runtime.run(images(4))
    assert dict.fromkeys(bench.cuda.live) == before
    runtime.close()


def test_a_failure_at_any_cuda_call_is_named_and_leaves_nothing(bench: Bench) -> None:
    bench.open().close()
    opening = bench.cuda.calls[: len(bench.cuda.calls) - bench.cuda.calls[::-1].index("cudaGraphInstantiate") + 1]
    assert len(opening) > 30
    failed = set()
    for position, name in enumerate(opening):
        if name == "cudaGetDeviceCount":  # its failure says that there is no GPU
            continue
        bench.cuda.calls.clear()
        bench.cuda.fail_at = position
        with pytest.raises(Failure, match=rf"{name} failed: out of memory \(cudaErrorMemoryAllocation\)"):
            bench.open()
        failed.add(name)
        gc.collect()
        assert bench.cuda.live == {}, f"left after {name} failed at {position}"
        assert bench.cuda.capturing is None
    assert {"cudaMalloc", "cudaHostAlloc", "cudaStreamBeginCapture", "cudaGraphInstantiate"} <= failed


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
@pytest.mark.parametrize(
    ("call", "number"),
    [
        ("deserialize_cuda_engine", 1),
        ("create_execution_context", 1),
        ("create_execution_context", 3),
        ("set_optimization_profile_async", 2),
        ("set_input_shape", 1),
        ("set_tensor_address", 1),
        ("set_tensor_address", 2),
        ("execute_async_v3", 1),
        ("execute_async_v3", 2),  # inside the capture
    ],
)
def test_a_refusal_of_tensorrt_is_named_with_its_reason_and_leaves_nothing(
    bench: Bench, engine: str, call: str, number: int
) -> None:
    bench.state(engine).refuse[call] = number
    told = "cannot load a.plan" if call == "deserialize_cuda_engine" else f"{call} failed"
    with pytest.raises(PlanError, match=rf"{told}.*: a reason of TensorRT's") as caught:
        bench.open(engine)
    assert "all is well" not in str(caught.value)
    assert bench.cuda.live == {}
    assert bench.cuda.capturing is None


def test_a_failure_while_closing_frees_the_rest(bench: Bench) -> None:
    runtime = bench.open()
    bench.cuda.fail_name = "cudaGraphExecDestroy"
    with pytest.raises(Failure, match="cudaGraphExecDestroy failed"):
        runtime.close()
    bench.assert_nothing_left()


def test_a_failed_launch_is_named(bench: Bench) -> None:
    runtime = bench.open()
    bench.cuda.fail_name = "cudaGraphLaunch"
    with pytest.raises(Failure, match="cudaGraphLaunch failed: out of memory"):
        runtime.run(images(1))
    runtime.close()
    bench.assert_nothing_left()


# --- what may be loaded -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"engine": "tensorrt-rtx"}, "was built for tensorrt-rtx, not for tensorrt"),
        ({"engine_version": "11.1.0"}, r"was built by tensorrt 11\.1\.0, here is 11\.2\.0"),
        ({"engine_version": None}, "was built by tensorrt None"),
        ({"gpu": None}, "names no GPU"),
        ({"gpu": "NVIDIA A10"}, "was built for GPU NVIDIA A10, here is NVIDIA L4"),
        ({"compute_capability": "8.6"}, r"was built for compute capability 8\.6, here is 8\.9"),
        ({"cuda_driver": 12}, "was built for CUDA driver family 12, here is 13"),
    ],
)
def test_a_plan_for_another_machine_is_refused_before_it_is_read(
    bench: Bench, changes: dict[str, Any], complaint: str
) -> None:
    record = bench.record() | changes
    with pytest.raises(PlanError, match=complaint) as caught:
        TensorRt(bench.plan, "fp16", 1, record)
    assert "python -m export NETWORK --precision fp16 --engine tensorrt" in str(caught.value) or "rtx" in complaint
    assert "deserialize_cuda_engine" not in bench.state().seen
    assert bench.cuda.live == {}


@pytest.mark.parametrize("capability", ["7.5", "9.0", "10.0"])
def test_a_portable_plan_is_refused_where_tensorrt_rtx_does_not_run(bench: Bench, capability: str) -> None:
    with pytest.raises(PlanError, match="use engine tensorrt on it"):
        check_record(bench.record("tensorrt-rtx"), "tensorrt-rtx", "1.7.1", Gpu("GPU", capability, 13))


def test_a_record_that_fits_is_accepted(bench: Bench) -> None:
    check_record(bench.record(), "tensorrt", "11.2.0", HERE)
    for capability in RTX_CAPABILITIES:
        check_record(bench.record("tensorrt-rtx"), "tensorrt-rtx", "1.7.1", Gpu("GPU", capability, 12))
    tied = bench.record() | {"engine": "tensorrt-rtx", "engine_version": "1.7.1"}
    with pytest.raises(PlanError, match=r"compute capability 8\.9, here is 8\.6"):
        check_record(tied, "tensorrt-rtx", "1.7.1", Gpu(HERE.name, "8.6", 13))


def test_a_machine_without_a_gpu_says_so(bench: Bench) -> None:
    bench.cuda.devices = 0
    with pytest.raises(PlanError, match="tensorrt needs an NVIDIA GPU"):
        bench.open()
    assert gpu() is None
    bench.cuda.devices = 1
    bench.cuda.fail_name = "cudaGetDeviceCount"
    assert gpu() is None


def test_the_gpu_is_described_as_records_describe_it(bench: Bench) -> None:
    assert gpu() == HERE
    assert asdict(HERE).items() <= {"name": "NVIDIA L4", **bench.record()}.items()


@pytest.mark.parametrize(
    "types_", [{"image": "FLOAT", "probabilities": "FLOAT"}, {"image": "UINT8", "probabilities": "HALF"}]
)
def test_a_plan_that_is_no_classifier_of_bytes_is_refused(bench: Bench, types_: dict[str, str]) -> None:
    bench.write(types=types_)
    with pytest.raises(PlanError, match="takes one uint8 tensor and gives one float32 tensor"):
        bench.open()
    assert bench.cuda.live == {}


def test_a_plan_without_buckets_is_refused(bench: Bench) -> None:
    bench.write(profiles=[[1, 4]])
    with pytest.raises(PlanError, match="no profile of a fixed batch size"):
        bench.open()
    assert bench.cuda.live == {}


def test_a_plan_that_needs_no_scratch_memory_runs(bench: Bench) -> None:
    bench.write(scratch=0)
    runtime = bench.open()
    np.testing.assert_allclose(runtime.run(images(2)), expected(images(2)), rtol=1e-6)
    runtime.close()
    bench.assert_nothing_left()


@pytest.mark.parametrize("engine", ["tensorrt", "tensorrt-rtx"])
def test_an_engine_that_is_missing_tells_how_to_install_it(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, trt.MODULES[engine], None)
    with pytest.raises(Failure, match=f"{engine} is not installed here") as caught:
        load_module(engine)
    assert [line.strip() for line in str(caught.value).splitlines()[1:]] == [
        f"pip install 'podium[{engine}]' &&",
        f"python -m export NETWORK --precision fp16 --engine {engine}",
    ]


def test_a_tensorrt_from_before_strong_typing_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench.modules["tensorrt"], "__version__", "10.14.1")
    with pytest.raises(Failure, match=r"tensorrt 10\.14\.1 is too old"):
        load_module("tensorrt")


def test_missing_cuda_bindings_are_named(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(Failure, match="cuda-bindings is not installed"):
        bench.open()


# --- what TensorRT-RTX keeps ------------------------------------------------------------------------------------------


def test_what_was_compiled_is_kept_and_used_again(bench: Bench) -> None:
    state = bench.state("tensorrt-rtx")
    bench.open("tensorrt-rtx").close()
    assert not hasattr(state, "loaded")
    (kept,) = (bench.folder / "cache").iterdir()
    assert kept.read_bytes() == b"kernels"
    state.cached = b"more kernels"
    bench.open("tensorrt-rtx").close()
    assert state.loaded == b"kernels"
    assert kept.read_bytes() == b"more kernels"


def test_another_plan_has_a_cache_of_its_own(bench: Bench) -> None:
    bench.open("tensorrt-rtx").close()
    bench.write(scratch=2000)
    bench.open("tensorrt-rtx").close()
    assert len(list((bench.folder / "cache").iterdir())) == 2


def test_a_cache_of_another_gpu_is_made_anew(bench: Bench) -> None:
    bench.open("tensorrt-rtx").close()
    state = bench.state("tensorrt-rtx")
    state.accepts_cache, state.cached = False, b"kernels of this one"
    runtime = bench.open("tensorrt-rtx")
    np.testing.assert_allclose(runtime.run(images(1)), expected(images(1)), rtol=1e-6)
    runtime.close()
    (kept,) = (bench.folder / "cache").iterdir()
    assert kept.read_bytes() == b"kernels of this one"


def test_a_cache_that_cannot_be_written_is_no_failure(bench: Bench) -> None:
    (bench.folder / "cache").write_text("a file where the folder should be")
    runtime = bench.open("tensorrt-rtx")
    np.testing.assert_allclose(runtime.run(images(1)), expected(images(1)), rtol=1e-6)
    runtime.close()


def test_a_full_disk_keeps_nothing_of_a_cache(bench: Bench) -> None:
    with room(3):
        bench.open("tensorrt-rtx").close()
    assert list((bench.folder / "cache").iterdir()) == []


def test_the_users_cache_folder_is_the_default(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PODIUM_CACHE", str(bench.folder / "mine"))
    TensorRtRtx(bench.plan, "fp16", 1, bench.record("tensorrt-rtx")).close()
    assert len(list((bench.folder / "mine").glob("tensorrt-rtx-*.cache"))) == 1


# --- the stand-ins ----------------------------------------------------------------------------------------------------


def test_the_stand_ins_have_nothing_that_the_real_modules_lack(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = bench.modules["tensorrt-rtx"]
    monkeypatch.undo()
    real = pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed")
    cuda = pytest.importorskip("cuda.bindings.runtime", reason="cuda-bindings is not installed")
    calls = {name[1:] for name in vars(FakeCuda) if name.startswith("_cuda")}
    calls |= {name for name in vars(FakeCuda) if name.startswith("cuda")}
    assert {name for name in calls if not hasattr(cuda, name)} == set()
    assert len(calls) > 20
    for kind in (FakeCuda.cudaMemcpyKind, FakeCuda.cudaStreamCaptureMode):
        for member in kind:
            assert int(getattr(getattr(cuda, kind.__name__), member.name)) == member
    classes = vars(fake)["stands_for"]
    lacking = [
        f"{name}.{part}"
        for name, stand_in in classes.items()
        for part in vars(stand_in)
        if part[0] != "_" and part != "cache" and not hasattr(getattr(real, name), part)
    ]
    assert lacking == []
    engine = {"num_io_tensors", "num_optimization_profiles", "device_memory_size_v2"}
    assert engine <= set(dir(real.ICudaEngine))
    assert "dynamic_shapes_kernel_specialization_strategy" in dir(real.IRuntimeConfig)
    for enumeration in ("TensorIOMode", "DataType"):
        assert vars(fake)[enumeration].__members__.keys() <= getattr(real, enumeration).__members__.keys()


# --- on a real GPU ----------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.parametrize(("engine", "adapter"), [("tensorrt", TensorRt), ("tensorrt-rtx", TensorRtRtx)])
def test_a_plan_built_here_answers_like_onnx_runtime(engine: Any, adapter: type[TensorRt], tmp_path: Path) -> None:
    import onnxruntime

    from export.to_engine import build_plan

    here = gpu()
    if here is None:
        pytest.skip("no NVIDIA GPU with a driver is here")
    try:
        load_module(engine)
    except Failure as error:
        pytest.skip(str(error).split(". ")[0])
    if engine == "tensorrt-rtx" and here.compute_capability not in RTX_CAPABILITIES:
        pytest.skip(f"tensorrt-rtx does not run on {here.name}")
    graph, plan = tiny_onnx(tmp_path / "tiny.onnx"), tmp_path / "tiny.plan"
    record = build_plan(graph, plan, engine, "fp32", (32, 32, 3), (1, 2, 4)).record()
    session = onnxruntime.InferenceSession(str(graph), providers=["CPUExecutionProvider"])
    batch = np.random.default_rng(0).integers(0, 256, (11, 32, 32, 3), dtype=np.uint8)
    for _ in range(2):  # the second time from the cache
        runtime = adapter(plan, "fp32", 1, record, tmp_path / "cache")
        for count in (1, 2, 3, 4, 11):
            (answer,) = session.run(None, {"image": batch[:count]})
            np.testing.assert_allclose(runtime.run(batch[:count]), answer, atol=1e-3)
        runtime.close()
