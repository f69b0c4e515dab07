"""Versions swapped under load."""

from __future__ import annotations

import asyncio
from collections import Counter
from statistics import median

from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.copies import copied
from benchmarks.campaigns.target import Target
from benchmarks.load.loops import Done, closed_loop, percentile, taken_ms, timed
from benchmarks.load.wire import Reply, again_after, once, post
from serving.artifact import find

SWAPS, BRIEF_SWAPS = 20, 6
SWAP_WARMUP = 2
SWAP_LOAD = 8
SWAP_GAIN_MB = 40.0
TOKEN = "standing"  # noqa: S105
SECOND = "second"


async def swaps(target: Target) -> Campaign:
    swaps_, group = (BRIEF_SWAPS, 2) if target.brief else (SWAPS, 5)
    artifact = find(target.tag)
    store = target.folder / "two-versions"
    for version in (artifact.version, SECOND):
        copied(artifact.folder, store, artifact.network, version)
    tag = f"{artifact.network}:{artifact.version}"
    over, loads, memory = False, list[Done[Reply]](), list[float]()
    async with target.service(store, MODELS=tag, ADMIN_TOKEN=TOKEN) as service:

        async def swap() -> None:
            nonlocal over
            try:
                for i in range(SWAP_WARMUP + swaps_):
                    target.tell(f"swaps: {i} of {SWAP_WARMUP + swaps_}")
                    path = f"/models/{artifact.network}/load?version={(SECOND, artifact.version)[i % 2]}"
                    load = post(b"", "text/plain", path, ("Authorization", f"Bearer {TOKEN}"))
                    loads.append(await timed(once(service.port, load, 120.0)))
                    await asyncio.sleep(0.5)
                    memory.append(service.rss_mb())
            finally:
                over = True

        swapping = asyncio.create_task(swap())
        done = await closed_loop(lambda: service.pool.ask(target.request), SWAP_LOAD, lambda: over, again_after)
        await swapping
    replies = [each.answer for each in done]
    first, last = memory[SWAP_WARMUP : SWAP_WARMUP + group], memory[-group:]
    gain = median(last) - median(first)
    versions = Counter(str(reply.answer.get("version")) for reply in replies if reply.status == 200)
    return Campaign(
        "swaps",
        [
            Check("swaps", sum(each.answer.status == 200 for each in loads), ">=", SWAP_WARMUP + swaps_),
            Check("versions that answered", len(versions), "=", 2),
            Check("requests meanwhile", len(done), ">=", SWAP_WARMUP + swaps_),
            Check("of these lost, or answered wrongly", sum(not service.right(reply) for reply in replies), "=", 0),
            Check(f"memory of the last {group} over the first {group}", gain, "<=", SWAP_GAIN_MB, "MB"),
        ],
        {
            "swap_p50_s": percentile([each.ended - each.sent for each in loads], 50),
            "slowest_ms": max(taken_ms(done)),
            "p99_ms": percentile(taken_ms(done), 99),
            "by_version": dict(versions),
            "rss_mb": [round(mb, 1) for mb in memory],
        },
    )
