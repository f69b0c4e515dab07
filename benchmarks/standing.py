"""What a service stands: eight campaigns against `bentoml serve` in processes of its own, each with figures and bounds.

The bounds stand before the campaigns they judge. A campaign passes where every one of its checks holds; what could not
be found out does not hold.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import operator
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import count, islice
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import uvloop

from benchmarks import hostile as inputs
from benchmarks.load import Body, arrivals
from benchmarks.measure import ROOT
from benchmarks.peers.compare import free_port
from benchmarks.records import significant
from benchmarks.replicas import Replica
from benchmarks.scale import markdown as as_markdown
from benchmarks.wire import Pool, Reply, Wire, get, metric, once, post
from models.console import Failure, Usage, table
from serving.runtime import choose, cores, find

if TYPE_CHECKING:
    import psutil

START_WITHIN_S = 120.0
POLL_S = 0.02

# So many good requests before memory is read for the first time.
WARMUP = 50

SIGNS: dict[str, Callable[[float, float], bool]] = {"<=": operator.le, ">=": operator.ge, "=": operator.eq}


@dataclass(frozen=True)
class Check:
    """One thing that must hold; `found` None is a figure that could not be had, and does not."""

    what: str
    found: float | None
    sign: str
    bound: float
    unit: str = ""

    @property
    def holds(self) -> bool:
        return self.found is not None and SIGNS[self.sign](self.found, self.bound)


@dataclass
class Campaign:
    """What one campaign came to."""

    name: str
    checks: list[Check]
    figures: dict[str, Any] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        return bool(self.checks) and all(check.holds for check in self.checks)

    def document(self) -> dict[str, Any]:
        checks = [asdict(check) | {"holds": check.holds} for check in self.checks]
        return {
            "name": self.name,
            "passed": self.passed,
            "seconds": round(self.seconds, 1),
            "checks": checks,
            "figures": self.figures,
        }


class Server:
    """A service that runs, asked about itself from outside: over HTTP, and by what the system says of its worker."""

    def __init__(self, replica: Replica) -> None:
        self.replica, self.port = replica, replica.port
        self.pool = Pool(self.port)
        self.best = -1

    def worker(self) -> psutil.Process:
        """The process that serves; BentoML's supervisor is its parent. `Failure` while there is none."""
        children = self.replica.processes()[1:]
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


# A request: when it was sent and when it was done with, in seconds, and what came back.
Done = tuple[float, float, Reply]

# How long a client that was refused, or found the door closed, waits before it asks again.
AGAIN_S = 0.01


async def closed_loop(ask: Callable[[], Awaitable[Reply]], concurrency: int, over: Callable[[], bool]) -> list[Done]:
    """Keep `concurrency` requests in flight until `over`; all of them, answered."""
    done: list[Done] = []

    async def one() -> None:
        while not over():
            sent = time.perf_counter()
            reply = await ask()
            done.append((sent, time.perf_counter(), reply))
            if reply.status != 200:
                await asyncio.sleep(AGAIN_S)

    await asyncio.gather(*(one() for _ in range(concurrency)))
    return done


async def open_loop(ask: Callable[[], Awaitable[Reply]], due: Iterable[float]) -> list[tuple[float, Done]]:
    """Send a request at each time of `due` (seconds from now) without waiting for any; with each, when it was due."""
    began, tasks = time.perf_counter(), list[asyncio.Task[tuple[float, Done]]]()

    async def one(at: float) -> tuple[float, Done]:
        sent = time.perf_counter()
        reply = await ask()
        return at, (sent, time.perf_counter(), reply)

    for at in due:
        # Also a client that is late lets answers in between.
        await asyncio.sleep(max(0.0, began + at - time.perf_counter()))
        tasks.append(asyncio.create_task(one(began + at)))
    return list(await asyncio.gather(*tasks))


def passed(seconds: float) -> Callable[[], bool]:
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end


def percentile(values: Sequence[float], share: float) -> float | None:
    return float(np.percentile(values, share)) if len(values) else None


def taken_ms(done: Iterable[Done]) -> list[float]:
    return [1e3 * (end - begin) for begin, end, _ in done]


def statuses(replies: Iterable[Reply]) -> dict[str, int]:
    """How often each status came, with words for none."""
    counted = Counter(reply.status for reply in replies)
    return {str(status or "no answer"): counted[status] for status in sorted(counted)}


# --- hostile ----------------------------------------------------------------------------------------------------------

AT_LEAST, BRIEF_EVERY = 2000, 25
AT_ONCE = 4
GOOD_EVERY = 50
SLOW_TIMEOUT_S = 5.0

# Less than the settings allow at once: an image of the most pixels is decoded per core (one worker more may), of which
# one of 16 bits takes the most while it is brought down to 8; every upload is held in its chunks and whole.
MAX_PIXELS, MAX_BODY = 50_000_000, 20_000_000
PIXEL_BYTES, UPLOAD_COPIES = 16, 2
# The allocator keeps some of what was given back to it.
KEPT_MB = 100.0

HUGE = 200_000_000
# Bytes a second of the huge bodies: one that is over the limit in time, and one that is not.
PACES = (10_000_000, 1_000_000)
DRIBBLE_S = 0.5  # a byte each


