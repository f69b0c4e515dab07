"""The HTTP interface: requests, responses and errors, as one piece of ASGI middleware.

It answers the paths below and those of the page, and hands every other request to the application behind it, which
keeps its `/docs.json` and `/schema.json`. A request comes and goes in one pass: body read within its
limits, parsed, classified, answered with one JSON document.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import re
import secrets
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import TypeVar
from urllib.parse import parse_qsl

from python_multipart.multipart import parse_options_header
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import logs, oip
from serving.classify import Answer, Model, Serving
from serving.errors import (
    OUR_FAULT,
    BadRequest,
    InferenceFailed,
    MethodNotAllowed,
    NotReady,
    RequestError,
    SlowRequest,
    TooLarge,
    Unauthorized,
    UnknownModel,
    UnsupportedImage,
)
from serving.images import Picture, check_content_type
from serving.metrics import CONTENT_TYPE
from serving.pages import Results, files

log = logging.getLogger("bentoml.podium")

T = TypeVar("T")

Header = tuple[bytes, bytes]
Handler = Callable[[Scope, Receive, float], Awaitable["Answer | Raw"]]

# A field that is not an image is a name or a number.
LONGEST_FIELD = 1000
LONGEST_HEAD = 8000
LONGEST_BOUNDARY = 200  # the standard has 70
FIELDS = ("model", "top_k")

# How long a client that is answered before it has sent all may go on, so that it reads the answer.
LINGER = 1.0


class ClientGone(Exception):
    """Nobody is left to answer."""


@dataclass(frozen=True)
class Raw:
    """An answer that is not JSON alone."""

    body: bytes
    content_type: bytes
    headers: tuple[Header, ...] = ()


class Exchange:
    """One request's way back: its id, echoed in the response, its status, and when it began."""

    __slots__ = ("_send", "id", "started", "status")

    def __init__(self, send: Send, asked: bytes) -> None:
        self._send, self.started, self.status = send, perf_counter(), 500
        # A client's own id goes back as it came, if it can stand in a header and in a log.
        self.id = asked.decode("ascii") if ID.fullmatch(asked) else f"{PROCESS}-{next(NUMBER):x}"

    async def send(self, message: Message) -> None:
        """Pass on a message of another application's response."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", self.id.encode())]}
        await self._send(message)

    async def reply(
        self, status: int, body: bytes, headers: Iterable[Header] = (), content_type: bytes = b"application/json"
    ) -> None:
        self.status = status
        start = [
            (b"content-type", content_type),
            (b"content-length", b"%d" % len(body)),
            (b"x-request-id", self.id.encode()),
            *headers,
        ]
        await self._send({"type": "http.response.start", "status": status, "headers": start})
        await self._send({"type": "http.response.body", "body": body})


@dataclass
class Form:
    """What a request asks for."""

    images: list[bytes] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: str) -> None:
        if name not in FIELDS:
            raise BadRequest(f"{name[:80]!r} is no parameter; there are {', '.join(FIELDS)} and the field image")
        if name in self.fields:
            raise BadRequest(f"{name} is given more than once")
        self.fields[name] = value

    @property
    def model(self) -> str | None:
        return self.fields.get("model")

    @property
    def top_k(self) -> int | None:
        text = self.fields.get("top_k")
        if text is None:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) <= 9):
            raise BadRequest(f"top_k is {text[:80]!r}; it must be a whole number from 1 on")
        return int(text)


class Api:
    """ASGI middleware over `app` that answers for `serving`."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app, self.serving = app, serving
        wish = serving.settings
        self.authorization, self.administration = bearer(wish.token), bearer(wish.admin_token)
        self.routes: dict[str, dict[str, Handler]] = {
            "/classify": {"POST": self.classify},
            "/classify/batch": {"POST": self.classify_batch},
            "/compare": {"POST": self.compare},
            "/models": {"GET": self.models},
            "/livez": {"GET": self.livez},
            "/readyz": {"GET": self.readyz},
            "/metrics": {"GET": self.metrics},
            "/ui/results.json": {"GET": self.results},
            "/v2": {"GET": self.v2},
            "/v2/health/live": {"GET": self.livez},
            "/v2/health/ready": {"GET": self.readyz},
        }
        self.pages = files()
        self.measured = Results(Path.cwd())
        self.open_to_all = ("/livez", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        exchange = Exchange(send, header(scope, b"x-request-id"))
        endpoint = scope["path"]
        methods = self.routes.get(endpoint)
        if methods is None:
            endpoint, methods = self.route(endpoint)
        if methods is not None:
            await self.respond(methods, scope, receive, exchange)
        elif (page := self.pages.get(scope["path"])) is not None and scope["method"] in ("GET", "HEAD"):
            await page(scope, exchange.send)
        else:
            await self.app(scope, receive, exchange.send)
        self.serving.metrics.responded(endpoint, exchange.status, perf_counter() - exchange.started)

    def route(self, path: str) -> tuple[str, dict[str, Handler] | None]:
        """The endpoint of `path` as the metrics call it, and its handlers by method; none where it is not ours."""
        if path.startswith("/v2/models/"):
            return "/v2/models", self.v2_model(path)
        if path.startswith("/models/"):
            return "/models/NETWORK", self.one_model(path)
        return "/ui/" if path in self.pages else "other", None

    async def respond(self, methods: dict[str, Handler], scope: Scope, receive: Receive, exchange: Exchange) -> None:
        path = scope["path"]
        deadline = asyncio.get_running_loop().time() + self.serving.settings.timeout
        upload = Upload(receive)
        try:
            answer = await self.handle(methods, scope, upload, deadline)
        except ClientGone:
            # The server drops it, but what may stand between it and us waits for an answer.
            await exchange.reply(GONE, b"")
        except RequestError as error:
            await upload.discard(self.serving.settings.max_body)
            if error.status >= 500:
                log.warning(
                    "%s %s answered %d %s: %s request_id=%s",
                    scope["method"], path[:80], error.status, error.code, error, exchange.id,
                    extra={logs.FIELDS: {"status": error.status, "code": error.code, "request_id": exchange.id}},
                )  # fmt: skip
            await exchange.reply(error.status, encode(self.refused(error, path)), headers_of(error))
        except Exception:
            fields = {"status": 500, "code": InferenceFailed.code, "request_id": exchange.id}
            log.exception(
                "%s %s failed request_id=%s", scope["method"], path[:80], exchange.id, extra={logs.FIELDS: fields}
            )
            await exchange.reply(500, encode(self.refused(InferenceFailed(OUR_FAULT), path)))
        else:
            headers = [CLOSE] if self.serving.closing else []
            if isinstance(answer, Raw):
                await exchange.reply(200, answer.body, [*answer.headers, *headers], answer.content_type)
            else:
                await exchange.reply(200, encode(answer), headers)

    async def handle(self, methods: dict[str, Handler], scope: Scope, upload: Upload, deadline: float) -> Answer | Raw:
        """The answer of the handler for the request's method, if the request may ask for it."""
        handler = methods.get("GET" if scope["method"] == "HEAD" else scope["method"])
        if handler is None:
            raise MethodNotAllowed(f"{scope['path'][:80]} takes {', '.join(methods)}, not {scope['method'][:20]}")
        if scope["path"] in self.open_to_all:
            return await handler(scope, upload, deadline)
        serving = self.serving
        serving.enter()
        try:
            if handler in (self.load, self.unload):
                self.authorize(scope, self.administration, "PODIUM_ADMIN_TOKEN")
            elif self.authorization is not None:
                self.authorize(scope, self.authorization, "PODIUM_TOKEN")
            return await handler(scope, upload, deadline)
        except RequestError as error:
            serving.metrics.failed(error.model, error.code)
            raise
        except ClientGone:
            raise
        except Exception:
            serving.metrics.failed("unknown", InferenceFailed.code)
            raise
        finally:
            serving.leave()

    @staticmethod
    def authorize(scope: Scope, expected: bytes | None, setting: str) -> None:
        if expected is None:
            raise Unauthorized(f"this is off; it takes a server that was started with {setting}, and that token")
        if not hmac.compare_digest(header(scope, b"authorization"), expected):
            raise Unauthorized(f"send the server's {setting} as `Authorization: Bearer TOKEN`")

    # What is answered

    async def classify(self, scope: Scope, receive: Receive, deadline: float) -> Answer:
        form = await self.read(scope, receive, deadline, check_room=True)
        image = one_image(form)
        return await unless_gone(
            receive, self.serving.classify(self.serving.picture(image), form.model, form.top_k, deadline=deadline)
        )

    async def classify_batch(self, scope: Scope, receive: Receive, deadline: float) -> Answer:
        """Every image on its own: an answer, or its error, in the order sent."""
        form = await self.read(scope, receive, deadline)
        if not form.images:
            raise BadRequest("no image: send each as a field `image` of a multipart form")
        self.serving.top_k(self.serving.model(form.model), form.top_k)
        asked = (self.one(self.serving.picture(image), form.model, form.top_k, deadline) for image in form.images)
        return {"results": await unless_gone(receive, gather(asked))}

    async def compare(self, scope: Scope, receive: Receive, deadline: float) -> Answer:
        """One image through every model: an answer, or an error, by model."""
        form = await self.read(scope, receive, deadline)
        if form.model is not None:
            raise BadRequest("compare asks every model; leave model out")
        picture, models = self.serving.picture(one_image(form)), list(self.serving.models)
        asked = (self.one(picture, model, form.top_k, deadline) for model in models)
        return {"results": dict(zip(models, await unless_gone(receive, gather(asked)), strict=True))}

    async def one(self, picture: Picture, model: str | None, top_k: int | None, deadline: float) -> Answer:
        """One of several results: a classification, or its error in place of it."""
        try:
            return await self.serving.classify(picture, model, top_k, deadline=deadline)
        except RequestError as error:
            self.serving.metrics.failed(error.model, error.code)
            return described(error)

    async def models(self, *_: object) -> Answer:
        loaded = list(self.serving.models.values())
        return {
            "default": loaded[0].artifact.network if loaded else None,
            "models": [model.summary() for model in loaded],
        }

    def one_model(self, path: str) -> dict[str, Handler]:
        """The handlers of /models/NETWORK[/load | /unload]."""
        _, _, action = path.removeprefix("/models/").partition("/")
        if not action:
            return {"GET": self.model}
        actions: dict[str, Handler] = {"load": self.load, "unload": self.unload}
        return {"POST": actions.get(action, self.no_such_path)}

    async def model(self, scope: Scope, *_: object) -> Answer:
        return self.serving.model(scope["path"].removeprefix("/models/")).details()

    async def no_such_path(self, *_: object) -> Answer:
        raise UnknownModel("no such path; there are /models/NETWORK, and /load and /unload below it")

    async def load(self, scope: Scope, *_: object) -> Answer:
        """Serve a network's newest version, or the one that `version` names, in place of the one that is loaded."""
        wanted = dict(query(scope["query_string"]))
        version = wanted.pop("version", "latest")
        if wanted:
            raise BadRequest(f"{next(iter(wanted))[:80]!r} is no parameter of load; there is version")
        return (await self.serving.load(scope["path"].split("/")[2], version)).summary()

    async def unload(self, scope: Scope, *_: object) -> Answer:
        return {"unloaded": (await self.serving.unload(scope["path"].split("/")[2])).artifact.tag}

    async def results(self, *_: object) -> Answer:
        """The newest result file below the folder served from, null where there is none."""
        return {"results": await asyncio.to_thread(self.measured.latest)}

    # The Open Inference Protocol

    @staticmethod
    def refused(error: RequestError, path: str) -> Answer:
        """An error in the form of the path's protocol: the Open Inference Protocol has its message alone."""
        return {"error": str(error)} if path.startswith("/v2/") else described(error)

    async def v2(self, *_: object) -> Answer:
        return dict(oip.SERVER)

    def v2_model(self, path: str) -> dict[str, Handler]:
        """The handlers of /v2/models/NETWORK[/versions/VERSION][/ready | /infer]."""
        name, *rest = path.removeprefix("/v2/models/").split("/")
        version = rest[1] if rest[:1] == ["versions"] and len(rest) > 1 else None
        action = rest[2:] if version is not None else rest

        def model() -> Model:
            found = self.serving.model(name)
            if version not in (None, found.artifact.version):
                raise UnknownModel(f"{name} is loaded in version {found.artifact.version}, not {version[:80]}")
            return found

        async def metadata(*_: object) -> Answer:
            found = model()
            return oip.metadata(found.artifact, found.runtime.engine)

        async def ready(*_: object) -> Answer:
            model()
            return {"ready": True}

        async def infer(scope: Scope, receive: Receive, deadline: float) -> Answer | Raw:
            found = model()
            body = await self.body(scope, receive, deadline)
            artifact, most = found.artifact, self.serving.settings.max_queue
            length = header(scope, oip.LENGTH)
            asked = oip.parse(body, length, artifact.preprocess.shape, artifact.classes, most)
            work = self.serving.infer(name, asked.images, deadline=deadline)
            answer, raw = oip.render(asked, await unless_gone(receive, work), artifact, artifact.labels)
            if not asked.binary:
                return answer
            said = encode(answer)
            length_of_json = (oip.LENGTH, b"%d" % len(said))
            return Raw(said + raw, b"application/octet-stream", (length_of_json,))

        known: dict[tuple[str, ...], dict[str, Handler]] = {
            (): {"GET": metadata},
            ("ready",): {"GET": ready},
            ("infer",): {"POST": infer},
        }

        async def unknown(*_: object) -> Answer:
            raise UnknownModel("no such path; there are /v2/models/NETWORK, and /ready and /infer below it")

        return known.get(tuple(action), {"GET": unknown, "POST": unknown})

    # How the process is

    async def metrics(self, *_: object) -> Raw:
        return Raw(self.serving.metrics.text(), CONTENT_TYPE.encode())

    async def livez(self, *_: object) -> Answer:
        return {"live": True}

    async def readyz(self, *_: object) -> Answer:
        if not self.serving.ready:
            raise NotReady("shutting down" if self.serving.closing else "loading the models")
        if not self.serving.models:
            raise NotReady("no model is loaded")
        return {"ready": True}

    # How a request is read

    async def read(self, scope: Scope, receive: Receive, deadline: float, check_room: bool = False) -> Form:
        """The request's images and parameters, from its query and its body.

        With `check_room`, a request that is bound for a full queue is refused before its body is looked at.
        """
        form = Form()
        for name, value in query(scope["query_string"]):
            form.add(name, value)
        if header(scope, b"content-encoding") not in (b"", b"identity"):
            raise UnsupportedImage("the body is compressed; send the image as it is, without Content-Encoding")
        content_type, boundary = _declared(header(scope, b"content-type"))
        # A form may name its model further down; where there is but one, it is that one.
        if check_room and (content_type != "multipart/form-data" or form.model or len(self.serving.models) == 1):
            self.serving.check_room(form.model)
        if content_type == "multipart/form-data":
            body = await self.body(scope, receive, deadline)
            multipart(body, boundary, form, most_images=self.serving.settings.max_queue)
        else:
            check_content_type(content_type)
            form.images.append(await self.body(scope, receive, deadline))
        return form

    async def body(self, scope: Scope, receive: Receive, deadline: float) -> bytes:
        """The body, if it is within the limit and here in time."""
        limit = self.serving.settings.max_body
        length = header(scope, b"content-length")
        if length.isdigit() and int(length) > limit:
            raise TooLarge(f"the body is {int(length):,} bytes; {limit:,} are allowed")
        try:
            async with asyncio.timeout_at(deadline):
                chunks, size = [], 0
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise ClientGone
                    chunk = message.get("body", b"")
                    size += len(chunk)
                    if size > limit:
                        raise TooLarge(f"the body is over {limit:,} bytes")
                    chunks.append(chunk)
                    if not message.get("more_body"):
                        return chunks[0] if len(chunks) == 1 else b"".join(chunks)
        except TimeoutError:
            raise SlowRequest(f"the body was not here after {self.serving.settings.timeout:g} s") from None


class Upload:
    """`receive`, which remembers whether the body has come to its end."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.ended = False

    async def __call__(self) -> Message:
        message = await self.receive()
        self.ended = message["type"] != "http.request" or not message.get("more_body")
        return message

    async def discard(self, most: int) -> None:
        """Read on for a moment, up to `most` bytes: a connection closed on a sender may lose it our answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(LINGER):
                while not self.ended and most > 0:
                    most -= len((await self()).get("body", b""))


def header(scope: Scope, name: bytes) -> bytes:
    """The first header called `name` (lower case), b"" where there is none."""
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""


def query(raw: bytes) -> list[tuple[str, str]]:
    if not raw:
        return []
    try:
        return parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=16)
    except ValueError:
        raise BadRequest("the query cannot be read; write it like model=resnet50&top_k=5") from None


