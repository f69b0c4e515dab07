"""How fast bulk is: its rate from the parts, and the ways that it is compared with."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import main as measured
from benchmarks.peers import bulk as sides
from models.console import Failure
from serving import bulk
from serving.artifact import Artifact

pytest.importorskip("ray", reason="ray is not installed; pip install 'podium[bulk]'")
pytest.importorskip("pyarrow")


def test_the_steady_rate_is_that_of_the_parts(tmp_path: Path) -> None:
    """Two actors that need five seconds for a part of 100 do 40 a second, however long the first part took to start."""
    (tmp_path / bulk.MANIFEST).write_text('{"part_size": 100}')
    for part in range(9):
        file = tmp_path / bulk.part_name(part)
        file.touch()
        os.utime(file, (0, 1_000 + 5 * (part // 2) + 0.1 * (part % 2)))
    rate, seconds = sides.steady(tmp_path, 900)
    assert rate == pytest.approx(40, rel=0.05) and seconds == pytest.approx(20)
    assert sides.steady(tmp_path, 801)[0] < rate  # the last part had only one image
    for part in range(2, 9):
        (tmp_path / bulk.part_name(part)).unlink()
    with pytest.raises(Failure, match="200 images are 2 parts, too few"):
        sides.steady(tmp_path, 200)


def test_ways_are_measured_in_turn_and_compared_with_the_faster_limit(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []

    def limit(artifact: Artifact, choice: Any, threads: int, *_: Any) -> dict[str, Any]:
        asked.append(f"limit {threads}")
        return {"rate": 100.0 * threads, "threads": threads}

    def bulk_run(artifact: Artifact, choice: Any, source: Path, out: Path, count: int) -> dict[str, Any]:
        asked.append("bulk")
        assert len(list(source.rglob("*.jpg"))) == count == 7
        turn = asked.count("bulk")
        return {way: {"rate": 90.0 + turn} for way in (sides.STEADY, sides.SUMMARY, sides.WHOLE)}

    def over_http(*_: Any) -> dict[str, Any]:
        asked.append("http")
        return {sides.CLIENTS: {"rate": 80.0}, sides.LOOP: {"rate": 46.0}}

    monkeypatch.setattr(sides, "limit", limit)
    monkeypatch.setattr(sides, "bulk", bulk_run)
    monkeypatch.setattr(sides, "over_http", over_http)
    monkeypatch.setattr(sides, "cores", lambda: 2)
    path = tmp_path / "bulk.json"
    assert measured(["bulk", tiny.tag, "--count", "7", "--out", str(path)]) == 0
    assert asked == ["limit 1", "bulk", "limit 2", "http"] * 3
    rows = {row["way"]: row for row in json.loads(path.read_text("utf-8"))["rows"]}
    assert rows[sides.LIMIT]["rate"] == 200 and len(rows[sides.LIMIT]["rounds"][0]["tried"]) == 2
    assert (rows[sides.STEADY]["rate"], rows[sides.STEADY]["of_limit"], rows[sides.STEADY]["of_loop"]) == (92, 0.46, 2)
    assert "91.0 to 93.0" in capsys.readouterr().out


@pytest.mark.slow
def test_bulk_beside_its_limit_and_http(tiny: Artifact, tmp_path: Path) -> None:
    path = tmp_path / "bulk.json"
    arguments = ["--engine", "onnxruntime", "--rounds", "1", "--seconds", "0.2", "--count", "600", "--out", str(path)]
    assert measured(["bulk", tiny.tag, *arguments]) == 0
    rows = {row["way"]: row for row in json.loads(path.read_text("utf-8"))["rows"]}
    assert len(rows) == 6 and all(row["rate"] > 0 and len(row["rounds"]) == 1 for row in rows.values())
    assert rows[sides.WHOLE]["rate"] < rows[sides.SUMMARY]["rate"]
