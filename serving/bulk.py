"""Classify any number of images into Parquet files. Ray Data spreads the work, and a run can stop and continue
anywhere.

The inputs are cut into numbered parts (`serving.inputs`). A task classifies one part in an actor that holds a warm
engine. Its file gets its name only when it is complete: `part-00000017.parquet` is whole, or is not there. So a task
that runs twice changes nothing, a stopped run continues with the missing parts, and a lost node costs the parts it was
working on. The driver handles only the numbers of parts.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import tempfile
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import numpy as np

from models.console import Bar, Failure, Usage
from models.preprocess import Pixels
from serving import images, inputs, runtime
from serving.artifact import LABELS, Artifact, load
from serving.artifact import MANIFEST as MODEL_MANIFEST
from serving.engines import Scores, likeliest
from serving.errors import OUR_FAULT, InferenceFailed, RequestError
from serving.inputs import Columns, Place
from serving.limits import Limits

if TYPE_CHECKING:
    from pyarrow import Schema, Table

# Files beside the parts. Readers of Parquet folders skip names that begin with an underscore.
MANIFEST, SUMMARY, LIST, MODEL = "_manifest.json", "_summary.json", "_inputs", "_model"

TEMPORARY = ".tmp"

PART_SIZE = 256  # images: about a second on two cores, which is what a lost task costs
BATCH, GPU_BATCH = 16, 64  # images of one engine call
TASKS = 1000  # at most: each costs the driver 50 kB from the start, so with many parts a task does several
TRIES = 3  # rounds for parts whose process or node died, and calls in each round
OBJECT_STORE = 200_000_000  # bytes: only numbers of parts and counts go through it
MOST_FAILED = 10  # parts; after that the others will probably fail too


@dataclass(frozen=True)
class Job:
    """What is classified, and with what. The same arguments continue a run, others are refused."""

    source: str
    model: str
    graph: str  # the sha256 of what runs
    engine: str
    precision: str
    top_k: int
    part_size: int
    image_column: str | None
    id_column: str | None
    max_pixels: int
    image_seconds: float
    max_bytes: int

    @property
    def columns(self) -> Columns:
        return Columns(self.image_column, self.id_column)


@dataclass
class Counts:
    """Images done, and how many of them failed, by the error's code."""

    images: int = 0
    errors: Counter[str] = field(default_factory=Counter)

    def __add__(self, more: Counts) -> Counts:
        return Counts(self.images + more.images, self.errors + more.errors)

    def json(self) -> str:
        return json.dumps({"images": self.images, "errors": dict(sorted(self.errors.items()))})

    @classmethod
    def read(cls, text: str | bytes) -> Counts:
        counts = json.loads(text)
        return cls(counts["images"], Counter(counts["errors"]))


def job(
    artifact: Artifact,
    source: str,
    *,
    engine: str = "auto",
    precision: str = "auto",
    top_k: int | None = None,
    part_size: int = PART_SIZE,
    columns: Columns = inputs.FOUND,
    image: Limits,
    max_bytes: int,
) -> Job:
    """The job, checked. `top_k` None is five, or all classes of a network with fewer."""
    if (engine, precision) not in artifact.graphs():  # else the actors find out whether it runs on their nodes
        engine, precision, _ = runtime.choose(artifact, engine, precision)
    if top_k is None:
        top_k = min(5, artifact.classes)
    if not 1 <= top_k <= artifact.classes:
        raise Usage(f"--top-k {top_k}: {artifact.network} has {artifact.classes} classes, so 1 to {artifact.classes}")
    graph = artifact.graphs()[engine, precision]
    artifact.file(graph)
    return Job(
        inputs.without_secret(inputs.absolute(source)),
        artifact.tag, artifact.manifest["files"][graph]["sha256"], engine, precision, top_k, part_size,
        *columns, image.pixels, image.seconds, max_bytes,
    )  # fmt: skip


# --- the folder of a run ----------------------------------------------------------------------------------------------


