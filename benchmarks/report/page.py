"""The report: one HTML page that needs no network, the same in Markdown, the numbers as CSV, the figures as files.

Everything in it is computed from result records here and now; nothing is carried over or typed in.
"""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import environment
from benchmarks.records import Record, by_network, measured, memory, significant, smallest_batch
from benchmarks.report import claims
from benchmarks.report.drawing import UNTRAINED, Figure, Series, shown
from benchmarks.report.figures import draw, has_roofline
from models.console import Failure

Document = tuple[str, dict[str, Any]]  # a file's name without its ending, and its content

PAGE, MARKDOWN, CSV, FIGURES = "report.html", "report.md", "records.csv", "figures"

# From how many calls a 99th percentile is one: below, it is the slowest call or the one after it.
FEWEST_FOR_P99 = 100

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

# What a reader must know beside that where a network ran on a GPU, or `benchmarks/gpu.sh` measured it.
HOW_GPU = (
    "Memory of a network on a GPU is what it adds to the GPU's memory in use, weights and scratch memory included and "
    "the libraries' own context not."
)
HOW_SCRIPT = (
    "was measured by benchmarks/gpu.sh: one process serves all cells of a network, each in an engine opened anew; an "
    "engine whose answers are not those of float32 on the CPU, by the exporter's thresholds, is not timed"
)

COLUMNS = (
    "run", "network", "version", "weights", "engine", "precision", "batch", "scenario", "threads", "settings", "status",
    "p50_ms", "p50_low_ms", "p50_high_ms", "p90_ms", "p99_ms", "mean_ms", "std_ms", "count", "throughput_img_s",
    "cpu_seconds_per_image", "weights_mb", "peak_rss_mb", "peak_gpu_mb", "activations_mb", "power_source",
    "power_reason", "idle_w", "mean_w", "net_w", "joules_per_image", "net_joules_per_image", "macs", "params", "top1",
    "top5", "accuracy_source", "sent", "concurrency", "rate", "mean_batch", "within_slo", "client_lag_p99_ms",
)  # fmt: skip


def write(documents: Sequence[Document], folder: Path) -> Path:
    """The report of `documents` in `folder`; the path of its page. `Failure` when they hold no record."""
    if not any(document["records"] for _, document in documents):
        raise Failure("the result files hold no records yet; `python -m benchmarks run` measures some")
    series = series_of(documents)
    figures = draw(series)
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        for figure in figures:
            (folder / FIGURES / f"{figure.name}.svg").write_text(figure.svg, "utf-8")
            (folder / FIGURES / f"{figure.name}.png").write_bytes(figure.png)
        (folder / CSV).write_text(table_of_records(documents), "utf-8", newline="")
        (folder / MARKDOWN).write_text(markdown(documents, series, figures), "utf-8")
        (folder / PAGE).write_text(page(documents, series, figures), "utf-8")
    except OSError as error:
        raise Failure(f"cannot write the report in {folder}: {error.strerror}; choose another --out") from error
    return folder / PAGE


def series_of(documents: Sequence[Document]) -> list[Series]:
    """The in-process records by run, engine and precision; the run is named only where there are several."""
    found: dict[str, list[Record]] = {}
    local = [(name, [i for i in document["records"] if not i.get("scenario")]) for name, document in documents]
    several = sum(bool(items) for _, items in local) > 1
    for name, items in local:
        for item in items:
            label = f"{NAMES.get(item['engine'], item['engine'])} {item['precision']}"
            found.setdefault(f"{label}, {name}" if several else label, []).append(item)
    return [Series(label, tuple(items)) for label, items in found.items()]


def table_of_records(documents: Sequence[Document]) -> str:
    """CSV, one row a record, every number in full; what was not measured is empty."""
    out = io.StringIO()
    rows = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    rows.writeheader()
    for name, document in documents:
        for item in document["records"]:
            rows.writerow({"run": name} | row_of(item))
    return out.getvalue()


def row_of(item: Record) -> dict[str, Any]:
    latency, power, memory = item["latency_ms"] or {}, item["power"], item["memory_mb"]
    low, high = latency.get("interval", (None, None))
    flat = {name: item.get(name) for name in COLUMNS if name in item}
    flat |= {f"{name}_ms": latency.get(name) for name in ("p50", "p90", "p99", "mean", "std")}
    flat |= {"p50_low_ms": low, "p50_high_ms": high, "count": latency.get("count")}
    flat |= {f"{name}_mb": memory[name] for name in ("weights", "peak_rss", "peak_gpu", "activations")}
    flat |= {f"power_{name}": power[name] for name in ("source", "reason")}
    return flat | {
        name: power[name] for name in ("idle_w", "mean_w", "net_w", "joules_per_image", "net_joules_per_image")
    }


