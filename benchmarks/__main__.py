"""`python -m benchmarks`: measure what is exported, load a running service, compare, advise and report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from benchmarks.advise import commands as advise
from benchmarks.campaigns import commands as campaigns
from benchmarks.engine import commands as engine
from benchmarks.load import commands as load
from benchmarks.peers import commands as peers
from benchmarks.report import commands as report
from models import console


def main(argv: Sequence[str] | None = None) -> int:
    return console.run(parser(), argv)


def parser() -> argparse.ArgumentParser:
    arguments = console.parser(
        "python -m benchmarks",
        "Measure the exported networks for time, memory and power, load a running service, and report.",
        "python -m benchmarks run --set five --batch 1,4,16",
    )
    commands = console.Commands(arguments)
    for room in (engine, peers, load, report, advise, campaigns):
        room.add(commands)
    return arguments


if __name__ == "__main__":
    sys.exit(main())
