"""Other servers beside ours, and bulk beside its limits."""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from benchmarks.environment import warn_if_busy
from benchmarks.options import of_one_artifact
from benchmarks.records import Environment, write
from models import console
from models.console import (
    Commands,
    Failure,
    Usage,
    positive,
    positive_integer,
    positive_integers,
)


def add(commands: Commands) -> None:
    peers_ = commands.add(
        "peers",
        peers,
        "Load Podium, FastAPI, LitServe, BentoML and Ray Serve in turn, with one network, round after round.",
        "--model resnet50 --engine openvino --precision int8",
    )
    peers_.add_argument("--model", default="resnet50", metavar="TAG", help="an artifact (default: resnet50)")
    peers_.add_argument("--engine", default="auto", metavar="E", help="ours (default: what serving would choose)")
    peers_.add_argument("--precision", default="auto", metavar="P", help="of all (default: what serving would choose)")
    peers_.add_argument("--connections", type=positive_integers, default=[1, 16], metavar="N,...", help="default: 1,16")
    peers_.add_argument("--rounds", type=positive_integer, default=3, metavar="N", help="default: 3")
    peers_.add_argument("--seconds", type=positive, default=2.0, metavar="S", help="of each look (default: 2)")
    peers_.add_argument("--images", type=Path, metavar="DIR", help="JPEG or PNG files (default: examples/photographs)")
    peers_.add_argument("--empty", action="store_true", help="measure the servers without decoding and engine")
    peers_.add_argument("--out", type=Path, metavar="FILE", help="also write every round to this file")

    bulk_ = commands.add(
        "bulk",
        bulk,
        "Measure bulk beside its limit in one process and beside a loop over HTTP, round after round.",
        "squeezenet1_1 --engine openvino --precision int8 --images photographs/",
    )
    of_one_artifact(bulk_)
    bulk_.add_argument("--images", type=Path, metavar="DIR", help="photographs (default: examples/photographs)")
    bulk_.add_argument(
        "--count", type=positive_integer, default=20_000, metavar="N", help="images of a bulk run (default: 20,000)"
    )
    bulk_.add_argument("--rounds", type=positive_integer, default=3, metavar="N", help="default: 3")
    bulk_.add_argument("--seconds", type=positive, default=10.0, metavar="S", help="of the other looks (default: 10)")
    bulk_.add_argument("--out", type=Path, metavar="FILE", help="also write every round to this file")


def peers(options: argparse.Namespace) -> int:
    from benchmarks import environment, process
    from benchmarks.peers import compare
    from serving.artifact import find
    from serving.runtime import choose

    artifact = find(options.model)
    choice = choose(artifact, options.engine, options.precision)
    if ("onnxruntime", choice.precision) not in artifact.graphs():
        raise Usage(
            f"{artifact.tag} has no {choice.precision} file for ONNX Runtime, which the peers run; --precision?"
        )
    folder = options.images or process.ROOT / "examples" / "photographs"
    photographs = sorted(p for p in folder.glob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    if not photographs:
        raise Usage(f"{folder} holds no JPEG or PNG files; give a folder of photographs to --images")
    contenders = compare.EMPTY if options.empty else [peer for peer in compare.PEERS if not peer.missing]
    here: Environment = {**environment.describe(), "client": compare.client()}
    warn_if_busy(here)
    rows = compare.compare(
        artifact, choice, photographs, options.connections, options.rounds, options.seconds, contenders,
        console.progress,
    )  # fmt: skip
    print(compare.summary(rows))
    if one_client := compare.alone(rows):
        print(one_client)
    for reason in dict.fromkeys(peer.missing for peer in compare.PEERS if peer.missing):
        print(f"not run: {reason}")
    if options.out:
        write(options.out, {"environment": here, "rows": list(map(asdict, rows))})
        print(options.out)
    if failed := [row.server for row in rows if not row.rate]:
        raise Failure(f"no request was answered by {', '.join(dict.fromkeys(failed))}")
    return 0


def bulk(options: argparse.Namespace) -> int:
    from benchmarks import environment, process
    from benchmarks.peers import bulk as ways
    from benchmarks.peers.compare import client
    from export.parity import photographs
    from serving.artifact import find
    from serving.runtime import choose

    artifact = find(options.tag)
    choice = choose(artifact, options.engine, options.precision)
    files = photographs(options.images or process.ROOT / "examples" / "photographs")
    here: Environment = {
        **environment.describe(), "client": client(), "images": options.count, "photographs": len(files),
    }  # fmt: skip
    warn_if_busy(here)
    with console.Bar("measuring in turn", 4 * options.rounds) as bar:
        rows = ways.measure(artifact, choice, files, options.count, options.rounds, options.seconds, bar.advance)
    print(ways.summary(rows))
    if options.out:
        write(options.out, {"environment": here, "rows": list(map(asdict, rows))})
        print(options.out)
    return 0
