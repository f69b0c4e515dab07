"""Child processes: one protocol to ask them questions, and how they are ended.

A question is a line of JSON on the child's stdin, `{"ask": NAME, ...}`. The answer is a line on its stdout,
`{"answer": ...}` or `{"failed": REASON, "kind": KIND}`. `Child` asks; `answer` is the loop of the other process.
"""

from __future__ import annotations

import json
import os
import re
import selectors
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from types import MappingProxyType
from typing import IO, Any

from benchmarks.records import Failed, FailureKind
from models.console import Failure

ROOT = Path(__file__).parents[1]
NOTHING: Mapping[str, Any] = MappingProxyType({})


class PassError(Failure):
    """A question got no answer; the message is the reason that a record will give."""

    def __init__(self, kind: FailureKind, reason: str) -> None:
        super().__init__(reason)
        self.failed = Failed(kind, reason)


class Late(PassError):
    """No answer came in time, and the process was ended."""


class Child:
    """A process that answers questions. The first question starts it, and so does the next one after it has ended."""

    def __init__(
        self, module: str, *arguments: str, variables: Mapping[str, str] = NOTHING, told: bool = False
    ) -> None:
        """`module` calls `answer` when it is run with `arguments`; `variables` are added to its environment.

        What it writes to stderr goes to ours if `told`. Else it is kept, and a `PassError` has its last line.
        """
        self._told = told
        self._command = [sys.executable, "-m", module, *arguments]
        self._variables = variables
        self._running: subprocess.Popen[str] | None = None
        self._errors: IO[str] | None = None

    def __enter__(self) -> Child:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def ask(self, name: str, question: Mapping[str, Any] = NOTHING, within: float | None = None) -> Any:
        """The answer, waited for in a blocking call. Raises `Late` after `within` seconds, else `PassError`."""
        kills = oom_kills()
        running = self._running or self._start()
        assert running.stdin is not None
        assert running.stdout is not None
        with suppress(BrokenPipeError):  # it ended after its last answer; `_ended` tells how
            print(json.dumps({"ask": name, **question}), file=running.stdin, flush=True)
        with selectors.DefaultSelector() as selector:
            selector.register(running.stdout, selectors.EVENT_READ)
            if not selector.select(None if within is None else max(0.0, within)):
                self.end()
                raise Late("process", f"the {name} pass gave no answer within {within:g} s")
        line = running.stdout.readline()
        if not line.endswith("\n"):  # it ended, perhaps in the middle of a line
            raise self._ended(name, running, kills)
        reply = json.loads(line)
        if "failed" in reply:
            raise PassError(reply["kind"], reply["failed"])
        return reply["answer"]

    def end(self) -> None:
        """End the process at once, because what it holds is not needed any more."""
        if self._running is None:
            return
        running, self._running = self._running, None
        running.kill()
        running.wait()
        for pipe in filter(None, (running.stdin, running.stdout, self._errors)):
            with suppress(BrokenPipeError):
                pipe.close()

    def _start(self) -> subprocess.Popen[str]:
        self._errors = None if self._told else TemporaryFile("w+", errors="replace")  # noqa: SIM115, `end` closes it
        self._running = subprocess.Popen(
            self._command, env=environment(self._variables), text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors,
        )  # fmt: skip
        return self._running

    def _ended(self, name: str, running: subprocess.Popen[str], kills: int) -> PassError:
        """Why the process ended in the middle of a question."""
        status = running.wait()
        last = "its last words are above" if self._told else ""
        if self._errors is not None:
            self._errors.seek(0)
            last = (self._errors.read().strip().splitlines() or [""])[-1]
        self.end()
        # Only the kernel, or whatever watches the memory of a container, sends SIGKILL to a child of ours.
        if status == -signal.SIGKILL or (status < 0 and oom_kills() > kills):
            return PassError("memory", f"memory ended in the {name} pass ({signal.Signals(-status).name})")
        how = signal.Signals(-status).name if status < 0 else f"exit status {status}"
        return PassError("process", f"{how} in the {name} pass" + f": {last}" * bool(last))


def environment(more: Mapping[str, str] = NOTHING) -> dict[str, str]:
    """The environment of a process that imports our modules, wherever it runs."""
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    return {**os.environ, **more, "PYTHONPATH": path}


def oom_kills() -> int:
    """How often the kernel has ended a process of this container because memory ran out."""
    try:
        lines = Path("/sys/fs/cgroup/memory.events").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) for line in lines if line.startswith("oom_kill "))


Answers = Mapping[str, Callable[[Any], object]]


def answer(answers: Answers) -> int:
    """Answer every question on stdin with the function of its name; the exit status of the process."""
    # What engines print goes to stderr, so that stdout carries the answers alone.
    replies = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    # If memory runs out, let the kernel end this process first.
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    for line in sys.stdin:
        question = json.loads(line)
        print(json.dumps(attempt(question.pop("ask"), question, answers)), file=replies, flush=True)
    return 0


def attempt(name: str, question: Any, answers: Answers) -> dict[str, object]:
    """The reply to one question."""
    try:
        return {"answer": answers[name](question)}
    except MemoryError:
        return {"kind": "memory", "failed": f"memory ended in the {name} pass"}
    except Exception as error:  # whatever an engine raises becomes the reason
        message = " ".join(str(error).split()) or type(error).__name__
        if re.search(r"bad.?alloc|out of memory|failed to allocate", message, re.IGNORECASE):
            return {"kind": "memory", "failed": f"memory ended in the {name} pass: {message}"}
        return {"kind": "engine", "failed": message}


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
