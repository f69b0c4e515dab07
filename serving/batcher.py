"""The bounded micro-batcher and its workers: from an image that waits to its scores, with every core at work.

Worker threads, one more than there are cores, take the next job: decode an image, or run the engine on decoded ones. A
batch is due when it is full or when nothing more waits to be decoded. So an image alone runs at once, and under load
batches fill without a delay. The engine uses every core. So one engine call runs at a time, whichever model it is for,
and a worker that finds the engine busy decodes. Models take turns at both.

An image whose decoding is costly (`Costly`) is handed to other threads, which wait for a child process. However many
such images come, the workers stay free for the others.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from time import monotonic, perf_counter

import numpy as np
from numpy.typing import NDArray

from models.preprocess import Pixels
from serving.costly import Costly
from serving.engines import Scores
from serving.errors import CLOSING, OUR_FAULT, Closing, DeadlinePassed, InferenceFailed, Overloaded, RequestError

log = logging.getLogger("bentoml.podium")

Run = Callable[[Pixels], Scores]
Prepare = Callable[[], Pixels | Costly]
Job = Callable[[], None]

# Batches that are decoded ahead of the engine: one that it takes at once, and one that is filling.
AHEAD = 2
# The share of a model's queue that costly images may fill. The rest is kept for images that are decoded quickly.
COSTLY_SHARE = 0.75


@dataclass(frozen=True, slots=True)
class Scored:
    """One image's probabilities [classes], the seconds of each stage, and how many images shared its engine call."""

    scores: NDArray[np.float32]
    decode: float
    queue: float
    inference: float
    batch_size: int


@dataclass(eq=False, slots=True)
class Waiting:
    """One image on its way. `answer` is done early if its client gave up."""

    prepare: Prepare
    since: float
    answer: asyncio.Future[Scored]
    pixels: Pixels | None = None
    decode: float = 0.0


class Workers:
    """The threads that work for every model, `costly` of them for images that are decoded in another process.

    `change` guards the queues. Code that changes a queue notifies it, or `costly_change`, which has the same lock.
    `clock` gives seconds.
    """

    def __init__(self, threads: int, costly: int = 1, clock: Callable[[], float] = monotonic) -> None:
        lock = threading.RLock()
        self.change, self.costly_change = threading.Condition(lock), threading.Condition(lock)
        self.batchers: list[Batcher] = []
        self.turns = count(1)
        self._engine_free = True
        self._closed = False
        self._clock = clock
        self._engine_since: float | None = None
        self._since: dict[threading.Thread, float] = {}  # when a worker began its job
        self._workers = [self._thread(f"worker-{i}", self._next, self.change) for i in range(threads)]
        self._costly = [self._thread(f"costly-{i}", self._next_costly, self.costly_change) for i in range(costly)]

    def add(self, batcher: Batcher) -> None:
        """Work for `batcher` too. The threads start with the first one."""
        with self.change:
            self.batchers.append(batcher)
            for thread in (*self._workers, *self._costly):
                if thread.ident is None:
                    thread.start()

    def close(self, grace: float | None = None) -> bool:
        """End the threads after their jobs. Returns False if one has not ended after `grace` seconds."""
        with self.change:
            self._closed = True
            self.change.notify_all()
            self.costly_change.notify_all()
        end = None if grace is None else monotonic() + grace
        started = [thread for thread in (*self._workers, *self._costly) if thread.ident is not None]
        for thread in started:
            thread.join(None if end is None else max(0.0, end - monotonic()))
        return not any(thread.is_alive() for thread in started)

    def stalled(self, seconds: float) -> str:
        """What has been running for longer than `seconds`, if no image can be answered because of it; else ""."""
        since = self._clock() - seconds
        with self.change:
            if self._engine_since is not None and self._engine_since < since:
                return f"the engine has been running one batch for more than {seconds:g} s"
            if not self._closed and all(self._since.get(t, since) < since or not t.is_alive() for t in self._workers):
                return f"every worker has been busy with one image for more than {seconds:g} s"
        return ""

    def _thread(self, name: str, take: Callable[[], Job | None], change: threading.Condition) -> threading.Thread:
        # Daemons, so that a thread which hangs does not keep the process from ending.
        return threading.Thread(target=self._work, args=(take, change), name=name, daemon=True)

    def _work(self, take: Callable[[], Job | None], change: threading.Condition) -> None:
        thread = threading.current_thread()
        while True:
            with change:
                self._since.pop(thread, None)
                while (job := take()) is None:
                    if self._closed:
                        return
                    change.wait(self._pause() if change is self.change else None)
                self._since[thread] = self._clock()
                # There may be work for more threads than the one that was woken.
                change.notify()
            job()

    def _next(self) -> Job | None:
        """The next job, taken out of its queue: a batch to run, else an image to decode."""
        if self._engine_free:
            now = perf_counter()
            for batcher in sorted(self.batchers, key=lambda b: b.ran):
                if batcher.due(now) and (batch := batcher.take()):
                    batcher.ran, batcher.running, self._engine_free = next(self.turns), True, False
                    self._engine_since = self._clock()
                    return partial(self._run, batcher, batch)
        for batcher in sorted(self.batchers, key=lambda b: b.prepared):
            if item := batcher.take_undecoded():
                batcher.prepared = next(self.turns)
                return partial(batcher.prepare, item)
        return None

    def _next_costly(self) -> Job | None:
        for batcher in sorted(self.batchers, key=lambda b: b.prepared_costly):
            if item := batcher.take_costly():
                batcher.prepared_costly = next(self.turns)
                return partial(self._prepare_costly, batcher, item)
        return None

    def _prepare_costly(self, batcher: Batcher, item: Waiting) -> None:
        batcher.prepare(item)
        with self.change:
            self.change.notify()  # a worker runs the engine; this thread does not

    def _run(self, batcher: Batcher, batch: list[Waiting]) -> None:
        try:
            batcher.answer(batch)
        finally:
            with self.change:
                batcher.running, self._engine_free, self._engine_since = False, True, None
                self.costly_change.notify_all()
            batcher.ran_once()

    def _pause(self) -> float | None:
        """Seconds until the first batch that waits to fill is due anyway; None if there is none."""
        if not self._engine_free:
            return None  # the worker that frees the engine looks again
        waits = [left for b in self.batchers if (left := b.left(perf_counter())) is not None]
        return min(waits, default=None)


