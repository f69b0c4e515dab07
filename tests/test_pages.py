"""Over HTTP: the files of the page, and the results that it shows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from serving.artifact import Artifact
from serving.pages import Results
from tests.fakes.interface import client_of, started
from tests.fakes.viewer import measured


async def test_files_carry_their_type_a_strict_policy_and_an_etag(tiny: Artifact) -> None:
    async with started(tiny, PODIUM_TOKEN="secret") as serving, client_of(serving) as client:
        page = await client.get("/ui/")
        assert page.status_code == 200 and page.headers["content-type"] == "text/html; charset=utf-8"
        policy = page.headers["content-security-policy"]
        assert "default-src 'none'" in policy and "unsafe" not in policy and "frame-ancestors 'none'" in policy
        for name, kind in (("app.js", "text/javascript"), ("style.css", "text/css"), ("icon.svg", "image/svg+xml")):
            file = await client.get(f"/ui/{name}")
            assert file.headers["content-type"].startswith(kind)
            assert file.headers["x-content-type-options"] == "nosniff"
            assert file.headers["referrer-policy"] == "no-referrer"
            again = await client.get(f"/ui/{name}", headers={"if-none-match": f'"other", W/{file.headers["etag"]}'})
            assert (again.status_code, again.content) == (304, b"")
            changed = await client.get(f"/ui/{name}", headers={"if-none-match": '"other"'})
            assert changed.content == file.content
        head = await client.head("/ui/")
        assert (head.status_code, head.content) == (200, b"")
        assert int(head.headers["content-length"]) == len(page.content)
        onward = await client.get("/ui")
        assert (onward.status_code, onward.headers["location"]) == (308, "ui/")
        for path in (
            "/ui/index.html",
            "/ui/../api.py",
            "/ui/..%2fapi.py",
            "/ui//etc/passwd",
            "/ui/samples/",
            "/uix",
        ):
            assert (await client.get(path)).status_code == 404
        assert (await client.get("/ui/results.json")).status_code == 401
        assert (await client.post("/ui/results.json")).status_code == 405


def result_file(date: str, **changes: Any) -> str:
    record = measured()["records"][0] | {"latency_ms": {"p50": 1.0, "values": [1.0] * 1000}} | changes
    return json.dumps({"schema": 1, "environment": {"date": date, "command": "c"}, "records": [record]})


def test_the_newest_whole_result_file_is_the_one_shown(tmp_path: Path) -> None:
    results = Results(tmp_path)
    assert results.latest() is None
    (tmp_path / ".podium/demo").mkdir(parents=True)
    (tmp_path / "benchmarks/results").mkdir(parents=True)
    older = tmp_path / "benchmarks/results/older.json"
    older.write_text(result_file("2026-01-01T00:00:00+00:00"))
    newer = tmp_path / ".podium/demo/results.json"
    newer.write_text(result_file("2026-02-01T00:00:00+00:00", scenario=None))
    for name, text in {
        "half": newer.read_text()[:200],
        "schema": newer.read_text().replace('"schema": 1', '"schema": 2'),
        "nan": result_file("2027", throughput_img_s=float("nan")),
        "failed": result_file("2027", status="failed: of memory"),
        "load": result_file("2027", scenario="closed loop, 4 in flight"),
        "other": '{"schema": 1, "environment": {}, "records": [{"network": 1}]}',
        "list": "[]",
        "deep": "[" * 100_000,
    }.items():
        (tmp_path / f".podium/{name}.json").write_text(text)
    latest = results.latest()
    assert latest is not None and latest["file"] == ".podium/demo/results.json"
    assert latest["records"][0]["latency_ms"] == {"p50": 1.0, "p90": None, "p99": None, "count": None, "interval": None}
    assert "command" not in latest["environment"]
    assert results.latest() is latest  # not read again
    newer.unlink()
    latest = results.latest()
    assert latest is not None and latest["file"] == "benchmarks/results/older.json"


async def test_results_are_null_or_a_document_over_http(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with started(tiny) as serving, client_of(serving) as client:
        assert (await client.get("/ui/results.json")).json() == {"results": None}
    (tmp_path / ".podium").mkdir()
    (tmp_path / ".podium/bench.json").write_text(result_file("2026-02-01T00:00:00+00:00"))
    async with started(tiny) as serving, client_of(serving) as client:
        assert (await client.get("/ui/results.json")).json()["results"]["file"] == ".podium/bench.json"
