"""The paper's claims, tested on the records of one machine, engine and precision; none is assumed.

Canziani et al., arXiv 1605.07678, drew them from 14 networks on a Jetson TX1. Each is turned into a statistic with a
95 % interval (a bootstrap over networks, because the claims are about networks) and a threshold that was set before
any data. It "holds" if the whole interval lies on the claim's side of the threshold, "does not hold" if the whole
interval lies on the other side, and "cannot be told" otherwise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from benchmarks.intervals import RESAMPLES, confident
from benchmarks.records import (
    Cell,
    MeasuredCell,
    by_network,
    imagenet,
    measured_cells,
    memory,
    significant,
    smallest_batch,
)

HOLDS, FAILS, UNKNOWN = "holds", "does not hold", "cannot be told"

# Fewer networks than this are too few for a bootstrap: four have only 35 distinct samples.
FEWEST_NETWORKS = 5

# Claim 1. The paper's own spread is 11.8 W +- 0.7 W, 6 %; half as much again is allowed to another machine.
POWER_SPREAD = 0.10

# Claim 4. An estimate that is off by more than a quarter, for the median network, plans no capacity.
TIME_ERROR = 0.25

# Claim 5. Two runs of one process differ by about 1 % in resident memory; five times that is a bend, not noise.
MEMORY_ERROR = 0.05
# The bent line has three parameters; any four batches or fewer would fit it.
FEWEST_BATCHES = 5

Values = NDArray[np.float64]
T = TypeVar("T")


@dataclass(frozen=True)
class Claim:
    number: int
    text: str
    verdict: str
    statistic: str  # in words, with its value; or why nothing can be told
    value: float | None
    interval: tuple[float, float] | None
    threshold: str
    records: int  # how many it is computed from
    networks: tuple[str, ...]
    note: str = ""
    form: Callable[[float], str] = significant  # of the interval's bounds

    @property
    def interval_text(self) -> str:
        return " to ".join(map(self.form, self.interval)) if self.interval else ""


def test(series: Sequence[Cell]) -> list[Claim]:
    """The five claims on `series`: the records of one machine, engine and precision."""
    good = measured_cells(series)
    return [
        power_is_constant(good),
        accuracy_is_hyperbolic(good),
        energy_bounds_accuracy(good),
        operations_give_time(good),
        memory_is_bent(good),
    ]


def power_is_constant(good: Sequence[MeasuredCell]) -> Claim:
    """Claim 1, figures 4 and 8: net power depends neither on batch size nor on the network."""
    text = "Power is independent of batch size and architecture"
    threshold = f"spread (standard deviation over mean of net watts) at most {POWER_SPREAD:.0%}"
    known = [item for item in good if item["power"]["net_w"] is not None]
    groups = [np.array([i["power"]["net_w"] for i in items]) for items in by_network(known).values()]
    if lacking := too_few(1, text, threshold, known, unmeasured_power(good)):
        return lacking

    def spread(chosen: Sequence[Values]) -> float:
        watts = np.concatenate(list(chosen))
        return float(watts.std() / abs(watts.mean()))

    return judged(1, text, threshold, known, spread(groups), bootstrap(groups, spread), POWER_SPREAD, "spread {}")


def accuracy_is_hyperbolic(good: Sequence[MeasuredCell]) -> Claim:
    """Claim 2, figure 9: top-1 = a - b / time; a little accuracy costs ever more time."""
    text = "Accuracy and inference time are in a hyperbolic relation"
    threshold = "a hyperbola predicts a left-out network's top-1 better than a straight line does"
    known = [item for item in smallest_batch(good) if imagenet(item)]
    if lacking := too_few(2, text, threshold, known, "networks with a known ImageNet top-1"):
        return lacking
    time = np.array([item["latency_ms"]["p50"] / item["batch"] for item in known])
    top1 = np.array([item["top1"] for item in known])
    gain = left_out(time, top1) ** 2 - left_out(1 / time, top1) ** 2
    value, interval = float(gain.mean()), bootstrap(list(gain), lambda chosen: float(np.mean(chosen)))
    rising = float(np.polyfit(1 / time, top1, 1)[0]) < 0
    verdict = HOLDS if interval[0] > 0 and rising else FAILS if interval[1] < 0 or not rising else UNKNOWN
    statistic = f"squared error of the line less that of the hyperbola: {value:.3g} points squared"
    if not rising:
        statistic += "; accuracy does not rise with time here"
    return Claim(2, text, verdict, statistic, value, interval, threshold, len(known), names(known), borrowed(known))


def energy_bounds_accuracy(good: Sequence[MeasuredCell]) -> Claim:
    """Claim 3: an energy budget sets an upper bound on accuracy, so that more of one costs more of the other."""
    text = "An energy budget sets an upper bound on accuracy"
    threshold = "the rank correlation of joules per image with top-1 is above 0"
    known = [
        item
        for item in smallest_batch(good)
        if item["power"]["net_joules_per_image"] is not None
        and item["top1"] is not None
        and item.get("classes", 1000) == 1000
    ]
    if lacking := too_few(3, text, threshold, known, unmeasured_power(good)):
        return lacking
    pairs = [np.array([item["power"]["net_joules_per_image"], item["top1"]]) for item in known]
    value, interval = rank_correlation(pairs), bootstrap(pairs, rank_correlation)
    verdict = HOLDS if interval[0] > 0 else FAILS if interval[1] < 0 else UNKNOWN
    statistic = f"Spearman's rank correlation {value:.2f}"
    return Claim(3, text, verdict, statistic, value, interval, threshold, len(known), names(known), borrowed(known))


def operations_give_time(good: Sequence[MeasuredCell]) -> Claim:
    """Claim 4, figure 7: time is proportional to operations, so that counting them estimates it."""
    text = "Operations estimate inference time"
    threshold = f"the median network's time is off by at most {TIME_ERROR:.0%} when the others' rate predicts it"
    known = [item for item in smallest_batch(good) if item["macs"] is not None]
    if lacking := too_few(4, text, threshold, known, "networks with known operations"):
        return lacking
    rates = np.log([(item["macs"] or 0) * item["batch"] / item["latency_ms"]["p50"] for item in known])
    others = (rates.sum() - rates) / (len(rates) - 1)
    errors = np.exp(np.abs(rates - others)) - 1
    spread = float(np.exp(rates.max() - rates.min()))
    return judged(
        4, text, threshold, known, float(np.median(errors)), bootstrap(list(errors), lambda c: float(np.median(c))),
        TIME_ERROR, "median error {}", f"MACs per second differ by {spread:.1f} times between networks",
    )  # fmt: skip


def memory_is_bent(good: Sequence[MeasuredCell]) -> Claim:
    """Claim 5, figure 5: memory is constant over the first batch sizes, then grows linearly."""
    text = "Memory is constant, then linear in batch size"
    threshold = (
        f"for the median network, memory lies within {MEMORY_ERROR:.0%} of a level and then a line, "
        "and half the networks show the level"
    )
    curves: dict[str, tuple[Values, Values]] = {}
    for network, items in by_network([i for i in good if memory(i) is not None]).items():
        points = sorted({item["batch"]: memory(item) for item in items}.items())
        if len(points) >= FEWEST_BATCHES:
            curves[network] = (np.array([p[0] for p in points], float), np.array([p[1] for p in points], float))
    known = [item for item in good if item["network"] in curves]
    if lacking := too_few(5, text, threshold, known, f"networks measured at {FEWEST_BATCHES} batch sizes or more"):
        return lacking
    errors = [bent_line_error(*curve) for curve in curves.values()]
    level = sum(curve[1][1] / curve[1][0] - 1 <= MEMORY_ERROR for curve in curves.values())
    value, interval = float(np.median(errors)), bootstrap(errors, lambda c: float(np.median(c)))
    note = f"{level} of {len(curves)} networks need no more for the second batch size than for the first"
    judgement = judged(5, text, threshold, known, value, interval, MEMORY_ERROR, "median largest deviation {}", note)
    if judgement.verdict == HOLDS and level < len(curves) / 2:
        return replace(judgement, verdict=FAILS, note=f"linear, but not constant first: {note}")
    return judgement


def judged(
    number: int, text: str, threshold: str, known: Sequence[MeasuredCell], value: float, interval: tuple[float, float],
    limit: float, form: str, note: str = "",
) -> Claim:  # fmt: skip
    """A claim that holds if the statistic, a share, is at most `limit`."""
    verdict = HOLDS if interval[1] <= limit else FAILS if interval[0] > limit else UNKNOWN
    statistic = form.format(f"{value:.1%}")
    return Claim(
        number,
        text,
        verdict,
        statistic,
        value,
        interval,
        threshold,
        len(known),
        names(known),
        note,
        form="{:.1%}".format,
    )


def too_few(number: int, text: str, threshold: str, known: Sequence[MeasuredCell], what: str) -> Claim | None:
    """The claim as one that cannot be told, if fewer networks than needed are `known`; `what` says what is missing."""
    found = names(known)
    if len(found) >= FEWEST_NETWORKS:
        return None
    reason = f"{len(found)} {what}; {FEWEST_NETWORKS} are needed"
    return Claim(number, text, UNKNOWN, reason, None, None, threshold, len(known), found)


def unmeasured_power(good: Sequence[MeasuredCell]) -> str:
    reasons = sorted({item["power"]["reason"] for item in good if item["power"]["reason"]})
    return "networks with measured power" + (f" ({'; '.join(reasons)})" if reasons else "")


def names(items: Sequence[MeasuredCell]) -> tuple[str, ...]:
    return tuple(by_network(items))


def borrowed(items: Sequence[MeasuredCell]) -> str:
    """A note if accuracies belong to other weights than those measured."""
    untrained = [item["network"] for item in items if item["weights"] == "untrained"]
    return f"top-1 is the published one for {', '.join(untrained)}: weights here are untrained" if untrained else ""


def bootstrap(units: Sequence[T], statistic: Callable[[list[T]], float], seed: int = 0) -> tuple[float, float]:
    generator = np.random.default_rng(seed)
    drawn = [statistic([units[i] for i in generator.integers(len(units), size=len(units))]) for _ in range(RESAMPLES)]
    return confident(drawn)


def left_out(x: Values, y: Values) -> Values:
    """The error at each point of the straight line through all the others."""
    design = np.column_stack([np.ones_like(x), x])
    hat = design @ np.linalg.pinv(design)
    residuals: Values = (y - hat @ y) / np.maximum(1 - np.diag(hat), 1e-9)
    return residuals


def rank_correlation(pairs: Sequence[Values]) -> float:
    """Spearman's: the correlation of ranks, ties sharing their mean rank; 0 if one side does not vary."""
    columns = np.array(pairs).T
    ranks = [np.array([(np.sum(c < v) + np.sum(c <= v) - 1) / 2 for v in c]) for c in columns]
    if any(np.ptp(rank) == 0 for rank in ranks):
        return 0.0
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def bent_line_error(batch: Values, memory: Values) -> float:
    """The largest relative deviation from the best level over the first batches followed by a line over the rest."""
    best = np.inf
    for level in range(len(batch) - 1):
        fitted = np.empty_like(memory)
        fitted[:level] = memory[:level].mean() if level else 0
        fitted[level:] = np.polyval(np.polyfit(batch[level:], memory[level:], 1), batch[level:])
        best = min(best, float(np.max(np.abs(fitted / memory - 1))))
    return best
