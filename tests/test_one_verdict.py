"""A running service, asked directly and through each proxy of `deploy/`: every spelling of a path gets one verdict."""

from __future__ import annotations

import json
import select
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.client import HTTPConnection, HTTPException, HTTPResponse
from pathlib import Path
from typing import Any

import psutil
import pytest

from serving.artifact import Artifact
from tests.fakes.pictures import jpeg
from tests.fakes.proxies import behind_haproxy, behind_nginx, needs_haproxy, needs_nginx
from tests.fakes.server import PATIENCE, Server, serve
from tests.spellings import LOOK, METHODS, SAME, interface, named, spelled

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211"),
]

Verdict = tuple[int, str | None]

NOT_FOUND: Verdict = (404, "not_found")
FORBIDDEN: Verdict = (403, "forbidden")
BROKEN: Verdict = (400, "bad_request")
NO_JSON = "an answer without JSON"

# What the proxies do not let through. In any other spelling it is an unknown path.
INSIDE = ("/metrics", "/models/tiny/load", "/models/tiny/unload")

# What is answered without the token: health, figures, and the page.
OPEN = ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready", "/", "/ui", "/ui/", "/ui/app.js")

# HAProxy parses HTTP before its configuration applies, and answers malformed requests with a text of its own.
NOT_HTTP = {"directly": BROKEN, "nginx": BROKEN, "haproxy": (400, NO_JSON)}
# What nginx itself refuses: it decodes a path to find its location, and refuses a NUL or a way up above the root.
BY_ITSELF = {"nginx": ("a NUL", "a way up over the top"), "haproxy": (), "directly": ()}


class Plain(HTTPConnection):
    """A connection on which any path is sent as it is."""

    def _validate_path(self, url: str) -> None:
        pass

    def verdict(self, method: str, target: str, headers: dict[str, str]) -> Verdict:
        """The status and the code of an error; HEAD and the errors of the Open Inference Protocol have no code."""
        body = b"x" if method in ("POST", "PUT") else None
        try:
            response = self.answer(method, target, body, headers)
        except (ConnectionError, HTTPException):  # closed after the previous answer
            self.close()
            response = self.answer(method, target, body, headers)
        return verdict_of(response, method)

    def answer(self, method: str, target: str, body: bytes | None, headers: dict[str, str]) -> HTTPResponse:
        self.request(method, target, body, headers)
        return self.getresponse()


def verdict_of(response: HTTPResponse, method: str) -> Verdict:
    answer = response.read()
    if response.status < 400 or method == "HEAD":
        return response.status, None
    if response.getheader("content-type") != "application/json":
        return response.status, NO_JSON
    error = json.loads(answer)["error"]
    return response.status, None if isinstance(error, str) else error["code"]


