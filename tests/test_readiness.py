"""Readiness is true and a shutdown ends, whatever decoders and engines do."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from benchmarks.campaigns.costly_images import run_lengths
from models.preprocess import Pixels
from serving import classify, sandbox
from serving.artifact import Artifact
from serving.classify import Serving
from serving.images import Picture
from serving.runtime import cores
from serving.settings import Settings
from tests.fakes.interface import client_of, is_error, post, started, until
from tests.fakes.pictures import encoded, jpeg, photograph


class Stuck:
    """A decoder that ends when `passage` is set."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.entered, self.passage = threading.Semaphore(0), threading.Event()
        decode = Picture.prepare

        def prepare(picture: Picture, recipe: Any) -> Any:
            self.entered.release()
            assert self.passage.wait(60)
            return decode(picture, recipe)

        monkeypatch.setattr(Picture, "prepare", prepare)

    async def all_busy(self) -> None:
        for _ in range(cores() + 1):
            await asyncio.to_thread(self.entered.acquire)


async def test_readyz_fails_while_every_decoder_is_stuck_and_recovers(
    tiny: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    stuck = Stuck(monkeypatch)
    async with started(tiny, PODIUM_TIMEOUT_MS="20000") as serving, client_of(serving) as client:
        now = serving.workers._clock()
        monkeypatch.setattr(serving.workers, "_clock", lambda: now)
        asked = [post(client, jpeg()) for _ in range(cores() + 1)]
        await stuck.all_busy()
        assert (await client.get("/readyz")).status_code == 200
        now += 21
        assert is_error(await client.get("/readyz"), 503, "not_ready", "every worker has been busy with one image")
        assert (await client.get("/v2/health/ready")).status_code == 503
        assert (await client.get("/livez")).status_code == 200
        stuck.passage.set()
        assert {reply.status_code for reply in await asyncio.gather(*asked)} == {200}
        await until(lambda: not serving.unready())
        assert (await client.get("/readyz")).status_code == 200


async def test_readyz_fails_while_the_engine_is_stuck(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    entered, passage = threading.Event(), threading.Event()
    async with started(tiny) as serving, client_of(serving) as client:
        batcher = serving.models["tiny"].batcher

        def run(batch: Pixels, good: Any = batcher.run) -> Any:
            entered.set()
            assert passage.wait(60)
            return good(batch)

        monkeypatch.setattr(batcher, "run", run)
        now = serving.workers._clock()
        monkeypatch.setattr(serving.workers, "_clock", lambda: now)
        asked = post(client, jpeg())
        await asyncio.to_thread(entered.wait)
        now += 11
        assert is_error(await client.get("/readyz"), 503, "not_ready", "the engine has been running one batch")
        passage.set()
        assert (await asked).status_code == 200
        await until(lambda: not serving.unready())


async def test_a_shutdown_does_not_wait_for_a_decoder_that_never_ends(
    tiny: Artifact, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(classify, "GRACE", 0.05)
    closed: list[str] = []
    stuck = Stuck(monkeypatch)
    serving = Serving(Settings.read({"PODIUM_TIMEOUT_MS": "50"}), [tiny], CollectorRegistry())
    await serving.start()
    monkeypatch.setattr(serving.models["tiny"].runtime, "close", lambda: closed.append("engine"))
    async with client_of(serving) as client:
        asked = [post(client, jpeg()) for _ in range(cores() + 1)]
        await stuck.all_busy()
        assert {reply.status_code for reply in await asyncio.gather(*asked)} == {504}
        await serving.stop()
    assert not closed, "it may be in use"
    assert "did not end within 0.05 s" in caplog.text
    stuck.passage.set()
    assert await asyncio.to_thread(serving.workers.close)


async def test_a_shutdown_ends_decoding_in_other_processes(tiny: Artifact) -> None:
    serving = Serving(
        Settings.read({"PODIUM_IMAGE_CPU_MS": "60000", "PODIUM_TIMEOUT_MS": "3000"}), [tiny], CollectorRegistry()
    )
    await serving.start()
    async with client_of(serving) as client:
        asked = post(client, run_lengths(7000, 8))
        await until(lambda: bool(serving.sandbox._busy))
        [child] = serving.sandbox._busy
        await serving.stop()
        assert (await asked).status_code == 504
    assert child.process.poll() is not None


async def test_costly_images_do_not_delay_good_ones(tiny: Artifact, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many images that use up their processor time, with good requests beside them, from request to answer."""
    monkeypatch.setattr(sandbox, "PATIENCE", 1000.0)  # a busy machine gives the children little processor time
    settings = {"PODIUM_IMAGE_CPU_MS": "300", "PODIUM_TIMEOUT_MS": "600000"}
    async with started(tiny, **settings) as serving, client_of(serving) as client:
        costly = [post(client, run_lengths(1700, 8)) for _ in range(6)]
        for _ in range(30):
            assert (await client.post("/classify", content=jpeg())).status_code == 200
        assert not all(reply.done() for reply in costly), "they were faster than thirty good ones"
        for reply in await asyncio.gather(*costly):
            assert is_error(reply, 413, "too_large", "more than the 300 ms of processor time")
        tiff = await client.post("/classify", content=encoded(photograph(), "TIFF"))
        assert tiff.status_code == 200 and tiff.json()["timing_ms"]["decode"] > 0
        assert np.isfinite(tiff.json()["timing_ms"]["queue"])
