"""Thousands of hostile requests, and slow connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from benchmarks.campaigns.cases import Case, cases
from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.target import Service, Target
from benchmarks.load.loops import Done, closed_loop, percentile, taken_ms
from benchmarks.load.wire import Pool, Reply, Wire, once, statuses
from serving.artifact import find
from serving.limits import ASIDE_BYTES, HERE_BYTES
from serving.runtime import cores

AT_LEAST, BRIEF_EVERY = 2000, 25
AT_ONCE = 4
GOOD_EVERY = 50
SLOW_TIMEOUT_S = 5.0

# What the settings allow at once: one image in each of the worker's own threads, and the larger ones in other
# processes. Every upload is held twice, in its chunks and whole.
MAX_PIXELS, MAX_BODY = 50_000_000, 20_000_000
UPLOAD_COPIES = 2
# The allocator keeps some of the memory that was given back to it.
KEPT_MB = 100.0

HUGE = 200_000_000
# Bytes a second of the huge bodies: at the first pace a body exceeds the limit before its time is over.
PACES = (10_000_000, 1_000_000)
DRIBBLE_S = 0.5  # between two bytes


@dataclass(frozen=True)
class Slow:
    """The answers on slow connections, and the good requests beside them."""

    replies: list[Reply]
    good: list[Done[Reply]]


async def hostile(target: Target) -> Campaign:
    async with target.service(
        TIMEOUT_MS=1000 * SLOW_TIMEOUT_S, MAX_PIXELS=MAX_PIXELS, MAX_BODY_MB=MAX_BODY / 1e6
    ) as service:
        artifact = find(target.tag)
        every_case = cases(0, artifact.network, artifact.preprocess.shape)
        chosen = islice(every_case, 0, None, BRIEF_EVERY) if target.brief else every_case
        before = service.rss_mb()
        service.forget_peak()
        asked, good = await send_cases(target, service.pool, chosen)
        target.tell("hostile: slow connections")
        slow = await dribble(target, service, 10 if target.brief else 100)
        grown = service.peak_mb() - before
        good += [done.answer for done in slow.good]
        good += [await once(service.port, target.request) for _ in range(10)]
        await asyncio.sleep(1)
        kept = service.rss_mb() - before
    wrong = [f"{case.title}: {reply.outcome}" for case, reply in asked if not case.allows(reply.status)]
    families: dict[str, list[Reply]] = {}
    for case, reply in asked:
        families.setdefault(case.family, []).append(reply)
    every = [reply for _, reply in asked] + slow.replies
    not_refused = sum(reply.status not in (408, 413, 431) for reply in slow.replies)
    allowed = ((cores() + 1) * (HERE_BYTES + ASIDE_BYTES) + (AT_ONCE + 2 * len(PACES)) * MAX_BODY * UPLOAD_COPIES) / 1e6
    return Campaign(
        "hostile",
        [
            Check("requests sent", len(every), ">=", AT_LEAST / BRIEF_EVERY if target.brief else AT_LEAST),
            Check("answered 5xx", sum(reply.status >= 500 for reply in every), "=", 0),
            Check("otherwise answered as they may not be, or dropped", len(wrong), "=", 0),
            Check("slow heads and bodies not answered 408, 413 or 431", not_refused, "=", 0),
            Check("good requests among them", len(good), ">=", 20),
            Check("of these answered wrongly", sum(not service.right(reply) for reply in good), "=", 0),
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


async def send_cases(target: Target, pool: Pool, cases: Iterator[Case]) -> tuple[list[tuple[Case, Reply]], list[Reply]]:
    """Each case with its answer, and the answers to good requests in between."""
    asked, good = list[tuple[Case, Reply]](), list[Reply]()

    async def client() -> None:
        for case in cases:
            asked.append((case, await once(pool.port, case.request, 2 * SLOW_TIMEOUT_S)))
            if len(asked) % GOOD_EVERY == 0:
                good.append(await pool.ask(target.request))
                target.tell(f"hostile: {len(asked):,} requests")

    await asyncio.gather(*(client() for _ in range(AT_ONCE)))
    return asked, good


async def dribble(target: Target, service: Service, many: int) -> Slow:
    """Send as slowly as possible on many connections at once, and good requests beside them."""
    over = asyncio.Event()

    async def slowly(head: str, piece: bytes, pause: float) -> Reply:
        """The answer to `head` and piece after piece."""
        wire = await Wire.to(service.port)
        wire.send(f"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\n{head}".encode())
        answer = asyncio.create_task(wire.reply(4 * SLOW_TIMEOUT_S))
        for _ in range(HUGE // len(piece)):
            wire.send(piece)
            await asyncio.wait({answer}, timeout=pause)
            if answer.done() or not wire.open:
                break
            await wire.drained()
        reply = await answer
        wire.close()
        return reply

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
    good = asyncio.create_task(
        closed_loop(lambda: once(service.port, target.request), 1, over.is_set, lambda _: DRIBBLE_S / 10)
    )
    replies = list(await asyncio.gather(*connections))
    over.set()
    return Slow(replies, await good)