# One row a network and engine: what a reader compares. Each column is a heading, its unit, and a cell.
HEADINGS = (
    ("network", ""), ("engine", ""), ("weights", ""), ("params", "10⁶"), ("MACs", "10⁹"), ("top-1", "%"), ("p50", "ms"),
    ("p90", "ms"), ("p99", "ms"), ("calls", ""), ("best throughput", "img/s"), ("CPU", "ms/img"), ("memory", "MB"),
    ("net energy", "J/img"),
)  # fmt: skip


def table(series: Sequence[Series]) -> list[tuple[str, ...]]:
    """The rows under `HEADINGS`, fastest network first within an engine; latencies are of the smallest batch."""
    rows = []
    for one in series:
        best = {n: max(g, key=lambda i: float(i["throughput_img_s"])) for n, g in by_network(one.good).items()}
        for item in sorted(smallest_batch(one.good), key=lambda i: float(i["latency_ms"]["p50"]) / i["batch"]):
            rows.append(cells(one, item, best[item["network"]]))
    return rows


def cells(one: Series, item: Record, best: Record) -> tuple[str, ...]:
    latency = item["latency_ms"]
    few = "*" if latency["count"] < FEWEST_FOR_P99 else ""
    low, high = latency.get("interval") or (None, None)
    top1 = "–" if item["top1"] is None else f"{item['top1']:.2f}"  # noqa: RUF001
    return (
        shown(item),
        one.label,
        item["weights"],
        significant(item["params"] and item["params"] / 1e6),
        significant(item["macs"] and item["macs"] / 1e9),
        top1 + (UNTRAINED if item["top1"] is not None and item["weights"] == "untrained" else ""),
        significant(latency["p50"]) + (f" ({significant(low)} to {significant(high)})" if low is not None else ""),
        significant(latency["p90"]),
        significant(latency["p99"]) + few,
        f"{latency['count']:,}",
        f"{significant(best['throughput_img_s'])} at batch {best['batch']}",
        significant(best["cpu_seconds_per_image"] * 1e3),
        significant(memory(item)),
        significant(best["power"]["net_joules_per_image"]),
    )


def notes(series: Sequence[Series]) -> list[str]:
    """What the marks in the table mean, those that occur."""
    good = [item for one in series for item in one.good]
    found = []
    if any(item["weights"] == "untrained" for item in good):
        found.append(
            f"{UNTRAINED} The weights measured here are untrained. They take the same time and memory as trained ones; "
            "an accuracy beside them is the published one, not theirs."
        )
    if any(item["latency_ms"]["count"] < FEWEST_FOR_P99 for item in good):
        found.append(
            f"* From fewer than {FEWEST_FOR_P99} calls, so that a p99 is little more than the slowest of them."
        )
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


LOAD_HEADINGS = (
    "network", "engine", "scenario", "sent", "errors", "img/s", "p50 ms", "p90 ms", "p99 ms", "decode ms", "queue ms",
    "inference ms", "service ms", "transport ms", "mean batch", "within bound",
)  # fmt: skip


PARTS = ("decode", "queue", "inference", "service", "transport")


def load_table(documents: Sequence[Document]) -> list[tuple[str, ...]]:
    """The rows of `benchmarks load` and of the scenarios; the parts of a latency are means."""
    rows = []
    for item in (i for _, document in documents for i in document["records"] if i.get("scenario")):
        latency, parts, within = item["latency_ms"] or {}, item.get("split_ms") or {}, item.get("within_slo")
        if not measured(item) and not item["latency_ms"]:
            continue  # among what was not measured
        errors = "; ".join(f"{count} x {status}" for status, count in item["errors"].items()) or "none"
        rows.append((
            item["network"] + (UNTRAINED if item["weights"] == "untrained" else ""),
            f"{NAMES.get(item['engine'], item['engine'])} {item['precision']}",
            item["scenario"] + (f": {significant(item['rate'])} img/s" if item.get("rungs") and item["rate"] else ""),
            f"{item['sent']:,}",
            errors,
            significant(item["throughput_img_s"]),
            *(significant(latency.get(name)) for name in ("p50", "p90", "p99")),
            *(significant((parts.get(n) or {}).get("mean")) for n in PARTS),
            significant(item.get("mean_batch")),
            "–" if within is None else f"{100 * within:.1f} % in {item['slo_ms']:g} ms",  # noqa: RUF001
        ))  # fmt: skip
    return rows


