"""100,000 requests, good and bad."""

from __future__ import annotations

import time
from collections import Counter

import numpy as np

from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.overload import FULL
from benchmarks.campaigns.target import Target, likeliest
from benchmarks.load.bodies import Body
from benchmarks.load.loops import closed_loop, percentile, taken_ms
from benchmarks.load.wire import Reply, again_after, get, once, post, statuses

REQUESTS, BRIEF_REQUESTS = 100_000, 2000
SAMPLES = 100
FRESH_EVERY, BAD_EVERY = 100, 50
# The share of the requests before the first look at memory: what a service needs once, it has then.
WARM_SHARE = 0.1
SLOPE_MB = 2.0  # per 10,000 requests
NOISE_MB = 5.0  # in all: the allocator moves by so much anyway, which is the slope of a short soak


def bad_requests(body: Body) -> list[bytes]:
    """One request for each error that clients make every day."""
    return [
        post(body.data[: len(body.data) // 2]),
        post(b"not a picture"),
        post(body.data, "text/plain"),
        post(body.data, target="/classify?top_k=0"),
        post(body.data, target="/classify?model=missing"),
        post(b"--B\r\nbroken", "multipart/form-data; boundary=B"),
        get("/nothing"),
    ]


async def soak(target: Target, requests: int | None = None) -> Campaign:
    total = requests or (BRIEF_REQUESTS if target.brief else REQUESTS)
    async with target.service() as service:
        goods = [post(body.data, body.content_type) for body in target.bodies]
        best = [likeliest(await service.pool.ask(good)) for good in goods]
        bads = bad_requests(target.bodies[0])
        sent, wrong, memory = 0, Counter[str](), list[tuple[int, float]]()

        async def ask() -> Reply:
            nonlocal sent
            sent = (n := sent) + 1
            if n % (total // SAMPLES) == 0:
                memory.append((n, service.rss_mb()))
                target.tell(f"soak: {n:,} of {total:,} requests")
            bad = n % BAD_EVERY == BAD_EVERY - 1
            request = bads[n // BAD_EVERY % len(bads)] if bad else goods[n % len(goods)]
            reply = await (once(service.port, request) if n % FRESH_EVERY == 0 else service.pool.ask(request))
            refused, expected = 400 <= reply.status < 500, (200, best[n % len(goods)])
            if not (refused if bad else (reply.status, likeliest(reply)) == expected):
                wrong[f"{'bad' if bad else 'good'}: {reply.outcome}"] += 1
            return reply

        first = await closed_loop(ask, FULL, lambda: sent >= WARM_SHARE * total, again_after)
        early = await service.at_rest()
        began = time.perf_counter()
        done = first + await closed_loop(ask, FULL, lambda: sent >= total, again_after)
        seconds = time.perf_counter() - began
        late = await service.at_rest()
    warm = [(n, mb) for n, mb in memory if n >= WARM_SHARE * total]
    slope = float(np.polyfit([n / 10_000 for n, _ in warm], [mb for _, mb in warm], 1)[0])
    allowed = max(SLOPE_MB, NOISE_MB * 10_000 / total)
    return Campaign(
        "soak",
        [
            Check("requests", len(done), ">=", total),
            Check("answered wrongly", sum(wrong.values()), "=", 0),
            Check("memory gained per 10,000 requests", max(0.0, slope), "<=", allowed, "MB"),
            Check("open files gained since a tenth of them", late["files"] - early["files"], "<=", 0),
            Check("threads gained since a tenth of them", late["threads"] - early["threads"], "<=", 0),
        ],
        {
            "statuses": statuses(each.answer for each in done),
            "wrong": dict(wrong),
            "per_s": (len(done) - len(first)) / seconds,
            "p99_ms": percentile(taken_ms(done), 99),
            "at_a_tenth": early,
            "at_the_end": late,
            "rss_mb": [[n, round(mb, 1)] for n, mb in memory],
        },
    )
