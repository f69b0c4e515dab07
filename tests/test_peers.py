"""The peers: each is started once with a tiny network and must answer as the network does; and their table."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import process
from benchmarks.__main__ import main
from benchmarks.load.wire import get, once
from benchmarks.peers import compare, limit, work
from models.console import Failure
from models.preprocess import pixels
from serving import runtime
from serving.artifact import Artifact
from serving.engines import Scores
from serving.runtime import Choice
from tests.conftest import ROOT

CHOICE = Choice("openvino", "fp32", 1)
CAT = ROOT / "examples" / "photographs" / "cat.jpg"


def expected(artifact: Artifact) -> Scores:
    engine = runtime.open(artifact, "onnxruntime", "fp32")
    with Image.open(CAT) as image:
        scores: Scores = engine.run(pixels(image, artifact.preprocess)[None])[0]
        return scores


def started(peer: compare.Peer, artifact: Artifact, folder: Path) -> AbstractContextManager[int]:
    return compare.server(peer, compare.job(artifact, CHOICE, peer), compare.multipart(CAT), folder)


@pytest.mark.slow
@pytest.mark.parametrize("peer", compare.PEERS, ids=lambda peer: peer.label)
def test_a_peer_answers_as_the_network_does_and_ends(peer: compare.Peer, tiny: Artifact, tmp_path: Path) -> None:
    if reason := peer.missing:
        pytest.skip(reason)
    with started(peer, tiny, tmp_path) as port:
        predictions = asyncio.run(compare.predictions(port, compare.multipart(CAT)))
        scores = expected(tiny)
        best = np.argsort(scores)[::-1][: len(predictions)]
        assert [each["class_id"] for each in predictions] == best.tolist() and len(predictions) == work.TOP
        assert [each["probability"] for each in predictions] == pytest.approx(scores[best].tolist(), abs=1e-5)
    assert asyncio.run(once(port, get("/classify"), 5.0)).lost == "unreachable"


@pytest.mark.slow
@pytest.mark.parametrize("client", [compare.with_wrk, compare.with_our_client])
def test_both_clients_count_answers_and_errors(client: Any, tiny: Artifact, tmp_path: Path) -> None:
    if client is compare.with_wrk and compare.client() != "wrk":
        pytest.skip("wrk is not installed; apt-get install wrk")
    peer = next(peer for peer in compare.PEERS if peer.name == compare.PODIUM)
    good, bad = tmp_path / "good", tmp_path / "bad"
    good.write_bytes(compare.multipart(CAT))
    bad.write_bytes(compare.multipart(CAT).replace(b"JFIF", b"xxxx").replace(b"\xff\xd8\xff", b"no!"))
    with started(peer, tiny, tmp_path) as port:
        look = compare.with_total(client(port, [good]), port)(2, 1.0)
        assert look.requests > 0 and look.errors == 0 and 0 < look.p50 <= look.p99 and 0 < look.mean <= look.p99
        assert look.total is not None and 0 < look.total < look.mean
        mixed = client(port, [good, bad])(1, 1.0)
        assert mixed.errors > 0 and mixed.requests == pytest.approx(mixed.errors, abs=2)


def test_the_plain_pixels_are_ours(tiny: Artifact) -> None:
    """A peer must not win or lose by seeing another picture."""
    with Image.open(CAT) as image:
        plain = work.Plain(tiny, "fp32").pixels(image)
        ours = work.Ours(tiny, "onnxruntime", "fp32", 1).pixels(image)
    assert plain.shape == ours.shape and np.abs(plain.astype(int) - ours).max() <= 1


def test_the_pipeline_answers_every_image_once() -> None:
    seen: list[int] = []

    def decode(index: int) -> Any:
        return np.full((2, 2, 3), index % 200, np.uint8)

    def run(batch: Any) -> None:
        seen.extend(batch[:, 0, 0, 0].tolist())

    times = limit.pipeline(decode, run, 0.05, decoders=2, max_batch=4, in_flight=5)
    assert len(times) == len(seen) > 0 and min(times) > 0
    even = [image for image in seen if image % 2 == 0]
    # Each of two decoders gives its own images, in their order.
    assert even[:20] == list(range(0, 200, 2))[: len(even[:20])]
    assert len(limit.alone(decode, run, 0.0)) == 1


def test_the_limit_runs_in_a_process_of_its_own(tiny: Artifact) -> None:
    with compare.limit(compare.job(tiny, CHOICE, None), [CAT]) as ask:
        looks = [ask(n, 0.05) for n in (1, 4)]
    assert all(look.requests > 0 and 0 < look.p50 <= look.p99 and look.errors == 0 for look in looks)


def fake(monkeypatch: pytest.MonkeyPatch, rates: dict[str, float]) -> list[tuple[str, int]]:
    """Servers and clients replaced; the order in which they were asked."""
    asked: list[tuple[str, int]] = []

    class Server:
        def __init__(self, label: str) -> None:
            self.label = label

        def __enter__(self) -> str:
            return self.label

        def __exit__(self, *_: object) -> None: ...

    def ask(label: str) -> compare.Ask:
        def look(connections: int, seconds: float) -> compare.Look:
            asked.append((label, connections))
            number = asked.count((label, connections))
            return compare.Look(
                int(rates.get(label, 50) * number), 1.0, 10.0 / number, 20.0 / number, 12.0 / number, int(number == 4)
            )

        return look

    class Limit(Server):
        def __enter__(self) -> Any:
            return ask(self.label)

    monkeypatch.setattr(compare, "server", lambda peer, *_: Server(peer.label))
    monkeypatch.setattr(compare, "loader", lambda label, _, to=None: ask(compare.TENSORS if to else label))
    monkeypatch.setattr(compare, "with_total", lambda ask, _: ask)
    monkeypatch.setattr(compare, "limit", lambda *_: Limit(compare.LIMIT))
    return asked


def test_rounds_are_interleaved_and_figures_are_medians(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = fake(monkeypatch, {"FastAPI": 100, compare.PODIUM: 200})
    peers = tuple(p for p in compare.PEERS if p.label in ("FastAPI", compare.PODIUM))
    monkeypatch.setattr(compare, "PEERS", peers)
    path = tmp_path / "peers.json"
    arguments = ["peers", "--model", tiny.tag, "--rounds", "3", "--connections", "2", "--out", str(path)]
    assert main(arguments) == 0
    labels = ["FastAPI", compare.PODIUM, compare.TENSORS, compare.LIMIT]
    assert [label for label, _ in asked] == [label for label in labels for _ in range(2)] * 3  # the first warms up
    document = json.loads(path.read_text("utf-8"))
    by_server = {row["server"]: row for row in document["rows"]}
    # Every other look warmed up, so that rounds saw the second, the fourth and the sixth.
    assert by_server["FastAPI"]["rate"] == 400 and by_server["FastAPI"]["p50"] == pytest.approx(10 / 4)
    assert by_server["FastAPI"]["errors"] == 1 and len(by_server["FastAPI"]["rounds"]) == 3
    assert by_server["FastAPI"]["pixels"] == "its own" and by_server[compare.PODIUM]["pixels"] == "ours"
    assert by_server[compare.TENSORS]["pixels"] == "given"
    lines = {line.split("  ")[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "0.50" in lines["FastAPI"] and "200.0 to 600.0" in lines["FastAPI"] and "1.00" in lines[compare.PODIUM]


def test_what_is_not_installed_is_named(
    tiny: Artifact, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake(monkeypatch, {})
    absent = compare.Peer("Absent", "nothing", "no_such_package", "peers")
    monkeypatch.setattr(compare, "PEERS", (absent, compare.PEERS[-1]))
    assert main(["peers", "--model", tiny.tag, "--rounds", "1"]) == 0
    out = capsys.readouterr().out
    assert "not run: Absent: no_such_package is not installed; pip install 'podium[peers]'" in out
    assert main(["peers", "--model", tiny.tag, "--images", str(tmp_path)]) == 2


def test_a_server_that_does_not_start_says_its_last_words(tiny: Artifact, tmp_path: Path) -> None:
    broken = compare.Peer("Broken", "no_such_module", "json", "peers")
    with (
        pytest.raises(Failure, match=r"Broken did not start: .*No module named no_such_module"),
        started(broken, tiny, tmp_path),
    ):
        pass


def test_what_a_server_leaves_behind_is_ended() -> None:
    """A child of the server, in its session, is gone when the server is."""
    code = (
        "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=subprocess.PIPE);"
        "print(p.pid, flush=True); time.sleep(600)"
    )
    server = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    assert server.stdout is not None
    with server.stdout as out:
        child = int(out.readline())
        process.end(server)
        assert out.read() == b""  # the child held the other end until it was gone
    assert server.returncode == -15 and child


def test_one_client_is_held_against_the_work_itself() -> None:
    def row(server: str, mean: float, total: float | None) -> compare.Row:
        return compare.Row(server, "tiny", None, None, None, 1, 9.0, mean, mean, mean, total, 0, [])

    rows = [row(compare.PODIUM, 6.0, 5.0), row(compare.LIMIT, 4.0, None)]
    line = compare.alone(rows)
    assert line is not None and "4.00 ms" in line and "5.00 ms (1.25 x)" in line and "6.00 ms (1.50 x)" in line
    assert compare.alone(rows[:1]) is None and compare.alone([replace(row, connections=16) for row in rows]) is None
