"""One cell of the comparison: a network in an engine at a precision and a batch, timed, weighed and metered.

Each pass runs in a fresh process (`benchmarks/engine/child.py`), so that none disturbs another. Meanwhile the parent
sleeps in a blocking call. What is timed is `Runtime.run` as a caller sees it: from one batch of uint8 pixels in memory
to its probabilities in memory, on one stream, one call after another (MLPerf-style SingleStream at batch 1, Offline
above). It does not include decoding.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, cast

from benchmarks import intervals, records
from benchmarks.engine.passes import CellJob, Latency, PassJob, ScenarioJob, Settings
from benchmarks.engine.power import SensorError, sensor_for
from benchmarks.engine.session import MemoryEnded
from benchmarks.process import Child, PassError
from benchmarks.records import Failed, ScenarioName
from models import SPECS
from serving.artifact import Artifact
from serving.runtime import available, choose

# Full: three starts, because two processes of one network differ by more than the calls of one process.
# Brief: the same with less time, so that two cores measure sixty cells in less than a quarter of an hour.
# Quick: one short start for a demonstration; its intervals are wide.
FULL = Settings("full", 3, 3.0, 3.0, 8.0, 30, 3, 3000, idle_s=10.0, window_s=5.0, trials=3)
BRIEF = Settings("brief", 3, 1.0, 1.0, 2.0, 20, 2, 3000, idle_s=10.0, window_s=5.0, trials=1)
QUICK = Settings("quick", 1, 0.5, 0.6, 2.0, 10, 3, 1000, idle_s=2.0, window_s=5.0, trials=1)


# A child that has not answered by then hangs: engines need minutes to compile the largest networks, not more.
PATIENCE_S = 900.0


@dataclass(frozen=True)
class Cell:
    artifact: Artifact
    engine: str
    precision: str
    batch: int | None  # None in a scenario, which has its own
    scenario: ScenarioSpec | None = None


@dataclass(frozen=True)
class ScenarioSpec:
    """A scenario in place of a batch; `slo_ms` bounds the 99th percentile of the server scenario."""

    name: ScenarioName
    slo_ms: float

    @property
    def title(self) -> str:
        return f"MLPerf-style {self.name}" + f", p99 within {self.slo_ms:g} ms" * (self.name == "server")


def cells(
    artifacts: Sequence[Artifact],
    engines: Sequence[str] | None,
    precisions: Sequence[str] | None,
    batches: Sequence[int],
    *,
    first_only: bool = False,
    scenarios: Sequence[ScenarioSpec] = (),
) -> list[Cell]:
    """Every cell to measure. Batches rise, so that a network that runs out of memory can stop there.

    If `engines` or `precisions` is None, all are taken that the artifact has and this machine can run. `first_only`
    takes of those the one that serving would choose. If there are `scenarios`, they take the place of batches.
    """
    wanted = []
    installed = available()
    for artifact in artifacts:
        pairs = [
            (engine, precision)
            for engine, precision in artifact.graphs()
            if engine in installed
            and (engines is None or engine in engines)
            and (precisions is None or precision in precisions)
        ]
        if first_only and pairs:
            best = choose(artifact)
            pairs = [pair for pair in pairs if pair == (best.engine, best.precision)] or pairs[:1]
        for pair in pairs:
            if scenarios:
                wanted += [Cell(artifact, *pair, None, scenario) for scenario in scenarios]
            else:
                wanted += [Cell(artifact, *pair, batch) for batch in sorted(set(batches))]
    return wanted


Measured = records.Cell | records.Scenario


def measure_all(
    wanted: Sequence[Cell], settings: Settings, threads: int, seen: Set[object] = frozenset()
) -> Iterator[Measured]:
    """A record for every cell, in order, as each is finished; those whose keys are in `seen` are left out.

    After a cell that ran out of memory, the larger batches of the same graph are recorded as failed without a try.
    """
    memory = MemoryEnded()
    for cell in wanted:
        item = describe(cell, threads, settings)
        if records.key(item) in seen:
            continue
        graph = (cell.artifact.tag, cell.engine, cell.precision)
        try:
            memory.check(graph, cell.batch)
            measure(cell, item, settings, threads)
        except PassError as error:
            records.fail(item, error.failed)
            memory.note(graph, cell.batch, error.failed)
        yield item


def describe(cell: Cell, threads: int, settings: Settings) -> Measured:
    """The record of `cell` before anything is measured: what it is, from the manifest and the networks' table."""
    manifest = cell.artifact.manifest
    row = SPECS.get(cell.artifact.architecture or "")
    top1, top5, source = accuracy(cell.artifact)
    known = {
        **records.unmeasured(Failed("cut_off", "not measured")),
        "network": cell.artifact.network,
        "version": cell.artifact.version,
        "family": manifest.get("family"),
        "year": manifest.get("year"),
        "classes": cell.artifact.classes,
        "input": manifest["input"]["crop"],
        "engine": cell.engine,
        "precision": cell.precision,
        "threads": threads,
        "settings": settings.name,
        "weights": cell.artifact.weights,
        "macs": row.macs if row else manifest.get("macs"),
        # What runs: auxiliary heads are parameters of the checkpoint and not of the exported graph.
        "params": row.params - row.training_only if row else manifest.get("params"),
        "top1": top1,
        "top5": top5,
        "accuracy_source": source,
    }
    if cell.scenario is not None:
        title = cell.scenario.title
        named = {"kind": "scenario", "name": cell.scenario.name, "batch": None, "scenario": title}
        return cast(records.Scenario, {**named, **known})
    return cast(records.Cell, {"kind": "cell", "batch": cell.batch, "scenario": None, **known})


