"""The simulation of replicas behind a balancer, and the tables of docs/scale.md and docs/deploy.md."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import intervals, records, tables
from benchmarks.__main__ import main
from benchmarks.advise import capacity, queueing, scale, simulation
from models.console import Failure
from tests.conftest import ROOT
from tests.test_advice import STEADY, UNSTEADY
from tests.test_report import Json, document

RESULTS = ROOT / "benchmarks" / "results"
PAGES = (ROOT / "docs" / "scale.md", ROOT / "docs" / "deploy.md")


def times(service: queueing.Service, load: float, replicas: int, policy: str, count: int = 40_000) -> np.ndarray:
    rate = load * replicas * service.max_batch / service.times[-1]
    due, engine = simulation.arrivals(rate, count), simulation.of_service(service)
    return simulation.simulate(due, np.zeros(count), engine, service.max_batch, replicas, policy)


@pytest.mark.parametrize(("service", "replicas"), [(STEADY, 1), (UNSTEADY, 1), (STEADY, 3)])
def test_dealt_at_random_replicas_are_the_queues_of_the_queueing_model(
    service: queueing.Service, replicas: int
) -> None:
    state = queueing.solve(service, 0.6 * service.max_batch / service.times[-1])
    assert state is not None
    played = times(service, 0.6, replicas, "random")
    for percent in (50, 90, 99):
        assert np.percentile(played, percent) == pytest.approx(state.percentile(percent), rel=0.05)


def test_what_a_balancer_knows_shortens_the_wait() -> None:
    p99 = {policy: float(np.percentile(times(STEADY, 0.7, 8, policy), 99)) for policy in simulation.POLICIES}
    assert p99["fewest"] <= p99["two choices"] < p99["random"]
    assert p99["in turn"] < p99["random"]


def test_every_request_is_answered_once_in_its_own_time() -> None:
    """By hand: two replicas, calls of 10 s, and a way there of 1 s."""
    due = np.array([0.0, 0.0, 0.0, 2.0])
    taken = simulation.simulate(due, np.ones(4), lambda size: 10.0, 2, 2, "fewest")
    # Two start at 1; the third waits behind one of them until 11; the fourth, with the other, as long.
    assert taken.tolist() == [11.0, 11.0, 21.0, 19.0]
    alone = simulation.simulate(due, np.ones(4), lambda size: 10.0 * size, 2, 1, "fewest")
    # One starts at 1 alone; two of those waiting follow at 11 for 20 s, the last at 31.
    assert sorted(alone.tolist()) == [11.0, 31.0, 31.0, 39.0]


def test_measured_calls_are_drawn_as_they_were_and_stretched_where_none_was() -> None:
    draw = simulation.of_measured({"1": [10.0, 12.0], "4": [41.0]})
    assert {round(draw(1), 6) for _ in range(50)} == {0.010, 0.012} and draw(4) == 0.041
    assert draw(3) == pytest.approx(0.031) and draw(2) in (
        pytest.approx(0.010 * 21 / 11),
        pytest.approx(0.012 * 21 / 11),
    )
    assert simulation.of_measured({"2": [8.0]})(4) == pytest.approx(0.016)


@pytest.mark.parametrize("path", sorted((RESULTS / "replicas").glob("*.json")), ids=lambda path: path.stem)
def test_the_simulation_is_near_what_two_replicas_did(path: Path) -> None:
    """Its p99 lies lower: on one machine calls are slow together, and it draws each by itself (docs/scale.md)."""
    file: Json = records.read(path)
    item = next(i for i in file["records"] if i["phase"] == "steady")
    played = simulation.repeat(item)
    for name, tolerance in (("p50", 0.1), ("p90", 0.25), ("p99", 0.5)):
        assert played[name] == pytest.approx(item["latency_ms"][name], rel=tolerance)
    # And no worse than chance would have it: what it is fed alone, without a wait, is quicker.
    assert played["p99"] > np.percentile(item["around_ms"], 99)


# Scale


def pair(one: Json, decode: float = 3.0, total: float = 0.016) -> Json:
    """The steady phase of a two-replica run of `one`'s first network."""
    base = one["records"][0]
    return base | {
        "kind": "replicas", "scenario": "two replicas, 20 per second: nothing happens", "phase": "steady",
        "batch": None, "rate": 20.0,
        "engine_ms": {"1": [10.0] * 30, "2": [16.0] * 10}, "around_ms": [8.0] * 40, "by_replica": [20, 20],
        "split_ms": {"decode": {"mean": decode, "p50": decode, "p99": decode}},
        "cpu_seconds_per_image": total, "body_bytes": 1e5,
        "memory_mb": base["memory_mb"] | {"peak_rss": base["memory_mb"]["peak_rss"] + 50.0},
        "latency_ms": intervals.latency([[18.0, 19.0, 24.0] * 10]), "slowest_ms": 24.0,
        "sent": 40, "refused": 0, "lost": 0, "retried": 0, "errors": {},
    }  # fmt: skip


def given(**options: Any) -> list[tuple[str, Json]]:
    one = document(networks=("alexnet", "resnet50"), batches=(1, 4), **options)
    return [("one", one), ("pair", one | {"records": [pair(one)]})]


def test_what_stands_beside_the_engine_is_measured_not_assumed() -> None:
    around = scale.overhead(given())
    # Of thirty calls of 10 ms for one and ten of 16 ms for two, of which each counts half, the median is 10 ms.
    assert around.decode == pytest.approx(0.003) and around.http == pytest.approx(0.016 - 0.010 - 0.003)
    assert around.memory_mb == pytest.approx(50.0)