CLAIM_HEADINGS = ("claim", "engine", "verdict", "statistic", "95 % interval", "holds when", "records")


def claim_table(series: Sequence[Series]) -> list[tuple[str, ...]]:
    tested = [(one.label, claim) for one in series for claim in claims.test(one.records)]
    # Where nothing can be told for one and the same reason, one row says so for every engine.
    grouped: dict[tuple[int, str, str], tuple[list[str], claims.Claim]] = {}
    for label, claim in tested:
        grouped.setdefault((claim.number, claim.verdict, claim.statistic), ([], claim))[0].append(label)
    return [
        (
            f"{claim.number}. {claim.text}",
            "; ".join(labels),
            claim.verdict,
            claim.statistic + (f". {claim.note[0].upper()}{claim.note[1:]}" if claim.note else ""),
            claim.interval_text or "–",  # noqa: RUF001
            claim.threshold,
            f"{claim.records}, of {len(claim.networks)} networks",
        )
        for _, (labels, claim) in sorted(grouped.items(), key=lambda pair: pair[0][0])
    ]


def how(documents: Sequence[Document]) -> list[str]:
    """How it was measured, and what may have disturbed it."""
    warnings = [(name, environment.busy(document["environment"])) for name, document in documents]
    found = [*HOW, *(f"In {name}, {warning}." for name, warning in warnings if warning)]
    items = [(name, document, item) for name, document in documents for item in document["records"] if measured(item)]
    found += [HOW_GPU] * any(item["memory_mb"]["peak_gpu"] is not None for *_, item in items)
    found += [f"{name} {HOW_SCRIPT}." for name in dict.fromkeys(name for name, _, item in items if item.get("parity"))]
    modes = dict.fromkeys((name, document["environment"].get("mode")) for name, document in documents)
    return [*found, *(f"{name}: {mode}." for name, mode in modes if mode)]


def environment_rows(document: dict[str, Any]) -> list[tuple[str, str]]:
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
            text = {None: "not known", True: "yes", False: "no"}.get(value, str(value))
        rows.append((name.replace("_", " "), text or "none"))
    return rows


def plain(value: Any) -> str:
    """A value inside a block of the environment: numbers of a measurement without the digits that mean nothing."""
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


def together(documents: Sequence[Document]) -> tuple[list[tuple[str, str]], list[tuple[str, ...]]]:
    """Headings and rows of the machines side by side, one row a network; no rows where there is only one machine.

    Of each machine the best throughput with what gave it, and the fastest single image (or smallest batch measured).
    """
    found: dict[str, dict[str, list[Record]]] = {}
    for _, document in documents:
        items = [item for item in document["records"] if measured(item) and not item.get("scenario")]
        groups = found.setdefault(device(document["environment"]), {})
        for network, group in by_network(items).items():
            groups.setdefault(network, []).extend(group)
    machines = {machine: groups for machine, groups in found.items() if groups}
    if len(machines) < 2:
        return [], []
    header = [("network", "")]
    for machine in machines:
        header += [(f"{machine}, best", "img/s"), ("with", ""), ("one image", "ms")]
    rows = []
    for network in dict.fromkeys(name for groups in machines.values() for name in groups):
        row = [network]
        for groups in machines.values():
            group = groups.get(network, [])
            best = max(group, key=lambda item: float(item["throughput_img_s"]), default=None)
            if best is None:
                row += ["–"] * 3  # noqa: RUF001
                continue
            least = min(int(item["batch"]) for item in group)
            quick = min((i for i in group if i["batch"] == least), key=lambda item: float(item["latency_ms"]["p50"]))
            mark = UNTRAINED if best["weights"] == "untrained" else ""
            row += [
                significant(best["throughput_img_s"]) + mark,
                f"{NAMES.get(best['engine'], best['engine'])} {best['precision']}, batch {best['batch']}",
                significant(quick["latency_ms"]["p50"]) + (f" at batch {least}" if least > 1 else ""),
            ]
        rows.append(tuple(row))
    return header, rows


def device(env: dict[str, Any]) -> str:
    """What the networks ran on, for a heading."""
    gpus = gpus_of(env)
    return str(gpus[0]["name"] if gpus else env["cpu"])


