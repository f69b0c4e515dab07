"""Advice: what the records say to deploy, how many replicas it takes, and what has become slower."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks import intervals, records
from benchmarks.__main__ import main
from benchmarks.advise import advice, capacity, queueing, regression
from tests.test_report import Json, document


def saved(path: Path, one: Json) -> str:
    path.write_text(json.dumps(one), "utf-8")
    return str(path)


# Recommend


def chosen(one: Json, **bounds: float) -> advice.Advice:
    return advice.recommend([("one", one)], advice.Bounds(**bounds))


def test_without_a_least_accuracy_the_most_accurate_that_fits_wins_and_then_the_fastest() -> None:
    one = document(engines=(("onnxruntime", "fp32"), ("openvino", "int8")))
    best = chosen(one).choice
    assert best is not None
    mine = best.record
    assert mine["top1"] == max(item["top1"] for item in one["records"])
    same = [i["throughput_img_s"] for i in one["records"] if i["network"] == mine["network"]]
    assert mine["throughput_img_s"] == max(same)


def test_with_a_least_accuracy_the_fastest_that_has_it_wins() -> None:
    one = document()
    best = chosen(one, min_top1=75.0, p99_ms=300.0).choice
    assert best is not None
    fitting = [i for i in one["records"] if i["top1"] >= 75 and i["latency_ms"]["p99"] <= 300]
    assert best.record is max(fitting, key=lambda i: float(i["throughput_img_s"]))
    assert len(chosen(one, min_top1=75.0, p99_ms=300.0).fitting) == len(fitting)


@pytest.mark.parametrize(
    ("bounds", "reason"),
    [
        ({"p99_ms": 1e-3}, "p99 "),
        ({"min_top1": 99.0}, "top-1 "),
        ({"max_watts": 10.0}, "power was not measured: there is no sensor"),
        ({"max_memory_mb": 1.0}, " MB"),
    ],
)
def test_when_nothing_fits_the_closest_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], bounds: dict[str, float], reason: str
) -> None:
    one = document(networks=("alexnet", "resnet50"), batches=(1, 4))
    [(name, value)] = bounds.items()
    option = "--" + name.replace("_", "-")
    assert main(["recommend", saved(tmp_path / "one.json", one), option, str(value)]) == 1
    out, err = capsys.readouterr()
    assert "Nothing fits" in out and reason in out
    found = chosen(one, **bounds)
    assert found.choice is None and found.others[0].name in err and reason in err
    if name == "min_top1":
        assert found.others[0].record["network"] == "resnet50"
    if name == "p99_ms":
        closest: Json = found.others[0].record
        assert closest["latency_ms"]["p99"] == min(i["latency_ms"]["p99"] for i in one["records"])


def test_watts_are_held_to_the_bound_where_they_were_measured() -> None:
    one = document(networks=("alexnet", "resnet50"), watts=50.0)
    assert chosen(one, max_watts=100.0).choice is not None
    tight = chosen(one, max_watts=50.0)
    assert tight.choice is None and tight.others[0].distance[0] == pytest.approx(0.2, abs=0.1)


def test_what_failed_and_what_is_unknown_never_fits() -> None:
    one = document(networks=("alexnet", "resnet50"), batches=(1,))
    one["records"][0] |= {"status": "failed: memory ended", "latency_ms": None, "throughput_img_s": None}
    one["records"][1]["top1"] = None
    assert [c.record["network"] for c in chosen(one).fitting] == ["resnet50"]
    found = chosen(one, min_top1=1.0)
    assert found.choice is None
    reasons = {miss.reason for candidate in found.others for miss in candidate.misses}
    assert reasons == {"failed: memory ended", "top-1 is not known"}


def test_the_command_tells_the_choice_the_runners_up_and_why_the_others_fall_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = document(networks=("alexnet", "resnet50", "resnet152"), batches=(1, 4), untrained=("resnet50",))
    assert main(["recommend", saved(tmp_path / "one.json", one), "--p99-ms", "100"]) == 0
    out = capsys.readouterr().out
    [first] = [c.record for c in chosen(one, p99_ms=100).fitting[:1]]
    assert f"Deploy resnet50 onnxruntime fp32 batch {first['batch']}" in out
    assert "Runners-up" in out and "less accurate" in out and "76.13†" in out
    assert "published (weights here are untrained)" in out and "Power was not measured: there is no sensor" in out
    slow = next(i for i in one["records"] if i["network"] == "resnet152" and i["batch"] == 4)
    assert f"p99 {records.significant(slow['latency_ms']['p99'])} ms" in out.split("fall out")[1]


def test_several_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [saved(tmp_path / f"{n}.json", document(networks=("alexnet",), batches=(1,))) for n in ("here", "there")]
    assert main(["recommend", *files]) == 0
    assert ", here:" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--p99-ms", "--min-top1", "--max-watts", "--max-memory-mb"])
def test_bounds_are_positive_numbers(option: str) -> None:
    with pytest.raises(SystemExit) as error:
        main(["recommend", "x.json", option, "-1"])
    assert error.value.code == 2


# Plan


def simulated(service: queueing.Service, rate: float, count: int = 100_000) -> tuple[np.ndarray, float]:
    """Seconds from arrival to answer of `count` requests, one after another as they would happen; the busy share."""
    generator = np.random.default_rng(0)
    due = np.cumsum(generator.exponential(1 / rate, count))
    factors = generator.choice(service.factors, size=count, p=service.weights)
    taken, first, batches, free, busy = [], 0, 0, 0.0, 0.0
    while first < count:
        start = max(free, due[first])
        n = min(service.max_batch, int(np.searchsorted(due, start, side="right")) - first)
        time = service.times[n - 1] * factors[batches]
        free, busy, batches = start + time, busy + time, batches + 1
        taken.append(free - due[first : first + n])
        first += n
    return np.concatenate(taken), busy / free


STEADY = queueing.Service(tuple(0.01 + 0.004 * n for n in range(1, 9)))
UNSTEADY = queueing.Service(STEADY.times, (0.95, 1.0, 1.1, 1.8), (0.5, 0.4, 0.09, 0.01))
ALONE = queueing.Service((0.02,), (0.98, 1.06), (0.75, 0.25))


@pytest.mark.parametrize("service", [STEADY, UNSTEADY, ALONE])
@pytest.mark.parametrize(("load", "tolerance"), [(0.2, 0.02), (0.5, 0.02), (0.8, 0.05), (0.92, 0.12)])
def test_the_queueing_model_is_what_a_simulation_gives(
    service: queueing.Service, load: float, tolerance: float
) -> None:
    rate = load * service.max_batch / service.times[-1]
    state = queueing.solve(service, rate)
    assert state is not None
    # Every request of a cycle is accounted for.
    assert state.requests == pytest.approx(state.mean_batch, rel=0.02)
    seconds, busy = simulated(service, rate)
    assert state.busy == pytest.approx(busy, abs=0.02)
    for percent in (50, 90, 99):
        value = state.percentile(percent)
        assert state.within(percent, value * 1.001) and not state.within(percent, value * 0.999)
        assert state.percentile(percent) == pytest.approx(np.percentile(seconds, percent), rel=tolerance)


def test_a_queue_beyond_its_limit_has_no_steady_state() -> None:
    assert queueing.solve(STEADY, 1.01 * STEADY.limit) is None
    assert not queueing.within(STEADY, 2 * STEADY.limit, 1e9)


def test_the_highest_rate_keeps_the_bound_and_a_higher_one_does_not() -> None:
    rate = queueing.highest_rate(UNSTEADY, 0.1)
    assert rate is not None and 0.3 * UNSTEADY.limit < rate < UNSTEADY.limit
    assert float(np.percentile(simulated(UNSTEADY, rate)[0], 99)) <= 0.1 * 1.05
    assert not queueing.within(UNSTEADY, 1.02 * rate, 0.1)
    assert queueing.highest_rate(UNSTEADY, 0.01) is None


def test_a_plan_names_replicas_that_keep_the_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one = document(networks=("alexnet", "resnet50"), batches=(1, 2, 4), untrained=("resnet50",))
    options, refused = capacity.plan([("one", one)], 100, 200)
    assert [o.record["network"] for o in options] == ["alexnet", "resnet50"] and not refused
    for found in options:
        group = {i["batch"]: i for i in one["records"] if i["network"] == found.record["network"]}
        service = capacity.service_of(group, found.max_batch)
        assert (found.replicas - 1) * found.rate_each < 100 <= found.replicas * found.rate_each
        seconds, _ = simulated(service, 100 / found.replicas)
        assert found.p99_ms <= 200 and found.p99_ms == pytest.approx(1e3 * np.percentile(seconds, 99), rel=0.05)
    path = saved(tmp_path / "one.json", one)
    assert main(["plan", path, "--rate", "100", "--slo-ms", "200", "--min-top1", "60"]) == 0
    out = capsys.readouterr().out
    assert f"Run {options[1].replicas} replicas of resnet50" in out and "alexnet onnxruntime fp32: top-1 56.52" in out
    assert "published (weights here are untrained)" in out and "decoding and HTTP are not in it" in out
    assert main(["plan", path, "--rate", "100", "--slo-ms", "0.001"]) == 1
    assert "Cannot keep it" in capsys.readouterr().out


def under_load(item: Json, concurrency: int, p50: float, rate: float, mean_batch: float) -> Json:
    return item | {
        "kind": "load", "scenario": f"closed loop, {concurrency} in flight", "concurrency": concurrency, "batch": None,
        "latency_ms": intervals.latency([[p50] * 50]), "throughput_img_s": rate, "mean_batch": mean_batch,
        "split_ms": {"decode": {"mean": 1.0, "p99": 1.0}}, "sent": 50, "errors": {}, "slo_ms": None, "within_slo": None,
        "rate": None, "client_lag_p99_ms": 0.1,
    }  # fmt: skip


def test_the_service_s_own_times_take_the_place_of_the_engine_s() -> None:
    one = document(networks=("resnet50",), batches=(1, 4))
    engine = {i["batch"]: float(np.median(i["latency_ms"]["values"])) / 1e3 for i in one["records"]}
    alone, full = engine[1] + 0.007, engine[4] + 0.020  # seconds for a batch of 1 and of 4, decoding and HTTP included
    loads = [
        under_load(one["records"][0], 1, 1e3 * alone, 1 / alone, 1.0),
        under_load(one["records"][0], 16, 300.0, 4 / full, 4.0),
    ]
    group = {i["batch"]: i for i in one["records"]}
    service = capacity.service_of(group, 4, loads)
    mean = float(np.dot(service.factors, service.weights))
    assert [time * mean for time in (service.times[0], service.times[3])] == pytest.approx([alone, full])
    assert capacity.service_of(group, 4, loads[:1]) == capacity.service_of(group, 4)
    [option], _ = capacity.plan([("one", one), ("load", one | {"records": loads})], 5, 2000)
    assert option.served and option.rate_each < 4 / full and option.measured_each is None


def test_a_measured_highest_rate_counts_where_it_is_lower_than_the_model_s(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = document(networks=("resnet50",), batches=(1, 4))
    found = under_load(one["records"][0], 1, 300.0, 5.0, 1.0) | {"concurrency": None, "rate": 5.0, "slo_ms": 2000.0}
    found |= {"kind": "search", "scenario": "MLPerf-style server, p99 within 2000 ms", "rungs": [[5.0, 1.0, 300.0]]}
    documents = [("one", one), ("search", one | {"records": [found]})]
    [option], _ = capacity.plan(documents, 20, 2000)
    assert option.rate_each == 5.0 < option.model_each and option.replicas == 4
    [other], _ = capacity.plan(documents, 20, 1000)  # the search was for another bound
    assert other.rate_each == other.model_each and other.measured_each is None
    files = [saved(tmp_path / f"{name}.json", made) for name, made in documents]
    assert main(["plan", *files, "--rate", "20", "--slo-ms", "2000"]) == 0
    assert "measured" in capsys.readouterr().out


def test_a_search_that_found_no_rate_is_no_promise_of_one() -> None:
    one = document(networks=("resnet50",), batches=(1, 4))
    failed = under_load(one["records"][0], 1, 300.0, 5.0, 1.0) | {"kind": "search", "rate": None, "slo_ms": 2000.0}
    failed |= {"status": "failed: no rate keeps the 99th percentile within 2000 ms", "rungs": [[5.0, 0.5, 3000.0]]}
    documents = [("one", one), ("search", one | {"records": [failed]})]
    options, refused = capacity.plan(documents, 20, 2000)
    assert not options and "the search over HTTP found no rate that keeps 2000 ms" in refused[0]
    assert capacity.plan(documents, 20, 1000)[0]  # the search was for another bound


# Compare


def remeasured(one: Json, factor: float = 1.0, seed: int = 1, starts: int = 3) -> Json:
    """`one` measured again on a machine that became `factor` times as slow; starts differ by about 1 %."""
    generator, made = np.random.default_rng(seed), json.loads(json.dumps(one))
    for item in made["records"]:
        middle = factor * 1e3 * item["macs"] * item["batch"] / 60e9
        item["latency_ms"] = intervals.latency(
            [
                (generator.normal(middle * drift, middle / 50, 30)).tolist()
                for drift in generator.normal(1, 0.01, starts)
            ]
        )
    return made


@pytest.mark.parametrize(
    ("factor", "verdict", "status"),
    [(1.0, regression.SAME, 0), (1.3, regression.SLOWER, 1), (0.7, regression.FASTER, 0)],
)
def test_two_files_are_told_apart_where_they_differ(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float, verdict: str, status: int
) -> None:
    one = document(networks=("alexnet", "resnet50"), batches=(1, 4))
    old, new = remeasured(one, seed=1), remeasured(one, factor, seed=2)
    files = [saved(tmp_path / "old.json", old), saved(tmp_path / "new.json", new)]
    assert main(["compare", *files, "--floor", "10"]) == status
    out, err = capsys.readouterr()
    changes = regression.compare(old, new, 10)
    assert {change.verdict for change in changes} == {verdict}
    for change in changes:
        assert change.interval is not None and change.ratio is not None
        assert change.interval[0] <= factor <= change.interval[1] and change.interval[0] <= change.ratio
    assert f"4 compared: 4 {verdict}" in out and ("beyond the floor" in err) == bool(status)


def test_the_same_machine_is_seldom_called_slower() -> None:
    one = document(networks=("alexnet", "resnet50", "googlenet"), batches=(1, 4))
    changes = [
        change
        for seed in range(4)
        for change in regression.compare(remeasured(one, seed=2 * seed), remeasured(one, seed=2 * seed + 1))
    ]
    wrong = sum(change.verdict in (regression.SLOWER, regression.FASTER) for change in changes)
    assert len(changes) == 24 and wrong <= 3 and not any(change.fails for change in changes)


def test_an_interval_that_hides_a_slowdown_is_not_called_the_same() -> None:
    assert regression.verdict(0.97, 1.2, 0.05) == regression.UNKNOWN
    assert regression.verdict(1.01, 1.04, 0.05) == regression.SLOWER  # and within the floor: no failure
    one = document(networks=("alexnet",), batches=(1,))
    [change] = regression.compare(remeasured(one, seed=1), remeasured(one, 1.5, seed=2), floor=100)
    assert change.verdict == regression.SLOWER and not change.fails


def test_what_now_fails_fails_and_what_is_gone_is_named(tmp_path: Path) -> None:
    one = document(networks=("alexnet", "resnet50"), batches=(1,))
    broken = json.loads(json.dumps(one))
    broken["records"][1] |= {"status": "failed: memory ended", "latency_ms": None}
    files = [saved(tmp_path / "old.json", one), saved(tmp_path / "new.json", broken)]
    assert main(["compare", *files]) == 1
    assert main(["compare", *files[::-1]]) == 0
    gone = one | {"records": one["records"][:1]}
    assert [c.verdict for c in regression.compare(one, gone)][1] == "not measured in the new file"
    assert [c.verdict for c in regression.compare(gone, one)][1] == "new"


def test_a_search_has_no_interval_and_offline_counts_images() -> None:
    one = document(networks=("alexnet", "resnet50"), batches=(1,))
    old, new = json.loads(json.dumps(one)), json.loads(json.dumps(one))
    for made, rate, batch in ((old, 10.0, 4.0), (new, 5.0, 8.0)):
        made["records"][0] |= {
            "kind": "scenario",
            "name": "server",
            "scenario": "MLPerf-style server, p99 within 9 ms",
            "rungs": [[rate, 1.0, 1.0]],
            "rate": rate,
        }
        made["records"][1] |= {"kind": "scenario", "name": "offline", "scenario": "MLPerf-style offline"}
        made["records"][1]["mean_batch"] = batch
    server, offline = regression.compare(old, new)
    assert server.verdict == "10.0 to 5.00 img/s, by search: no interval" and not server.fails
    assert offline.ratio == pytest.approx(0.5)


def test_files_of_two_machines_are_not_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, other = (document(networks=("alexnet",), batches=(1,), cpu=f"CPU {i}") for i in range(2))
    assert main(["compare", saved(tmp_path / "a.json", one), saved(tmp_path / "b.json", other)]) == 2
    assert "two machines (cpu 'CPU 0' and 'CPU 1')" in capsys.readouterr().err
    one["environment"]["packages"], changed = {"onnxruntime": "1"}, json.loads(json.dumps(one))
    changed["environment"]["packages"] = {"onnxruntime": "2"}
    assert main(["compare", saved(tmp_path / "a.json", one), saved(tmp_path / "b.json", changed)]) == 0
    assert "onnxruntime 1 to 2" in capsys.readouterr().out
