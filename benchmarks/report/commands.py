"""The report."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.records import documents
from models.console import Commands


def add(commands: Commands) -> None:
    report_ = commands.add(
        "report",
        report,
        "Write one HTML page, Markdown, CSV and figures from result files.",
        "benchmarks/results/*.json --out report",
    )
    report_.add_argument("results", nargs="+", type=Path, metavar="RESULTS", help="files that `run` and `load` wrote")
    report_.add_argument("--out", type=Path, required=True, metavar="DIR", help="the folder for the report")


def report(options: argparse.Namespace) -> int:
    from benchmarks.report.renderers import write

    print(write(documents(options.results), options.out))
    return 0
