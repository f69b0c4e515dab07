"""`python -m models list` and `python -m models describe NETWORK`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from typing import Any

from models import SETS, SPECS, Spec, expand, spec
from models.console import Commands, parser, run, table


def main(argv: list[str] | None = None) -> int:
    arguments = parser(
        "python -m models", "The networks: which there are, and what each is made of.", "python -m models list"
    )
    commands = Commands(arguments)
    listing = commands.add("list", list_networks, "every network, its size and its published errors", "--set five")
    listing.add_argument("--set", choices=SETS, default="all", help="only the networks of this set (default: all)")
    listing.add_argument("--json", action="store_true", help="for machines: a list of objects")

    layers = commands.add("describe", describe_network, "one network, layer by layer", "vgg16")
    layers.add_argument("network", metavar="NETWORK", help="a name that `list` shows")
    layers.add_argument("--json", action="store_true", help="for machines: one object")
    return run(arguments, argv)


def list_networks(options: argparse.Namespace) -> None:
    rows = [SPECS[name] for name in expand((), options.set)]
    if options.json:
        print(json.dumps([as_data(row) for row in rows], indent=2))
        return
    print(table([cells(row) for row in rows], HEADER, right=(1, 2, 3, 4, 5, 6)))
    print("\ntop-1 and top-5: the published error of one network in percent; --json names the protocol of each.")


def describe_network(options: argparse.Namespace) -> None:
    spec(options.network)  # so that an unknown name is an error before torch is loaded
    from models.describe import as_text, describe

    data = describe(options.network)
    print(json.dumps(data, indent=2) if options.json else as_text(data))


HEADER = ("network", "year", "M params", "GMACs", "input", "top-1", "top-5", "weights")


def cells(row: Spec) -> tuple[object, ...]:
    published = row.published
    return (
        row.name,
        row.year,
        f"{(row.params - row.training_only) / 1e6:.2f}",
        f"{row.macs / 1e9:.3f}",
        "x".join(map(str, row.preprocess.shape)),
        "-" if published is None or published.top1_error is None else f"{published.top1_error:.2f}",
        "-" if published is None or published.top5_error is None else f"{published.top5_error:.2f}",
        "untrained only" if row.checkpoint is None else "published" if "://" in row.checkpoint.url else "included",
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
