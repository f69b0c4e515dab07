"""`Connection` on a clock of its own and a transport that is a script: what must hold after every step, whatever comes.

No socket and no waiting: an event loop whose clock jumps to the next timer, and a client that sends pieces, reads
little, ends its side, hangs up or does nothing, drawn from a seed.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from serving.connection import CLOSED, GRACE, LINGER_S, MAX_AHEAD, Connection
from serving.framing import MAX_HEAD

PIECE = 256 << 10  # the most that the event loop hands over at once
LARGEST = 300_000  # of the application's answers
KEEP_ALIVE = 5
TIMEOUT = 10.0
REQUESTS = 8
# The longest that a client which does nothing more can keep a connection: each request in its body, at work and unread.
FOREVER = 3 * (TIMEOUT + GRACE) * REQUESTS + KEEP_ALIVE + LINGER_S


class Clock(selectors.BaseSelector):
    """Nothing to wait for but time, which passes at once."""

    def __init__(self) -> None:
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[Any]:
        assert timeout is not None, "nothing would ever happen again"
        self.now += timeout
        return []

    def close(self) -> None:
        pass

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        return selectors.SelectorKey(fileobj, 0, 0, None)

    def get_map(self) -> dict[Any, Any]:  # type: ignore[override]
        return {}


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


class Watched(Connection):
    timeout = TIMEOUT

    def _hung_up(self) -> bool:
        return self.transport.reset  # type: ignore[attr-defined, no-any-return]


class Wire:
    """A transport and the client behind it, which reads when told to."""

    def __init__(self, loop: Loop, app: Callable[..., Awaitable[None]], room: int = 1 << 30) -> None:
        config = uvicorn.Config(
            app, log_config=None, lifespan="off", timeout_keep_alive=KEEP_ALIVE, http=Watched, ws="none"
        )
        config.load()
        self.loop, self.room, self.state = loop, room, ServerState()
        self.came, self.unread = bytearray(), bytearray()
        self.reading, self.paused, self.closing, self.lost = True, False, False, False
        self.eof = self.ended = self.gone = self.reset = False
        self.protocol = Watched(config, self.state, {}, loop)
        self.protocol.connection_made(self)  # type: ignore[arg-type]
        self.check()

    # The client

    def send(self, data: bytes) -> bool:
        """Whether it was taken; it is not while reading is paused."""
        if self.closing or not self.reading or self.eof:
            return False
        self.protocol.data_received(data)
        self.check()
        return True

    def end(self) -> None:
        if not (self.closing or self.eof) and self.reading:
            self.eof = True
            if not self.protocol.eof_received():
                self.close()
            self.check()

    def hang_up(self) -> None:
        """Close the client's socket: it looks like the end of its sending until something is sent."""
        self.gone = True
        self.end()

    def read(self, size: int) -> None:
        self.room += size
        self._flush()
        self.check()

    def check(self) -> None:
        """What must hold at any time while the connection is open."""
        connection = self.protocol
        if self.lost:
            return
        timer = connection._timer
        assert timer is not None and not timer.cancelled(), connection.state
        assert timer.when() <= self.loop.time() + TIMEOUT + GRACE + 1e-6, connection.state
        assert connection.state != CLOSED
        assert len(connection._ahead) <= MAX_AHEAD + PIECE
        assert not (self.reading and not self.closing) or len(connection._ahead) <= MAX_AHEAD
        if connection.cycle is not None:
            assert len(connection.cycle.body) <= MAX_AHEAD + PIECE
        assert sum(len(value) + len(name) for name, value in connection.headers) <= MAX_HEAD
        assert len(self.unread) <= LARGEST + 1000
        assert len(self.state.tasks) <= 2  # one that is answered may still have to end

    # The transport

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return default

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == 0

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return self.closing

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.ended = True

    def writelines(self, pieces: tuple[bytes, ...]) -> None:
        self.write(b"".join(pieces))

    def write(self, data: bytes) -> None:
        assert not self.ended, "written behind the end"
        if self.gone:
            self.reset = True
        if self.lost or self.gone:
            return
        self.unread += data
        self._flush()
        if self.unread and not self.paused:
            self.paused = True
            self.protocol.pause_writing()

    def _flush(self) -> None:
        if self.gone:
            return
        self.came += self.unread[: self.room]
        taken = min(self.room, len(self.unread))
        self.room -= taken
        del self.unread[:taken]
        if self.unread:
            return
        if self.closing and not self.lost:
            self._lose()
        elif self.paused:
            self.paused = False
            self.protocol.resume_writing()

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if not self.unread or self.gone:
                self._lose()

    def abort(self) -> None:
        self.closing = True
        self._lose()

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            self.loop.call_soon(self.protocol.connection_lost, None)