def prepare(
    wanted: Job, artifact: Artifact, source: str, out: Place, progress: Callable[[int], None]
) -> dict[str, Any]:
    """The manifest of the run in `out`, begun now or before, with how many parts and images there are.

    Raises `Usage` if `out` holds another run or something else.
    """
    if (found := _read_json(out / MANIFEST)) is not None:
        differ = [(key, found.get(key), value) for key, value in asdict(wanted).items() if found.get(key) != value]
        if differ:
            what = "; ".join(f"{key} was {was}, now {now}" for key, was, now in differ)
            raise Usage(f"{out} holds another run: {what}. Continue with the same arguments, or give another --out")
        return found
    if alien := sorted(name for name, _ in _names(out) if not name.startswith(("_", "."))):
        raise Usage(f"{out} is not empty ({alien[0]} is there) and holds no run; give another --out")
    count, images_ = inputs.write_list(
        inputs.parts(inputs.source(source), wanted.part_size, wanted.columns), out / LIST, progress
    )
    if not count:
        raise Usage(
            f"{wanted.source} has no images; a folder is searched for {', '.join(inputs.SUFFIXES)} and .parquet"
        )
    # The nodes take the model from here, not from their own stores.
    graph = artifact.graphs()[wanted.engine, wanted.precision]
    (out / MODEL).files.create_dir((out / MODEL).path)
    for name in (MODEL_MANIFEST, LABELS, graph):
        _copy(artifact.folder / name, out / MODEL / name)
    # Written last: a run with a manifest has its whole list.
    manifest = {"schema": 1, **asdict(wanted), "parts": count, "images": images_}
    write(out / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def done(out: Place) -> tuple[set[int], Counts]:
    """The parts that exist, and their counts together."""

    def look(name: str) -> tuple[int, Counts] | None:
        try:
            return int(name[5:-8]), _counts(out / name)
        except (OSError, ValueError, KeyError, TypeError):  # power that fails can leave a torn file; it is done again
            return None

    names = [name for name, size in _names(out) if size and name.startswith("part-") and name.endswith(".parquet")]
    there, counts = set[int](), Counts()
    with ThreadPoolExecutor(8) as pool:
        for start in range(0, len(names), 1000):
            for part, more in filter(None, pool.map(look, names[start : start + 1000])):
                there.add(part)
                counts += more
    return there, counts


def part_name(part: int) -> str:
    return f"part-{part:08}.parquet"


def write(target: Place, data: bytes) -> None:
    """Write `data` to `target`, completely or not at all."""
    temporary = target._replace(path=f"{os.path.dirname(target.path)}/_{uuid4().hex}{TEMPORARY}")  # noqa: PTH120
    with temporary.files.open_output_stream(temporary.path) as file:
        file.write(data)
    temporary.files.move(temporary.path, target.path)


def _copy(path: Path, target: Place) -> None:
    with path.open("rb") as read, target.files.open_output_stream(target.path) as file:
        while chunk := read.read(1 << 20):
            file.write(chunk)


def _names(folder: Place) -> list[tuple[str, int]]:
    from pyarrow.fs import FileSelector

    found = folder.files.get_file_info(FileSelector(folder.path, allow_not_found=True))
    return [(info.base_name, info.size or 0) for info in found]


def _read_json(file: Place) -> dict[str, Any] | None:
    try:
        with file.files.open_input_stream(file.path) as opened:
            found: dict[str, Any] = json.loads(opened.read())
    except FileNotFoundError:
        return None
    return found


def _counts(part: Place) -> Counts:
    from pyarrow.parquet import read_metadata

    return Counts.read(read_metadata(part.path, filesystem=part.files).metadata[b"podium"])


def schema() -> Schema:
    """The schema of a part: a row per input, in the list's order. Either the error's two columns are null, or the
    others.
    """
    import pyarrow as pa

    return pa.schema(
        [
            pa.field("path", pa.string(), nullable=False),
            ("class_ids", pa.list_(pa.int32())),
            ("labels", pa.list_(pa.string())),
            ("synsets", pa.list_(pa.string())),
            ("probabilities", pa.list_(pa.float32())),
            ("error_code", pa.string()),
            ("error_message", pa.string()),
        ]
    )


# --- the work ---------------------------------------------------------------------------------------------------------


class Classifier:
    """A warm engine, and `threads` that decode for it. With one thread, the caller's own decodes and runs in turn."""

    def __init__(self, artifact: Artifact, job: Job, cores: int, threads: int) -> None:
        self.job, self.recipe = job, artifact.preprocess
        self.labels = [label.label for label in artifact.labels]
        self.synsets = [label.synset for label in artifact.labels]
        largest = GPU_BATCH if job.engine in runtime.GPU_ENGINES else BATCH
        self.batch = min(largest, int(artifact.manifest.get("max_batch", largest)))
        self.ahead = 2 * self.batch + threads  # images decoded or being decoded: what a part holds in memory
        self.engine = runtime.open(artifact, job.engine, job.precision, cores)
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="decode") if threads > 1 else None
        self.engine.run(np.zeros((self.batch, *self.recipe.shape), np.uint8))

    def table(self, found: Iterable[tuple[str, inputs.Load]]) -> tuple[Table, Counts]:
        """A row for every image, in order."""
        import pyarrow as pa

        rows: list[dict[str, Any]] = []
        waiting: list[tuple[dict[str, Any], Pixels]] = []
        for name, pixels in self._decoded(found):
            row: dict[str, Any] = {"path": name}
            rows.append(row)
            try:
                waiting.append((row, pixels()))
            except RequestError as error:
                row |= {"error_code": error.code, "error_message": str(error)}
            except Exception as error:  # a defect of ours, on this image
                row |= {"error_code": RequestError.code, "error_message": f"{type(error).__name__}: {error}"}
            if len(waiting) == self.batch:
                self._answer(waiting)
                waiting = []
        if waiting:
            self._answer(waiting)
        counts = Counts(len(rows), Counter(row["error_code"] for row in rows if "error_code" in row))
        return pa.Table.from_pylist(rows, schema().with_metadata({"podium": counts.json()})), counts

    def _decoded(self, found: Iterable[tuple[str, inputs.Load]]) -> Iterator[tuple[str, Callable[[], Pixels]]]:
        """The name of every image and a function that gives its pixels, in order. Threads decode the next ones
        meanwhile.
        """
        if self.pool is None:
            yield from ((name, partial(self._decode, read)) for name, read in found)
            return
        ahead: deque[tuple[str, Callable[[], Pixels]]] = deque()
        for name, read in found:
            ahead.append((name, self.pool.submit(self._decode, read).result))
            if len(ahead) == self.ahead:
                yield ahead.popleft()
        yield from ahead

    def _decode(self, load: inputs.Load) -> Pixels:
        return images.decode(load(), self.recipe, Limits(self.job.max_pixels, self.job.image_seconds))

    def _answer(self, waiting: list[tuple[dict[str, Any], Pixels]]) -> None:
        """Run one batch and fill its rows with what the service would answer."""
        batch = self.engine.run(np.stack([pixels for _, pixels in waiting]))
        for (row, _), scores in zip(waiting, batch, strict=True):
            row |= self._predictions(scores)

    def _predictions(self, scores: Scores) -> Mapping[str, Any]:
        if not np.isfinite(scores).all():
            return {"error_code": InferenceFailed.code, "error_message": OUR_FAULT}
        classes = likeliest(scores, self.job.top_k)
        return {
            "class_ids": classes,
            "labels": [self.labels[i] for i in classes],
            "synsets": [self.synsets[i] for i in classes],
            "probabilities": scores[classes],
        }


