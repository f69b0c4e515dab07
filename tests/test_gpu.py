"""Measuring on a GPU, as far as a machine without one can tell: the plan, the file, the end of a run, and CPU mode."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from benchmarks import process, records
from benchmarks.__main__ import main
from benchmarks.engine import gpu, gpu_plan, power, roofline, session, torch_engine
from benchmarks.engine import gpu_passes as gpu_child
from models import SETS, SPECS
from models.console import Usage
from models.layers import LocalResponseNorm
from models.preprocess import Preprocess
from models.weights import Network, Weights, load
from tests.conftest import ROOT

# A record as it is in JSON, which the tests look at freely.
Json = Any

MAIN, OTHER = ("torch-cuda", "fp16"), ("onnxruntime-cuda", "fp16")
SCRIPT = ROOT / "benchmarks" / "gpu.sh"


# The plan


def test_the_networks_are_the_five_the_winners_and_one_of_every_other_family() -> None:
    assert gpu_plan.NETWORKS[0] == "resnet50" and set(gpu_plan.NETWORKS[:5]) == set(SETS["five"])
    assert set(SETS["winners"]) <= set(gpu_plan.NETWORKS)
    assert {SPECS[name].family for name in gpu_plan.NETWORKS} == {row.family for row in SPECS.values()}


def test_the_plan_begins_with_what_matters_most() -> None:
    tasks = gpu_plan.plan(
        gpu_plan.NETWORKS, [MAIN, OTHER, ("torch.compile-cuda", "fp16")], gpu_plan.BATCHES, metered=True
    )
    assert tasks[:2] == [
        gpu_plan.Task("resnet50", *MAIN, gpu_plan.BATCHES),
        gpu_plan.Task("resnet50", *MAIN, (256,), power=True),
    ]
    assert len(set(tasks)) == len(tasks)
    cells = [key for task in tasks if not task.power for key in task.keys]
    assert {(n, *MAIN, b) for n in gpu_plan.NETWORKS for b in gpu_plan.BATCHES} <= set(cells)
    assert {(n, *OTHER, b) for n in SETS["five"] for b in gpu_plan.BATCHES} <= set(cells)
    # Compiling takes minutes.
    assert {key[3] for key in cells if key[1] == "torch.compile-cuda"} == {256}
    # Power is of cells that were measured before, and every network has it at two batch sizes for claims 1 and 3.
    for index, task in enumerate(tasks):
        if task.power:
            before = {key for earlier in tasks[:index] if not earlier.power for key in earlier.keys}
            assert set(task.keys) <= before
    for batch in (256, 1):
        assert {task.network for task in tasks if task.power and batch in task.batches} == set(gpu_plan.NETWORKS)
    assert not any(task.power for task in gpu_plan.plan(gpu_plan.NETWORKS, [MAIN], gpu_plan.BATCHES, metered=False))


@pytest.mark.parametrize(
    ("asked", "message"),
    [(("abacus",), "no engine is called 'abacus'"), (("tensorrt:int8",), "precisions here are fp32 and fp16")],
)
def test_a_wrong_engine_is_a_usage_error(asked: tuple[str, ...], message: str) -> None:
    with pytest.raises(Usage, match=message):
        gpu.chosen(asked, "cuda")
    assert gpu.chosen(("onnxruntime-cuda", "torch-cuda:fp32"), "cuda") == [OTHER, ("torch-cuda", "fp32")]
    assert gpu.chosen(None, "cpu") == [("torch", "fp32")]


# The run, on a child that answers at once and a clock that only it moves


class Answers:
    """Ten seconds a cell, twenty a power pass; `fail` gives the message of a pass that fails."""

    def __init__(self, path: Path) -> None:
        self.path, self.now, self.jobs = path, 0.0, list[dict[str, Any]]()
        self.fail: dict[tuple[Any, ...], str] = {}
        self.ended = 0

    def clock(self) -> float:
        return self.now

    def end(self) -> None:
        self.ended += 1

    def ask(self, name: str, question: Mapping[str, Any], within: float | None) -> dict[str, Any]:
        job, began = {"pass": name, **question}, self.now
        # Whatever happens now, the file on the disk is whole and says of every cell what is known of it.
        found = records.read(self.path)["records"]
        assert all(item["status"] == "ok" or item["status"].startswith("failed: ") for item in found)
        self.jobs.append(job)
        self.now += {"cell": 10.0, "power": 20.0}.get(job["pass"], 0.0)
        if within is not None and self.now - began > within:
            raise process.Late("process", "no answer")
        if message := self.fail.get((job["pass"], job["network"], job.get("batch"))):
            raise process.PassError("memory" if message.startswith("memory ended") else "engine", message)
        if job["pass"] == "check":
            wrong = self.fail.get(("answers", job["network"], None))
            return {"verdict": "fail" if wrong else "pass", "failures": [wrong], "cosine": 0.99}
        if job["pass"] == "power":
            return {**records.no_power(""), "source": "nvml", "reason": None, "net_w": 400.0, "mean_w": 470.0}
        memory = {"weights": 1.0, "peak_rss": None, "peak_gpu": 100.0 + job["batch"], "activations": None}
        batch = job["batch"]
        return {
            "values": [batch / 4, batch / 4], "wall_s": batch / 2000, "cpu_s": 0.001, "warm": True, "memory": memory,
            "device_values": [batch / 8, batch / 8, batch / 8],
        }  # fmt: skip


HERE: records.Environment = {
    "cpu": "Imaginary CPU", "cores": 2, "threads": 2, "settings": "gpu", "gpus": [{"name": "Synthetic GPU"}],
    "date": "2026-01-02T03:04:05+00:00",
    "power": {
        "source": "nvml", "reason": None, "idle_w": 70.0, "other_processes": {"count": 1, "memory_mb": 7.0},
    },
    "rates": {"copy_gb_s": 4000.0, "matrix_fp16_gop_s": 800_000.0},
}  # fmt: skip


def made(
    path: Path, networks: tuple[str, ...] = ("resnet50", "alexnet"), budget: float = 1e6
) -> tuple[gpu.Run, Answers]:
    child = Answers(path)
    tasks = gpu_plan.plan(networks, [MAIN], (256, 1), metered=True)
    run = gpu.Run(path, {**HERE}, gpu.LOOK, "untrained", tasks, budget, clock=child.clock)
    run.write()
    return run, child


def state(path: Path) -> Json:
    return {(item["network"], item["batch"]): item for item in records.read(path)["records"]}


def test_a_whole_run_gives_records_by_the_contract(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run, child = made(tmp_path / "gpu.json")
    assert {item["status"] for item in state(run.path).values()} == {gpu.PENDING.status}
    run.go(child, 70.0)
    run.finish("the run ended")
    found = state(run.path)
    assert list(found) == [("resnet50", 256), ("resnet50", 1), ("alexnet", 256), ("alexnet", 1)]
    one = found["resnet50", 256]
    assert one["status"] == "ok" and one["weights"] == "untrained" and one["macs"] == SPECS["resnet50"].macs
    assert one["top1"] == 76.13 and one["accuracy_source"] == "published (weights here are untrained)"
    assert one["latency_ms"]["p50"] == 64 and one["throughput_img_s"] == pytest.approx(4000)
    assert one["device"]["throughput_img_s"] == pytest.approx(8000) and one["parity"]["verdict"] == "pass"
    assert one["memory_mb"]["peak_gpu"] == 356 and one["power"]["net_w"] == 400
    # Those that were on the board before us, not our own process in another guise.
    assert one["power"]["other_processes"] == HERE["power"]["other_processes"]
    assert one["roofline"]["img_s"] == one["device"]["throughput_img_s"] and one["roofline"]["timed"] == "device"
    assert [job["pass"] for job in child.jobs].count("check") == 2
    assert "8 of 8 done" not in capsys.readouterr().out  # progress is stderr's


def test_a_run_over_its_budget_keeps_what_it_has_and_names_the_rest(tmp_path: Path) -> None:
    run, child = made(tmp_path / "gpu.json", budget=45.0)
    with pytest.raises(gpu.Stopped):
        run.go(child, 70.0)
    run.finish("the time budget of 45 s ended")
    found = state(run.path)
    # Two cells, a power pass of twenty seconds: the next cell would end after the budget.
    assert [item["status"] for item in found.values()] == [
        "ok", "ok", *["failed: not measured, the time budget of 45 s ended"] * 2,
    ]  # fmt: skip
    assert found["resnet50", 256]["power"]["net_w"] == 400
    assert found["resnet50", 1]["power"]["reason"] == "not reached: the time budget of 45 s ended"


def test_a_power_pass_is_not_begun_that_cannot_end(tmp_path: Path) -> None:
    run, child = made(tmp_path / "gpu.json", budget=20.0 + gpu.LOOK.trials * gpu.LOOK.window_s - 1)
    with pytest.raises(gpu.Stopped):
        run.go(child, 70.0)
    assert [job["pass"] for job in child.jobs] == ["check", "cell", "cell"]


def test_a_second_run_goes_on_where_the_first_ended(tmp_path: Path) -> None:
    run, child = made(tmp_path / "gpu.json", budget=45.0)
    with pytest.raises(gpu.Stopped):
        run.go(child, 70.0)
    run.finish("it ended")
    again, child = made(tmp_path / "gpu.json")
    assert again.resume(session.earlier(run.path, HERE)) == 0  # `made` wrote the file anew
    run.write()
    assert again.resume(session.earlier(run.path, HERE)) == 2
    again.write()
    again.go(child, 70.0)
    again.finish("the run ended")
    assert {item["status"] for item in state(again.path).values()} == {"ok"}
    assert {item["power"]["net_w"] for item in state(again.path).values()} == {400.0}
    done = {(job["pass"], job["network"], job["batch"]) for job in child.jobs if job["pass"] != "check"}
    assert ("cell", "resnet50", 256) not in done and ("power", "resnet50", 256) not in done
    assert {("power", "resnet50", 1), ("cell", "alexnet", 1)} <= done
    with pytest.raises(Usage, match="other conditions"):
        session.earlier(run.path, {**HERE, "cpu": "Another CPU"})


def test_an_engine_with_wrong_answers_is_not_timed(tmp_path: Path) -> None:
    run, child = made(tmp_path / "gpu.json")
    child.fail["answers", "resnet50", None] = "cosine 0.3 < 0.99"
    run.go(child, 70.0)
    found = state(run.path)
    assert found["resnet50", 256]["status"] == "failed: the answers are not the network's: cosine 0.3 < 0.99"
    assert found["alexnet", 256]["status"] == "ok"
    assert not [job for job in child.jobs if job["network"] == "resnet50" and job["pass"] != "check"]


def test_a_check_that_could_not_run_is_not_a_wrong_answer(tmp_path: Path) -> None:
    run, child = made(tmp_path / "gpu.json")
    child.fail["check", "resnet50", None] = "memory ended in the check pass"
    run.go(child, 70.0)
    cell = state(run.path)["resnet50", 256]
    assert (cell["failure"], cell["status"]) == ("memory", "failed: memory ended in the check pass")
    assert state(run.path)["resnet50", 1]["status"] != "ok" and state(run.path)["alexnet", 1]["status"] == "ok"


def test_larger_batches_are_not_tried_where_memory_ended(tmp_path: Path) -> None:
    run, child = made(tmp_path / "gpu.json")
    run.tasks = [gpu_plan.Task("alexnet", *MAIN, (1, 256)), gpu_plan.Task("resnet50", *MAIN, (256, 1))]
    child.fail["cell", "alexnet", 1] = "memory ended in the cell pass"
    child.fail["cell", "resnet50", 256] = "memory ended in the cell pass"
    run.go(child, 70.0)
    found = state(run.path)
    assert found["alexnet", 256]["status"] == "failed: not tried, memory ended at batch 1"
    assert found["resnet50", 256]["status"] == "failed: memory ended in the cell pass"
    assert found["resnet50", 1]["status"] == "ok"


def test_a_power_pass_that_fails_costs_the_cell_only_its_power(tmp_path: Path) -> None:
    run, child = made(tmp_path / "gpu.json")
    child.fail["power", "resnet50", 256] = "NVML stopped answering: GPU is lost"
    run.go(child, 70.0)
    one = state(run.path)["resnet50", 256]
    assert one["status"] == "ok" and one["power"]["reason"].endswith("GPU is lost") and one["power"]["net_w"] is None


# The child


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "memory ended in the cell pass"),
        ("import sys; sys.exit(3)", "exit status 3 in the cell pass"),
    ],
)
def test_a_child_that_dies_says_how(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, reason: str) -> None:
    (tmp_path / "python").write_text(f'#!/bin/sh\nread line\nexec {sys.executable} -c "{code}"\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with process.Child("benchmarks.engine.gpu_passes") as child, pytest.raises(process.PassError, match=reason):
        child.ask("cell", within=60)


def test_a_child_that_does_not_answer_ends_with_the_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "python").write_text("#!/bin/sh\nread line\nexec sleep 600\n")
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    run, _ = made(tmp_path / "gpu.json", budget=0.05)
    with process.Child("benchmarks.engine.gpu_passes") as child, pytest.raises(gpu.Stopped, match="budget ended"):
        run.ask(child, "cell", {})


def job(what: str, **more: Any) -> Json:
    settings = asdict(replace(gpu.QUICK, warmup_s=0.01, measure_s=0.01, most=20))
    return {
        "pass": what, "network": "lenet5", "engine": "torch", "precision": "fp32", "weights": "untrained",
        "settings": settings, "batches": [1, 4], "batch": 4,
    } | more  # fmt: skip


@pytest.mark.parametrize("engine", ["torch", "onnxruntime"])
def test_the_worker_checks_and_measures(tmp_path: Path, engine: str) -> None:
    worker = gpu_child.Worker("cpu", 1, tmp_path)
    verdict = worker.check(job("check", engine=engine))
    assert verdict["verdict"] == "pass" and verdict["images"]["photographs"] and verdict["max_abs_error"] < 1e-3
    found: Json = worker.cell(job("cell", engine=engine))
    assert 3 <= len(found["values"]) <= 20 and min(found["values"]) > 0 and found["device_values"] == []
    assert found["wall_s"] >= sum(found["values"]) / 1e3 * 0.99
    assert found["memory"]["weights"] == pytest.approx(4e-6 * SPECS["lenet5"].params)
    assert found["memory"]["peak_gpu"] is None and found["memory"]["peak_rss"] >= 0


def test_the_worker_sees_wrong_answers(tmp_path: Path) -> None:
    worker = gpu_child.Worker("cpu", 1, tmp_path)
    worker.check(job("check"))
    known = worker.known["lenet5"]
    worker.known["lenet5"] = replace(known, reference=known.reference[::-1].copy())
    verdict = worker.check(job("check"))
    assert verdict["verdict"] == "fail" and verdict["failures"]


def test_the_worker_meters_power_from_the_idle_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Meter:
        source, energy = "meter", 0.0

        def joules(self) -> float:
            self.energy += 50
            return self.energy

        def details(self) -> records.Conditions:
            return {"temperature_c": 40}

    monkeypatch.setattr(power, "SHORTEST_WINDOW_S", 0.01)
    worker = gpu_child.Worker("cpu", 1, tmp_path)
    worker.sensor = Meter()
    asked = job("power", idle_w=3.0)
    asked["settings"] |= {"window_s": 0.01, "trials": 2}
    found: Json = worker.power(asked)
    assert found["trials"] == 2 and found["idle_w"] == 3 and found["temperature_c"] == 40
    assert found["net_w"] == pytest.approx(found["mean_w"] - 3) and found["joules_per_image"] > 0


# PyTorch, the baseline


class Normed(nn.Module):
    """A classifier of 32 x 32 with response normalization, which keeps what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.fc = nn.Conv2d(3, 8, 5, 2), LocalResponseNorm(), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        self.seen = x
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-6), ("bf16", 0.02)])
def test_pytorch_s_baseline_gives_the_network_s_answers(precision: str, tolerance: float) -> None:
    from export.to_onnx import Served

    torch.manual_seed(0)
    network = Network("normed", Normed().eval(), Weights("untrained", "seed 0"), Preprocess(36, 32), classes=10)
    images = np.random.default_rng(0).integers(0, 256, (5, 32, 32, 3), dtype=np.uint8)
    with torch.no_grad():
        expected = Served(network.module, network.preprocess).eval()(torch.from_numpy(images)).numpy()
    given: list[torch.dtype] = []
    engine = torch_engine.Torch(network, "cpu", precision, 1)
    for layer in engine._module.modules():
        if isinstance(layer, LocalResponseNorm):
            layer.register_forward_hook(lambda _, inputs, __: given.append(inputs[0].dtype))
    scores = engine.run(images)
    np.testing.assert_allclose(scores, expected, atol=tolerance)
    assert scores.dtype == np.float32 and engine.engine == "torch" and engine.device_ms(1, 3) == []
    # Squares overflow in half precision, so this one layer stays in float32; the rest is as asked.
    inner, own = engine._module, network.module
    assert isinstance(inner, Normed) and isinstance(own, Normed)
    assert given == [torch.float32] and inner.seen.dtype == engine._dtype
    assert inner.seen.is_contiguous(memory_format=torch.channels_last)
    assert own.conv.weight.dtype == torch.float32  # ours was a copy
    engine.close()
    engine.close()


