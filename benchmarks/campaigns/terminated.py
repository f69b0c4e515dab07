"""SIGTERM with requests in flight."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from dataclasses import dataclass

from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.target import Service, Target
from benchmarks.load.loops import Done, timed
from benchmarks.load.servers import POLL_S
from benchmarks.load.wire import Reply, Wire, get, once, statuses

# As in deploy/base/deployment.yaml.
GRACE_S = 30.0
BEFORE_S = 2.0
UNDER_WAY = 32


@dataclass(frozen=True)
class Asked:
    """A request, and whether its connection had been answered before."""

    known: bool
    done: Done[Reply]


async def terminated(target: Target) -> Campaign:
    async with target.service() as service:
        request, process = target.request, service.process
        ended = asyncio.Event()
        asked: list[Asked] = []

        async def client() -> None:
            """Asks on one connection after another until it is turned away."""
            wire, reply = None, Reply(200)
            while reply.status == 200 and not ended.is_set():
                if wire is None or not wire.open:
                    try:
                        wire = await Wire.to(service.port)
                    except OSError:
                        return  # nobody listens any more, and this client knows it
                known = wire.answers > 0
                asked.append(last := Asked(known, await timed(wire.ask(request))))
                reply = last.done.answer
            if wire is not None:
                wire.close()

        clients = [asyncio.create_task(client()) for _ in range(UNDER_WAY)]
        half = await Wire.to(service.port)
        half.send(request[: len(request) // 2])
        await asyncio.sleep(BEFORE_S)
        signalled = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        not_ready = await until_not_ready(service)
        late = await once(service.port, request)
        half.send(request[len(request) // 2 :])
        finished = await half.reply()
        try:
            status: int | None = await asyncio.to_thread(process.wait, GRACE_S)
        except subprocess.TimeoutExpired:
            status = None
        exit_s = time.perf_counter() - signalled
        ended.set()
        await asyncio.gather(*clients)
    before = [each.done.answer for each in asked if each.done.sent < signalled]
    later = [each for each in asked if each.done.sent >= signalled]
    lost = sum(not (reply.status == 200 or turned_away(reply)) for reply in before)
    # A connection that was never answered may have come just after the service had stopped to listen.
    dropped = sum(each.known and each.done.answer.status == 0 for each in later)
    return Campaign(
        "terminated",
        [
            Check("requests under way or before", len(before), ">=", UNDER_WAY),
            Check("of these lost", lost, "=", 0),
            Check("a request half sent at SIGTERM, answered rightly", service.right(finished), "=", True),
            Check("SIGTERM until readyz says 503", not_ready, "<=", 1.0, "s"),
            Check("a request after that, refused with Retry-After", turned_away(late), "=", True),
            Check("later ones dropped on a connection in use", dropped, "=", 0),
            Check("SIGTERM until the end", exit_s if status is not None else None, "<=", GRACE_S, "s"),
            Check("exit status", status, "=", 0),
        ],
        {"before": statuses(before), "after": statuses(each.done.answer for each in later)},
    )


def turned_away(reply: Reply) -> bool:
    return reply.status == 503 and reply.header(b"retry-after") is not None


async def until_not_ready(service: Service) -> float | None:
    """Seconds until readyz says 503; None if the service stops to listen first, or never says so."""
    began = time.perf_counter()
    while time.perf_counter() - began < GRACE_S:
        status = (await once(service.port, get("/readyz"), 5.0)).status
        if status != 200:
            return time.perf_counter() - began if status == 503 else None
        await asyncio.sleep(POLL_S / 4)
    return None
