"""A raw connection: whatever the client does, it keeps little in memory, answers each request once, and ends.

An input is what a client sends. Byte 0x1e and a letter stand for an action: see `DEEDS`. Time is simulated.
"""

from __future__ import annotations

import asyncio
import atexit
import logging
import re
import selectors
import socket
from collections import deque
from typing import Any

import h11
import uvicorn
from uvicorn.server import ServerState

from serving.connection import Bounds, Connection
from tests.fuzzing.target import Defect, Target

DEEDS = {
    b"|": "sends what follows in another piece",
    b"T": "does nothing for a while",
    b"P": "stops reading",
    b"R": "reads all there is, and on",
    b"X": "sends the piece before it again and again",
    b"A": "waits until the application answers those requests that it has let wait",
    b"E": "ends its sending",
    b"C": "hangs up",
    b"S": "sees the server shut down",
}
DEED = re.compile(rb"\x1e([|TPRXAECS])")

WHILE = 2.5  # seconds, of simulated time
AT_LAST = 600.0  # when a connection whose client does nothing more must be closed
ANSWER = 96 << 10  # bytes of a large one
REPEATED, REPEATS = 512 << 10, 32  # bytes and pieces of one X, at most
HIGH = 64 << 10  # asyncio pauses writing above this mark
MOST_IN = 256 << 10  # kept of what was received
MOST_OUT = 2 * ANSWER  # kept of what is to be sent
TURNS = 20_000  # of the event loop, enough for everything that needs no waiting

logging.getLogger("bentoml.podium").setLevel(logging.CRITICAL)  # a line for each connection above the limit


