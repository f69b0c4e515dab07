# BentoML's decorators carry no types.
# mypy: disable-error-code="untyped-decorator"
"""The BentoML service: wiring only.

    bentoml serve        # in this folder
    bentoml build        # a bento that carries the models PODIUM_MODELS names, else all in the store

`serving.api.Api` reads and answers HTTP. `Serving.classify` decodes an image in a thread, queues it for the engine, and
names the likeliest classes. BentoML runs the process, and its clients read `/schema.json` of its application. That
document needs a route for `classify`. The route is never called, because `Api` answers every request itself.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import bentoml
from bentoml.exceptions import BentoMLConfigException
from bentoml.models import BentoModel
from prometheus_client import REGISTRY, CollectorRegistry

from models.console import Failure
from serving import bentoml_seams, logs, supervisor
from serving.api import Api
from serving.behind import DOCUMENTS
from serving.classify import Serving, drain_before_exit
from serving.connection import Bounds, Connection
from serving.settings import Settings, artifacts, check_address, check_temporary, unknown

log = logging.getLogger("bentoml.podium")


def build(environment: Mapping[str, str], registry: CollectorRegistry = REGISTRY) -> Any:
    """The BentoML service that the variables `PODIUM_*` of `environment` ask for, its metrics in `registry`.

    Raises `BentoMLConfigException`, which BentoML's command line shows in one line, with the repair.
    """
    logs.protect()
    try:
        supervisor.follow()
        with supervisor.starting():
            bentoml_seams.request_cycle()
            traced = bentoml_seams.tracing_wanted()
            # With traces, `Api` stands behind BentoML's tracing, so that every request is traced.
            service_class = bentoml_seams.fronted(lambda app: app if traced else Api(app, serving), DOCUMENTS)
            check_temporary()
            settings = Settings.read(environment)
            serving = Serving(settings, artifacts(settings.models, Path(__file__).parent), registry)
            if settings.log == "json":
                logs.write_json()
            refused = lambda error: serving.metrics.failed(error.model, error.code)  # noqa: E731
            bounds = Bounds(settings.timeout, settings.max_connections, refused)
            bentoml_seams.accept_with(partial(Connection, bounds=bounds))
    except Failure as error:
        raise BentoMLConfigException(str(error)) from None

    class Podium:
        """Names what a photograph shows, by the networks that won ILSVRC."""

        @bentoml.on_deployment
        @staticmethod
        def check() -> None:
            for line in unknown(environment):
                log.warning(line)
            try:
                command = bentoml_seams.serve_command()
                if command is not None and command.params["port"]:
                    check_address(command.params["host"] or "0.0.0.0", command.params["port"])  # noqa: S104
                serving.check()
                if command is not None and not command.params["reload"]:  # which waits for the next change
                    supervisor.watch(command)
            except Failure as error:
                raise BentoMLConfigException(str(error)) from None

        @bentoml.on_startup
        async def start(self) -> None:
            # What the imports made stays until the end. A full collection would walk all of it while every request
            # waits.
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

    # What `bentoml build` puts into the bento, in this order.
    for place, artifact in enumerate(serving.artifacts):
        setattr(Podium, f"model_{place:04}", BentoModel(artifact.tag))
    service = bentoml.service(
        name="podium",
        service_class=service_class,
        workers=1,  # one queue, one set of weights; the engine takes the cores
        logging={"access": {"enabled": False}},  # /metrics counts what a line per request would say
        metrics={"enabled": False},  # ours say what BentoML's would, without a series for every path ever asked for
        # Our own deadline comes first and answers in the contract's form.
        traffic={"timeout": settings.timeout + 5},
    )(Podium)
    if traced:
        service.add_asgi_middleware(Api, serving=serving)
    return service


Podium = build(os.environ)