class Worker:
    """Ray Data's part of every actor: a `Classifier` for the model in the run's folder."""

    def __init__(self, job: Job, source: str, out: str, cores: int) -> None:
        from pyarrow.fs import FileType

        self.job, self.out, self.base = job, inputs.place(out), inputs.source(source).base
        if self.base.files.get_file_info(self.base.path).type is FileType.NotFound:
            raise Failure(f"{self.base} does not exist on {os.uname().nodename}; every node must see it, and {out} too")
        # Object storage takes tens of milliseconds, in which a thread only waits, so more threads are used.
        self.classifier = Classifier(self._artifact(), job, cores, cores if self.base.local else 8 * cores)

    def _artifact(self) -> Artifact:
        folder = self.out / MODEL
        if folder.local:
            artifact = load(Path(folder.path))
        else:
            from pyarrow.fs import LocalFileSystem, copy_files

            here = tempfile.mkdtemp(prefix="podium-bulk-")
            copy_files(folder.path, here, folder.files, LocalFileSystem())
            artifact = load(Path(here))
        return Artifact(artifact.folder, artifact.manifest, self.job.model.partition(":")[2])

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """The parts with the numbers in the column `part`: their counts, or why one failed."""
        outcomes = [(int(part), *self._outcome(int(part))) for part in batch["part"]]
        return dict(zip(("part", "counts", "failed"), map(list, zip(*outcomes, strict=True)), strict=True))

    def _outcome(self, part: int) -> tuple[str, str]:
        try:
            return self._part(part).json(), ""
        except Exception as error:  # the other parts go on, and the driver reports it
            return Counts().json(), f"{type(error).__name__}: {error}"

    def _part(self, part: int) -> Counts:
        import pyarrow as pa
        from pyarrow import parquet

        target = self.out / part_name(part)
        try:
            return _counts(target)  # a lost node had finished this part
        except OSError:
            entries = inputs.read_list(self.out / LIST, part)
        table, counts = self.classifier.table(inputs.images(self.base, entries, self.job.columns, self.job.max_bytes))
        listed = sum(entry.images for entry in entries)
        if counts.images != listed:
            raise Failure(f"{counts.images} images were read and {listed} were listed: the source has changed")
        buffer = pa.BufferOutputStream()
        parquet.write_table(table, buffer, compression="zstd")
        write(target, buffer.getvalue())
        return counts


