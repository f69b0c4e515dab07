"""An HTTP/1.1 connection: a state machine between uvicorn's server, which accepts and shuts down, and its
`RequestResponseCycle`, which runs the application.

uvicorn's own protocol has few bounds. Here every open connection has a timer that runs, a bound on what it makes us
hold in each direction, and an end at shutdown:

| state   | what we wait for                                     | for how long        | then     |
|---------|------------------------------------------------------|---------------------|----------|
| FRESH   | the first byte                                       | `timeout`           | close    |
| HEAD    | the rest of a head, at most `MAX_HEAD` bytes         | `timeout`           | 408      |
| BODY    | the rest of a body, which the application bounds     | `timeout` + `GRACE` | abort    |
| ANSWER  | the application, which has a deadline of its own     | no end but shutdown |          |
| UNREAD  | the client to read what the system did not take      | `timeout`           | abort    |
| SURPLUS | the rest of a body whose answer is sent; dropped     | `timeout`           | close    |
| IDLE    | the next request                                     | `keep_alive`        | close    |
| LINGER  | the client to read its last answer; the rest is dropped | `LINGER_S`       | close    |
| FLUSH   | a closed connection's last bytes to go               | `timeout`           | abort    |

One request is handled at a time, and the next begins when the answer before it has been sent. So a connection holds one
body (which the application bounds), one answer, and `MAX_AHEAD` bytes plus one piece of requests that were sent ahead.
A piece is at most 256 kB. One timer serves all states. If the deadline moves back, the timer stays where it is, and
looks at the deadline when it fires: so a request on a kept connection starts no timer.
"""

from __future__ import annotations

import asyncio
import logging
import select
import socket
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any, cast
from urllib.parse import unquote

import httptools

from serving.bentoml_seams import request_cycle
from serving.errors import RequestError, SlowRequest, TooManyConnections
from serving.exchange import CLOSE, described, encode, headers_of, new_id
from serving.framing import Framing

# Bytes of a body that the application has not read, or of later requests. With more, reading stops.
MAX_AHEAD = 64 << 10

# Bytes of unread answers that the system is asked to hold (Linux holds twice as many). Its default is megabytes: a
# client that does not read would get thousands of answers before the service notices.
SEND_BUFFER = 32 << 10

# Seconds in which we drop what a refused client still sends. If we closed at once, it could lose the answer.
LINGER_S = 1.0

# Seconds beyond `timeout` for an answer that is being made, and at shutdown for one that is not read.
GRACE = 2.0

# Connections above the limit that get an answer. More than these are closed without one.
TURNED_AWAY = 32

# Seconds between two looks at a client that has ended its sending; doubled from the first to the last.
FIRST_LOOK, LAST_LOOK = 0.02, 1.0

# Seconds between two log lines about the limit on connections.
SAY_AGAIN = 60.0

FRESH, HEAD, BODY, ANSWER, UNREAD, SURPLUS, IDLE, LINGER, FLUSH, CLOSED = (
    "FRESH", "HEAD", "BODY", "ANSWER", "UNREAD", "SURPLUS", "IDLE", "LINGER", "FLUSH", "CLOSED",
)  # fmt: skip

STATUS_LINES = {
    400: b"HTTP/1.1 400 Bad Request\r\n",
    408: b"HTTP/1.1 408 Request Timeout\r\n",
    431: b"HTTP/1.1 431 Request Header Fields Too Large\r\n",
    503: b"HTTP/1.1 503 Service Unavailable\r\n",
}

log = logging.getLogger("bentoml.podium")


@dataclass(eq=False)
class Bounds:
    """What all connections of one server share.

    `timeout` is in seconds, `most` the connections that may be open at once; `refused` is told of every request that a
    connection itself refuses. `said_full` is when the log last said that there are too many connections.
    """

    timeout: float = 10.0
    most: int = 1 << 16
    refused: Callable[[RequestError], object] = lambda _: None
    said_full: float = field(default=-inf, init=False)


def address(transport: asyncio.BaseTransport, which: str) -> tuple[str, int] | None:
    """Host and port of a connection's end, "sockname" or "peername", as ASGI writes it; None if it has none."""
    name = transport.get_extra_info(which)
    return (str(name[0]), int(name[1])) if isinstance(name, tuple) else None


def hung_up(descriptor: int) -> bool:
    """Whether the other side of a socket has sent a reset. A client that only ended its sending has not."""
    poll = select.poll()
    poll.register(descriptor, 0)
    return bool(poll.poll(0))


class Connection(Framing, asyncio.Protocol):
    """One connection, as uvicorn's `Server` makes it, and the transport and flow of each `RequestResponseCycle`."""

    def __init__(
        self,
        config: Any,
        server_state: Any,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        bounds: Bounds,
    ) -> None:
        if not config.loaded:
            config.load()
        self.bounds, self.timeout = bounds, bounds.timeout
        self.loop = _loop or asyncio.get_event_loop()
        super().__init__()
        self.app, self.root_path = config.loaded_app, config.root_path
        self.keep_alive: float = config.timeout_keep_alive
        self.asgi = {"version": config.asgi_version, "spec_version": "2.3"}
        self.server_state, self.app_state = server_state, app_state
        self.cycle: Any = None
        self._head: bytes | None = None
        self.write_paused = False
        self.writable: asyncio.Event | None = None
        self.state = FRESH
        self.deadline = self.end = self._armed_for = inf
        self._timer: asyncio.TimerHandle | None = None
        self._ahead = bytearray()
        self._eof = self._reading_paused = self._keep = False
        self._began, self._look = 0.0, FIRST_LOOK

    # What the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        # Any byte that the system does not take at once pauses writing, and so the next request.
        self.transport.set_write_buffer_limits(high=0)
        if (end := transport.get_extra_info("socket")) is not None:
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        self.server, self.client = address(transport, "sockname"), address(transport, "peername")
        self.scheme = "https" if transport.get_extra_info("sslcontext") else "http"
        connections = self.server_state.connections
        connections.add(self)
        self._enter(FRESH, self.timeout)
        if len(connections) > self.bounds.most and not self._make_room():
            self._turn_away(len(connections))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002, asyncio names it
        self.server_state.connections.discard(self)
        self.state = CLOSED
        if self._timer is not None:
            self._timer.cancel()
        self._ahead.clear()
        self._disconnect()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        state = self.state
        if state in (ANSWER, UNREAD):
            self._hold(data)
        elif state not in (LINGER, FLUSH, CLOSED):
            self._read(data)

    def eof_received(self) -> bool:
        """The client has ended its sending. Returns whether to keep the connection for an answer."""
        self._eof = True
        if self.scheme == "https":  # asyncio's TLS cannot be open on one side
            self._enter(FLUSH, self.timeout)
            return False
        if self.state == ANSWER:
            self._probe()
        elif self.state == BODY:
            self._abort()  # the request cannot be answered any more
        elif self.state != UNREAD:
            self._close_now()
        return True

    def pause_writing(self) -> None:
        self.write_paused = True
        if self.writable is None:
            self.writable = asyncio.Event()
        self.writable.clear()
        if self.state == ANSWER:
            self._enter(UNREAD, self.timeout)

    def resume_writing(self) -> None:
        self.write_paused = False
        if self.writable is not None:
            self.writable.set()
        if self.state == UNREAD:
            if self.cycle.response_complete:
                self._next()
            else:
                self._await_answer()

    # What uvicorn's server calls

    def shutdown(self) -> None:
        """Close at once if there is no request, else when it is answered, and after a while in any case."""
        if self.state == CLOSED:
            return
        self.end = self.loop.time() + GRACE
        under_way = self.cycle is not None and not self.cycle.response_complete
        if under_way:
            self.cycle.keep_alive = self._keep = False
            if self.state != UNREAD:
                self.end = max(self.end, self._began + self.timeout + GRACE)
        if under_way or self.state in (LINGER, FLUSH):
            self._enter(self.state, self.deadline - self.loop.time())
        else:
            self._close_now()

    # What uvicorn's cycle calls, for which this is the transport and the flow

    def write(self, data: bytes) -> None:
        """Send the head of an answer together with its body."""
        if self._head is None and self.cycle.response_started:
            self._head = data[self._probed :]
        elif self._head is None:  # 100 Continue: now the client sends the body, so the connection can be kept
            self.cycle.keep_alive = self._keep
            self.transport.write(data)
        elif self._head:
            head, self._head = self._head, b""
            self.transport.writelines((head, data))
        else:
            self.transport.write(data)

    def close(self) -> None:
        """Close once all that was written has been read. If the client still sends, drop that for a moment first."""
        self._flush_head()
        if self.complete or self._eof:
            self._close_now()
        elif self.state not in (LINGER, FLUSH, CLOSED):
            self._linger()

    def is_closing(self) -> bool:
        return self.state in (LINGER, FLUSH, CLOSED) or self.transport.is_closing()

    async def drain(self) -> None:
        if self.writable is not None:
            await self.writable.wait()

    def resume_reading(self) -> None:
        """The application asks for more of the body, or whether the client is still there."""
        if self._reading_paused and len(self._ahead) <= MAX_AHEAD and not self._eof:
            self._reading_paused = False
            self.transport.resume_reading()

    def on_response_complete(self) -> None:
        self.server_state.total_requests += 1
        self._flush_head()
        if self.state in (LINGER, FLUSH, CLOSED):
            return
        if self.write_paused:
            self._enter(UNREAD, self.timeout)
        else:
            self._next()

    # What the framing calls

    def request_begins(self, version: str, method: str) -> None:
        url = httptools.parse_url(self.url)
        raw_path = url.path
        path = raw_path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        scope = {
            "type": "http",
            "asgi": self.asgi,
            "http_version": version,
            "server": self.server,
            "client": self.client,
            "scheme": self.scheme,
            "method": method,
            "root_path": self.root_path,
            "path": self.root_path + path,
            "raw_path": self.root_path.encode("ascii") + raw_path,
            "query_string": url.query or b"",
            "headers": self.headers,
            "state": self.app_state.copy(),
        }
        self._keep = version == "1.1" and self.parser.should_keep_alive() and self.end == inf
        self.cycle = request_cycle()(
            scope=scope,
            transport=self,
            flow=self,
            logger=log,
            access_logger=log,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expects,
            # A client that gets its answer before "100 Continue" may send its body or not, so we close.
            keep_alive=self._keep and not self.expects,
            on_response=self.on_response_complete,
        )
        task = self.loop.create_task(self.cycle.run_asgi(self.app))
        tasks = self.server_state.tasks
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        self._began = self.loop.time()
        self._enter(BODY, self.timeout + GRACE)

    def body_comes(self, body: bytes) -> None:
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.body += body
        if len(cycle.body) > MAX_AHEAD:
            self._pause_reading()
        cycle.message_event.set()

    def request_ends(self) -> None:
        cycle = self.cycle
        if cycle.response_complete:
            return
        cycle.more_body = False
        if cycle.waiting_for_100_continue:  # the client did not wait for it
            cycle.waiting_for_100_continue, cycle.keep_alive = False, self._keep
        cycle.message_event.set()
        self._await_answer()

    # Reading

    def _read(self, data: bytes | bytearray) -> None:
        """Parse up to the end of one request. What follows it is held until that request is answered."""
        at = 0
        while at < len(data):
            if self.complete:
                if self.state in (ANSWER, UNREAD):
                    self._hold(memoryview(data)[at:])
                    return
                self.new_request()
                self._head, self._probed = None, 0
                self._enter(HEAD, self.timeout)
            try:
                at += self.take(data, at)
            except RequestError as error:
                self._refuse(error)
            if self.state in (LINGER, FLUSH, CLOSED):
                return
        if self.complete and self.state == SURPLUS:
            self._next()

    def _hold(self, data: bytes | memoryview) -> None:
        self._ahead += data
        if len(self._ahead) > MAX_AHEAD:
            self._pause_reading()

    def _pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    # Answering

    def _await_answer(self) -> None:
        if self.write_paused:
            self._enter(UNREAD, self.timeout)
        elif self._eof:
            self._probe()
        else:
            self._enter(ANSWER, self.timeout)

    def _next(self) -> None:
        """Go on after an answer was sent: with the rest of its request, with the next request, or idle."""
        if self.complete:
            self._enter(IDLE, self.keep_alive)
        else:
            self._enter(SURPLUS, self.timeout)
        ahead, self._ahead = self._ahead, bytearray()
        self.resume_reading()
        if ahead:
            self._read(ahead)
        if self._eof and self.state in (IDLE, HEAD, BODY, SURPLUS):
            self._close_now()

    def _flush_head(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self.transport.write(head)

    def _probe(self) -> None:
        """Learn whether a client that ended its sending still reads.

        A client that closed its socket looks the same until we send something: then its system answers with a reset. So
        send the first byte of the answer, which is the same for all answers, and look for a reset.
        """
        self._look = FIRST_LOOK
        self._enter(ANSWER, FIRST_LOOK)
        if not (self._probed or self.cycle.response_started):
            self.cycle.waiting_for_100_continue = False
            self._probed = 1
            self.transport.write(b"H")

    def _hung_up(self) -> bool:
        return hung_up(self.transport.get_extra_info("socket").fileno())

    def _make_room(self) -> bool:
        """Close the connection that has been idle for longest. Returns whether there was one."""
        idle = [connection for connection in self.server_state.connections if connection.state == IDLE]
        if idle:
            min(idle, key=lambda connection: connection.deadline)._close_now()
        return bool(idle)

    def _turn_away(self, connections: int) -> None:
        now, bounds = self.loop.time(), self.bounds
        if now - bounds.said_full > SAY_AGAIN:
            bounds.said_full = now
            log.error("%d connections are open, the most there may be; more are answered 503", bounds.most)
        if connections > bounds.most + TURNED_AWAY:
            self._abort()
        else:
            self._refuse(TooManyConnections("the server has as many connections as it takes; try again"))

    def _refuse(self, error: RequestError) -> None:
        """Answer in place of the application, and close."""
        self.bounds.refused(error)
        if self.begun:
            started = self.cycle.response_started
            self._disconnect()
            if started:
                self._close_now()  # part of an answer was sent, and a second one cannot follow it
                return
        body = encode(described(error))
        fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)),
                  (b"x-request-id", new_id().encode()), *headers_of(error)]  # fmt: skip
        head = b"".join(b"%s: %s\r\n" % field for field in fields if field != CLOSE)
        self.transport.write(STATUS_LINES[error.status] + head + b"connection: close\r\n\r\n" + body)
        self._linger()

    def _disconnect(self) -> None:
        """Tell the application that the client is gone."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def _linger(self) -> None:
        self._enter(LINGER, LINGER_S)
        self.resume_reading()
        if self.transport.can_write_eof():
            self.transport.write_eof()

    def _close_now(self) -> None:
        self._enter(FLUSH, self.timeout)
        self.transport.close()

    def _abort(self) -> None:
        self._enter(FLUSH, GRACE)
        self.transport.abort()

    # Time

    def _enter(self, state: str, seconds: float) -> None:
        self.state = state
        self.deadline = min(self.loop.time() + seconds, self.end)
        if self.deadline < self._armed_for:
            if self._timer is not None:
                self._timer.cancel()
            self._arm()

    def _arm(self) -> None:
        self._armed_for = self.deadline
        self._timer = self.loop.call_at(self.deadline, self._tick)

    def _tick(self) -> None:
        if self.loop.time() < self.deadline:
            self._arm()
            return
        self._armed_for, self._timer = inf, None
        if self.state == HEAD:
            self._refuse(SlowRequest(f"the request's head took longer than {self.timeout:g} s"))
        elif self.state in (FRESH, IDLE, SURPLUS, LINGER):
            self._close_now()
        elif self.state != ANSWER or self.deadline == self.end or (self._eof and self._hung_up()):
            self._abort()
        elif self._eof:
            self._look = min(2 * self._look, LAST_LOOK)
            self._enter(ANSWER, self._look)
        else:
            self._enter(ANSWER, self.timeout)
