"""What is fuzzed, and the limits for every input."""

from __future__ import annotations

import mmap
import os
import resource
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

NAMES = ("decode", "forms", "oip", "connection")
LENGTH_BYTES = 4  # before the input, in the file of the current input
CLEAR_PEAK = b"5"  # of /proc/PID/clear_refs, see proc(5)


class Defect(Exception):
    """The code under test did what it must never do."""


@dataclass(frozen=True)
class Target:
    """Raises what is wrong with one input, and has limits on the processor time and memory of each."""

    run: Callable[[bytes], None]
    seconds: float
    memory: int  # bytes more than the process had before
    longest: int = 1 << 16


def named(name: str) -> Target:
    """The target of a module of this package, or `planted:NAME`."""
    module, _, attribute = name.partition(":")
    found = getattr(import_module(f"tests.fuzzing.{module}"), attribute or "TARGET")
    assert isinstance(found, Target)
    return found


class Guard:
    """Runs a target on one input at a time, within the limits of the target.

    The file `current` holds the current input: if the process dies of it, its parent finds it there. After twice its
    processor time the process dies, even in a decoder that never returns to Python, unless `mortal` is false.
    """

    def __init__(self, target: Target, current: Path, mortal: bool = True) -> None:
        self.target = target
        self.end = 2 * target.seconds if mortal else 0.0
        size = LENGTH_BYTES + target.longest
        current.write_bytes(bytes(size))
        with current.open("r+b") as file:
            self.memory = mmap.mmap(file.fileno(), size)

    def __call__(self, data: bytes) -> None:
        if len(data) > self.target.longest:
            raise Defect(f"the input has {len(data)} bytes; the target takes {self.target.longest}")
        self.memory[LENGTH_BYTES : LENGTH_BYTES + len(data)] = data
        self.memory[:LENGTH_BYTES] = len(data).to_bytes(LENGTH_BYTES, "little")
        before, began = _forget_peak(), time.process_time()
        signal.setitimer(signal.ITIMER_PROF, self.end)
        try:
            self.target.run(data)
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
        seconds, peak = time.process_time() - began, _peak() - before
        if seconds > self.target.seconds:
            raise Defect(f"{seconds:.1f} s of processor time; {self.target.seconds:g} are allowed")
        if peak > self.target.memory:
            raise Defect(f"{peak:,} bytes at the peak; {self.target.memory:,} are allowed")


def under_way(current: Path) -> bytes:
    """The input that the guard of another process was working on."""
    data = current.read_bytes()
    return data[LENGTH_BYTES:][: int.from_bytes(data[:LENGTH_BYTES], "little")]


def _forget_peak() -> int:
    """Bytes resident now; also resets the peak, if the system can."""
    with suppress(OSError):
        descriptor = os.open("/proc/self/clear_refs", os.O_WRONLY)
        os.write(descriptor, CLEAR_PEAK)
        os.close(descriptor)
    return _peak()


def _peak() -> int:
    """Bytes resident at the peak, C libraries' included."""
    with suppress(OSError), Path("/proc/self/status").open("rb") as status:
        for line in status:
            if line.startswith(b"VmHWM:"):
                return int(line.split()[1]) << 10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
