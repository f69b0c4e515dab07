"""Bulk beside its limit and beside a loop over HTTP, round after round.

So a slow spell of the machine strikes all alike. Each way is started for its turn and ended after it.

The limit is decoding and the engine alone in one process (`benchmarks.peers.limit`): no file is read, no class ranked,
nothing written. Each round takes the faster of an engine of one thread and one of every core.

Bulk is the command as a user types it, on a folder of links to the photographs. It has three rates, because they answer
three questions:

    steady      images done over time, by the times of the parts' files: what one more million takes
    summary     what the command says: from the connection to Ray to the last part, the start of its actors included
    whole       from the start of the process to its end: importing, listing, starting and stopping Ray too
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from benchmarks.load.wire import Pool, post
from benchmarks.peers import compare
from benchmarks.process import ROOT, environment
from models.console import Failure, table
from serving.artifact import Artifact
from serving.runtime import Choice, cores

LIMIT, LOOP, CLIENTS = "in one process", "a loop over HTTP", "16 at once over HTTP"
STEADY, SUMMARY, WHOLE = "bulk, steady", "bulk, by its summary", "bulk, whole command"

AT_ONCE = 16
BATCH = 16  # of the limit, as bulk's own
IN_FLIGHT = 2 * BATCH
WARMUP_S = 1.0

Look = dict[str, Any]  # one way in one round: `rate` in images/s, and what else was seen


@dataclass(frozen=True)
class Row:
    """One way; `rate` is the median over `rounds` in images/s, then as a multiple of the limit's and of the loop's."""

    way: str
    network: str
    engine: str
    precision: str
    rate: float
    of_limit: float
    of_loop: float
    rounds: list[Look]


def measure(
    artifact: Artifact,
    choice: Choice,
    photographs: Sequence[Path],
    count: int,
    rounds: int,
    seconds: float,
    advance: Callable[[], object],
) -> list[Row]:
    """A row for every way; `advance` is called four times a round."""
    looks: dict[str, list[Look]] = {way: [] for way in (LIMIT, STEADY, SUMMARY, WHOLE, CLIENTS, LOOP)}
    with TemporaryDirectory(prefix="podium-bulk-") as name:
        folder = Path(name)
        files = many(photographs, folder / "images", count)
        for turn in range(rounds):
            limits = [limit(artifact, choice, 1, photographs, seconds)]
            advance()
            for way, look in bulk(artifact, choice, folder / "images", folder / f"answers-{turn}", count).items():
                looks[way].append(look)
            advance()
            if cores() > 1:  # after bulk, so that the limit is measured on both sides of it
                limits.append(limit(artifact, choice, cores(), photographs, seconds))
            looks[LIMIT].append({**max(limits, key=lambda look: look["rate"]), "tried": limits})
            advance()
            for way, look in over_http(artifact, choice, files, photographs, folder, seconds).items():
                looks[way].append(look)
            advance()
    rates = {way: median(look["rate"] for look in rounds) for way, rounds in looks.items()}
    return [
        Row(
            way, artifact.network, choice.engine, choice.precision, rates[way], rates[way] / rates[LIMIT],
            rates[way] / rates[LOOP], looks[way],
        )
        for way in looks
    ]  # fmt: skip


def many(photographs: Sequence[Path], folder: Path, count: int) -> list[Path]:
    """`count` links to the photographs in turn, a thousand to a folder: they come from memory, whatever the disk."""
    links = []
    for i in range(count):
        photograph = photographs[i % len(photographs)].resolve()
        target = folder / f"{i // 1000:04}" / f"{i:07}{photograph.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.symlink_to(photograph)
        links.append(target)
    return links


def limit(artifact: Artifact, choice: Choice, threads: int, photographs: Sequence[Path], seconds: float) -> Look:
    job = compare.job(artifact, choice._replace(threads=threads), None) | {"max_batch": BATCH}
    with compare.limit(job, photographs) as ask:
        return {"rate": ask(IN_FLIGHT, seconds).rate, "threads": threads}


def bulk(artifact: Artifact, choice: Choice, source: Path, out: Path, count: int) -> dict[str, Look]:
    """The three rates of one run of the command, which must have an answer for every image."""
    command = [sys.executable, "-m", "serving", "bulk", str(source), "--model", artifact.tag, "--out", str(out)]
    command += ["--engine", choice.engine, "--precision", choice.precision]
    began = time.perf_counter()
    if subprocess.run(command, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, check=False).returncode:
        raise Failure("the bulk run failed; its message is above")
    wall = time.perf_counter() - began
    summary = json.loads((out / "_summary.json").read_text("utf-8"))
    if summary["images"] != count or summary["errors"]:
        raise Failure(f"bulk has {summary['images']} rows for {count} images, errors: {summary['errors'] or 'none'}")
    ran, (rate, between) = summary["this_run"], steady(out, count)
    said = {name: ran[name] for name in ("seconds", "actors", "cores_per_actor", "driver_peak_mb")}
    return {
        STEADY: {"rate": rate},
        SUMMARY: {"rate": count / ran["seconds"], "first_part_s": ran["seconds"] - between, **said},
        WHOLE: {"rate": count / wall, "seconds": wall},
    }


def steady(out: Path, count: int) -> tuple[float, float]:
    """(images per second, seconds) from the first part to the last; the rate is the slope of images over parts' times.

    The slope is that of a line through all points. Actors that keep step finish their parts together, so between the
    first and the last point alone it would matter which of them came first.
    """
    part_size = json.loads((out / "_manifest.json").read_text("utf-8"))["part_size"]
    parts = sorted((path.stat().st_mtime, path.name) for path in out.glob("part-*.parquet"))
    if len(parts) < 3:
        raise Failure(f"{count} images are {len(parts)} parts, too few to see a rate; raise --count")
    last = max(name for _, name in parts)
    images = [count - part_size * (len(parts) - 1) if name == last else part_size for _, name in parts]
    times = np.array([when for when, _ in parts]) - parts[0][0]
    slope, _ = np.polyfit(times, np.cumsum(images), 1)
    return float(slope), float(times[-1])


def over_http(
    artifact: Artifact,
    choice: Choice,
    files: Sequence[Path],
    photographs: Sequence[Path],
    folder: Path,
    seconds: float,
) -> dict[str, Look]:
    """A server for this turn, loaded by as many clients at once as fill it, and by a plain loop."""
    podium = next(peer for peer in compare.PEERS if peer.name == compare.PODIUM)
    bodies = compare.written(map(compare.multipart, photographs), folder, "form")
    job = compare.job(artifact, choice, podium)
    with compare.server(podium, job, bodies[0].read_bytes(), folder) as port:
        ask = compare.loader(port, bodies)
        ask(AT_ONCE, WARMUP_S)
        full = ask(AT_ONCE, seconds)
        return {
            CLIENTS: {"rate": full.rate, "errors": full.errors},
            LOOP: {"rate": asyncio.run(loop(port, files, seconds))},
        }


async def loop(port: int, files: Sequence[Path], seconds: float) -> float:
    """Images per second of a plain loop over files: read one, send it, read the answer; one connection is kept."""
    pool, done, began = Pool(port), 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < seconds:
        reply = await pool.ask(post(files[done % len(files)].read_bytes(), "application/octet-stream"), 30.0)
        if reply.status != 200:
            raise Failure(f"the service answered {reply.outcome}: {reply.answer}")
        done += 1
    pool.close()
    return done / passed


def summary(rows: Sequence[Row]) -> str:
    """One line a way: images per second, and how much that is of the limit and of a plain loop over HTTP."""
    lines = []
    for row in rows:
        rates = [look["rate"] for look in row.rounds]
        span = f"{min(rates):.1f} to {max(rates):.1f}"
        lines.append((row.way, f"{row.rate:.1f}", span, f"{row.of_limit:.2f}", f"{row.of_loop:.2f}"))
    return table(lines, ("", "images/s", "lowest to highest", "x in one process", "x a loop"), right=range(1, 5))