class Graph:
    """A CUDA graph: it replays what was computed while it was captured, from the same memory into the same memory."""

    source: Tensor
    target: Tensor
    again: Any

    def replay(self) -> None:
        self.target.copy_(self.again(self.source))


class Cuda:
    """`torch` for a GPU that is a CPU: streams and pinned memory are nothing, graphs are `Graph`."""

    def __init__(self, forward: Callable[[Tensor], Tensor]) -> None:
        self.forward, self.captures, self.calls = forward, list[Graph](), 0
        self.capturing: Graph | None = None
        self.cuda = self

    def __getattr__(self, name: str) -> Any:
        return getattr(torch, name)

    def run(self, images: Tensor) -> Tensor:
        self.calls += 1
        made = self.forward(images)
        if self.capturing is not None:
            self.capturing.source, self.capturing.target, self.capturing.again = images, made, self.forward
        return made

    def zeros(self, *shape: int, pin_memory: bool, **more: Any) -> Tensor:
        assert pin_memory
        return torch.zeros(*shape, **more)

    def empty(self, *shape: Any, pin_memory: bool, **more: Any) -> Tensor:
        assert pin_memory
        return torch.empty(*shape, **more)

    def CUDAGraph(self) -> Graph:  # noqa: N802
        self.captures.append(Graph())
        return self.captures[-1]

    @contextmanager
    def graph(self, graph: Graph) -> Iterator[None]:
        # What is chosen or allocated at the first call may not happen while a graph is captured.
        assert self.calls >= torch_engine.WARM_UPS
        self.capturing = graph
        yield
        self.capturing, self.calls = None, 0

    @contextmanager
    def stream(self, _: Any) -> Iterator[None]:
        yield

    def Stream(self) -> Any:  # noqa: N802
        return SimpleNamespace(wait_stream=lambda _: None, synchronize=lambda: None)

    current_stream = Stream

    def synchronize(self) -> None:
        pass

    empty_cache = synchronize


