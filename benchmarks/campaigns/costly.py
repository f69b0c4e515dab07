"""Images that cost as much as they can, one by one and all at once, with good requests and slow readers beside."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

from benchmarks.campaigns import costly_images
from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.connections import SLOW, limit_address_space, slow_reader
from benchmarks.campaigns.loops import Done, percentile, statuses, taken_ms, timed
from benchmarks.campaigns.target import Server, Wish
from benchmarks.load.wire import Reply, get, once, post
from serving.limits import Limits, most_memory
from serving.runtime import cores

MAX_PIXELS, MAX_BODY, IMAGE_CPU_S, TIMEOUT_S = 50_000_000, 20_000_000, 4.0, 10.0
BRIEF_SIDE = 1500
# Beside the decoder's own: a new process for one that was ended, the body on its way, one look at the head.
ASIDE_S = 1.5
# The answers that a costly image may get: it fails alone, by itself or because too many like it wait.
MAY_BE = (200, 413, 422, 429, 504)
# At once, so many clients that send nothing else; each sends the corpus so many times.
AT_ONCE, ROUNDS = 4, 2
GOOD_P99_MS = 2000.0
GOOD_PAUSE_S = 0.05
POLL_S = 0.1
# What a container of 2 GiB has; its processes together must stay below.
TWO_GIB_MB = 2**31 / 1e6
# The longest request, then what a shutdown grants to what has not ended (`serving.classify.GRACE`, twice), with room.
END_S = TIMEOUT_S + 8.0


@dataclass
class Beside:
    """What was seen from outside while costly images were sent."""

    good: list[Done] = field(default_factory=list)
    unready: int = 0
    looks: int = 0
    memory_mb: float = 0.0


async def costly(wish: Wish) -> Campaign:
    side = BRIEF_SIDE if wish.brief else costly_images.SIDE
    async with wish.server(
        MAX_PIXELS=MAX_PIXELS, MAX_BODY_MB=MAX_BODY / 1e6, IMAGE_CPU_MS=1e3 * IMAGE_CPU_S, TIMEOUT_MS=1e3 * TIMEOUT_S
    ) as server:
        before = server.replica.memory_mb()
        corpus, spent, alone = await one_by_one(wish, server, side)
        wish.tell(f"costly: all at once, with {SLOW} slow readers and 2 GiB of address space")
        limit_address_space(server)
        together, beside = await all_at_once(wish, server, corpus)
        exit_s = await ended_in_time(server, corpus)
    replies = [*alone.values(), *together]
    wrong = [f"{name}: {reply.status or 'no answer'}" for name, reply in alone.items() if reply.status not in MAY_BE]
    allowed = (most_memory(Limits(MAX_PIXELS, IMAGE_CPU_S), MAX_BODY, cores()) + (AT_ONCE + 1) * 2 * MAX_BODY) / 1e6
    return Campaign(
        "costly",
        [
            Check("images of every format, as costly as they can be", len(corpus), ">=", 50),
            Check(
                "answered as they may not be, or dropped", sum(r.status not in MAY_BE for r in replies), "=", 0
            ),
            Check("processor time of the costliest", max(spent.values()), "<=", IMAGE_CPU_S + ASIDE_S, "s"),
            Check("good requests beside them", len(beside.good), ">=", 20),
            Check("of these answered wrongly", sum(not server.right(done[2]) for done in beside.good), "=", 0),
            Check("p99 of these", percentile(taken_ms(beside.good), 99), "<=", GOOD_P99_MS, "ms"),
            Check("looks at readyz that did not say 200", beside.unready, "=", 0),
            Check("growth of all processes' memory", beside.memory_mb - before, "<=", allowed, "MB"),
            Check("all processes' memory", beside.memory_mb, "<=", TWO_GIB_MB, "MB"),
            Check("SIGTERM among them until the end", exit_s, "<=", END_S, "s"),
        ],
        {
            "statuses": statuses(replies),
            "wrong": wrong[:50],
            "cpu_seconds": {name: round(seconds, 3) for name, seconds in spent.items()},
            "alone": {name: reply.status for name, reply in alone.items()},
            "looks": beside.looks,
            "rss_mb": before,
        },
    )  # fmt: skip


async def one_by_one(wish: Wish, server: Server, side: int) -> tuple[list[bytes], dict[str, float], dict[str, Reply]]:
    """Requests with each image, the processor seconds that each took, and its answer."""
    corpus, spent, replies = list[bytes](), dict[str, float](), dict[str, Reply]()
    for image in costly_images.images(side):
        wish.tell(f"costly: {image.name}")
        request = post(await asyncio.to_thread(image.make), "application/octet-stream")
        began = processor_seconds(server)
        replies[image.name] = await once(server.port, request, 2 * TIMEOUT_S)
        # One that was answered 504 goes on until its budget ends.
        await server.until_idle(TIMEOUT_S)
        spent[image.name] = processor_seconds(server) - began
        corpus.append(request)
    return corpus, spent, replies


async def all_at_once(wish: Wish, server: Server, corpus: Sequence[bytes]) -> tuple[list[Reply], Beside]:
    """The answers to the corpus from several clients, each beginning elsewhere in it, and what else was seen.

    Other clients send good photographs, or ask for a page, meanwhile, and read a byte of the answers a second.
    """
    beside, over = Beside(), asyncio.Event()

    async def client(number: int) -> list[Reply]:
        begin = number * len(corpus) // AT_ONCE
        order = [*corpus[begin:], *corpus[:begin]] * ROUNDS
        if wish.brief:
            order = order[: len(corpus) // AT_ONCE]
        return [await once(server.port, request, 2 * TIMEOUT_S) for request in order]

    async def good() -> None:
        while not over.is_set():
            beside.good.append(await timed(server.pool.ask(wish.request)))
            await asyncio.sleep(GOOD_PAUSE_S)

    async def look() -> None:
        while not over.is_set():
            beside.memory_mb = max(beside.memory_mb, memory_mb(server))
            beside.unready += (await once(server.port, get("/readyz"))).status != 200
            beside.looks += 1
            await asyncio.sleep(POLL_S)

    asked = [wish.smallest, get("/ui/")]  # half of them each: all photographs would fill the queue by right
    slow = (slow_reader(server, asked[i % 2], over.is_set) for i in range(SLOW))
    others = asyncio.gather(good(), look(), *slow)
    replies = await asyncio.gather(*map(client, range(AT_ONCE)))
    over.set()
    await others
    return [reply for each in replies for reply in each], beside


async def ended_in_time(server: Server, corpus: Sequence[bytes]) -> float | None:
    """Seconds from SIGTERM, while costly images are under way, until the service has ended."""
    asked = [asyncio.create_task(once(server.port, request, 2 * TIMEOUT_S)) for request in corpus[:: len(corpus) // 12]]
    await asyncio.wait(asked, timeout=1.0)
    began = time.perf_counter()
    server.replica.process.send_signal(signal.SIGTERM)
    ended: float | None = None
    with suppress(subprocess.TimeoutExpired):
        await asyncio.to_thread(server.replica.process.wait, 2 * END_S)
        ended = time.perf_counter() - began
    await asyncio.gather(*asked)
    return ended


def processor_seconds(server: Server) -> float:
    """Of the worker and of every decoder it has or had."""
    times = server.worker().cpu_times()
    own = times.user + times.system + times.children_user + times.children_system
    return float(own + sum(sum(child.cpu_times()[:2]) for child in server.worker().children()))


def memory_mb(server: Server) -> float:
    """Of every process of the service; one that ends meanwhile has none."""
    import psutil

    held = 0
    for process in server.replica.processes():
        with suppress(psutil.NoSuchProcess):
            held += process.memory_info().rss
    return held / 1e6
