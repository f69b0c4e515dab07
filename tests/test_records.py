"""Result files: every committed one reads, keeps its content when it is written again, and its records have a kind."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import records
from models.console import Failure, Usage
from tests.conftest import ROOT

RESULTS = ROOT / "benchmarks" / "results"
FILES = sorted(RESULTS.rglob("*.json"))
READERS: dict[str, Callable[[Path], Any]] = {
    "records": records.read,
    "rows": records.read_rows,
    "campaigns": records.read_campaigns,
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(RESULTS).as_posix())
def test_every_committed_file_reads_and_keeps_its_content(path: Path, tmp_path: Path) -> None:
    [holds] = READERS.keys() & json.loads(path.read_text("utf-8")).keys()
    content = READERS[holds](path)
    again = tmp_path / "deeper" / path.name
    records.write(again, content)
    assert READERS[holds](again) == content and list(again.parent.iterdir()) == [again]
    plain = json.loads(again.read_text("utf-8"))
    for item in plain["records"] if holds == "records" else ():
        for name in ("kind", "failure"):
            item.pop(name)
    committed = json.loads(path.read_text("utf-8"))
    for item in committed["records"] if holds == "records" else ():
        item.pop("kind", None), item.pop("failure", None)
    assert plain == committed


def test_the_committed_records_are_cells_and_phases_of_replicas() -> None:
    kinds = {
        path.parent.name: {i["kind"] for i in records.read(path)["records"]} for path in RESULTS.glob("**/*-2c-*.json")
    }
    assert kinds == {"results": {"cell"}, "replicas": {"replicas"}}


def old(**fields: Any) -> dict[str, Any]:
    """A record as it was written before records had a kind."""
    item = dict(records.unmeasured(records.Failed("engine", "no reason")))
    del item["failure"]
    named = {"network": "n", "engine": "e", "precision": "p", "batch": None, "weights": "w", "scenario": None}
    return item | named | fields


@pytest.mark.parametrize(
    ("fields", "kind", "failure"),
    [
        ({"batch": 1, "status": "failed: memory ended in the latency pass (SIGKILL)"}, "cell", "memory"),
        ({"batch": 1, "status": "failed: not tried, memory ended at batch 2"}, "cell", "skipped"),
        ({"batch": 1, "settings": "gpu", "status": "failed: not measured, it ended"}, "gpu_cell", "cut_off"),
        ({"batch": 1, "settings": "gpu", "status": "failed: the answers are not the network's"}, "gpu_cell", "answers"),
        ({"scenario": "MLPerf-style offline", "status": "failed: wrong shape"}, "scenario", "engine"),
        ({"scenario": "closed loop, 4 in flight", "concurrency": 4}, "load", "engine"),
        (
            {"scenario": "MLPerf-style server, p99 within 9 ms", "concurrency": None, "rungs": [[1.0, 0.5, 9.9]],
             "status": "failed: no rate keeps the 99th percentile within 9 ms"},
            "search", "bound",
        ),
        ({"scenario": "two replicas: nothing happens", "concurrency": None, "phase": "steady"}, "replicas", "engine"),
    ],
)  # fmt: skip
def test_an_older_record_gets_its_kind_and_its_kind_of_failure(fields: dict[str, Any], kind: str, failure: str) -> None:
    item = old(**fields)
    [found] = records.validate({"schema": 1, "environment": {}, "records": [item]})["records"]
    assert (found["kind"], found["failure"]) == (kind, failure)
    assert {name: value for name, value in found.items() if name not in ("kind", "failure", "name")} == item
    if found["kind"] == "scenario":
        assert found["name"] == "offline"


def test_a_kind_that_does_not_exist_is_refused() -> None:
    for change, message in (({"kind": "guess"}, "kind is 'guess'"), ({"batch": None}, "batch is None")):
        item = old(batch=1) | {"kind": "cell"} | change
        with pytest.raises(Failure, match=message):
            records.validate({"schema": 1, "environment": {}, "records": [item]})


def test_a_file_of_another_sort_names_the_command_that_writes_it(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    for text, message in (("{}", "holds no rows"), ("no JSON", "is not JSON")):
        path.write_text(text)
        with pytest.raises(Usage, match=rf"a\.json {message}.*`python -m benchmarks peers"):
            records.read_rows(path)
    with pytest.raises(Usage, match=r"cannot read .*`python -m benchmarks stand"):
        records.read_campaigns(tmp_path / "absent.json")
