"""`python -m models list` and `python -m models describe NETWORK`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from models import SETS, SPECS, Spec, expand
from models.console import parser, run, table


def main(argv: list[str] | None = None) -> int:
    made = parser("python -m models", "The networks: what there is.", "python -m models list --set five")
    commands = made.add_subparsers(required=True, metavar="list | describe")

    listing = commands.add_parser("list", help="every network with its size, its year and what it is known to score")
    listing.add_argument("--set", choices=SETS, default="all", help="only the networks of this set (default: all)")
    listing.add_argument("--json", action="store_true", help="for machines: a list of objects")
    listing.set_defaults(call=list_networks)
    return run(made, argv)


def list_networks(options: argparse.Namespace) -> None:
    rows = [SPECS[name] for name in expand((), options.set)]
    if options.json:
        print(json.dumps([as_data(row) for row in rows], indent=2))
        return
    print(
        table(
            [
                (
                    row.name,
                    row.year,
                    f"{row.params / 1e6:.2f}",
                    f"{row.macs / 1e9:.3f}",
                    "x".join(map(str, row.preprocess.shape)),
                )
                for row in rows
            ],
            ("network", "year", "M params", "GMACs", "input"),
            right=(1, 2, 3),
        )
    )


def as_data(row: Spec) -> dict[str, Any]:
    """One row for `--json`. Errors and accuracies are in percent."""
    return {
        "name": row.name,
        "family": row.family,
        "year": row.year,
        "paper": row.paper,
        "params": row.params,
        "training_only_params": row.training_only,
        "macs": row.macs,
        "input": list(row.preprocess.shape),
        "preprocess": dataclasses.asdict(row.preprocess),
        "classes": row.classes,
        "published": dataclasses.asdict(row.published) if row.published else None,
        "entry": dataclasses.asdict(row.entry) if row.entry else None,
        "checkpoint": dataclasses.asdict(row.checkpoint) if row.checkpoint else None,
        "sets": [name for name, members in SETS.items() if row.name in members],
        "note": row.note,
    }


if __name__ == "__main__":
    sys.exit(main())
