"""From measured figures to 1,000, 100,000 and 10 million images a second: replicas, processors, network, memory, watts.

What a replica does is the queueing model's answer (`capacity`) on measured batch times, with the work around the
engine put beside it: `benchmarks replicas` has measured how much processor time the service takes for an image beyond
its engine call, and how much of that is decoding. On a processor both share the cores, so a batch of n takes its
engine's time and n images' work spread over them; beside a GPU the cores have that work alone, and the slower side
counts. Replicas share nothing, so a large rate takes proportionally more of them, as long as the network in front of
them keeps up.

Nothing is estimated that no record holds. The reader gives watts and prices.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.advise import capacity, queueing, simulation
from benchmarks.advise.queueing import Service
from benchmarks.records import Document, MeasuredCell, Replicas, measured, measured_cells, significant
from benchmarks.tables import REPLICAS_HEADER, markdown, replicas_rows, replicas_title
from models.console import Failure, Usage

Documents = Sequence[Document]

RATES = (1_000, 100_000, 10_000_000)

# What an image is on the wire: a photograph as cameras and web pages send it, the pixels a network of 224 takes
# (uint8, three channels), and an answer of five classes with its HTTP headers.
JPEG_BYTES, PIXELS_BYTES, ANSWER_BYTES = 100_000, 224 * 224 * 3, 1_000
GBIT = 8 / 1e9

# A processor that also reads, decodes and answers is not planned beyond this share.
BUSY = 0.8

# What is simulated: replicas at this load, in these numbers.
LOAD, COUNTS = 0.7, (1, 4, 32)


@dataclass(frozen=True)
class Overhead:
    """Processor seconds that the service takes for an image beyond its engine call, and MB beyond its network."""

    decode: float
    http: float
    memory_mb: float
    source: str

    @property
    def seconds(self) -> float:
        return self.decode + self.http


@dataclass(frozen=True)
class Row:
    """One network at one precision in its fastest engine: what a replica does within the bound."""

    record: MeasuredCell  # at the largest batch
    max_batch: int
    cores: int
    each: float  # images a second, from photographs
    pixels_each: float  # from pixels that the client has decoded
    bottleneck: str
    memory_mb: float

    def count(self, rate: float) -> int:
        return math.ceil(rate / self.each)


def steady(documents: Documents) -> list[Replicas]:
    """The phases of `benchmarks replicas` in which nothing happened."""
    items = [i for _, d in documents for i in d["records"] if i["kind"] == "replicas"]
    return [item for item in items if measured(item) and item["phase"] == "steady"]


def overhead(documents: Documents) -> Overhead:
    """From the two-replica run; `Usage` if there is none."""
    found = steady(documents)
    if not found:
        raise Usage("no file holds a run of `python -m benchmarks replicas`, which measures the work around the engine")
    item = found[0]
    # Of a call that n images share, each counts 1/n; the replicas of that run have one thread each. Medians, for these
    # are times on the clock: where a core was taken away in the middle, they are more than was worked.
    shares = [value / int(size) for size, values in item["engine_ms"].items() for value in values]
    engine = statistics.median(shares) / 1e3
    decode = item["split_ms"]["decode"]["p50"] / 1e3 if item["split_ms"] else 0.0
    if (http := (item["cpu_seconds_per_image"] or 0.0) - engine - decode) <= 0:
        raise Failure(
            f"{item['scenario']}: the stages took longer than the processor time used, because the machine had other "
            "work; run it again"
        )
    alone = [i for i in in_process(documents) if capacity.key(i) == capacity.key(item) and i["batch"] == 1]
    extra = (item["memory_mb"]["peak_rss"] or 0.0) - (alone[0]["memory_mb"]["peak_rss"] or 0.0) if alone else 0.0
    return Overhead(
        decode,
        http,
        max(0.0, extra),
        f"{item['network']} {item['engine']} {item['precision']}, photographs of {item['body_bytes'] / 1e3:.0f} kB",
    )


def in_process(documents: Documents) -> list[MeasuredCell]:
    return measured_cells(i for _, d in documents for i in d["records"])


def table_rows(
    documents: Documents, slo_ms: float, progress: Callable[[Sequence[Any]], Iterable[Any]] = iter
) -> tuple[list[Row], list[str]]:
    """The rows, most accurate network first; and in words, which networks cannot keep the bound."""
    around, rows, refused = overhead(documents), [], []
    groups: dict[tuple[str, str], list[tuple[dict[int, MeasuredCell], int]]] = {}
    for _, document in documents:
        for (network, _, precision), group in capacity.series(measured_cells(document["records"])).items():
            if 1 in group:
                cores = document["environment"]["cores"]
                groups.setdefault((network, precision), []).append((group, cores))
    for (network, precision), engines in progress(sorted(groups.items())):
        found = [row for group, cores in engines if (row := best(group, cores, around, slo_ms)) is not None]
        if found:
            rows.append(max(found, key=lambda row: row.each))
        else:
            refused.append(f"{network} {precision}")
    if not rows:
        raise Failure(f"nothing measured keeps {slo_ms:g} ms; relax --slo-ms, or measure more")
    return sorted(rows, key=lambda r: (-(r.record["top1"] or 0), r.record["network"], -r.each)), refused


def best(group: dict[int, MeasuredCell], cores: int, around: Overhead, slo_ms: float) -> Row | None:
    """The largest batch's row that does most within the bound; None if no batch keeps it."""
    options = []
    for max_batch in sorted(group):
        service = capacity.service_of(group, max_batch)
        # A request waits for the batch before its own, so two of them must fit.
        if 2 * service.times[-1] > slo_ms / 1e3 and max_batch > 1:
            break
        each = rate_of(group[max_batch], service, cores, around.seconds, slo_ms)
        if each is not None:
            options.append((each, max_batch, service))
    if not options:
        return None
    each, max_batch, service = max(options)
    item = group[max_batch]
    pixels = rate_of(item, service, cores, around.http, slo_ms)
    assert pixels is not None  # less work on the same engine
    engine = service.times[-1] / max_batch
    decode, http = around.decode / cores, around.http / cores
    bottleneck = max((engine, "engine"), (decode, "decoding"), (http, "HTTP"))[1]
    memory = (item["memory_mb"]["peak_rss"] or 0.0) + around.memory_mb
    return Row(item, max_batch, cores, each, max(each, pixels), bottleneck, memory)


