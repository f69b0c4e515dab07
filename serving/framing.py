"""Where a request begins and ends in a stream of bytes. What is ambiguous or too long is refused.

httptools (llhttp) parses. It refuses what request smuggling needs: a bare LF or CR, folded lines, spaces before a
colon, several Content-Lengths, or one beside Transfer-Encoding. This module refuses the rest. The parser cannot stop at
a request's end, so it is given each request up to its end and no byte more. An empty line ends a head, and a chunked
body with its trailers. A body of known length ends by its length.
"""

from __future__ import annotations

import httptools

from serving.errors import BadRequest, LargeHead, RequestError

# Bytes of a request's head, and of a line or the trailers of a chunked body. Browsers and proxies send less than 16 kB.
MAX_HEAD = 64 << 10

EMPTY_LINE = b"\r\n\r\n"

# Header fields that decide where a request ends and which host it is for.
DECISIVE = frozenset((b"host", b"content-length", b"transfer-encoding", b"expect"))


class Framing:
    """The request that is being received. A subclass implements `request_begins`, `body_comes` and `request_ends`,
    which are called as it comes in.
    """

    def __init__(self) -> None:
        self.parser = httptools.HttpRequestParser(self)
        self.new_request()
        self.complete = True  # none is under way

    def new_request(self) -> None:
        self.url, self.headers = b"", list[tuple[bytes, bytes]]()
        self.begun = False  # its head is whole
        self.complete = False  # it is whole
        self.chunked = self.expects = False
        self.left = 0  # bytes of its body, where its head says how many
        self._upgrades = False
        self._hosts = self._head_bytes = self._line_bytes = 0
        self._last = b""  # bytes that may be half an empty line

    def request_begins(self, version: str, method: str) -> None:
        raise NotImplementedError

    def body_comes(self, body: bytes) -> None:
        raise NotImplementedError

    def request_ends(self) -> None:
        raise NotImplementedError

    def take(self, data: bytes | bytearray, at: int) -> int:
        """Parse what belongs to this request in `data` from `at` on, or a part of it. Returns how many bytes that was.

        Raises `RequestError` if this is not a request that we answer.
        """
        if self.begun and not self.chunked:
            portion = min(self.left, len(data) - at)
            self.left -= portion
        else:
            portion = self._to_empty_line(data, at)
        if not self.begun:
            self._head_bytes += portion
            if self._head_bytes > MAX_HEAD:
                raise LargeHead(f"the request's head is larger than {MAX_HEAD:,} bytes")
        self._line_bytes += portion
        self._feed(data if portion == len(data) else memoryview(data)[at : at + portion])
        if self.chunked and self.begun and not self.complete and self._line_bytes > MAX_HEAD:
            raise LargeHead(f"a line of the chunked body, or its trailers, are larger than {MAX_HEAD:,} bytes")
        return portion

    def _to_empty_line(self, data: bytes | bytearray, at: int) -> int:
        """Bytes from `at` up to and with the next empty line, else to the end; in a body at most `MAX_HEAD`."""
        if self._last and (seam := (self._last + data[at : at + 3]).find(EMPTY_LINE)) >= 0:
            portion = seam + len(EMPTY_LINE) - len(self._last)
            self._last = b""
            return portion
        found = data.find(EMPTY_LINE, at)
        end = len(data) if found < 0 else found + len(EMPTY_LINE)
        if self.begun and end > at + MAX_HEAD:
            end, found = at + MAX_HEAD, -1
        self._last = b"" if found >= 0 else (self._last + bytes(data[max(at, end - 3) : end]))[-3:]
        return end - at

    def _feed(self, data: bytes | bytearray | memoryview) -> None:
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._decline_upgrade()
        except httptools.HttpParserError as error:
            ours = error.__context__
            raise ours if isinstance(ours, RequestError) else BadRequest(f"this is not HTTP/1.1: {error}") from None

    def _decline_upgrade(self) -> None:
        """Go on as if the request had not asked for another protocol. The parser has left the body to that protocol, so
        a new parser reads it.
        """
        self._upgrades = False
        self.parser = httptools.HttpRequestParser(self)
        framing = b"Transfer-Encoding: chunked" if self.chunked else b"Content-Length: %d" % self.left
        self.parser.feed_data(b"POST / HTTP/1.1\r\n" + framing + EMPTY_LINE)

    # What the parser calls

    def on_url(self, url: bytes) -> None:
        if not self.begun:
            self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self.begun:
            return  # a trailer, which nothing reads
        name = name.lower()
        self.headers.append((name, value))
        if name in DECISIVE:
            self._decide(name, value.strip(b" \t").lower())

    def _decide(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            self._hosts += 1
        elif name == b"content-length":
            self.left = int(value)
        elif name == b"expect":
            self.expects = value == b"100-continue"
        elif value == b"chunked":
            self.chunked = True
        else:
            raise BadRequest("Transfer-Encoding may only be chunked")

    def on_headers_complete(self) -> None:
        if self.begun:
            return  # the second head, which `_decline_upgrade` made
        version, method = self.parser.get_http_version(), self.parser.get_method().decode("ascii")
        if version not in ("1.1", "1.0"):
            raise BadRequest("the request's version must be HTTP/1.0 or HTTP/1.1")
        if method == "CONNECT":
            raise BadRequest("CONNECT asks for a tunnel, and this server is not a proxy")
        if self._hosts > 1 or (version == "1.1" and not self._hosts):
            raise BadRequest(f"the request has {self._hosts or 'no'} Host header fields; it takes one")
        if self.chunked and version == "1.0":
            raise BadRequest("HTTP/1.0 has no Transfer-Encoding; send Content-Length")
        self.expects = self.expects and version == "1.1" and (self.chunked or self.left > 0)
        self._upgrades = self.parser.should_upgrade()
        self.request_begins(version, method)
        self.begun = True

    def on_body(self, body: bytes) -> None:
        self._line_bytes = 0
        self.body_comes(body)

    def on_chunk_header(self) -> None:
        self._line_bytes = 0

    def on_chunk_complete(self) -> None:
        self._line_bytes = 0

    def on_message_complete(self) -> None:
        if not self._upgrades:  # else the parser expects no body
            self.complete = True
            self.request_ends()
