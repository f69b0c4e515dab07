"""Thousands of hostile requests, and slow connections."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from benchmarks.campaigns import cases as inputs
from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.loops import Done, percentile, statuses, taken_ms, timed
from benchmarks.campaigns.target import Server, Wish
from benchmarks.load.wire import Reply, Wire, once
from serving.artifact import find
from serving.limits import ASIDE_BYTES, HERE_BYTES
from serving.runtime import cores

AT_LEAST, BRIEF_EVERY = 2000, 25
AT_ONCE = 4
GOOD_EVERY = 50
SLOW_TIMEOUT_S = 5.0

# What the settings allow at once: in the worker's own threads an image for each, the larger ones in other processes;
# every upload is held in its chunks and whole.
MAX_PIXELS, MAX_BODY = 50_000_000, 20_000_000
UPLOAD_COPIES = 2
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
    allowed = ((cores() + 1) * (HERE_BYTES + ASIDE_BYTES) + (AT_ONCE + 2 * len(PACES)) * MAX_BODY * UPLOAD_COPIES) / 1e6
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
