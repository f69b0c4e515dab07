"""The service that a campaign runs against, in processes of its own."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.load.bodies import Body
from benchmarks.load.servers import Replica
from benchmarks.load.wire import Pool, Reply, get, metric, once, post
from benchmarks.process import free_port
from models.console import Failure
from serving.artifact import find

if TYPE_CHECKING:
    import psutil


START_WITHIN_S = 120.0
POLL_S = 0.02

# So many good requests before memory is read for the first time.
WARMUP = 50


class Server:
    """A service that runs, asked about itself from outside: over HTTP, and by what the system says of its worker."""

    def __init__(self, replica: Replica) -> None:
        self.replica, self.port = replica, replica.port
        self.pool = Pool(self.port)
        self.best = -1

    def worker(self) -> psutil.Process:
        """The process that serves; BentoML's supervisor is its parent. `Failure` while there is none."""
        supervisor, *others = self.replica.processes()
        # The worker's own children decode.
        children = [process for process in others if process.ppid() == supervisor.pid]
        if not children:
            raise Failure("the service has no worker")
        return max(children, key=lambda process: process.memory_info().rss)

    def rss_mb(self) -> float:
        return float(self.worker().memory_info().rss / 1e6)

    def forget_peak(self) -> None:
        """Begin `peak_mb` anew from what is held now."""
        Path(f"/proc/{self.worker().pid}/clear_refs").write_text("5")

    def peak_mb(self) -> float:
        """The most the worker held in memory since `forget_peak`, else since its start: the kernel keeps it."""
        status = Path(f"/proc/{self.worker().pid}/status").read_text("ascii")
        found = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
        assert found
        return int(found[1]) * 1024 / 1e6

    async def until_ready(self) -> None:
        deadline = time.monotonic() + START_WITHIN_S
        while (await once(self.port, get("/readyz"), 5.0)).status != 200:
            if self.replica.process.poll() is not None or time.monotonic() > deadline:
                raise Failure(f"the service is not ready: {self.replica.last_words()}")
            await asyncio.sleep(POLL_S)

    async def warm(self, request: bytes) -> None:
        """Ask until buffers are filled; the likeliest class of this answer is what `right` holds every other to."""
        for _ in range(WARMUP):
            first = await self.pool.ask(request)
        if first.status != 200:
            text = first.body[:200].decode("utf-8", "replace")
            raise Failure(f"a good photograph was answered {first.status or 'not at all'}: {text}")
        self.best = likeliest(first)

    def right(self, reply: Reply) -> bool:
        return reply.status == 200 and likeliest(reply) == self.best

    async def metric(self, name: str) -> float | None:
        """The sum of a metric over its labels."""
        return metric((await once(self.port, get("/metrics"))).body.decode("utf-8", "replace"), name)

    async def until_idle(self, patience: float) -> float | None:
        """Seconds until no request is under way and no image waits; None where that takes longer than `patience`."""
        began = time.perf_counter()
        while (passed := time.perf_counter() - began) < patience:
            if (await self.metric("podium_inflight"), await self.metric("podium_queue_depth")) == (0, 0):
                return passed
            await asyncio.sleep(POLL_S)
        return None


def likeliest(reply: Reply) -> int:
    """The class that an answer names first, -1 where it names none."""
    named = reply.answer.get("predictions") or [{}]
    return int(named[0].get("class_id", -1))


@dataclass
class Wish:
    """What to run the campaigns with; `tell` hears how far they are."""

    tag: str
    engine: str
    precision: str
    bodies: Sequence[Body]
    brief: bool
    folder: Path
    tell: Callable[[str], object] = lambda _: None
    _number: Iterator[int] = field(default_factory=count)

    @property
    def settings(self) -> dict[str, str]:
        return {"PODIUM_MODELS": self.tag, "PODIUM_ENGINE": self.engine, "PODIUM_PRECISION": self.precision}

    @property
    def by_size(self) -> list[Body]:
        return sorted(self.bodies, key=lambda body: len(body.data))

    @property
    def request(self) -> bytes:
        """A good one, with the photograph of middle size."""
        body = self.by_size[len(self.bodies) // 2]
        return post(body.data, body.content_type)

    @property
    def smallest(self) -> bytes:
        """A good one, with the photograph that costs a client least."""
        return post(self.by_size[0].data, self.by_size[0].content_type)

    @property
    def store(self) -> Path:
        return find(self.tag).folder.parents[1]

    @asynccontextmanager
    async def server(
        self, store: Path | None = None, request: bytes | None = None, **settings: object
    ) -> AsyncIterator[Server]:
        """`bentoml serve` with these `PODIUM_*` settings, ready and warm from `request`; ended after."""
        wish = self.settings | {f"PODIUM_{name}": str(value) for name, value in settings.items()}
        replica = Replica(free_port(), self.folder / str(next(self._number)), store or self.store, wish)
        server = Server(replica)
        try:
            await server.until_ready()
            await server.warm(request or self.request)
            yield server
        finally:
            server.pool.close()
            await asyncio.to_thread(replica.close)


async def at_rest(server: Server) -> dict[str, float]:
    """Memory, files and threads of the worker once every connection is closed."""
    server.pool.close()
    await server.until_idle(5.0)
    await asyncio.sleep(0.5)
    worker = server.worker()
    return {"rss_mb": server.rss_mb(), "files": worker.num_fds(), "threads": worker.num_threads()}


LOOK_S = 3.0


async def cpu_at_rest(server: Server) -> float:
    """How many cores the service takes while nobody asks."""
    before = server.replica.cpu_seconds()
    await asyncio.sleep(LOOK_S)
    return (server.replica.cpu_seconds() - before) / LOOK_S
