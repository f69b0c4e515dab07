"""The result file: its records, the statistics in them, and writing so that an interruption loses nothing.

A file is `{"schema": 1, "environment": {...}, "records": [...]}`. What was not measured is null, never zero.
Units are in the names: milliseconds, MB (10^6 bytes), watts, joules, images per second.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from models.console import Failure, Usage

SCHEMA = 1

Record = dict[str, Any]

# The name and the meaning of every field that a record must have; `validate` holds files to it.
FIELDS: dict[str, type | tuple[type, ...]] = {
    "network": str,
    "engine": str,
    "precision": str,
    "batch": (int, type(None)),
    "weights": str,
    "status": str,
    "latency_ms": (dict, type(None)),
    "throughput_img_s": (float, type(None)),
    "cpu_seconds_per_image": (float, type(None)),
    "memory_mb": dict,
    "power": dict,
    "macs": (int, type(None)),
    "params": (int, type(None)),
    "top1": (float, type(None)),
    "top5": (float, type(None)),
    "accuracy_source": (str, type(None)),
}
LATENCY = ("p50", "p90", "p99", "mean", "std", "count", "values")
MEMORY = ("weights", "peak_rss", "peak_gpu", "activations")
POWER = (
    "source",
    "reason",
    "idle_w",
    "mean_w",
    "net_w",
    "joules_per_image",
    "net_joules_per_image",
    "window_s",
    "trials",
)

# Consecutive calls are not independent (clocks, neighbours, caches drift), so the interval of a median is drawn over
# blocks of neighbouring values; ten blocks keep drift inside a block visible between blocks.
BLOCKS = 10
RESAMPLES = 1000
CONFIDENCE = 0.95


def latency(starts: Sequence[Sequence[float]]) -> Record:
    """Statistics of call times in milliseconds, one sequence per process that measured them.

    `interval` is the median's: a 95 % block bootstrap, widened to the medians of the single processes, since a process
    keeps the memory layout it started with and two processes differ by more than the calls of one.
    """
    # Five digits are more than a clock gives; rounded first, so that the statistics are exactly those of `values`.
    starts = [[float(f"{value:.5g}") for value in start] for start in starts]
    values = np.array([value for start in starts for value in start])
    p50, p90, p99 = (float(v) for v in np.percentile(values, (50, 90, 99)))
    low, high = median_interval(starts)
    return {
        "p50": p50,
        "p90": p90,
        "p99": p99,
        "mean": float(values.mean()),
        "std": float(values.std(ddof=1)) if len(values) > 1 else None,
        "count": len(values),
        "values": values.tolist(),
        "starts": [len(start) for start in starts],
        "interval": [low, high],
    }


def median_interval(starts: Sequence[Sequence[float]], seed: int = 0) -> tuple[float, float]:
    """The interval of the median of all values, as `latency` describes it."""
    blocks = [b for start in starts for b in np.array_split(np.asarray(start), min(BLOCKS, len(start)))]
    generator = np.random.default_rng(seed)
    draws = generator.integers(len(blocks), size=(RESAMPLES, len(blocks)))
    if len({len(block) for block in blocks}) == 1:
        even = np.array(blocks)
        medians = [
            m for part in np.array_split(draws, 20) for m in np.median(even[part].reshape(len(part), -1), axis=1)
        ]
    else:
        medians = [float(np.median(np.concatenate([blocks[i] for i in draw]))) for draw in draws]
    tail = 50 * (1 - CONFIDENCE)
    low, high = np.percentile(medians, (tail, 100 - tail))
    own = [float(np.median(start)) for start in starts]
    return min(float(low), *own), max(float(high), *own)


def nothing_measured(reason: str) -> Record:
    """The `power` of a record for which no sensor could be read."""
    return dict.fromkeys(POWER) | {"source": "none", "reason": reason}


def record(**known: Any) -> Record:
    """A record with every field of the schema, null where `known` says nothing."""
    empty: Record = dict.fromkeys(FIELDS)
    empty["memory_mb"] = dict.fromkeys(MEMORY)
    empty["power"] = nothing_measured("not reached: an earlier pass failed")
    return empty | known


def key(item: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells one record of a file from another, and finds it again when a run resumes."""
    return tuple(item.get(name) for name in ("network", "version", "engine", "precision", "batch", "scenario"))


def measured(item: Mapping[str, Any]) -> bool:
    return bool(item["status"] == "ok")