def test_pytorch_s_graphs_are_one_a_bucket_and_their_memory_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    network = load("lenet5", "untrained")
    engine = torch_engine.Torch(network, "cpu", "fp32", 1)
    images = np.random.default_rng(0).integers(0, 256, (9, *network.preprocess.shape), dtype=np.uint8)
    expected = engine.run(images)
    cuda = Cuda(engine._forward)
    monkeypatch.setattr(engine, "_torch", cuda)
    monkeypatch.setattr(engine, "_gpu", True)
    monkeypatch.setattr(engine, "_forward", cuda.run)
    kept = engine.run(images[:3])
    for first, last in ((0, 3), (3, 4), (1, 9), (5, 8), (0, 1)):
        np.testing.assert_allclose(engine.run(images[first:last]), expected[first:last], atol=1e-6)
    np.testing.assert_allclose(kept, expected[:3], atol=1e-6)  # an answer outlives the next call
    assert [len(graph.source) for graph in cuda.captures] == [4, 1, 8]
    engine.close()


@pytest.mark.gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 0.02)])
def test_pytorch_on_a_gpu_gives_the_cpu_s_answers(precision: str, tolerance: float) -> None:
    if not torch_engine.cuda():
        pytest.skip("PyTorch sees no GPU")
    network = load("squeezenet1_1", "untrained")
    images = np.random.default_rng(0).integers(0, 256, (11, 224, 224, 3), dtype=np.uint8)
    expected = torch_engine.Torch(network, "cpu", "fp32").run(images)
    engine = torch_engine.Torch(network, "cuda", precision)
    for count in (1, 3, 11, 3):  # each bucket is captured, then replayed with other images
        np.testing.assert_allclose(engine.run(images[:count]), expected[:count], atol=tolerance)
    times = engine.device_ms(11, 10)
    assert len(times) == 10 and min(times) > 0
    engine.close()


