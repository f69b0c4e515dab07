"""`Connection` with a simulated clock and a scripted transport: no socket, and no waiting.

The event loop's clock jumps to the next timer; `Wire` is a transport and the client behind it, and checks after every
step what must hold of an open connection.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from typing import Any

import uvicorn
from uvicorn.server import ServerState

from serving.connection import CLOSED, GRACE, LINGER_S, MAX_AHEAD, Bounds, Connection
from serving.framing import MAX_HEAD

PIECE = 256 << 10  # the most that the event loop delivers at once
LARGEST = 300_000  # of the application's answers
KEEP_ALIVE = 5
TIMEOUT = 10.0
REQUESTS = 8
# The longest that a client which does nothing more can keep a connection: for each request, the time of its body, of
# its answer, and of reading that answer.
FOREVER = 3 * (TIMEOUT + GRACE) * REQUESTS + KEEP_ALIVE + LINGER_S


class Clock(selectors.BaseSelector):
    """A selector without sockets: time is all there is to wait for, and it passes at once."""

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

    def get_map(self) -> dict[Any, Any]:
        return {}


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.clock = Clock()
        super().__init__(self.clock)

    def time(self) -> float:
        return self.clock.now


class Watched(Connection):
    def _hung_up(self) -> bool:
        return self.transport.reset  # type: ignore[attr-defined, no-any-return]


class Wire:
    """A transport and the client behind it, which reads only when told to."""

    def __init__(self, loop: Loop, app: Callable[..., Awaitable[None]], room: int = 1 << 30) -> None:
        config = uvicorn.Config(
            app, log_config=None, lifespan="off", timeout_keep_alive=KEEP_ALIVE, http=Watched, ws="none"
        )
        config.load()
        self.loop, self.room, self.state = loop, room, ServerState()
        self.came, self.unread = bytearray(), bytearray()
        self.reading, self.paused, self.closing, self.lost = True, False, False, False
        self.eof = self.ended = self.gone = self.reset = False
        self.protocol = Watched(config, self.state, {}, loop, bounds=Bounds(TIMEOUT))
        self.protocol.connection_made(self)  # type: ignore[arg-type]
        self.check()

    # The client

    def send(self, data: bytes) -> bool:
        """Send `data`; False if it was not accepted because reading is paused."""
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
        """Close the client's socket: until it is sent something, this looks like the end of its sending."""
        self.gone = True
        self.end()

    def read(self, size: int) -> None:
        self.room += size
        self._flush()
        self.check()

    def check(self) -> None:
        """Check what must hold at any time while the connection is open."""
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
        assert len(self.state.tasks) <= 2  # an answered one may still have to end

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


async def app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
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