def validate(document: Any, name: str = "result file") -> dict[str, Any]:
    """`document` when it is a result file as the schema says; else `Failure` with the field that is not."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        found = document.get("schema") if isinstance(document, dict) else type(document).__name__
        raise Failure(f"{name}: schema is {found!r}, expected {SCHEMA}; was it written by `python -m benchmarks run`?")
    if not isinstance(document.get("environment"), dict) or not isinstance(document.get("records"), list):
        raise Failure(f"{name}: environment and records are missing or of the wrong kind; measure again")
    for index, item in enumerate(document["records"]):
        for problem in problems(item):
            raise Failure(f"{name}: record {index}: {problem}; measure again")
    return document


def problems(item: Mapping[str, Any]) -> Iterable[str]:
    """What in `item` breaks the schema, in words."""
    for field, kind in FIELDS.items():
        if field not in item:
            yield f"{field} is missing"
        elif not isinstance(item[field], kind) or isinstance(item[field], bool):
            yield f"{field} is {item[field]!r}, expected {kind}"
    if item.get("status") != "ok" and not str(item.get("status")).startswith("failed: "):
        yield f'status is {item.get("status")!r}, expected "ok" or "failed: reason"'
    for field, names in (("latency_ms", LATENCY), ("memory_mb", MEMORY), ("power", POWER)):
        lacking = [n for n in names if isinstance(item.get(field), dict) and n not in item[field]]
        if lacking:
            yield f"{field} lacks {', '.join(lacking)}"
    power = item.get("power")
    if isinstance(power, dict) and power.get("mean_w") is None and not power.get("reason"):
        yield "power is not measured and gives no reason"
    if item.get("status") == "ok" and not item.get("latency_ms"):
        yield 'status is "ok" without latency_ms'


def read(path: Path) -> dict[str, Any]:
    """The result file at `path`, checked."""
    try:
        document = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise Usage(f"cannot read {path} ({error.strerror}); `python -m benchmarks run` writes such files") from error
    except ValueError as error:
        raise Failure(f"{path} is not JSON ({error}); measure again") from error
    return validate(document, str(path))


def write(path: Path, environment: Mapping[str, Any], records: Sequence[Record]) -> None:
    """The file in one step: a reader, or a run that resumes, finds the old file or the new one, never half of one."""
    validate({"schema": SCHEMA, "environment": dict(environment), "records": list(records)}, str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    head = json.dumps(environment, indent=1, ensure_ascii=False)
    # One record a line, so that two files can be compared by eye and by diff.
    lines = ",\n".join(json.dumps(item, ensure_ascii=False, allow_nan=False) for item in records)
    try:
        partial.write_text(f'{{"schema": {SCHEMA},\n"environment": {head},\n"records": [\n{lines}\n]}}\n', "utf-8")
        partial.replace(path)
    except OSError as error:
        partial.unlink(missing_ok=True)
        raise Failure(f"cannot write {path}: {error.strerror}; choose another --out") from error


def significant(value: float | None, digits: int = 3) -> str:
    """`value` for a reader: `digits` significant digits, no exponent, a dash where nothing was measured."""
    if value is None:
        return "–"  # noqa: RUF001
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{value:,.{decimals}f}"


# From how many calls a 99th percentile is one: below, it is the slowest call or the one after it.
FEWEST_FOR_P99 = 100


def memory(item: Record) -> float | None:
    """MB that the network needs while it runs: the GPU's where it runs there, else the process's."""
    found = item["memory_mb"]["peak_gpu"]
    value = item["memory_mb"]["peak_rss"] if found is None else found
    return None if value is None else float(value)


def by_network(items: Sequence[Record]) -> dict[str, list[Record]]:
    groups: dict[str, list[Record]] = {}
    for item in items:
        groups.setdefault(item["network"], []).append(item)
    return groups


def smallest_batch(items: Sequence[Record]) -> list[Record]:
    """One record a network: that of the smallest batch measured."""
    return [min(group, key=lambda item: int(item["batch"])) for group in by_network(items).values()]


def imagenet(item: Record) -> bool:
    """Whether the record's accuracy may stand beside others: on ImageNet's thousand classes."""
    return item["top1"] is not None and item.get("classes", 1000) == 1000


# Where result files are

RESULTS = Path(".podium") / "results"


def default_path(machine: str, suffix: str) -> Path:
    from datetime import datetime

    return RESULTS / f"{machine}-{datetime.now().astimezone():%Y-%m-%d}{suffix}.json"


def keep(path: Path, document: Mapping[str, Any]) -> None:
    """`document` as the result file at `path`."""
    import json

    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=1) + "\n", "utf-8")


def documents(paths: Sequence[Path]) -> list[tuple[str, dict[str, Any]]]:
    """What the result files hold, each with the file's name."""
    return [(path.stem, read(path)) for path in paths]