def one_image(form: Form) -> bytes:
    if len(form.images) != 1 or not form.images[0]:
        sent = len(form.images) if len(form.images) != 1 else "an empty"
        raise BadRequest(f"{sent} image; send one, as the body or as the field `image` of a multipart form")
    return form.images[0]


def multipart(body: bytes, boundary: bytes, form: Form, most_images: int) -> None:
    """Fill `form` from a multipart body (RFC 7578), all of which is here: the ends of its parts are found by search.

    Raises `BadRequest` for one that is broken, has other fields or too many.
    """
    if not 1 <= len(boundary) <= LONGEST_BOUNDARY:
        raise BadRequest(f"the multipart Content-Type has no boundary, or one over {LONGEST_BOUNDARY} characters")
    line, cut_off = b"\r\n--" + boundary, BadRequest("the multipart form is cut off before its last boundary")
    # The first boundary may follow a preamble, and begins the body otherwise.
    at = len(line) - 2 if body.startswith(line[2:]) else _after(body, line, 0)[1]
    while at >= 0 and body[at : at + 2] != b"--":
        begin = body.find(b"\r\n", at)
        head_end = body.find(b"\r\n\r\n", begin)
        if begin < 0 or head_end < 0:
            raise cut_off
        if head_end - at > LONGEST_HEAD:
            raise BadRequest(f"a part of the multipart form has a head over {LONGEST_HEAD} bytes")
        if line in body[begin:head_end]:
            raise BadRequest("a part of the multipart form has a head without an end")
        name, content_type = _part(body[begin:head_end])
        end, at = _after(body, line, head_end + 2)
        if at < 0:
            raise cut_off
        value = body[head_end + 4 : end]
        if name == "image":
            check_content_type(content_type)
            if len(form.images) >= most_images:
                raise TooLarge(f"more than {most_images} images; send fewer at a time")
            form.images.append(value)
        elif len(value) > LONGEST_FIELD:
            raise BadRequest(f"the field {name[:80]!r} is over {LONGEST_FIELD} bytes")
        elif (text := plain(value)) is not None:
            form.add(name, text)
    if at < 0:
        raise cut_off


