"""SIGTERM under load, and SIGKILL of the worker."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import time
from collections.abc import Awaitable

from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.loops import Done, open_loop, percentile, statuses
from benchmarks.campaigns.target import POLL_S, Server, Wish
from benchmarks.load import arrivals
from benchmarks.wire import Reply, Wire, get, once

# As deploy/base/deployment.yaml has it.
GRACE_S = 30.0
BEFORE_S = 2.0
UNDER_WAY = 32


async def terminated(wish: Wish) -> Campaign:
    async with wish.server() as server:
        request, process = wish.request, server.replica.process
        ended = asyncio.Event()
        done: list[tuple[float, bool, Reply]] = []

        async def client() -> None:
            """Asks on one connection after another until it is turned away."""
            wire, reply = None, Reply(200)
            while reply.status == 200 and not ended.is_set():
                if wire is None or not wire.open:
                    try:
                        wire = await Wire.to(server.port)
                    except OSError:
                        return  # the door is closed, and this client knows it
                known, sent = wire.answers > 0, time.perf_counter()
                reply = await wire.ask(request)
                done.append((sent, known, reply))
            if wire is not None:
                wire.close()

        clients = [asyncio.create_task(client()) for _ in range(UNDER_WAY)]
        half = await Wire.to(server.port)
        half.send(request[: len(request) // 2])
        await asyncio.sleep(BEFORE_S)
        signalled = time.perf_counter()
        process.send_signal(signal.SIGTERM)
        not_ready = await until_not_ready(server)
        late = await once(server.port, request)
        half.send(request[len(request) // 2 :])
        finished = await half.reply()
        try:
            status: int | None = await asyncio.to_thread(process.wait, GRACE_S)
        except subprocess.TimeoutExpired:
            status = None
        exit_s = time.perf_counter() - signalled
        ended.set()
        await asyncio.gather(*clients)
    mine = [reply for sent, _, reply in done if sent < signalled]
    later = [reply for sent, _, reply in done if sent >= signalled]
    lost = sum(not (reply.status == 200 or turned_away(reply)) for reply in mine)
    # One that was never answered on it may have knocked at a door that was just closed.
    dropped = sum(reply.status == 0 for sent, known, reply in done if known and sent >= signalled)
    return Campaign(
        "terminated",
        [
            Check("requests under way or before", len(mine), ">=", UNDER_WAY),
            Check("of these lost", lost, "=", 0),
            Check("a request half sent at SIGTERM, answered rightly", server.right(finished), "=", True),
            Check("SIGTERM until readyz says 503", not_ready, "<=", 1.0, "s"),
            Check("a request after that, refused with Retry-After", turned_away(late), "=", True),
            Check("later ones dropped on a connection in use", dropped, "=", 0),
            Check("SIGTERM until the end", exit_s if status is not None else None, "<=", GRACE_S, "s"),
            Check("exit status", status, "=", 0),
        ],
        {"before": statuses(mine), "after": statuses(later)},
    )


def turned_away(reply: Reply) -> bool:
    return reply.status == 503 and reply.header(b"retry-after") is not None


async def until_not_ready(server: Server) -> float | None:
    """Seconds until readyz says 503; None where the door is closed first, or never."""
    began = time.perf_counter()
    while time.perf_counter() - began < GRACE_S:
        status = (await once(server.port, get("/readyz"), 5.0)).status
        if status != 200:
            return time.perf_counter() - began if status == 503 else None
        await asyncio.sleep(POLL_S / 4)
    return None


RATE = 10.0  # per second, to each of two services
KILLED_BACK_S = 10.0
# Of the other service while the first one starts again beside it, which takes a core for some seconds.
OTHER_P99_MS = 250.0


async def killed(wish: Wish) -> Campaign:
    seconds = 5.0 if wish.brief else 15.0
    async with wish.server(THREADS=1) as one, wish.server(THREADS=1) as other:

        def load(server: Server, seed: int) -> Awaitable[list[tuple[float, Done]]]:
            due = arrivals(RATE, 2 * seconds, seed)
            return asyncio.create_task(open_loop(lambda: server.pool.ask(wish.request), due))

        loads = load(one, 1), load(other, 2)
        await asyncio.sleep(seconds)
        worker = one.worker()
        dead = time.perf_counter()
        worker.send_signal(signal.SIGKILL)
        outcomes, beside = [await sent for sent in loads]
        again = one.right(await once(one.port, wish.request))
    back = min((done[1] for _, done in outcomes if done[0] > dead and done[2].status == 200), default=None)
    # From the kill on, what was under way with it: the kernel holds what comes until there is a worker again.
    lost = [due for due, (*_, reply) in outcomes if reply.status != 200]
    during = [1e3 * (end - due) for due, (_, end, reply) in beside if due >= dead]
    calm = [1e3 * (end - due) for due, (_, end, reply) in beside if due < dead]
    return Campaign(
        "killed",
        [
            Check(
                "SIGKILL of the worker until it answers again",
                None if back is None else back - dead,
                "<=",
                KILLED_BACK_S,
                "s",
            ),
            Check("a request after that, answered rightly", again, "=", True),
            Check("requests lost that were not under way", sum(due > dead for due in lost), "=", 0),
            Check(
                "another service's requests not answered rightly", sum(not other.right(d[2]) for _, d in beside), "=", 0
            ),
            Check("another service's p99 meanwhile", percentile(during, 99), "<=", OTHER_P99_MS, "ms"),
        ],
        {
            "statuses": statuses(done[2] for _, done in outcomes),
            "lost_under_way": sum(due <= dead for due in lost),
            "slowest_ms": max(1e3 * (done[1] - due) for due, done in outcomes),
            "other_p99_ms_before": percentile(calm, 99),
            "other_answered": len(beside),
        },
    )
