"""Starts that cannot succeed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.campaigns.checks import Campaign, Check
from benchmarks.campaigns.copies import copied, rewrite
from benchmarks.campaigns.target import POLL_S, Wish
from benchmarks.load.wire import once
from benchmarks.process import ROOT, free_port, kill_all
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
    """A start that cannot be: what is wrong, and what the one line about it must say."""

    what: str
    says: str
    settings: Mapping[str, str] = field(default_factory=dict)
    port: int = 0
    wrapped: Sequence[str] = ()
    home: Path | None = None
    may_serve: bool = False  # all the same, for it may not need what is wrong


def misfits_of(wish: Wish, taken: int) -> Iterator[Misfit]:
    """Each with a store of its own where it needs one; `taken` is a port somebody listens on."""
    artifact = find(wish.tag)
    chosen = choose(artifact, wish.engine, wish.precision)
    graph = artifact.graphs()[chosen.engine, chosen.precision]

    def home(name: str) -> tuple[Path, Path]:
        """A home whose store holds one copy of the artifact, and the copy."""
        made = wish.folder / name
        return made, copied(artifact.folder, made / "models", artifact.network, artifact.version)

    yield Misfit("a setting that is no number", r"PODIUM_MAX_BATCH: 'many' must be", {"PODIUM_MAX_BATCH": "many"})
    yield Misfit("a setting out of its range", r"PODIUM_TIMEOUT_MS: '0' must be", {"PODIUM_TIMEOUT_MS": "0"})
    yield Misfit("an engine nobody knows", r"PODIUM_ENGINE: 'cuda' must be one of", {"PODIUM_ENGINE": "cuda"})
    yield Misfit("a model that is not there", r"`python -m export missing` makes one", {"PODIUM_MODELS": "missing"})
    empty = wish.folder / "empty-home"
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

    # What a full disk leaves of an export that nobody looked at: the record is of what was written.
    where, folder = home("half")
    half = (folder / graph).read_bytes()[: (folder / graph).stat().st_size // 2]
    rewrite(folder / graph, half)
    manifest = json.loads((folder / "manifest.json").read_text("utf-8"))
    manifest["files"][graph]["sha256"] = hashlib.sha256(half).hexdigest()
    rewrite(folder / "manifest.json", json.dumps(manifest))
    yield Misfit("half a model file, with the sha256 of that half", rf"{re.escape(graph)}.*export it again", home=where)

    if can_mount():
        disk = wish.folder / "full-disk"
        disk.mkdir()
        wrapped = [*NAMESPACE, "sh", "-c", FULL_DISK, "sh", str(disk), str(wish.store)]
        yield Misfit("a disk that is full", r"(?i)space|full", wrapped=wrapped, home=disk / "home", may_serve=True)


def can_mount() -> bool:
    """Whether a small file system can be mounted here, for one process alone."""
    command = [*NAMESPACE, "mount", "-t", "tmpfs", "podium", "/mnt"]
    return (
        shutil.which("unshare") is not None and not subprocess.run(command, capture_output=True, check=False).returncode
    )


SERVES = "serves"


async def start(wish: Wish, misfit: Misfit) -> tuple[int | str, list[str]]:
    """What became of a start with `misfit`, its exit status where it ended, and the lines it said on stderr."""
    home = misfit.home or wish.folder / "misfit-home"
    if misfit.home is None and not home.exists():
        home.mkdir()
        (home / "models").symlink_to(wish.store, target_is_directory=True)
    environment = {**os.environ, **wish.settings, "BENTOML_HOME": str(home), "BENTOML_DO_NOT_TRACK": "True"}
    bentoml, port = str(Path(sys.executable).with_name("bentoml")), misfit.port or free_port()
    command = [bentoml, "serve", "service:Podium", "--host", "127.0.0.1", "--port", str(port)]
    said = wish.folder / "said"
    with said.open("w") as output:
        process = subprocess.Popen(
            [*misfit.wrapped, *command], cwd=ROOT, env=environment | dict(misfit.settings),
            stdout=subprocess.DEVNULL, stderr=output, start_new_session=True,
        )  # fmt: skip
    deadline, became = time.monotonic() + MISFIT_WITHIN_S, "neither ended nor served"
    while process.poll() is None and time.monotonic() < deadline:
        if not misfit.port and (await once(port, wish.request, 5.0)).status == 200:
            became = SERVES
            break
        await asyncio.sleep(POLL_S)
    ended = process.poll()
    kill_all(process)
    return became if ended is None else ended, said.read_text("utf-8", "replace").strip().splitlines()


async def misfits(wish: Wish) -> Campaign:
    rows, checks = dict[str, Any](), list[Check]()
    with socket.create_server(("127.0.0.1", 0)) as other:
        for misfit in misfits_of(wish, other.getsockname()[1]):
            wish.tell(f"misfits: {misfit.what}")
            became, lines = await start(wish, misfit)
            told = isinstance(became, int) and became and len(lines) == 1 and re.search(misfit.says, lines[0])
            rows[misfit.what] = {
                "became": became,
                "lines": len(lines),
                "says": [anonymous(x, wish) for x in lines[-3:]],
            }
            right = bool(told) or (misfit.may_serve and became == SERVES)
            how = "told in one line with its repair" + (", or served" if misfit.may_serve else "")
            checks.append(Check(f"{misfit.what}: {how}", right, "=", True))
    if not any("disk" in what for what in rows):
        rows["a disk that is full"] = "not run: no file system can be mounted here (unshare, user namespaces)"
    return Campaign("misfits", checks, rows)


def anonymous(line: str, wish: Wish) -> str:
    """`line` without this machine's folders."""
    return line.replace(str(wish.folder), "...").replace(str(wish.store), "...")[:300]
