"""How fast bulk is: beside one process without a server or a cluster, and beside clients of the service, in turns.

    python examples/bulk_throughput.py --model squeezenet1_1 --engine openvino --precision int8 --images photographs/

The limit is `benchmarks.peers.limit`: the photographs in memory already, decoded by threads, classified as they come.
Bulk reads them from files, and its time is from the connection to Ray on: its actors' start is part of it.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.peers import compare
from export.parity import photographs
from models.console import Failure, parser, run, table
from serving import runtime
from serving.runtime import Choice

ROOT = Path(__file__).parents[1]


def many(found: list[Path], folder: Path, count: int) -> None:
    """`count` files with the photographs in turn."""
    for i in range(count):
        target = folder / f"{i // 1000:04}" / f"{i:07}{found[i % len(found)].suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(found[i % len(found)], target)


def bulk(source: Path, out: Path, tag: str, choice: Choice, cores: int) -> float:
    """Images per second of one run."""
    command = [sys.executable, "-m", "serving", "bulk", str(source), "--model", tag, "--out", str(out)]
    command += ["--engine", choice.engine, "--precision", choice.precision, "--cores", str(cores)]
    if subprocess.run(command, cwd=ROOT, stdout=subprocess.DEVNULL, check=False).returncode:
        raise Failure("the run failed; its message is above")
    return float(json.loads((out / "_summary.json").read_text("utf-8"))["this_run"]["images_per_second"])


def main(options: argparse.Namespace) -> int:
    os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    artifact = runtime.find(options.model)
    choice = runtime.choose(artifact, options.engine, options.precision)
    found = photographs(options.images)
    podium = next(peer for peer in compare.PEERS if peer.name == compare.PODIUM)
    rates: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="podium-throughput-") as name:
        folder = Path(name)
        many(found, folder / "images", options.count)
        bodies = [folder / f"{i}.body" for i in range(len(found))]
        for body, photograph in zip(bodies, found, strict=True):
            body.write_bytes(compare.multipart(photograph))
        with (
            compare.server(podium, compare.job(artifact, choice, podium), bodies[0].read_bytes(), folder) as url,
            compare.limit(compare.job(artifact, choice, None), found) as limit,
        ):
            ask = compare.loader(url, bodies)
            for turn in range(options.rounds):
                for way, rate in (
                    ("in one process", lambda: limit(16, options.seconds).rate),
                    ("a loop over HTTP", lambda: ask(1, options.seconds).rate),
                    ("16 clients over HTTP", lambda: ask(16, options.seconds).rate),
                    ("bulk", lambda t=turn: bulk(folder / "images", folder / f"{t}", options.model, choice, 1)),
                    *[
                        (f"bulk, {c} cores an actor", lambda t=turn, c=c: bulk(
                            folder / "images", folder / f"{t}-{c}", options.model, choice, c))
                        for c in options.cores
                    ],
                ):  # fmt: skip
                    rates.setdefault(way, []).append(rate())
    best = statistics.median(rates["in one process"])
    rows = [
        (way, f"{statistics.median(r):.0f}", f"{min(r):.0f} to {max(r):.0f}", f"{statistics.median(r) / best:.2f}")
        for way, r in rates.items()
    ]
    print(f"{artifact.tag}, {choice.engine} {choice.precision}, {options.count:,} images")
    print(table(rows, ("", "images/s", "lowest to highest", "of the limit"), right=(1, 2, 3)))
    return 0


if __name__ == "__main__":
    made = parser(
        "examples/bulk_throughput.py",
        "Bulk beside its limit in one process and beside the service.",
        "python examples/bulk_throughput.py --model squeezenet1_1 --engine openvino --precision int8",
    )
    made.add_argument("--model", default="squeezenet1_1", metavar="TAG", help="an artifact (default: squeezenet1_1)")
    made.add_argument("--engine", default="auto", metavar="E", help="default: as serving chooses")
    made.add_argument("--precision", default="auto", metavar="P", help="default: as serving chooses")
    made.add_argument("--images", type=Path, default=ROOT / "examples" / "photographs", help="a folder of photographs")
    made.add_argument("--count", type=int, default=20_000, metavar="N", help="images of the bulk run (default: 20,000)")
    made.add_argument("--cores", type=int, nargs="*", default=[], metavar="N", help="also with actors of so many cores")
    made.add_argument("--rounds", type=int, default=3, metavar="N", help="default: 3")
    made.add_argument("--seconds", type=float, default=5.0, metavar="S", help="of the others' looks (default: 5)")
    made.set_defaults(call=main)
    sys.exit(run(made))
