"""A client of HTTP/1.1 with as little around it as possible: it shares two cores with the server that it overloads. It
can also break off, dribble and lie, which no HTTP library lets it do.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Literal, NamedTuple, cast

HOST = "127.0.0.1"
PATIENCE_S = 60.0

# The server drops a connection that was quiet for 5 s; one that may be about to end is not used again.
FRESH_S = 3.0

# How long a client that got no good answer waits before it asks again.
AGAIN_S = 0.01

Lost = Literal["", "unreachable", "timeout", "disconnected", "not HTTP"]


class Reply(NamedTuple):
    """What came back. `status` is 0 if no whole answer came; `lost` then says why."""

    status: int = 0
    head: bytes = b""
    body: bytes = b""
    lost: Lost = ""

    @property
    def outcome(self) -> str:
        """The status, or a word for why there is none."""
        return str(self.status or self.lost or "no answer")

    def header(self, name: bytes) -> bytes | None:
        """The value of the header `name` (lower case); None without such a header."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name:
                return value.strip()
        return None

    @property
    def answer(self) -> dict[str, Any]:
        """The JSON object in the body; empty if the body holds none."""
        with suppress(ValueError):
            answer = json.loads(self.body)
            return answer if isinstance(answer, dict) else {}
        return {}


def statuses(replies: Iterable[Reply]) -> dict[str, int]:
    """How often each status came, and each word for why there was none."""
    return dict(sorted(Counter(reply.outcome for reply in replies).items()))


def again_after(reply: Reply) -> float:
    """Seconds that a client waits after `reply` before it asks again."""
    return 0.0 if reply.status == 200 else AGAIN_S


