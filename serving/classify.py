"""The way from an image's bytes to its answer, for every loaded model. HTTP and BentoML are the callers' part."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from time import perf_counter
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import REGISTRY, CollectorRegistry

from models.console import Failure
from models.preprocess import Pixels
from serving import power, runtime
from serving.artifact import LABELS, Artifact, ArtifactError, find
from serving.batcher import Batcher, Scored, Workers
from serving.bentoml_seams import exit_handler
from serving.engines import Runtime, Scores, likeliest
from serving.errors import (
    CLOSING,
    OUR_FAULT,
    BadRequest,
    Closing,
    InferenceFailed,
    RequestError,
    UnknownModel,
    Unloadable,
)
from serving.images import Picture, why_slow
from serving.limits import costly_decoders
from serving.memory import bound_heap, give_back_memory
from serving.metrics import Metrics
from serving.sandbox import Sandbox
from serving.settings import Settings
from serving.text import quoted

log = logging.getLogger("bentoml.podium")

Answer = dict[str, Any]

TOP_K = 5

# What BentoML's store may call a model or a version. Never ":" or "/", which would make it another tag or path.
NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?")
# Seconds after the last deadline of a request that a shutdown waits for what has not ended.
GRACE = 2.0


class Model:
    """One artifact, loaded and warm, with a queue of its own."""

    def __init__(self, artifact: Artifact, opened: Runtime, batcher: Batcher) -> None:
        self.artifact, self.runtime, self.batcher = artifact, opened, batcher
        self.recipe = artifact.preprocess
        self.classes = [
            {"class_id": i, "synset": name.synset, "label": name.label} for i, name in enumerate(artifact.labels)
        ]
        self.identity: Answer = {
            "model": artifact.network,
            "version": artifact.version,
            "engine": opened.engine,
            "precision": opened.precision,
            "weights": artifact.weights,
        }

    @contextmanager
    def named(self) -> Iterator[None]:
        """An error that is raised in here names this model, for the metrics."""
        try:
            yield
        except RequestError as error:
            error.model = self.artifact.network
            raise

    def predictions(self, scores: NDArray[np.float32], top_k: int) -> list[Answer]:
        """The `top_k` likeliest classes, likeliest first; of equal ones the lower number first.

        Raises `InferenceFailed` for scores that are not finite.
        """
        self.check_finite(scores)
        best = likeliest(scores, top_k)
        return [{**self.classes[i], "probability": round(float(scores[i]), 6)} for i in best]

    def check_finite(self, scores: NDArray[np.float32]) -> None:
        """Raises `InferenceFailed` for scores that are not finite."""
        if not np.isfinite(scores).all():
            log.error("%s gave scores that are not finite", self.artifact.tag)
            raise InferenceFailed(OUR_FAULT)

    def described(self) -> str:
        """For the log: how the model was trained, when it was exported, and what runs it."""
        run, threads = self.runtime, self.runtime.threads
        engine = f"{run.engine} {run.precision} on {threads} thread{'s' if threads > 1 else ''}"
        return f"{self.artifact.weights} weights, exported {self.artifact.exported}, {engine}"

    def summary(self) -> Answer:
        """What a list of models says about this one, from its manifest."""
        manifest = self.artifact.manifest
        kept = ("family", "year", "published", "input", "classes", "params", "macs")
        architecture = {"architecture": self.artifact.architecture}
        return {**self.identity, **architecture, **{key: manifest.get(key) for key in kept}}

    def details(self) -> Answer:
        """The whole manifest, without the machine that made it and the commands typed there, which show its paths."""
        manifest = {key: value for key, value in self.artifact.manifest.items() if key != "environment"}
        files = {
            name: {key: value for key, value in record.items() if key != "command"}
            for name, record in self.artifact.manifest["files"].items()
        }
        return {**self.identity, "manifest": {**manifest, "files": files}}


class Serving:
    """All loaded models, and the way of a request through one of them.

    The constructor loads nothing and starts no thread; `start` does.
    """

    def __init__(
        self, settings: Settings, artifacts: Sequence[Artifact], registry: CollectorRegistry = REGISTRY
    ) -> None:
        self.settings, self.artifacts, self.registry = settings, artifacts, registry
        self.metrics = Metrics([artifact.network for artifact in artifacts], registry)
        self.models: dict[str, Model] = {}
        self.ready = False
        self.closing = False
        self.sandbox = Sandbox(costly_decoders(runtime.cores()))
        # One more than the cores: while one waits for the engine, whose threads are its own, another decodes.
        self.workers = Workers(runtime.cores() + 1, self.sandbox.size)
        self._idle = asyncio.Event()
        self._swap = asyncio.Lock()

    def check(self) -> None:
        """Raises `Failure` with the repair unless every model has a file that runs here and whose sha256 is right."""
        for artifact in self.artifacts:
            chosen = runtime.choose(artifact, self.settings.engine, self.settings.precision, self.settings.threads)
            artifact.file(artifact.graphs()[chosen.engine, chosen.precision])
            artifact.file(LABELS)

    async def start(self) -> None:
        """Load and warm every model; ready afterwards."""
        bound_heap()
        await asyncio.to_thread(Image.init)  # else Pillow would look for its formats in the first request
        if why := await asyncio.to_thread(why_slow):
            log.warning(why)
        for artifact in self.artifacts:
            opened, max_batch = await asyncio.to_thread(self._load, artifact)
            model = self.models[artifact.network] = self._model(artifact, opened, max_batch)
            default = ", the default" if len(self.models) == 1 else ""
            log.info("%s is loaded and warm: %s%s", artifact.tag, model.described(), default)
        self.metrics.sensors = await asyncio.to_thread(power.sensors)
        self.ready = True

    def _load(self, artifact: Artifact) -> tuple[Runtime, int]:
        """`artifact` in its engine, warm, and the most images of one call."""
        settings = self.settings
        opened = runtime.open(artifact, settings.engine, settings.precision, settings.threads, lean=True)
        max_batch = min(settings.max_batch, int(artifact.manifest.get("max_batch", settings.max_batch)))
        for size in {1, max_batch}:
            try:
                scores = opened.run(np.zeros((size, *artifact.preprocess.shape), np.uint8))
            except Exception as error:  # engines raise types of their own, as in `runtime.open`
                raise runtime.refused(artifact, f"{opened.engine} cannot run {size} images", error) from error
            if scores.shape != (size, artifact.classes):
                raise ArtifactError(
                    f"{artifact.tag} gives {scores.shape} for {size} images, "
                    f"not {(size, artifact.classes)}; export it again"
                )
        give_back_memory()
        return opened, max_batch

    def _model(self, artifact: Artifact, opened: Runtime, max_batch: int) -> Model:
        settings, network = self.settings, artifact.network
        batcher = Batcher(
            opened.run,
            artifact.preprocess.shape,
            self.workers,
            max_batch=max_batch,
            max_queue=settings.max_queue,
            max_delay=settings.max_delay,
            on_depth=partial(self.metrics.queue_depth.__setitem__, network),
            on_batch=self.metrics.batch_size[network].observe,
        )
        return Model(artifact, opened, batcher)

    async def load(self, network: str, version: str) -> Model:
        """Serve this version of `network` from now on. The one it replaces answers what it has accepted, and is closed.

        `version` is a whole version, or "latest". Raises `UnknownModel` if the store has no such model, and
        `Unloadable` if it cannot be run.
        """
        for text in (network, version):
            if not NAME.fullmatch(text):
                raise UnknownModel(f"{quoted(text)} is not a name or a version; `python -m export list` shows them")
        async with self._swap:
            try:
                artifact = await asyncio.to_thread(find, f"{network}:{version}")
            except Failure as error:
                raise UnknownModel(str(error)) from None
            # The store also takes the beginning of a version, and upper case for lower.
            if artifact.network != network or version not in ("latest", artifact.version):
                raise UnknownModel(f"no exported model is called {quoted(f'{network}:{version}')}; write it in full")
            if (old := self.models.get(artifact.network)) and old.artifact.version == artifact.version:
                return old
            try:
                opened, max_batch = await asyncio.to_thread(self._load, artifact)
            except Failure as error:
                raise Unloadable(str(error)) from None
            self.metrics.add(artifact.network)
            new = self.models[artifact.network] = self._model(artifact, opened, max_batch)
            if old:
                await self._release_model(old)
        place = f" in place of {old.artifact.tag}" if old else ""
        log.info("%s is loaded%s: %s", artifact.tag, place, new.described())
        return new

    async def unload(self, network: str) -> Model:
        """Stop serving `network`, once what it has accepted is answered. Raises `UnknownModel`."""
        async with self._swap:
            old = self.model(network)
            del self.models[network]
            await self._release_model(old)
        log.info("%s is unloaded", old.artifact.tag)
        return old

    @staticmethod
    async def _release_model(model: Model) -> None:
        await model.batcher.close()
        await asyncio.to_thread(model.runtime.close)
        await asyncio.to_thread(give_back_memory)

    def picture(self, body: bytes) -> Picture:
        return Picture(body, self.settings.image, self.sandbox)

    async def classify(
        self, picture: Picture, name: str | None = None, top_k: int | None = None, *, deadline: float
    ) -> Answer:
        """The contract's answer for one image; `deadline` is in the event loop's time. Raises `RequestError`."""
        started = perf_counter()
        model = self.model(name)
        with model.named():
            top_k = self.top_k(model, top_k)
            with model.batcher.admit():  # 429: before any work is put into it
                # 413, 415, 422 for this image alone, 504 past its deadline.
                scored = await model.batcher.submit(partial(picture.prepare, model.recipe), deadline)
            predictions = model.predictions(scored.scores, top_k)
        stages = (scored.decode, scored.queue, scored.inference, perf_counter() - started)
        return self.answer(model, scored, predictions, stages)

    def check_room(self, name: str | None) -> None:
        """Raises `UnknownModel`, `Overloaded` or `Closing` if an image for this model would be refused now."""
        model = self.model(name)
        with model.named():
            model.batcher.check_room()

    async def infer(self, model: Model, batch: Pixels, *, deadline: float) -> Scores:
        """The probabilities [n, classes] of pixels uint8 [n, height, width, channels]. Raises `RequestError`."""
        started, waiting = perf_counter(), list[asyncio.Task[Scored]]()
        try:
            with model.named(), ExitStack() as room:
                for _ in batch:
                    room.enter_context(model.batcher.admit())  # 429 for all of them, before any work is done
                submitted = (model.batcher.submit(partial(np.asarray, image), deadline) for image in batch)
                waiting = [asyncio.ensure_future(each) for each in submitted]
                scored = await asyncio.gather(*waiting)
                scores = np.stack([each.scores for each in scored])
                model.check_finite(scores)
        finally:
            for task in waiting:
                task.cancel()  # if one failed, the others are of no use
        for each in scored:
            self.metrics.observe(model.artifact.network, (None, each.queue, each.inference, perf_counter() - started))
        return scores

    def model(self, name: str | None) -> Model:
        """The model called `name`, else the default. Raises `UnknownModel`."""
        if name is None:
            name = next(iter(self.models), "")
        try:
            return self.models[name]
        except KeyError:
            raise UnknownModel(
                f"no model is called {quoted(name)}; there are {', '.join(self.models) or 'none'}"
            ) from None

    @staticmethod
    def top_k(model: Model, wanted: int | None) -> int:
        classes = len(model.classes)
        if wanted is None:
            return min(TOP_K, classes)
        if not 1 <= wanted <= classes:
            raise BadRequest(f"top_k is {wanted}; {model.artifact.network} has {classes} classes, so 1 to {classes}")
        return wanted

    def answer(
        self, model: Model, scored: Scored, predictions: list[Answer], seconds: tuple[float, float, float, float]
    ) -> Answer:
        """The contract's answer, its `seconds` by stage counted in the metrics too."""
        self.metrics.observe(model.artifact.network, seconds)
        decode, queue, inference, total = (round(value * 1e3, 3) for value in seconds)
        return {
            **model.identity,
            "predictions": predictions,
            "timing_ms": {"decode": decode, "queue": queue, "inference": inference, "total": total},
            "batch_size": scored.batch_size,
        }

    def enter(self) -> None:
        """A request is being handled from here to `leave`, and a shutdown waits for it. Raises `Closing` during one."""
        if self.closing:
            raise Closing(CLOSING)
        self.metrics.inflight += 1

    def leave(self) -> None:
        self.metrics.inflight -= 1
        if not self.metrics.inflight:
            self._idle.set()

    def unready(self) -> str:
        """Why this server should get no requests now; "" if it should."""
        if not self.ready:
            return "shutting down" if self.closing else "loading the models"
        if not self.models:
            return "no model is loaded"
        return self.workers.stalled(self.settings.timeout)

    def begin_to_close(self) -> None:
        """Not ready from now on, and new requests are refused."""
        self.closing, self.ready = True, False

    async def drain(self) -> None:
        """Begin to close. Returns when every request is answered or past its deadline."""
        self.begin_to_close()
        with suppress(TimeoutError):
            async with asyncio.timeout(self.settings.timeout + GRACE):
                while self.metrics.inflight:
                    self._idle.clear()
                    await self._idle.wait()

    async def stop(self) -> None:
        await self.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(GRACE):
                for model in self.models.values():
                    await model.batcher.close()
        # Waits for the threads' last calls, off the event loop.
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        self.sandbox.close()
        if not self.workers.close(GRACE):
            # An engine must not be closed while it runs. The threads are daemons, and end with the process.
            log.warning("a worker did not end within %g s; the process ends without it", GRACE)
            return
        for model in self.models.values():
            model.runtime.close()


def drain_before_exit(serving: Serving) -> None:
    """On SIGTERM and SIGINT, answer the requests that are here before the server stops listening.

    The server's own handler stops listening at once, and clients and load balancers could not see that `/readyz` is now
    503. A second signal goes straight to that handler.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    for number in (signal.SIGTERM, signal.SIGINT):
        exit_now = exit_handler(number)

        async def drain(number: int, exit_now: Any = exit_now) -> None:
            await serving.drain()
            exit_now(number, None)

        def begin(number: int, frame: FrameType | None, drain: Any = drain, exit_now: Any = exit_now) -> None:
            if serving.closing:
                exit_now(number, frame)
                return
            serving.begin_to_close()
            loop.call_soon_threadsafe(lambda: tasks.add(loop.create_task(drain(number))))

        signal.signal(number, begin)
