"""Clients that hang up."""

from __future__ import annotations

import asyncio
from statistics import median
from typing import Any

from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.target import Target
from benchmarks.load.loops import taken_ms, timed
from benchmarks.load.wire import Wire

CLIENTS, BRIEF_CLIENTS = 500, 50
LEFT_WITHIN_S = 2.0
IDLE_CORES = 0.05
NEXT_TIMES = 2.0


async def hangups(target: Target) -> Campaign:
    many = BRIEF_CLIENTS if target.brief else CLIENTS
    request, figures = target.request, dict[str, Any]()
    checks: list[Check] = []
    async with target.service(MAX_QUEUE=2 * CLIENTS) as service:
        quiet = await service.cores_at_rest()
        usual = [await timed(service.pool.ask(request)) for _ in range(20)]
        for name, part in (("half a body", request[: len(request) // 2]), ("a whole body", request)):
            target.tell(f"hangups: after {name}")
            cpu, images = service.cpu_seconds(), await service.metric("podium_batch_size_sum") or 0.0
            wires = [await Wire.to(service.port) for _ in range(many)]
            for wire in wires:
                wire.send(part)
            await asyncio.sleep(0.02)
            for wire in wires:
                wire.close()
            left = await service.until_idle(60.0)
            spent = service.cpu_seconds() - cpu
            rest = await service.cores_at_rest()
            following = [await timed(service.pool.ask(request)) for _ in range(20)]
            ran = (await service.metric("podium_batch_size_sum") or 0.0) - images - len(following)
            wrong = sum(not service.right(done.answer) for done in following)
            ratio = median(taken_ms(following)) / median(taken_ms(usual))
            checks += [
                Check(f"{name}: until nothing waits nor runs", left, "<=", LEFT_WITHIN_S, "s"),
                Check(f"{name}: cores busy after that", max(0.0, rest - quiet), "<=", IDLE_CORES),
                Check(f"{name}: the next requests' time, of what is usual", ratio, "<=", NEXT_TIMES),
                Check(f"{name}: next requests answered wrongly", wrong, "=", 0),
            ]
            figures[name] = {"clients": many, "cpu_ms_each": 1e3 * spent / many, "images_run": ran}
    return Campaign("hangups", checks, figures | {"usual_p50_ms": median(taken_ms(usual)), "cores_at_rest": quiet})
