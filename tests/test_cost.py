"""What a request may cost before its image is decoded: processor time of the event loop, for bodies built to be costly.

The bound is what every other request waits for. It is `BOUND` on the slowest machine we expect, and usually a
tenth of it; the defects that it must find cost seconds.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from serving import oip
from serving.api import Api
from serving.artifact import Artifact
from serving.errors import BadRequest
from tests.conftest import SHAPE
from tests.fakes.interface import END, behind, part, started
from tests.fakes.pictures import jpeg

pytestmark = pytest.mark.usefixtures("frozen")  # as in the service

SIZE = 19_900_000  # of PODIUM_MAX_BODY_MB=20
BOUND = 0.25  # seconds of one processor; the aim is 0.05
FORM = b"multipart/form-data; boundary=B"
HEAD = b'{"inputs":[{"name":"image","datatype":"UINT8","shape":[1,32,32,3],'


def filled(begin: bytes, piece: bytes, end: bytes = b"", size: int = SIZE) -> bytes:
    return begin + piece * ((size - len(begin) - len(end)) // len(piece)) + end


def forms() -> Iterator[tuple[str, bytes]]:
    head = b'--B\r\nContent-Disposition: form-data; name="%b"\r\n\r\n'
    yield "heads of images", filled(b"", head % b"image" + b"x\r\n", END)
    yield "fields that are left out", filled(b"", head % b"model" + b"null\r\n", END)
    yield "almost boundaries before the first", filled(b"", b"\r\n--Bx", b"\r\n" + part("image", jpeg()) + END)
    yield "almost boundaries in an image", filled(head % b"image", b"\r\n--Bx", b"\r\n" + END)
    yield "boundaries alone", filled(b"", b"--B\r\n")
    yield "boundaries with spaces", filled(b"--B", b" ")
    yield "carriage returns", filled(head % b"image", b"\r\n\r\n--", END)
    yield "one head", filled(b"--B\r\nA: ", b"a", b"\r\n\r\n")
    for name, parameter in {
        "semicolons": b";",
        "quotes": b';"',
        "escapes": b'\\"',
        "options": b";a=",
        "lines": b"\r\nA:",
    }.items():
        # Every head is different, so that a cache does not help.
        parts = [
            filled(b"--B\r\nContent-Disposition: form-data; n%d" % i, parameter, b'; name="image"\r\n\r\nx\r\n', 7900)
            for i in range(90)
        ]
        yield f"heads of {name}", b"".join(parts) + END
    yield "an image", head % b"image" + bytes(SIZE - 200) + b"\r\n" + END


def documents() -> Iterator[tuple[str, bytes]]:
    for name, piece in {
        "empty lists": b"[],", "lists in lists": b"[", "numbers": b"1,", "numbers apart": b"255 ,\n ", "spaces": b" ",
        "digits": b"1", "commas": b",", "closed lists": b"]", "texts": b'"",', "objects": b"{},", "floats": b"1.5,",
        "constants": b"NaN,", "true": b"true,", "big numbers": b"9" * 4000 + b",", "keys": b'"data":[',
        "escapes": b"\\",
        "lists of three": b"[1,2,3],",
    }.items():  # fmt: skip
        yield f"data of {name}", filled(HEAD + b'"data":[', piece, b"1]}]}")
        yield f"a document of {name}", filled(b"[", piece, b"1]")
        yield f"a document of {name} behind its data", filled(HEAD + b'"data":[1,2]}],"a":[', piece, b"1]}")
    yield "an id", filled(b'{"id":"', b"a", b'",' + HEAD[1:] + b'"data":[1]}]}')
    yield "keys", filled(b"{", b'"a":1,', b'"b":1}')


def requests() -> Iterator[tuple[str, str, list[tuple[bytes, bytes]], bytes]]:
    for name, body in forms():
        for path in ("/classify", "/classify/batch"):
            yield f"{path}: {name}", path, [(b"content-type", FORM)], body
    for name, body in documents():
        yield f"JSON: {name}", "/v2/models/tiny/infer", [], body
    for name, body in (("zeros", bytes(SIZE)), ("an empty head", filled(b"{}", b"\0")), ("no head", filled(b"", b"{"))):
        yield f"binary: {name}", "/v2/models/tiny/infer", [(oip.LENGTH, b"2")], body
    for name, piece in {"escapes": b"%41", "bytes": b"%ff", "fields": b"a&", "pluses": b"+", "equals": b"="}.items():
        yield f"query of {name}", f"/classify?{filled(b'model=', piece, size=60_000).decode()}", [], jpeg()
    for field in (b"content-type", b"x-request-id", b"authorization", b"content-length", oip.LENGTH):
        for piece in (b"; ", b';"', b";a=", b"9", b"\xff", b"Bearer "):
            yield f"{field!r} of {piece!r}", "/classify", [(field, filled(b"a/b", piece, size=60_000))], jpeg()
            yield (
                f"{field!r} of {piece!r}",
                "/v2/models/tiny/infer",
                [(field, filled(b"", piece, size=60_000))],
                b"{}",
            )


async def cost(api: Api, path: str, headers: list[tuple[bytes, bytes]], body: bytes) -> tuple[int, float]:
    """The status of one request, and the processor time that the thread of the event loop took."""
    statuses: list[int] = []
    sent = [{"type": "http.request", "body": body, "more_body": False}]

    async def receive() -> Any:
        if sent:
            return sent.pop()
        await asyncio.Event().wait()  # the client waits for its answer
        raise AssertionError

    async def send(message: Any) -> None:
        statuses.append(message.get("status", 0))

    path, _, query = path.partition("?")
    scope = {"type": "http", "method": "POST", "path": path, "query_string": query.encode(), "headers": headers}
    scope["raw_path"] = path.encode()
    before = time.thread_time()
    await api(scope, receive, send)
    return statuses[0], time.thread_time() - before


async def test_no_body_keeps_the_event_loop_busy(tiny: Artifact) -> None:
    slow: dict[str, float] = {}
    async with started(tiny, PODIUM_TOKEN="x", PODIUM_ADMIN_TOKEN="y") as serving:
        api = Api(behind, serving)
        for name, path, headers, body in requests():
            token = [] if headers[:1] and headers[0][0] == b"authorization" else [(b"authorization", b"Bearer x")]
            status, seconds = await cost(api, path, [*headers, *token], body)
            assert status < 500, name
            if seconds > BOUND:
                slow[name] = round(seconds, 3)
    assert slow == {}


def test_data_is_read_in_pieces_that_leave_time_for_others() -> None:
    """A call outside the loop holds the interpreter too, so the longest call into the JSON reader is bounded."""
    longest, reader = 0, json.loads

    def measured(text: Any, **named: Any) -> Any:
        nonlocal longest
        longest = max(longest, len(text))
        return reader(text, **named)

    body = filled(HEAD.replace(b"[1,32,32,3]", b"[2,1000,1000,3]") + b'"data":[', b"255,", size=6_000_000 * 4)
    body = body[: body.index(b"[255") + 1] + b",".join([b"255"] * 6_000_000) + b"]}]}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json, "loads", measured)
        asked = oip.read(body, b"")
    assert (asked.shape, len(asked.pixels)) == ((2, 1000, 1000, 3), 6_000_000)
    assert np.frombuffer(asked.pixels, np.uint8).min() == 255
    assert longest < 70_000


@pytest.mark.parametrize("piece", [b"[],", b"1,", b'{"a":1},', b'"\\u0041",', b"1.5,", b"[", b'{"a":'])
def test_a_document_is_short_except_for_its_data(piece: bytes) -> None:
    body = HEAD + b'"data":[' + b",".join([b"1"] * 3072) + b'],"a":['
    with pytest.raises(BadRequest, match="beside the data"):
        oip.read(filled(body, piece, b"1]}]}", 1_000_000), b"")
    small = filled(body, piece, b"1]}]}", 60_000)
    before = time.process_time()
    try:
        assert oip.read(small, b"").shape == (1, *SHAPE)
    except BadRequest:
        assert piece in (b"[", b'{"a":')
    assert time.process_time() - before < BOUND