@pytest.fixture(scope="module")
def service(tiny: Artifact, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("routes") / "log"
    with serve(log, PODIUM_MODELS=tiny.tag, PODIUM_TOKEN="look") as running:
        yield running


@contextmanager
def through(way: str, service: Server, folder: Path) -> Iterator[Server]:
    if way == "nginx":
        with behind_nginx(service, folder) as front:
            yield front
    elif way == "haproxy":
        with behind_haproxy(service) as front:
            yield front
    else:
        yield service


each_way = pytest.mark.parametrize(
    "way", ["directly", pytest.param("nginx", marks=needs_nginx), pytest.param("haproxy", marks=needs_haproxy)]
)


def table(tiny: Artifact) -> set[str]:
    api = interface(tiny)
    page = {path for path in api.routes.endpoints if path.startswith("/ui/") and not path.endswith(("/", ".json"))}
    return {named(path, tiny) for path in api.routes.endpoints if path not in page} | {"/ui/app.js"}


@each_way
def test_no_other_spelling_is_a_path(way: str, service: Server, tiny: Artifact, tmp_path: Path) -> None:
    wrong, asks = dict[Any, Verdict](), 0
    with through(way, service, tmp_path) as front, closing(Plain("127.0.0.1", front.port, timeout=30)) as client:
        for name, raw in spelled(table(tiny)):
            status, code = NOT_FOUND
            if name in BY_ITSELF[way]:
                status, code = BROKEN
            if not raw.startswith("/"):  # which is not HTTP
                status, code = NOT_HTTP[way]
            for method in METHODS:
                for headers in ({}, LOOK):
                    found, asks = client.verdict(method, raw, headers), asks + 1
                    if found != (status, code) and not (found == (status, None) and nameless(method, raw)):
                        wrong[name, method, raw, *headers] = found
    assert wrong == {} and asks > 5_000


def nameless(method: str, raw: str) -> bool:
    """Whether the answer may lack a code: to HEAD, and in the form of the protocol, which has no code."""
    return method == "HEAD" or raw.startswith("/v2/")


@each_way
def test_the_right_spelling_gets_one_verdict(way: str, service: Server, tiny: Artifact, tmp_path: Path) -> None:
    wrong = dict[Any, Any]()
    with (
        through(way, service, tmp_path) as front,
        closing(Plain("127.0.0.1", front.port, timeout=30)) as client,
        closing(Plain("127.0.0.1", service.port, timeout=30)) as direct,
    ):
        for path in sorted(table(tiny)):
            for name, write in SAME.items():
                for method in METHODS:
                    for headers in ({}, LOOK):
                        target = write(path)
                        expected = direct.verdict(method, target.removeprefix("http://127.0.0.1"), headers)
                        assert headers or expected[0] >= 400 or path in OPEN, (method, target)
                        if path in INSIDE and way != "directly":
                            expected = FORBIDDEN if method != "HEAD" else (403, None)
                        if (found := client.verdict(method, target, headers)) != expected:
                            wrong[name, method, path, *headers] = found, expected
    assert wrong == {}


def test_a_newline_after_a_path_does_not_evade_the_limits(service: Server) -> None:
    """300 MB without a token: refused, and not kept in memory."""
    [worker] = psutil.Process(service.process.pid).children()
    before, size = worker.memory_info().rss, 300_000_000
    with socket.create_connection(("127.0.0.1", service.port), timeout=30) as client:
        client.sendall(b"POST /classify%%0a HTTP/1.1\r\nHost: a\r\nContent-Length: %d\r\n\r\n" % size)
        while size > 0 and not select.select([client], [], [], 0)[0]:
            size -= client.send(bytes(min(size, 1 << 18)))
        response = HTTPResponse(client, method="POST")
        response.begin()
        assert verdict_of(response, "POST") == NOT_FOUND
    assert worker.memory_info().rss < before + 50_000_000


@pytest.mark.parametrize("path", ["/classify%0a", "/%63lassify", "//classify", "/classify/"])
def test_no_spelling_makes_the_service_fetch_an_address(service: Server, path: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as bait, closing(Plain("127.0.0.1", service.port)) as client:
        bait.setblocking(False)
        address = f"http://127.0.0.1:{bait.getsockname()[1]}/cat.jpg"
        form = f'--B\r\nContent-Disposition: form-data; name="image"\r\n\r\n{address}\r\n--B--\r\n'
        for body, kind in (
            (form, "multipart/form-data; boundary=B"),
            (f"image={address}", "application/x-www-form-urlencoded"),
            (json.dumps({"image": address}), "application/json"),
        ):
            for headers in ({}, LOOK):
                answer = client.answer("POST", path, body.encode(), {"Content-Type": kind, **headers})
                assert verdict_of(answer, "POST") == NOT_FOUND
        with pytest.raises(BlockingIOError):
            bait.accept()


def test_bentomls_client_sends_the_token(service: Server, tiny: Artifact, tmp_path: Path) -> None:
    """It reads `/schema.json`, which the token guards too."""
    photograph = tmp_path / "photograph.jpg"
    photograph.write_bytes(jpeg())
    said = subprocess.run(
        [sys.executable, "-c", CLIENT, service.url, str(photograph)], capture_output=True, text=True, timeout=PATIENCE
    )
    assert said.returncode == 0, said.stderr
    assert json.loads(said.stdout) == "tiny"


CLIENT = """
import json, pathlib, sys, bentoml
with bentoml.SyncHTTPClient(sys.argv[1], token="look") as client:
    print(json.dumps(client.classify(image=pathlib.Path(sys.argv[2]))["model"]))
"""


# Request targets that HTTP does not allow, or that are more than a path.
ODD_TARGETS = (
    b"/models\x00", b"/models\x01", b"/models\x7f", b"/models\xe9", b"/models\xff", b"/models \x0b", b"/models\t",
    b"/models#", b"/models#?", b"/models%", b"/models%zz", b"/models%u0041", b"models", b"*", b"", b"//models",
    b"///models", b"http:/models", b"http:///models", b"HTTP://127.0.0.1/models", b"http://a@127.0.0.1/models",
    b"https://127.0.0.1/models", b"ftp://127.0.0.1/models", b"http://127.0.0.1?/models",
    b"http://127.0.0.1/x/../models", b"//127.0.0.1/models", b"\\models", b"/models HTTP/1.1 HTTP/1.1",
)  # fmt: skip


@each_way
@pytest.mark.parametrize("method", [b"GET", b"OPTIONS", b"CONNECT"])
def test_an_odd_target_gets_no_answer_without_the_token(
    way: str, method: bytes, service: Server, tmp_path: Path
) -> None:
    wrong = dict[bytes, Any]()
    with through(way, service, tmp_path) as front:
        for target in ODD_TARGETS:
            with socket.create_connection(("127.0.0.1", front.port), timeout=30) as client:
                client.sendall(b"%s %s HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n" % (method, target))
                with closing(HTTPResponse(client, method=method.decode())) as response:
                    response.begin()
                    if response.status not in (400, 401, 403, 404, 405):
                        wrong[target] = response.status, response.read(200)
    assert wrong == {}
