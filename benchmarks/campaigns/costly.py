"""Images made to cost as much as possible, one by one and all at once, beside good requests and slow readers."""

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
from benchmarks.campaigns.target import Service, Target
from benchmarks.load.loops import Done, percentile, taken_ms, timed
from benchmarks.load.wire import Reply, get, once, post, statuses
from serving.limits import Limits, most_memory
from serving.runtime import cores

MAX_PIXELS, MAX_BODY, IMAGE_CPU_S, TIMEOUT_S = 50_000_000, 20_000_000, 4.0, 10.0
BRIEF_SIDE = 1500
# What a request costs beside decoding: a new process for one that was ended, receiving the body, reading the head.
ASIDE_S = 1.5
# The statuses that a costly image may get: it fails alone, because of itself or because too many like it wait.
MAY_BE = (200, 413, 422, 429, 504)
# So many clients at once send nothing else; each sends the corpus so many times.
AT_ONCE, ROUNDS = 4, 2
GOOD_P99_MS = 2000.0
GOOD_PAUSE_S = 0.05
POLL_S = 0.1
# The memory of a small container; the processes of the service together must stay below.
TWO_GIB_MB = 2**31 / 1e6
# The longest request, then what a shutdown grants to what has not ended (`serving.classify.GRACE`, twice), with room.
END_S = TIMEOUT_S + 8.0


@dataclass
class Overhead:
    """What was seen from outside while costly images were sent, collected by those who looked."""

    good: list[Done[Reply]] = field(default_factory=list)
    unready: int = 0
    looks: int = 0
    memory_mb: float = 0.0


async def costly(target: Target) -> Campaign:
    side = BRIEF_SIDE if target.brief else costly_images.SIDE
    async with target.service(
        MAX_PIXELS=MAX_PIXELS, MAX_BODY_MB=MAX_BODY / 1e6, IMAGE_CPU_MS=1e3 * IMAGE_CPU_S, TIMEOUT_MS=1e3 * TIMEOUT_S
    ) as service:
        before = service.memory_mb()
        corpus, spent, alone = await one_by_one(target, service, side)
        target.tell(f"costly: all at once, with {SLOW} slow readers and 2 GiB of address space")
        limit_address_space(service)
        together, overhead = await all_at_once(target, service, corpus)
        exit_s = await ended_in_time(service, corpus)
    replies = [*alone.values(), *together]
    wrong = [f"{name}: {reply.outcome}" for name, reply in alone.items() if reply.status not in MAY_BE]
    allowed = (most_memory(Limits(MAX_PIXELS, IMAGE_CPU_S), MAX_BODY, cores()) + (AT_ONCE + 1) * 2 * MAX_BODY) / 1e6
    return Campaign(
        "costly",
        [
            Check("images of every format, as costly as they can be", len(corpus), ">=", 50),
            Check(
                "answered as they may not be, or dropped", sum(r.status not in MAY_BE for r in replies), "=", 0
            ),
            Check("processor time of the costliest", max(spent.values()), "<=", IMAGE_CPU_S + ASIDE_S, "s"),
            Check("good requests beside them", len(overhead.good), ">=", 20),
            Check("of these answered wrongly", sum(not service.right(done.answer) for done in overhead.good), "=", 0),
            Check("p99 of these", percentile(taken_ms(overhead.good), 99), "<=", GOOD_P99_MS, "ms"),
            Check("looks at readyz that did not say 200", overhead.unready, "=", 0),
            Check("growth of all processes' memory", overhead.memory_mb - before, "<=", allowed, "MB"),
            Check("all processes' memory", overhead.memory_mb, "<=", TWO_GIB_MB, "MB"),
            Check("SIGTERM among them until the end", exit_s, "<=", END_S, "s"),
        ],
        {
            "statuses": statuses(replies),
            "wrong": wrong[:50],
            "cpu_seconds": {name: round(seconds, 3) for name, seconds in spent.items()},
            "alone": {name: reply.status for name, reply in alone.items()},
            "looks": overhead.looks,
            "rss_mb": before,
        },
    )  # fmt: skip


async def one_by_one(
    target: Target, service: Service, side: int
) -> tuple[list[bytes], dict[str, float], dict[str, Reply]]:
    """Requests with each image, the processor seconds that each image took, and its answer."""
    corpus, spent, replies = list[bytes](), dict[str, float](), dict[str, Reply]()
    for image in costly_images.images(side):
        target.tell(f"costly: {image.name}")
        request = post(await asyncio.to_thread(image.make), "application/octet-stream")
        began = processor_seconds(service)
        replies[image.name] = await once(service.port, request, 2 * TIMEOUT_S)
        # An image that was answered 504 is decoded on until its budget ends.
        await service.until_idle(TIMEOUT_S)
        spent[image.name] = processor_seconds(service) - began
        corpus.append(request)
    return corpus, spent, replies


async def all_at_once(target: Target, service: Service, corpus: Sequence[bytes]) -> tuple[list[Reply], Overhead]:
    """The answers to the corpus from several clients, each starting elsewhere in it, and what else was seen.

    Meanwhile other clients send good photographs or ask for a page, and read a byte of the answers a second.
    """
    overhead, over = Overhead(), asyncio.Event()

    async def client(number: int) -> list[Reply]:
        begin = number * len(corpus) // AT_ONCE
        order = [*corpus[begin:], *corpus[:begin]] * ROUNDS
        if target.brief:
            order = order[: len(corpus) // AT_ONCE]
        return [await once(service.port, request, 2 * TIMEOUT_S) for request in order]

    async def good() -> None:
        while not over.is_set():
            overhead.good.append(await timed(service.pool.ask(target.request)))
            await asyncio.sleep(GOOD_PAUSE_S)

    async def look() -> None:
        while not over.is_set():
            overhead.memory_mb = max(overhead.memory_mb, service.memory_mb())
            overhead.unready += (await once(service.port, get("/readyz"))).status != 200
            overhead.looks += 1
            await asyncio.sleep(POLL_S)

    asked = [target.smallest, get("/ui/")]  # half each: with photographs alone the queue would rightly be full
    slow = (slow_reader(service, asked[i % 2], over.is_set) for i in range(SLOW))
    others = asyncio.gather(good(), look(), *slow)
    replies = await asyncio.gather(*map(client, range(AT_ONCE)))
    over.set()
    await others
    return [reply for each in replies for reply in each], overhead


async def ended_in_time(service: Service, corpus: Sequence[bytes]) -> float | None:
    """Seconds from SIGTERM, while costly images are under way, until the service has ended."""
    asked = [
        asyncio.create_task(once(service.port, request, 2 * TIMEOUT_S)) for request in corpus[:: len(corpus) // 12]
    ]
    await asyncio.wait(asked, timeout=1.0)
    began = time.perf_counter()
    service.process.send_signal(signal.SIGTERM)
    ended: float | None = None
    with suppress(subprocess.TimeoutExpired):
        await asyncio.to_thread(service.process.wait, 2 * END_S)
        ended = time.perf_counter() - began
    await asyncio.gather(*asked)
    return ended


def processor_seconds(service: Service) -> float:
    """Processor time of the worker and of every decoder that it has or had."""
    times = service.worker().cpu_times()
    own = times.user + times.system + times.children_user + times.children_system
    return float(own + sum(sum(child.cpu_times()[:2]) for child in service.worker().children()))
