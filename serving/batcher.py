"""The bounded micro-batcher: requests of one model, gathered while the engine is busy, answered together.

An idle engine starts at once, so a client alone waits for nobody. While it runs, what arrives forms the next batch.
Models share one `Engine`, which runs one call at a time in the order of asking, so that none starves another.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import numpy as np
from numpy.typing import NDArray

from models.preprocess import Pixels
from serving.errors import CLOSING, OUR_FAULT, Closing, DeadlinePassed, InferenceFailed, Overloaded, RequestError
from serving.runtime import Scores

log = logging.getLogger("bentoml.podium")

Run = Callable[[Pixels], Scores]


@dataclass(frozen=True)
class Scored:
    """One image's probabilities [classes], the seconds it took, and how many images shared its engine call."""

    scores: NDArray[np.float32]
    queue: float
    inference: float
    batch_size: int


@dataclass(eq=False, slots=True)
class Waiting:
    """One image in the queue; `answer` is done early where its client gave up."""

    pixels: Pixels
    deadline: float
    since: float
    answer: asyncio.Future[Scored]


class Engine:
    """The processor's time: one engine call at a time, first come first served, in a thread of its own."""

    def __init__(self) -> None:
        self.turn = asyncio.Semaphore(1)
        self.thread = ThreadPoolExecutor(1, thread_name_prefix="engine")

    def close(self) -> None:
        self.thread.shutdown(wait=True, cancel_futures=True)


class Batcher:
    """The queue of one model. Everything but `run` happens on the event loop.

    `run` takes uint8 [n, height, width, channels] with n up to `max_batch` and gives [n, classes]; `max_delay` is in
    seconds; `on_depth` and `on_batch` are told the images waiting and the images of each engine call.
    """

    def __init__(
        self,
        run: Run,
        shape: tuple[int, int, int],
        engine: Engine,
        *,
        max_batch: int,
        max_queue: int,
        max_delay: float = 0.0,
        on_depth: Callable[[float], None] = lambda _: None,
        on_batch: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.run, self.engine = run, engine
        self.max_batch, self.max_queue, self.max_delay = max_batch, max_queue, max_delay
        self.on_depth, self.on_batch = on_depth, on_batch
        self.accepted = 0
        self.closing = False
        self._buffer: Pixels = np.empty((max_batch, *shape), np.uint8)
        self._waiting: dict[Waiting, None] = {}  # in the order of arrival, and quick to leave
        self._batch: list[Waiting] = []
        self._worker: asyncio.Task[None] | None = None
        self._full = asyncio.Event()
        self._seconds_per_image = 0.0

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Room for one image, from before its decoding to its answer. Raises `Overloaded` or `Closing`."""
        if self.closing:
            raise Closing(CLOSING)
        if self.accepted >= self.max_queue:
            wait = max(1, math.ceil(self.accepted * self._seconds_per_image))
            raise Overloaded(f"{self.accepted} images are waiting already; try again in {wait} s", wait)
        self.accepted += 1
        try:
            yield
        finally:
            self.accepted -= 1

    async def submit(self, pixels: Pixels, deadline: float) -> Scored:
        """The scores of `pixels`, uint8 [height, width, channels]; `deadline` is in the event loop's time.

        Raises `DeadlinePassed` when that comes first, and `InferenceFailed` when the engine fails. A caller that is
        cancelled leaves the queue.
        """
        if self.closing:
            raise Closing(CLOSING)
        loop = asyncio.get_running_loop()
        item = Waiting(pixels, deadline, perf_counter(), loop.create_future())
        self._waiting[item] = None
        self.on_depth(len(self._waiting))
        if len(self._waiting) >= self.max_batch:
            self._full.set()
        if self._worker is None:
            self._worker = loop.create_task(self._work())
        try:
            async with asyncio.timeout_at(deadline):
                return await item.answer
        except TimeoutError:
            raise DeadlinePassed("the answer was not ready before the request's deadline") from None
        finally:
            if item in self._waiting:
                del self._waiting[item]
                self.on_depth(len(self._waiting))

    async def close(self) -> None:
        """Take nothing more, and return once what was accepted is answered."""
        self.closing = True
        self._full.set()
        while self._worker is not None:
            await asyncio.wait([self._worker])

    async def _work(self) -> None:
        """Run batches until the queue is empty. However this ends, nobody is left waiting."""
        try:
            while self._waiting:
                await self._gather()
                async with self.engine.turn:
                    self._take()
                    await self._answer()
        except Exception:
            log.exception("the batcher failed")
            self._fail([*self._batch, *self._waiting], InferenceFailed, OUR_FAULT)
        except asyncio.CancelledError:
            self._fail([*self._batch, *self._waiting], Closing, CLOSING)
            raise
        finally:
            self._worker = None

    async def _gather(self) -> None:
        """Give a batch that is not full up to `max_delay` from its first image on."""
        if not self.max_delay or self.closing:
            return
        if len(self._waiting) < self.max_batch:
            self._full.clear()
            left = next(iter(self._waiting)).since + self.max_delay - perf_counter()
            try:
                async with asyncio.timeout(max(0.0, left)):
                    await self._full.wait()
            except TimeoutError:
                pass

    def _take(self) -> None:
        """Move the next batch out of the queue, without those whose client has gone or whose deadline has passed."""
        now = asyncio.get_running_loop().time()
        self._batch.clear()
        while self._waiting and len(self._batch) < self.max_batch:
            item = next(iter(self._waiting))
            del self._waiting[item]
            # Past its deadline it is answered by its own timeout, at once.
            if not item.answer.done() and item.deadline > now:
                self._batch.append(item)
        self.on_depth(len(self._waiting))

    async def _answer(self) -> None:
        """Run the batch and give every image its own."""
        batch = self._batch
        if not batch:
            return
        self.on_batch(len(batch))
        images = [item.pixels for item in batch]
        try:
            scores, started, ended = await asyncio.get_running_loop().run_in_executor(
                self.engine.thread, self._call, images
            )
        except Exception:
            log.exception("the engine failed on a batch of %d", len(batch))
            self._fail(batch, InferenceFailed, OUR_FAULT)
            return
        taken = (ended - started) / len(batch)
        self._seconds_per_image = 0.8 * self._seconds_per_image + 0.2 * taken if self._seconds_per_image else taken
        for item, row in zip(batch, scores, strict=True):
            if not item.answer.done():
                item.answer.set_result(Scored(row, started - item.since, ended - started, len(batch)))

    def _call(self, images: list[Pixels]) -> tuple[Scores, float, float]:
        """In the engine's thread: the batch put together and run, with the time it began and ended."""
        started = perf_counter()
        batch = images[0][None] if len(images) == 1 else np.stack(images, out=self._buffer[: len(images)])
        scores = self.run(batch)
        if len(scores) != len(images):
            raise ValueError(f"the engine gave {len(scores)} rows for {len(images)} images")
        return scores, started, perf_counter()

    @staticmethod
    def _fail(items: list[Waiting], error: type[RequestError], message: str) -> None:
        for item in items:
            if not item.answer.done():
                item.answer.set_exception(error(message))