def gpus_of(env: dict[str, Any]) -> list[dict[str, Any]]:
    """The machine's GPUs; none where they were left out on purpose, in CPU mode."""
    return [] if env.get("mode") else env.get("gpus") or []


ROOFLINE_HEADINGS = (
    ("network", ""), ("engine", ""), ("batch", ""), ("measured", "img/s"), ("timed", ""), ("attainable", "img/s"),
    ("share", "%"), ("bound by", ""), ("operations", "per byte"),
)  # fmt: skip

ROOFLINE_IS = (
    "What the device's measured copy bandwidth and matrix rate allow a network, whose traffic is counted as that of a "
    "well fused one: weights read once a batch, every map written and read once. At small batches maps and weights may "
    "stay in a cache, which the model does not know."
)


def roofline_table(series: Sequence[Series]) -> list[tuple[str, ...]]:
    """The smallest and the largest batch of every network that has a roofline, nearest to it first."""
    rows: list[tuple[str, ...]] = []
    for one in series:
        ends: list[Record] = []
        for group in by_network([item for item in one.good if has_roofline(item)]).values():
            ordered = sorted(group, key=lambda item: int(item["batch"]))
            ends += [ordered[0], ordered[-1]][: len(ordered)]
        for item in sorted(ends, key=lambda item: -float(item["roofline"]["share"])):
            roof = item["roofline"]
            rows.append((
                shown(item), one.label, str(item["batch"]), significant(roof["img_s"]), roof["timed"],
                significant(roof["attainable_img_s"]), f"{100 * roof['share']:.1f}", roof["bound_by"],
                significant(roof["operations_per_byte"]),
            ))  # fmt: skip
    return rows


def markdown(documents: Sequence[Document], series: Sequence[Series], figures: Sequence[Figure]) -> str:
    def grid(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
        clean = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (header, *rows)]
        return "\n".join(
            "| " + " | ".join(row) + " |" for row in (clean[0], ["---"] * len(header), *clean[1:])
        )  # fmt: skip

    parts = [f"# {title(documents)}", lead(documents, series)]
    if series:
        parts += ["## Networks", grid([f"{n} ({u})" if u else n for n, u in HEADINGS], table(series))]
        parts += ["\n".join(f"- {note}" for note in notes(series))]
        header, rows = together(documents)
        if rows:
            parts += ["## Machines side by side", grid([f"{n} ({u})" if u else n for n, u in header], rows)]
        parts += ["## The paper's claims", grid(CLAIM_HEADINGS, claim_table(series)), "## Figures"]
        parts += [f"### {f.title}\n\n{f.caption}\n\n![{f.title}]({FIGURES}/{f.name}.png)" for f in figures]
        if rows := roofline_table(series):
            headings = [f"{n} ({u})" if u else n for n, u in ROOFLINE_HEADINGS]
            parts += ["## Roofline", ROOFLINE_IS, grid(headings, rows)]
    if rows := load_table(documents):
        parts += ["## Scenarios", grid(LOAD_HEADINGS, rows)]
    if failed := failures(documents):
        parts += ["## Not measured", "\n".join(f"- {line}" for line in failed)]
    parts += ["## How it was measured", "\n".join(f"- {line}" for line in how(documents))]
    for name, document in documents:
        parts += [f"## Environment of {name}", grid(("", ""), environment_rows(document))]
    return "\n\n".join(parts) + "\n"


STYLE = """
:root { color-scheme: light dark; --ink: #1b1f24; --faint: #5b6570; --line: #d5dae0; --paper: #ffffff; --card: #f6f8fa;
  --good: #006c4f; --bad: #a84300; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ed; --faint: #9aa5b1; --line: #39424d; --paper: #14181d;
  --card: #1c2229; --good: #3fc79a; --bad: #ff9a57; } }
body { font: 16px/1.55 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 84rem;
  margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.7rem; line-height: 1.25; margin: 0 0 .5rem; } h2 { font-size: 1.25rem; margin: 2.5rem 0 .75rem; }
h3 { font-size: 1rem; margin: 0; } p, li { max-width: 65rem; } .faint, figcaption, caption { color: var(--faint); }
figure { margin: 0 0 1.5rem; padding: 1rem; background: var(--card); border: 1px solid var(--line); border-radius: 8px;
  break-inside: avoid; }
figure svg { display: block; width: 100%; height: auto; max-height: 60rem; margin-top: .5rem; }
.wide { overflow-x: auto; } table { border-collapse: collapse; font-size: .82rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
thead th { position: sticky; top: 0; background: var(--paper); white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; } th small { color: var(--faint); font-weight: normal; }
td.holds { color: var(--good); font-weight: 600; } td.fails { color: var(--bad); font-weight: 600; }
td:first-child, .networks td { white-space: nowrap; } .networks { font-size: .78rem; }
.networks th, .networks td { padding: .3rem .4rem; } .claims td:first-child { white-space: normal; }
ul { padding-left: 1.2rem; } code { font-size: .85em; }
@media print { :root { color-scheme: light; --ink: #000; --faint: #444; --line: #bbb; --paper: #fff; --card: #fff; }
  body { font-size: 10pt; max-width: none; padding: 0; } figure, tr { break-inside: avoid; } table { font-size: 7pt; }
  th, td { padding: .15rem .3rem; } .wide { overflow: visible; } h2 { break-after: avoid; } }
"""


