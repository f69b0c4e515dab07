"""Time, memory and power of exported networks, in processes of their own."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import records
from benchmarks.environment import warn_if_busy
from benchmarks.records import RESULTS, default_path
from models import SETS, console
from models.console import Commands, Usage, natural, positive, positive_integers, words

if TYPE_CHECKING:
    from serving.artifact import Artifact


def add(commands: Commands) -> None:
    run_ = commands.add(
        "run",
        run,
        "Measure networks x engines x precisions x batches, each pass in a fresh process.",
        "--set five --engine onnxruntime,openvino --batch 1,4,16",
    )
    what = run_.add_mutually_exclusive_group()
    what.add_argument(
        "--set", choices=sorted(SETS), help="the exported networks of a set (default: every exported network)"
    )
    what.add_argument("--models", nargs="+", metavar="TAG", help="artifacts, as `python -m export list` shows them")
    run_.add_argument("--engine", type=words, metavar="E,...", help="default: every installed engine the artifact has")
    run_.add_argument("--precision", type=words, metavar="P,...", help="default: every precision the artifact has")
    run_.add_argument(
        "--batch", type=positive_integers, metavar="N,...", help="default: 1,2,4,8,16 (with --quick: 1,4)"
    )
    run_.add_argument(
        "--scenario",
        type=words,
        metavar="S,...",
        help="instead of batches, MLPerf-style single-stream, multi-stream, server, offline",
    )
    run_.add_argument(
        "--slo-ms", type=positive, default=100.0, metavar="MS", help="of the server scenario's p99 (default: 100)"
    )
    run_.add_argument("--threads", type=natural, default=0, metavar="N", help="for the engine (default: every core)")
    short = run_.add_mutually_exclusive_group()
    short.add_argument("--brief", action="store_true", help="three starts of about a second each")
    short.add_argument(
        "--quick", action="store_true", help="a short look: one start, one engine and precision a network"
    )
    run_.add_argument("--fresh", action="store_true", help="measure again what --out already holds")
    run_.add_argument("--out", type=Path, metavar="FILE", help=f"default: {RESULTS}/<machine>-<date>.json")

    engines_ = commands.add(
        "engines",
        engines,
        "Time networks in PyTorch and in every engine they have here, side by side in interleaved rounds.",
        "resnet50 --batch 1,8",
    )
    engines_.add_argument("tags", nargs="+", metavar="TAG", help="artifacts, as `python -m export list` shows them")
    engines_.add_argument("--weights", metavar="PATH", help="the file an artifact was exported from, for PyTorch")
    engines_.add_argument("--batch", type=positive_integers, default=[1, 8], metavar="N,...", help="default: 1,8")
    engines_.add_argument("--rounds", type=natural, default=7, metavar="N", help="default: 7")
    engines_.add_argument("--threads", type=natural, default=0, metavar="N", help="of each (default: every core)")
    engines_.add_argument("--compile", action="store_true", help="torch.compile too, if there is a C++ compiler")
    engines_.add_argument("--out", type=Path, metavar="FILE", help="also write every value to this file")

    pixels_ = commands.add(
        "pixels",
        pixels,
        "Time and weigh what makes a network's pixels of a photograph, by Pillow alone and by us.",
        "--images photographs/ --megapixels 0,2,12",
    )
    pixels_.add_argument("--images", type=Path, required=True, metavar="DIR", help="photographs")
    pixels_.add_argument(
        "--megapixels",
        type=sizes,
        default=[0.0, 2.0, 12.0],
        metavar="N,...",
        help="sizes that they are enlarged to, 0 as they are (default: 0,2,12)",
    )
    pixels_.add_argument("--rounds", type=natural, default=5, metavar="N", help="default: 5")
    pixels_.add_argument("--into", type=Path, metavar="FILE", help="write the table into this page, at <!-- pixels -->")


def sizes(text: str) -> list[float]:
    """Megapixels, separated by commas; 0 is allowed."""
    return [float(word) if float(word) == 0 else positive(word) for word in words(text)]


def pixels(options: argparse.Namespace) -> int:
    from benchmarks import environment, tables
    from benchmarks.engine.pixels import compare, table
    from export.parity import photographs

    warn_if_busy(environment.describe())
    bodies = [path.read_bytes() for path in photographs(options.images)]
    if not bodies:
        raise Usage(f"{options.images} holds no image files; give a folder of photographs to --images")
    with console.Bar("comparing") as bar:
        rows = []
        for row in compare(bodies, options.megapixels, options.rounds):
            rows.append(row)
            bar.advance()
    print(table(rows))
    if options.into:
        page = options.into.read_text("utf-8")
        options.into.write_text(tables.insert(page, {"pixels": table(rows)}), "utf-8")
    return 0


def run(options: argparse.Namespace) -> int:
    from benchmarks import environment
    from benchmarks.engine import cells as measure
    from benchmarks.engine import scenarios
    from benchmarks.engine.session import Session, earlier, judge
    from serving.runtime import ENGINES, cores

    for engine in options.engine or ():
        if engine not in ENGINES:
            raise Usage(f"no engine is called {engine!r}; there are {', '.join(ENGINES)}")
    for name in options.scenario or ():
        if name not in scenarios.NAMES:
            raise Usage(f"no scenario is called {name!r}; there are {', '.join(scenarios.NAMES)}")
    settings = measure.QUICK if options.quick else measure.BRIEF if options.brief else measure.FULL
    wanted = measure.cells(
        chosen(options),
        options.engine,
        options.precision,
        options.batch or ([1, 4] if options.quick else [1, 2, 4, 8, 16]),
        first_only=options.quick and options.engine is None and options.precision is None,
        scenarios=[measure.ScenarioSpec(name, options.slo_ms) for name in options.scenario or ()],
    )
    if not wanted:
        raise Usage("no exported file fits --engine and --precision here; `python -m export list` shows what there is")
    threads = options.threads or cores()
    here: records.Environment = {**environment.describe(options.threads), "settings": settings.name}
    path = options.out or default_path(environment.machine(here), "-quick" if options.quick else "")
    warn_if_busy(here)
    session = Session(path, here, () if options.fresh else earlier(path, here))
    ours = [records.key(measure.describe(cell, threads, settings)) for cell in wanted]
    seen = {key for key in ours if key in session.items and records.measured(session.items[key])}
    if seen:
        print(f"{len(seen)} of {len(wanted)} are in {path} already; --fresh measures them again", file=sys.stderr)
    # The file exists from the start: a path that cannot be written is known before an hour of measuring, not after.
    session.write()
    try:
        with console.Bar("measuring", len(ours) - len(seen)) as bar:
            for item in measure.measure_all(wanted, settings, threads, seen):
                session.add(item)
                bar.describe(f"{item['network']} {item['engine']} {item['precision']}")
                bar.advance()
    finally:
        mine = [item for key, item in session.items.items() if key in ours]
        if mine and options.scenario:
            print(scenarios.summary([item for item in mine if item["kind"] == "scenario"]))
        elif mine:
            print(summary([item for item in mine if records.is_cell(item)]))
        print(path)
    judge(mine)
    return 0


def chosen(options: argparse.Namespace) -> list[Artifact]:
    """The artifacts to measure: those that are named, or the default version of every name in the store."""
    from export.store import artifacts
    from serving.artifact import find

    if options.models:
        return [find(tag) for tag in options.models]
    meant: dict[str, Artifact] = {}
    for artifact in artifacts():
        meant.setdefault(artifact.network, artifact)
    if not meant:
        raise Usage("nothing is exported yet; `python -m export --set five` makes something to measure")
    if not options.set:
        return list(meant.values())
    missing = [name for name in SETS[options.set] if name not in meant]
    if missing:
        print(f"not exported, so not measured: {', '.join(missing)}", file=sys.stderr)
    if len(missing) == len(SETS[options.set]):
        raise Usage(f"nothing of the set is exported yet; `python -m export --set {options.set}` does it")
    return [meant[name] for name in SETS[options.set] if name in meant]


def summary(items: Sequence[records.Cell]) -> str:
    """What was measured, for the terminal."""
    header = ("network", "weights", "engine", "precision", "batch", "p50 ms", "p99 ms", "calls", "img/s", "MB", "W net")
    rows: list[tuple[object, ...]] = []
    notes = []
    for item in items:
        first = (item["network"], item["weights"], item["engine"], item["precision"], item["batch"])
        if records.is_measured_cell(item):
            latency, s = item["latency_ms"], records.significant
            power = item["power"]["net_w"]
            rows.append(
                (*first, s(latency["p50"]), s(latency["p99"]), latency["count"], s(item["throughput_img_s"]),
                 s(item["memory_mb"]["peak_rss"]), s(power) if power is not None else "not measured")
            )  # fmt: skip
        else:
            rows.append((*first, "failed", "", "", "", "", ""))
            notes.append(
                f"{item['network']} {item['engine']} {item['precision']} batch {item['batch']} {item['status']}"
            )
    reasons = sorted({item["power"]["reason"] for item in items if records.measured(item) and item["power"]["reason"]})
    return "\n".join(
        [console.table(rows, header, right=range(4, 11)), *notes, *(f"Power: {reason}." for reason in reasons)]
    )


def engines(options: argparse.Namespace) -> int:
    from benchmarks import environment
    from benchmarks.engine import contenders, torch_engine
    from serving.artifact import find
    from serving.runtime import cores

    reason = torch_engine.no_compiler()
    turns = contenders.Turns(options.batch, max(1, options.rounds), threads=options.threads or cores())
    compiled = options.compile and not reason
    rows = [
        row for tag in options.tags for row in contenders.compare(find(tag), options.weights, turns, compiled=compiled)
    ]
    print(contenders.summary(rows))
    if options.compile and reason:
        print(f"not run: {reason}")
    if options.out:
        records.write(options.out, {"environment": environment.describe(options.threads), "rows": rows})
        print(options.out)
    return 0
