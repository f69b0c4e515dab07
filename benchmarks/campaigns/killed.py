"""SIGKILL of the worker under load, with a second service beside it."""

from __future__ import annotations

import asyncio
import signal
import time

from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.target import Service, Target
from benchmarks.load.loops import Done, open_loop, percentile
from benchmarks.load.wire import Reply, once, statuses
from benchmarks.rates import arrivals

RATE = 10.0  # per second, to each of the two services
KILLED_BACK_S = 10.0
# Of the other service while the first one starts again beside it, which takes a core for some seconds.
OTHER_P99_MS = 250.0


async def killed(target: Target) -> Campaign:
    seconds = 5.0 if target.brief else 15.0
    async with target.service(THREADS=1) as service, target.service(THREADS=1) as other:

        def load(service: Service, seed: int) -> asyncio.Task[list[Done[Reply]]]:
            due = arrivals(RATE, 2 * seconds, seed)
            return asyncio.create_task(open_loop(lambda: service.pool.ask(target.request), due))

        loads = load(service, 1), load(other, 2)
        await asyncio.sleep(seconds)
        worker = service.worker()
        dead = time.perf_counter()
        worker.send_signal(signal.SIGKILL)
        sent, beside = [await requests for requests in loads]
        again = service.right(await once(service.port, target.request))
    back = min((done.ended for done in sent if done.sent > dead and done.answer.status == 200), default=None)
    # From the kill on, only what was under way may be lost: the kernel holds what comes until there is a worker again.
    lost = [done.due for done in sent if done.answer.status != 200]
    calm = [done.latency_ms for done in beside if done.due < dead]
    during = [done.latency_ms for done in beside if done.due >= dead]
    wrong = sum(not other.right(done.answer) for done in beside)
    back_s = None if back is None else back - dead
    return Campaign(
        "killed",
        [
            Check("SIGKILL of the worker until it answers again", back_s, "<=", KILLED_BACK_S, "s"),
            Check("a request after that, answered rightly", again, "=", True),
            Check("requests lost that were not under way", sum(due > dead for due in lost), "=", 0),
            Check("another service's requests not answered rightly", wrong, "=", 0),
            Check("another service's p99 meanwhile", percentile(during, 99), "<=", OTHER_P99_MS, "ms"),
        ],
        {
            "statuses": statuses(done.answer for done in sent),
            "lost_under_way": sum(due <= dead for due in lost),
            "slowest_ms": max(done.latency_ms for done in sent),
            "other_p99_ms_before": percentile(calm, 99),
            "other_answered": len(beside),
        },
    )
