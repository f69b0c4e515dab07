"""One cell of the comparison: a network in an engine at a precision and a batch, timed, weighed and metered.

Each pass runs in a fresh process (`benchmarks/engine/child.py`), so that none disturbs another; the parent sleeps in a
blocking call meanwhile. What is timed is `Runtime.run` as a caller sees it: one batch of uint8 pixels in memory to its
probabilities in memory, on one stream, one call after another (MLPerf-style SingleStream at batch 1, Offline above).
Decoding a photograph is not in it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import asdict, dataclass
from typing import Any, cast

from benchmarks import records
from benchmarks.engine.power import SensorError, sensor_for
from benchmarks.process import PassError, in_child
from benchmarks.records import Failed, ScenarioName
from models import SPECS
from serving.artifact import Artifact
from serving.runtime import available, choose


@dataclass(frozen=True)
class Settings:
    """How long to look. Times are in seconds."""

    name: str
    starts: int  # fresh processes that time the same cell
    warmup_s: float  # at most; warm-up ends when windows agree
    measure_s: float  # at least, in each start
    limit_s: float  # at most, in each start, unless fewer than `fewest` calls fit
    calls: int  # at least, in each start, if `limit_s` allows
    fewest: int  # at least, in each start, whatever it takes
    most: int  # at most, in each start: every value is kept, and the smallest network makes 50,000 a second
    idle_s: float
    window_s: float
    trials: int


# Full: three starts, because two processes of one network differ by more than the calls of one process.
# Brief: the same with shorter looks, so that sixty cells take two cores less than a quarter of an hour.
# Quick: one short look for a demonstration; its intervals say how little it knows.
FULL = Settings("full", 3, 3.0, 3.0, 8.0, 30, 3, 3000, idle_s=10.0, window_s=5.0, trials=3)
BRIEF = Settings("brief", 3, 1.0, 1.0, 2.0, 20, 2, 3000, idle_s=10.0, window_s=5.0, trials=1)
QUICK = Settings("quick", 1, 0.5, 0.6, 2.0, 10, 3, 1000, idle_s=2.0, window_s=5.0, trials=1)


@dataclass(frozen=True)
class Cell:
    artifact: Artifact
    engine: str
    precision: str
    batch: int | None  # None in a scenario, which has its own
    scenario: ScenarioSpec | None = None


@dataclass(frozen=True)
class ScenarioSpec:
    """A scenario in the place of a batch; `slo_ms` bounds the server's 99th percentile."""

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
    """Every cell to measure, batches rising, so that a network that runs out of memory can stop there; with
    `scenarios`, these in the place of batches.

    `engines` and `precisions` None mean all that the artifact has and this machine can run; `first_only` takes of
    those the one that serving would choose.
    """
    found = []
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
                found += [Cell(artifact, *pair, None, scenario) for scenario in scenarios]
            else:
                found += [Cell(artifact, *pair, batch) for batch in sorted(set(batches))]
    return found


def measure_all(
    wanted: Sequence[Cell], settings: Settings, threads: int, seen: Set[object] = frozenset()
) -> Iterator[records.Cell | records.Scenario]:
    """A record for every cell, in order, as each is finished; keys in `seen` are passed over.

    After a cell that ran out of memory, the larger batches of the same graph are recorded as failed without a try.
    """
    exhausted: dict[tuple[str, str, str], int] = {}
    for cell in wanted:
        described = describe(cell, threads, settings)
        if records.key(described) in seen:
            continue
        graph = (cell.artifact.tag, cell.engine, cell.precision)
        if graph in exhausted:
            records.fail(described, Failed("skipped", f"not tried, memory ended at batch {exhausted[graph]}"))
            yield described
            continue
        record = measure(cell, described, settings, threads)
        if cell.batch is not None and record["failure"] == "memory":
            exhausted[graph] = cell.batch
        yield record


def describe(cell: Cell, threads: int, settings: Settings) -> records.Cell | records.Scenario:
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

    Untrained weights have no accuracy of their own: what is given is the published one, and its source says so.
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


def measure(
    cell: Cell, described: records.Cell | records.Scenario, settings: Settings, threads: int
) -> records.Cell | records.Scenario:
    """The three passes of one cell; a pass that fails makes the record "failed: reason" and keeps what was measured."""
    job = {
        "folder": str(cell.artifact.folder),
        "version": cell.artifact.version,
        "engine": cell.engine,
        "precision": cell.precision,
        "batch": cell.batch,
        "threads": threads,
        "settings": asdict(settings),
    }
    record = described
    try:
        if record["kind"] == "scenario":
            assert cell.scenario is not None
            return in_scenario(cell.scenario, record, {**job, "max_batch": cell.artifact.manifest.get("max_batch", 64)})
        starts = [in_child({**job, "pass": "latency"}) for _ in range(settings.starts)]
        images = record["batch"] * sum(len(start["values"]) for start in starts)
        latency = records.latency([start["values"] for start in starts])
        record["latency_ms"] = {**latency, "warm": all(start["warm"] for start in starts)}
        record["throughput_img_s"] = images / sum(start["wall_s"] for start in starts)
        record["cpu_seconds_per_image"] = sum(start["cpu_s"] for start in starts) / images
        record["memory_mb"] = cast(records.Memory, in_child({**job, "pass": "memory"}))
        record["power"] = power(job)
        record["status"], record["failure"] = "ok", None
    except PassError as error:
        records.fail(record, error.failed)
    return record


def in_scenario(spec: ScenarioSpec, described: records.Scenario, job: Mapping[str, Any]) -> records.Scenario:
    from benchmarks.engine import scenarios

    answer = in_child({**job, "pass": "scenario", "scenario": spec.name, "slo_ms": spec.slo_ms})
    return scenarios.record(described, answer, spec.slo_ms)


def power(job: Mapping[str, Any]) -> records.Power:
    """The power pass where a sensor moves; elsewhere nulls and the reason, at no cost."""
    engine = str(job["engine"])
    if engine not in _SENSORS:
        try:
            sensor_for(engine)
            _SENSORS[engine] = None
        except SensorError as error:
            _SENSORS[engine] = str(error)
    reason = _SENSORS[engine]
    return records.no_power(reason) if reason else cast(records.Power, in_child({**job, "pass": "power"}))


# Per engine, why its sensor cannot be read; None where it can. Asked once: a machine does not grow a sensor.
_SENSORS: dict[str, str | None] = {}
