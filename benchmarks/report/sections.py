"""What the report says, section by section; `benchmarks.report.renderers` writes it as HTML, Markdown and CSV.

Everything in it is computed from result records each time; no number is typed in by hand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

from benchmarks import environment
from benchmarks.records import (
    FEWEST_FOR_P99,
    Cell,
    Document,
    Environment,
    MeasuredCell,
    Record,
    RecordsFile,
    by_network,
    is_cell,
    measured,
    measured_cells,
    memory,
    significant,
    smallest_batch,
)
from benchmarks.report import claims
from benchmarks.report.drawing import UNTRAINED, Figure, Series, shown
from benchmarks.report.figures import has_roofline, roof

Row = tuple[str, ...]


class Heading(NamedTuple):
    """The head of a table's column."""

    name: str
    unit: str = ""


@dataclass(frozen=True)
class Table:
    """Cells under their headings. Columns from `numbers_from` on hold numbers; `kind` names the table's style."""

    headings: tuple[Heading, ...]
    rows: Sequence[Row]
    numbers_from: int | None = None
    kind: str = ""


@dataclass(frozen=True)
class Section:
    """One section of the report. Its parts follow in this order; those that are empty are left out."""

    title: str
    text: str = ""
    table: Table | None = None
    bullets: Sequence[str] = ()
    figures: Sequence[Figure] = ()


@dataclass(frozen=True)
class Report:
    title: str
    lead: str
    sections: tuple[Section, ...]


NONE = "–"  # noqa: RUF001, not measured

NAMES = {
    "onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX",
    "onnxruntime-cuda": "ONNX Runtime CUDA", "torch": "PyTorch", "torch.compile": "torch.compile",
    "torch-cuda": "PyTorch CUDA", "torch.compile-cuda": "torch.compile CUDA",
}  # fmt: skip


HOW = (
    "A latency is one call of the engine: a batch of uint8 pixels in memory to probabilities in memory, one call after "
    "another on one stream, after a warm-up that ends when windows agree. Decoding photographs is not in it.",
    "Latency, memory and power are measured in separate passes, each in a fresh process. Every call's time is kept in "
    "the result file; percentiles and counts are of those. The interval beside a median is 95 %, from a block "
    "bootstrap, widened to the medians of the single processes.",
    "Memory is the peak of resident memory above the process before it opened the engine, so the engine's own library "
    "is in it. MB are 10⁶ bytes. Operations are multiply-accumulates of one image.",
    "Accuracy is top-1 on ImageNet as its source column says. It is the network's, not the file's: what a precision "
    "costs is in the export's parity record.",
    "A dash means: not measured. It never means zero.",
)

# What a reader must also know if a network ran on a GPU, or if `benchmarks/gpu.sh` measured it.
HOW_GPU = (
    "Memory of a network on a GPU is what it adds to the GPU's memory in use, weights and scratch memory included and "
    "the libraries' own context not."
)
HOW_SCRIPT = (
    "was measured by benchmarks/gpu.sh: one process serves all cells of a network, each in an engine opened anew; an "
    "engine whose answers are not those of float32 on the CPU, by the exporter's thresholds, is not timed"
)


def report(documents: Sequence[Document], series: Sequence[Series], figures: Sequence[Figure]) -> Report:
    """The report of `documents`; `figures` are those of `series`."""
    return Report(title(documents), lead(documents, series), tuple(sections(documents, series, figures)))


def sections(documents: Sequence[Document], series: Sequence[Series], figures: Sequence[Figure]) -> Iterator[Section]:
    """The sections in their order; a section without content is left out."""
    if series:
        yield Section("Networks", table=networks(series), bullets=notes(series))
        if machines := together(documents):
            yield Section("Machines side by side", table=machines)
        yield Section("The paper's claims", CLAIMS_ARE, claims_of(series))
        yield Section("Figures", figures=figures)
        if roofs := roofline(series):
            yield Section("Roofline", ROOFLINE_IS, roofs)
    if scenarios := load(documents):
        yield Section("Scenarios", table=scenarios)
    if failed := failures(documents):
        yield Section("Not measured", bullets=failed)
    yield Section("How it was measured", bullets=how(documents))
    for name, document in documents:
        yield Section(f"Environment of {name}", table=Table((), environment_rows(document)))