class Batcher:
    """The queue of one model.

    `run` takes uint8 [n, height, width, channels] with n up to `max_batch` and gives [n, classes]. `max_delay` is in
    seconds. `on_depth` is told how many images wait, `on_batch` how many each engine call has.
    """

    def __init__(
        self,
        run: Run,
        shape: tuple[int, int, int],
        workers: Workers,
        *,
        max_batch: int,
        max_queue: int,
        max_delay: float = 0.0,
        on_depth: Callable[[float], None] = lambda _: None,
        on_batch: Callable[[float], None] = lambda _: None,
    ) -> None:
        self.run, self.workers = run, workers
        self.max_batch, self.max_queue, self.max_delay = max_batch, max_queue, max_delay
        self.on_depth, self.on_batch = on_depth, on_batch
        self.accepted = 0
        self.closing = self.running = False
        # The turn in which this model last had the engine, a worker to decode, and a thread for costly images.
        self.ran = self.prepared = self.prepared_costly = 0
        self._loop = asyncio.get_running_loop()
        self._buffer: Pixels = np.empty((max_batch, *shape), np.uint8)
        # The images of each stage, guarded by `workers.change`. A dictionary keeps the order of arrival, and an image
        # leaves it quickly.
        self.undecoded: dict[Waiting, None] = {}
        self.costly: dict[Waiting, None] = {}
        self.ready: dict[Waiting, None] = {}
        self._since_batch = 0  # images decoded, damaged ones included, since the first of those that are ready
        self._answered = asyncio.Event()
        self._seconds_per_image = 0.0
        workers.add(self)

    # On the event loop

    def check_room(self) -> None:
        """Raises `Overloaded` or `Closing` if no image can be taken now."""
        if self.closing:
            raise Closing(CLOSING)
        if self.accepted >= self.max_queue:
            wait = max(1, math.ceil(self.accepted * self._seconds_per_image))
            raise Overloaded(f"{self.accepted} images are waiting already; try again in {wait} s", wait)

    @contextmanager
    def admit(self) -> Iterator[None]:
        """Room for one image, from before its decoding to its answer. Raises as `check_room` does."""
        self.check_room()
        self.accepted += 1
        try:
            yield
        finally:
            self.accepted -= 1
            if not self.accepted:
                self._answered.set()

    async def submit(self, prepare: Prepare, deadline: float) -> Scored:
        """The scores of the pixels, uint8 [height, width, channels], that `prepare` gives in a worker's thread.

        `deadline` is in the event loop's time. Raises what `prepare` raises, `DeadlinePassed` if the deadline comes
        first, and `InferenceFailed` if the engine fails. A caller that is cancelled leaves the queue.
        """
        item = Waiting(prepare, perf_counter(), self._loop.create_future())
        with self.workers.change:
            self.undecoded[item] = None
            self.workers.change.notify()
        self.on_depth(self._depth)
        timer = self._loop.call_at(deadline, self._expire, item)
        try:
            return await item.answer
        except asyncio.CancelledError:
            self._leave(item)
            raise
        finally:
            timer.cancel()

    async def close(self) -> None:
        """Take no more images, and return once those accepted are answered and no engine call is running.

        A call outlasts its requests if they reach their deadline first. The engine must not be closed before it ends.
        """
        with self.workers.change:
            self.closing = True
            self.workers.change.notify_all()
        while self.accepted or self.running:
            self._answered.clear()
            await self._answered.wait()
        with self.workers.change:
            if self in self.workers.batchers:
                self.workers.batchers.remove(self)

    def _expire(self, item: Waiting) -> None:
        self._leave(item)
        self._deliver({item: DeadlinePassed("the answer was not ready before the request's deadline")})

    def _leave(self, item: Waiting) -> None:
        with self.workers.change:
            self.undecoded.pop(item, None)
            self.ready.pop(item, None)
            self.costly.pop(item, None)
        self.on_depth(self._depth)

    @staticmethod
    def _deliver(outcomes: Mapping[Waiting, Scored | RequestError]) -> None:
        for item, outcome in outcomes.items():
            if item.answer.done():
                continue
            if isinstance(outcome, Scored):
                item.answer.set_result(outcome)
            else:
                item.answer.set_exception(outcome)

    # In the workers' threads, `workers.change` held

    @property
    def _depth(self) -> int:
        return len(self.undecoded) + len(self.costly) + len(self.ready)

    def due(self, now: float) -> bool:
        """Whether a batch should run now."""
        if not self.ready:
            return False
        # Damaged images count too, so that many of them do not keep a good one waiting.
        if len(self.ready) >= self.max_batch or self._since_batch >= self.max_batch:
            return True
        return not self.undecoded and (self.left(now) or 0.0) <= 0.0

    def left(self, now: float) -> float | None:
        """Seconds that a batch which is not full may still wait to fill; None if there is no batch."""
        if not self.ready:
            return None
        return 0.0 if self.closing else next(iter(self.ready)).since + self.max_delay - now

    def take(self) -> list[Waiting]:
        """The next batch, without images whose client has gone; empty if none is left."""
        batch = list(islice(self.ready, self.max_batch))
        for item in batch:
            del self.ready[item]
        self._since_batch = len(self.ready)
        return [item for item in batch if not item.answer.done()]

    def take_undecoded(self) -> Waiting | None:
        if not self.undecoded or len(self.ready) >= AHEAD * self.max_batch:
            return None
        item = next(iter(self.undecoded))
        del self.undecoded[item]
        return item

    def take_costly(self) -> Waiting | None:
        if not self.costly or len(self.ready) >= AHEAD * self.max_batch:
            return None
        item = next(iter(self.costly))
        del self.costly[item]
        return item

    # In the workers' threads, without it

    def prepare(self, item: Waiting) -> None:
        """Decode one image, or queue it with the costly ones. Its errors are its own answer."""
        started = perf_counter()
        prepared: Pixels | Costly | None = None
        try:
            if not item.answer.done():
                prepared = item.prepare()
        except RequestError as error:
            self._send({item: error})
        except Exception:
            log.exception("decoding failed")
            self._send({item: InferenceFailed(OUR_FAULT)})
        item.decode += perf_counter() - started
        if isinstance(prepared, Costly):
            self._hand_over(item, prepared)
            return
        with self.workers.change:
            item.pixels = prepared
            if not self.ready:
                self._since_batch = 0
            self._since_batch += 1
            if item.pixels is not None and not item.answer.done():
                self.ready[item] = None
        if item.pixels is None:
            self.on_depth(self._depth)  # for images with pixels, the engine's call tells it

    def _hand_over(self, item: Waiting, costly: Costly) -> None:
        item.prepare = costly.prepare
        with self.workers.change:
            waiting = len(self.costly)
            if not (full := waiting >= max(1, int(COSTLY_SHARE * self.max_queue))) and not item.answer.done():
                self.costly[item] = None
                self.workers.costly_change.notify()
        if full:
            self._send({item: Overloaded(f"{waiting} images that are costly to decode are waiting already", 1)})

    def ran_once(self) -> None:
        """An engine call has ended, and `close` may be waiting for it."""
        with suppress(RuntimeError):  # as in `_send`
            self._loop.call_soon_threadsafe(self._answered.set)

    def answer(self, batch: list[Waiting]) -> None:
        """Run the engine on a batch and answer every image of it, also if the call fails."""
        try:
            self.on_depth(self._depth)
            self.on_batch(len(batch))
            started = perf_counter()
            scores = self._call(batch)
            inference = perf_counter() - started
        except Exception:
            log.exception("the engine failed on a batch of %d", len(batch))
            self._send({item: InferenceFailed(OUR_FAULT) for item in batch})
            return
        taken = inference / len(batch)
        self._seconds_per_image = 0.8 * self._seconds_per_image + 0.2 * taken if self._seconds_per_image else taken
        self._send(
            {
                item: Scored(row, item.decode, started - item.since - item.decode, inference, len(batch))
                for item, row in zip(batch, scores, strict=True)
            }
        )

    def _call(self, batch: list[Waiting]) -> Scores:
        images = [item.pixels for item in batch if item.pixels is not None]
        scores = self.run(np.stack(images, out=self._buffer[: len(images)]))
        if len(scores) != len(batch):
            raise ValueError(f"the engine gave {len(scores)} rows for {len(batch)} images")
        return scores

    def _send(self, outcomes: Mapping[Waiting, Scored | RequestError]) -> None:
        with suppress(RuntimeError):  # the event loop is closed, so nobody waits any more
            self._loop.call_soon_threadsafe(self._deliver, outcomes)
