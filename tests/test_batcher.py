"""The micro-batcher with engines that wait, fail and count. An engine here is a gate that the test opens."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

import numpy as np
import pytest

from models.preprocess import Pixels
from serving.batcher import Batcher, Scored, Workers
from serving.costly import Costly
from serving.engines import Scores
from serving.errors import Closing, DamagedImage, DeadlinePassed, InferenceFailed, Overloaded
from tests.fakes.interface import PATIENCE, until

SHAPE = (2, 2, 3)


class Gate:
    """An engine that records its batches and, while closed, holds them."""

    def __init__(self, closed: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.passage = threading.Event()
        if not closed:
            self.passage.set()

    def __call__(self, batch: Pixels) -> Scores:
        numbers = [int(image[0, 0, 0]) for image in batch]
        self.batches.append(numbers)
        self.entered.release()
        assert self.passage.wait(30)
        if 255 in numbers:
            raise RuntimeError("the engine broke")
        return np.array([[n, 2 * n] for n in numbers], np.float32)

    async def busy(self) -> None:
        """Wait until the engine is inside a call."""
        await asyncio.to_thread(self.entered.acquire)


def image(number: int) -> Pixels:
    return np.full(SHAPE, number, np.uint8)


@asynccontextmanager
async def batcher(gate: Gate, workers: Workers | None = None, **options: Any) -> Any:
    shared = workers or Workers(2)
    made = Batcher(gate, SHAPE, shared, **{"max_batch": 4, "max_queue": 16, **options})
    try:
        async with asyncio.timeout(PATIENCE):
            yield made
    finally:
        gate.passage.set()
        await made.close()
        if workers is None:
            await asyncio.to_thread(shared.close)


def soon(seconds: float = 30) -> float:
    return asyncio.get_running_loop().time() + seconds


async def ask(to: Batcher, number: int, seconds: float = 30) -> Scored:
    with to.admit():
        return await to.submit(partial(image, number), soon(seconds))


async def test_an_idle_engine_starts_at_once_with_one_image() -> None:
    gate = Gate()
    async with batcher(gate) as to:
        scored = await ask(to, 7)
    assert scored.scores.tolist() == [7, 14] and scored.batch_size == 1
    assert scored.queue >= 0 and scored.inference >= 0


async def test_what_arrives_while_the_engine_is_busy_is_the_next_batch_in_order() -> None:
    gate = Gate(closed=True)
    async with batcher(gate) as to:
        first = asyncio.create_task(ask(to, 0))
        await gate.busy()
        others = [asyncio.create_task(ask(to, n)) for n in range(1, 7)]
        await until(lambda: len(to.ready) == 6)
        gate.passage.set()
        answers = await asyncio.gather(first, *others)
    assert gate.batches == [[0], [1, 2, 3, 4], [5, 6]]
    assert [a.scores[0] for a in answers] == list(range(7))
    assert [a.batch_size for a in answers] == [1, 4, 4, 4, 4, 2, 2]


async def test_a_full_queue_is_429_with_retry_after_until_there_is_room() -> None:
    gate = Gate(closed=True)
    async with batcher(gate, max_queue=3) as to:
        tasks = [asyncio.create_task(ask(to, n)) for n in range(3)]
        await until(lambda: to.accepted == 3)
        with pytest.raises(Overloaded) as refused:
            await ask(to, 3)
        assert refused.value.retry_after is not None and refused.value.retry_after >= 1
        gate.passage.set()
        await asyncio.gather(*tasks)
        assert (await ask(to, 4)).scores[0] == 4
        assert to.accepted == 0


async def test_a_request_past_its_deadline_is_504_and_never_run() -> None:
    gate = Gate(closed=True)
    async with batcher(gate) as to:
        first = asyncio.create_task(ask(to, 0))
        await gate.busy()
        with pytest.raises(DeadlinePassed):
            await ask(to, 1, seconds=0.01)
        gate.passage.set()
        await first
        await ask(to, 2)
    assert gate.batches == [[0], [2]]


async def test_a_deadline_passes_while_the_engine_runs() -> None:
    gate = Gate(closed=True)
    async with batcher(gate) as to:
        with pytest.raises(DeadlinePassed):
            await ask(to, 0, seconds=0.01)
        gate.passage.set()
        assert (await ask(to, 1)).scores[0] == 1


async def test_a_client_that_is_gone_leaves_the_queue() -> None:
    gate = Gate(closed=True)
    depths: list[float] = []
    async with batcher(gate, max_queue=2, on_depth=depths.append) as to:
        first = asyncio.create_task(ask(to, 0))
        await gate.busy()
        gone = asyncio.create_task(ask(to, 1))
        await until(lambda: len(to.ready) == 1)
        assert depths[-1] == 1
        gone.cancel()
        await until(lambda: not to.ready)
        assert depths[-1] == 0
        after = asyncio.create_task(ask(to, 2))  # there is room again
        await until(lambda: len(to.ready) == 1)
        gate.passage.set()
        await asyncio.gather(first, after)
    assert gone.cancelled() and gate.batches == [[0], [2]]


async def test_a_failing_engine_fails_its_batch_and_no_other() -> None:
    gate = Gate(closed=True)
    async with batcher(gate, max_batch=2) as to:
        tasks = [asyncio.create_task(ask(to, 0))]
        await gate.busy()
        tasks += [asyncio.create_task(ask(to, n)) for n in (255, 1, 2, 3)]
        await until(lambda: len(to.ready) == 4)
        gate.passage.set()
        good, broken, beside, *later = await asyncio.gather(*tasks, return_exceptions=True)
    assert gate.batches == [[0], [255, 1], [2, 3]]
    assert isinstance(broken, InferenceFailed) and isinstance(beside, InferenceFailed)
    assert [x.scores[0] for x in (good, *later) if isinstance(x, Scored)] == [0, 2, 3]


async def test_an_engine_that_answers_too_few_images_is_an_error_and_not_a_mix_up() -> None:
    async with batcher(Gate()) as to:
        to.run = lambda batch: np.zeros((0, 2), np.float32)
        with pytest.raises(InferenceFailed):
            await ask(to, 1)


async def test_no_request_is_left_waiting_when_the_batcher_itself_fails() -> None:
    def broken(_: float) -> None:
        raise RuntimeError("a defect of ours")

    async with batcher(Gate(), on_batch=broken) as to:
        with pytest.raises(InferenceFailed):
            await ask(to, 1)
        to.on_batch = lambda _: None
        assert (await ask(to, 2)).scores[0] == 2


async def test_max_delay_waits_for_a_full_batch_but_no_longer() -> None:
    gate = Gate()
    async with batcher(gate, max_delay=20.0) as to:
        await asyncio.wait_for(asyncio.gather(*(ask(to, n) for n in range(4))), 10)
    assert gate.batches == [[0, 1, 2, 3]]
    gate = Gate()
    async with batcher(gate, max_delay=0.01) as to:
        assert (await ask(to, 5)).queue >= 0.009


async def test_closing_answers_what_was_accepted_and_refuses_the_rest() -> None:
    gate = Gate(closed=True)
    async with batcher(gate) as to:
        tasks = [asyncio.create_task(ask(to, n)) for n in range(6)]
        await gate.busy()
        closing = asyncio.create_task(to.close())
        await until(lambda: to.closing)
        with pytest.raises(Closing) as refused:
            await ask(to, 9)
        assert refused.value.retry_after
        assert not closing.done()
        gate.passage.set()
        await closing
        assert [(await task).scores[0] for task in tasks] == list(range(6))


async def test_models_take_turns() -> None:
    workers, order = Workers(2), []

    def recording(name: str, gate: Gate) -> Callable[[Pixels], Scores]:
        def call(batch: Pixels) -> Scores:
            order.append(name)
            return gate(batch)

        return call

    slow, other = Gate(closed=True), Gate()
    async with batcher(slow, workers, max_batch=1) as a, batcher(other, workers, max_batch=1) as b:
        a.run, b.run = recording("a", slow), recording("b", other)
        tasks = [asyncio.create_task(ask(a, n)) for n in range(4)]
        await slow.busy()
        tasks += [asyncio.create_task(ask(b, n)) for n in range(2)]
        await until(lambda: (len(a.ready), len(a.undecoded), len(b.ready)) == (2, 1, 2))
        slow.passage.set()
        await asyncio.gather(*tasks)
    await asyncio.to_thread(workers.close)
    assert order == ["a", "b", "a", "b", "a", "a"]


async def test_the_fault_of_one_image_is_the_answer_to_that_image() -> None:
    def damaged() -> Pixels:
        raise DamagedImage("cut off")

    def defect() -> Pixels:
        raise RuntimeError("a defect of ours")

    gate = Gate(closed=True)
    async with batcher(gate) as to:
        first = asyncio.create_task(ask(to, 0))
        await gate.busy()
        prepared = (partial(image, 1), damaged, partial(image, 2), defect)
        others = [asyncio.create_task(to.submit(one, soon())) for one in prepared]
        await until(lambda: len(to.ready) == 2)
        gate.passage.set()
        one, bad, two, ours = await asyncio.gather(*others, return_exceptions=True)
        await first
    assert gate.batches == [[0], [1, 2]]
    assert isinstance(one, Scored) and isinstance(two, Scored)
    assert isinstance(bad, DamagedImage) and isinstance(ours, InferenceFailed)


async def test_an_endless_row_of_damaged_images_does_not_delay_a_good_one() -> None:
    def damaged() -> Pixels:
        raise DamagedImage("cut off")

    async with batcher(Gate(), Workers(1)) as to:
        over = False

        async def flood() -> None:
            while not over:
                with suppress(DamagedImage):
                    await to.submit(damaged, soon())

        floods = [asyncio.create_task(flood()) for _ in range(8)]
        assert (await ask(to, 3)).scores[0] == 3
        over = True
        await asyncio.gather(*floods)

    await asyncio.to_thread(to.workers.close)


async def test_under_load_batches_fill_before_the_engine_runs() -> None:
    gate, first = Gate(), threading.Event()

    def held() -> Pixels:
        assert first.wait(30)
        return image(0)

    workers = Workers(1)
    async with batcher(gate, workers) as to:
        tasks = [asyncio.create_task(to.submit(held, soon()))]
        await until(lambda: not to.undecoded and len(tasks) == 1)
        tasks += [asyncio.create_task(ask(to, n)) for n in range(1, 8)]
        await until(lambda: len(to.undecoded) == 7)
        first.set()
        await asyncio.gather(*tasks)
    await asyncio.to_thread(workers.close)
    assert gate.batches == [[0, 1, 2, 3], [4, 5, 6, 7]]


# --- what is costly to decode -----------------------------------------------------------------------------------------


class Slow:
    """Images that are decoded in another process, and are ready once `passage` is set."""

    def __init__(self) -> None:
        self.entered, self.passage = threading.Semaphore(0), threading.Event()

    def prepare(self, number: int) -> Costly:
        def wait() -> Pixels:
            self.entered.release()
            assert self.passage.wait(30)
            return image(number)

        return Costly(wait)

    async def ask(self, to: Batcher, number: int, seconds: float = 30) -> Scored:
        with to.admit():
            return await to.submit(partial(self.prepare, number), soon(seconds))


async def test_costly_images_leave_workers_for_the_others() -> None:
    slow = Slow()
    async with batcher(Gate()) as to:
        waiting = [asyncio.create_task(slow.ask(to, n)) for n in range(4)]
        await asyncio.to_thread(slow.entered.acquire)
        assert [(await ask(to, n)).scores[0] for n in range(20)] == list(range(20))
        assert not slow.entered.acquire(blocking=False), "one at a time"
        slow.passage.set()
        assert [scored.scores[0] for scored in await asyncio.gather(*waiting)] == [0, 1, 2, 3]


async def test_costly_images_fill_no_more_than_their_share_of_the_queue() -> None:
    slow = Slow()
    async with batcher(Gate(), max_queue=16) as to:
        first = asyncio.create_task(slow.ask(to, 0))
        await asyncio.to_thread(slow.entered.acquire)
        waiting = [asyncio.create_task(slow.ask(to, n)) for n in range(1, 13)]
        await until(lambda: len(to.costly) == 12)
        with pytest.raises(Overloaded, match="12 images that are costly to decode are waiting") as refused:
            await slow.ask(to, 13)
        assert refused.value.retry_after
        assert (await ask(to, 7)).scores[0] == 7
        slow.passage.set()
        await asyncio.gather(first, *waiting)


async def test_a_costly_image_past_its_deadline_leaves_its_queue() -> None:
    slow = Slow()
    async with batcher(Gate()) as to:
        first = asyncio.create_task(slow.ask(to, 0))
        await asyncio.to_thread(slow.entered.acquire)
        with pytest.raises(DeadlinePassed):
            await slow.ask(to, 1, seconds=0.01)
        assert not to.costly
        slow.passage.set()
        assert (await first).scores[0] == 0
        assert not slow.entered.acquire(blocking=False), "nobody waits for it any more"


async def test_a_costly_image_that_is_damaged_fails_alone() -> None:
    def broken() -> Pixels:
        raise DamagedImage("its decoder crashed")

    async with batcher(Gate()) as to:
        with to.admit(), pytest.raises(DamagedImage):
            await to.submit(lambda: Costly(broken), soon())
        assert (await ask(to, 1)).scores[0] == 1


async def test_an_image_that_fails_no_longer_counts_as_waiting() -> None:
    def broken() -> Pixels:
        raise DamagedImage("cut off")

    depths: list[float] = []
    async with batcher(Gate(), on_depth=depths.append) as to:
        for prepare in (broken, lambda: Costly(broken)):
            with to.admit(), pytest.raises(DamagedImage):
                await to.submit(prepare, soon())
            await until(lambda: depths[-1] == 0)


# --- progress ---------------------------------------------------------------------------------------------------------


async def test_workers_count_as_stalled_if_an_engine_call_or_all_decoders_do_not_end() -> None:
    now = 0.0
    workers, gate, slow = Workers(2, clock=lambda: now), Gate(closed=True), Slow()
    async with batcher(gate, workers) as to:
        assert not workers.stalled(10)
        now = 1000.0
        assert not workers.stalled(10), "nothing waits"
        running = asyncio.create_task(ask(to, 0))
        await gate.busy()
        now += 9
        assert not workers.stalled(10)
        now += 2
        assert workers.stalled(10) == "the engine has been running one batch for more than 10 s"
        gate.passage.set()
        await running
        await until(lambda: not workers.stalled(10))

        stuck = [asyncio.create_task(to.submit(slow.prepare(n).prepare, soon())) for n in range(2)]
        for _ in stuck:
            await asyncio.to_thread(slow.entered.acquire)
        now += 11
        assert workers.stalled(10) == "every worker has been busy with one image for more than 10 s"
        slow.passage.set()
        await asyncio.gather(*stuck)
        await until(lambda: not workers.stalled(10))

        slow.passage.clear()
        alone = asyncio.create_task(to.submit(slow.prepare(0).prepare, soon()))
        await asyncio.to_thread(slow.entered.acquire)
        now += 11
        assert not workers.stalled(10), "another worker would take what comes"
        slow.passage.set()
        await alone
    await asyncio.to_thread(workers.close)


async def test_workers_that_never_return_do_not_delay_the_end() -> None:
    workers, slow = Workers(2), Slow()
    made = Batcher(Gate(), SHAPE, workers, max_batch=4, max_queue=16)
    with pytest.raises(DeadlinePassed), made.admit():
        await made.submit(slow.prepare(0).prepare, soon(0.01))
    await made.close()
    assert not await asyncio.to_thread(workers.close, 0.01)
    slow.passage.set()
    assert await asyncio.to_thread(workers.close)


async def test_close_waits_for_an_engine_call_that_outlasts_its_requests() -> None:
    gate, workers = Gate(closed=True), Workers(2)
    async with batcher(gate, workers) as queue:
        late = asyncio.create_task(ask(queue, 1, seconds=0.05))
        await gate.busy()
        with pytest.raises(DeadlinePassed):
            await late
        assert queue.accepted == 0
        closing = asyncio.create_task(queue.close())
        for _ in range(100):  # let the loop do all that it can
            await asyncio.sleep(0)
        assert not closing.done(), "the engine would be closed under the call"
        gate.passage.set()
        await closing
        assert not queue.running
    await asyncio.to_thread(workers.close)
