"""The HTTP interface: requests, responses and errors, as one ASGI middleware.

It answers the paths of the table below and refuses all others. The application behind it is asked for single documents
and never sees a client's request. A request is handled in one pass: its body is read within limits, parsed, classified,
and answered with one JSON document.
"""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Awaitable, Iterable
from pathlib import Path

from starlette.types import ASGIApp, Receive, Scope, Send

from serving import logs, oip, openapi
from serving.behind import DOCUMENTS, Document
from serving.classify import Answer, Model, Serving
from serving.errors import (
    OUR_FAULT,
    BadRequest,
    InferenceFailed,
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
    JSON,
    ClientGone,
    Exchange,
    Raw,
    Upload,
    credentials,
    described,
    encode,
    header,
    headers_of,
    unless_gone,
)
from serving.forms import Form, declared, multipart, one_image, query
from serving.images import Picture, check_content_type
from serving.metrics import CONTENT_TYPE
from serving.pages import Redirect, Results, files
from serving.routes import Access, Endpoint, Route, Routes, written
from serving.text import ECHO, printable, quoted

log = logging.getLogger("bentoml.podium")


class Api:
    """ASGI middleware over `app` that answers for `serving`."""

    def __init__(self, app: ASGIApp, serving: Serving) -> None:
        self.app, self.serving = app, serving
        self.measured = Results(Path.cwd())
        settings, pages = serving.settings, files()
        # The token for each kind of access, and its setting. Without PODIUM_TOKEN, "user" routes ask for none.
        self.tokens: dict[Access, tuple[bytes | None, str]] = {
            "admin": (bearer(settings.admin_token), "PODIUM_ADMIN_TOKEN")
        }
        if settings.token is not None:
            self.tokens["user"] = (bearer(settings.token), "PODIUM_TOKEN")
        table = [
            Route("POST", "/classify", "user", self.classify),
            Route("POST", "/classify/batch", "user", self.classify_batch),
            Route("POST", "/compare", "user", self.compare),
            Route("GET", "/models", "user", self.models),
            Route("GET", "/models/NETWORK", "user", self.model),
            Route("POST", "/models/NETWORK/load", "admin", self.load),
            Route("POST", "/models/NETWORK/unload", "admin", self.unload),
            Route("GET", "/v2", "user", self.v2),
            Route("GET", "/v2/health/live", "open", self.livez),
            Route("GET", "/v2/health/ready", "open", self.readyz),
            Route("GET", "/v2/models/NETWORK", "user", self.v2_metadata),
            Route("GET", "/v2/models/NETWORK/ready", "user", self.v2_ready),
            Route("POST", "/v2/models/NETWORK/infer", "user", self.v2_infer),
            Route("GET", "/v2/models/NETWORK/versions/VERSION", "user", self.v2_metadata),
            Route("GET", "/v2/models/NETWORK/versions/VERSION/ready", "user", self.v2_ready),
            Route("POST", "/v2/models/NETWORK/versions/VERSION/infer", "user", self.v2_infer),
            Route("GET", "/livez", "open", self.livez),
            Route("GET", "/readyz", "open", self.readyz),
            Route("GET", "/metrics", "open", self.metrics),
            Route("GET", "/", "open", Redirect(307)),
            Route("GET", "/ui", "open", Redirect(308)),
            Route("GET", "/ui/", "open", pages.pop("/ui/")),
            Route("GET", "/ui/results.json", "user", self.results),
            Route("GET", "/docs.json", "user", self.docs),
            *(Route("GET", path, "user", Document(app, path)) for path in DOCUMENTS),
        ]
        self.description = Raw(encode(openapi.document(table, guarded=settings.token is not None)), JSON)
        self.routes = Routes([*table, *(Route("GET", path, "open", file) for path, file in pages.items())])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.other_than_http(scope, receive, send)
            return
        exchange = Exchange(send, header(scope, b"x-request-id"), bare=scope["method"] == "HEAD")
        path = written(scope)
        endpoint = self.routes.find(path, scope)
        await self.respond(endpoint, path, scope, receive, exchange)

    async def other_than_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Only the start and the end of the server go to the application behind."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})  # before it is accepted: the server answers 403

    async def respond(self, endpoint: Endpoint, path: str, scope: Scope, receive: Receive, exchange: Exchange) -> None:
        deadline = asyncio.get_running_loop().time() + self.serving.settings.timeout
        upload = Upload(receive)
        route = endpoint.methods.get(scope["method"])
        try:
            if route is None:
                raise endpoint.refusal(scope["method"], path)
            answer = await self.handle(route, scope, upload, deadline)
            raw = answer if isinstance(answer, Raw) else Raw(encode(answer), JSON)
        except ClientGone:
            self.serving.metrics.failed("unknown", "client_gone")
            # The server drops this answer, but a layer between the server and us may wait for one.
            await exchange.reply(GONE, b"")
        except RequestError as error:
            if route is None or route.access != "open":  # a probe that is told "not ready" is not a failed request
                self.serving.metrics.failed(error.model, error.code)
            await upload.discard(self.serving.settings.max_body, header(scope, b"expect"))
            if error.status >= 500:
                log.warning(
                    "%s %s answered %d %s: %s request_id=%s",
                    scope["method"], printable(path[:ECHO]), error.status, error.code, error, exchange.id,
                    extra={logs.FIELDS: {"status": error.status, "code": error.code, "request_id": exchange.id}},
                )  # fmt: skip
            await exchange.reply(error.status, encode(self.refused(error, path)), headers_of(error))
        except Exception:
            self.serving.metrics.failed("unknown", InferenceFailed.code)
            fields = {"status": 500, "code": InferenceFailed.code, "request_id": exchange.id}
            log.exception(
                "%s %s failed request_id=%s", scope["method"], printable(path[:ECHO]), exchange.id,
                extra={logs.FIELDS: fields},
            )  # fmt: skip
            await exchange.reply(500, encode(self.refused(InferenceFailed(OUR_FAULT), path)))
        else:
            headers = [*raw.headers, CLOSE] if self.serving.closing else raw.headers
            await exchange.reply(raw.status, raw.body, headers, raw.content_type)

    async def handle(self, route: Route, scope: Scope, upload: Upload, deadline: float) -> Answer | Raw:
        """The answer of the route's handler, if the request may ask for it."""
        if route.access == "open":
            return await route.handler(scope, upload, deadline)
        serving = self.serving
        serving.enter()
        try:
            if route.access in self.tokens:
                self.authorize(scope, *self.tokens[route.access])
            return await route.handler(scope, upload, deadline)
        finally:
            serving.leave()

    @staticmethod
    def authorize(scope: Scope, expected: bytes | None, setting: str) -> None:
        if expected is None:
            raise Unauthorized(f"this is off; start the server with {setting} set, and send that token")
        if not hmac.compare_digest(credentials(scope), expected):
            raise Unauthorized(f"send the server's {setting} as `Authorization: Bearer TOKEN`")

    # What is answered

    async def classify(self, scope: Scope, receive: Receive, deadline: float) -> Answer:
        form = await self.read(scope, receive, deadline, check_room=True)
        image = one_image(form)
        return await unless_gone(
            receive, self.serving.classify(self.serving.picture(image), form.model, form.top_k, deadline=deadline)
        )

    async def classify_batch(self, scope: Scope, receive: Receive, deadline: float) -> Answer:
        """An answer or an error for each image, in the order sent."""
        form = await self.read(scope, receive, deadline)
        if not form.images:
            raise BadRequest("no image: send each as a field `image` of a multipart form")
        self.serving.top_k(self.serving.model(form.model), form.top_k)
        results = (self.result(self.serving.picture(image), form.model, form.top_k, deadline) for image in form.images)
        return {"results": await unless_gone(receive, gather(results))}

    async def compare(self, scope: Scope, receive: Receive, deadline: float) -> Answer:
        """One image through every model: an answer or an error for each."""
        form = await self.read(scope, receive, deadline)
        if form.model is not None:
            raise BadRequest("compare asks every model; leave model out")
        picture, models = self.serving.picture(one_image(form)), list(self.serving.models)
        results = (self.result(picture, model, form.top_k, deadline) for model in models)
        return {"results": dict(zip(models, await unless_gone(receive, gather(results)), strict=True))}

    async def result(self, picture: Picture, model: str | None, top_k: int | None, deadline: float) -> Answer:
        """One of several results: a classification, or an error in its place."""
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

    async def model(self, scope: Scope, *_: object) -> Answer:
        return self.serving.model(scope["path_params"]["NETWORK"]).details()

    async def load(self, scope: Scope, *_: object) -> Answer:
        """Serve a network's newest version, or the one that `version` names, in place of the one that is loaded."""
        wanted = query(scope["query_string"])
        if other := [name for name, _ in wanted if name != "version"]:
            raise BadRequest(f"{quoted(other[0])} is not a parameter of load; version is")
        if len(wanted) > 1:
            raise BadRequest("version is given more than once; name one, or none for the newest")
        version = wanted[0][1] if wanted else "latest"
        return (await self.serving.load(scope["path_params"]["NETWORK"], version)).summary()

    async def unload(self, scope: Scope, *_: object) -> Answer:
        if wanted := query(scope["query_string"]):
            raise BadRequest(f"{quoted(wanted[0][0])} is not a parameter of unload, which has none")
        return {"unloaded": (await self.serving.unload(scope["path_params"]["NETWORK"])).artifact.tag}

    async def results(self, *_: object) -> Answer:
        """The newest result file below the folder that the server was started in, null if there is none."""
        return {"results": await asyncio.to_thread(self.measured.latest)}

    # The Open Inference Protocol

    @staticmethod
    def refused(error: RequestError, path: str) -> Answer:
        """An error in the form of the path's protocol. The Open Inference Protocol has no codes."""
        return {"error": str(error)} if path.startswith("/v2/") else described(error)

    async def v2(self, *_: object) -> Answer:
        return dict(oip.SERVER)

    def v2_model(self, scope: Scope) -> Model:
        """The model that the path names. Raises `UnknownModel`."""
        name, version = scope["path_params"]["NETWORK"], scope["path_params"].get("VERSION")
        model = self.serving.model(name)
        if version not in (None, model.artifact.version):
            raise UnknownModel(
                f"{model.artifact.network} is loaded in version {model.artifact.version}, not {quoted(version)}"
            )
        return model

    async def v2_metadata(self, scope: Scope, *_: object) -> Answer:
        model = self.v2_model(scope)
        return oip.metadata(model.artifact, model.runtime.engine)

    async def v2_ready(self, scope: Scope, *_: object) -> Answer:
        self.v2_model(scope)
        return {"ready": True}

    async def v2_infer(self, scope: Scope, receive: Receive, deadline: float) -> Answer | Raw:
        self.v2_model(scope)  # a request for an unknown model is refused before its body is read
        body, length = await self.body(scope, receive, deadline), header(scope, oip.LENGTH)
        # Long JSON is read in a thread, so that the event loop goes on.
        long = oip.json_bytes(body, length) > oip.LONGEST_JSON
        asked = await asyncio.to_thread(oip.read, body, length) if long else oip.read(body, length)
        # The model is looked up once, and nothing is awaited until its queue has the images. So a swap of the model
        # comes before or after this, never between.
        model = self.v2_model(scope)
        artifact = model.artifact
        images = oip.check(asked, artifact.preprocess.shape, artifact.classes, self.serving.settings.max_queue)
        scores = await unless_gone(receive, self.serving.infer(model, images, deadline=deadline))
        answer, raw = oip.render(asked, scores, artifact, artifact.labels)
        if not asked.binary:
            return answer
        said = encode(answer)
        length_of_json = (oip.LENGTH, b"%d" % len(said))
        return Raw(said + raw, b"application/octet-stream", (length_of_json,))

    # The state of the process

    async def docs(self, *_: object) -> Raw:
        return self.description

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

        With `check_room`, a request for a model whose queue is full is refused before its body is read.
        """
        form = Form()
        for name, value in query(scope["query_string"]):
            form.add(name, value)
        if header(scope, b"content-encoding") not in (b"", b"identity"):
            raise UnsupportedImage("the body is compressed; send the image as it is, without Content-Encoding")
        content_type, boundary = declared(header(scope, b"content-type"))
        # A form may name its model in a later part. With one model there is nothing to name.
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
        """The body. Raises `TooLarge` and `SlowRequest` if it is larger or later than the settings allow."""
        limit = self.serving.settings.max_body
        length = header(scope, b"content-length")
        # Python refuses to read numbers of very many digits.
        if length.isdigit() and (len(length) > 18 or int(length) > limit):
            raise TooLarge(f"the body is {length[:18].decode()} bytes; {limit:,} are allowed")
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
    return None if token is None else token.encode()
