"""Requests in a closed or in an open loop, whatever their answers are.

Closed loop: so many requests are always in flight. Each client waits for its answer before it sends the next request,
so the service sets the pace and its queue never shows. Open loop: requests are due at given times whatever the service
does. A latency counts from the time a request was due, not from when the client came to send it; otherwise the requests
that a stall delays would be missing from its cost (coordinated omission).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

A = TypeVar("A")

Clock = Callable[[], float]


@dataclass(frozen=True)
class Done(Generic[A]):
    """One request and its answer; times in seconds, as `time.perf_counter` gives them."""

    due: float
    sent: float
    ended: float
    answer: A

    @property
    def latency_ms(self) -> float:
        """From the time it was due."""
        return 1e3 * (self.ended - self.due)

    @property
    def taken_ms(self) -> float:
        """From the time it was sent."""
        return 1e3 * (self.ended - self.sent)

    @property
    def lag_ms(self) -> float:
        """How much later than due it was sent."""
        return 1e3 * (self.sent - self.due)


async def timed(ask: Awaitable[A], due: float | None = None, clock: Clock = time.perf_counter) -> Done[A]:
    """One request; it was due now if no time is given."""
    sent = clock()
    answer = await ask
    return Done(sent if due is None else due, sent, clock(), answer)


async def closed_loop(
    ask: Callable[[], Awaitable[A]],
    concurrency: int,
    over: Callable[[], bool],
    pause: Callable[[A], float] = lambda _: 0.0,
) -> list[Done[A]]:
    """Keep `concurrency` requests in flight until `over`, then wait for the last answers.

    After an answer, its client waits for the seconds that `pause` gives before it asks again.
    """
    requests: list[Done[A]] = []

    async def client() -> None:
        while not over():
            requests.append(last := await timed(ask()))
            if seconds := pause(last.answer):
                await asyncio.sleep(seconds)

    await asyncio.gather(*(client() for _ in range(concurrency)))
    return requests


async def open_loop(
    ask: Callable[[], Awaitable[A]],
    due: Iterable[float],
    clock: Clock = time.perf_counter,
    sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
) -> list[Done[A]]:
    """Send a request at each time of `due` (seconds from now) without waiting for any answer, then wait for all.

    A true value from `sleep` ends the sending.
    """
    began, tasks = clock(), list[asyncio.Task[Done[A]]]()
    for at in due:
        # A client that is late sleeps too, for no time: answers come in meanwhile.
        if await sleep(max(0.0, began + at - clock())):
            break
        tasks.append(asyncio.ensure_future(timed(ask(), began + at, clock)))
    return list(await asyncio.gather(*tasks))


def after(seconds: float) -> Callable[[], bool]:
    """Whether so many seconds have passed since now."""
    end = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= end


def percentile(values: Sequence[float], share: float) -> float | None:
    return float(np.percentile(values, share)) if len(values) else None


def taken_ms(requests: Iterable[Done[A]]) -> list[float]:
    return [request.taken_ms for request in requests]