def series_of(documents: Sequence[Document]) -> list[Series]:
    """The in-process records by run, engine and precision; the run is named only if there are several."""
    found: dict[str, list[Cell]] = {}
    local = [(name, [i for i in document["records"] if is_cell(i)]) for name, document in documents]
    several = sum(bool(items) for _, items in local) > 1
    for name, items in local:
        for item in items:
            label = ran_on(item["engine"], item["precision"])
            found.setdefault(f"{label}, {name}" if several else label, []).append(item)
    return [Series(label, tuple(items)) for label, items in found.items()]


def headings(*names: str) -> tuple[Heading, ...]:
    """Columns from their names; a unit follows a comma."""
    return tuple(Heading(name, unit) for name, _, unit in (name.partition(", ") for name in names))


def networks(series: Sequence[Series]) -> Table:
    """One row a network and series, fastest network first within a series; latencies are of the smallest batch."""
    rows = []
    for one in series:
        best = {n: max(g, key=lambda i: float(i["throughput_img_s"])) for n, g in by_network(one.good).items()}
        for item in sorted(smallest_batch(one.good), key=lambda i: float(i["latency_ms"]["p50"]) / i["batch"]):
            rows.append(cells(one, item, best[item["network"]]))
    head = headings(
        "network", "engine", "weights", "params, 10⁶", "MACs, 10⁹", "top-1, %", "p50, ms", "p90, ms", "p99, ms",
        "calls", "best throughput, img/s", "CPU, ms/img", "memory, MB", "net energy, J/img",
    )  # fmt: skip
    return Table(head, rows, 3, "networks")


def cells(one: Series, item: MeasuredCell, best: MeasuredCell) -> Row:
    latency = item["latency_ms"]
    low, high = latency.get("interval") or (None, None)
    mark = UNTRAINED if item["top1"] is not None and item["weights"] == "untrained" else ""
    return (
        shown(item),
        one.label,
        item["weights"],
        significant(item["params"] and item["params"] / 1e6),
        significant(item["macs"] and item["macs"] / 1e9),
        NONE if item["top1"] is None else f"{item['top1']:.2f}{mark}",
        significant(latency["p50"]) + (f" ({significant(low)} to {significant(high)})" if low is not None else ""),
        significant(latency["p90"]),
        significant(latency["p99"]) + "*" * (latency["count"] < FEWEST_FOR_P99),
        f"{latency['count']:,}",
        f"{significant(best['throughput_img_s'])} at batch {best['batch']}",
        significant(best["cpu_seconds_per_image"] * 1e3),
        significant(memory(item)),
        significant(best["power"]["net_joules_per_image"]),
    )


def notes(series: Sequence[Series]) -> list[str]:
    """What the marks that occur in the table mean."""
    good = [item for one in series for item in one.good]
    found = []
    if any(item["weights"] == "untrained" for item in good):
        found.append(
            f"{UNTRAINED} The weights measured here are untrained. They take the same time and memory as trained ones; "
            "an accuracy beside them is the published one, not theirs."
        )
    if any(item["latency_ms"]["count"] < FEWEST_FOR_P99 for item in good):
        found.append(f"* From fewer than {FEWEST_FOR_P99} calls, so the p99 is little more than the slowest call.")
    if batches := sorted({item["batch"] for item in smallest_batch(good)}):
        found.append(
            f"Latencies and memory are at batch {', '.join(map(str, batches))}, the median with its 95 % interval; "
            "processor time and energy are at the batch of the best throughput."
        )
    cold = sum(item["latency_ms"].get("warm") is False for item in good)
    if cold:
        found.append(
            f"In {cold} of {len(good)} measurements the warm-up reached its limit before its windows agreed: the "
            "machine was busy with something else, or the limit is short for the network."
        )
    sources = sorted({item["accuracy_source"] for item in good if item["accuracy_source"]})
    if sources:
        found.append(f"Source of accuracies: {'; '.join(sources)}.")
    reasons = sorted({item["power"]["reason"] for item in good if item["power"]["reason"]})
    found += [f"Power was not measured: {reason}." for reason in reasons]
    return found


def failures(documents: Sequence[Document]) -> list[str]:
    found = [item for _, document in documents for item in document["records"] if not measured(item)]
    return [f"{item['network']} {item['engine']} {item['precision']}, {what(item)} {item['status']}" for item in found]


def what(item: Record) -> str:
    return str(item.get("scenario") or f"batch {item['batch']}")


PARTS = ("decode", "queue", "inference", "service", "transport")


