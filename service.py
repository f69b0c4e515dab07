# BentoML's decorators carry no types.
# mypy: disable-error-code="untyped-decorator, attr-defined"
"""The BentoML service: wiring only.

    bentoml serve        # in this folder
    bentoml build        # a bento that carries the models PODIUM_MODELS names, else all in the store

A request comes in through `serving.api.Api`, which reads and answers HTTP; `Serving.classify` decodes its image in a
thread, queues it for the engine, and names the classes that come out. BentoML runs the process, `/metrics`, the OpenAPI
page and the clients. Its own route for `classify` is declared for these, and never reached: `Api` answers first.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import bentoml
from bentoml.exceptions import BentoMLConfigException
from bentoml.models import BentoModel

from models.console import Failure
from serving.api import Api
from serving.classify import Serving, drain_before_exit
from serving.settings import Settings, artifacts

try:
    settings = Settings.read(os.environ)
    serving = Serving(settings, artifacts(settings.models, Path(__file__).parent))
except Failure as error:
    # BentoML's command line shows its own errors in one line and exits with 1.
    raise BentoMLConfigException(str(error)) from None


@bentoml.service(
    name="podium",
    workers=1,  # one queue, one set of weights; the engine takes the cores
    logging={"access": {"enabled": False}},  # /metrics counts what a line per request would say
    # Our own deadline comes first and answers in the contract's form. BentoML keeps a timer for this long per request.
    traffic={"timeout": settings.timeout + 5},
)
class Podium:
    """Names what a photograph shows, by the networks that won ILSVRC."""

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        try:
            serving.check()
        except Failure as error:
            raise BentoMLConfigException(str(error)) from None

    @bentoml.on_startup
    async def start(self) -> None:
        await serving.start()
        drain_before_exit(serving)

    @bentoml.on_shutdown
    async def stop(self) -> None:
        await serving.stop()

    @bentoml.api
    async def classify(self, image: Path, model: str | None = None, top_k: int | None = None) -> dict[str, Any]:
        """The likeliest classes of one image.

        `model` names one of GET /models, the first by default; `top_k` is how many classes to name, 5 by default.
        """
        deadline = asyncio.get_running_loop().time() + settings.timeout
        return await serving.classify(image.read_bytes(), model, top_k, deadline=deadline)


Podium.add_asgi_middleware(Api, serving=serving)
# What `bentoml build` puts into the bento.
Podium.models.extend(BentoModel(artifact.tag) for artifact in serving.artifacts)
