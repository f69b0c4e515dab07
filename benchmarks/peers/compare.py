"""Podium and its peers side by side: started, warmed, loaded and ended in turn, round after round.

So each server has the machine to itself, as it has in use, and a slow spell of the machine strikes all alike. The load
is a closed loop of multipart requests with photographs, from `wrk` if it is installed, else from our own client, which
takes more of the processor that it shares with the servers. Podium has a second turn, with pixels instead of a
photograph, through the Open Inference Protocol. Figures are medians over the rounds.
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.load.loops import Done, after, closed_loop
from benchmarks.load.servers import Server, bentoml
from benchmarks.load.wire import Pool, Reply, get, metric, once, post
from benchmarks.peers.work import VARIABLE
from benchmarks.process import Child, free_port
from models.console import Failure, table
from models.preprocess import pixels
from serving.artifact import Artifact
from serving.runtime import Choice

BOUNDARY = "podium-side-by-side"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"

MAX_BATCH = 8
BATCH_DELAY_S = 0.005  # LitServe waits that long for a batch to fill; at 0 it forms none
WARMUP_S = 2.0
WRK = Path(__file__).with_name("wrk.lua")

PODIUM, TENSORS, LIMIT = "Podium", "Podium, uint8 tensors", "no server"


@dataclass(frozen=True)
class Peer:
    """A server: its program, the package it needs, the extra with that package; whether pixels and engine are ours."""

    name: str
    program: str
    package: str
    extra: str
    ours: bool = False
    max_batch: int = 1

    @property
    def label(self) -> str:
        return self.name + ", our engine" * (self.ours and self.name != PODIUM)

    @property
    def missing(self) -> str | None:
        """Why it cannot run here; None if it can."""
        if find_spec(self.package):
            return None
        return f"{self.name}: {self.package} is not installed; pip install 'podium[{self.extra}]'"

    def command(self, port: int) -> list[str]:
        return bentoml(self.program, port) if self.package == "bentoml" else [sys.executable, "-m", self.program]


def both(name: str, program: str, package: str, extra: str, max_batch: int = 1) -> tuple[Peer, Peer]:
    plain = Peer(name, program, package, extra, max_batch=max_batch)
    return plain, replace(plain, ours=True)


# fmt: off
PEERS = (
    #     name                       program                                 package     extra
    *both("FastAPI",                 "benchmarks.peers.with_fastapi",         "fastapi",  "peers"),
    *both("LitServe",                "benchmarks.peers.with_litserve",        "litserve", "peers"),
    *both("LitServe, batches",       "benchmarks.peers.with_litserve",        "litserve", "peers", max_batch=MAX_BATCH),
    *both("BentoML",                 "benchmarks.peers.with_bentoml:Plain",   "bentoml",  "bench"),
    *both("BentoML, batchable",      "benchmarks.peers.with_bentoml:Batched", "bentoml",  "bench", max_batch=MAX_BATCH),
    *both("Ray Serve, batches",      "benchmarks.peers.with_ray",             "ray",      "peers-ray", max_batch=MAX_BATCH),  # noqa: E501
    Peer(PODIUM,                     "service:Podium",                        "bentoml",  "bench", ours=True, max_batch=MAX_BATCH),  # noqa: E501
)
# The same requests without decoding and without an engine: what the servers themselves cost.
EMPTY = (
    Peer("Starlette alone",          "benchmarks.peers.with_starlette_alone", "starlette", "bench"),
    Peer("BentoML, image endpoint",  "benchmarks.peers.with_bentoml_alone:Image",  "bentoml",  "bench"),
    Peer(PODIUM,                     "benchmarks.peers.with_podium_alone:Podium", "bentoml",  "bench", ours=True),
)
# fmt: on


@dataclass(frozen=True)
class Look:
    """One load on one server for some seconds; latencies in milliseconds."""

    requests: int  # answered well
    seconds: float
    p50: float
    p99: float
    mean: float
    errors: int
    total: float | None = None  # the mean of what Podium itself says a request took (`timing_ms`)

    @property
    def rate(self) -> float:
        return self.requests / self.seconds


Ask = Callable[[int, float], Look]  # connections, seconds


@dataclass(frozen=True)
class Row:
    """One server under one number of connections; figures are medians over `rounds`."""

    server: str
    network: str
    engine: str | None
    precision: str | None
    pixels: str | None  # whose they are
    connections: int
    rate: float
    p50: float
    p99: float
    mean: float
    total: float | None
    errors: int  # of all rounds
    rounds: list[Look]


@dataclass(frozen=True)
class Post:
    """Where bodies go, and with which headers."""

    path: str
    content_type: str
    headers: tuple[tuple[str, str], ...] = ()


FORMS = Post("/classify", CONTENT_TYPE)


def compare(
    artifact: Artifact,
    choice: Choice,
    photographs: Sequence[Path],
    connections: Sequence[int],
    rounds: int,
    seconds: float,
    peers: Sequence[Peer],
    progress: Callable[[Iterable[Any], str], Iterable[Any]],
) -> list[Row]:
    """A row for every server and number of connections."""
    looks: dict[tuple[str, int], list[Look]] = {}
    with ExitStack() as running:
        folder = Path(running.enter_context(tempfile.TemporaryDirectory(prefix="podium-peers-")))
        bodies = [multipart(path) for path in photographs]
        forms = written(bodies, folder, "form")
        if peers is not EMPTY:
            tensors, infer = binary_tensors(artifact, photographs)
            arrays = written(tensors, folder, "tensor")
        turns: list[Peer | None] = [*peers, *[None] * (peers is not EMPTY)]
        for peer in progress(turns * rounds, "in turn"):
            with ExitStack() as turn:
                asks: dict[str, Ask] = {}
                if peer is None:
                    asks[LIMIT] = turn.enter_context(limit(job(artifact, choice, None), photographs))
                else:
                    port = turn.enter_context(server(peer, job(artifact, choice, peer), bodies[0], folder))
                    asks[peer.label] = loader(port, forms)
                    if peer.label == PODIUM and peers is not EMPTY:
                        asks[PODIUM] = with_total(asks[PODIUM], port)
                        asks[TENSORS] = loader(port, arrays, infer)
                for label, ask in asks.items():
                    ask(max(connections), WARMUP_S)
                    for n in connections:
                        looks.setdefault((label, n), []).append(ask(n, seconds))
    plain = {peer.label for peer in peers if not peer.ours}

    def behind(label: str) -> tuple[str | None, str | None, str | None]:
        """The engine behind a server, its precision, and whose pixels it was given."""
        if peers is EMPTY:
            return None, None, None
        engine, pixels = ("onnxruntime", "its own") if label in plain else (choice.engine, "ours")
        return engine, choice.precision, "given" if label == TENSORS else pixels

    def row(label: str, connections: int, rounds: list[Look]) -> Row:
        engine, precision, pixels = behind(label)
        rate, p50, p99, mean = (median(getattr(one, name) for one in rounds) for name in ("rate", "p50", "p99", "mean"))
        total = median(totals) if (totals := [look.total for look in rounds if look.total]) else None
        errors = sum(look.errors for look in rounds)
        return Row(
            label, artifact.network, engine, precision, pixels, connections, rate, p50, p99, mean, total, errors, rounds
        )

    return [row(label, connections, rounds) for (label, connections), rounds in looks.items()]


def job(artifact: Artifact, choice: Choice, peer: Peer | None) -> dict[str, Any]:
    return {
        "folder": str(artifact.folder), "version": artifact.version, "tag": artifact.tag, "engine": choice.engine,
        "precision": choice.precision, "threads": choice.threads, "ours": peer is None or peer.ours,
        "max_batch": peer.max_batch if peer else MAX_BATCH, "delay_s": BATCH_DELAY_S,
    }  # fmt: skip


def multipart(path: Path) -> bytes:
    """The body of a form whose field `image` is the photograph at `path`."""
    kind = {".png": "image/png"}.get(path.suffix.lower(), "image/jpeg")
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="image"; filename="{path.name}"\r\n'
    head += f"Content-Type: {kind}\r\n\r\n"
    return head.encode() + path.read_bytes() + f"\r\n--{BOUNDARY}--\r\n".encode()


def binary_tensors(artifact: Artifact, photographs: Sequence[Path]) -> tuple[list[bytes], Post]:
    """The pixels of every photograph as a request in the Open Inference Protocol's binary form, and where it goes."""
    tensors = []
    for photograph in photographs:
        with Image.open(photograph) as image:
            tensors.append(pixels(image, artifact.preprocess).tobytes())
    described = {"name": "image", "datatype": "UINT8", "shape": [1, *artifact.preprocess.shape]}
    document = {
        "inputs": [described | {"parameters": {"binary_data_size": len(tensors[0])}}],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(document).encode()
    post = Post(
        f"/v2/models/{artifact.network}/infer", "application/octet-stream",
        (("Inference-Header-Content-Length", str(len(head))),),
    )  # fmt: skip
    return [head + tensor for tensor in tensors], post


def written(bodies: Iterable[bytes], folder: Path, kind: str) -> list[Path]:
    """Files that hold `bodies`."""
    files = []
    for index, body in enumerate(bodies):
        files.append(folder / f"{index}.{kind}")
        files[-1].write_bytes(body)
    return files


@contextmanager
def server(peer: Peer, work: dict[str, Any], body: bytes, folder: Path) -> Iterator[int]:
    """`peer` on a port of this machine alone, once it answers; ended after."""
    port = free_port()
    variables = {
        VARIABLE: json.dumps({**work, "port": port}),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PODIUM_MODELS": work["tag"],
        "PODIUM_ENGINE": work["engine"],
        "PODIUM_PRECISION": work["precision"],
        "PODIUM_THREADS": str(work["threads"]),
        "PODIUM_MAX_BATCH": str(MAX_BATCH),
        # A BentoML server empties this folder, which it would otherwise share with any other that runs.
        "PROMETHEUS_MULTIPROC_DIR": str(folder / f"{port}.metrics"),
    }
    running = Server(peer.label, port, peer.command(port), folder / f"{port}.log", variables)

    async def ready() -> bool:
        return bool(await predictions(port, body))

    try:
        asyncio.run(running.until(ready))
        yield port
    finally:
        running.close()


async def predictions(port: int, body: bytes) -> list[dict[str, Any]]:
    """What the server says about one photograph; empty while it gives no good answer."""
    reply = await once(port, post(body, CONTENT_TYPE), 30.0)
    if reply.status != 200:
        return []
    answer = json.loads(reply.body)
    # A batchable method of BentoML takes a list and answers with one.
    predictions: list[dict[str, Any]] = (answer[0] if isinstance(answer, list) else answer)["predictions"]
    return predictions


def client() -> str:
    return "wrk" if shutil.which("wrk") else "benchmarks.load"


def loader(port: int, files: Sequence[Path], to: Post = FORMS) -> Ask:
    """What loads the server at `port` with the bodies in `files`, one after the other."""
    return with_wrk(port, files, to) if client() == "wrk" else with_our_client(port, files, to)


def with_wrk(port: int, files: Sequence[Path], to: Post = FORMS) -> Ask:
    def ask(connections: int, seconds: float) -> Look:
        command = ["wrk", "--threads", "1", "--connections", str(connections), "--timeout", "30s"]
        command += ["--duration", f"{max(1, round(seconds))}s"]
        for name, value in (("Content-Type", to.content_type), *to.headers):
            command += ["--header", f"{name}: {value}"]
        command += ["--script", str(WRK), f"http://127.0.0.1:{port}{to.path}", "--", *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            counted = json.loads(done.stdout.strip().splitlines()[-1])
        except (ValueError, IndexError):
            raise Failure(f"wrk failed: {' '.join((done.stderr or done.stdout).split())[:300]}") from None
        return Look(**counted | {"requests": counted["requests"] - counted["errors"]})

    return ask


def with_our_client(port: int, files: Sequence[Path], to: Post = FORMS) -> Ask:
    requests = [post(file.read_bytes(), to.content_type, to.path, *to.headers) for file in files]

    async def drive(connections: int, seconds: float) -> tuple[list[Done[Reply]], float]:
        pool, turn, began = Pool(port), cycle(requests), time.perf_counter()
        done = await closed_loop(lambda: pool.ask(next(turn)), connections, after(seconds))
        passed = time.perf_counter() - began
        pool.close()
        return done, passed

    def ask(connections: int, seconds: float) -> Look:
        done, passed = asyncio.run(drive(connections, seconds))
        good = [each.latency_ms for each in done if each.answer.status == 200]
        return Look(len(good), passed, *latencies(good), len(done) - len(good))

    return ask


def latencies(values: Sequence[float]) -> tuple[float, float, float]:
    """p50, p99 and mean."""
    if not values:
        return (np.nan,) * 3
    p50, p99 = np.percentile(values, (50, 99))
    return float(p50), float(p99), float(np.mean(values))


def with_total(ask: Ask, port: int) -> Ask:
    """`ask` of Podium at `port`, and what its metrics say that a request took in the meantime."""

    def seconds_and_count() -> tuple[float, float]:
        text = asyncio.run(once(port, get("/metrics"), 30.0)).body.decode()
        took, images = (metric(text, f"podium_stage_seconds_{part}", 'stage="total"') for part in ("sum", "count"))
        return took or 0.0, images or 0.0

    def look(connections: int, seconds: float) -> Look:
        before, earlier = seconds_and_count()
        seen = ask(connections, seconds)
        took, later = seconds_and_count()
        return replace(seen, total=1e3 * (took - before) / (later - earlier) if later > earlier else None)

    return look


@contextmanager
def limit(work: dict[str, Any], photographs: Sequence[Path]) -> Iterator[Ask]:
    """Decode and engine in one process without a server (`benchmarks.peers.limit`)."""
    job = {**work, "photographs": [str(path.resolve()) for path in photographs]}
    with Child("benchmarks.peers.limit", variables={VARIABLE: json.dumps(job)}) as child:

        def ask(connections: int, seconds: float) -> Look:
            answer = child.ask("load", {"connections": connections, "seconds": seconds})
            return Look(len(answer["values"]), answer["seconds"], *latencies(answer["values"]), 0)

        yield ask


def summary(rows: Sequence[Row]) -> str:
    """One line a server: requests per second and latencies by connections, and its rate as a multiple of Podium's."""
    counts = list(dict.fromkeys(row.connections for row in rows))
    by_server: dict[str, dict[int, Row]] = {}
    for row in rows:
        by_server.setdefault(row.server, {})[row.connections] = row
    ours = by_server.get(PODIUM)
    header = ["server", "engine", "pixels"]
    for n in counts:
        header += [f"req/s at {n}", "lowest to highest", "p50 ms", "p99 ms", *["x Podium"] * (ours is not None)]
    lines = []
    for name, by_connections in by_server.items():
        first = next(iter(by_connections.values()))
        line = [name, f"{first.engine} {first.precision}" if first.engine else "none", first.pixels or "none"]
        for n in counts:
            row = by_connections[n]
            rates = [look.rate for look in row.rounds]
            line += [f"{row.rate:.1f}", f"{min(rates):.1f} to {max(rates):.1f}", f"{row.p50:.1f}", f"{row.p99:.1f}"]
            line += [f"{row.rate / ours[n].rate:.2f}"] if ours else []
        lines.append((*line, sum(row.errors for row in by_connections.values())))
    return table(lines, (*header, "errors"), right=range(3, len(header) + 1))


def alone(rows: Sequence[Row]) -> str | None:
    """How long one client waits, beside what the work itself and the service take; None without such rows."""
    by_server = {row.server: row for row in rows if row.connections == 1}
    ours, work = by_server.get(PODIUM), by_server.get(LIMIT)
    if not (ours and work and ours.total):
        return None
    return (
        f"one client alone, means: decoding and engine without a server {work.mean:.2f} ms; {PODIUM} from the body's "
        f"last byte to the answer {ours.total:.2f} ms ({ours.total / work.mean:.2f} x), "
        f"to its client {ours.mean:.2f} ms ({ours.mean / work.mean:.2f} x)"
    )