class Instant(selectors.DefaultSelector):
    """Does not wait: it sets the clock forward."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        ready = super().select(0)
        if timeout is None and not ready:
            raise Defect("the connection waits for ever")
        if not ready and timeout:
            self.now += timeout
        return ready


class Loop(asyncio.SelectorEventLoop):
    def __init__(self) -> None:
        self.instant = Instant()
        super().__init__(self.instant)
        self.failures: list[str] = []
        self.set_exception_handler(lambda _, context: self.failures.append(str(context.get("exception") or context)))

    def time(self) -> float:
        return self.instant.now

    def timers(self) -> int:
        return sum(not handle.cancelled() for handle in self._scheduled)  # type: ignore[attr-defined]


class Wire(asyncio.Transport):
    """A transport whose other end is the input."""

    ends = socket.socketpair()
    for end in ends:
        atexit.register(end.close)

    def __init__(self, loop: Loop, protocol: Any) -> None:
        super().__init__()
        self.loop, self.protocol = loop, protocol
        self.sent, self.unread = bytearray(), bytearray()
        self.reading, self.read_by_client = True, True
        self.paused = self.closing = self.lost = self.aborted = self.sending_ended = False
        self.high = HIGH

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self.ends[0] if name == "socket" else default

    def write(self, data: Any) -> None:
        if self.lost or self.aborted:
            return
        if self.sending_ended:
            raise RuntimeError("write() after write_eof()")
        self.sent += data
        if not self.read_by_client:
            self.unread += data
            if len(self.unread) > self.high and not self.paused:
                self.paused = True
                self.protocol.pause_writing()

    def writelines(self, pieces: Any) -> None:
        self.write(b"".join(pieces))

    def client_reads(self) -> None:
        self.read_by_client = True
        self.unread.clear()
        if self.paused:
            self.paused = False
            self.protocol.resume_writing()
        if self.closing:
            self._lose()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = HIGH if high is None else high

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.sending_ended = True

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_reading(self) -> bool:
        return self.reading and not self.closing

    def is_closing(self) -> bool:
        return self.closing

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def close(self) -> None:
        self.closing = True
        if not self.unread:
            self._lose()

    def abort(self) -> None:
        self.closing = self.aborted = True
        self._lose()

    def _lose(self) -> None:
        if not self.lost:
            self.lost = True
            self.loop.call_soon(self.protocol.connection_lost, None)


class Talk:
    """One connection from its first byte to its end."""

    def __init__(self, loop: Loop) -> None:
        self.loop, self.methods, self.gate = loop, list[str](), asyncio.Event()
        config = uvicorn.Config(
            self.app, log_config=None, access_log=False, lifespan="off", interface="asgi3", timeout_keep_alive=5
        )
        config.load()
        self.protocol: Any = Connection(config, ServerState(), {}, loop, bounds=Bounds())
        self.wire = Wire(loop, self.protocol)
        self.last = b""

    async def app(self, scope: Any, receive: Any, send: Any) -> None:
        """Reads and answers; by its path, late, early, at length, in pieces, or without reading."""
        if scope["type"] != "http":
            return
        self.methods.append(scope["method"])
        path, size, more = scope["path"], 0, True
        if "wait" in path:
            await self.gate.wait()
        while more and "deaf" not in path:
            message = await receive()
            size, more = size + len(message.get("body", b"")), message.get("more_body", False)
        body = bytes(ANSWER) if "big" in path else b"%d" % size
        pieces = [body[:1], body[1:]] if "pieces" in path else [body]
        headers = [] if "pieces" in path else [(b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        for piece in pieces:
            await send({"type": "http.response.body", "body": piece, "more_body": piece is not pieces[-1]})

    async def run(self, data: bytes) -> None:
        self.protocol.connection_made(self.wire)
        first, *rest = DEED.split(data)
        await self.send(first)
        for deed, piece in zip(rest[::2], rest[1::2], strict=True):
            await self.do(deed)
            await self.send(piece)
        self.gate.set()
        await self.settle()
        await asyncio.sleep(AT_LAST)
        if not self.wire.lost:
            raise Defect(f"the connection is open {AT_LAST:g} s after its client's last deed")
        await self.settle()
        answered(bytes(self.wire.sent), self.methods, whole=not self.wire.aborted)

    async def do(self, deed: bytes) -> None:
        if deed == b"T":
            await asyncio.sleep(WHILE)
        elif deed == b"P":
            self.wire.read_by_client = False
        elif deed == b"R":
            self.wire.client_reads()
        elif deed == b"X" and self.last:
            for _ in range(min(REPEATS, REPEATED // len(self.last))):
                await self.send(self.last)
        elif deed == b"A":
            self.gate.set()
            await self.settle()
            self.gate.clear()
        elif deed == b"E" and self.wire.is_reading():
            if not self.protocol.eof_received():
                self.wire.close()
        elif deed == b"C":
            self.wire.abort()
        elif deed == b"S" and not self.wire.lost:
            self.protocol.shutdown()
        await self.settle()

    async def send(self, piece: bytes) -> None:
        if not piece or not self.wire.is_reading():
            return
        self.last = piece
        self.wire.protocol.data_received(piece)
        await self.settle()

    async def settle(self) -> None:
        """Let everything happen that needs no waiting; then check what is kept, and that a timer will end it."""
        for _ in range(TURNS):
            await asyncio.sleep(0)
            if not self.loop._ready:  # type: ignore[attr-defined]
                break
        else:
            raise Defect(f"not settled after {TURNS:,} turns of the event loop")
        if self.loop.failures:
            raise Defect(self.loop.failures[0])
        if (size := len(self.wire.unread)) > MOST_OUT:
            raise Defect(f"{size:,} bytes of answers that nobody reads are held")
        if self.wire.lost:
            return
        if (size := held(self.wire.protocol)) > MOST_IN:
            raise Defect(f"{size:,} bytes of requests are held")
        if not self.loop.timers():
            raise Defect("the connection is open and has no timer")


def held(root: object) -> int:
    """Bytes that `root` refers to, through containers and the objects of the server."""
    total, seen, left = 0, {id(root)}, list[object](vars(root).values())
    while left:
        item = left.pop()
        if id(item) in seen:
            continue
        seen.add(id(item))
        if isinstance(item, bytes | bytearray):
            total += len(item)
        elif isinstance(item, dict):
            left += [*item, *item.values()]
        elif isinstance(item, list | tuple | set | deque):
            left += item
        elif type(item).__module__.partition(".")[0] in ("serving", "uvicorn"):
            left += vars(item).values()
    return total


def answered(sent: bytes, methods: list[str], whole: bool) -> None:
    """Raises Defect unless `sent` answers the requests of these methods, with at most one refusal after them."""
    count = 0
    while sent:
        if count > len(methods):
            raise Defect(f"{len(methods)} requests have more answers than one more: {sent[:80]!r} follows")
        client = h11.Connection(h11.CLIENT)
        client.send(
            h11.Request(
                method="HEAD" if methods[count:][:1] == ["HEAD"] else "GET", target="/", headers=[("host", "a")]
            )
        )
        client.send(h11.EndOfMessage())
        client.receive_data(sent)
        try:
            while not isinstance(event := client.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    if whole:
                        raise Defect(f"the answer is cut off: {sent[:200]!r}")
                    return
        except h11.RemoteProtocolError as error:
            raise Defect(f"{error}: {sent[:200]!r}") from error
        sent, count = client.trailing_data[0], count + 1


def run(data: bytes) -> None:
    loop = Loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(Talk(loop).run(data))
    finally:
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        asyncio.set_event_loop(None)
        loop.close()
    if loop.failures:
        raise Defect(loop.failures[0])


TARGET = Target(run, seconds=5.0, memory=100_000_000, longest=1 << 14)