def _after(body: bytes, line: bytes, start: int) -> tuple[int, int]:
    """Where the next boundary line begins, from `start` on, and where what follows its boundary does; -1 for none.

    What only begins like the boundary is content.
    """
    while (found := body.find(line, start)) >= 0:
        start = found + len(line)
        if body[start : start + 2] in (b"--", b"\r\n") or body[start : start + 1] in (b" ", b"\t"):
            return found, start
    return -1, -1


@lru_cache(256)
def _declared(content_type: bytes) -> tuple[str, bytes]:
    """What a Content-Type names, and its boundary."""
    declared, options = parse_options_header(content_type)
    return declared.decode("latin-1"), options.get(b"boundary", b"")


@lru_cache(256)  # a client's forms differ in their pictures
def _part(head: bytes) -> tuple[str, str]:
    """The name and the content type that a part's header lines give it; raises `BadRequest` where it has no name."""
    fields = {}
    for line in head.split(b"\r\n"):
        key, _, value = line.partition(b":")
        fields[key.strip().lower()] = value.strip()
    disposition, options = parse_options_header(fields.get(b"content-disposition", b""))
    if disposition != b"form-data" or b"name" not in options:
        raise BadRequest("a part of the multipart form has no name")
    content_type, _ = parse_options_header(fields.get(b"content-type", b""))
    return options[b"name"].decode("utf-8", "replace"), content_type.decode("latin-1")