def rate_of(item: MeasuredCell, service: Service, cores: int, seconds: float, slo_ms: float) -> float | None:
    """Images a second of a replica whose service spends `seconds` of processor time on each beside the engine."""
    if item["memory_mb"]["peak_gpu"]:
        modelled = queueing.highest_rate(service, slo_ms / 1e3)
        own = item["cpu_seconds_per_image"]  # feeding the GPU
        return None if modelled is None else min(modelled, BUSY * cores / (own + seconds))
    times = tuple(time + n * seconds / cores for n, time in enumerate(service.times, 1))
    return queueing.highest_rate(replace(service, times=times), slo_ms / 1e3)


# --- as Markdown ------------------------------------------------------------------------------------------------------


def whole(value: float) -> str:
    """A count or an amount at three significant digits: the data support no more."""
    if value < 1000:
        return str(value) if isinstance(value, int) else significant(value)
    digits = 2 - math.floor(math.log10(value))
    return f"{round(value, digits):,.0f}"


def networks(rows: Sequence[Row], refused: Sequence[str], watts: float | None, price: float | None, slo: float) -> str:
    """What it takes at each rate, by network and precision."""
    header = ["network", "engine", "batch", "top-1 %", "img/s each", "from pixels", "bottleneck"]
    header += [f"replicas at {rate:,}" for rate in RATES] + [f"memory at {RATES[-1]:,}, TB", "joules/image"]
    header += [f"kW at {RATES[-1]:,}"] if watts else []
    header += ["price of 1,000,000 images"] if price else []
    cells = []
    for row in rows:
        r = row.record
        joules = r["power"]["joules_per_image"]
        marked = "†" if r["weights"] == "untrained" and r["top1"] is not None else ""
        line = [
            f"{r['network']} {r['precision']}", r["engine"], str(row.max_batch), significant(r["top1"], 4) + marked,
            whole(row.each), whole(row.pixels_each), row.bottleneck, *(whole(row.count(rate)) for rate in RATES),
            significant(row.count(RATES[-1]) * row.memory_mb / 1e6),
            "not measured" if joules is None else significant(joules),
        ]  # fmt: skip
        line += [whole(row.count(RATES[-1]) * watts / 1e3)] if watts else []
        line += [significant(1e6 / row.each / 3600 * price)] if price else []
        cells.append(line)
    notes = [f"Bound: the 99th percentile within {slo:g} ms, Poisson arrivals dealt at random."]
    notes += [f"A replica is a service with {rows[0].cores} processors of the machine measured."]
    if any(row.record["weights"] == "untrained" for row in rows):
        notes.append("† published; the weights measured here are untrained, which changes no time.")
    if all(row.record["power"]["joules_per_image"] is None for row in rows):
        reasons = sorted({str(row.record["power"]["reason"]) for row in rows})
        notes.append(f"Watts were not measured ({'; '.join(reasons)}).")
    notes += [f"None keeps the bound: {', '.join(refused)}."] if refused else []
    return markdown(header, cells, left=2) + "\n\n" + " ".join(notes)