def accuracy(artifact: Artifact) -> tuple[float | None, float | None, str | None]:
    """Top-1 and top-5 accuracy in percent, and where they come from.

    Untrained weights have no accuracy of their own. The published one is given, and its source says so.
    """
    row = SPECS.get(artifact.architecture or "")
    note = " (weights here are untrained)" if artifact.weights == "untrained" else ""
    if row and row.checkpoint and row.checkpoint.top1 is not None and artifact.weights != "custom":
        return float(row.checkpoint.top1), optional(row.checkpoint.top5), "published" + note
    published = artifact.manifest.get("published")
    if published and artifact.weights != "custom" and published.get("top5_error") is not None:
        top1 = published.get("top1_error")
        return (
            None if top1 is None else round(100 - top1, 4),
            round(100 - published["top5_error"], 4),
            f"published, {published['protocol']}{note}",
        )
    return None, None, None


def optional(value: float | None) -> float | None:
    return None if value is None else float(value)


def measure(cell: Cell, item: Measured, settings: Settings, threads: int) -> None:
    """The passes of one cell into its record; `PassError` if one fails, and `item` keeps what was measured before."""
    common: PassJob = {
        "folder": str(cell.artifact.folder),
        "version": cell.artifact.version,
        "engine": cell.engine,
        "precision": cell.precision,
        "threads": threads,
        "settings": asdict(settings),
    }
    if item["kind"] == "scenario":
        assert cell.scenario is not None
        in_scenario(cell.scenario, item, common, cell.artifact.manifest.get("max_batch", 64))
        return
    job: CellJob = {**common, "batch": item["batch"]}
    starts: list[Latency] = [in_child("latency", job) for _ in range(settings.starts)]
    images = item["batch"] * sum(len(start["values"]) for start in starts)
    latency = intervals.latency([start["values"] for start in starts])
    item["latency_ms"] = {**latency, "warm": all(start["warm"] for start in starts)}
    item["throughput_img_s"] = images / sum(start["wall_s"] for start in starts)
    item["cpu_seconds_per_image"] = sum(start["cpu_s"] for start in starts) / images
    item["memory_mb"] = in_child("memory", job)
    item["power"] = power(job)
    item["status"], item["failure"] = "ok", None


def in_scenario(spec: ScenarioSpec, item: records.Scenario, common: PassJob, max_batch: int) -> None:
    from benchmarks.engine import scenarios

    job: ScenarioJob = {**common, "scenario": spec.name, "slo_ms": spec.slo_ms, "max_batch": max_batch}
    scenarios.fill(item, in_child("scenario", job), spec.slo_ms)


def in_child(name: str, job: PassJob) -> Any:
    """The answer of a fresh process to one pass."""
    with Child("benchmarks.engine.child") as child:
        return child.ask(name, job, PATIENCE_S)


def power(job: CellJob) -> records.Power:
    """The power pass if a sensor moves; else nulls and the reason, at no cost."""
    engine = job["engine"]
    if engine not in _SENSORS:
        try:
            sensor_for(engine)
            _SENSORS[engine] = None
        except SensorError as error:
            _SENSORS[engine] = str(error)
    reason = _SENSORS[engine]
    if reason:
        return records.no_power(reason)
    answer: records.Power = in_child("power", job)
    return answer


# For each engine, why its sensor cannot be read; None if it can. Asked once, because sensors do not appear later.
_SENSORS: dict[str, str | None] = {}