@dataclass
class Slow:
    """What came of the slow connections, and of the good requests beside them."""

    replies: list[Reply]
    good: list[Done]


async def hostile(wish: Wish) -> Campaign:
    async with wish.server(
        TIMEOUT_MS=1000 * SLOW_TIMEOUT_S, MAX_PIXELS=MAX_PIXELS, MAX_BODY_MB=MAX_BODY / 1e6
    ) as server:
        artifact = find(wish.tag)
        cases = inputs.cases(0, artifact.network, artifact.preprocess.shape)
        before = server.rss_mb()
        server.forget_peak()
        asked, good = await send_cases(wish, server, islice(cases, 0, None, BRIEF_EVERY) if wish.brief else cases)
        wish.tell("hostile: slow connections")
        slow = await dribble(wish, server, 10 if wish.brief else 100)
        grown = server.peak_mb() - before
        good += [done[2] for done in slow.good]
        good += [await once(server.port, wish.request) for _ in range(10)]
        await asyncio.sleep(1)
        kept = server.rss_mb() - before
    wrong = [f"{case}: {reply.status or 'no answer'}" for case, reply, allowed in asked if not allowed]
    families: dict[str, list[Reply]] = {}
    for case, reply, _ in asked:
        families.setdefault(case.partition(":")[0], []).append(reply)
    every = [reply for _, reply, _ in asked] + slow.replies
    allowed = (cores() * MAX_PIXELS * PIXEL_BYTES + (AT_ONCE + 2 * len(PACES)) * MAX_BODY * UPLOAD_COPIES) / 1e6
    return Campaign(
        "hostile",
        [
            Check("requests sent", len(every), ">=", AT_LEAST / BRIEF_EVERY if wish.brief else AT_LEAST),
            Check("answered 5xx", sum(reply.status >= 500 for reply in every), "=", 0),
            Check("otherwise answered as they may not be, or dropped", len(wrong), "=", 0),
            Check(
                "slow heads and bodies not answered 408, 413 or 431",
                sum(reply.status not in (408, 413, 431) for reply in slow.replies),
                "=",
                0,
            ),
            Check("good requests among them", len(good), ">=", 20),
            Check("of these answered wrongly", sum(not server.right(reply) for reply in good), "=", 0),
            Check("growth of the worker's peak memory", grown, "<=", allowed, "MB"),
            Check("of it still held afterwards", kept, "<=", KEPT_MB, "MB"),
        ],
        {
            "statuses": statuses(every),
            "by_family": {family: statuses(replies) for family, replies in families.items()},
            "wrong": wrong[:50],
            "good_p99_ms_while_slow": percentile(taken_ms(slow.good), 99),
            "slow": statuses(slow.replies),
            "rss_mb": before,
        },
    )


async def send_cases(
    wish: Wish, server: Server, cases: Iterator[inputs.Case]
) -> tuple[list[tuple[str, Reply, bool]], list[Reply]]:
    """The name of each case, its answer, and whether that is allowed; and the answers to good requests in between."""
    asked, good = list[tuple[str, Reply, bool]](), list[Reply]()

    async def one() -> None:
        for case in cases:
            reply = await once(server.port, case.request, 2 * SLOW_TIMEOUT_S)
            asked.append((f"{case.family}: {case.name}", reply, case.allows(reply.status)))
            if len(asked) % GOOD_EVERY == 0:
                good.append(await server.pool.ask(wish.request))
                wish.tell(f"hostile: {len(asked):,} requests")

    await asyncio.gather(*(one() for _ in range(AT_ONCE)))
    return asked, good


