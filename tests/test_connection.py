"""The bounds on a request's head, over a socket: what is too slow or too large, and what only looks so."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from serving.connection import Connection
from serving.framing import MAX_HEAD
from tests.test_service import Server, server  # noqa: F401, the fixture

PATIENCE = 10.0


class Hasty(Connection):
    timeout = 0.2


async def echo(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]):
    """Answers with the number of bytes it was sent; /slow after twice the time that a head may take."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(2 * Hasty.timeout)
    body = b"%d" % size
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    config = uvicorn.Config(echo, log_config=None, access_log=False, lifespan="off", timeout_keep_alive=1)
    config.load()
    state = ServerState()
    loop = asyncio.get_running_loop()
    listening = await loop.create_server(lambda: Hasty(config, state, {}), "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
    try:
        yield reader, writer
    finally:
        writer.close()
        listening.close()
        for task in state.tasks:
            task.cancel()
        await asyncio.sleep(0)


def talk(*pieces: bytes, pause: float = 0.0) -> bytes:
    """What comes back for `pieces`, sent with pauses, until the connection is closed."""

    async def spoken() -> bytes:
        async with connected() as (reader, writer):
            for piece in pieces:
                writer.write(piece)
                await asyncio.sleep(pause)
            return await asyncio.wait_for(reader.read(), PATIENCE)

    return asyncio.run(spoken())


def refusal(answer: bytes) -> tuple[bytes, str]:
    """The status line of the last response, and its error's code."""
    head, _, body = answer.rpartition(b"\r\n\r\n")
    assert b"connection: close" in head
    return head.rpartition(b"HTTP/1.1 ")[2].splitlines()[0], json.loads(body)["error"]["code"]


def test_a_head_that_does_not_end_is_408() -> None:
    answer = talk(b"POST /classify HTTP/1.1\r\nHost: a\r\n", *[b"X-Slow: a\r\n"] * 3, pause=Hasty.timeout / 10)
    assert refusal(answer) == (b"408 Request Timeout", "request_timeout")


def test_a_second_head_that_does_not_end_is_408() -> None:
    answer = talk(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HT")
    assert answer.startswith(b"HTTP/1.1 200") and refusal(answer)[1] == "request_timeout"


def test_a_connection_that_asks_nothing_is_closed() -> None:
    assert talk() == b""


@pytest.mark.parametrize("piece", [b"X-More: " + b"a" * 8000 + b"\r\n", b"a" * 8000], ids=["many fields", "one"])
def test_a_head_that_is_too_large_is_431(piece: bytes) -> None:
    answer = talk(b"GET / HTTP/1.1\r\nX-More: ", *[piece] * (MAX_HEAD // len(piece) + 1), pause=0.001)
    assert refusal(answer) == (b"431 Request Header Fields Too Large", "head_too_large")


def test_what_is_no_http_is_400() -> None:
    assert refusal(talk(b"\x16\x03\x01 is how TLS begins\r\n\r\n")) == (b"400 Bad Request", "bad_request")


def test_a_large_body_behind_a_head_in_pieces_is_read() -> None:
    size = 4 * MAX_HEAD
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n" % size
    answer = talk(head, b"\r\n" + bytes(size), b"GET / HT", b"TP/1.1\r\nHost: a\r\n\r\n", pause=0.05)
    assert answer.count(b"200 OK") == 2 and b"\r\n\r\n%d" % size in answer


def test_a_slow_body_and_a_slow_answer_are_not_the_heads() -> None:
    answer = talk(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n", *[b"a"] * 4, pause=Hasty.timeout / 2)
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n4")
    # The head after it waits for that answer, and its own time begins only then.
    answer = talk(b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n", b"\r\n", pause=1.5 * Hasty.timeout)
    assert answer.count(b"200 OK") == 2


def test_the_service_uses_it(server: Server) -> None:  # noqa: F811
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert refusal(answer) == (b"400 Bad Request", "bad_request")
    assert "Invalid HTTP" not in server.log.read_text()  # a line for each would be anybody's to fill the log
