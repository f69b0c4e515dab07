"""Measuring: real children on a tiny network, sensors that are files, and a service of thirty lines."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

from benchmarks import environment, intervals, process, rates, records
from benchmarks.__main__ import main
from benchmarks.advise import queueing
from benchmarks.engine import cells as measure
from benchmarks.engine import contenders as engines
from benchmarks.engine import passes as child
from benchmarks.engine import power, scenarios, torch_engine
from serving.artifact import Artifact

# A record as it is in JSON, which the tests look at freely.
Json = Any

# Long enough to pass through every branch, too short to wait for.
BRIEF = child.Settings("quick", 2, 0.05, 0.02, 0.1, 5, 3, 200, idle_s=0.0, window_s=5.0, trials=1)


JOB: child.PassJob = {
    "folder": "nowhere", "version": "1", "engine": "none", "precision": "fp32", "threads": 1, "settings": {},
}  # fmt: skip


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "QUICK", BRIEF)
    monkeypatch.setattr(measure, "_SENSORS", {"onnxruntime": "no sensor in this test", "openvino": "none either"})


def read(path: Path) -> Json:
    return records.read(path)


def run(tag: str, path: Path, *more: str) -> int:
    return main(["run", "--quick", "--models", tag, "--batch", "1,2", "--out", str(path), *more])


def answers(
    monkeypatch: pytest.MonkeyPatch, answer: Callable[[dict[str, Any]], dict[str, Any]]
) -> list[dict[str, Any]]:
    """Children replaced by `answer`; the jobs they were given."""
    jobs: list[dict[str, Any]] = []

    def in_child(name: str, job: dict[str, Any]) -> dict[str, Any]:
        jobs.append({"pass": name, **job})
        return answer(jobs[-1])

    monkeypatch.setattr(measure, "in_child", in_child)
    return jobs


def well(job: dict[str, Any]) -> dict[str, Any]:
    if job["pass"] == "latency":
        return {"values": [1.0, 2.0, 3.0], "wall_s": 0.006, "cpu_s": 0.01, "warm": True}
    return {"weights": 1.0, "peak_rss": 2.0, "peak_gpu": None, "activations": None}


def test_a_run_writes_valid_records(tiny: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "results" / "out.json"
    assert run(tiny.tag, path, "--engine", "onnxruntime") == 0
    document = read(path)
    assert [item["batch"] for item in document["records"]] == [1, 2]
    for item in document["records"]:
        latency, memory = item["latency_ms"], item["memory_mb"]
        assert item["status"] == "ok" and item["weights"] == "untrained" and item["top1"] is None
        assert latency["count"] == len(latency["values"]) == sum(latency["starts"]) and len(latency["starts"]) == 2
        assert latency["p50"] == pytest.approx(np.percentile(latency["values"], 50))
        assert latency["interval"][0] <= latency["p50"] <= latency["interval"][1]
        assert item["throughput_img_s"] > 0 and item["cpu_seconds_per_image"] > 0
        assert memory["weights"] == pytest.approx(tiny.file("fp32.onnx").stat().st_size / 1e6)
        assert memory["peak_rss"] > 0 and memory["peak_gpu"] is None
        assert item["power"]["source"] == "none" and item["power"]["reason"] == "no sensor in this test"
        assert all(item["power"][name] is None for name in ("idle_w", "mean_w", "net_w", "joules_per_image", "trials"))
    assert document["environment"]["cores"] >= 1 and document["environment"]["packages"]["onnxruntime"]
    out = capsys.readouterr().out
    assert str(path) in out and "not measured" in out and "untrained" in out


def test_both_engines_are_measured(tiny: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    assert run(tiny.tag, path, "--engine", "onnxruntime,openvino", "--batch", "1") == 0
    assert [(item["engine"], item["status"]) for item in read(path)["records"]] == [
        ("onnxruntime", "ok"),
        ("openvino", "ok"),
    ]


def test_a_damaged_artifact_becomes_a_failed_record(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = json.loads((tiny.folder / "manifest.json").read_text("utf-8"))
    (tmp_path / "fp32.onnx").write_bytes(b"not what was exported")
    broken = Artifact(tmp_path, manifest, "broken")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), "utf-8")
    [cell] = measure.cells([broken], ["onnxruntime"], None, [1])
    [item] = measure.measure_all([cell], BRIEF, 1)
    assert item["status"].startswith("failed: tiny:broken: fp32.onnx has sha256")
    assert item["latency_ms"] is None and item["power"]["reason"] and not list(records.problems(item))


def test_a_run_goes_on_after_a_failure(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(job: dict[str, Any]) -> dict[str, Any]:
        if job["batch"] == 1:
            raise process.PassError("engine", "the engine does not like it")
        return well(job)

    answers(monkeypatch, answer)
    assert run(tiny.tag, tmp_path / "out.json") == 0
    assert [i["status"] for i in read(tmp_path / "out.json")["records"]] == [
        "failed: the engine does not like it",
        "ok",
    ]
    assert "failed: the engine does not like it" in capsys.readouterr().out


def test_nothing_measured_at_all_is_a_failure(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def answer(job: dict[str, Any]) -> dict[str, Any]:
        raise process.PassError("engine", "broken")

    answers(monkeypatch, answer)
    assert run(tiny.tag, tmp_path / "out.json") == 1
    assert "the first reason: broken" in capsys.readouterr().err


def test_larger_batches_are_not_tried_where_memory_ended(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(job: dict[str, Any]) -> dict[str, Any]:
        if job["batch"] == 2:
            raise process.PassError("memory", "memory ended in the latency pass (SIGKILL)")
        return well(job)

    jobs = answers(monkeypatch, answer)
    found = list(measure.measure_all(measure.cells([tiny], ["onnxruntime"], None, [4, 1, 2, 8]), BRIEF, 1))
    assert [item["batch"] for item in found] == [1, 2, 4, 8]
    assert [item["status"] for item in found[1:]] == [
        "failed: memory ended in the latency pass (SIGKILL)",
        "failed: not tried, memory ended at batch 2",
        "failed: not tried, memory ended at batch 2",
    ]
    assert max(job["batch"] for job in jobs) == 2


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        ("import os; os.kill(os.getpid(), 9)", "memory", "memory ended in the latency pass (SIGKILL)"),
        ("import os; os.kill(os.getpid(), 6)", "process", "SIGABRT in the latency pass"),
        ("import sys; sys.exit('no such thing')", "process", "exit status 1 in the latency pass: no such thing"),
    ],
)
def test_a_child_that_dies_says_how(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: str, kind: str, reason: str
) -> None:
    (tmp_path / "python").write_text(f'#!/bin/sh\nexec {sys.executable} -c "{code}"\n')
    (tmp_path / "python").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    with pytest.raises(process.PassError) as error:
        measure.in_child("latency", JOB)
    assert str(error.value) == reason and error.value.failed.kind == kind


def test_the_weighed_process_holds_no_engine_before_it_is_asked() -> None:
    heavy = {"torch", "onnxruntime", "openvino", "tensorrt", "matplotlib", "aiohttp", "rich"}
    code = "import sys, benchmarks.engine.child; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not heavy & {*done.stdout.split()}


def test_a_child_answers_more_than_once_and_starts_again_after_its_end() -> None:
    with process.Child("benchmarks.engine.child") as child:
        for name in ("latency", "memory"):
            with pytest.raises(process.PassError, match=r"'(settings|batch)'") as error:
                child.ask(name, {"folder": "nowhere", "version": "1"}, within=60)
            assert error.value.failed.kind == "engine"
        child.end()
        with pytest.raises(process.Late, match="latency pass gave no answer within 0 s"):
            child.ask("latency", within=0)
        with pytest.raises(process.PassError, match="'settings'"):
            child.ask("latency", within=60)


def test_a_child_out_of_memory_is_told_from_other_failures(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for error, kind, reason in (
        (MemoryError(), "memory", "memory ended in the memory pass"),
        (RuntimeError("std::bad_alloc"), "memory", "memory ended in the memory pass: std::bad_alloc"),
        (ValueError("wrong\nshape"), "engine", "wrong shape"),
    ):

        def fail(job: dict[str, Any], error: Exception = error) -> dict[str, Any]:
            raise error

        assert process.attempt("memory", {}, {"memory": fail}) == {"kind": kind, "failed": reason}


def test_interrupting_keeps_what_was_measured_and_a_second_run_resumes(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(job: dict[str, Any]) -> dict[str, Any]:
        if job["batch"] == 2:
            raise KeyboardInterrupt
        return well(job)

    path = tmp_path / "out.json"
    answers(monkeypatch, interrupted)
    assert run(tiny.tag, path) == 130
    assert [item["batch"] for item in read(path)["records"]] == [1]
    assert list(tmp_path.iterdir()) == [path]
    assert "kept" in capsys.readouterr().err

    jobs = answers(monkeypatch, well)
    assert run(tiny.tag, path) == 0
    assert {job["batch"] for job in jobs} == {2}
    assert [item["batch"] for item in read(path)["records"]] == [1, 2]
    assert "1 of 2 are in" in capsys.readouterr().err

    jobs.clear()
    assert run(tiny.tag, path, "--fresh") == 0
    assert {job["batch"] for job in jobs} == {1, 2} and len(read(path)["records"]) == 2


def test_failed_records_are_measured_again(tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(job: dict[str, Any]) -> dict[str, Any]:
        if job["batch"] == 1:
            raise process.PassError("engine", "for once")
        return well(job)

    answers(monkeypatch, answer)
    run(tiny.tag, tmp_path / "out.json")
    jobs = answers(monkeypatch, well)
    run(tiny.tag, tmp_path / "out.json")
    assert {job["batch"] for job in jobs} == {1}
    assert [item["status"] for item in read(tmp_path / "out.json")["records"]] == ["ok", "ok"]


def test_records_of_another_machine_are_not_added_to(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers(monkeypatch, well)
    run(tiny.tag, tmp_path / "out.json")
    monkeypatch.setattr(environment, "cpu_model", lambda: "Another CPU")
    assert run(tiny.tag, tmp_path / "out.json") == 2
    assert "other conditions (cpu" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--engine", "abacus"], "no engine is called 'abacus'"),
        (["--precision", "int1"], "no exported file fits"),
        (["--models", "nothing_like_it"], "nothing_like_it"),
    ],
)
def test_a_wrong_wish_is_a_usage_error(
    tiny: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    named = [] if "--models" in arguments else ["--models", tiny.tag]
    assert main(["run", *named, *arguments, "--out", str(tmp_path / "out.json")]) in (1, 2)
    assert message in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_batches_are_positive_integers() -> None:
    for text in ("0", "1,x", "-1", ""):
        with pytest.raises(SystemExit) as error:
            main(["run", "--batch", text])
        assert error.value.code == 2


def test_published_accuracy_of_untrained_weights_is_labelled(tiny: Artifact) -> None:
    def named(network: str, kind: str) -> Artifact:
        weights = {**tiny.manifest["weights"], "kind": kind}
        manifest = {**tiny.manifest, "network": f"my_{network}", "architecture": network, "weights": weights}
        return Artifact(tiny.folder, cast(Any, manifest), "1")

    assert measure.accuracy(named("resnet50", "pretrained"))[2] == "published"
    top1, _, source = measure.accuracy(named("resnet50", "untrained"))
    assert top1 and source == "published (weights here are untrained)"
    assert measure.accuracy(named("resnet50", "custom")) == (None, None, None)
    assert measure.accuracy(tiny) == (None, None, None)


def test_warm_up_ends_when_windows_agree_or_time_is_over() -> None:
    now = 0.0

    def network(cost: Iterator[float]) -> Callable[[], None]:
        def call() -> None:
            nonlocal now
            now += next(cost)

        return call

    falling = iter([5.0, *[1.0] * 99])
    assert child.warm_up(network(falling), 1000, lambda: now)
    # The first call, and three windows of five.
    assert len(list(falling)) == 100 - 16
    never = (2.0 ** (i // 5) for i in range(10_000))
    assert not child.warm_up(network(never), 100, lambda: now)


def test_the_interval_covers_the_starts_and_narrows_with_calls() -> None:
    generator = np.random.default_rng(0)
    few, many = (generator.normal(10, 1, n).tolist() for n in (20, 2000))
    low, high = intervals.median_interval([few])
    assert low < 10 < high and high - low > np.subtract(*intervals.median_interval([many])[::-1])
    assert intervals.median_interval([[1.0] * 10, [2.0] * 10]) == (1.0, 2.0)


def test_two_looks_at_one_network_differ_by_less_than_their_interval() -> None:
    outside = 0
    for seed in range(40):
        values = np.random.default_rng(seed).gamma(50, 0.2, (2, 3, 60))
        (low, high), middle = intervals.median_interval(values[0].tolist()), float(np.median(values[1]))
        width = high - low
        outside += not low - width / 2 <= middle <= high + width / 2
    assert outside <= 4


# Power


class Board:
    """A sensor that draws 20 W idle and 70 W while it works, on a clock that moves only by work and sleep."""

    source = "board"

    def __init__(self) -> None:
        self.now = self.energy = 0.0

    def joules(self) -> float:
        return self.energy

    def details(self) -> records.Conditions:
        return {"temperature_c": 50}

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.energy += 20 * seconds

    def call(self) -> None:
        self.now += 0.25
        self.energy += 70 * 0.25


def test_watts_and_joules_are_gross_and_net() -> None:
    board = Board()
    found = power.measure(
        board, lambda: board.call, 4, idle_s=10, window_s=1, trials=3, clock=lambda: board.now, sleep=board.sleep
    )
    assert (found["source"], found["reason"], found["trials"]) == ("board", None, 3)
    assert found["window_s"] == pytest.approx(power.SHORTEST_WINDOW_S)
    assert (found["idle_w"], found["mean_w"], found["net_w"]) == pytest.approx((20, 70, 50))
    # A call of four images takes a quarter of a second.
    assert found["joules_per_image"] == pytest.approx(70 / 16)
    assert found["net_joules_per_image"] == pytest.approx(50 / 16)
    assert found["std_w"] == pytest.approx(0, abs=1e-9) and found["temperature_c"] == 50
    assert records.PARTS["power"] <= found.keys()


def test_a_measured_power_pass_stands_in_the_record(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_SENSORS", {})
    monkeypatch.setattr(measure, "sensor_for", lambda engine: Board())
    filled: Json = records.no_power("") | {"source": "rapl", "reason": None, "mean_w": 30.0}
    answers(monkeypatch, lambda job: filled if job["pass"] == "power" else well(job))
    [item] = measure.measure_all(measure.cells([tiny], ["onnxruntime"], None, [1]), BRIEF, 1)
    assert item["power"]["mean_w"] == 30.0 and not list(records.problems(item))


# Load


def test_the_machine_is_named_by_what_it_is() -> None:
    named = environment.machine({"cpu": "Intel(R) Xeon(R) CPU E5-2690 v4 @ 2.60GHz", "cores": 8, "gpus": []})
    assert named == "intel-xeon-e5-2690-v4-8c"
    described = environment.describe()
    assert environment.differences(described, {**described, "date": "another", "command": "other"}) == []
    assert environment.differences(described, {**described, "cores": 4096})
    assert not any(str(Path.home()) in str(value) for value in described.values())


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "–"), (0.0, "0"), (1234.5, "1,234"), (12.345, "12.3"), (0.012345, "0.0123")],  # noqa: RUF001
)
def test_numbers_are_written_for_readers(value: float | None, text: str) -> None:
    assert records.significant(value) == text


# Scenarios


class Machine:
    """A clock that only `run` and `sleep` move: a batch of n takes `fixed` + n * `each` seconds."""

    def __init__(self, fixed: float = 0.004, each: float = 0.001) -> None:
        self.fixed, self.each, self.now, self.sizes = fixed, each, 0.0, list[int]()

    def run(self, batch: Any) -> None:
        self.sizes.append(len(batch))
        self.now += self.fixed + self.each * len(batch)

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def perform(self, name: str, slo_ms: float = 30.0, seconds: float = 2.0) -> scenarios.Timing:
        images = np.zeros((32, 2, 2, 3), np.uint8)
        return scenarios.perform(name, self.run, images, seconds, slo_ms, lambda: self.now, self.sleep)


def test_single_and_multi_stream_ask_one_after_another() -> None:
    one, eight = Machine().perform("single-stream"), Machine().perform("multi-stream")
    assert one.values == pytest.approx([5.0] * len(one.values)) and one.images == len(one.values)
    assert eight.values == pytest.approx([12.0] * len(eight.values)) and eight.images == 8 * len(eight.values)


def test_offline_takes_the_fastest_batch() -> None:
    assert Machine().perform("offline").mean_batch == 32
    assert Machine(fixed=0.0).perform("offline").rate is None

    class Cache(Machine):
        """Eight images fit."""

        def run(self, batch: Any) -> None:
            super().run(batch)
            self.now += 0.002 * max(0, len(batch) - 8)

    assert Cache().perform("offline").mean_batch == 8


def test_the_server_s_rate_is_the_highest_that_keeps_the_bound() -> None:
    machine = Machine()
    found = machine.perform("server", slo_ms=25.0, seconds=60.0)
    service = queueing.Service(tuple(machine.fixed + n * machine.each for n in range(1, 9)))
    expected = queueing.highest_rate(service, 0.025)
    assert found.rate is not None and found.rate == pytest.approx(expected, rel=0.06)
    assert np.mean(np.array(found.values) <= 25.0) >= 0.99 and max(machine.sizes) <= 32
    assert found.rungs[-1].passes and any(not rung.passes for rung in found.rungs)


def test_a_bound_below_one_call_is_kept_by_no_rate() -> None:
    found = Machine().perform("server", slo_ms=4.0)
    assert found.rate is None and not any(rung.passes for rung in found.rungs)


def test_arrivals_during_a_batch_form_the_next_and_count_from_their_due_time() -> None:
    machine = Machine()
    due = [0.010, 0.011, 0.012, 0.100]
    found = scenarios.poisson(machine.run, np.zeros((8, 1), np.uint8), due, 1.0, lambda: machine.now, machine.sleep)
    assert machine.sizes == [1, 2, 1]
    assert found.values == pytest.approx([5.0, 10.0, 9.0, 5.0]) and found.mean_batch == pytest.approx(4 / 3)


def test_what_passed_by_luck_is_lowered_until_it_passes_again() -> None:
    tried = []

    def trial(rate: float, seed: int) -> rates.Rung:
        tried.append((rate, seed))
        return rates.Rung(rate, 1.0 if rate <= (50 if seed == 0 else 45) else 0.5, 1.0)

    rate, rungs = rates.highest(trial, 100.0)
    assert rate is not None and 42 < rate <= 45 and len(rungs) == len(tried)
    assert [seed for _, seed in tried][:6] == [0] * 6 and tried[-1][0] == rate
    assert rates.highest(lambda rate, seed: rates.Rung(rate, float(seed == 0), 1.0), 100.0)[0] is None


def test_a_run_of_scenarios_writes_records_and_the_report_takes_them(
    tiny: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "out.json"
    arguments = ["run", "--quick", "--models", tiny.tag, "--out", str(path), "--slo-ms", "1000"]
    assert main([*arguments, "--scenario", ",".join(scenarios.NAMES)]) == 0
    found = read(path)["records"]
    assert [item["scenario"] for item in found] == [
        "MLPerf-style single-stream", "MLPerf-style multi-stream", "MLPerf-style server, p99 within 1000 ms",
        "MLPerf-style offline",
    ]  # fmt: skip
    assert {item["status"] for item in found} == {"ok"} and {item["batch"] for item in found} == {None}
    assert found[2]["rate"] > 0 and found[2]["within_slo"] >= 0.99 and found[1]["mean_batch"] == 8
    assert all(item["power"]["net_w"] is None and item["power"]["reason"] for item in found)
    out = capsys.readouterr().out
    assert "p90" in out and "img/s" in out
    assert main([*arguments, "--scenario", ",".join(scenarios.NAMES)]) == 0
    assert "4 of 4 are in" in capsys.readouterr().err
    assert main(["report", str(path), "--out", str(tmp_path / "report")]) == 0
    assert "MLPerf-style server" in (tmp_path / "report" / "report.md").read_text("utf-8")
    assert main([*arguments, "--scenario", "rush-hour"]) == 2


# Engines side by side


def test_engines_take_turns_and_their_figure_is_the_median(
    tiny: Artifact, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    @contextmanager
    def process(work: dict[str, Any]) -> Iterator[Callable[[str, int, float], float]]:
        def ask(name: str, batch: int, seconds: float) -> float:
            if name == "time":
                asked.append(work["engine"])
            return float(len(asked))

        yield ask

    monkeypatch.setattr(engines, "process", process)
    monkeypatch.setattr(shutil, "which", lambda _: "/usr/bin/g++")
    path = tmp_path / "engines.json"
    arguments = ["engines", tiny.tag, "--batch", "1", "--rounds", "3", "--out", str(path), "--compile"]
    assert main(arguments) == 0
    order = ["torch", "torch.compile", "onnxruntime", "openvino"]
    assert asked == order * 3
    rows = json.loads(path.read_text("utf-8"))["rows"]
    assert [(row["engine"], row["latency_ms"]) for row in rows] == list(zip(order, (5.0, 6.0, 7.0, 8.0), strict=True))
    monkeypatch.setattr(shutil, "which", lambda _: None)
    asked.clear()
    assert main(arguments) == 0
    assert "torch.compile" not in asked and "not run: torch.compile needs a C++ compiler" in capsys.readouterr().out


# torch.compile imports a module of torch's own that warns of another.
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "engine",
    [torch_engine.TORCH, pytest.param(torch_engine.COMPILED, marks=[pytest.mark.slow])],
    ids=("eager", "compiled"),
)
def test_pytorch_gives_probabilities_from_the_same_pixels(engine: str) -> None:
    if engine == torch_engine.COMPILED and (reason := torch_engine.no_compiler()):
        pytest.skip(reason)
    work: engines.Work = {
        "folder": "nowhere", "version": "1", "precision": "fp32", "network": "lenet5", "classes": 10,
        "weights": "untrained", "threads": 1, "engine": engine,
    }  # fmt: skip
    scores: Any = engines.torch_run(work)(np.random.default_rng(0).integers(0, 256, (2, 32, 32, 1), dtype=np.uint8))
    assert np.shape(scores) == (2, 10) and np.sum(scores, axis=1) == pytest.approx([1, 1], rel=1e-5)