def load(documents: Sequence[Document]) -> Table | None:
    """A row for each record of `benchmarks load` and of the scenarios; the parts of a latency are means."""
    rows = []
    served = (i for _, document in documents for i in document["records"] if not is_cell(i))
    for item in cast(Iterator[Mapping[str, Any]], served):
        latency, parts, within = item["latency_ms"] or {}, item.get("split_ms") or {}, item.get("within_slo")
        if item["latency_ms"] is None:
            continue  # listed under "Not measured"
        rows.append((
            item["network"] + (UNTRAINED if item["weights"] == "untrained" else ""),
            ran_on(item["engine"], item["precision"]),
            item["scenario"] + (f": {significant(item['rate'])} img/s" if item.get("rungs") and item["rate"] else ""),
            f"{item['sent']:,}",
            "; ".join(f"{count} x {status}" for status, count in item["errors"].items()) or "none",
            significant(item["throughput_img_s"]),
            *(significant(latency.get(name)) for name in ("p50", "p90", "p99")),
            *(significant((parts.get(n) or {}).get("mean")) for n in PARTS),
            significant(item.get("mean_batch")),
            NONE if within is None else f"{100 * within:.1f} % in {item['slo_ms']:g} ms",
        ))  # fmt: skip
    head = headings(
        "network", "engine", "scenario", "sent", "errors", "throughput, img/s", "p50, ms", "p90, ms", "p99, ms",
        *(f"{part}, ms" for part in PARTS), "mean batch", "within bound",
    )  # fmt: skip
    return Table(head, rows, 3, "networks") if rows else None


def ran_on(engine: str, precision: str) -> str:
    return f"{NAMES.get(engine, engine)} {precision}"


CLAIMS_ARE = (
    "Canziani, Paszke, Culurciello, An Analysis of Deep Neural Network Models for Practical Applications "
    "(arXiv 1605.07678), drew these from a Jetson TX1 in 2016. Each is tested here on this machine's records; "
    "the intervals are bootstraps over networks, and the thresholds were set before the data."
)


def claims_of(series: Sequence[Series]) -> Table:
    # Engines with the same verdict for the same reason share one row.
    grouped: dict[tuple[int, str, str], tuple[list[str], claims.Claim]] = {}
    for label, claim in ((one.label, claim) for one in series for claim in claims.test(one.records)):
        grouped.setdefault((claim.number, claim.verdict, claim.statistic), ([], claim))[0].append(label)
    rows = [
        (
            f"{claim.number}. {claim.text}",
            "; ".join(labels),
            claim.verdict,
            claim.statistic + (f". {claim.note[0].upper()}{claim.note[1:]}" if claim.note else ""),
            claim.interval_text or NONE,
            claim.threshold,
            f"{claim.records}, of {len(claim.networks)} networks",
        )
        for labels, claim in sorted(grouped.values(), key=lambda pair: pair[1].number)
    ]
    head = ("claim", "engine", "verdict", "statistic", "95 % interval", "holds if", "records")
    return Table(headings(*head), rows, kind="claims")


def how(documents: Sequence[Document]) -> list[str]:
    """How it was measured, and what may have disturbed it."""
    warnings = [(name, environment.busy(document["environment"])) for name, document in documents]
    found = [*HOW, *(f"In {name}, {warning}." for name, warning in warnings if warning)]
    items = [(name, document, item) for name, document in documents for item in document["records"] if measured(item)]
    found += [HOW_GPU] * any(item["memory_mb"]["peak_gpu"] is not None for *_, item in items)
    found += [f"{name} {HOW_SCRIPT}." for name in dict.fromkeys(n for n, _, i in items if i["kind"] == "gpu_cell")]
    modes = dict.fromkeys((name, document["environment"].get("mode")) for name, document in documents)
    return [*found, *(f"{name}: {mode}." for name, mode in modes if mode)]


def environment_rows(document: RecordsFile) -> list[tuple[str, str]]:
    """The environment block in words, in its own order."""
    rows = []
    for name, value in document["environment"].items():
        if isinstance(value, dict):
            missing = "no limit" if name == "limits" else "not known"
            text = ", ".join(f"{key} {missing if item is None else plain(item)}" for key, item in value.items())
        elif isinstance(value, list):
            text = ", ".join(
                " ".join(map(str, item.values())) if isinstance(item, dict) else str(item) for item in value
            )
        else:
            text = "not known" if value is None else ("no", "yes")[value] if isinstance(value, bool) else str(value)
        rows.append((name.replace("_", " "), text or "none"))
    return rows


def plain(value: Any) -> str:
    """A value inside a block of the environment; measured numbers are rounded to the digits that mean something."""
    if isinstance(value, dict):
        return "(" + ", ".join(f"{key} {plain(item)}" for key, item in value.items()) + ")"
    return f"{value:,.4g}" if isinstance(value, float) and value > 100 else str(value)


