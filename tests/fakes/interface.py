"""The HTTP interface as ASGI, without BentoML and without a socket, and an engine that a test can block."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
from prometheus_client import CollectorRegistry

from models.preprocess import Pixels
from serving.api import Api
from serving.artifact import Artifact
from serving.classify import Serving
from serving.engines import Scores
from serving.settings import Settings

ADMIN = {"PODIUM_ADMIN_TOKEN": "turn the key", "PODIUM_TOKEN": "look"}
KEY = {"Authorization": "Bearer turn the key"}
PATIENCE = 60.0
END = b"--B--\r\n"  # of a form


def part(name: str, value: bytes, kind: str = "") -> bytes:
    """One part of a form whose boundary is B."""
    content_type = f"Content-Type: {kind}\r\n" if kind else ""
    return f'--B\r\nContent-Disposition: form-data; name="{name}"\r\n{content_type}\r\n'.encode() + value + b"\r\n"


async def behind(scope: Any, receive: Any, send: Any) -> None:
    """The application that `Api` stands in front of."""
    await send({"type": "http.response.start", "status": 299, "headers": []})
    await send({"type": "http.response.body", "body": scope["path"].encode()})


@asynccontextmanager
async def started(*artifacts: Artifact, **environment: str) -> AsyncIterator[Serving]:
    serving = Serving(Settings.read(environment), artifacts, CollectorRegistry())
    await serving.start()
    try:
        yield serving
    finally:
        await serving.stop()


def client_of(serving: Serving) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(Api(behind, serving)), base_url="http://test", timeout=30)


async def ask(
    artifact: Artifact, method: str, path: str, environment: dict[str, str] | None = None, **request: Any
) -> httpx.Response:
    """The response to one request of a server with `artifact`."""
    async with started(artifact, **(environment or {})) as serving, client_of(serving) as client:
        return await client.request(method, path, **request)


async def classify(artifact: Artifact, path: str = "/classify", **request: Any) -> httpx.Response:
    return await ask(artifact, "POST", path, **request)


def post(client: httpx.AsyncClient, body: bytes) -> asyncio.Task[httpx.Response]:
    return asyncio.create_task(client.post("/classify", content=body))


def is_error(response: httpx.Response, status: int, code: str, message: str = "") -> bool:
    answer = response.json()
    assert (response.status_code, answer["error"]["code"]) == (status, code), response.text
    assert set(answer) == {"error"} and set(answer["error"]) == {"code", "message"}
    assert message in answer["error"]["message"], answer
    return True


async def until(condition: Callable[[], bool]) -> None:
    """Wait until other threads have made the condition true."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.001)


class Held:
    """An engine whose calls block until the test releases them."""

    def __init__(self, serving: Serving) -> None:
        self.batcher = serving.models["tiny"].batcher
        self.run = self.batcher.run
        self.batcher.run = self
        self.entered, self.passage = threading.Semaphore(0), threading.Event()
        self.sizes: list[int] = []

    def __call__(self, batch: Pixels) -> Scores:
        self.sizes.append(len(batch))
        self.entered.release()
        assert self.passage.wait(30)
        return self.run(batch)

    async def busy(self) -> None:
        await asyncio.to_thread(self.entered.acquire)


@asynccontextmanager
async def held_engine(artifact: Artifact, **environment: str) -> AsyncIterator[tuple[Serving, httpx.AsyncClient, Held]]:
    """A server whose engine blocks, and a client of it; the engine is released at the end."""
    async with asyncio.timeout(PATIENCE), started(artifact, **environment) as serving, client_of(serving) as client:
        held = Held(serving)
        try:
            yield serving, client, held
        finally:
            held.passage.set()
