"""Ten times the capacity, for a minute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.loops import Done, closed_loop, open_loop, passed, percentile, statuses, taken_ms
from benchmarks.campaigns.target import Wish
from benchmarks.load import arrivals
from benchmarks.wire import Reply

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
