"""Podium and its peers side by side: started, warmed, loaded and ended in turn, round after round, so that each has the
machine to itself, as it has in use, and a slow spell of the machine strikes all alike.

The load is a closed loop of multipart requests with photographs, from `wrk` where it is installed, else from our own
client, which takes more of the processor it shares with the servers. Podium has a second turn, with the pixels
themselves through the Open Inference Protocol. Figures are medians over the rounds.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.load.drive import Outcome, closed_loop
from benchmarks.load.wire import metric
from benchmarks.peers.work import VARIABLE
from benchmarks.process import ROOT, Child, end, free_port
from models.console import Failure, table
from models.preprocess import pixels
from serving.artifact import Artifact
from serving.runtime import Choice

BOUNDARY = "podium-side-by-side"
CONTENT_TYPE = f"multipart/form-data; boundary={BOUNDARY}"

MAX_BATCH = 8
BATCH_DELAY_S = 0.005  # LitServe waits that long for a batch to fill; at 0 it forms none
READY_WITHIN_S = 120.0
WARMUP_S = 2.0
WRK = Path(__file__).with_name("wrk.lua")

PODIUM, TENSORS, LIMIT = "Podium", "Podium, uint8 tensors", "no server"


@dataclass(frozen=True)
class Peer:
    """A server: what starts it, the package it needs, the extra that has it; whether pixels and engine are ours."""

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
        return (
            None
            if find_spec(self.package)
            else f"{self.name}: {self.package} is not installed; pip install 'podium[{self.extra}]'"
        )

    def command(self, port: int) -> list[str]:
        if self.package == "bentoml":
            bentoml = str(Path(sys.executable).with_name("bentoml"))
            return [bentoml, "serve", self.program, "--host", "127.0.0.1", "--port", str(port)]
        return [sys.executable, "-m", self.program]


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
# The same way through without decoding and without an engine: what the servers themselves cost.
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
class Post:
    """Where bodies go, and with which headers."""

    path: str
    headers: dict[str, str]


FORMS = Post("/classify", {"Content-Type": CONTENT_TYPE})


def compare(
    artifact: Artifact,
    choice: Choice,
    photographs: Sequence[Path],
    connections: Sequence[int],
    rounds: int,
    seconds: float,
    peers: Sequence[Peer],
    progress: Callable[[Iterable[Any], str], Iterable[Any]],
) -> list[dict[str, Any]]:
    """A row for every server and number of connections, with the look of every round."""
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
                    url = turn.enter_context(server(peer, job(artifact, choice, peer), bodies[0], folder))
                    asks[peer.label] = loader(url, forms)
                    if peer.label == PODIUM and peers is not EMPTY:
                        asks[PODIUM] = with_total(asks[PODIUM], url)
                        asks[TENSORS] = loader(url, arrays, infer)
                for label, ask in asks.items():
                    ask(max(connections), WARMUP_S)
                    for n in connections:
                        looks.setdefault((label, n), []).append(ask(n, seconds))
    own = {peer.label for peer in peers if not peer.ours}

    def behind(label: str) -> dict[str, str | None]:
        """The engine behind a server, and whose pixels it was given."""
        if peers is EMPTY:
            return {"engine": None, "precision": None, "pixels": None}
        engine, pixels = ("onnxruntime", "its own") if label in own else (choice.engine, "ours")
        return {"engine": engine, "precision": choice.precision, "pixels": "given" if label == TENSORS else pixels}

    return [
        {
            "server": label,
            "network": artifact.network,
            **behind(label),
            "connections": n,
            **{
                name: statistics.median(getattr(look, name) for look in found)
                for name in ("rate", "p50", "p99", "mean")
            },
            "total": statistics.median(totals) if (totals := [o.total for o in found if o.total]) else None,
            "errors": sum(look.errors for look in found),
            "rounds": [asdict(look) for look in found],
        }
        for (label, n), found in looks.items()
    ]


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
    found = []
    for photograph in photographs:
        with Image.open(photograph) as image:
            found.append(pixels(image, artifact.preprocess).tobytes())
    tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *artifact.preprocess.shape]}
    said = {
        "inputs": [tensor | {"parameters": {"binary_data_size": len(found[0])}}],
        "outputs": [{"name": "probabilities", "parameters": {"binary_data": True}}],
    }
    head = json.dumps(said).encode()
    headers = {"Content-Type": "application/octet-stream", "Inference-Header-Content-Length": str(len(head))}
    return [head + tensor for tensor in found], Post(f"/v2/models/{artifact.network}/infer", headers)


def written(bodies: Iterable[bytes], folder: Path, kind: str) -> list[Path]:
    """Files that hold `bodies`."""
    files = []
    for index, body in enumerate(bodies):
        files.append(folder / f"{index}.{kind}")
        files[-1].write_bytes(body)
    return files


@contextmanager
def server(peer: Peer, work: dict[str, Any], body: bytes, folder: Path) -> Iterator[str]:
    """`peer` on a free port of this machine alone: its address, once it answers. Ended by its process id."""
    port = free_port()
    log = folder / f"{port}.log"
    environment = {
        **os.environ,
        VARIABLE: json.dumps({**work, "port": port}),
        "BENTOML_DO_NOT_TRACK": "True",
        "RAY_USAGE_STATS_ENABLED": "0",
        "PODIUM_MODELS": work["tag"],
        "PODIUM_ENGINE": work["engine"],
        "PODIUM_PRECISION": work["precision"],
        "PODIUM_THREADS": str(work["threads"]),
        "PODIUM_MAX_BATCH": str(MAX_BATCH),
        "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH")))),
        # A BentoML server empties this folder, which otherwise it shares with any the user may run.
        "PROMETHEUS_MULTIPROC_DIR": str(folder / f"{port}.metrics"),
    }
    with log.open("w") as output:
        process = subprocess.Popen(
            peer.command(port), cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT,
            start_new_session=True,  # its children are ended with it
        )  # fmt: skip
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + READY_WITHIN_S
        while predictions(url, body) is None:
            if process.poll() is not None or time.monotonic() > deadline:
                last = (log.read_text("utf-8", "replace").strip().splitlines() or ["no message"])[-1]
                raise Failure(f"{peer.label} did not start: {last}")
            time.sleep(0.1)
        yield url
    finally:
        end(process)


def predictions(url: str, body: bytes) -> list[dict[str, Any]] | None:
    """What the server at `url` says of one photograph; None while it does not answer well."""
    request = urllib.request.Request(f"{url}/classify", data=body, headers={"Content-Type": CONTENT_TYPE})  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=30) as response:  # noqa: S310
            answer = json.load(response)
    except (OSError, ValueError):
        return None
    # A batchable method of BentoML takes a list and answers with one.
    found: list[dict[str, Any]] = (answer[0] if isinstance(answer, list) else answer)["predictions"]
    return found


def client() -> str:
    return "wrk" if shutil.which("wrk") else "benchmarks.load"


def loader(url: str, files: Sequence[Path], post: Post = FORMS) -> Ask:
    """What loads the server at `url` with the bodies in `files`, one after the other."""
    return with_wrk(url, files, post) if client() == "wrk" else with_our_client(url, files, post)


def with_wrk(url: str, files: Sequence[Path], post: Post = FORMS) -> Ask:
    def ask(connections: int, seconds: float) -> Look:
        command = [
            "wrk",
            "--threads",
            "1",
            "--connections",
            str(connections),
            "--duration",
            f"{max(1, round(seconds))}s",
        ]
        for name, value in post.headers.items():
            command += ["--header", f"{name}: {value}"]
        command += ["--timeout", "30s", "--script", str(WRK), f"{url}{post.path}", "--", *map(str, files)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        try:
            found = json.loads(done.stdout.strip().splitlines()[-1])
        except (ValueError, IndexError):
            raise Failure(f"wrk failed: {' '.join((done.stderr or done.stdout).split())[:300]}") from None
        return Look(**found | {"requests": found["requests"] - found["errors"]})

    return ask


def with_our_client(url: str, files: Sequence[Path], post: Post = FORMS) -> Ask:
    import aiohttp

    bodies = [file.read_bytes() for file in files]

    async def drive(connections: int, seconds: float) -> tuple[list[Outcome], float]:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
            sent = 0

            async def send() -> Outcome:
                nonlocal sent
                body, began = bodies[sent % len(bodies)], time.perf_counter()
                sent += 1
                status: int | str
                try:
                    async with session.post(f"{url}{post.path}", data=body, headers=post.headers) as response:
                        await response.read()
                        status = response.status
                except aiohttp.ClientError as error:
                    status = type(error).__name__
                return Outcome(status, 1e3 * (time.perf_counter() - began), 0.0)

            began = time.perf_counter()
            return await closed_loop(send, connections, seconds), time.perf_counter() - began

    def ask(connections: int, seconds: float) -> Look:
        outcomes, passed = asyncio.run(drive(connections, seconds))
        good = [o.latency for o in outcomes if o.status == 200]
        return Look(len(good), passed, *latencies(good), len(outcomes) - len(good))

    return ask


def latencies(values: Sequence[float]) -> tuple[float, float, float]:
    """p50, p99 and mean."""
    if not values:
        return (np.nan,) * 3
    p50, p99 = np.percentile(values, (50, 99))
    return float(p50), float(p99), float(np.mean(values))


def with_total(ask: Ask, url: str) -> Ask:
    """`ask` of Podium at `url`, and what its metrics say that a request took in the meantime."""

    def seconds_and_count() -> tuple[float, float]:
        with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:  # noqa: S310
            text = response.read().decode()
        took, images = (metric(text, f"podium_stage_seconds_{part}", 'stage="total"') for part in ("sum", "count"))
        return took or 0.0, images or 0.0

    def look(connections: int, seconds: float) -> Look:
        before, earlier = seconds_and_count()
        found = ask(connections, seconds)
        after, later = seconds_and_count()
        return replace(found, total=1e3 * (after - before) / (later - earlier) if later > earlier else None)

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


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """One line a server: requests per second and latencies by connections, and how many times its rate Podium's is."""
    counts = list(dict.fromkeys(row["connections"] for row in rows))
    by_server: dict[str, dict[int, dict[str, Any]]] = {}
    for row in rows:
        by_server.setdefault(row["server"], {})[row["connections"]] = row
    ours = by_server.get(PODIUM)
    header = ["server", "engine", "pixels"]
    for n in counts:
        header += [f"req/s at {n}", "lowest to highest", "p50 ms", "p99 ms", *["x Podium"] * (ours is not None)]
    lines = []
    for name, found in by_server.items():
        first = next(iter(found.values()))
        line = [
            name,
            f"{first['engine']} {first['precision']}" if first["engine"] else "none",
            first["pixels"] or "none",
        ]
        for n in counts:
            row = found[n]
            rates = [look["requests"] / look["seconds"] for look in row["rounds"]]
            line += [f"{row['rate']:.1f}", f"{min(rates):.1f} to {max(rates):.1f}"]
            line += [f"{row['p50']:.1f}", f"{row['p99']:.1f}"]
            line += [f"{row['rate'] / ours[n]['rate']:.2f}"] if ours else []
        lines.append((*line, sum(row["errors"] for row in found.values())))
    return table(lines, (*header, "errors"), right=range(3, len(header) + 1))


def alone(rows: Sequence[dict[str, Any]]) -> str | None:
    """What the work itself takes, and one client waits, in the service and in all; None without such rows."""
    found = {row["server"]: row for row in rows if row["connections"] == 1}
    if not (PODIUM in found and LIMIT in found and found[PODIUM]["total"]):
        return None
    ours, work = found[PODIUM], found[LIMIT]["mean"]
    return (
        f"one client alone, means: decoding and engine without a server {work:.2f} ms; {PODIUM} from the body's "
        f"last byte to the answer {ours['total']:.2f} ms ({ours['total'] / work:.2f} x), "
        f"to its client {ours['mean']:.2f} ms ({ours['mean'] / work:.2f} x)"
    )
