"""What must hold for a connection after every step, whatever a client does: bounds, a timer, an end at shutdown.

A client sends pieces, reads little, ends its side, hangs up or does nothing, drawn from a seed; see
tests/fakes/clockwork.py.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from serving.connection import GRACE, LINGER_S
from tests.fakes.clockwork import FOREVER, PIECE, REQUESTS, TIMEOUT, Loop, Wire, app, run, settle


def request(random: random.Random, number: int) -> bytes:
    path = random.choice(["/fast", "/slow", "/early", "/large"])
    size = random.choice([0, 1, 100, 100_000])
    kind = random.choice(["GET", "length", "chunked", "upgrade", "expect", "chunked upgrade"])
    head = b"Host: a\r\n"
    if "upgrade" in kind:
        head += b"Connection: Upgrade\r\nUpgrade: h2c\r\n"
    if kind == "expect":
        head += b"Expect: 100-continue\r\n"
    if kind == "GET":
        return b"GET %s/%d HTTP/1.1\r\n%s\r\n" % (path.encode(), number, head)
    body = random.randbytes(size).replace(b"\0", b"\r\n\r\n")
    if "chunked" in kind:
        cut = random.randrange(len(body) + 1)
        chunks = b"".join(b"%x;e=1\r\n%s\r\n" % (len(part), part) for part in (body[:cut], body[cut:]) if part)
        framing, body = b"Transfer-Encoding: chunked\r\n", chunks + b"0\r\nX-Trailer: 1\r\n\r\n"
    else:
        framing = b"Content-Length: %d\r\n" % len(body)
    return b"POST %s/%d HTTP/1.1\r\n%s%s\r\n%s" % (path.encode(), number, head, framing, body)


def pieces(random: random.Random, stream: bytes) -> list[bytes]:
    found = []
    while stream:
        size = min(PIECE, random.choice([1, 3, 20, 1000, 60_000, PIECE]))
        found.append(stream[:size])
        stream = stream[size:]
    return found


def answers(came: bytes | bytearray) -> list[bytes]:
    return [bytes(line[8:]) for line in came.split(b"\r\n") if line.startswith(b"x-name: ")]


@pytest.mark.parametrize("seed", range(150))
def test_every_step_of_any_client_keeps_the_bounds(seed: int) -> None:
    chance = random.Random(seed)

    async def script(loop: Loop) -> None:
        wire = Wire(loop, app, room=chance.choice([0, 100, 5000, 1 << 30]))
        broken = chance.random() < 0.3
        stream = b"".join(request(chance, i) for i in range(chance.randrange(REQUESTS)))
        if broken:
            at = chance.randrange(len(stream) + 1)
            stream = stream[:at] + chance.choice([b"\0", b"\r\r\n", b"Host: b\r\n", bytes(70_000)]) + stream[at:]
        waiting, stopping = pieces(chance, stream), False
        while not wire.lost and (waiting or chance.random() < 0.8):
            match chance.randrange(14):
                case 0:
                    wire.end()
                case 1 if chance.random() < 0.3:
                    wire.hang_up()
                case 2 if not stopping and chance.random() < 0.2:
                    wire.protocol.shutdown()
                    stopping, stopped = True, loop.time()
                    wire.check()
                case 3 | 4:
                    wire.read(chance.choice([1, 100, 100_000]))
                case 5:
                    await asyncio.sleep(chance.choice([0.01, 1.0, TIMEOUT]))
                case 6:
                    await settle()
                case _ if waiting and wire.send(waiting[0]):
                    waiting.pop(0)
                case _:
                    await settle(2)
            wire.check()
        if stopping:  # whatever the client does, the connection ends soon after the time that a request has
            await asyncio.sleep(max(0.0, stopped + TIMEOUT + GRACE + 0.1 - loop.time()))
            assert wire.lost
        await asyncio.sleep(FOREVER)  # the client does nothing more
        assert wire.lost and not wire.state.tasks and not wire.state.connections

    run(script)


@pytest.mark.parametrize("seed", range(150))
def test_good_requests_are_all_answered_in_order_however_they_are_cut(seed: int) -> None:
    chance = random.Random(seed)

    async def script(loop: Loop) -> None:
        wire = Wire(loop, app)
        requests = [request(chance, i) for i in range(6)]
        # A request that is answered before its body has arrived, or before "100 Continue", may end the connection.
        requests = [one for one in requests if b" /early" not in one]
        for piece in pieces(chance, b"".join(requests)):
            while not wire.send(piece):
                await asyncio.sleep(0.1)
            if chance.random() < 0.5:
                await settle()
        if half := chance.random() < 0.5:
            while not wire.reading:
                await asyncio.sleep(0.1)
            wire.end()
        await asyncio.sleep(0.1 + sum(TIMEOUT / 2 for one in requests if b" /slow" in one))
        names = [one.split(b" ")[1].rpartition(b"/")[2] for one in requests]
        assert answers(bytes(wire.came)) == names
        assert not half or wire.lost  # because of the last answer, not of a timer

    run(script)


GET = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"


def after(*steps: Callable[[Wire], object], seconds: float, room: int = 1 << 30) -> Wire:
    """The wire after these steps, each one settled, and after `seconds` in which the client does nothing."""
    wires = []

    async def script(loop: Loop) -> None:
        wire = Wire(loop, app, room)
        wires.append(wire)
        for step in steps:
            step(wire)
            await settle()
        await asyncio.sleep(seconds)
        wire.check()

    run(script)
    return wires[0]


def sending(data: bytes) -> Callable[[Wire], object]:
    return lambda wire: wire.send(data)


def shutting_down(wire: Wire) -> None:
    wire.protocol.shutdown()


@pytest.mark.parametrize("byte", [b"G", b"\r", b"\n", b"\0"])
def test_a_byte_after_an_answer_does_not_keep_the_connection_open(byte: bytes) -> None:
    wire = after(sending(GET % b"fast"), sending(byte), seconds=TIMEOUT + LINGER_S + 0.1)
    assert wire.lost and answers(wire.came) == [b"fast"]


def test_pipelined_requests_wait_until_the_previous_answer_is_read() -> None:
    many = GET % b"fast" * 20_000  # some 800 kB
    ahead = [sending(many[at : at + PIECE]) for at in range(0, len(many), PIECE)]
    wire = after(sending(GET % b"large"), *ahead, seconds=TIMEOUT / 2, room=1000)
    assert not wire.lost and not wire.reading and wire.state.total_requests == 1 and not wire.state.tasks
    wire = after(sending(GET % b"large"), *ahead, seconds=TIMEOUT + 0.1, room=1000)
    assert wire.lost and wire.state.total_requests == 1


def test_trailers_and_chunk_extensions_are_not_kept_in_memory() -> None:
    head = b"POST /fast HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    fields = b"X-Trailer: 1\r\n" * (PIECE // 14)
    wire = after(sending(head + fields), sending(fields), seconds=0)
    assert b" 431 " in wire.came and len(wire.protocol.headers) == 2


def test_idle_connections_are_closed_at_once_by_a_shutdown() -> None:
    assert after(shutting_down, seconds=0).lost
    assert after(sending(GET % b"fast"), shutting_down, seconds=0).lost
    assert after(sending(b"GET"), shutting_down, seconds=0).lost


def test_a_shutdown_answers_the_current_request_and_not_those_behind_it() -> None:
    wire = after(sending(GET % b"slow" + GET % b"fast"), shutting_down, seconds=TIMEOUT / 2 + 0.1)
    assert wire.lost and answers(wire.came) == [b"slow"] and b"connection: close" in wire.came


def test_an_answer_that_is_not_read_ends_with_a_shutdown() -> None:
    wire = after(sending(GET % b"large"), shutting_down, seconds=GRACE + 0.1, room=1000)
    assert wire.lost and wire.unread


def test_an_answer_that_is_read_slowly_has_a_limit_of_time() -> None:
    def one_byte_a_second(wire: Wire) -> None:
        for second in range(int(TIMEOUT)):
            wire.loop.call_later(second, lambda: None if wire.lost else wire.read(1))

    assert not after(sending(GET % b"large"), one_byte_a_second, seconds=TIMEOUT - 0.5, room=1000).lost
    assert after(sending(GET % b"large"), one_byte_a_second, seconds=TIMEOUT + 0.1, room=1000).lost


def test_a_kept_connection_needs_no_timer_for_each_request() -> None:
    armed = 0

    async def script(loop: Loop) -> None:
        nonlocal armed
        wire = Wire(loop, app)
        arm = wire.protocol._arm

        def counted() -> None:
            nonlocal armed
            armed += 1
            arm()

        wire.protocol._arm = counted  # type: ignore[method-assign]
        for _ in range(100):
            wire.send(GET % b"fast")
            await settle()
        assert wire.state.total_requests == 100

    run(script)
    assert armed <= 2
