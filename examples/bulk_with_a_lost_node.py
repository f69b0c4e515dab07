"""A bulk run that loses a node half-way: a Ray cluster of three nodes on this machine, one killed, every row checked.

    python examples/bulk_with_a_lost_node.py --model squeezenet1_1

Each generated image is different, and every hundredth is damaged. Afterwards a plain loop in this process classifies
each image again, and the rows of the bulk run are compared with that: each image once, with the same classes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pyarrow import parquet

from models.console import Failure, parser, progress, run
from serving import images, runtime
from serving.artifact import find
from serving.errors import RequestError
from serving.limits import Limits

NODES = 3
WITHIN_S = 900.0
DAMAGED = 100  # one in so many


def generate(folder: Path, count: int) -> list[Path]:
    paths = []
    for i in progress(range(count), "generating", count):
        path = folder / f"{i // 1000:03}" / f"{i:06}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        coarse = np.random.default_rng(i).integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(coarse).resize((160, 120), Image.Resampling.BICUBIC).save(path, quality=85)
        if i % DAMAGED == 0:
            path.write_bytes(path.read_bytes()[:200])
        paths.append(path)
    return paths


def bulk(source: Path, out: Path, tag: str, part_size: int) -> int:
    """Run on a cluster whose last node is killed when half of the parts are written; how many there were then."""
    from ray.cluster_utils import Cluster

    here: dict[str, Any] = {"node_ip_address": "127.0.0.1", "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**here, "num_cpus": 0})
    try:
        nodes = [cluster.add_node(node_ip_address="127.0.0.1", num_cpus=1) for _ in range(NODES)]
        command = [sys.executable, "-m", "serving", "bulk", str(source), "--model", tag, "--out", str(out)]
        command += ["--part-size", str(part_size), "--ray-address", cluster.address]
        process = subprocess.Popen(command, cwd=Path(__file__).parents[1])
        try:
            began = time.monotonic()
            half, parts = -(-sum(1 for _ in source.rglob("*.jpg")) // part_size) // 2, 0
            while (parts := len(list(out.glob("part-*")))) < half:
                if process.poll() is not None or time.monotonic() - began > WITHIN_S:
                    raise Failure(f"the run had {parts} parts, {half} were waited for")
                time.sleep(0.02)
            cluster.remove_node(nodes[-1], allow_graceful=False)
            print(f"killed one of {NODES} nodes after {parts} parts, {time.monotonic() - began:.1f} s")
            if process.wait(timeout=WITHIN_S):
                raise Failure("the run failed; its message is above")
            return parts
        finally:
            process.kill()
            process.wait()
    finally:
        cluster.shutdown()  # type: ignore[no-untyped-call]


def check(paths: list[Path], out: Path, tag: str) -> None:
    """Check that every path has one row, and that every row is what a plain loop gives."""
    artifact = find(tag)
    job = json.loads((out / "_manifest.json").read_text("utf-8"))
    recipe, engine = artifact.preprocess, runtime.open(artifact, job["engine"], job["precision"])
    rows = parquet.read_table(out).to_pylist()
    if sorted(row["path"] for row in rows) != [str(path) for path in paths]:
        raise Failure(f"{len(rows)} rows with {len({row['path'] for row in rows})} paths for {len(paths)} images")
    by_path = {row["path"]: row for row in rows}
    farthest, wrong, errors = 0.0, [], 0
    for path in progress(paths, "checking"):
        row = by_path[str(path)]
        try:
            scores = engine.run(np.stack([images.decode(path.read_bytes(), recipe, Limits(50_000_000))]))[0]
        except RequestError as error:
            errors += 1
            same = (row["error_code"], row["error_message"], row["class_ids"]) == (error.code, str(error), None)
        else:
            # The last digits depend on the batch, so classes that are equally likely may change places.
            gap = np.abs(scores[row["class_ids"]] - row["probabilities"]).max()
            gap = max(gap, np.abs(np.sort(scores)[::-1][: len(row["class_ids"])] - row["probabilities"]).max())
            farthest, same = max(farthest, float(gap)), row["error_code"] is None and gap < 1e-4
        if not same:
            wrong.append(path)
    if wrong:
        raise Failure(f"{len(wrong)} rows are not what a plain loop gives, {wrong[0]} among them")
    print(
        f"{len(rows):,} rows, each of {len(paths):,} images once; {errors:,} damaged, with their errors; "
        f"probabilities within {farthest:.1g} of a plain loop's"
    )


def main(options: argparse.Namespace) -> int:
    # On the loopback alone: on Linux, Ray would replace it by an outer address.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
    with tempfile.TemporaryDirectory(prefix="podium-lost-node-") as folder:
        source, out = Path(folder) / "images", Path(folder) / "answers"
        paths = generate(source, options.images)
        bulk(source, out, options.model, options.part_size)
        check(paths, out, options.model)
    return 0


if __name__ == "__main__":
    arguments = parser(
        "examples/bulk_with_a_lost_node.py",
        "Kill a node of a Ray cluster in the middle of a bulk run, and check every row.",
        "python examples/bulk_with_a_lost_node.py --model squeezenet1_1",
    )
    arguments.add_argument("--model", default="lenet5", metavar="TAG", help="an artifact (default: lenet5)")
    arguments.add_argument("--images", type=int, default=20_000, metavar="N", help="default: 20,000")
    arguments.add_argument("--part-size", type=int, default=256, metavar="N", help="default: 256")
    arguments.set_defaults(call=main)
    sys.exit(run(arguments))
