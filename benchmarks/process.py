"""A child process: started, asked, timed out and ended."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.records import Failed, FailureKind

ROOT = Path(__file__).parents[1]

# A child that has not answered by then hangs: engines need minutes to compile the largest networks, not more.
PATIENCE_S = 900.0


class PassError(Exception):
    """A pass gave no result; the message is the reason that the record will give."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(reason)
        self.failed = Failed(kind, reason)


def in_child(job: Mapping[str, Any]) -> dict[str, Any]:
    """What a fresh process answers to `job`; `PassError` when it fails, dies or hangs."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
    killed_before = oom_kills()
    try:
        child = subprocess.run(
            [sys.executable, "-m", "benchmarks.engine.child"],
            input=json.dumps(job), capture_output=True, text=True, timeout=PATIENCE_S, env=environment, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise PassError("process", f"the {job['pass']} pass gave no answer within {PATIENCE_S:g} s") from error
    if child.returncode < 0:
        name = signal.Signals(-child.returncode).name
        # Nobody but the kernel, or who watches over a container's memory, sends SIGKILL to a child of ours.
        memory = child.returncode == -signal.SIGKILL or oom_kills() > killed_before
        if memory:
            raise PassError("memory", f"memory ended in the {job['pass']} pass ({name})")
        raise PassError("process", f"{name} in the {job['pass']} pass")
    try:
        answer: dict[str, Any] = json.loads(child.stdout)
    except ValueError as error:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        raise PassError("process", f"{job['pass']} pass, exit status {child.returncode}: {last}") from error
    if "failed" in answer:
        raise PassError(answer["kind"], answer["failed"])
    return answer


def oom_kills() -> int:
    """How often the kernel has ended a process of this container for want of memory."""
    try:
        lines = Path("/sys/fs/cgroup/memory.events").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


class Stopped(Exception):
    """The run was told to end: by its budget or by a signal."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.status = status


class Child:
    """The process that measures, started when it is first asked, and again after it failed."""

    def __init__(self, device: str, threads: int, files: Path, clock: Callable[[], float] = time.monotonic) -> None:
        """`files` is a folder for what engines are made from, which outlives a child."""
        self.device, self._clock = device, clock
        self._always = {"device": device, "threads": threads, "files": str(files)}
        self._running: subprocess.Popen[str] | None = None

    def ask(self, job: dict[str, Any], deadline: float) -> dict[str, Any]:
        """The answer to `job`; `PassError` where it failed, `Stopped` where none came by `deadline`."""
        running = self._running or self._start()
        assert running.stdin is not None
        assert running.stdout is not None
        with suppress(BrokenPipeError):  # it died since it last answered: told below
            print(json.dumps(job | self._always), file=running.stdin, flush=True)
        with selectors.DefaultSelector() as selector:
            selector.register(running.stdout, selectors.EVENT_READ)
            if not selector.select(max(0.0, deadline - self._clock())):
                self.end()
                raise Stopped("the time budget ended", 0)
        line = running.stdout.readline()
        if not line.endswith("\n"):  # it ended, perhaps in the middle of a word
            status = running.wait()
            self.end()
            if status == -signal.SIGKILL:
                raise PassError("memory", f"memory ended in the {job['pass']} pass (SIGKILL)")
            name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
            raise PassError("process", f"{name} in the {job['pass']} pass; its last words are above")
        found: dict[str, Any] = json.loads(line)
        if "failed" in found:
            if self.device != "cpu":
                self.end()  # after an error of CUDA's everything else fails too
            raise PassError(found["kind"], found["failed"])
        return found

    def end(self) -> None:
        """End the process at once; what it holds is of no use any more."""
        if self._running is None:
            return
        running, self._running = self._running, None
        running.kill()
        running.wait()
        for pipe in (running.stdin, running.stdout):
            assert pipe is not None
            with suppress(BrokenPipeError):
                pipe.close()

    def _start(self) -> subprocess.Popen[str]:
        here = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))}
        self._running = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.engine.gpu_passes"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=here,
        )  # fmt: skip
        return self._running


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    with suppress(ProcessLookupError):  # what it started and left behind
        os.killpg(process.pid, signal.SIGKILL)


def kill_all(process: subprocess.Popen[bytes]) -> None:
    """End it and the worker that it goes on starting, which is in a session of its own."""
    import psutil

    with suppress(psutil.NoSuchProcess):
        own = psutil.Process(process.pid)
        for one in [own, *own.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()