# The roofline


def test_the_work_of_a_network_is_its_layers() -> None:
    one = roofline.work("lenet5", "fp16")
    assert (one.operations, one.weight_bytes) == (2 * SPECS["lenet5"].macs, 2 * SPECS["lenet5"].params)
    # The maps of the lecture's table, each written and read once, and the pixels, read as bytes.
    maps = 28 * 28 * 6 + 14 * 14 * 6 + 10 * 10 * 16 + 5 * 5 * 16 + 120 + 84 + 10
    assert one.image_bytes == 2 * 2 * maps + 32 * 32
    assert roofline.work("lenet5", "int8").weight_bytes == SPECS["lenet5"].params
    # A residual sum reads its other term and writes nothing of its own; a concatenation is free.
    convolutions, sums = 11_113_984, 3 * 56**2 * 256 + 4 * 28**2 * 512 + 6 * 14**2 * 1024 + 3 * 7**2 * 2048
    others = 56**2 * 64 + 2048 + 1000  # the two pools and the classes
    assert roofline.work("resnet50", "fp32").image_bytes == 4 * (2 * (convolutions + others) + sums) + 224 * 224 * 3


def test_the_bound_is_the_longer_of_the_two_sides() -> None:
    one = roofline.Work(operations=2_000, weight_bytes=9_000, image_bytes=1_000)
    small = roofline.bound(one, 1, copy_gb_s=1e-6, matrix_gop_s=1e-6)  # a thousand bytes and operations a second
    assert small.by == "memory" and (small.img_s, small.intensity) == pytest.approx((0.1, 0.2))
    large = roofline.bound(one, 90, copy_gb_s=1e-6, matrix_gop_s=1e-6)
    assert large.by == "arithmetic" and large.img_s == pytest.approx(0.5)


