"""What to deploy, how many of it, and what became slower."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import records
from benchmarks.records import documents
from models import console
from models.console import Commands, Failure, Usage, positive


def add(commands: Commands) -> None:
    recommend_ = commands.add(
        "recommend",
        recommend,
        "Name the network, engine, precision and batch to deploy within bounds, the runners-up, and why not the rest.",
        "benchmarks/results/*.json --p99-ms 100 --min-top1 75",
    )
    recommend_.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="files that `run` wrote")
    recommend_.add_argument("--p99-ms", type=positive, metavar="MS", help="99th percentile of one call, at most")
    recommend_.add_argument("--min-top1", type=positive, metavar="PCT", help="top-1 accuracy on ImageNet, at least")
    recommend_.add_argument("--max-watts", type=positive, metavar="W", help="mean power, idle included, at most")
    recommend_.add_argument("--max-memory-mb", type=positive, metavar="MB", help="peak memory, at most")

    plan_ = commands.add(
        "plan",
        plan,
        "Say how many replicas of which choice keep a bound on the 99th percentile at a rate, by a queueing model.",
        "benchmarks/results/*.json --rate 200 --slo-ms 100",
    )
    plan_.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="files that `run` and `load` wrote")
    plan_.add_argument("--rate", type=positive, required=True, metavar="IMG_S", help="images per second, at random")
    plan_.add_argument("--slo-ms", type=positive, required=True, metavar="MS", help="the bound, arrival to answer")
    plan_.add_argument("--min-top1", type=positive, metavar="PCT", help="top-1 accuracy on ImageNet, at least")

    scale_ = commands.add(
        "scale",
        scale,
        "Say what 1,000, 100,000 and 10,000,000 images a second take, by network and precision.",
        "benchmarks/results/*.json benchmarks/results/replicas/*.json --into docs/scale.md",
    )
    scale_.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="files of `run` and of `replicas`")
    scale_.add_argument("--slo-ms", type=positive, default=100.0, metavar="MS", help="bound on the p99 (default: 100)")
    scale_.add_argument("--watts-per-replica", type=positive, metavar="W", help="as you measured them; adds a column")
    scale_.add_argument("--price-per-hour", type=positive, metavar="P", help="of one replica; adds a column")
    scale_.add_argument("--into", nargs="+", type=Path, metavar="PAGE", help="renew the tables of these pages instead")

    compare_ = commands.add(
        "compare",
        compare,
        "Tell what became slower or faster between two result files of one machine; exits 1 beyond a floor.",
        "before.json after.json --floor 5",
    )
    compare_.add_argument("old", type=Path, metavar="OLD", help="a file that `run` or `load` wrote")
    compare_.add_argument("new", type=Path, metavar="NEW", help="another, of the same machine")
    compare_.add_argument(
        "--floor", type=positive, default=5.0, metavar="PCT", help="how much slower fails (default: 5)"
    )


def recommend(options: argparse.Namespace) -> int:
    from benchmarks.advise import advice

    bounds = advice.Bounds(options.p99_ms, options.min_top1, options.max_watts, options.max_memory_mb)
    found = advice.recommend(documents(options.results), bounds)
    if found.fitting or found.others:
        print(advice.text(found))
    if found.choice is None:
        raise Failure(advice.nearest(found))
    return 0


def plan(options: argparse.Namespace) -> int:
    from benchmarks.advise import capacity

    found, refused = capacity.plan(
        documents(options.results),
        options.rate,
        options.slo_ms,
        options.min_top1,
        lambda items: console.progress(items, "plan"),
    )
    if not found and not refused:
        raise Usage("the result files hold no in-process records; `python -m benchmarks run` measures some")
    print(capacity.text(found, refused, options.rate, options.slo_ms))
    if not found:
        raise Failure(f"nothing measured keeps {options.slo_ms:g} ms; relax --slo-ms or --min-top1, or measure more")
    return 0


def scale(options: argparse.Namespace) -> int:
    from benchmarks import tables
    from benchmarks.advise import scale as scales

    try:
        pages = {page: page.read_text("utf-8") for page in options.into or ()}
    except OSError as error:
        raise Usage(f"cannot read {error.filename} ({error.strerror}); --into takes pages that are there") from error
    made = scales.blocks(
        documents(options.results),
        options.slo_ms,
        options.watts_per_replica,
        options.price_per_hour,
        lambda items: console.progress(items, "scale"),
    )
    for page, text in pages.items():
        page.write_text(tables.insert(text, made), "utf-8")
        print(page)
    if not pages:
        print("\n\n".join(made.values()))
    return 0


def compare(options: argparse.Namespace) -> int:
    from benchmarks.advise import regression

    old, new = records.read(options.old), records.read(options.new)
    changes = regression.compare(old, new, options.floor)
    if not any(change.ratio is not None or change.fails for change in changes):
        raise Usage("the files have no measured cell in common; measure the same networks, engines and batches")
    print(regression.text(changes, (old["environment"], new["environment"]), options.floor))
    if failed := [change for change in changes if change.fails]:
        raise Failure(
            f"{len(failed)} of {len(changes)} beyond the floor of {options.floor:g} % or failed, "
            f"first {failed[0].name}; see those marked !"
        )
    return 0
