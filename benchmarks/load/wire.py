"""HTTP/1.1 with as little around it as there can be: a client that shares two cores with the server it overloads, and
that can also break off, dribble and lie, which no HTTP library lets it do.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple, cast

HOST = "127.0.0.1"
PATIENCE_S = 60.0

# The server drops a connection that was quiet for 5 s; one that may be about to end is not used again.
FRESH_S = 3.0


class Reply(NamedTuple):
    """What came back; `status` is 0 where the connection ended, or time did, before an answer."""

    status: int = 0
    head: bytes = b""
    body: bytes = b""

    def header(self, name: bytes) -> bytes | None:
        """The value of the header `name` (lower case), None where there is none."""
        for line in self.head.split(b"\r\n")[1:]:
            key, _, value = line.partition(b":")
            if key.lower() == name:
                return value.strip()
        return None

    @property
    def answer(self) -> dict[str, Any]:
        """The body's JSON, empty where it is none."""
        with suppress(ValueError):
            found = json.loads(self.body)
            return found if isinstance(found, dict) else {}
        return {}


def request(
    body: bytes = b"",
    content_type: str | None = "image/jpeg",
    target: str = "/classify",
    method: str = "POST",
    headers: Sequence[tuple[str, str]] = (),
) -> bytes:
    """A request of HTTP/1.1, well formed where its arguments are."""
    lines = [f"{method} {target} HTTP/1.1", f"Host: {HOST}", f"Content-Length: {len(body)}"]
    lines += [f"Content-Type: {content_type}"] if content_type is not None else []
    lines += [f"{name}: {value}" for name, value in headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def post(body: bytes, content_type: str = "image/jpeg", target: str = "/classify", *headers: tuple[str, str]) -> bytes:
    return request(body, content_type, target, headers=headers)


def get(target: str) -> bytes:
    return f"GET {target} HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


def metric(text: str, name: str, label: str = "") -> float | None:
    """The sum of a metric in what `/metrics` said, over its samples with `label`; None where there is none."""
    labels = rf"{{[^}}]*{label}[^}}]*}}"
    found = re.findall(rf"^{name}(?:{labels}){'' if label else '?'} (\S+)$", text, re.MULTILINE)
    return sum(map(float, found)) if found else None


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
    async def to(cls, port: int) -> Wire:
        """A connection; raises `OSError` where nobody listens."""
        _, wire = await asyncio.get_running_loop().create_connection(cls, HOST, port)
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
            return Reply()
        finally:
            self._waiting = None
            self.used = time.monotonic()

    async def drained(self) -> None:
        """Until what was sent is on its way, so that a slow reader is not sent all at once."""
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
        self.transport, self.open = cast(asyncio.Transport, transport), True  # uvloop's is no subclass of it

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
        """Give out the answer if it is whole; without a length it goes on to the connection's end."""
        if self._waiting is None or self._waiting.done():
            return
        end = self._came.find(b"\r\n\r\n")
        if end < 0:
            if not self.open:
                self._waiting.set_result(Reply())
            return
        found = Reply(int(self._came[9:12]), bytes(self._came[:end]))
        length = found.header(b"content-length")
        last = end + 4 + int(length) if length is not None else len(self._came)
        if 100 <= found.status < 200:  # "go on", and the answer is still to come
            del self._came[: end + 4]
            self._look()
        elif (length is not None and len(self._came) >= last) or not self.open:
            whole = length is None or len(self._came) >= last
            self._waiting.set_result(found._replace(body=bytes(self._came[end + 4 : last])) if whole else Reply())
            del self._came[:last]
            self.answers += 1
            if found.header(b"connection") == b"close":
                self.open = False


class Pool:
    """Connections that are kept and used again, as many as there are requests at once."""

    def __init__(self, port: int) -> None:
        self.port = port
        self._idle: list[Wire] = []
        self.most = self._asking = 0  # requests at once

    async def ask(self, request: bytes, patience: float = PATIENCE_S) -> Reply:
        """The answer; status 0 also where nobody listens."""
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
                wire = await Wire.to(self.port)
            except OSError:
                return Reply()
        try:
            found = await wire.ask(request, patience)
        except BaseException:
            wire.close()
            raise
        if wire.open:
            self._idle.append(wire)
        else:
            wire.close()
        return found

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


async def once(port: int, request: bytes, patience: float = PATIENCE_S) -> Reply:
    """The answer on a connection of its own; status 0 also where nobody listens."""
    try:
        wire = await Wire.to(port)
    except OSError:
        return Reply()
    try:
        return await wire.ask(request, patience)
    finally:
        wire.close()
