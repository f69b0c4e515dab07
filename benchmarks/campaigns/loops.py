"""Requests in a closed or an open loop, and what they took."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence

import numpy as np

from benchmarks.wire import Reply

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


async def timed(ask: Awaitable[Reply]) -> Done:
    sent = time.perf_counter()
    reply = await ask
    return sent, time.perf_counter(), reply
