"""The table of routes: each path has one spelling; no other reaches our handlers or BentoML's application."""

from __future__ import annotations

import itertools
import json
from typing import Any
from urllib.parse import unquote

import pytest

from serving import errors, openapi
from serving.api import Api
from serving.artifact import Artifact
from serving.errors import MethodNotAllowed, NotFound, Overloaded, RequestError
from serving.routes import Route, Routes
from tests.fakes.interface import behind, client_of, is_error, started
from tests.spellings import LOOK, METHODS, interface, paths, spelled


class Recorder:
    """An application behind the interface, which keeps every scope and every message that it gets."""

    def __init__(self, *answers: dict[str, Any]) -> None:
        self.answers, self.scopes, self.messages = answers, list[dict[str, Any]](), list[dict[str, Any]]()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.scopes.append(scope)
        if scope["type"] == "http":
            self.messages.append(await receive())
        for message in self.answers:
            await send(message)


STARTED = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
DONE = {"type": "http.response.body", "body": b'{"routes": []}'}


async def asked(api: Api, method: str, raw: str, **headers: str) -> tuple[int, dict[bytes, bytes], bytes]:
    """The answer of `api` to a path as uvicorn passes it: as written, and decoded."""
    sent: list[dict[str, Any]] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"x" * 10, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    path, _, query = raw.partition("?")
    scope = {
        "type": "http", "method": method, "path": unquote(path), "raw_path": path.encode(),
        "query_string": query.encode(), "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
    }  # fmt: skip
    await api(scope, receive, send)
    start, body = sent
    return start["status"], dict(start["headers"]), body["body"]


def code_of(path: str, body: bytes) -> str | None:
    """An error's code; the Open Inference Protocol has none."""
    error = json.loads(body)["error"]
    return None if path.startswith("/v2/") and isinstance(error, str) else error["code"]


async def test_no_other_spelling_is_answered_or_passed_on(tiny: Artifact) -> None:
    app = Recorder(STARTED, DONE)
    api, known = interface(tiny, app, PODIUM_TOKEN="look"), paths(tiny)
    asks = 0
    for name, raw in spelled(known):
        for method, headers in itertools.product(METHODS, ({}, LOOK)):
            status, answer, body = await asked(api, method, raw, **headers)
            asks += 1
            assert status == 404 and answer[b"x-request-id"], (name, method, raw)
            if method == "HEAD":
                assert body == b"" and int(answer[b"content-length"]) > 0
            else:
                assert code_of(raw, body) in ("not_found", None), (name, method, raw)
    assert asks > 10_000 and app.scopes == []
    assert api.serving.metrics.outcomes["unknown", "not_found"] == asks


async def test_only_health_metrics_and_the_page_are_answered_without_the_token(tiny: Artifact) -> None:
    async with started(tiny, PODIUM_TOKEN="look") as serving:
        app = Recorder(STARTED, DONE)
        api = Api(app, serving)
        open_to_all = set()
        for path, methods in paths(tiny).items():
            for method in METHODS:
                status, _, _ = await asked(api, method, path)
                assert status == 405 if method not in methods else status in (200, 307, 308, 401), (method, path)
                if status < 400:
                    open_to_all.add(path)
        page = {path for path in open_to_all if path.startswith("/ui")}
        assert {"/ui", "/ui/", "/ui/app.js"} <= page and "/ui/results.json" not in page
        assert open_to_all - page == {"/", "/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"}
        assert app.scopes == []


async def test_the_answer_to_a_wrong_method_names_the_right_ones(tiny: Artifact) -> None:
    async with started(tiny) as serving, client_of(serving) as client:
        for path, methods in paths(tiny).items():
            for method in ("PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND", "POST", "GET", "HEAD"):
                if method in methods:
                    continue
                refused = await client.request(method, path)
                assert refused.status_code == 405 and set(refused.headers["allow"].split(", ")) == methods
                assert method == "HEAD" or path.startswith("/v2/") or is_error(refused, 405, "method_not_allowed")
        assert ("POST" in methods) != ("GET" in methods)
        assert serving.metrics.outcomes["unknown", "method_not_allowed"] > 100


async def test_head_is_get_without_the_body(tiny: Artifact) -> None:
    async with started(tiny) as serving:
        api = Api(Recorder(STARTED, DONE), serving)
        for path, methods in paths(tiny).items():
            if "GET" in methods:
                status, headers, _ = await asked(api, "GET", path)
                bare_status, bare_headers, body = await asked(api, "HEAD", path)
                assert (bare_status, body) == (status, b"") and status < 400, path
                changing = {b"x-request-id"} | ({b"content-length"} if path == "/metrics" else set())
                assert headers.keys() == bare_headers.keys()
                assert all(headers[key] == bare_headers[key] for key in headers.keys() - changing), path


# The application behind


