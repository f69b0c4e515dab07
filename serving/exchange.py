"""One request and its response in ASGI's terms: the id both carry, the upload, the JSON, the errors.

`Exchange` writes a response, `Upload` reads a body and knows whether it has ended.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import secrets
from collections.abc import Awaitable, Iterable
from contextlib import suppress
from itertools import count
from typing import Any, NamedTuple, TypeVar

from starlette.types import Message, Receive, Scope, Send

from serving.errors import MethodNotAllowed, RequestError

T = TypeVar("T")


Header = tuple[bytes, bytes]

JSON = b"application/json"

# How long a client that is answered before it has sent all may go on, so that it reads the answer.
LINGER = 1.0


class ClientGone(Exception):
    """Nobody is left to answer."""


class Raw(NamedTuple):
    """An answer in bytes."""

    body: bytes
    content_type: bytes
    headers: tuple[Header, ...] = ()
    status: int = 200


class Exchange:
    """One request's way back, and its id, which the response repeats. A `bare` response has no body, as HEAD asks."""

    __slots__ = ("_bare", "_send", "id")

    def __init__(self, send: Send, asked: bytes, bare: bool) -> None:
        self._send, self._bare = send, bare
        # A client's own id goes back as it came, if it can stand in a header and in a log.
        self.id = asked.decode("ascii") if ID.fullmatch(asked) else new_id()

    async def reply(self, status: int, body: bytes, headers: Iterable[Header] = (), content_type: bytes = JSON) -> None:
        start = [(b"x-request-id", self.id.encode()), *headers]
        if status != 304:  # which would have to give the length of what it does not send
            start.append((b"content-type", content_type))
            start.append((b"content-length", b"%d" % len(body)))
        await self._send({"type": "http.response.start", "status": status, "headers": start})
        await self._send({"type": "http.response.body", "body": b"" if self._bare else body})


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
    """`answer` as JSON. Never raises: half of a surrogate pair is written as its escape, a number that is not finite as
    null, and any other object as its text.
    """
    try:
        text = encode_text(answer)
    except (ValueError, TypeError):
        text = encode_text(writable(answer))
    # Python's escape of a surrogate, the one thing that UTF-8 cannot say, is also JSON's.
    return text.encode("utf-8", "backslashreplace")


def writable(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): writable(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [writable(each) for each in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int) else str(value)


def credentials(scope: Scope) -> bytes:
    """The bearer token of the request; b"" if it has none, more than one, or another scheme.

    The scheme's name may be written in any case (RFC 9110, 11.1).
    """
    sent = [value for name, value in scope["headers"] if name == b"authorization"]
    if len(sent) != 1:
        return b""
    scheme, _, token = sent[0].partition(b" ")
    return bytes(token) if scheme.lower() == b"bearer" else b""


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
    if isinstance(error, MethodNotAllowed):
        headers.append((b"allow", error.allow.encode()))
    return headers
