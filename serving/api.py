"""The HTTP interface: requests, responses and errors, as one piece of ASGI middleware.

It answers the paths below and those of the page, and hands every other request to the application behind it, which
keeps its `/docs.json` and `/schema.json`. A request comes and goes in one pass: body read within its
limits, parsed, classified, answered with one JSON document.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from time import perf_counter

from starlette.types import ASGIApp, Receive, Scope, Send

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
from serving.exchange import (
    CLOSE,
    GONE,
    ClientGone,
    Exchange,
    Raw,
    Upload,
    described,
    encode,
    header,
    headers_of,
    unless_gone,
)
from serving.forms import Form, declared, multipart, one_image, query
from serving.images import Picture, check_content_type
from serving.metrics import CONTENT_TYPE
from serving.pages import Results, files

log = logging.getLogger("bentoml.podium")


Handler = Callable[[Scope, Receive, float], Awaitable["Answer | Raw"]]


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
        if reason := self.serving.unready():
            raise NotReady(reason)
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
        content_type, boundary = declared(header(scope, b"content-type"))
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


async def gather(asked: Iterable[Awaitable[Answer]]) -> list[Answer]:
    return await asyncio.gather(*asked)


def bearer(token: str | None) -> bytes | None:
    return None if token is None else b"Bearer " + token.encode()
