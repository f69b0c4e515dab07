"""Ten times the capacity, for a minute."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.target import Target
from benchmarks.load.loops import Done, after, closed_loop, open_loop, percentile, taken_ms
from benchmarks.load.wire import Reply, again_after, statuses
from benchmarks.rates import arrivals

TIMES = 10
FULL = 16  # in flight when the capacity is measured
DEADLINE_S = 2.0
# A refusal must come at once, on a machine on which every core is busy.
REFUSED_P99_MS = 500.0
BIN_S = 0.1
BACK, BACK_WITHIN_S = 0.9, 1.0
# The rate is back at the first bin from which it holds for so many bins, because an engine answers by the batch.
BACK_BINS = 5


@dataclass(frozen=True)
class Flood:
    """An overload as it went: a closed loop of `calm` seconds, what was sent in `seconds`, when that `ended` (as
    `time.perf_counter` gives it), and the closed loop after it.
    """

    before: list[Done[Reply]]
    calm: float
    sent: list[Done[Reply]]
    seconds: float
    ended: float
    rest: list[Done[Reply]]

    def judged(self) -> Campaign:
        capacity = answers_per_second(self.before, self.calm)
        begun = [done.sent for done in self.sent]
        # A client that fell behind has offered less: it took longer to send as many.
        offered = len(begun) / max(self.seconds, max(begun) - min(begun))
        accepted = [done.latency_ms for done in self.sent if done.answer.status == 200]
        refused = [done for done in self.sent if done.answer.status in (429, 503)]
        mute = sum(done.answer.header(b"retry-after") is None for done in refused)
        back = back_after([done.ended - self.ended for done in self.rest if done.answer.status == 200], capacity)
        return Campaign(
            "overload",
            [
                Check("offered, times the capacity", offered / capacity if capacity else None, ">=", TIMES),
                Check("p99 of accepted requests", percentile(accepted, 99), "<=", 1e3 * DEADLINE_S, "ms"),
                Check("requests refused", len(refused), ">=", 1),
                Check("of these without Retry-After", mute, "=", 0),
                Check("p99 of refusals", percentile(taken_ms(refused), 99), "<=", REFUSED_P99_MS, "ms"),
                Check("lost", len(begun) - len(accepted) - len(refused), "=", 0),
                Check(f"until {BACK:.0%} of the capacity is back", back, "<=", BACK_WITHIN_S, "s"),
            ],
            {
                "capacity_per_s": capacity,
                "capacity_p99_ms": percentile(taken_ms(self.before), 99),
                "offered_per_s": offered,
                "answered_per_s": len(accepted) / self.seconds,
                "seconds": self.seconds,
                "statuses": statuses(done.answer for done in self.sent),
                "accepted_p50_ms": percentile(accepted, 50),
                "refused_p50_ms": percentile(taken_ms(refused), 50),
                "client_lag_p99_ms": percentile([done.lag_ms for done in self.sent], 99),
            },
        )


async def overload(target: Target) -> Campaign:
    seconds, calm = (5.0, 3.0) if target.brief else (60.0, 10.0)
    request = target.smallest
    async with target.service(request=request, TIMEOUT_MS=1000 * DEADLINE_S) as service:

        async def ask() -> Reply:
            return await service.pool.ask(request)

        target.tell("overload: measuring the capacity")
        before = await closed_loop(ask, FULL, after(calm), again_after)
        capacity = answers_per_second(before, calm)
        target.tell(f"overload: {TIMES} times {capacity:.0f} per second for {seconds:g} s")
        cpu = time.process_time()
        # A little more, because random arrivals may be fewer than their rate.
        sending = asyncio.create_task(open_loop(ask, arrivals(1.02 * TIMES * capacity, seconds)))
        await asyncio.sleep(seconds)
        cpu = (time.process_time() - cpu) / seconds
        ended = time.perf_counter()
        rest = await closed_loop(ask, FULL, after(calm), again_after)
        campaign = Flood(before, calm, await sending, seconds, ended, rest).judged()
    client = {
        "client_cores": cpu, "body_bytes": len(target.by_size[0].data), "most_at_once": service.pool.most,
    }  # fmt: skip
    return replace(campaign, figures={**campaign.figures, **client})


def answers_per_second(requests: Sequence[Done[Reply]], seconds: float) -> float:
    return sum(done.answer.status == 200 for done in requests) / seconds


def back_after(answered: Sequence[float], capacity: float) -> float | None:
    """Seconds until answers, at these times, come at `BACK` of `capacity` per second again; None if they never do."""
    if not answered:
        return None
    bins, _ = np.histogram(answered, np.arange(0.0, max(answered) + BIN_S, BIN_S))
    for first in range(len(bins) - BACK_BINS + 1):
        if bins[first : first + BACK_BINS].mean() >= BACK * capacity * BIN_S:
            return first * BIN_S
    return None
