"""The way from an image's bytes to its answer, for every loaded model; HTTP and BentoML come in only above."""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from time import perf_counter
from types import FrameType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from prometheus_client import REGISTRY, CollectorRegistry

from models.preprocess import Pixels
from serving import images, runtime
from serving.batcher import Batcher, Engine, Scored
from serving.errors import (
    CLOSING,
    OUR_FAULT,
    BadRequest,
    Closing,
    DeadlinePassed,
    InferenceFailed,
    RequestError,
    UnknownModel,
)
from serving.metrics import Metrics
from serving.runtime import Artifact, Runtime, Scores
from serving.settings import Settings

log = logging.getLogger("bentoml.podium")

Answer = dict[str, Any]

TOP_K = 5


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

    def predictions(self, scores: NDArray[np.float32], top_k: int) -> list[Answer]:
        """The `top_k` likeliest classes, likeliest first; of equals the one with the lower number first.

        Raises `InferenceFailed` for scores that are no numbers.
        """
        if not np.isfinite(scores).all():
            log.error("%s gave scores that are not finite", self.artifact.tag)
            raise InferenceFailed(OUR_FAULT)
        best = np.argsort(-scores, kind="stable")[:top_k]
        return [{**self.classes[i], "probability": round(float(scores[i]), 6)} for i in best]

    def summary(self) -> Answer:
        """What a list of models says of this one, from its manifest."""
        manifest = self.artifact.manifest
        kept = ("family", "year", "published", "input", "classes", "params", "macs")
        return {**self.identity, **{key: manifest.get(key) for key in kept}}

    def details(self) -> Answer:
        """The whole manifest, but for the machine it was made on."""
        manifest = {key: value for key, value in self.artifact.manifest.items() if key != "environment"}
        return {**self.identity, "manifest": manifest}


