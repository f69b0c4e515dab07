"""What to deploy: the network, engine, precision and batch of the records that meets every bound, and why not the rest.

The rule was set before any data. If a least accuracy is asked for, accuracy above it counts for nothing: the fastest
choice that has it wins. Otherwise the most accurate choice within the bounds wins, and of equals the fastest.
A value that was not measured meets no bound.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

from benchmarks.records import FEWEST_FOR_P99, Cell, Document, is_cell, measured, memory, significant
from models.console import table

RUNNERS_UP = 5
CLOSEST = 3


@dataclass(frozen=True)
class Bounds:
    """What a deployment must keep; None asks for nothing."""

    p99_ms: float | None = None
    min_top1: float | None = None  # percent
    max_watts: float | None = None  # gross, of what the sensor sees
    max_memory_mb: float | None = None

    def __str__(self) -> str:
        asked = (
            (self.p99_ms, "p99 at most {} ms"),
            (self.min_top1, "top-1 at least {} %"),
            (self.max_watts, "at most {} W"),
            (self.max_memory_mb, "at most {} MB"),
        )
        return ", ".join(words.format(f"{bound:g}") for bound, words in asked if bound is not None) or "no bound"


@dataclass(frozen=True)
class Miss:
    """A bound that is not kept; `excess` is by what share, infinite if the value is not known."""

    reason: str
    excess: float


@dataclass(frozen=True)
class Candidate:
    run: str  # the result file's name, if there are several
    record: Cell
    misses: tuple[Miss, ...]

    @property
    def name(self) -> str:
        r = self.record
        return f"{r['network']} {r['engine']} {r['precision']} batch {r['batch']}" + f", {self.run}" * bool(self.run)

    @property
    def distance(self) -> tuple[float, int]:
        """How far it is from keeping every bound: by its worst miss, then by their number."""
        return max((miss.excess for miss in self.misses), default=0.0), len(self.misses)


@dataclass(frozen=True)
class Advice:
    bounds: Bounds
    fitting: tuple[Candidate, ...]  # the choice first, the runners-up in their order
    others: tuple[Candidate, ...]  # the closest first

    @property
    def choice(self) -> Candidate | None:
        return self.fitting[0] if self.fitting else None


def recommend(documents: Sequence[Document], bounds: Bounds) -> Advice:
    """What of the in-process records in `documents` (file name, content) keeps `bounds`, best first."""
    several = len(documents) > 1
    candidates = [
        Candidate(name if several else "", item, tuple(misses(item, bounds)))
        for name, document in documents
        for item in document["records"]
        if is_cell(item)
    ]
    fitting = sorted((c for c in candidates if not c.misses), key=lambda c: rank(c.record, bounds))
    others = sorted((c for c in candidates if c.misses), key=lambda c: (c.distance, rank(c.record, bounds)))
    return Advice(bounds, tuple(fitting), tuple(others))


def rank(item: Cell, bounds: Bounds) -> tuple[float, ...]:
    """Sorts the better first, by the rule above."""
    speed = -(item["throughput_img_s"] or 0.0)
    accuracy = -(-inf if item["top1"] is None else item["top1"])
    return (speed, accuracy) if bounds.min_top1 is not None else (accuracy, speed)


def misses(item: Cell, bounds: Bounds) -> Iterator[Miss]:
    """The bounds that `item` does not keep, in words."""
    if not measured(item):
        yield Miss(item["status"], inf)
        return
    power, unknown, latency = item["power"], inf, item["latency_ms"]
    if latency and (bound := bounds.p99_ms) is not None and (value := latency["p99"]) > bound:
        yield Miss(f"p99 {significant(value)} ms", value / bound - 1)
    if (bound := bounds.min_top1) is not None:
        if (top1 := item["top1"]) is None:
            yield Miss("top-1 is not known", unknown)
        elif top1 < bound:
            yield Miss(f"top-1 {top1:.2f} %", bound / top1 - 1)
    if (bound := bounds.max_watts) is not None:
        if (watts := power["mean_w"]) is None:
            yield Miss(f"power was not measured: {power['reason']}", unknown)
        elif watts > bound:
            yield Miss(f"{significant(watts)} W", watts / bound - 1)
    if (bound := bounds.max_memory_mb) is not None:
        if (megabytes := memory(item)) is None:
            yield Miss("memory was not measured", unknown)
        elif megabytes > bound:
            yield Miss(f"{significant(megabytes)} MB", megabytes / bound - 1)


def behind(item: Cell, best: Cell, bounds: Bounds) -> str:
    """Why `item`, which keeps every bound, is not the choice."""
    words, top1, highest = [], item["top1"], best["top1"]
    if bounds.min_top1 is None and top1 is not None and highest is not None and top1 < highest:
        words.append(f"{highest - top1:.2f} points less accurate")
    if bounds.min_top1 is None and top1 is None and highest is not None:
        words.append("top-1 is not known")
    speed = (item["throughput_img_s"] or 0.0) / (best["throughput_img_s"] or 1.0)
    if not words or speed > 1:
        words.append(f"{speed:.2f} times the images per second")
    return ", but ".join(words)


HEADER = ("network", "engine", "precision", "batch", "p99 ms", "img/s", "top-1 %", "W", "MB")


def row(candidate: Candidate) -> tuple[str, ...]:
    item = candidate.record
    latency = item["latency_ms"]
    few = "*" if latency and latency["count"] < FEWEST_FOR_P99 else ""
    top1 = "–" if item["top1"] is None else f"{item['top1']:.2f}"  # noqa: RUF001
    watts = "not measured" if item["power"]["mean_w"] is None else significant(item["power"]["mean_w"])
    return (
        item["network"], item["engine"], item["precision"], str(item["batch"]),
        significant(latency["p99"] if latency else None) + few, significant(item["throughput_img_s"]),
        top1 + ("†" if item["top1"] is not None and item["weights"] == "untrained" else ""), watts,
        significant(memory(item)),
    )  # fmt: skip


def text(advice: Advice) -> str:
    """The advice for the terminal."""
    bounds, parts = advice.bounds, [f"Asked for: {advice.bounds}."]
    numbers = range(3, 9)
    if (choice := advice.choice) is not None:
        rule = (
            "the fastest that has the accuracy asked for"
            if bounds.min_top1 is not None
            else "the most accurate within the bounds; of equals, the fastest"
        )
        parts += [f"Deploy {choice.name}: {rule}.", table([row(choice)], HEADER, right=numbers)]
        if runners := advice.fitting[1 : 1 + RUNNERS_UP]:
            rows = [(*row(c), behind(c.record, choice.record, bounds)) for c in runners]
            more = len(advice.fitting) - 1 - len(runners)
            parts += ["Runners-up:", table(rows, (*HEADER, "why not"), right=numbers)]
            parts += [f"{more} more keep every bound and rank behind these."] * (more > 0)
    else:
        parts.append("Nothing fits. What comes closest:")
        rows = [(*row(c), "; ".join(m.reason for m in c.misses)) for c in advice.others[:CLOSEST]]
        parts.append(table(rows, (*HEADER, "misses"), right=numbers))
    if advice.others:
        parts += ["Why the others fall out:" if advice.fitting else "Why everything falls out:", fallen(advice.others)]
    return "\n".join([*parts, *notes(advice)])


def fallen(others: Sequence[Candidate]) -> str:
    """One row a network, engine and precision: its batches with what they miss."""
    grouped: dict[tuple[str, ...], dict[str, list[int]]] = {}
    for candidate in sorted(others, key=lambda c: c.record["batch"] or 0):
        item = candidate.record
        name = (*(item[field] for field in ("network", "engine", "precision")), candidate.run)
        # A reason that is the same for several batches is said once.
        for miss in candidate.misses:
            grouped.setdefault(name, {}).setdefault(miss.reason, []).append(item["batch"])
    rows = [
        (*name, "; ".join(f"batch {', '.join(map(str, batches))}: {reason}" for reason, batches in reasons.items()))
        for name, reasons in sorted(grouped.items())
    ]
    if not any(name[3] for name in grouped):
        return table([(*r[:3], r[4]) for r in rows], ("network", "engine", "precision", "misses"))
    return table(rows, ("network", "engine", "precision", "run", "misses"))


def notes(advice: Advice) -> list[str]:
    shown = [c.record for c in (advice.fitting[: 1 + RUNNERS_UP] or advice.others[:CLOSEST])]
    found = []
    if any(i["weights"] == "untrained" and i["top1"] is not None for i in shown):
        found.append("† published (weights here are untrained): the accuracy is not that of these weights.")
    if any(i["top1"] is not None for i in shown):
        found.append(
            "Top-1 is the network's, not the file's: what int8 costs is in the parity record (`python -m export show`)."
        )
    if any(i["latency_ms"] and i["latency_ms"]["count"] < FEWEST_FOR_P99 for i in shown):
        found.append(f"* From fewer than {FEWEST_FOR_P99} calls: the p99 is little more than the slowest call.")
    if advice.bounds.max_watts is None and (reasons := {reason for i in shown if (reason := i["power"]["reason"])}):
        found.append(f"Power was not measured: {'; '.join(sorted(reasons))}.")
    found.append("Times are the engine's alone; `python -m benchmarks plan` adds queueing, decoding and HTTP.")
    return found


def nearest(advice: Advice) -> str:
    """One line for stderr if nothing fits."""
    if not advice.others:
        return "the result files hold no in-process records; `python -m benchmarks run` measures some"
    best = advice.others[0]
    return (
        f"nothing keeps {advice.bounds}; {best.name} comes closest ({'; '.join(m.reason for m in best.misses)}): "
        "relax that bound, or measure more with `python -m benchmarks run`"
    )
