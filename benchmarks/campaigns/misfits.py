"""Starts that must fail, with one line that names the repair."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.copies import copied, rewrite
from benchmarks.campaigns.target import Target
from benchmarks.load.servers import POLL_S, bentoml, home_with
from benchmarks.load.wire import once
from benchmarks.process import ROOT, environment, free_port, kill_all
from serving.artifact import find
from serving.runtime import choose

# $1: where a disk of 64 kB is mounted and filled; $2: the store; then the command.
FULL_DISK = """set -e; unset TMPDIR; mount -t tmpfs -o size=64k podium "$1"
mkdir "$1/home"; ln -s "$2" "$1/home/models"
head -c 1000000 /dev/zero > "$1/fill" 2> /dev/null || export TMPDIR="$1"; test -n "$TMPDIR"; shift 2; exec "$@" """
MISFIT_WITHIN_S = 60.0
NAMESPACE = ["unshare", "--map-root-user", "--mount"]


@dataclass(frozen=True)
class Misfit:
    """A start that must fail: what is wrong, and what the one line about it must say."""

    what: str
    says: str
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    wrapped: Sequence[str] = ()
    home: Path | None = None
    may_serve: bool = False  # because the service may not need what is wrong


def misfits_of(target: Target, taken: int) -> Iterator[Misfit]:
    """Each misfit, with a store of its own if it needs one; `taken` is a port that is in use."""
    artifact = find(target.tag)
    chosen = choose(artifact, target.engine, target.precision)
    graph = artifact.graphs()[chosen.engine, chosen.precision]

    def home(name: str) -> tuple[Path, Path]:
        """A home whose store holds one copy of the artifact, and the copy."""
        folder = target.folder / name
        return folder, copied(artifact.folder, folder / "models", artifact.network, artifact.version)

    yield Misfit("a setting that is not a number", r"PODIUM_MAX_BATCH: 'many' must be", {"PODIUM_MAX_BATCH": "many"})
    yield Misfit("a setting out of its range", r"PODIUM_TIMEOUT_MS: '0' must be", {"PODIUM_TIMEOUT_MS": "0"})
    yield Misfit("an engine nobody knows", r"PODIUM_ENGINE: 'cuda' must be one of", {"PODIUM_ENGINE": "cuda"})
    yield Misfit("a model that is not there", r"`python -m export missing` makes one", {"PODIUM_MODELS": "missing"})
    empty = target.folder / "empty-home"
    (empty / "models").mkdir(parents=True)
    yield Misfit("an empty store", r"python -m export", {"PODIUM_MODELS": ""}, home=empty)
    yield Misfit("a port that is taken", rf"port {taken}: .*choose another", port=taken)

    where, folder = home("damaged")
    body = bytearray((folder / graph).read_bytes())
    body[len(body) // 2] ^= 1
    rewrite(folder / graph, bytes(body))
    yield Misfit(
        "a model file with one bit turned over", rf"{re.escape(graph)} has sha256 .*export it again", home=where
    )

    where, folder = home("lacking")
    (folder / graph).unlink()
    yield Misfit("a model file that is gone", rf"{re.escape(graph)} is missing .*export it again", home=where)

    # What a full disk can leave of an export: the manifest describes the half that was written.
    where, folder = home("half")
    half = (folder / graph).read_bytes()[: (folder / graph).stat().st_size // 2]
    rewrite(folder / graph, half)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["files"][graph]["sha256"] = hashlib.sha256(half).hexdigest()
    rewrite(folder / "manifest.json", json.dumps(manifest))
    yield Misfit("half a model file, with the sha256 of that half", rf"{re.escape(graph)}.*export it again", home=where)

    if can_mount():
        disk = target.folder / "full-disk"
        disk.mkdir()
        wrapped = [*NAMESPACE, "sh", "-c", FULL_DISK, "sh", str(disk), str(target.store)]
        yield Misfit("a disk that is full", r"(?i)space|full", wrapped=wrapped, home=disk / "home", may_serve=True)


def can_mount() -> bool:
    """Whether one process can be given a small file system of its own here."""
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "podium", "/mnt"]
    return (
        shutil.which("unshare") is not None and not subprocess.run(command, capture_output=True, check=False).returncode
    )


SERVES = "serves"


async def start(target: Target, misfit: Misfit) -> tuple[int | str, list[str]]:
    """What became of a start with `misfit` (its exit status if it ended), and the lines that it wrote to stderr."""
    home = misfit.home or home_with(Path(mkdtemp(dir=target.folder)) / "home", target.store)
    port, errors = misfit.port or free_port(), target.folder / "errors"
    variables = {**target.settings, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True", **misfit.settings}
    with errors.open("w") as output:
        process = subprocess.Popen(
            [*misfit.wrapped, *bentoml("service:Podium", port)], cwd=ROOT, env=environment(variables),
            stdout=subprocess.DEVNULL, stderr=output, start_new_session=True,
        )  # fmt: skip
    deadline, became = time.monotonic() + MISFIT_WITHIN_S, "neither ended nor served"
    while process.poll() is None and time.monotonic() < deadline:
        if not misfit.port and (await once(port, target.request, 5.0)).status == 200:
            became = SERVES
            break
        await asyncio.sleep(POLL_S)
    ended = process.poll()
    kill_all(process)
    return became if ended is None else ended, errors.read_text("utf-8", "replace").strip().splitlines()


async def misfits(target: Target) -> Campaign:
    figures, checks = dict[str, Any](), list[Check]()
    with socket.create_server(("127.0.0.1", 0)) as other:
        for misfit in misfits_of(target, other.getsockname()[1]):
            target.tell(f"misfits: {misfit.what}")
            became, lines = await start(target, misfit)
            named = isinstance(became, int) and became and len(lines) == 1 and re.search(misfit.says, lines[0])
            figures[misfit.what] = {
                "became": became,
                "lines": len(lines),
                "says": [anonymous(x, target) for x in lines[-3:]],
            }
            right = bool(named) or (misfit.may_serve and became == SERVES)
            how = "named in one line with its repair" + (", or served" if misfit.may_serve else "")
            checks.append(Check(f"{misfit.what}: {how}", right, "=", True))
    if not any("disk" in what for what in figures):
        figures["a disk that is full"] = "not run: no file system can be mounted here (unshare, user namespaces)"
    return Campaign("misfits", checks, figures)


def anonymous(line: str, target: Target) -> str:
    """`line` without this machine's folders."""
    return line.replace(str(target.folder), "...").replace(str(target.store), "...")[:300]