class Serving:
    """Every model there is to ask, and the way of a request through one of them."""

    def __init__(
        self, settings: Settings, artifacts: Sequence[Artifact], registry: CollectorRegistry = REGISTRY
    ) -> None:
        self.settings, self.artifacts, self.registry = settings, artifacts, registry
        self.models: dict[str, Model] = {}
        self.ready = False
        self.closing = False
        self.inflight = 0

    def check(self) -> None:
        """Whether every model has a file to run whose sha256 is right; raises `Failure` with the repair."""
        for artifact in self.artifacts:
            chosen = runtime.choose(artifact, self.settings.engine, self.settings.precision, self.settings.threads)
            artifact.file(artifact.graphs()[chosen.engine, chosen.precision])
            artifact.file(runtime.LABELS)

    async def start(self) -> None:
        """Load and warm every model; ready after."""
        self.metrics = Metrics([artifact.network for artifact in self.artifacts], self.registry)
        self.engine = Engine()
        self.decoders = ThreadPoolExecutor(runtime.cores(), thread_name_prefix="decode")
        self._idle = asyncio.Event()
        await asyncio.to_thread(Image.init)  # Pillow looks for its formats when first asked for one
        for artifact in self.artifacts:
            self.models[artifact.network] = await asyncio.to_thread(self._load, artifact)
            log.info("%s is loaded and warm", artifact.tag)
        self.ready = True

    def _load(self, artifact: Artifact) -> Model:
        wish = self.settings
        opened = runtime.open(artifact, wish.engine, wish.precision, wish.threads)
        shape, network = artifact.preprocess.shape, artifact.network
        max_batch = min(wish.max_batch, int(artifact.manifest.get("max_batch", wish.max_batch)))
        for size in {1, max_batch}:
            scores = opened.run(np.zeros((size, *shape), np.uint8))
            if scores.shape != (size, artifact.classes):
                raise runtime.ArtifactError(
                    f"{artifact.tag} gives {scores.shape} for {size} images, "
                    f"not {(size, artifact.classes)}; export it again"
                )
        batcher = Batcher(
            opened.run,
            shape,
            self.engine,
            max_batch=max_batch,
            max_queue=wish.max_queue,
            max_delay=wish.max_delay,
            on_depth=self.metrics.queue_depth[network].set,
            on_batch=self.metrics.batch_size[network].observe,
        )
        return Model(artifact, opened, batcher)

    async def classify(
        self, body: bytes, name: str | None = None, top_k: int | None = None, *, deadline: float
    ) -> Answer:
        """The contract's answer for one image; `deadline` is in the event loop's time. Raises `RequestError`."""
        started = perf_counter()
        model = self.model(name)
        try:
            top_k = self.top_k(model, top_k)
            with model.batcher.admit():  # 429: before any work is put into it
                pixels, decode = await self.decode(body, model, deadline)  # 413, 415, 422: for this image alone
                decoded = perf_counter()
                scored = await model.batcher.submit(pixels, deadline)  # 504
            predictions = model.predictions(scored.scores, top_k)
        except RequestError as error:
            error.model = model.artifact.network
            raise
        waited = decoded - started - decode + scored.queue
        return self.answer(model, scored, predictions, (decode, waited, scored.inference, perf_counter() - started))

    async def infer(self, name: str, batch: Pixels, *, deadline: float) -> Scores:
        """The probabilities [n, classes] of pixels uint8 [n, height, width, channels]. Raises `RequestError`."""
        started, model = perf_counter(), self.model(name)
        waiting: list[asyncio.Task[Scored]] = []
        try:
            with ExitStack() as room:
                for _ in batch:
                    room.enter_context(model.batcher.admit())  # 429 for all of them, before any is begun
                waiting = [asyncio.ensure_future(model.batcher.submit(image, deadline)) for image in batch]
                scored = await asyncio.gather(*waiting)
        except RequestError as error:
            error.model = name
            raise
        finally:
            for task in waiting:
                task.cancel()  # of one that failed, the others are no use
        for one in scored:
            self.metrics.observe(name, (None, one.queue, one.inference, perf_counter() - started))
        return np.stack([one.scores for one in scored])

    def model(self, name: str | None) -> Model:
        """The model called `name`, else the default. Raises `UnknownModel`."""
        if name is None:
            return next(iter(self.models.values()))
        try:
            return self.models[name]
        except KeyError:
            raise UnknownModel(f"no model is called {name[:80]!r}; there are {', '.join(self.models)}") from None

    @staticmethod
    def top_k(model: Model, wanted: int | None) -> int:
        classes = len(model.classes)
        if wanted is None:
            return min(TOP_K, classes)
        if not 1 <= wanted <= classes:
            raise BadRequest(f"top_k is {wanted}; {model.artifact.network} has {classes} classes, so 1 to {classes}")
        return wanted

    async def decode(self, body: bytes, model: Model, deadline: float) -> tuple[Pixels, float]:
        """The pixels of `body` and the seconds that took, in a thread."""

        def work() -> tuple[Pixels, float]:
            started = perf_counter()
            pixels = images.decode(body, model.recipe, self.settings.max_pixels)
            return pixels, perf_counter() - started

        try:
            async with asyncio.timeout_at(deadline):
                return await asyncio.get_running_loop().run_in_executor(self.decoders, work)
        except TimeoutError:
            raise DeadlinePassed("the image was not decoded before the request's deadline") from None

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

    @contextmanager
    def request(self) -> Iterator[None]:
        """A request under way, which a shutdown waits for. Raises `Closing` once one has begun."""
        if self.closing:
            raise Closing(CLOSING)
        self.inflight += 1
        self.metrics.inflight.inc()
        try:
            yield
        finally:
            self.inflight -= 1
            self.metrics.inflight.dec()
            if not self.inflight:
                self._idle.set()

    async def drain(self) -> None:
        """Not ready from now on; returns when every request under way is answered."""
        self.closing, self.ready = True, False
        while self.inflight:
            self._idle.clear()
            await self._idle.wait()

    async def stop(self) -> None:
        await self.drain()
        for model in self.models.values():
            await model.batcher.close()
        # Waits for the threads' last calls, off the event loop.
        await asyncio.to_thread(self._release)

    def _release(self) -> None:
        self.decoders.shutdown(cancel_futures=True)
        self.engine.close()
        for model in self.models.values():
            model.runtime.close()


def drain_before_exit(serving: Serving) -> None:
    """On SIGTERM and SIGINT, answer what is under way before the server closes its door.

    The server's own handler stops listening at once, and its clients and load balancers could no longer see that
    `/readyz` turned 503. A second signal goes straight to it.
    """
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    tasks: set[asyncio.Task[None]] = set()
    for number in (signal.SIGTERM, signal.SIGINT):
        exit_now = signal.getsignal(number)

        async def drain(number: int, exit_now: Any = exit_now) -> None:
            await serving.drain()
            exit_now(number, None)

        def begin(number: int, frame: FrameType | None, drain: Any = drain, exit_now: Any = exit_now) -> None:
            if serving.closing:
                exit_now(number, frame)
                return
            serving.closing, serving.ready = True, False
            loop.call_soon_threadsafe(lambda: tasks.add(loop.create_task(drain(number))))

        if callable(exit_now):
            signal.signal(number, begin)
