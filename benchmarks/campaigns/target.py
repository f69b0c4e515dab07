"""What a campaign runs against: the service in processes of its own, and the requests that it is sent."""

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
from benchmarks.load.servers import POLL_S, Podium
from benchmarks.load.wire import Pool, Reply, get, metric, once, post
from models.console import Failure
from serving.artifact import find

if TYPE_CHECKING:
    import psutil

# So many good requests before memory is read for the first time.
WARMUP = 50

# How long the processor time of a service that nobody asks is looked at.
LOOK_S = 3.0


class Service(Podium):
    """A service that is observed from outside: over HTTP, and by what the system knows about its worker."""

    def __init__(self, folder: Path, store: Path, settings: dict[str, str]) -> None:
        super().__init__("the service", folder, store, settings)
        self.pool = Pool(self.port)
        self.best = -1  # the class that a good answer names first, once the service is warm

    def worker(self) -> psutil.Process:
        """The process that serves; BentoML's supervisor is its parent. `Failure` while there is none."""
        supervisor, *others = self.processes()
        # The worker's own children decode.
        children = [process for process in others if process.ppid() == supervisor.pid]
        if not children:
            raise Failure("the service has no worker")
        return max(children, key=lambda process: process.memory_info().rss)

    def rss_mb(self) -> float:
        return float(self.worker().memory_info().rss / 1e6)

    def forget_peak(self) -> None:
        """Let `peak_mb` start again from what is held now."""
        Path(f"/proc/{self.worker().pid}/clear_refs").write_text("5")

    def peak_mb(self) -> float:
        """The most the worker held in memory since `forget_peak`, else since its start, as the kernel counts it."""
        status = Path(f"/proc/{self.worker().pid}/status").read_text("ascii")
        peak = re.search(r"^VmHWM:\s*(\d+) kB", status, re.MULTILINE)
        assert peak
        return int(peak[1]) * 1024 / 1e6

    async def ready(self) -> bool:
        return (await once(self.port, get("/readyz"), 5.0)).status == 200

    async def warm(self, request: bytes) -> None:
        """Ask until buffers are filled. The class that the last answer names first is what `right` expects."""
        for _ in range(WARMUP):
            reply = await self.pool.ask(request)
        if reply.status != 200:
            text = reply.body[:200].decode("utf-8", "replace")
            raise Failure(f"a good photograph was answered {reply.outcome}: {text}")
        self.best = likeliest(reply)

    def right(self, reply: Reply) -> bool:
        return reply.status == 200 and likeliest(reply) == self.best

    async def metric(self, name: str) -> float | None:
        """The sum of a metric over its labels."""
        return metric((await once(self.port, get("/metrics"))).body.decode("utf-8", "replace"), name)

    async def until_idle(self, patience: float) -> float | None:
        """Seconds until no request is under way and no image waits; None if that takes longer than `patience`."""
        began = time.perf_counter()
        while (passed := time.perf_counter() - began) < patience:
            if (await self.metric("podium_inflight"), await self.metric("podium_queue_depth")) == (0, 0):
                return passed
            await asyncio.sleep(POLL_S)
        return None

    async def at_rest(self) -> dict[str, float]:
        """Memory, files and threads of the worker once every connection is closed."""
        self.pool.close()
        await self.until_idle(5.0)
        await asyncio.sleep(0.5)
        worker = self.worker()
        return {"rss_mb": self.rss_mb(), "files": worker.num_fds(), "threads": worker.num_threads()}

    async def cores_at_rest(self) -> float:
        """How many cores the service keeps busy while nobody asks."""
        before = self.cpu_seconds()
        await asyncio.sleep(LOOK_S)
        return (self.cpu_seconds() - before) / LOOK_S


def likeliest(reply: Reply) -> int:
    """The class that an answer names first; -1 if it names none."""
    named = reply.answer.get("predictions") or [{}]
    return int(named[0].get("class_id", -1))


@dataclass(frozen=True)
class Target:
    """What to run the campaigns with; `tell` is called with what they are doing."""

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
        """A good request, with the photograph of middle size."""
        body = self.by_size[len(self.bodies) // 2]
        return post(body.data, body.content_type)

    @property
    def smallest(self) -> bytes:
        """A good request, with the photograph that costs a client least."""
        return post(self.by_size[0].data, self.by_size[0].content_type)

    @property
    def store(self) -> Path:
        return find(self.tag).folder.parents[1]

    @asynccontextmanager
    async def service(
        self, store: Path | None = None, request: bytes | None = None, **settings: object
    ) -> AsyncIterator[Service]:
        """`bentoml serve` with these `PODIUM_*` settings, ready, and warmed by `request`; ended after."""
        variables = self.settings | {f"PODIUM_{name}": str(value) for name, value in settings.items()}
        service = Service(self.folder / str(next(self._number)), store or self.store, variables)
        try:
            await service.until(service.ready)
            await service.warm(request or self.request)
            yield service
        finally:
            service.pool.close()
            await asyncio.to_thread(service.close)
