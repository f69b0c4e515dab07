"""Tuning within its budget, on a simulated clock; and the engine that is chosen if nothing was measured."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from export import tune
from models.console import Failure
from models.preprocess import Pixels
from serving import runtime
from serving.artifact import Artifact, FileRecord
from serving.runtime import ENGINES, GPU_ENGINES, PLAN_ENGINES, choose
from tests.conftest import tiny_onnx

SIDES = tuple(itertools.product(("onnxruntime", "openvino"), ("fp32", "int8")))
GRAPHS = {side: Path("none") for side in SIDES}


class Machine:
    """A clock that only the engines move: `ms` for one image with each (engine, precision, threads)."""

    def __init__(self, ms: dict[tuple[str, str, int], float], opening_s: float = 0.1) -> None:
        self.ms, self.opening_s, self.now, self.opened = ms, opening_s, 0.0, list[tuple[str, str, int]]()

    def clock(self) -> float:
        return self.now

    def engine(self, name: str) -> Any:
        machine = self

        class Engine:
            def __init__(self, graph: Path, precision: str, threads: int) -> None:
                self.key = (name, precision, threads)
                machine.opened.append(self.key)
                machine.now += machine.opening_s

            def run(self, batch: Pixels) -> None:
                machine.now += machine.ms[self.key] * len(batch) / 1000

            def close(self) -> None:
                pass

        return Engine


def tuned(monkeypatch: pytest.MonkeyPatch, machine: Machine, max_batch: int = 64, cores: int = 4) -> Any:
    for name in ("onnxruntime", "openvino"):
        monkeypatch.setitem(ENGINES, name, machine.engine(name))
    monkeypatch.setattr(tune, "cores", lambda: cores)
    return tune.tune("net", GRAPHS, (4, 4, 3), max_batch, machine.clock)


def times(milliseconds: float, best: tuple[str, str, int], gain: float = 2.0) -> dict[tuple[str, str, int], float]:
    keys = [(*side, threads) for side in SIDES for threads in (1, 4)]
    return {key: milliseconds / (gain if key == best else 1) for key in keys}


@pytest.mark.parametrize("best", [(*side, threads) for side in SIDES for threads in (1, 4)])
def test_every_candidate_of_a_small_network_is_measured_and_the_fastest_chosen(
    best: tuple[str, str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(times(0.5, best))
    tuning = tuned(monkeypatch, machine)
    assert tuple(tuning["choice"].values()) == best
    assert {(r["engine"], r["precision"], r["threads"]) for r in tuning["rows"]} == set(machine.ms)
    assert not tuning["left_out"]
    assert len(machine.opened) == len(machine.ms), "once the others cannot win, no more needs to be measured"


def test_close_ones_are_measured_in_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    machine = Machine(times(0.5, ("openvino", "int8", 4), 1.2), opening_s=0.001)
    tuning = tuned(monkeypatch, machine)
    assert {len(row["values"]) for row in tuning["rows"]} == {tune.ROUNDS}
    assert machine.opened[: len(machine.ms)] == machine.opened[len(machine.ms) : 2 * len(machine.ms)]


@pytest.mark.parametrize("milliseconds", [10, 100, 1000, 10_000])
def test_the_likeliest_candidates_of_a_large_network_are_measured_within_the_budget(
    milliseconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Machine(times(milliseconds, ("onnxruntime", "fp32", 1), 1.1), opening_s=1.0)
    tuning = tuned(monkeypatch, machine)
    one = 1.0 + 2 * (milliseconds * 9 / 1000 + tune.ROUND_S)  # opened, warmed and timed at batches of 1 and 8
    assert machine.now <= tune.BUDGET_S + one
    assert tuning["seconds"] == round(machine.now, 1)
    assert machine.opened[0] == ("openvino", "int8", 4)
    measured = {(r["engine"], r["precision"], r["threads"]) for r in tuning["rows"]}
    left = {tuple(c.values()) for c in tuning["left_out"]}
    assert measured == set(machine.opened) and measured | left == set(machine.ms) and left
    assert tuple(tuning["choice"].values()) in measured
    assert all(len([r for r in tuning["rows"] if r["threads"] == t]) % 2 == 0 for t in (1, 4)), "a row for each batch"


def test_a_single_candidate_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tune, "cores", lambda: 1)
    assert tune.tune("net", {}, (4, 4, 3), 8) is None
    assert tune.tune("net", {SIDES[0]: Path("none")}, (4, 4, 3), 8) is None


def test_an_export_tunes_unless_it_is_told_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from export.__main__ import main
    from serving.artifact import find

    monkeypatch.setattr(tune, "ROUNDS", 1)
    monkeypatch.setattr(runtime, "cores", lambda: 2)  # so that there is something to choose on every machine
    monkeypatch.setattr(tune, "cores", lambda: runtime.cores())
    graph = str(tiny_onnx(tmp_path / "tiny.onnx"))
    argv = ["--onnx", graph, "--num-classes", "10", "--name", "tuned", "--engine", "onnxruntime"]
    assert main(argv) == 0
    out = capsys.readouterr().out
    tuning = find("tuned").manifest["tuning"]
    assert tune.said(tuning) in out and f"(measured in {tuning['seconds']} s)" in out
    assert choose(find("tuned")) == tuple(tuning["choice"].values())
    assert main(argv) == 0
    assert "unchanged, kept" in capsys.readouterr().out
    # A measurement under another quota does not hold under this one, so tuning measures again.
    versions = [find("tuned").version]
    for count, option in ((3, "--tune"), (3, "--no-tune"), (2, "--no-tune")):
        monkeypatch.setattr(runtime, "cores", lambda count=count: count)
        assert main([*argv, option]) == 0
        versions.append(find("tuned").version)
    assert len(set(versions[:3])) == 3
    assert versions[3] == versions[2] and "tuning" not in find("tuned").manifest, "untuned, it holds for every quota"


# --- the choice if nothing was measured -------------------------------------------------------------------------------


def artifact(*sides: tuple[str, str], **plan: Any) -> Artifact:
    files: dict[str, FileRecord] = {
        f"{engine}-{precision}": {"engines": [engine], "precision": precision, "plan": {"engine": engine, **plan}}
        for engine, precision in sides
    }
    return Artifact(Path("none"), {"network": "net", "files": files}, "v")


ALL = (
    ("tensorrt", "int8"), ("tensorrt-rtx", "fp16"), ("tensorrt", "fp16"), ("onnxruntime-cuda", "fp16"),
    ("tensorrt", "fp32"), ("onnxruntime-cuda", "fp32"), ("openvino", "int8"), ("onnxruntime", "int8"),
    ("openvino", "fp32"), ("onnxruntime", "fp32"),
)  # fmt: skip


def expected(sides: tuple[tuple[str, str], ...]) -> tuple[str, str]:
    """The choice by the rule: a GPU first, then the lower precision, then the engine."""
    order = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "openvino", "onnxruntime")
    for on_gpu in (True, False):
        for precision in ("int8", "fp16", "fp32"):
            for engine in order:
                if (engine in GPU_ENGINES) == on_gpu and (engine, precision) in sides:
                    return engine, precision
    raise AssertionError


def test_the_choice_does_not_depend_on_the_order_of_the_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_loads_here", lambda *_: True)
    random = np.random.default_rng(0)
    for count in range(1, len(ALL) + 1):
        for sides in itertools.combinations(ALL, count):
            shuffled = tuple(tuple(side) for side in random.permutation(np.array(sides)).tolist())
            usable = {engine for engine, _ in random.permutation(np.array(ALL)).tolist()[:6]}
            monkeypatch.setattr(runtime, "available", lambda usable=usable: tuple(usable))
            fitting = tuple(side for side in sides if side[0] in usable)
            if fitting:
                assert choose(artifact(*shuffled))[:2] == expected(fitting)


def test_a_gpu_is_preferred_to_what_was_measured_on_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    one = artifact(("openvino", "int8"), ("onnxruntime-cuda", "fp32"))
    row = {"engine": "openvino", "precision": "int8", "threads": 3, "batch": 1, "latency_ms": 1.0}
    one.manifest["tuning"] = {"cpu": runtime.cpu_model(), "cores": runtime.cores(), "rows": [row]}
    for usable, choice in ((("openvino",), ("openvino", "int8", 3)), (("openvino", "onnxruntime-cuda"), None)):
        monkeypatch.setattr(runtime, "available", lambda usable=usable: usable)
        assert choose(one) == (choice or ("onnxruntime-cuda", "fp32", runtime.cores()))


@pytest.mark.parametrize("engine", PLAN_ENGINES)
def test_a_plan_for_another_gpu_is_never_chosen_automatically(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from types import SimpleNamespace

    from serving.trt import Gpu

    here = Gpu("This One", "8.9", 13)
    monkeypatch.setattr(runtime, "available", lambda: ("openvino", engine))
    monkeypatch.setattr(runtime, "load_module", lambda _: SimpleNamespace(__version__="11.0"))
    fits = {"engine_version": "11.0", "gpu": "This One", "compute_capability": "8.9", "cuda_driver": 13}
    sides = (("openvino", "fp32"), (engine, "fp16"))
    monkeypatch.setattr(runtime, "gpu", lambda: here)
    assert choose(artifact(*sides, **fits)).engine == engine
    for wrong in ({"gpu": "Another"}, {"engine_version": "10.0"}, {"cuda_driver": 12}):
        assert choose(artifact(*sides, **{**fits, **wrong})).engine == "openvino"
        assert choose(artifact(*sides, **{**fits, **wrong}), engine).engine == engine, "asked for, it says why not"

    def no_driver() -> None:
        raise Failure("the driver does not fit")

    monkeypatch.setattr(runtime, "gpu", no_driver)
    assert choose(artifact(*sides, **fits)).engine == "openvino"