def test_a_record_is_held_against_its_own_precision_s_rate() -> None:
    item: Json = records.unmeasured(records.Failed("cut_off", "")) | {
        "kind": "cell", "network": "lenet5", "engine": "e", "precision": "fp16", "batch": 8, "weights": "untrained",
        "status": "ok", "throughput_img_s": 50.0,
    }  # fmt: skip
    rates = {"copy_gb_s": 1e-3, "matrix_fp16_gop_s": 1e-3, "matrix_fp32_gop_s": None}
    found = roofline.of_record(item, rates)
    assert found is not None and found["timed"] == "memory to memory"
    assert found["share"] == pytest.approx(50 / found["attainable_img_s"])
    on_device = roofline.of_record(item | {"device": {"throughput_img_s": 100.0}}, rates)
    assert on_device is not None and (on_device["img_s"], on_device["timed"]) == (100.0, "device")
    assert roofline.of_record(item | {"precision": "fp32"}, rates) is None
    assert roofline.of_record(item | {"status": "failed: x"}, rates) is None and roofline.of_record(item, {}) is None


def test_rates_are_measured_and_what_a_device_has_not_is_null(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> Tensor:
        raise RuntimeError("not implemented for this device")

    found: Json = roofline.rates("cpu", ("fp32", "bf16"), side=64, megabytes=1)
    assert min(found["copy_gb_s"], found["matrix_fp32_gop_s"], found["matrix_bf16_gop_s"]) > 0
    monkeypatch.setattr(torch, "_int_mm", none)
    assert roofline.rates("cpu", ("int8",), side=64, megabytes=1)["matrix_int8_gop_s"] is None


# The command, in CPU mode


def script(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    """gpu.sh where torch, onnx, numpy, Pillow and nvidia-ml-py are all there is."""
    absent = tmp_path / "absent"
    absent.mkdir(exist_ok=True)
    for name in ("bentoml", "matplotlib", "onnxruntime", "openvino", "psutil", "pydantic", "rich", "safetensors"):
        (absent / f"{name}.py").write_text(f"raise ImportError('{name} is not needed here')\n")
    here = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "PYTHONPATH": str(absent), "HOME": str(tmp_path)}
    command = [str(SCRIPT), "--cpu", "--quick", "--out", "out.json", *arguments]
    return subprocess.Popen(command, cwd=tmp_path, env=here, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_cpu_mode_survives_a_signal_goes_on_and_reports(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    arguments = ("--network", "lenet5,squeezenet1_1", "--batch", "1", "--threads", "1", "--budget", "3000")
    with script(tmp_path, *arguments) as running:
        deadline = time.monotonic() + 300
        while not (path.exists() and any(records.measured(i) for i in records.read(path)["records"])):
            assert running.poll() is None and time.monotonic() < deadline, running.communicate()
            time.sleep(0.02)
        running.send_signal(signal.SIGTERM)
        _, told = running.communicate(timeout=120)
    assert running.returncode == 128 + signal.SIGTERM, told
    first, second = records.read(path)["records"]
    assert first["status"] == "ok" and "CPU mode of benchmarks/gpu.sh: no GPU was used" in told
    assert second["status"] in ("ok", "failed: not measured, the run was stopped (SIGTERM)")

    with script(tmp_path, *arguments) as running:
        out, told = running.communicate(timeout=300)
    assert running.returncode == 0, told
    assert "cells are in out.json already" in told and "2 of 2 done, about 0 s left" in told and "out.json" in out
    document: Json = records.read(path)
    again, second = document["records"]
    assert again["latency_ms"] == first["latency_ms"] and second["status"] == "ok"
    assert (second["engine"], second["precision"], second["parity"]["verdict"]) == ("torch", "fp32", "pass")
    assert second["roofline"]["share"] > 0 and document["environment"]["rates"]["copy_gb_s"] > 0
    assert document["environment"]["mode"] == gpu.CPU_MODE
    assert document["environment"]["command"].startswith("benchmarks/gpu.sh --cpu --quick")
    assert not list(tmp_path.glob(".out.json*"))

    assert main(["report", str(path), "--out", str(tmp_path / "report")]) == 0
    text = (tmp_path / "report" / "report.md").read_text("utf-8")
    assert "## Roofline" in text and "figures/11-roofline.png" in text and gpu.CPU_MODE in text
    assert (tmp_path / "report" / "figures" / "11-roofline.png").exists()


@pytest.mark.slow
def test_cpu_mode_measures_every_network(tmp_path: Path) -> None:
    with script(tmp_path, "--budget", "1500", "--batch", "1") as running:
        _, told = running.communicate(timeout=1600)
    assert running.returncode == 0, told
    found = records.read(tmp_path / "out.json")["records"]
    assert {item["network"] for item in found if item["status"] == "ok"} == set(gpu_plan.NETWORKS), told


@pytest.mark.gpu
def test_the_command_on_a_gpu(tmp_path: Path) -> None:
    if not torch_engine.cuda():
        pytest.skip("PyTorch sees no GPU")
    path = tmp_path / "gpu.json"
    arguments = ["--quick", "--network", "resnet50,lenet5", "--batch", "8,1", "--engine", "torch-cuda"]
    done = subprocess.run([str(SCRIPT), *arguments, "--out", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: Json = records.read(path)["records"]
    for item in found:
        assert item["status"] == "ok" and item["device"]["throughput_img_s"] > 0 and item["memory_mb"]["peak_gpu"] > 0