def page(documents: Sequence[Document], series: Sequence[Series], figures: Sequence[Figure]) -> str:
    """The whole report as one HTML file: its style and figures are inside, and it asks the network for nothing."""
    escape = html.escape
    body = [f"<h1>{escape(title(documents))}</h1>", f"<p>{escape(lead(documents, series))}</p>"]
    if series:
        body += [
            "<h2>Networks</h2>",
            html_table(HEADINGS, table(series), numbers_from=3, kind="networks"),
            bullets(notes(series)),
        ]
        header, rows = together(documents)
        if rows:
            body += ["<h2>Machines side by side</h2>", html_table(header, rows, numbers_from=1, kind="networks")]
        body += ["<h2>The paper's claims</h2>", f'<p class="faint">{escape(CLAIMS_ARE)}</p>']
        body += [html_table([(name, "") for name in CLAIM_HEADINGS], claim_table(series), kind="claims")]
        body += ["<h2>Figures</h2>"]
        body += [
            f'<figure id="{f.name}"><h3>{escape(f.title)}</h3>'
            f"<figcaption>{escape(f.caption)}</figcaption>{f.inline}</figure>"
            for f in figures
        ]
        if rows := roofline_table(series):
            body += ["<h2>Roofline</h2>", f'<p class="faint">{escape(ROOFLINE_IS)}</p>']
            body += [html_table(ROOFLINE_HEADINGS, rows, numbers_from=2, kind="networks")]
    if rows := load_table(documents):
        body += [
            "<h2>Scenarios</h2>",
            html_table([(name, "") for name in LOAD_HEADINGS], rows, numbers_from=3, kind="networks"),
        ]
    if failed := failures(documents):
        body += ["<h2>Not measured</h2>", bullets(failed)]
    body += ["<h2>How it was measured</h2>", bullets(how(documents))]
    for name, document in documents:
        body += [f"<h2>Environment of {escape(name)}</h2>", html_table((), environment_rows(document))]
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title(documents))}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


CLAIMS_ARE = (
    "Canziani, Paszke, Culurciello, An Analysis of Deep Neural Network Models for Practical Applications "
    "(arXiv 1605.07678), drew these from a Jetson TX1 in 2016. Each is tested here on this machine's records; "
    "the intervals are bootstraps over networks, and the thresholds were set before the data."
)


def html_table(
    header: Sequence[tuple[str, str]], rows: Sequence[Sequence[str]], numbers_from: int = 99, kind: str = ""
) -> str:
    verdicts = {claims.HOLDS: "holds", claims.FAILS: "fails"}

    def cell(tag: str, index: int, text: str, extra: str = "") -> str:
        kinds = " ".join(filter(None, ("number" if index >= numbers_from else "", verdicts.get(text, ""))))
        return f"<{tag}{f' class={kinds!r}' if kinds else ''}>{html.escape(text)}{extra}</{tag}>"

    head = "".join(
        cell("th", i, name, f" <small>{html.escape(unit)}</small>" * bool(unit))
        for i, (name, unit) in enumerate(header)
    )
    body = "\n".join(f"<tr>{''.join(cell('td', i, text) for i, text in enumerate(row))}</tr>" for row in rows)
    return (
        f'<div class="wide"><table{f" class={kind!r}" if kind else ""}>'
        + (f"<thead><tr>{head}</tr></thead>" if head else "")
        + f"<tbody>{body}</tbody></table></div>"
    )


def bullets(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{html.escape(line)}</li>" for line in lines) + "</ul>" if lines else ""
