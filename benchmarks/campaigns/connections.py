"""Connections that are a burden: endless trailers, answers that nobody reads, clients that end their sending."""

from __future__ import annotations

import asyncio
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from itertools import repeat

from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.target import Service, Target
from benchmarks.load.loops import Done, after, closed_loop, percentile, taken_ms
from benchmarks.load.wire import HOST, Reply, Wire, again_after, get, once, statuses

TIMEOUT_S = 3.0
# A shutdown takes at most as long as a request may, and this.
GRACE_S = 5.0
# Address space of the process that serves: good clients must find room beside what is held for others.
ADDRESS_SPACE = 2 << 30
GOOD, GOOD_P99_MS, LIVE_P99_MS = 4, 2000.0, 1000.0

SLOW, HOLDERS, FEW = 64, 10, 20
# Bytes that each bad client tries to make the service hold, and how much all of them together may.
EACH_BYTES, HELD_MB = 60_000_000, 150.0
MOST, CROWD = 200, 300

# Bytes that a client hands the kernel at once, so that sending takes no time from the good clients beside it.
AT_ONCE = 64 << 10

HEAD = f"HTTP/1.1\r\nHost: {HOST}\r\n".encode()
TRAILERS = b"POST /classify " + HEAD + b"Transfer-Encoding: chunked\r\n\r\n0\r\n"
UPGRADE = b"GET /livez " + HEAD + b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"


async def connections(target: Target) -> Campaign:
    seconds = 4.0 if target.brief else 20.0
    behind_an_answer = Counter[bool]()
    async with target.service(TIMEOUT_MS=1000 * TIMEOUT_S, MAX_CONNECTIONS=MOST) as service:
        limit_address_space(service)
        before = await service.at_rest()
        service.forget_peak()
        live: list[Done[Reply]] = []
        async with beside(live, lambda: once(service.port, get("/livez"))):
            target.tell("connections: trailers, and requests whose answers nobody reads")
            await holding(service, repeat(TRAILERS, 1), b"X-Trailer: " + b"a" * 8000 + b"\r\n")
            await holding(service, repeat(b"", HOLDERS), get("/metrics") * 100)
            held = service.peak_mb() - before["rss_mb"]
            target.tell("connections: bytes behind an answer, upgrades, closed sides")
            behind = [await byte_behind(service) for _ in range(FEW)]
            upgrades = [await once(service.port, UPGRADE, 2 * TIMEOUT_S) for _ in range(FEW)]
            half = [await half_closed(service, target.request) for _ in range(FEW)]
        target.tell(f"connections: {SLOW} slow readers")
        good = await beside_slow_readers(target, service, seconds)
        await asyncio.sleep(TIMEOUT_S)
        crowd = await crowded(service)
        for wire in behind:
            behind_an_answer[wire.open] += 1
        await asyncio.sleep(TIMEOUT_S)
        again = service.right(await once(service.port, target.request))
        after = await service.at_rest()
        for wire in behind:
            wire.close()
        lines = service.log.read_text("utf-8", "replace").count("connections are open, the most there may be")
        target.tell("connections: SIGTERM with slow readers")
        ended = await ended_beside_slow_readers(service)
    wrong = sum(not service.right(done.answer) for done in good)
    dead = sum(done.answer.status != 200 for done in live)
    return Campaign(
        "connections",
        [
            Check("growth of memory by trailers and unread answers", held, "<=", HELD_MB, "MB"),
            Check("/livez meanwhile, p99", percentile(taken_ms(live), 99), "<=", LIVE_P99_MS, "ms"),
            Check("of these not answered 200", dead, "=", 0),
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
        {"good": statuses(done.answer for done in good), "crowd": crowd, "before": before, "after": after},
    )


def limit_address_space(service: Service) -> None:
    import psutil

    service.worker().rlimit(psutil.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))


@asynccontextmanager
async def beside(done: list[Done[Reply]], ask: Callable[[], Awaitable[Reply]]) -> AsyncIterator[None]:
    """Ask again and again until the block ends; the requests are then added to `done`."""
    over = False
    asking = asyncio.create_task(closed_loop(ask, 1, lambda: over, again_after))
    try:
        yield
    finally:
        over = True
        done += await asking


@contextmanager
def deaf_socket() -> Iterator[socket.socket]:
    """A socket for the event loop that receives as little as possible."""
    with socket.socket() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, AT_ONCE)
        deaf.setblocking(False)
        yield deaf


async def holding(service: Service, begins: Iterator[bytes], piece: bytes) -> None:
    """Send each beginning on a connection of its own, then pieces until the service takes no more; read nothing."""
    loop = asyncio.get_running_loop()

    async def client(begin: bytes) -> None:
        with deaf_socket() as wire, suppress(OSError, TimeoutError):
            async with asyncio.timeout(4 * TIMEOUT_S):
                await loop.sock_connect(wire, (HOST, service.port))
                await loop.sock_sendall(wire, begin)
                for _ in range(EACH_BYTES // len(piece)):
                    await loop.sock_sendall(wire, piece)

    await asyncio.gather(*(client(begin) for begin in begins))


async def byte_behind(service: Service) -> Wire:
    wire = await Wire.to(service.port)
    await wire.ask(get("/livez"))
    wire.send(b"\r")
    return wire


async def half_closed(service: Service, request: bytes) -> bool:
    wire = await Wire.to(service.port)
    wire.send(request)
    wire.transport.write_eof()
    return service.right(await wire.reply(2 * TIMEOUT_S))


async def slow_reader(service: Service, request: bytes, over: Callable[[], bool]) -> None:
    """Send requests as fast as they are taken and read a byte a second, on one connection after another."""
    loop = asyncio.get_running_loop()

    async def send(wire: socket.socket) -> None:
        with suppress(OSError):
            while True:
                await loop.sock_sendall(wire, request * (1 + AT_ONCE // len(request)))

    while not over():
        with deaf_socket() as wire, suppress(OSError):
            await loop.sock_connect(wire, (HOST, service.port))
            sending = asyncio.create_task(send(wire))
            try:
                while await loop.sock_recv(wire, 1) and not over():
                    await asyncio.sleep(1)
            finally:
                sending.cancel()
                await asyncio.wait([sending])
        await asyncio.sleep(0.1)


async def beside_slow_readers(target: Target, service: Service, seconds: float) -> list[Done[Reply]]:
    """What good clients get while half of the slow readers send photographs, and half ask for a page."""
    over = after(seconds)
    requests = [target.smallest, get("/ui/")]
    slow = [asyncio.create_task(slow_reader(service, requests[i % 2], over)) for i in range(SLOW)]
    good = await closed_loop(lambda: service.pool.ask(target.request), GOOD, over, again_after)
    await asyncio.gather(*slow)
    return good


async def crowded(service: Service) -> dict[str, int]:
    """Open more connections than allowed: what those over the limit are told without asking."""
    wires = []
    for _ in range(CROWD):
        with suppress(OSError):
            wires.append(await Wire.to(service.port))
    told = Counter([(await wire.reply(0.5)).status for wire in wires[MOST : MOST + FEW]])
    for wire in wires:
        wire.close()
    return {"connected": len(wires), "refused": told[503], "unanswered": FEW - told[503]}


async def ended_beside_slow_readers(service: Service) -> float | None:
    """Seconds from SIGTERM to the end, with answers that nobody reads; None if it takes far too long."""
    over, process = after(60.0), service.process
    slow = [asyncio.create_task(slow_reader(service, get("/docs.json"), over)) for _ in range(HOLDERS)]
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
