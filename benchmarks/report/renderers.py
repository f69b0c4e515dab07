"""Writes the report as one HTML page that needs no network, as Markdown, and its numbers as CSV."""

from __future__ import annotations

import csv
import html
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.records import Document
from benchmarks.report import claims
from benchmarks.report.figures import draw
from benchmarks.report.sections import Report, Table, report, series_of
from models.console import Failure

PAGE, MARKDOWN, CSV, FIGURES = "report.html", "report.md", "records.csv", "figures"


def write(documents: Sequence[Document], folder: Path) -> Path:
    """The report of `documents` in `folder`, in every form; the path of its page. `Failure` if they hold no record."""
    if not any(document["records"] for _, document in documents):
        raise Failure("the result files hold no records yet; `python -m benchmarks run` measures some")
    series = series_of(documents)
    figures = draw(series)
    told = report(documents, series, figures)
    try:
        (folder / FIGURES).mkdir(parents=True, exist_ok=True)
        for figure in figures:
            (folder / FIGURES / f"{figure.name}.svg").write_text(figure.svg, "utf-8")
            (folder / FIGURES / f"{figure.name}.png").write_bytes(figure.png)
        (folder / CSV).write_text(as_csv(documents), "utf-8", newline="")
        (folder / MARKDOWN).write_text(as_markdown(told), "utf-8")
        (folder / PAGE).write_text(as_html(told), "utf-8")
    except OSError as error:
        raise Failure(f"cannot write the report in {folder}: {error.strerror}; choose another --out") from error
    return folder / PAGE


def as_markdown(told: Report) -> str:
    parts = [f"# {told.title}", told.lead]
    for section in told.sections:
        parts += [f"## {section.title}", section.text, markdown_table(section.table) if section.table else ""]
        parts += ["\n".join(f"- {line}" for line in section.bullets)]
        parts += [f"### {f.title}\n\n{f.caption}\n\n![{f.title}]({FIGURES}/{f.name}.png)" for f in section.figures]
    return "\n\n".join(filter(None, parts)) + "\n"


def markdown_table(table: Table) -> str:
    head = [f"{name} ({unit})" if unit else name for name, unit in table.headings] or ["", ""]
    clean = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *table.rows)]
    return "\n".join("| " + " | ".join(row) + " |" for row in (clean[0], ["---"] * len(head), *clean[1:]))


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


def as_html(told: Report) -> str:
    """The whole report as one HTML file: its style and figures are inside, and it asks the network for nothing."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(told.title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n"
        + "\n".join(elements(told))
        + "\n</body>\n</html>\n"
    )


def elements(told: Report) -> Iterator[str]:
    """The elements of the page's body."""
    escape = html.escape
    yield f"<h1>{escape(told.title)}</h1>\n<p>{escape(told.lead)}</p>"
    for section in told.sections:
        yield f"<h2>{escape(section.title)}</h2>"
        if section.text:
            yield f'<p class="faint">{escape(section.text)}</p>'
        if section.table:
            yield html_table(section.table)
        if section.bullets:
            yield "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in section.bullets) + "</ul>"
        for f in section.figures:
            head = f"<h3>{escape(f.title)}</h3><figcaption>{escape(f.caption)}</figcaption>"
            yield f'<figure id="{f.name}">{head}{f.inline}</figure>'


def html_table(table: Table) -> str:
    verdicts = {claims.HOLDS: "holds", claims.FAILS: "fails"}

    def cell(tag: str, index: int, text: str, unit: str = "") -> str:
        number = table.numbers_from is not None and index >= table.numbers_from
        kinds = " ".join(filter(None, ("number" * number, verdicts.get(text, ""))))
        small = f" <small>{html.escape(unit)}</small>" if unit else ""
        return f"<{tag}{f' class={kinds!r}' if kinds else ''}>{html.escape(text)}{small}</{tag}>"

    head = "".join(cell("th", i, *heading) for i, heading in enumerate(table.headings))
    body = "\n".join(f"<tr>{''.join(cell('td', i, text) for i, text in enumerate(row))}</tr>" for row in table.rows)
    return (
        f'<div class="wide"><table{f" class={table.kind!r}" if table.kind else ""}>'
        + (f"<thead><tr>{head}</tr></thead>" if head else "")
        + f"<tbody>{body}</tbody></table></div>"
    )


COLUMNS = (
    "run", "network", "version", "weights", "engine", "precision", "batch", "scenario", "threads", "settings", "status",
    "p50_ms", "p50_low_ms", "p50_high_ms", "p90_ms", "p99_ms", "mean_ms", "std_ms", "count", "throughput_img_s",
    "cpu_seconds_per_image", "weights_mb", "peak_rss_mb", "peak_gpu_mb", "activations_mb", "power_source",
    "power_reason", "idle_w", "mean_w", "net_w", "joules_per_image", "net_joules_per_image", "macs", "params", "top1",
    "top5", "accuracy_source", "sent", "concurrency", "rate", "mean_batch", "within_slo", "client_lag_p99_ms",
)  # fmt: skip


def as_csv(documents: Sequence[Document]) -> str:
    """CSV, one row a record, every number in full; what was not measured is empty."""
    out = io.StringIO()
    rows = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    rows.writeheader()
    for name, document in documents:
        for item in document["records"]:
            rows.writerow({"run": name} | row_of(item))
    return out.getvalue()


def row_of(item: Mapping[str, Any]) -> dict[str, Any]:
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