# --- the driver -------------------------------------------------------------------------------------------------------


@contextmanager
def ray_cluster(address: str | None) -> Iterator[None]:
    """A connection to the cluster at `address`, else to a Ray that is started on this machine and ended afterwards."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise Failure(f"bulk runs on Ray Data: pip install 'podium[bulk]' ({error})") from error
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        with _muted():
            if address:
                _check_reachable(address)
                ray.init(address=address, **quiet)
            else:
                ray.init(
                    address="local", num_cpus=runtime.cores(), _node_ip_address="127.0.0.1", include_dashboard=False,
                    object_store_memory=OBJECT_STORE, **quiet,
                )  # fmt: skip
    except (OSError, RuntimeError, ValueError) as error:
        where = f"there is no Ray cluster at {address}" if address else "Ray does not start here"
        raise Failure(f"{where}: {error}") from error
    # When a node is lost, Ray prints dozens of lines to our standard output.
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere):
        try:
            yield
        finally:
            ray.shutdown()


def _check_reachable(address: str) -> None:
    """Raises `OSError` if nothing listens there. Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if "/" not in host and port.isdecimal():
        socket.create_connection((host, int(port)), timeout=10).close()


@contextmanager
def _muted() -> Iterator[None]:
    """Hide what Ray's core writes to stderr without Python. Failures are still raised."""
    kept = os.dup(2)
    try:
        with Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), 2)
            yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def actors(nodes: Iterable[Mapping[str, float]], gpu: bool, cores: int = 0) -> tuple[int, int]:
    """(how many actors, cores of each) for nodes with these resources. `cores` 0 is one, or a GPU's share of its node.

    One core per actor was fastest (docs/bulk.md). With more cores, fewer copies of the weights are in memory.
    """
    able = [(int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes]
    able = [(cpus, gpus) for cpus, gpus in able if cpus >= max(1, gpus if gpu else 1) and (gpus or not gpu)]
    if not able:
        raise Failure(f"the cluster has no node with {'a GPU' if gpu else 'a processor'} to work on")
    cores = cores or (min(cpus // gpus for cpus, gpus in able) if gpu else 1)
    count = sum(min(cpus // cores, gpus) if gpu else cpus // cores for cpus, gpus in able)
    if not count:
        raise Failure(f"--cores {cores}: no node has so many; the largest has {max(cpus for cpus, _ in able)}")
    return count, cores


def run(
    job: Job, source: str, out: str, todo: Sequence[int], count: int, cores: int, in_hand: int
) -> Iterator[tuple[int, Counts | str]]:
    """Every part of `todo` when it is done, with its counts or why it failed, by `count` actors of `cores` cores.

    An actor has `in_hand` tasks at a time. If its process or node is lost, these do not come back. Ray must be
    connected.
    """
    import pyarrow as pa
    import ray
    from ray.data import ActorPoolStrategy, DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = context.print_on_execution_start = False
    context.max_errored_blocks = -1  # a part that fails does not stop the others
    tasks = np.array_split(np.asarray(todo, np.int64), min(TASKS, len(todo)))
    # Not `from_arrow`, which starts tasks that look at the tables, and waits for them.
    parts = ray.data.from_blocks([pa.table({"part": task}) for task in tasks])
    with warnings.catch_warnings():
        # Ray 2.64 removes `ray_remote_args_fn`. Before that, nothing else bounds the retries of a task.
        warnings.simplefilter("ignore")
        outcomes = parts.map_batches(
            Worker,
            fn_constructor_args=(job, source, out, cores),
            batch_size=None,
            num_cpus=cores,
            num_gpus=int(job.engine in runtime.GPU_ENGINES),
            # No largest size, so that a node which joins is used.
            compute=ActorPoolStrategy(
                min_size=1, initial_size=min(count, len(tasks)), max_tasks_in_flight_per_actor=in_hand
            ),
            ray_remote_args_fn=lambda: {"max_task_retries": TRIES - 1},
        )
    try:
        for row in outcomes.iter_rows():
            yield row["part"], row["failed"] or Counts.read(row["counts"])
    except ray.exceptions.RayError as error:
        # Ray's traceback comes before this line.
        reason = [line.strip() for line in str(error).splitlines() if line.strip()][-1:]
        raise Failure(f"the run stopped: {''.join(reason)}; the same command continues from here") from error


def classify(
    wanted: Job, artifact: Artifact, source: str, out: str, *, address: str | None = None, cores: int = 0
) -> dict[str, Any]:
    """Do the job `wanted` in `out`, or continue it. Returns the summary, which is in `out` too.

    Raises `Failure` if parts failed, when all others are done.
    """
    source, out = inputs.absolute(source), inputs.absolute(out)
    folder = inputs.place(out)
    with Bar("listing") as bar:
        manifest = prepare(wanted, artifact, source, folder, lambda images: bar.describe(f"{images:,} images listed"))
    finished, before = done(folder)
    left, now, failed = set(range(manifest["parts"])) - finished, Counts(), dict[int, str]()
    seconds, shape = 0.0, (0, 0)
    if left:
        with ray_cluster(address), Bar("classifying", len(left)) as bar:
            import ray

            began = time.perf_counter()
            for attempt in range(TRIES):
                nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
                shape = actors(nodes, wanted.engine in runtime.GPU_ENGINES, cores)
                # Two tasks in hand, so that an actor never waits for the driver. In later rounds one, because a part
                # that ends its process takes the other task with it.
                for part, outcome in run(wanted, source, out, sorted(left), *shape, in_hand=1 if attempt else 2):
                    left.discard(part)
                    bar.advance()
                    if isinstance(outcome, str):
                        failed[part] = outcome
                        if len(failed) == MOST_FAILED:
                            break
                    else:
                        now += outcome
                        seconds = time.perf_counter() - began
                        said = f"{before.images + now.images:,} of {manifest['images']:,} images"
                        bar.describe(f"{said}, {now.images / seconds:,.0f} images/s")
                if not left or len(failed) == MOST_FAILED:
                    break
                print(f"{len(left)} parts were lost with their process or node", file=sys.stderr)
    if len(failed) < MOST_FAILED:
        failed |= dict.fromkeys(left, "its process or node died every time")
    if failed:
        part = min(failed)
        raise Failure(
            f"{len(failed)} of {manifest['parts']} parts failed, {part_name(part)} because {failed[part]}; "
            "the same command tries them again"
        )
    total = before + now
    if total.images != manifest["images"]:
        raise Failure(f"{out} has {total.images} rows for {manifest['images']} images: it was changed from outside")
    summary = {
        "schema": 1, "model": wanted.model, "engine": wanted.engine, "precision": wanted.precision,
        "images": total.images, "parts": manifest["parts"], "errors": dict(sorted(total.errors.items())),
        "this_run": {
            "images": now.images, "seconds": round(seconds, 3),
            "images_per_second": round(now.images / seconds, 1) if seconds else None,
            "actors": shape[0], "cores_per_actor": shape[1],
            "driver_peak_mb": peak_mb(),
        },
    }  # fmt: skip
    write(folder / SUMMARY, json.dumps(summary, indent=1).encode())
    for name, _ in _names(folder):
        if name.endswith(TEMPORARY):  # left by processes that were killed while they wrote
            folder.files.delete_file((folder / name).path)
    return summary


def peak_mb() -> int | None:
    """The most memory that this process has held, in MB; None if the system does not say.

    Not `getrusage`, which counts the memory of the parent that started the process.
    """
    with suppress(OSError, ValueError, StopIteration):
        status = Path("/proc/self/status").read_text("ascii", "replace").splitlines()
        return round(int(next(line for line in status if line.startswith("VmHWM")).split()[1]) * 1024 / 1e6)
    return None