def wires(around: Overhead) -> str:
    """What each rate asks of the network and of decoding, whatever the network."""
    header = (
        "images/s", "photographs in, Gbit/s", "pixels in, Gbit/s", "answers out, Gbit/s", "processors that decode",
        "processors for HTTP",
    )  # fmt: skip
    cells = [
        (
            f"{rate:,}",
            *(significant(rate * size * GBIT) for size in (JPEG_BYTES, PIXELS_BYTES, ANSWER_BYTES)),
            *(whole(rate * seconds) for seconds in (around.decode, around.http)),
        )
        for rate in RATES
    ]
    note = (
        f"Measured beside the engine, for each image: {significant(1e3 * around.decode)} ms of decoding, "
        f"{significant(1e3 * around.http)} ms for the rest of the request ({around.source})."
    )
    return markdown(header, cells) + "\n\n" + note


def policies(row: Row, documents: Documents) -> str:
    """What the balancer's policy does to the time of an image, simulated."""
    group = capacity.series(in_process(documents))[capacity.key(row.record)]
    service = capacity.service_of(group, row.max_batch)
    header = ["replicas", *(f"{policy}: p50, p99 ms" for policy in simulation.POLICIES)]
    cells = []
    for count in COUNTS:
        found = simulation.by_policy(service, LOAD, count)
        cells.append([str(count), *(f"{significant(f['p50'])}, {significant(f['p99'])}" for f in found.values())])
    r = row.record
    note = f"{r['network']} {r['engine']} {r['precision']}, batches up to {row.max_batch}, at {100 * LOAD:.0f} % of "
    return markdown(header, cells) + "\n\n" + note + "what the engines could do at most; decoding is not in it."


def simulated(documents: Documents) -> str:
    """What the simulation says of the two-replica run, beside what was measured in it."""
    header = ("run", "", "p50 ms", "p90 ms", "p99 ms")
    cells = []
    for item in steady(documents):
        name = f"{item['network']} {item['engine']} {item['precision']}, {item['rate']:g} per second"
        played = simulation.repeat(item)
        if (latency := item["latency_ms"]) is not None:
            cells.append((name, "measured", *map(significant, (latency["p50"], latency["p90"], latency["p99"]))))
        cells.append((name, "simulated", *(significant(played[p]) for p in ("p50", "p90", "p99"))))
    return markdown(header, cells, left=2)


def blocks(
    documents: Documents,
    slo_ms: float,
    watts: float | None = None,
    price: float | None = None,
    progress: Callable[[Sequence[Any]], Iterable[Any]] = iter,
) -> dict[str, str]:
    """Every table, by the name of its place in docs/scale.md or docs/deploy.md."""
    rows, refused = table_rows(documents, slo_ms, progress)
    return {
        "networks": networks(rows, refused, watts, price, slo_ms),
        "wires": wires(overhead(documents)),
        "policies": policies(rows[0], documents),
        "simulated": simulated(documents),
        "incidents": incidents(documents),
    }


def incidents(documents: Documents) -> str:
    """The results of the two-replica runs, phase by phase."""
    runs = [[i for i in d["records"] if i["kind"] == "replicas"] for _, d in documents]
    return "\n\n".join(
        f"{replicas_title(run)}\n\n{markdown(REPLICAS_HEADER, replicas_rows(run))}" for run in runs if run
    )
