"""The HTTP interface: requests, responses and errors, as one piece of ASGI middleware.

It answers the paths below and those of the page, and hands every other request to the application behind it, which
keeps its `/metrics`, `/docs.json` and `/schema.json`. A request comes and goes in one pass: body read within its
limits, parsed, classified, answered with one JSON document.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving import oip
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
from serving.images import check_content_type
from serving.pages import Results, files

log = logging.getLogger("bentoml.podium")

T = TypeVar("T")

Header = tuple[bytes, bytes]
Handler = Callable[[Scope, Receive, float], Awaitable["Answer | Binary"]]

# A field that is not an image is a name or a number.
LONGEST_FIELD = 1000
FIELDS = ("model", "top_k")

# How long a client that is answered before it has sent all may go on, so that it reads the answer.
LINGER = 1.0


class ClientGone(Exception):
    """Nobody is left to answer."""


@dataclass(frozen=True)
class Binary:
    """An answer whose tensors follow its JSON."""

    json: Answer
    raw: bytes


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
        token = serving.settings.token
        self.authorization = None if token is None else b"Bearer " + token.encode()
        self.routes: dict[str, dict[str, Handler]] = {
            "/classify": {"POST": self.classify},
            "/classify/batch": {"POST": self.classify_batch},
            "/compare": {"POST": self.compare},
            "/models": {"GET": self.models},
            "/livez": {"GET": self.livez},
            "/readyz": {"GET": self.readyz},
            "/ui/results.json": {"GET": self.results},
            "/v2": {"GET": self.v2},
            "/v2/health/live": {"GET": self.livez},
            "/v2/health/ready": {"GET": self.readyz},
        }
        self.pages = files()
        self.measured = Results(Path.cwd())
        self.open_to_all = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"] if scope["type"] == "http" else ""
        if (page := self.pages.get(path)) is not None and scope["method"] in ("GET", "HEAD"):
            await page(scope, send)
            return
        methods = self.routes.get(path)
        if methods is None:
            prefix = next((prefix for prefix in ("/models/", "/v2/models/") if path.startswith(prefix)), None)
            if prefix is None:
                await self.app(scope, receive, send)
                return
            methods = {"GET": self.model} if prefix == "/models/" else self.v2_model(path)
        deadline = asyncio.get_running_loop().time() + self.serving.settings.timeout
        upload = Upload(receive)
        try:
            answer = await self.handle(methods, scope, upload, deadline)
        except ClientGone:
            # The server drops it, but what counts and times requests on the way there waits for an answer.
            await reply(send, 499, {})
        except RequestError as error:
            await upload.discard(self.serving.settings.max_body)
            await reply(send, error.status, self.refused(error, path), headers_of(error))
        except Exception:
            log.exception("%s %s failed", scope["method"], path)
            await reply(send, 500, self.refused(InferenceFailed(OUR_FAULT), path))
        else:
            headers = [CLOSE] if self.serving.closing else []
            said, raw = (answer.json, answer.raw) if isinstance(answer, Binary) else (answer, None)
            await reply(send, 200, said, headers, raw)

    async def handle(
        self, methods: dict[str, Handler], scope: Scope, upload: Upload, deadline: float
    ) -> Answer | Binary:
        """The answer of the handler for the request's method, if the request may ask for it."""
        handler = methods.get("GET" if scope["method"] == "HEAD" else scope["method"])
        if handler is None:
            raise MethodNotAllowed(f"{scope['path'][:80]} takes {', '.join(methods)}, not {scope['method'][:20]}")
        if scope["path"] in self.open_to_all:
            return await handler(scope, upload, deadline)
        try:
            with self.serving.request():
                self.authorize(scope)
                return await handler(scope, upload, deadline)
        except RequestError as error:
            self.serving.metrics.failed(error.model, error.code)
            raise
        except Exception as error:
            if not isinstance(error, ClientGone):
                self.serving.metrics.failed("unknown", InferenceFailed.code)
            raise

    def authorize(self, scope: Scope) -> None:
        if self.authorization is None:
            return
        if not hmac.compare_digest(header(scope, b"authorization"), self.authorization):
            raise Unauthorized("send the server's token as `Authorization: Bearer TOKEN`")

    # What is answered

    async def classify(self, scope: Scope, receive: Receive, deadline: float) -> Answer:
        form = await self.read(scope, receive, deadline)
        image = one_image(form)
        return await unless_gone(receive, self.serving.classify(image, form.model, form.top_k, deadline=deadline))

    async def classify_batch(self, scope: Scope, receive: Receive, deadline: float) -> Answer:
        """Every image on its own: an answer, or its error, in the order sent."""
        form = await self.read(scope, receive, deadline)
        if not form.images:
            raise BadRequest("no image: send each as a field `image` of a multipart form")
        self.serving.top_k(self.serving.model(form.model), form.top_k)
        asked = (self.one(image, form.model, form.top_k, deadline) for image in form.images)
        return {"results": await unless_gone(receive, gather(asked))}

    async def compare(self, scope: Scope, receive: Receive, deadline: float) -> Answer:
        """One image through every model: an answer, or an error, by model."""
        form = await self.read(scope, receive, deadline)
        if form.model is not None:
            raise BadRequest("compare asks every model; leave model out")
        image, models = one_image(form), list(self.serving.models)
        asked = (self.one(image, model, form.top_k, deadline) for model in models)
        return {"results": dict(zip(models, await unless_gone(receive, gather(asked)), strict=True))}

    async def one(self, image: bytes, model: str | None, top_k: int | None, deadline: float) -> Answer:
        """One of several results: a classification, or its error in place of it."""
        try:
            return await self.serving.classify(image, model, top_k, deadline=deadline)
        except RequestError as error:
            self.serving.metrics.failed(error.model, error.code)
            return described(error)

    async def models(self, *_: object) -> Answer:
        loaded = list(self.serving.models.values())
        return {"default": loaded[0].artifact.network, "models": [model.summary() for model in loaded]}

    async def model(self, scope: Scope, *_: object) -> Answer:
        return self.serving.model(scope["path"].removeprefix("/models/")).details()

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

        async def infer(scope: Scope, receive: Receive, deadline: float) -> Answer | Binary:
            found = model()
            body = await self.body(scope, receive, deadline)
            artifact, most = found.artifact, self.serving.settings.max_queue
            length = header(scope, oip.LENGTH)
            asked = oip.parse(body, length, artifact.preprocess.shape, artifact.classes, most)
            work = self.serving.infer(name, asked.images, deadline=deadline)
            answer, raw = oip.render(asked, await unless_gone(receive, work), artifact, artifact.labels)
            return Binary(answer, raw) if asked.binary else answer

        known: dict[tuple[str, ...], dict[str, Handler]] = {
            (): {"GET": metadata},
            ("ready",): {"GET": ready},
            ("infer",): {"POST": infer},
        }

        async def unknown(*_: object) -> Answer:
            raise UnknownModel("no such path; there are /v2/models/NETWORK, and /ready and /infer below it")

        return known.get(tuple(action), {"GET": unknown, "POST": unknown})

    # How the process is

    async def livez(self, *_: object) -> Answer:
        return {"live": True}

    async def readyz(self, *_: object) -> Answer:
        if not self.serving.ready:
            raise NotReady("shutting down" if self.serving.closing else "loading the models")
        return {"ready": True}

    # How a request is read

    async def read(self, scope: Scope, receive: Receive, deadline: float) -> Form:
        """The request's images and parameters, from its query and its body."""
        form = Form()
        for name, value in query(scope["query_string"]):
            form.add(name, value)
        if header(scope, b"content-encoding") not in (b"", b"identity"):
            raise UnsupportedImage("the body is compressed; send the image as it is, without Content-Encoding")
        declared, options = parse_options_header(header(scope, b"content-type"))
        content_type = declared.decode("latin-1")
        if content_type == "multipart/form-data":
            boundary = options.get(b"boundary", b"")
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
    """Fill `form` from a multipart body. Raises `BadRequest` for one that is broken, has other fields or too many."""
    if not boundary:
        raise BadRequest("the multipart Content-Type has no boundary")
    name, value, key, ended = "", bytearray(), b"", False
    head: dict[bytes, bytes] = {}

    def begin() -> None:
        nonlocal head
        value.clear()
        head = {}

    def header_field(data: bytes, start: int, end: int) -> None:
        nonlocal key
        key += data[start:end]

    def header_value(data: bytes, start: int, end: int) -> None:
        head[key.lower()] = head.get(key.lower(), b"") + data[start:end]

    def header_end() -> None:
        nonlocal key
        key = b""

    def headers_finished() -> None:
        nonlocal name
        disposition, options = parse_options_header(head.get(b"content-disposition", b""))
        if disposition != b"form-data" or b"name" not in options:
            raise BadRequest("a part of the multipart form has no name")
        name = options[b"name"].decode("utf-8", "replace")
        if name == "image":
            if len(form.images) >= most_images:
                raise TooLarge(f"more than {most_images} images; send fewer at a time")
            check_content_type(parse_options_header(head.get(b"content-type", b""))[0].decode("latin-1"))

    def part_data(data: bytes, start: int, end: int) -> None:
        if name != "image" and len(value) + end - start > LONGEST_FIELD:
            raise BadRequest(f"the field {name[:80]!r} is over {LONGEST_FIELD} bytes")
        value.extend(memoryview(data)[start:end])

    def part_end() -> None:
        if name == "image":
            form.images.append(bytes(value))
        elif (text := plain(bytes(value))) is not None:
            form.add(name, text)

    def finish() -> None:
        nonlocal ended
        ended = True

    try:
        parser = MultipartParser(
            boundary,
            {
                "on_part_begin": begin,
                "on_header_field": header_field,
                "on_header_value": header_value,
                "on_header_end": header_end,
                "on_headers_finished": headers_finished,
                "on_part_data": part_data,
                "on_part_end": part_end,
                "on_end": finish,
            },
        )
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise BadRequest(f"the multipart form is broken: {error}") from None
    if not ended:
        raise BadRequest("the multipart form is cut off before its last boundary")


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
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((task, gone), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        gone.cancel()
        task.cancel()


CLOSE: Header = (b"connection", b"close")


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


async def reply(
    send: Send, status: int, answer: Answer, headers: Iterable[Header] = (), raw: bytes | None = None
) -> None:
    """Answer with JSON, and with the binary tensors `raw` behind it where the Open Inference Protocol asks for them."""
    body = json.dumps(answer, ensure_ascii=False, allow_nan=False, separators=(", ", ": ")).encode()
    kind = b"application/json"
    if raw is not None:
        kind, headers = b"application/octet-stream", [(oip.LENGTH, str(len(body)).encode()), *headers]
        body += raw
    length = str(len(body)).encode()
    start = [(b"content-type", kind), (b"content-length", length), *headers]
    await send({"type": "http.response.start", "status": status, "headers": start})
    await send({"type": "http.response.body", "body": body})
