"""Connections that take and do not give: trailers without end, answers that nobody reads, sides that are closed."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import repeat
from typing import Any

from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.loops import Done, closed_loop, passed, percentile, statuses, taken_ms
from benchmarks.campaigns.target import Server, Wish, at_rest
from benchmarks.load.wire import HOST, Wire, get, once

TIMEOUT_S = 3.0
# A shutdown takes no longer than a request may, and this.
GRACE_S = 5.0
# Of address space, for the process that serves: what is held for others may not take it from a good client.
ADDRESS_SPACE = 2 << 30
GOOD, GOOD_P99_MS, LIVE_P99_MS = 4, 2000.0, 1000.0

SLOW, HOLDERS, FEW = 64, 10, 20
# What one client of each kind tries to have held, and what all of them together may have.
EACH_BYTES, HELD_MB = 60_000_000, 150.0
MOST, CROWD = 200, 300

# Bytes that a client hands its system in one piece, so that sending takes no time from the good clients beside it.
AT_ONCE = 64 << 10

HEAD = f"HTTP/1.1\r\nHost: {HOST}\r\n".encode()
TRAILERS = b"POST /classify " + HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
UPGRADE = b"GET /livez " + HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


async def connections(wish: Wish) -> Campaign:
    seconds = 4.0 if wish.brief else 20.0
    found: dict[str, Any] = {}
    async with wish.server(TIMEOUT_MS=1000 * TIMEOUT_S, MAX_CONNECTIONS=MOST) as server:
        limit_address_space(server)
        before = await at_rest(server)
        server.forget_peak()
        live: list[Done] = []
        async with beside(live, lambda: once(server.port, get("/livez"))):
            wish.tell("connections: trailers, and requests whose answers nobody reads")
            await holding(server, repeat(TRAILERS, 1), b"X-Trailer: " + b"a" * 8000 + b"\r\n")
            await holding(server, repeat(b"", HOLDERS), get("/metrics") * 100)
            held = server.peak_mb() - before["rss_mb"]
            wish.tell("connections: bytes behind an answer, upgrades, closed sides")
            behind = [await byte_behind(server) for _ in range(FEW)]
            upgrades = [await once(server.port, UPGRADE, 2 * TIMEOUT_S) for _ in range(FEW)]
            half = [await half_closed(server, wish.request) for _ in range(FEW)]
        wish.tell(f"connections: {SLOW} slow readers")
        good = await beside_slow_readers(wish, server, seconds)
        await asyncio.sleep(TIMEOUT_S)
        crowd = await crowded(server)
        for wire in behind:
            found.setdefault("behind_an_answer", Counter())[wire.open] += 1
        await asyncio.sleep(TIMEOUT_S)
        again = server.right(await once(server.port, wish.request))
        after = await at_rest(server)
        for wire in behind:
            wire.close()
        lines = server.replica.log.read_text("utf-8", "replace").count("connections are open, the most there may be")
        wish.tell("connections: SIGTERM with slow readers")
        ended = await ended_beside_slow_readers(server)
    wrong = sum(not server.right(reply) for *_, reply in good)
    return Campaign(
        "connections",
        [
            Check("growth of memory by trailers and unread answers", held, "<=", HELD_MB, "MB"),
            Check("/livez meanwhile, p99", percentile(taken_ms(live), 99), "<=", LIVE_P99_MS, "ms"),
            Check("of these not answered 200", sum(reply.status != 200 for *_, reply in live), "=", 0),
            Check("upgrades not answered", sum(reply.status != 200 for reply in upgrades), "=", 0),
            Check("half-closed clients answered rightly", sum(half), "=", FEW),
            Check(f"good requests beside {SLOW} slow readers", len(good), ">=", GOOD),
            Check("of these, p99", percentile(taken_ms(good), 99), "<=", GOOD_P99_MS, "ms"),
            Check("of these lost or answered wrongly", wrong, "=", 0),
            Check(f"of {CROWD} connections, over the limit and not answered 503", crowd["unanswered"], "=", 0),
            Check("lines in the log about that", lines, "=", 1),
            Check("a request after that, answered rightly", again, "=", True),
            Check("connections still open", after["files"] - before["files"], "<=", 1),
            Check("SIGTERM with slow readers until the end", ended, "<=", TIMEOUT_S + GRACE_S, "s"),
        ],
        {"good": statuses(reply for *_, reply in good), "crowd": crowd, "before": before, "after": after},
    )


def limit_address_space(server: Server) -> None:
    import psutil

    server.worker().rlimit(psutil.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


@asynccontextmanager
async def beside(done: list[Done], ask: Callable[[], Coroutine[Any, Any, Any]]) -> AsyncIterator[None]:
    """Ask again and again until the block's end; `done` hears of it."""
    over = False
    asking = asyncio.create_task(closed_loop(ask, 1, lambda: over))
    try:
        yield
    finally:
        over = True
        done += await asking


