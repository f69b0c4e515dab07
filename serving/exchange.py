"""One request and its response in ASGI's terms: the id both carry, the upload, the JSON, the errors.

`Exchange` writes a response, `Upload` reads a body and knows whether it has ended.
"""

from __future__ import annotations

import asyncio
import json
import re
import secrets
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from itertools import count
from time import perf_counter
from typing import Any, TypeVar

from starlette.types import Message, Receive, Scope, Send

from serving.errors import RequestError

T = TypeVar("T")


Header = tuple[bytes, bytes]


# How long a client that is answered before it has sent all may go on, so that it reads the answer.
LINGER = 1.0


class ClientGone(Exception):
    """Nobody is left to answer."""


@dataclass(frozen=True)
class Raw:
    """An answer that is not JSON alone."""

    body: bytes
    content_type: bytes
    headers: tuple[Header, ...] = ()


class Exchange:
    """One request's way back: its id, echoed in the response, its status, and when it began."""

    __slots__ = ("_send", "id", "started", "status")

    def __init__(self, send: Send, asked: bytes) -> None:
        self._send, self.started, self.status = send, perf_counter(), 500
        # A client's own id goes back as it came, if it can stand in a header and in a log.
        self.id = asked.decode("ascii") if ID.fullmatch(asked) else new_id()

    async def send(self, message: Message) -> None:
        """Pass on a message of another application's response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", self.id.encode())]}
        await self._send(message)

    async def reply(
        self, status: int, body: bytes, headers: Iterable[Header] = (), content_type: bytes = b"application/json"
    ) -> None:
        self.status = status
        start = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", self.id.encode()),
            *headers,
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": start})
        await self._send({"type": "http.response.body", "body": body})


class Upload:
    """`receive`, which remembers whether the body has come to its end."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.begun = self.ended = False

    async def __call__(self) -> Message:
        self.begun = True
        message = await self.receive()
        self.ended = message["type"] != "http.request" or not message.get("more_body")
        return message

    async def discard(self, most: int, expect: bytes) -> None:
        """Read on for a moment, up to `most` bytes: a connection closed on a sender may lose it our answer.

        Not where the client's `Expect` header field says that it waits to be told: to read would tell it to send.
        """
        if expect.lower() == b"100-continue" and not self.begun:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while not self.ended and most > 0:
                    most -= len((await self()).get("body", b""))


def header(scope: Scope, name: bytes) -> bytes:
    """The first header called `name` (lower case), b"" where there is none."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """What `work` gives; it is cancelled, and `ClientGone` raised, when the client hangs up first."""
    this = asyncio.current_task()
    assert this is not None
    hung_up = False

    async def watch() -> None:
        nonlocal hung_up
        await receive()  # the body is here whole, so that this is the end of the connection
        hung_up = True
        this.cancel()

    watcher = asyncio.ensure_future(watch())
    try:
        return await work
    except asyncio.CancelledError:
        if hung_up:
            this.uncancel()
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()


CLOSE: Header = (b"connection", b"close")

# The status of what nobody reads: its client has hung up.
GONE = 499


# What identifies a request in the log where its client does not.
ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


PROCESS, NUMBER = secrets.token_hex(4), count(1)


def new_id() -> str:
    return f"{PROCESS}-{next(NUMBER):x}"


encode_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(", ", ": ")).encode


def encode(answer: dict[str, Any]) -> bytes:
    return encode_text(answer).encode()


def described(error: RequestError) -> dict[str, Any]:
    return {"error": {"code": error.code, "message": str(error)}}


def headers_of(error: RequestError) -> list[Header]:
    headers = []
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.status == 503:
        headers.append(CLOSE)
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers
