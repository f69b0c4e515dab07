"""An HTTP/1.1 connection as uvicorn keeps it, with bounds on the head of a request.

uvicorn waits for a head as long as its client likes, and takes as much of one as is sent. `Api` bounds what follows.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.errors import BadRequest, LargeHead, RequestError, SlowRequest
from serving.exchange import described, encode

# Bytes; browsers and proxies stay below 16 kB. Checked from piece to piece, and a piece is at most 256 kB.
MAX_HEAD = 64 << 10

# Seconds in which what a refused client still sends is dropped: a closed door would cost it the answer.
LINGER = 1.0

# Without uvicorn's warning for each request that is no HTTP: it would be anybody's to fill the log.
log = logging.getLogger("uvicorn.error.connection")
log.setLevel(logging.ERROR)

REASONS = {400: b"Bad Request", 408: b"Request Timeout", 431: b"Request Header Fields Too Large"}


class Connection(HttpToolsProtocol):
    """Closes where a head takes longer than `timeout` seconds, from the connection or from the head's first byte; the
    time between two requests is uvicorn's to bound.
    """

    timeout = 10.0

    _in_head = _refused = False
    _head_bytes = 0
    _timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self.logger = log

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._forget_head()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        self._head_bytes += len(data)  # of no meaning unless a head is unfinished after it
        super().data_received(data)
        if not self._in_head:
            return
        if self._head_bytes > MAX_HEAD:
            self._refuse(LargeHead(f"the request's head is larger than {MAX_HEAD:,} bytes"))
        elif self._timer is None:
            self._await_head()

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head, self._head_bytes = True, 0

    def on_headers_complete(self) -> None:
        self._forget_head()
        super().on_headers_complete()

    def send_400_response(self, msg: str) -> None:
        self._refuse(BadRequest(msg))

    def _await_head(self) -> None:
        self._timer = self.loop.call_later(self.timeout, self._too_slow)

    def _forget_head(self) -> None:
        self._in_head = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _too_slow(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._await_head()  # the answer to the request before it is still under way
        elif self._in_head:
            self._refuse(SlowRequest(f"the request's head took longer than {self.timeout:g} s"))
        else:
            self.transport.close()  # nothing was asked

    def _refuse(self, error: RequestError) -> None:
        self._forget_head()
        self._refused = True
        body = encode(described(error))
        head = (
            b"HTTP/1.1 %d %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\nconnection: close\r\n\r\n"
        ) % (error.status, REASONS[error.status], len(body))
        self.transport.write(head + body)
        self._timer = self.loop.call_later(LINGER, self.transport.close)
