"""Two result files, old and new: what became slower, what faster, what is the same, and what cannot be told.

The statistic is the ratio of the medians of all calls, new over old. Its interval is 95 %: a bootstrap over the starts
(the fresh processes that measured a cell), within a start over blocks of neighbouring calls, since calls of one
process are alike and drift together; widened to the ratios of single starts, since two or three starts are too few
for a bootstrap to know how far apart starts lie; and widened by `DRIFT`, which no single run can show. Verdicts:

- slower or faster: the whole interval lies on that side of 1;
- the same: the whole interval lies within the floor on both sides of 1;
- cannot be told: neither, and the interval says how much could hide in it.

A cell fails if the whole interval lies beyond the floor, or if it was measured before and now fails.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import numpy as np
from numpy.typing import NDArray

from benchmarks.environment import differences
from benchmarks.intervals import BLOCKS, RESAMPLES, confident
from benchmarks.records import Environment, Record, RecordsFile, Search, measured, significant
from models.console import Usage, table

SLOWER, FASTER, SAME, UNKNOWN = "slower", "faster", "the same", "cannot be told"

# Beyond this a user notices.
FLOOR = 5.0  # percent

# Two runs of one idle virtual machine, minutes apart, differ by so much in everything at once.
DRIFT = 0.02

# What must agree for two files to be of one machine. Packages may differ: a comparison is meant to show their effect.
MACHINE = ("cpu", "flags", "cores", "threads", "gpus", "limits")

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Change:
    """One cell of both files; ratios are new over old, so that above 1 is slower."""

    name: str
    verdict: str  # one of the four, or why there is no ratio
    ratio: float | None
    interval: tuple[float, float] | None
    old_ms: float | None
    new_ms: float | None
    fails: bool


def compare(old: RecordsFile, new: RecordsFile, floor: float = FLOOR) -> list[Change]:
    """A change for every cell that either file measured; `floor` in percent. `Usage` for files of two machines."""
    if other := differences(old["environment"], new["environment"], MACHINE):
        raise Usage(f"the files are of two machines ({'; '.join(other)}); measure both on one")
    before, after = by_cell(old["records"]), by_cell(new["records"])
    cells = [change(name, before[name], after.get(name), floor) for name in before]
    return cells + [Change(name, "new", None, None, None, middle(after[name]), False) for name in after.keys() - before]


def by_cell(items: Sequence[Record]) -> dict[str, Record]:
    """Records by what they measured, in words; the version of an artifact may change between two files."""
    found = {}
    for item in items:
        what = item.get("scenario") or f"batch {item['batch']}"
        found[f"{item['network']} {item['engine']} {item['precision']}, {what}"] = item
    return found


def change(name: str, old: Record, new: Record | None, floor: float) -> Change:
    if new is None:
        return Change(name, "not measured in the new file", None, None, middle(old), None, False)
    if not measured(old):
        return Change(name, "new" if measured(new) else "failed in both", None, None, None, middle(new), False)
    if not measured(new):
        return Change(name, new["status"], None, None, middle(old), None, True)
    if is_search(old) and is_search(new):
        # The latencies belong to two different rates, and one search does not tell how far the next one would differ.
        rates = f"{significant(old['rate'])} to {significant(new['rate'])} img/s, by search: no interval"
        return Change(name, rates, None, None, None, None, False)
    before, after = starts(old), starts(new)
    ratio = float(np.median(np.concatenate(after)) / np.median(np.concatenate(before)))
    low, high = interval(before, after)
    told = verdict(low, high, floor / 100)
    return Change(name, told, ratio, (low, high), middle(old), middle(new), fails=low > 1 + floor / 100)


def is_search(item: Record) -> TypeGuard[Search]:
    return bool(item.get("rungs"))


def verdict(low: float, high: float, floor: float) -> str:
    if low > 1:
        return SLOWER
    if high < 1:
        return FASTER
    return SAME if 1 / (1 + floor) <= low and high <= 1 + floor else UNKNOWN


def middle(item: Record) -> float | None:
    return float(np.median(np.concatenate(starts(item)))) if measured(item) else None


def starts(item: Record) -> list[Values]:
    """The calls of each process that measured `item`, in milliseconds; of the offline scenario, which is free in its
    batch, milliseconds per image.
    """
    latency = item["latency_ms"]
    assert latency is not None  # it was measured
    ends = np.cumsum(latency.get("starts") or [latency["count"]])
    images = item["mean_batch"] if item["kind"] == "scenario" and item["name"] == "offline" else 1
    return np.split(np.asarray(latency["values"], dtype=np.float64) / images, ends[:-1])


def interval(old: Sequence[Values], new: Sequence[Values], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of the ratio of medians, new over old, as described above."""
    generator = np.random.default_rng(seed)
    ratios = [resampled(new, generator) / resampled(old, generator) for _ in range(RESAMPLES)]
    low, high = confident(ratios)
    own = [[float(np.median(start)) for start in side] for side in (old, new)]
    low, high = min(low, min(own[1]) / max(own[0])), max(high, max(own[1]) / min(own[0]))
    return low / (1 + DRIFT), high * (1 + DRIFT)


def resampled(side: Sequence[Values], generator: np.random.Generator) -> float:
    """The median of one bootstrap sample: starts drawn with replacement, and blocks of calls within each."""
    calls = []
    for index in generator.integers(len(side), size=len(side)):
        blocks = np.array_split(side[index], min(BLOCKS, len(side[index])))
        calls += [blocks[i] for i in generator.integers(len(blocks), size=len(blocks))]
    return float(np.median(np.concatenate(calls)))


HEADER = ("cell", "old ms", "new ms", "new / old", "95 % interval", "verdict")


def text(changes: Sequence[Change], environments: Sequence[Environment], floor: float) -> str:
    """The comparison for the terminal."""
    s = significant
    rows = [
        (c.name, s(c.old_ms), s(c.new_ms), "" if c.ratio is None else f"{c.ratio:.3f}",
         "" if c.interval is None else "{:.3f} to {:.3f}".format(*c.interval), c.verdict + " !" * c.fails)
        for c in changes
    ]  # fmt: skip
    told = [c for c in changes if c.ratio is not None]
    parts = [table(rows, HEADER, right=(1, 2, 3))]
    if told:
        counts = {v: sum(c.verdict == v for c in told) for v in (SLOWER, FASTER, SAME, UNKNOWN)}
        mean = float(np.exp(np.mean([np.log(c.ratio or 1) for c in told])))
        words = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
        parts.append(
            f"{len(told)} compared: {words}. Geometric mean of new over old: {mean:.3f}. Floor: {floor:g} %. "
            "At 95 %, one interval in twenty misses the truth by chance."
        )
    packages = [environment.get("packages") or {} for environment in environments]
    moved = [
        f"{name} {packages[0].get(name, 'absent')} to {packages[1].get(name, 'absent')}"
        for name in sorted(packages[0].keys() | packages[1].keys())
        if packages[0].get(name) != packages[1].get(name)
    ]
    parts += [f"Packages that changed: {', '.join(moved)}."] * bool(moved)
    return "\n".join(parts)
