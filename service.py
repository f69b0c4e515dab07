# BentoML's decorators carry no types.
# mypy: disable-error-code="untyped-decorator, attr-defined, misc, method-assign"
"""The BentoML service: wiring only.

    bentoml serve        # in this folder
    bentoml build        # a bento that carries the models PODIUM_MODELS names, else all in the store

A request comes in through `serving.api.Api`, which reads and answers HTTP; `Serving.classify` decodes its image in a
thread, queues it for the engine, and names the classes that come out. BentoML runs the process, and its clients read
`/schema.json` of its application. Its own route for `classify` is declared for that document, and never reached: `Api`
hands no request on.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from pathlib import Path
from typing import Any

import bentoml
import click
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import BentoMLConfigException
from bentoml.models import BentoModel
from uvicorn.config import HTTP_PROTOCOLS

from models.console import Failure
from serving import logs, supervisor
from serving.api import Api
from serving.classify import Serving, drain_before_exit
from serving.connection import Connection
from serving.settings import Settings, artifacts, check_address, check_temporary, unknown

log = logging.getLogger("bentoml.podium")

logs.protect()
supervisor.follow()
try:
    with supervisor.starting():
        check_temporary()
        settings = Settings.read(os.environ)
        serving = Serving(settings, artifacts(settings.models, Path(__file__).parent))
        if settings.log == "json":
            logs.write_json()
except Failure as error:
    # BentoML's command line shows its own errors in one line and exits with 1.
    raise BentoMLConfigException(str(error)) from None


def tracing_wanted() -> bool:
    """Whether the user's BentoML configuration sends traces anywhere; what nobody looks at is not made."""
    config = BentoMLContainer.config.get()
    services = [one for one in (config.get("services") or {}).values() if isinstance(one, dict)]
    return any((part.get("tracing") or {}).get("exporter_type") for part in (config, *services))


@bentoml.service(
    name="podium",
    workers=1,  # one queue, one set of weights; the engine takes the cores
    logging={"access": {"enabled": False}},  # /metrics counts what a line per request would say
    metrics={"enabled": False},  # ours say what BentoML's would, without a series for every path ever asked for
    # Our own deadline comes first and answers in the contract's form.
    traffic={"timeout": settings.timeout + 5},
)
class Podium:
    """Names what a photograph shows, by the networks that won ILSVRC."""

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        for line in unknown(os.environ):
            log.warning(line)
        try:
            asked = click.get_current_context(silent=True)
            if asked is not None and asked.params.get("port"):
                check_address(asked.params.get("host") or "0.0.0.0", asked.params["port"])  # noqa: S104
            serving.check()
        except Failure as error:
            raise BentoMLConfigException(str(error)) from None
        if asked is not None and not asked.params.get("reload"):  # that waits for the next change
            supervisor.watch(asked)

    @bentoml.on_startup
    async def start(self) -> None:
        # What the imports made stays until the end. A full collection would walk all of it while every request waits.
        gc.collect()
        gc.freeze()
        with supervisor.starting():
            await serving.start()
        drain_before_exit(serving)
        supervisor.ready()

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await serving.stop()

    @bentoml.api
    async def classify(self, image: Path, model: str | None = None, top_k: int | None = None) -> dict[str, Any]:
        """The likeliest classes of one image.

        `model` names one of GET /models, the first by default; `top_k` is how many classes to name, 5 by default.
        """
        deadline = asyncio.get_running_loop().time() + settings.timeout
        return await serving.classify(serving.picture(image.read_bytes()), model, top_k, deadline=deadline)


class Fronted(type(Podium)):
    """A service whose application stands behind `Api`, with all that BentoML puts around one: tracing, a timer for
    every request, metrics. They cost more than the rest of the way through the server, and `Api` does for the requests
    it answers what they would do.
    """

    __slots__ = ()

    def to_asgi(self, is_main: bool = True) -> Any:
        return Api(super().to_asgi(is_main), serving)


if tracing_wanted():
    Podium.add_asgi_middleware(Api, serving=serving)  # behind BentoML's tracing, which then sees every request
else:
    Podium.__class__ = Fronted
# BentoML starts uvicorn and leaves its choice of protocol to it, which is ours: a connection has bounds there.
Connection.timeout, Connection.most = settings.timeout, settings.max_connections
Connection.refused = staticmethod(lambda error: serving.metrics.failed(error.model, error.code))
HTTP_PROTOCOLS["auto"] = f"{Connection.__module__}:{Connection.__name__}"
# What `bentoml build` puts into the bento.
Podium.models.extend(BentoModel(artifact.tag) for artifact in serving.artifacts)
