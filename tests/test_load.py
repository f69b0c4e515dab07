"""Load over HTTP, against a service of thirty lines."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import rates, records
from benchmarks.__main__ import main
from benchmarks.load import bodies, loops
from benchmarks.load import drive as load
from tests.fakes.service import service


def test_load_measures_a_service(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "load.json"
    with service([200]) as (url, seen):
        arguments = ["load", url, "--concurrency", "1,3", "--rate", "200", "--duration", "0.2", "--slo-ms", "60000"]
        assert main([*arguments, "--model", "resnet50", "--out", str(path)]) == 0
    measured: list[Any] = list(records.read(path)["records"])
    assert [i["scenario"] for i in measured] == [
        "closed loop, 1 in flight", "closed loop, 3 in flight", "open loop, 200 per second",
    ]  # fmt: skip
    for item in measured:
        assert (item["network"], item["engine"], item["precision"], item["weights"]) == (
            "resnet50", "onnxruntime", "int8", "untrained",
        )  # fmt: skip
        assert item["status"] == "ok" and item["batch"] is None and item["mean_batch"] == 2
        assert item["errors"] == {} and item["within_slo"] == 1 and item["sent"] == item["latency_ms"]["count"]
        split = item["split_ms"]
        assert (split["decode"]["mean"], split["queue"]["mean"]) == pytest.approx((0.01, 0.02))
        assert split["inference"]["mean"] == pytest.approx(0.03) and split["service"]["mean"] == pytest.approx(0.01)
        parts = sum(split[name]["mean"] for name in split)
        assert parts == pytest.approx(item["latency_ms"]["mean"], rel=1e-3)
        assert item["power"]["net_w"] is None and "HTTP" in item["power"]["reason"]
    assert all(line.startswith("POST /classify?model=resnet50 ") for line in seen)
    assert main(["report", str(path), "--out", str(tmp_path / "report")]) == 0
    assert "open loop, 200 per second" in (tmp_path / "report" / "report.md").read_text("utf-8")


def test_load_counts_errors_by_status(tmp_path: Path) -> None:
    with service([200, 503, 200, 422]) as (url, _):
        scenario = load.Scenario(rate=100)
        item: Any = load.drive(url, scenario, [bodies.synthetic_photograph(64, 64)], 0.2, None, 60_000)
    errors = item["errors"]
    assert set(errors) == {"422", "503"} and item["status"] == "ok"
    assert item["latency_ms"]["count"] == item["sent"] - sum(errors.values())
    assert item["within_slo"] == pytest.approx(item["latency_ms"]["count"] / item["sent"])


def test_a_service_that_only_fails_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with service([500]) as (url, _):
        arguments = ["load", url, "--concurrency", "1", "--duration", "0.05", "--out", str(tmp_path / "load.json")]
        assert main(arguments) == 1
    assert "x 500" in capsys.readouterr().err
    [item] = records.read(tmp_path / "load.json")["records"]
    assert item["status"].startswith("failed: ") and item["latency_ms"] is None


def test_nothing_there_and_no_address_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with service([200]) as (url, _):
        pass
    out = ["--duration", "0.05", "--out", str(tmp_path / "load.json")]
    assert main(["load", url, *out]) == 1
    assert "start the service" in capsys.readouterr().err
    assert main(["load", "localhost:3000", *out]) == 2
    assert "expected http://HOST:PORT" in capsys.readouterr().err
    assert main(["load", url, "--images", str(tmp_path), *out]) == 2
    assert main(["load", "http://user:secret@127.0.0.1:9"]) == 2
    told = capsys.readouterr().err
    assert "a password" in told and "secret" not in told


async def test_open_loop_counts_from_the_intended_send() -> None:
    """A client that wakes a second late sends late, and the latencies say so."""
    now, late = 0.0, {0.2: 1.0}

    async def ask() -> str:
        return "an answer"

    async def sleep(seconds: float) -> None:
        nonlocal now
        await asyncio.sleep(0)  # what is due is sent before time goes on
        now += seconds + late.pop(round(now + seconds, 6), 0.0)

    done = await loops.open_loop(ask, [0.1, 0.2, 0.3, 1.5], lambda: now, sleep)
    assert [request.due for request in done] == pytest.approx([0.1, 0.2, 0.3, 1.5])
    assert [request.latency_ms for request in done] == pytest.approx([0, 1000, 900, 0], abs=1e-6)
    assert [request.taken_ms for request in done] == pytest.approx([0, 0, 0, 0], abs=1e-6)
    assert [request.lag_ms for request in done] == pytest.approx([0, 1000, 900, 0], abs=1e-6)


async def test_a_loop_ends_when_its_sleep_says_so() -> None:
    async def ask() -> int:
        return 0

    async def sleep(seconds: float) -> bool:
        return seconds > 0.25

    assert len(await loops.open_loop(ask, rates.poisson(0.001), lambda: 0.0, sleep)) == 0
    assert len(await loops.open_loop(ask, [0.1, 0.2, 0.3, 0.4], lambda: 0.0, sleep)) == 2


async def test_a_closed_loop_keeps_so_many_in_flight_and_pauses_as_it_is_told() -> None:
    flying, most, asked = 0, 0, 0

    async def ask() -> int:
        nonlocal flying, most, asked
        asked, flying = asked + 1, flying + 1
        most = max(most, flying)
        number = asked
        await asyncio.sleep(0)
        flying -= 1
        return number

    paused: list[int] = []

    def pause(number: int) -> float:
        paused.append(number)
        return 0.001 if number % 2 else 0.0

    done = await loops.closed_loop(ask, 3, lambda: asked >= 9, pause)
    assert most == 3 and sorted(paused) == sorted(request.answer for request in done)
    assert len(done) >= 9 and all(request.due == request.sent <= request.ended for request in done)


def test_arrivals_are_poisson() -> None:
    due = rates.arrivals(500, 20)
    gaps = np.diff([0.0, *due])
    assert len(due) == pytest.approx(10_000, rel=0.05) and due == sorted(due) and due[-1] < 20
    # Exponential gaps: the standard deviation equals the mean.
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert rates.arrivals(500, 20) == due


def test_a_scenario_is_one_or_the_other() -> None:
    for concurrency, rate in ((None, None), (1, 1.0)):
        with pytest.raises(ValueError, match="a concurrency or a rate"):
            load.Scenario(concurrency, rate)


def test_load_searches_the_highest_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "load.json"
    with service([200]) as (url, _):
        # Long enough that requests are due at the lowest rate tried, however slow the machine is now.
        arguments = ["load", url, "--search", "--duration", "0.3", "--out", str(path)]
        assert main(arguments) == 2
        assert "give --slo-ms" in capsys.readouterr().err
        assert main([*arguments, "--slo-ms", "60000"]) == 0
    full, found = list[Any](records.read(path)["records"])
    assert full["concurrency"] == load.FULL and found["scenario"] == "MLPerf-style server, p99 within 60000 ms"
    assert found["rate"] == found["rungs"][-1][0] and found["within_slo"] == 1
    # Everything passes, so that the search ends just below the rate of the closed loop.
    assert found["rate"] == pytest.approx(full["throughput_img_s"] * (1 - 0.5**rates.HALVINGS))
    assert "Highest rate" in capsys.readouterr().out
    with service([200, 503]) as (url, _):
        assert main(["load", url, "--search", "--duration", "0.05", "--slo-ms", "60000", "--out", str(path)]) == 0
    assert records.read(path)["records"][1]["status"].startswith("failed: no rate keeps")