def title(documents: Sequence[Document]) -> str:
    machines = dict.fromkeys(document["environment"]["cpu"] for _, document in documents)
    gpus = dict.fromkeys(gpu["name"] for _, document in documents for gpu in gpus_of(document["environment"]))
    return f"Time and power on {', '.join([*gpus, *machines])}"


def lead(documents: Sequence[Document], series: Sequence[Series]) -> str:
    """One paragraph: what was measured, where, when, how often."""
    good = [item for one in series for item in one.good]
    machines = {document["environment"]["cpu"]: document["environment"] for _, document in documents}
    where = "; ".join(
        ", ".join(gpu["name"] for gpu in gpus_of(env)) + (" beside " if gpus_of(env) else "")
        + f"{cpu}, {env['cores']} cores, {significant((env.get('memory_mb') or 0) / 1000)} GB"
        for cpu, env in machines.items()
    )  # fmt: skip
    dates = sorted({document["environment"]["date"][:10] for _, document in documents})
    calls = sum(item["latency_ms"]["count"] for item in good)
    return (
        f"{len(by_network(good))} networks in {len(series)} combination{'s' * (len(series) != 1)} of engine and "
        f"precision, {len(good)} measurements of {calls:,} timed calls, on {where}; {' and '.join(dates)}."
    )


def together(documents: Sequence[Document]) -> Table | None:
    """The machines side by side, one row a network; None if there is only one machine.

    Of each machine the best throughput with what gave it, and the fastest single image (or smallest batch measured).
    """
    machines: dict[str, dict[str, list[MeasuredCell]]] = {}
    for _, document in documents:
        for network, group in by_network(measured_cells(document["records"])).items():
            machines.setdefault(device(document["environment"]), {}).setdefault(network, []).extend(group)
    if len(machines) < 2:
        return None
    head = headings("network", *(n for m in machines for n in (f"{m}: best, img/s", "with", "one image, ms")))
    names = dict.fromkeys(name for groups in machines.values() for name in groups)
    rows = [(name, *(cell for groups in machines.values() for cell in side(groups.get(name, [])))) for name in names]
    return Table(head, rows, 1, "networks")


def side(group: Sequence[MeasuredCell]) -> Row:
    """The cells of one network on one machine in `together`."""
    if not group:
        return (NONE,) * 3
    best = max(group, key=lambda item: float(item["throughput_img_s"]))
    least = min(int(item["batch"]) for item in group)
    quickest = min(float(item["latency_ms"]["p50"]) for item in group if item["batch"] == least)
    return (
        significant(best["throughput_img_s"]) + (UNTRAINED if best["weights"] == "untrained" else ""),
        f"{ran_on(best['engine'], best['precision'])}, batch {best['batch']}",
        significant(quickest) + (f" at batch {least}" if least > 1 else ""),
    )


def device(env: Environment) -> str:
    """What the networks ran on, for a heading."""
    gpus = gpus_of(env)
    return str(gpus[0]["name"] if gpus else env["cpu"])


def gpus_of(env: Environment) -> list[dict[str, str]]:
    """The machine's GPUs; none if it was measured in CPU mode, which ignores them."""
    return [] if env.get("mode") else env.get("gpus") or []


ROOFLINE_IS = (
    "What the device's measured copy bandwidth and matrix rate allow a network, if its layers are well fused: weights "
    "are read once a batch, and every map is written and read once. At small batches, maps and weights may stay in a "
    "cache, which this model ignores."
)


def roofline(series: Sequence[Series]) -> Table | None:
    """The smallest and the largest batch of every network that has a roofline, nearest to it first."""
    rows: list[Row] = []
    for one in series:
        ends: list[MeasuredCell] = []
        for group in by_network([item for item in one.good if has_roofline(item)]).values():
            ordered = sorted(group, key=lambda item: int(item["batch"]))
            ends += [ordered[0], ordered[-1]][: len(ordered)]
        for item in sorted(ends, key=lambda item: -roof(item)["share"]):
            limit = roof(item)
            rows.append((
                shown(item), one.label, str(item["batch"]), significant(limit["img_s"]), limit["timed"],
                significant(limit["attainable_img_s"]), f"{100 * limit['share']:.1f}", limit["bound_by"],
                significant(limit["operations_per_byte"]),
            ))  # fmt: skip
    head = headings(
        "network", "engine", "batch", "measured, img/s", "timed", "attainable, img/s", "share, %", "bound by",
        "operations, per byte",
    )  # fmt: skip
    return Table(head, rows, 2, "networks") if rows else None
