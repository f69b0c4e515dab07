"""Runs a target in a process of its own, and reports what it found."""

from __future__ import annotations

import base64
import hashlib
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.fuzzing.target import under_way

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
STARTING = 120.0  # seconds until a child has imported what it needs, on a busy machine
TAIL = 3000  # characters of the output of a child that a finding repeats
SHOWN = 400  # bytes of a reproducer


@dataclass(frozen=True)
class Finding:
    """An input that breaks a target, and the last output of the process that it broke."""

    target: str
    data: bytes
    words: str
    file: Path

    def __str__(self) -> str:
        shown = base64.b64encode(self.data[:SHOWN]).decode() + ("..." if len(self.data) > SHOWN else "")
        return (
            f"{self.target}: {len(self.data)} bytes, base64 {shown}\n{self.words}\n"
            f"again: python -m tests.fuzzing {self.target} {self.file}"
        )


def kept(target: str) -> Path:
    return HERE / "corpus" / target


def replay(target: str, files: Sequence[Path], findings: Path) -> Finding | None:
    """The first of `files` that breaks `target`, without a fuzzer."""
    return _child(target, ["replay", *map(str, files)], findings, STARTING + 60)


def fuzz(
    target: str, seconds: int, findings: Path, seed: int = 1, corpus: Path | None = None, seeds: Path | None = None
) -> Finding | None:
    """The first input found in so many seconds that breaks `target`.

    Starts from `seeds`, the kept corpus if None; `corpus` takes the inputs that reach something new.
    """
    with tempfile.TemporaryDirectory() as scratch:
        options = ["fuzz", f"-seed={seed}", f"-max_total_time={seconds}", "-rss_limit_mb=0", "-detect_leaks=0",
                   f"-artifact_prefix={scratch}/", "-reload=0"]  # fmt: skip
        words = HERE / "words" / f"{target}.dict"
        if words.exists():
            options.append(f"-dict={words}")
        places = [corpus or Path(scratch, "corpus"), seeds or kept(target)]
        places[0].mkdir(parents=True, exist_ok=True)
        return _child(target, [*options, *map(str, places)], findings, STARTING + 2 * seconds)


def keep(target: str, corpus: Path, findings: Path) -> Finding | None:
    """Add to the kept corpus the smallest inputs of `corpus` that reach what it does not."""
    options = ["fuzz", "-merge=1", "-rss_limit_mb=0", f"-artifact_prefix={findings}/"]
    return _child(target, [*options, str(kept(target)), str(corpus)], findings, STARTING + 600)


def _child(target: str, arguments: Sequence[str], findings: Path, patience: float) -> Finding | None:
    findings.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        current, said = Path(scratch, "current"), Path(scratch, "said")
        command = [sys.executable, "-m", "tests.fuzzing.child", target, str(current), *arguments]
        with said.open("wb") as words:
            child = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=words, stderr=words)
            try:
                status = child.wait(patience)
            except subprocess.TimeoutExpired:
                child.kill()
                status = child.wait()
        if status == 0:
            return None
        text = said.read_text("utf-8", "replace")[-TAIL:]
        if status < 0:
            text += f"\nended by {signal.Signals(-status).name}" + MEANINGS.get(-status, "")
        if not current.exists():
            raise RuntimeError(f"the process for {target} did not start: {text}")
        data = under_way(current)
        file = findings / f"{target.rpartition(':')[2]}-{hashlib.sha256(data).hexdigest()[:12]}"
        file.write_bytes(data)
        return Finding(target, data, text, file)


MEANINGS: dict[int, str] = {
    signal.SIGPROF: ": the input takes more than twice the processor time allowed",
    signal.SIGKILL: ": the input does not end, or memory ended",
}
