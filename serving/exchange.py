"""One request and its response in ASGI's terms: its id, its body, the JSON and the errors that answer it.

`Exchange` writes a response. `Upload` reads a body and knows whether it has ended.
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

# Seconds that a client which is answered early may go on sending. If we closed at once, it could lose the answer.
LINGER = 1.0


class ClientGone(Exception):
    """The client has hung up."""


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
        # A client's own id is repeated if it is safe in a header and in a log.
        self.id = asked.decode("ascii") if ID.fullmatch(asked) else new_id()

    async def reply(self, status: int, body: bytes, headers: Iterable[Header] = (), content_type: bytes = JSON) -> None:
        start = [(b"x-request-id", self.id.encode()), *headers]
        if status != 304:  # its length would be that of the body which it does not send
            start.append((b"content-type", content_type))
            start.append((b"content-length", b"%d" % len(body)))
        await self._send({"type": "http.response.start", "status": status, "headers": start})
        await self._send({"type": "http.response.body", "body": b"" if self._bare else body})


class Upload:
    """`receive`, which remembers whether the body has ended."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.begun = self.ended = False

    async def __call__(self) -> Message:
        self.begun = True
        message = await self.receive()
        self.ended = message["type"] != "http.request" or not message.get("more_body")
        return message

    async def discard(self, most: int, expect: bytes) -> None:
        """Read and drop what still comes, up to `most` bytes and `LINGER` seconds.

        A client whose connection is closed while it sends may lose our answer. If its `Expect` header field says that
        it waits for our permission to send, nothing is read, because reading would give the permission.
        """
        if expect.lower() == b"100-continue" and not self.begun:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while not self.ended and most > 0:
                    most -= len((await self()).get("body", b""))


def header(scope: Scope, name: bytes) -> bytes:
    """The first header called `name` (in lower case), b"" if there is none."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """The result of `work`. If the client hangs up first, `work` is cancelled and `ClientGone` raised."""
    this = asyncio.current_task()
    assert this is not None
    hung_up = False

    async def watch() -> None:
        nonlocal hung_up
        await receive()  # the whole body has been read, so this returns when the connection ends
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

# The status for a client that has hung up, as nginx has it. Only a proxy can read it.
GONE = 499


# Ids of requests that clients may choose themselves.
ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")


PROCESS, NUMBER = secrets.token_hex(4), count(1)


def new_id() -> str:
    return f"{PROCESS}-{next(NUMBER):x}"


encode_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(", ", ": ")).encode


def encode(answer: dict[str, Any]) -> bytes:
    """`answer` as JSON. Never raises: half of a surrogate pair is written as its escape, a number that is not finite as
    null, and an object that JSON does not know as its text.
    """
    try:
        text = encode_text(answer)
    except (ValueError, TypeError):
        text = encode_text(writable(answer))
    # A surrogate is the only thing that UTF-8 cannot encode. Python's escape of it is also JSON's.
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
    """The bearer token of the request; b"" if it has none, several, or another scheme.

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
