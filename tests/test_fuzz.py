"""Any request at all, through the whole of `Api`: an answer, or an error that names the fault of the request.

The parts have property tests of their own: images in test_images.py, forms in test_api.py, the protocol in test_oip.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from benchmarks.campaigns import cases as hostile
from serving.api import Api
from serving.artifact import Artifact
from serving.classify import Serving
from serving.settings import Settings
from tests.conftest import SHAPE

Ask = Callable[[dict[str, Any], list[dict[str, Any]]], tuple[int, bytes]]


@pytest.fixture(scope="module")
def ask(tiny: Artifact) -> Iterator[Ask]:
    """Sends a scope and its messages through an `Api` and returns status and body; 299 is the application behind it."""
    loop = asyncio.new_event_loop()
    serving = Serving(Settings.read({"PODIUM_MAX_BODY_MB": "0.01"}), [tiny], CollectorRegistry())
    loop.run_until_complete(serving.start())

    async def behind(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 299, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    api = Api(behind, serving)

    async def one(scope: dict[str, Any], messages: list[dict[str, Any]]) -> tuple[int, bytes]:
        left, sent = iter(messages), list[Any]()

        async def receive() -> dict[str, Any]:
            if (message := next(left, None)) is None:
                await asyncio.Event().wait()  # the client waits for its answer
                raise AssertionError
            return message

        async def send(message: Any) -> None:
            sent.append(message)

        await api({"type": "http", "http_version": "1.1", **scope}, receive, send)
        start, *bodies = sent
        assert start["type"] == "http.response.start"
        return start["status"], b"".join(message["body"] for message in bodies)

    yield lambda scope, messages: loop.run_until_complete(one(scope, messages))
    loop.run_until_complete(serving.stop())
    loop.close()


PATHS = st.one_of(
    st.sampled_from(
        ["/classify", "/classify/batch", "/compare", "/models", "/models/tiny", "/models/tiny/load", "/v2", "/readyz",
         "/v2/models/tiny", "/v2/models/tiny/infer", "/v2/models/tiny/versions/1/infer", "/metrics", "/ui/", "/"]
    ),
    st.text(max_size=20).map("/".__add__),
    st.text(max_size=8).map("/models/".__add__),
    st.text(max_size=8).map("/v2/models/tiny/".__add__),
)  # fmt: skip
VALUES = {
    b"content-type": st.sampled_from(
        [b"image/jpeg", b"multipart/form-data; boundary=B", b"application/octet-stream", b"text/plain", b""]
    ),
    b"content-length": st.sampled_from([b"0", b"5", b"100000000000", b"-1", b"x"]),
    b"content-encoding": st.sampled_from([b"gzip", b"identity"]),
    b"inference-header-content-length": st.sampled_from([b"0", b"2", b"9999", b"-1", b"x"]),
    b"authorization": st.sampled_from([b"Bearer x", b"Basic x"]),
    b"x-request-id": st.just(b"one"),
}
HEADERS = st.lists(
    st.sampled_from(sorted(VALUES)).flatmap(
        lambda name: st.tuples(st.just(name), VALUES[name] | st.binary(max_size=30))
    ),
    max_size=4,
)
PIECES = st.lists(
    st.one_of(
        st.binary(max_size=60),
        st.sampled_from(
            [hostile.part("image", b"x"), hostile.part("top_k", b"2"), hostile.END, b"GIF89a", b"\xff\xd8\xff"]
        ),
        st.just(bytes(6000)),
    ),
    max_size=5,
)


@settings(max_examples=500, deadline=None)
@given(
    method=st.sampled_from(["POST", "POST", "POST", "GET", "PUT", "HEAD", "X"]),
    path=PATHS,
    query=st.binary(max_size=30) | st.sampled_from([b"top_k=2", b"model=tiny", b"model=%ff", b"top_k=2&top_k=2"]),
    headers=HEADERS,
    pieces=PIECES,
    hangs_up=st.booleans(),
)
def test_any_request_is_answered_or_refused(
    ask: Ask,
    method: str,
    path: str,
    query: bytes,
    headers: list[tuple[bytes, bytes]],
    pieces: list[bytes],
    hangs_up: bool,
) -> None:
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if hangs_up:
        messages.append({"type": "http.disconnect"})
    else:
        messages.append({"type": "http.request", "body": b"", "more_body": False})
    status, body = ask({"method": method, "path": path, "query_string": query, "headers": headers}, messages)
    assert status < 500
    if method == "HEAD":
        assert not body
    elif 400 <= status < 499:  # 499 is for a client that has left, so only proxies see it
        error = json.loads(body)["error"]
        assert error if path.startswith("/v2/") else error["code"] and error["message"]


def test_the_hostile_requests_get_an_allowed_answer(ask: Ask) -> None:
    """The valid HTTP requests of `python -m benchmarks stand`, without the server that parses HTTP."""
    asked = 0
    for case in hostile.cases(seed=1, network="tiny", shape=SHAPE):
        head, _, body = case.request.partition(b"\r\n\r\n")
        line, *fields = head.split(b"\r\n")
        if case.may == hostile.PARSER or len(body) > 20_000 or b"%" in line:
            continue
        method, target, _ = line.decode().split(" ")
        path, _, query = target.partition("?")
        headers = [(k.lower(), v.strip()) for k, _, v in (field.partition(b":") for field in fields)]
        scope = {"method": method, "path": path, "query_string": query.encode(), "headers": headers}
        status, _ = ask(scope, [{"type": "http.request", "body": body, "more_body": False}])
        asked += 1
        assert status == 299 or case.allows(status), (case.family, case.name, status)
    assert asked > 2000
