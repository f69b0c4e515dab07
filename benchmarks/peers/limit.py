"""The limit without a server: the same photographs, decoded and classified in one process as fast as possible.

With one image in flight, one thread decodes and runs. With more, the fastest of these pipelines counts: one thread or
one for each core decodes, and the engine takes up to `max_batch` of the images that are ready; a thread for each core
decodes a batch and then waits for its turn at the engine; or one thread does both.
"""

from __future__ import annotations

import io
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypedDict

from PIL import Image

from benchmarks.peers import work
from benchmarks.process import answer
from models.preprocess import Pixels
from serving.runtime import cores

TRIAL_S = 0.7

Times = list[float]  # of every image, seconds from the beginning of its decoding to its scores


def alone(decode: Callable[[int], Pixels], run: Callable[[Pixels], object], seconds: float) -> Times:
    began, times = time.perf_counter(), list[float]()
    while (before := time.perf_counter()) - began < seconds or not times:
        run(decode(len(times))[None])
        times.append(time.perf_counter() - before)
    return times


def pipeline(
    decode: Callable[[int], Pixels],
    run: Callable[[Pixels], object],
    seconds: float,
    decoders: int,
    max_batch: int,
    in_flight: int,
) -> Times:
    import numpy as np

    ready: queue.Queue[tuple[float, Pixels]] = queue.Queue()
    room, over, times = threading.Semaphore(in_flight), threading.Event(), list[float]()

    def decoder(index: int) -> None:
        while not over.is_set():
            room.acquire()
            before = time.perf_counter()
            ready.put((before, decode(index)))
            index += decoders

    threads = [threading.Thread(target=decoder, args=(i,)) for i in range(decoders)]
    for thread in threads:
        thread.start()
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or not times:
        batch = [ready.get()]
        while len(batch) < max_batch and not ready.empty():
            batch.append(ready.get_nowait())
        run(np.stack([image for _, image in batch]))
        after = time.perf_counter()
        times += [after - before for before, _ in batch]
        for _ in batch:
            room.release()
    over.set()
    for _ in threads:
        room.release()
    for thread in threads:
        thread.join()
    return times


def turns(
    decode: Callable[[int], Pixels],
    run: Callable[[Pixels], object],
    seconds: float,
    workers: int,
    batch: int,
) -> Times:
    import numpy as np

    turn, over, times = threading.Lock(), threading.Event(), list[float]()

    def worker(index: int) -> None:
        while not over.is_set():
            began, images = list[float](), list[Pixels]()
            for _ in range(batch):
                began.append(time.perf_counter())
                images.append(decode(index))
                index += workers
            with turn:
                run(np.stack(images))
                after = time.perf_counter()
                times.extend(after - before for before in began)

    threads = [threading.Thread(target=worker, args=(i,)) for i in range(workers)]
    for thread in threads:
        thread.start()
    time.sleep(seconds)
    over.set()
    for thread in threads:
        thread.join()
    return times


class Load(TypedDict):
    connections: int
    seconds: float


class Answer(TypedDict):
    """The milliseconds of every image, the seconds of all, and the pipeline that was fastest."""

    values: list[float]
    seconds: float
    way: str


class Limit:
    """The engine, the photographs, and the fastest pipeline for each number of images in flight."""

    def __init__(self, job: dict[str, Any]) -> None:
        classifier, most = work.classifier(), job["max_batch"]
        files = [Path(name).read_bytes() for name in job["photographs"]]

        def decode(index: int) -> Pixels:
            return classifier.pixels(Image.open(io.BytesIO(files[index % len(files)])))

        self.ways: dict[str, Callable[[float, int], Times]] = {
            "one thread": lambda s, _: alone(decode, classifier.run, s),
            "one decoder": lambda s, n: pipeline(decode, classifier.run, s, 1, most, n),
            "turns": lambda s, n: turns(decode, classifier.run, s, cores(), max(1, min(most, n // cores()))),
            "a decoder per core": lambda s, n: pipeline(decode, classifier.run, s, cores(), most, n),
        }
        self.best = {1: "one thread"}

    def load(self, load: Load) -> Answer:
        connections = load["connections"]
        if connections not in self.best:
            self.best[connections] = max(self.ways, key=lambda way: len(self.ways[way](TRIAL_S, connections)))
        way, began = self.best[connections], time.perf_counter()
        times = self.ways[way](load["seconds"], connections)
        return {"values": [1e3 * t for t in times], "seconds": time.perf_counter() - began, "way": way}


if __name__ == "__main__":
    sys.exit(answer({"load": Limit(work.job()).load}))