def test_stages_that_took_longer_than_was_worked_tell_nothing_of_the_rest() -> None:
    documents = given()
    documents[1][1]["records"][0]["cpu_seconds_per_image"] = 0.012
    with pytest.raises(Failure, match="run it again"):
        scale.overhead(documents)


def test_a_replica_does_less_than_its_engine_and_more_where_the_client_decodes() -> None:
    documents = given()
    rows, _ = scale.table_rows(documents, 2000)
    assert [row.record["network"] for row in rows] == ["resnet50", "alexnet"]  # the more accurate first
    for row in rows:
        group = capacity.series(documents[0][1]["records"])[capacity.key(row.record)]
        service = capacity.service_of(group, row.max_batch)
        engine = queueing.highest_rate(service, 2.0)
        assert engine is not None and row.each < row.pixels_each < engine
        # In the long run neither the engine nor the processors have more than one second a second.
        longest = service.times[-1] / row.max_batch + scale.overhead(documents).seconds / row.cores
        assert row.each <= 1 / longest
        assert (row.count(1000) - 1) * row.each < 1000 <= row.count(1000) * row.each


def test_the_bottleneck_is_what_takes_most_of_a_replicas_time() -> None:
    one = document(networks=("alexnet", "resnet50"), batches=(1, 4))
    slow = [("one", one), ("pair", one | {"records": [pair(one, decode=900.0, total=1.0)]})]
    assert {row.bottleneck for row in scale.table_rows(slow, 60_000)[0]} == {"decoding"}
    http = [("one", one), ("pair", one | {"records": [pair(one, decode=1.0, total=1.0)]})]
    assert {row.bottleneck for row in scale.table_rows(http, 60_000)[0]} == {"HTTP"}
    assert {row.bottleneck for row in scale.table_rows(given(), 2000)[0]} == {"engine"}


def test_beside_a_gpu_the_processors_only_decode() -> None:
    documents = given()
    on_gpu = json.loads(json.dumps(documents))
    for _, one in on_gpu:
        for item in one["records"]:
            item["memory_mb"]["peak_gpu"] = 500.0
            if item.get("batch"):
                item["cpu_seconds_per_image"] = 0.001
    around = scale.overhead(on_gpu)
    for row in scale.table_rows(on_gpu, 2000)[0]:
        group = capacity.series(on_gpu[0][1]["records"])[capacity.key(row.record)]
        engine = queueing.highest_rate(capacity.service_of(group, row.max_batch), 2.0)
        assert engine is not None
        assert row.each == pytest.approx(min(engine, scale.BUSY * row.cores / (0.001 + around.seconds)))


def test_watts_and_prices_are_the_readers_or_absent(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scale, "COUNTS", (1,))
    files = []
    for name, one in given():
        files.append(str(tmp_path / f"{name}.json"))
        Path(files[-1]).write_text(json.dumps(one), "utf-8")
    assert main(["scale", *files, "--slo-ms", "2000"]) == 0
    plain = capsys.readouterr().out
    assert "kW" not in plain and "price" not in plain and "Watts were not measured (" in plain
    assert main(["scale", *files, "--slo-ms", "2000", "--watts-per-replica", "50", "--price-per-hour", "0.2"]) == 0
    out = capsys.readouterr().out
    row = scale.table_rows([(n, d) for n, d in given()], 2000)[0][0]
    line = next(text for text in out.splitlines() if text.startswith("| resnet50"))
    assert line.split(" | ")[-2] == scale.whole(row.count(10_000_000) * 50 / 1e3)
    assert line.split(" | ")[-1].rstrip(" |") == records.significant(1e6 / row.each / 3600 * 0.2)
    assert main(["scale", files[0]]) == 2  # no two-replica run
    assert "python -m benchmarks replicas" in capsys.readouterr().err
    assert main(["scale", *files, "--slo-ms", "0.01"]) == 1


def test_wires_are_bytes_times_rate() -> None:
    text = scale.wires(scale.overhead(given()))
    million = next(line for line in text.splitlines() if line.startswith("| 10,000,000"))
    assert [cell.strip() for cell in million.split("|")[2:5]] == ["8,000", "12,042", "80.0"]
    assert "| 30,000 |" in million  # 3 ms each


def test_tables_go_between_their_markers_and_nowhere_else(tmp_path: Path) -> None:
    page = "a\n<!-- wires -->\nold\n<!-- /wires -->\nb\n"
    made = tables.insert(page, {"wires": "new\nlines", "networks": "other"})
    assert made == "a\n<!-- wires -->\nnew\nlines\n<!-- /wires -->\nb\n" == tables.insert(made, {"wires": "new\nlines"})
    with pytest.raises(Failure, match="no `<!-- /wires -->`"):
        tables.insert("<!-- wires -->\nold", {"wires": "new"})


@pytest.mark.slow
def test_the_committed_pages_are_what_the_committed_results_give() -> None:
    """Where new results make this fail, the command in docs/scale.md renews the pages."""
    files = [*sorted(RESULTS.glob("*.json")), *sorted((RESULTS / "replicas").glob("*.json"))]
    made = scale.blocks([(path.stem, records.read(path)) for path in files], slo_ms=100.0)
    pages = [page.read_text("utf-8") for page in PAGES]
    for name in made:
        assert sum(f"<!-- {name} -->\n" in page for page in pages) == 1
    for page in pages:
        assert tables.insert(page, made) == page
