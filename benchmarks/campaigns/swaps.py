"""Versions swapped under load."""

from __future__ import annotations

import asyncio
from collections import Counter
from statistics import median

from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.copies import copied
from benchmarks.campaigns.loops import closed_loop, percentile, taken_ms, timed
from benchmarks.campaigns.target import Wish
from benchmarks.load.wire import once, post
from serving.artifact import find

SWAPS, BRIEF_SWAPS = 20, 6
SWAP_WARMUP = 2
SWAP_LOAD = 8
SWAP_GAIN_MB = 40.0
TOKEN = "standing"  # noqa: S105
SECOND = "second"


async def swaps(wish: Wish) -> Campaign:
    swaps_, group = (BRIEF_SWAPS, 2) if wish.brief else (SWAPS, 5)
    artifact = find(wish.tag)
    store = wish.folder / "two-versions"
    for version in (artifact.version, SECOND):
        copied(artifact.folder, store, artifact.network, version)
    tag = f"{artifact.network}:{artifact.version}"
    over, statuses_of_loads, memory, took = False, list[int](), list[float](), list[float]()
    async with wish.server(store, MODELS=tag, ADMIN_TOKEN=TOKEN) as server:

        async def swap() -> None:
            nonlocal over
            try:
                for i in range(SWAP_WARMUP + swaps_):
                    wish.tell(f"swaps: {i} of {SWAP_WARMUP + swaps_}")
                    target = f"/models/{artifact.network}/load?version={(SECOND, artifact.version)[i % 2]}"
                    begin, end, reply = await timed(
                        once(server.port, post(b"", "text/plain", target, ("Authorization", f"Bearer {TOKEN}")), 120.0)
                    )
                    statuses_of_loads.append(reply.status)
                    took.append(end - begin)
                    await asyncio.sleep(0.5)
                    memory.append(server.rss_mb())
            finally:
                over = True

        swapping = asyncio.create_task(swap())
        done = await closed_loop(lambda: server.pool.ask(wish.request), SWAP_LOAD, lambda: over)
        await swapping
    first, last = memory[SWAP_WARMUP : SWAP_WARMUP + group], memory[-group:]
    versions = Counter(str(reply.answer.get("version")) for *_, reply in done if reply.status == 200)
    return Campaign(
        "swaps",
        [
            Check("swaps", sum(status == 200 for status in statuses_of_loads), ">=", SWAP_WARMUP + swaps_),
            Check("versions that answered", len(versions), "=", 2),
            Check("requests meanwhile", len(done), ">=", SWAP_WARMUP + swaps_),
            Check("of these lost, or answered wrongly", sum(not server.right(reply) for *_, reply in done), "=", 0),
            Check(
                f"memory of the last {group} over the first {group}",
                median(last) - median(first),
                "<=",
                SWAP_GAIN_MB,
                "MB",
            ),
        ],
        {
            "swap_p50_s": percentile(took, 50),
            "slowest_ms": max(taken_ms(done)),
            "p99_ms": percentile(taken_ms(done), 99),
            "by_version": dict(versions),
            "rss_mb": [round(mb, 1) for mb in memory],
        },
    )