async def app(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]):
    """Answers as the path says, within the time that a request has, unless the client is gone."""
    seen, body = 0, b"%d" % len(scope["path"])
    with suppress(TimeoutError):
        async with asyncio.timeout(TIMEOUT):
            more = not scope["path"].startswith("/early")
            while more:
                message = await receive()
                if message["type"] == "http.disconnect":
                    return
                seen, more = seen + len(message["body"]), message["more_body"]
            if scope["path"].startswith("/slow"):
                wait = asyncio.ensure_future(receive())
                done, _ = await asyncio.wait([wait], timeout=TIMEOUT / 2)
                wait.cancel()
                if done:
                    return
    if scope["path"].startswith("/large"):
        body = bytes(LARGEST)
    name = scope["path"].rpartition("/")[2].encode()
    headers = [(b"content-length", b"%d" % len(body)), (b"x-name", name), (b"x-seen", b"%d" % seen)]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def run(script: Callable[[Loop], Coroutine[Any, Any, None]]) -> None:
    loop = Loop()
    try:
        loop.run_until_complete(script(loop))
    finally:
        loop.close()


async def settle(steps: int = 20) -> None:
    for _ in range(steps):
        await asyncio.sleep(0)


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


def answers(came: bytes) -> list[bytes]:
    return [line[8:] for line in came.split(b"\r\n") if line.startswith(b"x-name: ")]


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
        if stopping:  # whatever the client does, it is over within the time that a request has and a little
            await asyncio.sleep(max(0.0, stopped + TIMEOUT + GRACE + 0.1 - loop.time()))
            assert wire.lost
        await asyncio.sleep(FOREVER)  # the client does nothing more
        assert wire.lost and not wire.state.tasks and not wire.state.connections

    run(script)


@pytest.mark.parametrize("seed", range(150))
def test_good_requests_are_all_answered_in_order_in_whatever_pieces_they_come(seed: int) -> None:
    chance = random.Random(seed)

    async def script(loop: Loop) -> None:
        wire = Wire(loop, app)
        requests = [request(chance, i) for i in range(6)]
        # A request that is answered before its body, or before it was told to go on, may end the connection.
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
        assert not half or wire.lost  # with the last answer, not by a timer

    run(script)


GET = b"GET /%s HTTP/1.1\r\nHost: a\r\n\r\n"


def after(*steps: Callable[[Wire], object], seconds: float, room: int = 1 << 30) -> Wire:
    """The wire after these steps, each one settled, and so many seconds in which the client does nothing."""
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
def test_a_byte_behind_an_answer_does_not_keep_the_connection(byte: bytes) -> None:
    wire = after(sending(GET % b"fast"), sending(byte), seconds=TIMEOUT + LINGER_S + 0.1)
    assert wire.lost and answers(wire.came) == [b"fast"]


def test_requests_sent_ahead_wait_for_the_answer_before_them_to_be_read() -> None:
    many = GET % b"fast" * 20_000  # some 800 kB
    ahead = [sending(many[at : at + PIECE]) for at in range(0, len(many), PIECE)]
    wire = after(sending(GET % b"large"), *ahead, seconds=TIMEOUT / 2, room=1000)
    assert not wire.lost and not wire.reading and wire.state.total_requests == 1 and not wire.state.tasks
    wire = after(sending(GET % b"large"), *ahead, seconds=TIMEOUT + 0.1, room=1000)
    assert wire.lost and wire.state.total_requests == 1


def test_trailers_and_what_surrounds_chunks_are_not_held() -> None:
    head = b"POST /fast HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n"
    fields = b"X-Trailer: 1\r\n" * (PIECE // 14)
    wire = after(sending(head + fields), sending(fields), seconds=0)
    assert b" 431 " in wire.came and len(wire.protocol.headers) == 2


def test_idle_connections_are_closed_at_once_by_a_shutdown() -> None:
    assert after(shutting_down, seconds=0).lost
    assert after(sending(GET % b"fast"), shutting_down, seconds=0).lost
    assert after(sending(b"GET"), shutting_down, seconds=0).lost


def test_what_is_under_way_at_a_shutdown_is_answered_and_what_is_behind_it_is_not() -> None:
    wire = after(sending(GET % b"slow" + GET % b"fast"), shutting_down, seconds=TIMEOUT / 2 + 0.1)
    assert wire.lost and answers(wire.came) == [b"slow"] and b"connection: close" in wire.came


def test_an_answer_that_is_not_read_ends_with_a_shutdown() -> None:
    wire = after(sending(GET % b"large"), shutting_down, seconds=GRACE + 0.1, room=1000)
    assert wire.lost and wire.unread


def test_an_answer_that_is_read_slowly_has_a_time_and_no_more() -> None:
    def one_byte_a_second(wire: Wire) -> None:
        for second in range(int(TIMEOUT)):
            wire.loop.call_later(second, lambda: wire.lost or wire.read(1))

    assert not after(sending(GET % b"large"), one_byte_a_second, seconds=TIMEOUT - 0.5, room=1000).lost
    assert after(sending(GET % b"large"), one_byte_a_second, seconds=TIMEOUT + 0.1, room=1000).lost


def test_a_connection_that_is_kept_costs_no_timer_for_each_request() -> None:
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