def plain(value: bytes) -> str | None:
    """A form field's text. BentoML's clients write JSON: quoted strings, and null for what is left out."""
    text = value.decode("utf-8", "replace").strip()
    if text == "null":
        return None
    if text.startswith('"'):
        with suppress(ValueError):
            return str(json.loads(text))
    return text


async def gather(asked: Iterable[Awaitable[Answer]]) -> list[Answer]:
    return await asyncio.gather(*asked)


async def unless_gone(receive: Receive, work: Awaitable[T]) -> T:
    """What `work` gives; it is cancelled, and `ClientGone` raised, when the client hangs up first."""
    this = asyncio.current_task()
    assert this is not None
    hung_up = False

    async def watch() -> None:
        nonlocal hung_up
        await receive()  # the body is here whole, so that this is the end of the connection
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


# The status of what nobody reads: its client has hung up.
GONE = 499

# What identifies a request in the log where its client does not.
ID = re.compile(rb"[A-Za-z0-9._:/+=-]{1,128}")
PROCESS, NUMBER = secrets.token_hex(4), count(1)

encode_text = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(", ", ": ")).encode


def encode(answer: Answer) -> bytes:
    return encode_text(answer).encode()


def bearer(token: str | None) -> bytes | None:
    return None if token is None else b"Bearer " + token.encode()


def described(error: RequestError) -> Answer:
    return {"error": {"code": error.code, "message": str(error)}}


def headers_of(error: RequestError) -> list[Header]:
    headers = []
    if error.retry_after is not None:
        headers.append((b"retry-after", str(error.retry_after).encode()))
    if error.status == 503:
        headers.append(CLOSE)
    if error.status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    return headers