async def dribble(wish: Wish, server: Server, many: int) -> Slow:
    """Connections that send as slowly as they can, held open all at once, and good requests meanwhile."""
    over = asyncio.Event()

    async def slowly(head: str, piece: bytes, pause: float) -> Reply:
        """What is answered where `head` is followed by piece after piece."""
        wire = await Wire.to(server.port)
        wire.send(f"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\n{head}".encode())
        answer = asyncio.create_task(wire.reply(4 * SLOW_TIMEOUT_S))
        for _ in range(HUGE // len(piece)):
            wire.send(piece)
            await asyncio.wait({answer}, timeout=pause)
            if answer.done() or not wire.open:
                break
            await wire.drained()
        found = await answer
        wire.close()
        return found

    without_end = "X-Slow: "
    connections = [slowly(without_end, b"a", DRIBBLE_S) for _ in range(many)]
    connections += [slowly("Content-Length: 10000\r\n\r\n", b"a", DRIBBLE_S) for _ in range(many)]
    for pace in PACES:
        piece, pause = bytes(pace // 20), 1 / 20
        chunk = b"%x\r\n%s\r\n" % (len(piece), piece)
        connections += [
            slowly(without_end, b"a" * len(piece), pause),
            slowly("Transfer-Encoding: chunked\r\n\r\n", chunk, pause),
            slowly(f"Content-Length: {HUGE}\r\n\r\n", piece, pause),
        ]
    good: list[Done] = []

    async def ask() -> None:
        while not over.is_set():
            good.append(await timed(once(server.port, wish.request)))
            await asyncio.sleep(DRIBBLE_S / 10)

    asking = asyncio.create_task(ask())
    replies = list(await asyncio.gather(*connections))
    over.set()
    await asking
    return Slow(replies, good)


async def timed(ask: Awaitable[Reply]) -> Done:
    sent = time.perf_counter()
    reply = await ask
    return sent, time.perf_counter(), reply


# --- overload ---------------------------------------------------------------------------------------------------------

TIMES = 10
FULL = 16  # in flight when the capacity is measured
DEADLINE_S = 2.0
# A refusal is to come at once, on a machine of which every core is taken.
REFUSED_P99_MS = 500.0
BIN_S = 0.1
BACK, BACK_WITHIN_S = 0.9, 1.0
# The rate is back at the first bin from which on it holds for so many, since an engine answers by the batch.
BACK_BINS = 5


@dataclass
class Flood:
    """An overload as it went: the closed loop of `calm` seconds before it; what was sent in `seconds`, and when it was
    due; when it `ended`; and the closed loop from then on.
    """

    before: list[Done]
    calm: float
    outcomes: list[tuple[float, Done]]
    seconds: float
    ended: float
    rest: list[Done]

    @property
    def capacity(self) -> float:
        """Answers per second before it."""
        return sum(reply.status == 200 for *_, reply in self.before) / self.calm

    def judged(self) -> Campaign:
        sent = [begin for _, (begin, *_) in self.outcomes]
        # A client that fell behind has offered less: it took longer over as many.
        offered = len(sent) / max(self.seconds, max(sent) - min(sent))
        accepted = [1e3 * (end - due) for due, (_, end, reply) in self.outcomes if reply.status == 200]
        refused = [done for _, done in self.outcomes if done[2].status in (429, 503)]
        mute = sum(reply.header(b"retry-after") is None for *_, reply in refused)
        back = back_after([end - self.ended for _, end, reply in self.rest if reply.status == 200], self.capacity)
        return Campaign(
            "overload",
            [
                Check("offered, times the capacity", offered / self.capacity if self.capacity else None, ">=", TIMES),
                Check("p99 of accepted requests", percentile(accepted, 99), "<=", 1e3 * DEADLINE_S, "ms"),
                Check("requests refused", len(refused), ">=", 1),
                Check("of these without Retry-After", mute, "=", 0),
                Check("p99 of refusals", percentile(taken_ms(refused), 99), "<=", REFUSED_P99_MS, "ms"),
                Check("lost", len(sent) - len(accepted) - len(refused), "=", 0),
                Check(f"until {BACK:.0%} of the capacity is back", back, "<=", BACK_WITHIN_S, "s"),
            ],
            {
                "capacity_per_s": self.capacity,
                "capacity_p99_ms": percentile(taken_ms(self.before), 99),
                "offered_per_s": offered,
                "answered_per_s": len(accepted) / self.seconds,
                "seconds": self.seconds,
                "statuses": statuses(reply for _, (*_, reply) in self.outcomes),
                "accepted_p50_ms": percentile(accepted, 50),
                "refused_p50_ms": percentile(taken_ms(refused), 50),
                "client_lag_p99_ms": percentile([1e3 * (begin - due) for due, (begin, *_) in self.outcomes], 99),
            },
        )


async def overload(wish: Wish) -> Campaign:
    seconds, calm = (5.0, 3.0) if wish.brief else (60.0, 10.0)
    request = wish.smallest
    async with wish.server(request=request, TIMEOUT_MS=1000 * DEADLINE_S) as server:

        async def ask() -> Reply:
            return await server.pool.ask(request)

        wish.tell("overload: measuring the capacity")
        flood = Flood(await closed_loop(ask, FULL, passed(calm)), calm, [], seconds, 0.0, [])
        wish.tell(f"overload: {TIMES} times {flood.capacity:.0f} per second for {seconds:g} s")
        cpu = time.process_time()
        # A little more, since arrivals at random may be fewer than their rate.
        sending = asyncio.create_task(open_loop(ask, arrivals(1.02 * TIMES * flood.capacity, seconds)))
        await asyncio.sleep(seconds)
        cpu = (time.process_time() - cpu) / seconds
        flood.ended = time.perf_counter()
        flood.rest = await closed_loop(ask, FULL, passed(calm))
        flood.outcomes = await sending
    found = flood.judged()
    size = len(wish.by_size[0].data)
    found.figures |= {"client_cores": cpu, "body_bytes": size, "most_at_once": server.pool.most}
    return found


def back_after(answered: Sequence[float], capacity: float) -> float | None:
    """Seconds until answers, at these times, come at `BACK` of `capacity` per second again; None if they never do."""
    if not answered:
        return None
    bins, _ = np.histogram(answered, np.arange(0.0, max(answered) + BIN_S, BIN_S))
    for first in range(len(bins) - BACK_BINS + 1):
        if bins[first : first + BACK_BINS].mean() >= BACK * capacity * BIN_S:
            return first * BIN_S
    return None


# --- terminated and killed --------------------------------------------------------------------------------------------

# As deploy/base/deployment.yaml has it.
GRACE_S = 30.0
BEFORE_S = 2.0
UNDER_WAY = 32


async def terminated(wish: Wish) -> Campaign:
    async with wish.server() as server:
        request, process = wish.request, server.replica.process
        ended = asyncio.Event()
        done: list[tuple[float, bool, Reply]] = []

        async def client() -> None:
            """Asks on one connection after another until it is turned away."""
            wire, reply = None, Reply(200)
            while reply.status == 200 and not ended.is_set():
                if wire is None or not wire.open:
                    try:
                        wire = await Wire.to(server.port)
                    except OSError:
                        return  # the door is closed, and this client knows it
                known, sent = wire.answers > 0, time.perf_counter()
                reply = await wire.ask(request)
                done.append((sent, known, reply))
            if wire is not None:
                wire.close()

        clients = [asyncio.create_task(client()) for _ in range(UNDER_WAY)]
        half = await Wire.to(server.port)
        half.send(request[: len(request) // 2])
        await asyncio.sleep(BEFORE_S)
        signalled = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        not_ready = await until_not_ready(server)
        late = await once(server.port, request)
        half.send(request[len(request) // 2 :])
        finished = await half.reply()
        try:
            status: int | None = await asyncio.to_thread(process.wait, GRACE_S)
        except subprocess.TimeoutExpired:
            status = None
        exit_s = time.perf_counter() - signalled
        ended.set()
        await asyncio.gather(*clients)
    mine = [reply for sent, _, reply in done if sent < signalled]
    later = [reply for sent, _, reply in done if sent >= signalled]
    lost = sum(not (reply.status == 200 or turned_away(reply)) for reply in mine)
    # One that was never answered on it may have knocked at a door that was just closed.
    dropped = sum(reply.status == 0 for sent, known, reply in done if known and sent >= signalled)
    return Campaign(
        "terminated",
        [
            Check("requests under way or before", len(mine), ">=", UNDER_WAY),
            Check("of these lost", lost, "=", 0),
            Check("a request half sent at SIGTERM, answered rightly", server.right(finished), "=", True),
            Check("SIGTERM until readyz says 503", not_ready, "<=", 1.0, "s"),
            Check("a request after that, refused with Retry-After", turned_away(late), "=", True),
            Check("later ones dropped on a connection in use", dropped, "=", 0),
            Check("SIGTERM until the end", exit_s if status is not None else None, "<=", GRACE_S, "s"),
            Check("exit status", status, "=", 0),
        ],
        {"before": statuses(mine), "after": statuses(later)},
    )


def turned_away(reply: Reply) -> bool:
    return reply.status == 503 and reply.header(b"retry-after") is not None


async def until_not_ready(server: Server) -> float | None:
    """Seconds until readyz says 503; None where the door is closed first, or never."""
    began = time.perf_counter()
    while time.perf_counter() - began < GRACE_S:
        status = (await once(server.port, get("/readyz"), 5.0)).status
        if status != 200:
            return time.perf_counter() - began if status == 503 else None
        await asyncio.sleep(POLL_S / 4)
    return None


RATE = 10.0  # per second, to each of two services
KILLED_BACK_S = 10.0
# Of the other service while the first one starts again beside it, which takes a core for some seconds.
OTHER_P99_MS = 250.0


async def killed(wish: Wish) -> Campaign:
    seconds = 5.0 if wish.brief else 15.0
    async with wish.server(THREADS=1) as one, wish.server(THREADS=1) as other:

        def load(server: Server, seed: int) -> Awaitable[list[tuple[float, Done]]]:
            due = arrivals(RATE, 2 * seconds, seed)
            return asyncio.create_task(open_loop(lambda: server.pool.ask(wish.request), due))

        loads = load(one, 1), load(other, 2)
        await asyncio.sleep(seconds)
        worker = one.worker()
        dead = time.perf_counter()
        worker.send_signal(signal.SIGKILL)
        outcomes, beside = [await sent for sent in loads]
        again = one.right(await once(one.port, wish.request))
    back = min((done[1] for _, done in outcomes if done[0] > dead and done[2].status == 200), default=None)
    # From the kill on, what was under way with it: the kernel holds what comes until there is a worker again.
    lost = [due for due, (*_, reply) in outcomes if reply.status != 200]
    during = [1e3 * (end - due) for due, (_, end, reply) in beside if due >= dead]
    calm = [1e3 * (end - due) for due, (_, end, reply) in beside if due < dead]
    return Campaign(
        "killed",
        [
            Check(
                "SIGKILL of the worker until it answers again",
                None if back is None else back - dead,
                "<=",
                KILLED_BACK_S,
                "s",
            ),
            Check("a request after that, answered rightly", again, "=", True),
            Check("requests lost that were not under way", sum(due > dead for due in lost), "=", 0),
            Check(
                "another service's requests not answered rightly", sum(not other.right(d[2]) for _, d in beside), "=", 0
            ),
            Check("another service's p99 meanwhile", percentile(during, 99), "<=", OTHER_P99_MS, "ms"),
        ],
        {
            "statuses": statuses(done[2] for _, done in outcomes),
            "lost_under_way": sum(due <= dead for due in lost),
            "slowest_ms": max(1e3 * (done[1] - due) for due, done in outcomes),
            "other_p99_ms_before": percentile(calm, 99),
            "other_answered": len(beside),
        },
    )


# --- soak -------------------------------------------------------------------------------------------------------------

REQUESTS, BRIEF_REQUESTS = 100_000, 2000
SAMPLES = 100
FRESH_EVERY, BAD_EVERY = 100, 50
# The share that comes before the first look: what a service needs once, it has then.
WARM_SHARE = 0.1
SLOPE_MB = 2.0  # per 10,000 requests
NOISE_MB = 5.0  # in all, by which the allocator moves anyway: of a short soak, the slope is that


def bad_requests(body: Body) -> list[bytes]:
    """One of each kind of error that a client makes every day."""
    return [
        post(body.data[: len(body.data) // 2]),
        post(b"not a picture"),
        post(body.data, "text/plain"),
        post(body.data, target="/classify?top_k=0"),
        post(body.data, target="/classify?model=missing"),
        post(b"--B\r\nbroken", "multipart/form-data; boundary=B"),
        get("/nothing"),
    ]


async def soak(wish: Wish, requests: int | None = None) -> Campaign:
    total = requests or (BRIEF_REQUESTS if wish.brief else REQUESTS)
    async with wish.server() as server:
        goods = [post(body.data, body.content_type) for body in wish.bodies]
        best = [likeliest(await server.pool.ask(good)) for good in goods]
        bads = bad_requests(wish.bodies[0])
        sent, wrong, memory = 0, Counter[str](), list[tuple[int, float]]()

        async def ask() -> Reply:
            nonlocal sent
            sent = (n := sent) + 1
            if n % (total // SAMPLES) == 0:
                memory.append((n, server.rss_mb()))
                wish.tell(f"soak: {n:,} of {total:,} requests")
            bad = n % BAD_EVERY == BAD_EVERY - 1
            request = bads[n // BAD_EVERY % len(bads)] if bad else goods[n % len(goods)]
            reply = await (once(server.port, request) if n % FRESH_EVERY == 0 else server.pool.ask(request))
            right = (
                400 <= reply.status < 500 if bad else (reply.status, likeliest(reply)) == (200, best[n % len(goods)])
            )
            if not right:
                wrong[f"{'bad' if bad else 'good'}: {reply.status or 'no answer'}"] += 1
            return reply

        first = await closed_loop(ask, FULL, lambda: sent >= WARM_SHARE * total)
        early = await at_rest(server)
        began = time.perf_counter()
        done = first + await closed_loop(ask, FULL, lambda: sent >= total)
        seconds = time.perf_counter() - began
        late = await at_rest(server)
    warm = [(n, mb) for n, mb in memory if n >= WARM_SHARE * total]
    slope = float(np.polyfit([n / 10_000 for n, _ in warm], [mb for _, mb in warm], 1)[0])
    return Campaign(
        "soak",
        [
            Check("requests", len(done), ">=", total),
            Check("answered wrongly", sum(wrong.values()), "=", 0),
            Check(
                "memory gained per 10,000 requests",
                max(0.0, slope),
                "<=",
                max(SLOPE_MB, NOISE_MB * 10_000 / total),
                "MB",
            ),
            Check("open files gained since a tenth of them", late["files"] - early["files"], "<=", 0),
            Check("threads gained since a tenth of them", late["threads"] - early["threads"], "<=", 0),
        ],
        {
            "statuses": statuses(reply for *_, reply in done),
            "wrong": dict(wrong),
            "per_s": (len(done) - len(first)) / seconds,
            "p99_ms": percentile(taken_ms(done), 99),
            "at_a_tenth": early,
            "at_the_end": late,
            "rss_mb": [[n, round(mb, 1)] for n, mb in memory],
        },
    )


async def at_rest(server: Server) -> dict[str, float]:
    """Memory, files and threads of the worker once every connection is closed."""
    server.pool.close()
    await server.until_idle(5.0)
    await asyncio.sleep(0.5)
    worker = server.worker()
    return {"rss_mb": server.rss_mb(), "files": worker.num_fds(), "threads": worker.num_threads()}


# --- swaps ------------------------------------------------------------------------------------------------------------

SWAPS, BRIEF_SWAPS = 20, 6
SWAP_WARMUP = 2
SWAP_LOAD = 8
SWAP_GAIN_MB = 40.0
TOKEN = "standing"  # noqa: S105
SECOND = "second"


async def swaps(wish: Wish) -> Campaign:
    swaps_, group = (BRIEF_SWAPS, 2) if wish.brief else (SWAPS, 5)
    artifact = find(wish.tag)
    store = wish.folder / "two-versions"
    for version in (artifact.version, SECOND):
        copied(artifact.folder, store, artifact.network, version)
    tag = f"{artifact.network}:{artifact.version}"
    over, statuses_of_loads, memory, took = False, list[int](), list[float](), list[float]()
    async with wish.server(store, MODELS=tag, ADMIN_TOKEN=TOKEN) as server:

        async def swap() -> None:
            nonlocal over
            try:
                for i in range(SWAP_WARMUP + swaps_):
                    wish.tell(f"swaps: {i} of {SWAP_WARMUP + swaps_}")
                    target = f"/models/{artifact.network}/load?version={(SECOND, artifact.version)[i % 2]}"
                    begin, end, reply = await timed(
                        once(server.port, post(b"", "text/plain", target, ("Authorization", f"Bearer {TOKEN}")), 120.0)
                    )
                    statuses_of_loads.append(reply.status)
                    took.append(end - begin)
                    await asyncio.sleep(0.5)
                    memory.append(server.rss_mb())
            finally:
                over = True

        swapping = asyncio.create_task(swap())
        done = await closed_loop(lambda: server.pool.ask(wish.request), SWAP_LOAD, lambda: over)
        await swapping
    first, last = memory[SWAP_WARMUP : SWAP_WARMUP + group], memory[-group:]
    versions = Counter(str(reply.answer.get("version")) for *_, reply in done if reply.status == 200)
    return Campaign(
        "swaps",
        [
            Check("swaps", sum(status == 200 for status in statuses_of_loads), ">=", SWAP_WARMUP + swaps_),
            Check("versions that answered", len(versions), "=", 2),
            Check("requests meanwhile", len(done), ">=", SWAP_WARMUP + swaps_),
            Check("of these lost, or answered wrongly", sum(not server.right(reply) for *_, reply in done), "=", 0),
            Check(
                f"memory of the last {group} over the first {group}",
                median(last) - median(first),
                "<=",
                SWAP_GAIN_MB,
                "MB",
            ),
        ],
        {
            "swap_p50_s": percentile(took, 50),
            "slowest_ms": max(taken_ms(done)),
            "p99_ms": percentile(taken_ms(done), 99),
            "by_version": dict(versions),
            "rss_mb": [round(mb, 1) for mb in memory],
        },
    )


def copied(folder: Path, store: Path, network: str, version: str) -> Path:
    """The artifact in `folder` once more in `store` under another version, its files shared where they can be."""
    target = store / network / version
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copytree(folder, target, copy_function=link)
    rewrite(
        target / "model.yaml", re.sub(r"(?m)^version: .*$", f"version: {version}", (folder / "model.yaml").read_text())
    )
    (target.parent / "latest").write_text(version)
    return target


def link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system
        shutil.copy2(source, target)


def rewrite(path: Path, text: str | bytes) -> None:
    """`path` with another content, and not what it shares its content with."""
    path.unlink()
    path.write_bytes(text.encode() if isinstance(text, str) else text)


# --- hangups ----------------------------------------------------------------------------------------------------------

CLIENTS, BRIEF_CLIENTS = 500, 50
LEFT_WITHIN_S = 2.0
IDLE_CORES = 0.05
LOOK_S = 3.0
NEXT_TIMES = 2.0


async def hangups(wish: Wish) -> Campaign:
    many = BRIEF_CLIENTS if wish.brief else CLIENTS
    request, figures = wish.request, dict[str, Any]()
    checks: list[Check] = []
    async with wish.server(MAX_QUEUE=2 * CLIENTS) as server:
        quiet = await cpu_at_rest(server)
        usual = [await timed(server.pool.ask(request)) for _ in range(20)]
        for name, part in (("half a body", request[: len(request) // 2]), ("a whole body", request)):
            wish.tell(f"hangups: after {name}")
            cpu, images = server.replica.cpu_seconds(), await server.metric("podium_batch_size_sum") or 0.0
            wires = [await Wire.to(server.port) for _ in range(many)]
            for wire in wires:
                wire.send(part)
            await asyncio.sleep(0.02)
            for wire in wires:
                wire.close()
            left = await server.until_idle(60.0)
            spent = server.replica.cpu_seconds() - cpu
            rest = await cpu_at_rest(server)
            following = [await timed(server.pool.ask(request)) for _ in range(20)]
            ran = (await server.metric("podium_batch_size_sum") or 0.0) - images - len(following)
            ratio = median(taken_ms(following)) / median(taken_ms(usual))
            checks += [
                Check(f"{name}: until nothing waits nor runs", left, "<=", LEFT_WITHIN_S, "s"),
                Check(f"{name}: cores busy after that", max(0.0, rest - quiet), "<=", IDLE_CORES),
                Check(f"{name}: the next requests' time, of what is usual", ratio, "<=", NEXT_TIMES),
                Check(
                    f"{name}: next requests answered wrongly", sum(not server.right(d[2]) for d in following), "=", 0
                ),
            ]
            figures[name] = {"clients": many, "cpu_ms_each": 1e3 * spent / many, "images_run": ran}
    return Campaign("hangups", checks, figures | {"usual_p50_ms": median(taken_ms(usual)), "cores_at_rest": quiet})


async def cpu_at_rest(server: Server) -> float:
    """How many cores the service takes while nobody asks."""
    before = server.replica.cpu_seconds()
    await asyncio.sleep(LOOK_S)
    return (server.replica.cpu_seconds() - before) / LOOK_S


# --- misfits ----------------------------------------------------------------------------------------------------------

# $1: where a disk of 64 kB is mounted and filled; $2: the store; then the command.
FULL_DISK = """set -e; unset TMPDIR; mount -t tmpfs -o size=64k podium "$1"
mkdir "$1/home"; ln -s "$2" "$1/home/models"
head -c 1000000 /dev/zero > "$1/fill" 2> /dev/null || export TMPDIR="$1"; test -n "$TMPDIR"; shift 2; exec "$@" """
MISFIT_WITHIN_S = 30.0
NAMESPACE = ["unshare", "--map-root-user", "--mount"]


@dataclass(frozen=True)
class Misfit:
    """A start that cannot be: what is wrong, and what the one line about it must say."""

    what: str
    says: str
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    wrapped: Sequence[str] = ()
    home: Path | None = None
    may_serve: bool = False  # all the same, for it may not need what is wrong


def misfits_of(wish: Wish, taken: int) -> Iterator[Misfit]:
    """Each with a store of its own where it needs one; `taken` is a port somebody listens on."""
    artifact = find(wish.tag)
    chosen = choose(artifact, wish.engine, wish.precision)
    graph = artifact.graphs()[chosen.engine, chosen.precision]

    def home(name: str) -> tuple[Path, Path]:
        """A home whose store holds one copy of the artifact, and the copy."""
        made = wish.folder / name
        return made, copied(artifact.folder, made / "models", artifact.network, artifact.version)

    yield Misfit("a setting that is no number", r"PODIUM_MAX_BATCH: 'many' must be", {"PODIUM_MAX_BATCH": "many"})
    yield Misfit("a setting out of its range", r"PODIUM_TIMEOUT_MS: '0' must be", {"PODIUM_TIMEOUT_MS": "0"})
    yield Misfit("an engine nobody knows", r"PODIUM_ENGINE: 'cuda' must be one of", {"PODIUM_ENGINE": "cuda"})
    yield Misfit("a model that is not there", r"`python -m export missing` makes one", {"PODIUM_MODELS": "missing"})
    empty = wish.folder / "empty-home"
    (empty / "models").mkdir(parents=True)
    yield Misfit("an empty store", r"python -m export", {"PODIUM_MODELS": ""}, home=empty)
    yield Misfit("a port that is taken", rf"port {taken}: .*choose another", port=taken)

    where, folder = home("damaged")
    body = bytearray((folder / graph).read_bytes())
    body[len(body) // 2] ^= 1
    rewrite(folder / graph, bytes(body))
    yield Misfit(
        "a model file with one bit turned over", rf"{re.escape(graph)} has sha256 .*export it again", home=where
    )

    where, folder = home("lacking")
    (folder / graph).unlink()
    yield Misfit("a model file that is gone", rf"{re.escape(graph)} is missing .*export it again", home=where)

    # What a full disk leaves of an export that nobody looked at: the record is of what was written.
    where, folder = home("half")
    half = (folder / graph).read_bytes()[: (folder / graph).stat().st_size // 2]
    rewrite(folder / graph, half)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["files"][graph]["sha256"] = hashlib.sha256(half).hexdigest()
    rewrite(folder / "manifest.json", json.dumps(manifest))
    yield Misfit("half a model file, with the sha256 of that half", rf"{re.escape(graph)}.*export it again", home=where)

    if can_mount():
        disk = wish.folder / "full-disk"
        disk.mkdir()
        wrapped = [*NAMESPACE, "sh", "-c", FULL_DISK, "sh", str(disk), str(wish.store)]
        yield Misfit("a disk that is full", r"(?i)space|full", wrapped=wrapped, home=disk / "home", may_serve=True)


def can_mount() -> bool:
    """Whether a small file system can be mounted here, for one process alone."""
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "podium", "/mnt"]
    return (
        shutil.which("unshare") is not None and not subprocess.run(command, capture_output=True, check=False).returncode
    )


SERVES = "serves"


async def start(wish: Wish, misfit: Misfit) -> tuple[int | str, list[str]]:
    """What became of a start with `misfit`, its exit status where it ended, and the lines it said on stderr."""
    home = misfit.home or wish.folder / "misfit-home"
    if misfit.home is None and not home.exists():
        home.mkdir()
        (home / "models").symlink_to(wish.store, target_is_directory=True)
    environment = {**os.environ, **wish.settings, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    bentoml, port = str(Path(sys.executable).with_name("bentoml")), misfit.port or free_port()
    command = [bentoml, "serve", "service:Podium", "--host", "127.0.0.1", "--port", str(port)]
    said = wish.folder / "said"
    with said.open("w") as output:
        process = subprocess.Popen(
            [*misfit.wrapped, *command], cwd=ROOT, env=environment | dict(misfit.settings),
            stdout=subprocess.DEVNULL, stderr=output, start_new_session=True,
        )  # fmt: skip
    deadline, became = time.monotonic() + MISFIT_WITHIN_S, "neither ended nor served"
    while process.poll() is None and time.monotonic() < deadline:
        if not misfit.port and (await once(port, wish.request, 5.0)).status == 200:
            became = SERVES
            break
        await asyncio.sleep(POLL_S)
    ended = process.poll()
    kill_all(process)
    return became if ended is None else ended, said.read_text("utf-8", "replace").strip().splitlines()


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """End it and the worker that it goes on starting, which is in a session of its own."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(process.pid)
        for one in [own, *own.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


async def misfits(wish: Wish) -> Campaign:
    rows, checks = dict[str, Any](), list[Check]()
    with socket.create_server(("127.0.0.1", 0)) as other:
        for misfit in misfits_of(wish, other.getsockname()[1]):
            wish.tell(f"misfits: {misfit.what}")
            became, lines = await start(wish, misfit)
            told = isinstance(became, int) and became and len(lines) == 1 and re.search(misfit.says, lines[0])
            rows[misfit.what] = {
                "became": became,
                "lines": len(lines),
                "says": [anonymous(x, wish) for x in lines[-3:]],
            }
            right = bool(told) or (misfit.may_serve and became == SERVES)
            how = "told in one line with its repair" + (", or served" if misfit.may_serve else "")
            checks.append(Check(f"{misfit.what}: {how}", right, "=", True))
    if not any("disk" in what for what in rows):
        rows["a disk that is full"] = "not run: no file system can be mounted here (unshare, user namespaces)"
    return Campaign("misfits", checks, rows)


def anonymous(line: str, wish: Wish) -> str:
    """`line` without this machine's folders."""
    return line.replace(str(wish.folder), "...").replace(str(wish.store), "...")[:300]


# --- all of them ------------------------------------------------------------------------------------------------------

CAMPAIGNS: dict[str, Callable[[Wish], Coroutine[Any, Any, Campaign]]] = {
    "hostile": hostile,
    "overload": overload,
    "terminated": terminated,
    "killed": killed,
    "soak": soak,
    "swaps": swaps,
    "hangups": hangups,
    "misfits": misfits,
}


def run(
    names: Sequence[str],
    tag: str,
    engine: str,
    precision: str,
    bodies: Sequence[Body],
    brief: bool,
    tell: Callable[[str], object] = lambda _: None,
) -> Iterator[Campaign]:
    """The campaigns called `names`, one after the other; one that cannot go on has failed, and says why."""
    open_files()
    with TemporaryDirectory(prefix="podium-standing-") as folder:
        wish = Wish(tag, engine, precision, bodies, brief, Path(folder), tell)
        for name in names:
            tell(name)
            began = time.perf_counter()
            try:
                found = uvloop.run(CAMPAIGNS[name](wish))
            except (Failure, OSError) as error:
                found = Campaign(name, [Check("went to its end", False, "=", True)], {"reason": str(error)})
            found.seconds = time.perf_counter() - began
            yield found


def open_files() -> None:
    """As many files as the system lets this process and its servers have: each connection is one in both."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def line(campaign: Mapping[str, Any]) -> str:
    """One campaign in a line."""
    failed = [check for check in campaign["checks"] if not check["holds"]]
    said = "; ".join(f"{c['what']}: {value(c['found'], c['unit'])}, not {bound(c)}" for c in failed)
    if reason := campaign["figures"].get("reason"):
        said = f"{said} ({reason})"
    verdict = f"failed: {said}" if failed else f"passed, {len(campaign['checks'])} checks"
    return f"{campaign['name']:<10}  {campaign['seconds']:6.1f} s  {verdict}"


def value(found: float | None, unit: str) -> str:
    if found is None:
        return "not found out"
    if isinstance(found, bool):
        return "yes" if found else "no"
    text = f"{found:,}" if isinstance(found, int) or found == int(found) else significant(found)
    return f"{text} {unit}".rstrip()


def bound(check: Mapping[str, Any]) -> str:
    words = {"<=": "at most ", ">=": "at least ", "=": ""}
    return f"{words[check['sign']]}{value(check['bound'], check['unit'])}"


HEADER = ("campaign", "what was looked at", "found", "must be", "verdict")


def rows(campaigns: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    return [
        (
            campaign["name"] if i == 0 else "", check["what"], value(check["found"], check["unit"]), bound(check),
            "holds" if check["holds"] else "FAILS",
        )
        for campaign in campaigns
        for i, check in enumerate(campaign["checks"])
    ]  # fmt: skip


def summary(document: Mapping[str, Any]) -> str:
    """What was found, for the terminal."""
    return table(rows(document["campaigns"]), HEADER, right=(2, 3))


def markdown(document: Mapping[str, Any]) -> str:
    """What was found, for docs/standing.md."""
    here = document["environment"]
    settings = "in brief form" if here["settings"] == "brief" else "in full"
    said = (
        f"{document['network']} {document['engine']} {document['precision']}, {settings}, {here['cores']} cores "
        f"({here['cpu']}), {here['date'][:10]}:"
    )
    return f"{said}\n\n{as_markdown(HEADER, rows(document['campaigns']), left=2)}"


def read(path: Path) -> dict[str, Any]:
    """The result file at `path`; `Usage` for any other."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Usage(f"cannot read {path} ({error.strerror}); `stand TAG --out FILE` writes such files") from error
    except ValueError as error:
        raise Usage(f"{path} is not JSON ({error})") from error
    if not isinstance(found, dict) or not {"environment", "campaigns"} <= found.keys():
        raise Usage(f"{path} holds no campaigns; `stand TAG --out FILE` writes such files")
    return found
