"""The limit without a server: the same photographs, decoded and classified in one process, as fast as it goes.

With one in flight, one thread decodes and runs. With more, the fastest of a few pipelines: as many threads that decode
as there are cores, or one, and the engine taking up to `max_batch` of what is ready; a thread per core that decodes a
batch and then has its turn at the engine; or one thread doing both.
"""

from __future__ import annotations

import io
import json
import queue
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

from PIL import Image

from benchmarks.peers import work
from models.preprocess import Pixels
from serving.runtime import cores

TRIAL_S = 0.7

Times = list[float]  # seconds from the begin of decoding to the scores, of every image


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


def main() -> int:
    job = work.job()
    classifier = work.classifier()
    files = [Path(name).read_bytes() for name in job["photographs"]]

    def decode(index: int) -> Pixels:
        return classifier.pixels(Image.open(io.BytesIO(files[index % len(files)])))

    most = job["max_batch"]
    ways: dict[str, Callable[[float, int], Times]] = {
        "one thread": lambda s, _: alone(decode, classifier.run, s),
        "one decoder": lambda s, n: pipeline(decode, classifier.run, s, 1, most, n),
        "turns": lambda s, n: turns(decode, classifier.run, s, cores(), max(1, min(most, n // cores()))),
        "a decoder per core": lambda s, n: pipeline(decode, classifier.run, s, cores(), most, n),
    }
    print(json.dumps("ready"), flush=True)
    best: dict[int, str] = {1: "one thread"}
    for line in sys.stdin:
        connections, seconds = json.loads(line)
        if connections not in best:
            best[connections] = max(ways, key=lambda name: len(ways[name](TRIAL_S, connections)))
        began = time.perf_counter()
        times = ways[best[connections]](seconds, connections)
        passed = time.perf_counter() - began
        print(json.dumps({"seconds": passed, "values": [1e3 * t for t in times], "way": best[connections]}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
