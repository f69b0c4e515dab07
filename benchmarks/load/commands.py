"""The command `load`."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks import records
from benchmarks.records import RESULTS, default_path
from models import console
from models.console import Commands, Failure, Usage, positive, positive_integers, positives


def add(commands: Commands) -> None:
    load_ = commands.add(
        "load",
        load,
        "Send requests to a running service: closed loop over concurrencies, or open loop at a rate.",
        "http://127.0.0.1:3000 --concurrency 1,4,16 --duration 10",
    )
    load_.add_argument("url", help="the service's address, as http://HOST:PORT")
    load_.add_argument("--model", metavar="NETWORK", help="which network to ask for (default: the service's first)")
    load_.add_argument(
        "--concurrency", type=positive_integers, metavar="N,...", help="requests in flight (default: 1,4,16)"
    )
    load_.add_argument(
        "--rate",
        type=positives,
        metavar="R,...",
        help="requests per second, Poisson arrivals, timed from the intended send",
    )
    load_.add_argument("--duration", type=positive, default=10.0, metavar="S", help="of each measurement (default: 10)")
    load_.add_argument("--slo-ms", type=positive, metavar="MS", help="report the share of answers within this time")
    load_.add_argument(
        "--search", action="store_true", help="find the highest rate that keeps the 99th percentile within --slo-ms"
    )
    load_.add_argument("--images", type=Path, metavar="DIR", help="photographs to send (default: a synthetic one)")
    load_.add_argument("--out", type=Path, metavar="FILE", help=f"default: {RESULTS}/<machine>-<date>-load.json")


def load(options: argparse.Namespace) -> int:
    from benchmarks import environment
    from benchmarks.load import drive
    from benchmarks.load.bodies import chosen

    here: records.Environment = {**environment.describe(), "settings": "load", "target": options.url}
    path = options.out or default_path(environment.machine(here), "-load")
    bodies = chosen(options.images)
    if options.search and options.slo_ms is None:
        raise Usage("--search needs the bound to search for; give --slo-ms")
    concurrencies = options.concurrency or ([] if options.rate or options.search else [1, 4, 16])
    plan = [drive.Scenario(concurrency=n) for n in concurrencies] + [drive.Scenario(rate=r) for r in options.rate or ()]
    items: list[records.Load | records.Search] = []
    try:
        for scenario in console.progress(plan, "loading"):
            items.append(drive.drive(options.url, scenario, bodies, options.duration, options.model, options.slo_ms))
            records.write(path, records.document(here, items))
        if options.search:
            with console.Bar("searching") as bar:
                items += drive.search(
                    options.url, bodies, options.duration, options.model, options.slo_ms, progress=bar.advance
                )
            records.write(path, records.document(here, items))
    finally:
        if items:
            print(drive.summary(items))
            print(path)
    if not any(records.measured(item) for item in items):
        raise Failure(f"no request was answered: {items[0]['status'].removeprefix('failed: ')}")
    return 0
