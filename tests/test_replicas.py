"""Two replicas behind HAProxy, as `python -m benchmarks replicas` runs them: nothing a client sent may be lost."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks import records
from benchmarks.__main__ import main
from benchmarks.campaigns import replicas
from benchmarks.load import drive as load
from benchmarks.process import ROOT
from serving.artifact import Artifact

needs_haproxy = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="haproxy is not installed; apt-get install haproxy"
)


@pytest.mark.slow
@needs_haproxy
def test_no_request_is_lost_when_a_replica_is_killed_restarted_or_slow(
    tiny: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "replicas.json"
    status = main(["replicas", tiny.tag, "--rate", "15", "--duration", "4", "--pause", "2", "--out", str(out)])
    printed = capsys.readouterr().out
    with capsys.disabled():
        print(f"\n{printed}")  # p99 of every phase
    phases = {item["phase"]: item for item in list[Any](records.read(out)["records"])}
    assert list(phases) == [replicas.STEADY, replicas.KILLED, replicas.ROLLING, replicas.SLOW]
    assert {name: (item["lost"], item["errors"]) for name, item in phases.items()} == dict.fromkeys(phases, (0, {}))
    assert status == 0
    for item in phases.values():
        assert item["sent"] > 20 and item["latency_ms"]["count"] == item["sent"]
    # Both took part, and where nothing happened nothing was sent twice.
    assert min(phases["steady"]["by_replica"]) > 0 and phases["steady"]["retried"] == 0
    # A request that waits for a stopped replica is answered by it, or by the other one: late, not lost.
    assert "one replica stopped for 2 s" in printed and "p99 ms" in printed


def outcome(latency: float, queue: float, inference: float, size: int) -> load.Outcome:
    times = {"decode": 1.0, "queue": queue, "inference": inference, "total": 20.0}
    return load.Outcome(200, latency, 0.0, {"predictions": [], "timing_ms": times, "batch_size": size})


def test_service_times_are_by_batch_and_without_waiting() -> None:
    times = replicas.service_times(
        [outcome(30.0, 5.0, 10.0, 2), outcome(12.0, 0.0, 6.0, 1), load.Outcome("timeout", 1.0, 0.0)]
    )
    assert times == {"engine_ms": {"1": [6.0], "2": [10.0]}, "around_ms": [15.0, 6.0]}


def test_a_loss_fails_the_command_and_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcomes = [outcome(10.0, 0.0, 5.0, 1), load.Outcome(502, 3.0, 0.0)]
    item: dict[str, Any] = {
        **load.record(load.Scenario(rate=5), outcomes, 1.0, None, None),
        "kind": "replicas", "phase": "killed", "refused": 0, "lost": 1, "retried": 1, "slowest_ms": 10.0,
        "by_replica": [1, 1],
    }  # fmt: skip
    monkeypatch.setattr(replicas, "measure", lambda *_: [item])
    assert main(["replicas", "resnet50"]) == 1
    out, err = capsys.readouterr()
    assert "not answered: 1 x 502" in out and "1 of 2 requests were lost" in err


def test_without_haproxy_the_repair_is_named(
    tiny: Artifact, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    assert main(["replicas", tiny.tag]) == 1
    assert "apt-get install haproxy" in capsys.readouterr().err


def test_the_committed_run_lost_nothing() -> None:
    for path in sorted((ROOT / "benchmarks" / "results" / "replicas").glob("*.json")):
        for item in json.loads(path.read_text("utf-8"))["records"]:
            assert item["lost"] == 0 and item["errors"] == {}