async def test_nothing_that_a_client_sends_reaches_the_application_behind(tiny: Artifact) -> None:
    app = Recorder(STARTED, DONE)
    async with started(tiny, PODIUM_TOKEN="look") as serving:
        for method in ("GET", "HEAD"):
            status, headers, body = await asked(Api(app, serving), method, "/schema.json?a=%0a", Cookie="a", **LOOK)
            assert (status, headers[b"content-type"]) == (200, b"application/json")
            assert headers[b"x-request-id"] and body == (DONE["body"] if method == "GET" else b"")
    for scope in app.scopes:
        told = {key: scope[key] for key in ("method", "path", "raw_path", "query_string", "headers")}
        assert told == {
            "method": "GET", "path": "/schema.json", "raw_path": b"/schema.json", "query_string": b"",
            "headers": [],
        }  # fmt: skip
    assert app.messages == [{"type": "http.request", "body": b"", "more_body": False}] * 2


class Raises(Recorder):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        raise RuntimeError("broken")


class Waits(Recorder):
    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        while True:
            await receive()


@pytest.mark.parametrize(
    "app",
    [Raises(), Waits(), Recorder(), Recorder({**STARTED, "status": 302, "headers": [(b"set-cookie", b"a")]}, DONE)],
)
async def test_whatever_the_application_behind_does_the_answer_has_our_form(tiny: Artifact, app: Any) -> None:
    async with started(tiny, PODIUM_TIMEOUT_MS="50") as serving:
        status, headers, body = await asked(Api(app, serving), "GET", "/schema.json")
        assert (status, code_of("/schema.json", body)) == (500, "internal")
        assert set(headers) == {b"content-type", b"content-length", b"x-request-id"}
        assert serving.metrics.outcomes["unknown", "internal"] == 1


async def test_besides_http_only_the_lifespan_messages_are_passed_on(tiny: Artifact) -> None:
    app, sent = Recorder(), list[Any]()

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing is to be read")

    api = interface(tiny, app)
    for kind in ("lifespan", "websocket", "something"):
        await api({"type": kind, "path": "/classify", "headers": []}, receive, send)
    assert [scope["type"] for scope in app.scopes] == ["lifespan"]
    assert sent == [{"type": "websocket.close", "code": 1008}]


# The table


def test_every_route_is_described_and_nothing_else(tiny: Artifact) -> None:
    api = interface(tiny)
    table = {(route.method, route.path) for route in api.routes if route.path not in page_files(api)}
    assert table == set(openapi.OPERATIONS)
    described = json.loads(api.description.body)["paths"]
    assert {(m.upper(), p.replace("{", "").replace("}", "")) for p, item in described.items() for m in item} == table


def test_every_error_is_some_answer_of_the_document(tiny: Artifact) -> None:
    """Except the errors about what the document does not list: other paths and other methods."""
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, RequestError)}
    listed = {*openapi.ALWAYS, *openapi.GUARDED}.union(*(each.errors for each in openapi.OPERATIONS.values()))
    assert kinds - listed == {RequestError, NotFound, MethodNotAllowed}
    later = {kind for kind in kinds if kind.retry_after is not None} | {Overloaded}
    assert later == set(openapi.LATER)


def page_files(api: Api) -> set[str]:
    own = ("/ui/", "/ui/results.json")
    return {path for path in api.routes.endpoints if path.startswith("/ui/") and path not in own}


def test_a_route_cannot_be_in_the_table_twice() -> None:
    async def handler(*_: object) -> dict[str, Any]:
        return {}

    with pytest.raises(ValueError, match="GET /a is in the table twice"):
        Routes([Route("GET", "/a", "open", handler), Route("GET", "/a", "user", handler)])


async def test_a_placeholder_of_the_documentation_is_not_a_name(tiny: Artifact) -> None:
    api = interface(tiny)
    for path in ("/models/NETWORK", "/v2/models/tiny/versions/VERSION", "/models/NETWORK/load"):
        assert (await asked(api, "GET", path))[0] == 404


async def test_an_outcome_is_counted_once_whatever_went_wrong(tiny: Artifact) -> None:
    def broken() -> dict[str, Any]:
        raise RuntimeError("broken")

    async with started(tiny) as serving:
        api = Api(behind, serving)
        serving.models["tiny"].summary = broken  # type: ignore[method-assign]
        status, headers, body = await asked(api, "GET", "/models")
        assert (status, code_of("/models", body)) == (500, "internal") and headers[b"x-request-id"]
        await serving.drain()
        for path in ("/models", "/schema.json", "/ui/results.json"):
            status, headers, body = await asked(api, "GET", path)
            assert (status, code_of(path, body), headers[b"connection"]) == (503, "shutting_down", b"close")
        assert (await asked(api, "GET", "/livez"))[1][b"connection"] == b"close"
        assert (await asked(api, "GET", "/readyz"))[0] == 503
        counted = {outcome: count for (_, outcome), count in serving.metrics.outcomes.items() if count}
        assert counted == {"internal": 1, "shutting_down": 3}