def request(
    body: bytes = b"",
    content_type: str | None = "image/jpeg",
    target: str = "/classify",
    method: str = "POST",
    headers: Sequence[tuple[str, str]] = (),
    host: str = HOST,
) -> bytes:
    """A request of HTTP/1.1, well formed if its arguments are."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {host}", f"Content-Length: {len(body)}"]
    lines += [f"Content-Type: {content_type}"] if content_type is not None else []
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def post(body: bytes, content_type: str = "image/jpeg", target: str = "/classify", *headers: tuple[str, str]) -> bytes:
    return request(body, content_type, target, headers=headers)


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


def metric(text: str, name: str, label: str = "") -> float | None:
    """The sum of a metric in the text of `/metrics`, over its samples with `label`; None without such samples."""
    labels = rf"{{[^}}]*{label}[^}}]*}}"
    values = re.findall(rf"^{name}(?:{labels}){'' if label else '?'} (\S+)$", text, re.MULTILINE)
    return sum(map(float, values)) if values else None


def dechunked(data: bytearray, at: int) -> tuple[bytes, int] | None:
    """The chunked body that begins at `at`, and the place behind it; None while it is not whole.

    Raises `ValueError` for a chunk without a size.
    """
    body = bytearray()
    while (line := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:line].partition(b";")[0], 16)
        if size == 0:
            end = data.find(b"\r\n\r\n", line)
            return None if end < 0 else (bytes(body), end + 4)
        body += data[line + 2 : line + 2 + size]
        at = line + 2 + size + 2
    return None


class Wire(asyncio.Protocol):
    """One connection, which asks one thing at a time."""

    def __init__(self) -> None:
        self._came = bytearray()
        self._waiting: asyncio.Future[Reply] | None = None
        self._room: asyncio.Future[None] | None = None
        self.open = False
        self.answers = 0
        self.used = time.monotonic()

    @classmethod
    async def to(cls, port: int, host: str = HOST, tls: bool = False) -> Wire:
        """A connection; raises `OSError` if nobody listens."""
        _, wire = await asyncio.get_running_loop().create_connection(cls, host, port, ssl=tls or None)
        return wire

    async def ask(self, request: bytes, patience: float = PATIENCE_S) -> Reply:
        self.send(request)
        return await self.reply(patience)

    def send(self, data: bytes) -> None:
        if self.open:
            self.transport.write(data)

    async def reply(self, patience: float = PATIENCE_S) -> Reply:
        """The answer to what was sent."""
        self._waiting = asyncio.get_running_loop().create_future()
        self._look()
        try:
            async with asyncio.timeout(patience):
                return await self._waiting
        except TimeoutError:
            self.close()
            return Reply(lost="timeout")
        finally:
            self._waiting = None
            self.used = time.monotonic()

    async def drained(self) -> None:
        """Wait until what was sent is on its way, so that a slow reader is not sent everything at once."""
        if self._room is not None:
            await self._room

    def close(self) -> None:
        """Hang up at once, whatever is under way."""
        self.open = False
        self.transport.abort()

    @property
    def reusable(self) -> bool:
        return self.open and time.monotonic() - self.used < FRESH_S

    # Called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.open = cast(asyncio.Transport, transport), True  # uvloop's is not a subclass

    def data_received(self, data: bytes) -> None:
        self._came += data
        self._look()

    def pause_writing(self) -> None:
        self._room = asyncio.get_running_loop().create_future()

    def resume_writing(self) -> None:
        if self._room is not None and not self._room.done():
            self._room.set_result(None)
        self._room = None

    def connection_lost(self, _: Exception | None) -> None:
        self.open = False
        self.resume_writing()
        self._look()

    def _look(self) -> None:
        """Hand the answer to whoever waits for it, once it is whole or cannot come any more."""
        if self._waiting is None or self._waiting.done():
            return
        try:
            reply = self._whole()
        except ValueError:
            self.close()
            reply = Reply(lost="not HTTP")
        if reply is None and not self.open:
            reply = Reply(lost="disconnected")
        if reply is not None:
            self._waiting.set_result(reply)

    def _whole(self) -> Reply | None:
        """The next answer, taken out of what came; None while it is not whole. Raises `ValueError` if it is not HTTP.

        Without a length and without chunks it ends with the connection.
        """
        end = self._came.find(b"\r\n\r\n")
        if end < 0:
            return None
        reply, begin = Reply(int(self._came[9:12]), bytes(self._came[:end])), end + 4
        if 100 <= reply.status < 200:  # "go on", and the answer is still to come
            del self._came[:begin]
            return self._whole()
        length = b"0" if reply.status in (204, 304) else reply.header(b"content-length")  # these two have no body
        if length is not None:
            last = begin + int(length)
            if len(self._came) < last:
                return None
            body = bytes(self._came[begin:last])
        elif reply.header(b"transfer-encoding") == b"chunked":
            if (chunks := dechunked(self._came, begin)) is None:
                return None
            body, last = chunks
        elif self.open:
            return None
        else:
            body, last = bytes(self._came[begin:]), len(self._came)
        del self._came[:last]
        self.answers += 1
        if reply.header(b"connection") == b"close":
            self.open = False
        return reply._replace(body=body)


class Pool:
    """Connections to one server that are kept and used again, as many as there are requests at once."""

    def __init__(self, port: int, host: str = HOST, tls: bool = False) -> None:
        self.port, self._host, self._tls = port, host, tls
        self._idle: list[Wire] = []
        self.most = self._asking = 0  # requests at once

    async def ask(self, request: bytes, patience: float = PATIENCE_S) -> Reply:
        """The answer; its `status` is 0 also if nobody listens."""
        self._asking += 1
        self.most = max(self.most, self._asking)
        try:
            return await self._ask(request, patience)
        finally:
            self._asking -= 1

    async def _ask(self, request: bytes, patience: float) -> Reply:
        while self._idle:
            wire = self._idle.pop()
            if wire.reusable:
                break
            wire.close()
        else:
            try:
                async with asyncio.timeout(patience):
                    wire = await Wire.to(self.port, self._host, self._tls)
            except TimeoutError:
                return Reply(lost="timeout")
            except OSError:
                return Reply(lost="unreachable")
        try:
            reply = await wire.ask(request, patience)
        except BaseException:
            wire.close()
            raise
        if wire.open:
            self._idle.append(wire)
        else:
            wire.close()
        return reply

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


async def once(port: int, request: bytes, patience: float = PATIENCE_S) -> Reply:
    """The answer on a connection of its own; its `status` is 0 also if nobody listens."""
    pool = Pool(port)
    try:
        return await pool.ask(request, patience)
    finally:
        pool.close()
