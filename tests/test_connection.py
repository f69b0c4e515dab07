"""A connection over a socket: what is too slow or too large, what only seems so, and what is refused as ambiguous.

tests/test_connection_states.py checks what must hold at every step, without a socket.
"""

from __future__ import annotations

import asyncio
import json
import logging
import resource
import signal
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from models.console import Failure
from serving.artifact import Artifact
from serving.connection import Bounds, Connection
from serving.framing import MAX_HEAD
from serving.settings import Settings
from tests.fakes.interface import until
from tests.fakes.pictures import jpeg
from tests.fakes.server import PATIENCE as LONG
from tests.fakes.server import Server, serve

PATIENCE = 10.0


HEAD = b"HTTP/1.1\r\nHost: a\r\n"
GET = b"GET / " + HEAD + b"\r\n"
CHUNKED = b"POST / " + HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


# The service runs on uvloop.
on_both_loops = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": uvloop}) for uvloop in (False, True)], ids=["asyncio", "uvloop"]
)

HASTY = 0.2  # seconds that the connections of these tests wait


gone: list[str] = []


async def echo(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Answers with the number of bytes it got; /slow after twice the time that a head may take, /refused at once,
    /watched when the client hangs up, so that nobody reads it.
    """
    size, more = 0, scope["path"] != "/refused"
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    if scope["path"] == "/slow":
        await asyncio.sleep(2 * HASTY)
    if scope["path"] == "/watched":
        gone.append((await receive())["type"])
        return
    body = b"%d" % size
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@asynccontextmanager
async def listening(bounds: Bounds) -> AsyncIterator[tuple[asyncio.Server, ServerState]]:
    config = uvicorn.Config(echo, log_config=None, access_log=False, lifespan="off", timeout_keep_alive=1)
    config.load()
    state, loop = ServerState(), asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(config, state, {}, bounds=bounds), "127.0.0.1", 0)
    try:
        yield server, state
    finally:
        server.close()
        for task in state.tasks:
            task.cancel()
        await asyncio.sleep(0)


async def connect(to: asyncio.Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection(*to.sockets[0].getsockname())


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    async with listening(Bounds(HASTY)) as (server, _):
        reader, writer = await connect(server)
        try:
            yield reader, writer
        finally:
            writer.close()


async def talk(*pieces: bytes, pause: float = 0.0, half: bool = False) -> bytes:
    """What comes back for `pieces`, sent with pauses, until the connection is closed. With `half` the client closes
    its sending side after them.
    """
    async with connected() as (reader, writer):
        for piece in pieces:
            writer.write(piece)
            await asyncio.sleep(pause)
        if half:
            writer.write_eof()
        return await asyncio.wait_for(reader.read(), PATIENCE)


def refusal(answer: bytes) -> tuple[bytes, str]:
    """The status line of the last response, and the code of its error."""
    head, _, body = answer.rpartition(b"\r\n\r\n")
    assert b"connection: close" in head
    return head.rpartition(b"HTTP/1.1 ")[2].splitlines()[0], json.loads(body)["error"]["code"]


async def test_a_head_that_does_not_end_is_408() -> None:
    answer = await talk(b"POST /classify HTTP/1.1\r\nHost: a\r\n", *[b"X-Slow: a\r\n"] * 3, pause=HASTY / 10)
    assert refusal(answer) == (b"408 Request Timeout", "request_timeout")


async def test_a_second_head_that_does_not_end_is_408() -> None:
    answer = await talk(b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET / HT")
    assert answer.startswith(b"HTTP/1.1 200") and refusal(answer)[1] == "request_timeout"


async def test_a_connection_without_a_request_is_closed() -> None:
    assert await talk() == b""


@pytest.mark.parametrize("piece", [b"X-More: " + b"a" * 8000 + b"\r\n", b"a" * 8000], ids=["many fields", "one"])
async def test_a_head_that_is_too_large_is_431(piece: bytes) -> None:
    answer = await talk(b"GET / HTTP/1.1\r\nX-More: ", *[piece] * (MAX_HEAD // len(piece) + 1), pause=0.001)
    assert refusal(answer) == (b"431 Request Header Fields Too Large", "head_too_large")


async def test_what_is_not_http_is_400() -> None:
    assert refusal(await talk(b"\x16\x03\x01 is how TLS begins\r\n\r\n")) == (b"400 Bad Request", "bad_request")


async def test_a_large_body_behind_a_head_in_pieces_is_read() -> None:
    size = 4 * MAX_HEAD
    head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n" % size
    answer = await talk(head, b"\r\n" + bytes(size), b"GET / HT", b"TP/1.1\r\nHost: a\r\n\r\n", pause=0.05)
    assert answer.count(b"200 OK") == 2 and b"\r\n\r\n%d" % size in answer


async def test_a_slow_body_or_answer_does_not_count_as_a_slow_head() -> None:
    answer = await talk(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n", *[b"a"] * 4, pause=HASTY / 2)
    assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"\r\n\r\n4")
    # The next head waits for that answer, and its own time begins only then.
    answer = await talk(
        b"GET /slow HTTP/1.1\r\nHost: a\r\n\r\nGET / HTTP/1.1\r\nHost: a\r\n", b"\r\n", pause=1.5 * HASTY
    )
    assert answer.count(b"200 OK") == 2


def test_the_service_uses_these_connections(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        connection.sendall(b"nonsense\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    assert refusal(answer) == (b"400 Bad Request", "bad_request")
    assert "Invalid HTTP" not in server.log.read_text()  # with a line for each, any client could flood the log


@on_both_loops
@pytest.mark.parametrize("path", [b"/", b"/slow"])
async def test_a_client_that_has_closed_its_sending_side_gets_its_answer(path: bytes) -> None:
    posted = b"POST " + path + b" " + HEAD + b"Content-Length: 4\r\n\r\nabcd"
    answer = await talk(posted, half=True)
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n") and answer.endswith(b"\r\n\r\n4")


@on_both_loops
async def test_a_client_that_has_hung_up_is_noticed_without_an_answer() -> None:
    gone.clear()
    async with connected() as (_, writer):
        writer.write(b"GET /watched " + HEAD + b"\r\n")
        await asyncio.sleep(0.05)
        writer.close()
        await until(lambda: bool(gone))
    assert gone == ["http.disconnect"]


@pytest.mark.parametrize(
    "piece",
    [b"X-Trailer: " + b"a" * 8000 + b"\r\n", b"a" * 8000],
    ids=["many fields", "one"],
)
@pytest.mark.parametrize("begin", [b"0\r\nX-Trailer: ", b"1;name=", b"0"], ids=["trailers", "extension", "size"])
async def test_trailers_and_chunk_extensions_are_bounded_as_a_head_is(begin: bytes, piece: bytes) -> None:
    if begin != b"0\r\nX-Trailer: ":
        piece = piece.replace(b"\r\n", b"").replace(b"X-Trailer: ", b"")
    if begin == b"0":
        piece = piece.replace(b"a", b"0")
    answer = await talk(CHUNKED + begin, *[piece] * (2 * MAX_HEAD // len(piece)), pause=0.001)
    assert refusal(answer) == (b"431 Request Header Fields Too Large", "head_too_large")


async def test_small_trailers_and_extensions_are_accepted_and_dropped() -> None:
    answer = await talk(CHUNKED + b"4;a=b\r\nabcd\r\n0\r\nHost: b\r\n\r\n" + GET)
    assert answer.count(b"200 OK") == 2 and b"\r\n\r\n4HTTP" in answer and answer.endswith(b"\r\n\r\n0")


@pytest.mark.parametrize("protocol", [b"websocket", b"h2c", b"TLS/1.0, h2c"])
async def test_a_request_to_upgrade_is_answered_as_if_it_did_not_ask(protocol: bytes) -> None:
    fields = HEAD + b"Connection: Upgrade\r\nUpgrade: " + protocol + b"\r\n"
    body = b"ab\r\n\r\nGET"
    length = b"POST / " + fields + b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
    chunked = b"POST / " + fields + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    answer = await talk(b"GET / " + fields + b"\r\n", length, chunked, GET)
    assert [one[-1:] for one in answer.split(b"HTTP/1.1 200 OK")[1:]] == [b"0", b"9", b"9", b"0"]


FRAMED = b"POST / " + HEAD
AMBIGUOUS = {
    "two hosts": b"GET / " + HEAD + b"Host: a\r\n\r\n",
    "two hosts, HTTP/1.0": b"GET / HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "length and chunked": FRAMED + b"Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "chunked and length": FRAMED + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n0\r\n\r\n",
    "two lengths": FRAMED + b"Content-Length: 4\r\nContent-Length: 5\r\n\r\nabcd",
    "one length twice": FRAMED + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\nabcd",
    "a list of lengths": FRAMED + b"Content-Length: 4, 4\r\n\r\nabcd",
    "a signed length": FRAMED + b"Content-Length: +4\r\n\r\nabcd",
    "a length in hexadecimal": FRAMED + b"Content-Length: 0x4\r\n\r\nabcd",
    "no length in the field": FRAMED + b"Content-Length:\r\n\r\n",
    "a length of 30 digits": FRAMED + b"Content-Length: " + b"9" * 30 + b"\r\n\r\n",
    "gzip before chunked": FRAMED + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "chunked before another": FRAMED + b"Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
    "identity": FRAMED + b"Transfer-Encoding: identity\r\n\r\n",
    "chunked twice": FRAMED + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "nearly chunked": FRAMED + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "chunked after a vertical tab": FRAMED + b"Transfer-Encoding: \x0bchunked\r\n\r\n0\r\n\r\n",
    "chunked, HTTP/1.0": b"POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "a space before the colon": FRAMED + b"Content-Length : 4\r\n\r\nabcd",
    "a bare LF behind a field": FRAMED + b"X: a\n\r\n",
    "bare LFs": b"GET / HTTP/1.1\nHost: a\n\n",
    "a bare CR in a field": FRAMED + b"X: a\rb\r\n\r\n",
    "a folded line": FRAMED + b"X: a\r\n b\r\n\r\n",
    "a folded first line": b"GET / HTTP/1.1\r\n Host: a\r\n\r\n",
    "NUL in a field": FRAMED + b"X: a\x00b\r\n\r\n",
    "no colon": FRAMED + b"X\r\n\r\n",
    "a name with a space": FRAMED + b"X y: a\r\n\r\n",
    "NUL in the path": b"GET /\x00 " + HEAD + b"\r\n",
    "no ASCII in the path": b"GET /\xff " + HEAD + b"\r\n",
    "HTTP/0.9": b"GET /\r\n\r\n",
    "HTTP/1.2": b"GET / HTTP/1.2\r\nHost: a\r\n\r\n",
    "HTTP/2.0": b"GET / HTTP/2.0\r\nHost: a\r\n\r\n",
    "the preface of HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "CONNECT": b"CONNECT a:443 HTTP/1.1\r\nHost: a:443\r\n\r\n",
    "a space behind a chunk's size": CHUNKED + b"4 \r\nabcd\r\n0\r\n\r\n",
    "a chunk's size with a prefix": CHUNKED + b"0x4\r\nabcd\r\n0\r\n\r\n",
    "a chunk's size of 17 digits": CHUNKED + b"10000000000000004\r\nabcd\r\n0\r\n\r\n",
    "a negative chunk": CHUNKED + b"-4\r\nabcd\r\n0\r\n\r\n",
    "a bare LF after the size of a chunk": CHUNKED + b"4\nabcd\r\n0\r\n\r\n",
    "a bare LF behind an extension": CHUNKED + b"4;a\nabcd\r\n0\r\n\r\n",
    "a bare LF behind a chunk": CHUNKED + b"4\r\nabcd\n0\r\n\r\n",
    "more than a chunk's size": CHUNKED + b"4\r\nabcde\r\n0\r\n\r\n",
    "a bare LF behind a trailer": CHUNKED + b"0\r\nX: a\n\r\n",
}


@pytest.mark.parametrize("name", AMBIGUOUS)
async def test_an_ambiguous_request_is_400_and_nothing_after_it_is_read(name: str) -> None:
    answer = await talk(AMBIGUOUS[name] + GET)
    assert refusal(answer) == (b"400 Bad Request", "bad_request") and answer.count(b"HTTP/1.1 ") == 1


async def test_no_100_continue_is_sent_after_the_answer() -> None:
    expecting = HEAD + b"Expect: 100-continue\r\nContent-Length: 4\r\n\r\n"
    answer = await talk(b"POST /refused " + expecting)
    assert b"100 Continue" not in answer and b"connection: close" in answer
    answer = await talk(b"POST / " + expecting, b"abcd", GET, pause=0.05)  # "100 Continue" comes once
    assert answer.startswith(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK")
    assert (answer.count(b"100 Continue"), answer.count(b"200 OK")) == (1, 2)
    answer = await talk(b"POST / HTTP/1.0\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n", b"abcd", pause=0.05)
    assert b"100 Continue" not in answer and answer.endswith(b"4")


def test_the_service_refuses_too_long_a_body_before_it_is_sent(server: Server) -> None:
    with socket.create_connection(("127.0.0.1", server.port), PATIENCE) as connection:
        connection.sendall(
            b"POST /classify HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 1000000\r\n\r\n"
        )
        answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
    status, code = refusal(answer)
    assert (status[:3], code) == (b"413", "too_large") and b"100 Continue" not in answer


async def test_connections_above_the_limit_are_answered_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.ERROR)
    async with listening(Bounds(HASTY, most=3)) as (server, state):
        many = [await connect(server) for _ in range(6)]
        refused = [await asyncio.wait_for(reader.read(), PATIENCE) for reader, _ in many[3:]]
        for _, writer in many:
            writer.close()
        await until(lambda: not state.connections)
        reader, writer = await connect(server)
        writer.write(GET)
        assert await reader.readuntil(b"\r\n") == b"HTTP/1.1 200 OK\r\n"
        writer.close()
    assert [refusal(one)[1] for one in refused] == ["too_many_connections"] * 3
    assert [record.getMessage() for record in caplog.records] == [
        "3 connections are open, the most there may be; more are answered 503"
    ]


async def test_an_idle_connection_is_closed_to_make_room_for_a_new_one() -> None:
    async with listening(Bounds(HASTY, most=3)) as (server, state):
        many = []
        for _ in range(5):  # two more than the limit, and each is kept open
            reader, writer = await connect(server)
            writer.write(GET)
            assert await asyncio.wait_for(reader.readuntil(b"\r\n"), PATIENCE) == b"HTTP/1.1 200 OK\r\n"
            many.append((reader, writer))
        for reader, _ in many[:2]:
            await asyncio.wait_for(reader.read(), PATIENCE)  # to its end
        assert len(state.connections) == 3
        for _, writer in many:
            writer.close()
            await writer.wait_closed()


@contextmanager
def open_files(most: int) -> Iterator[None]:
    """A limit on open files for this process and those that it starts."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("files", "connections"), [(1024, 896), (200, 100)])
def test_the_limit_on_connections_follows_the_limit_on_files(files: int, connections: int) -> None:
    with open_files(files):
        assert Settings.read({}).max_connections == connections
        assert Settings.read({"PODIUM_MAX_CONNECTIONS": "9"}).max_connections == 9
        with pytest.raises(Failure, match=f"limit on open files leaves room for, {connections};"):
            Settings.read({"PODIUM_MAX_CONNECTIONS": str(connections + 1)})


def test_a_service_out_of_files_says_so_once_and_serves_when_there_is_room(tiny: Artifact, tmp_path: Path) -> None:
    log = tmp_path / "log"
    with ExitStack() as stack:
        with open_files(256):
            running = stack.enter_context(serve(log, PODIUM_MODELS=tiny.tag, PODIUM_TIMEOUT_MS="60000"))
        crowd = [socket.create_connection(("127.0.0.1", running.port), LONG) for _ in range(300)]
        first = crowd[128].recv(12)  # gets an answer without a request
        for connection in crowd:
            connection.close()
        assert first == b"HTTP/1.1 503"
        running.until_ready(200)
        assert running.classify(jpeg())[0] == 200
    assert log.read_text().count("the most there may be") == 1, log.read_text()


def test_a_client_that_does_not_read_does_not_delay_the_shutdown(tiny: Artifact, tmp_path: Path) -> None:
    with serve(tmp_path / "log", PODIUM_MODELS=tiny.tag, PODIUM_TIMEOUT_MS="60000") as running:
        slow = socket.socket()
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.settimeout(LONG)
        with closing(slow):
            slow.connect(("127.0.0.1", running.port))
            slow.settimeout(0.5)
            with pytest.raises(TimeoutError):  # until the service stops reading because its answer is not read
                while True:
                    slow.send((b"GET /docs.json " + HEAD + b"\r\n") * 1000)
            running.process.send_signal(signal.SIGTERM)
            running.process.wait(LONG / 2)  # out of the minute that a request may take