@contextmanager
def deaf_socket() -> Iterator[socket.socket]:
    """A socket for the event loop that takes in as little as there can be."""
    with socket.socket() as found:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, AT_ONCE)
        found.setblocking(False)
        yield found


async def holding(server: Server, begins: Iterator[bytes], piece: bytes) -> None:
    """Send each beginning on a connection of its own, and pieces until the server takes no more; read nothing."""
    loop = asyncio.get_running_loop()

    async def one(begin: bytes) -> None:
        with deaf_socket() as wire, suppress(OSError, TimeoutError):
            async with asyncio.timeout(4 * TIMEOUT_S):
                await loop.sock_connect(wire, (HOST, server.port))
                await loop.sock_sendall(wire, begin)
                for _ in range(EACH_BYTES // len(piece)):
                    await loop.sock_sendall(wire, piece)

    await asyncio.gather(*(one(begin) for begin in begins))


async def byte_behind(server: Server) -> Wire:
    wire = await Wire.to(server.port)
    await wire.ask(get("/livez"))
    wire.send(b"\r")
    return wire


async def half_closed(server: Server, request: bytes) -> bool:
    wire = await Wire.to(server.port)
    wire.send(request)
    wire.transport.write_eof()
    return server.right(await wire.reply(2 * TIMEOUT_S))


async def slow_reader(server: Server, request: bytes, over: Callable[[], bool]) -> None:
    """Send requests as fast as they are taken and read a byte a second, on one connection after another."""
    loop = asyncio.get_running_loop()

    async def send(wire: socket.socket) -> None:
        with suppress(OSError):
            while True:
                await loop.sock_sendall(wire, request * (1 + AT_ONCE // len(request)))

    while not over():
        with deaf_socket() as wire, suppress(OSError):
            await loop.sock_connect(wire, (HOST, server.port))
            sending = asyncio.create_task(send(wire))
            try:
                while await loop.sock_recv(wire, 1) and not over():
                    await asyncio.sleep(1)
            finally:
                sending.cancel()
                await asyncio.wait([sending])
        await asyncio.sleep(0.1)


async def beside_slow_readers(wish: Wish, server: Server, seconds: float) -> list[Done]:
    """What good clients get while half of the slow readers send photographs, and half ask for a page."""
    over = passed(seconds)
    requests = [wish.smallest, get("/ui/")]
    slow = [asyncio.create_task(slow_reader(server, requests[i % 2], over)) for i in range(SLOW)]
    good = await closed_loop(lambda: server.pool.ask(wish.request), GOOD, over)
    await asyncio.gather(*slow)
    return good


async def crowded(server: Server) -> dict[str, int]:
    """More connections than there may be: what those over the limit are told, without asking."""
    wires = []
    for _ in range(CROWD):
        with suppress(OSError):
            wires.append(await Wire.to(server.port))
    told = Counter([(await wire.reply(0.5)).status for wire in wires[MOST : MOST + FEW]])
    for wire in wires:
        wire.close()
    return {"connected": len(wires), "refused": told[503], "unanswered": FEW - told[503]}


async def ended_beside_slow_readers(server: Server) -> float | None:
    """Seconds from SIGTERM to the end, with answers that nobody reads; None if it takes too long by far."""
    process, over = server.replica.process, passed(60.0)
    slow = [asyncio.create_task(slow_reader(server, get("/docs.json"), over)) for _ in range(HOLDERS)]
    await asyncio.sleep(1.0)
    began = time.perf_counter()
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.to_thread(process.wait, 60.0)
        return time.perf_counter() - began
    except subprocess.TimeoutExpired:
        return None
    finally:
        for task in slow:
            task.cancel()
        await asyncio.wait(slow)
