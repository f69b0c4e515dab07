"""Servers in processes of their own, on ports of this machine alone."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.load.wire import HOST
from benchmarks.process import ROOT, end, environment, free_port
from models.console import Failure

if TYPE_CHECKING:
    import psutil

START_WITHIN_S = 120.0
POLL_S = 0.02
ENDED_WITHIN_S = 15.0


class Server:
    """A server that was started; `name` is what messages call it."""

    def __init__(self, name: str, port: int, command: Sequence[str], log: Path, variables: Mapping[str, str]) -> None:
        self.name, self.port, self.log = name, port, log
        self._command = command
        self._environment = environment({"BENTOML_DO_NOT_TRACK": "True", **variables})
        self.process = self._started()

    def _started(self) -> subprocess.Popen[bytes]:
        with self.log.open("a") as output:
            return subprocess.Popen(
                self._command, cwd=ROOT, env=self._environment, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is ours to handle
            )  # fmt: skip

    def start_again(self) -> None:
        """Start it once more, after it has ended."""
        self.process = self._started()

    async def until(self, ready: Callable[[], Awaitable[bool]]) -> None:
        """Wait until it is `ready`; `Failure` with its last words if it ends, or takes too long."""
        deadline = time.monotonic() + START_WITHIN_S
        while not await ready():
            self.check(deadline)
            await asyncio.sleep(POLL_S)

    def check(self, deadline: float) -> None:
        if self.process.poll() is not None or time.monotonic() > deadline:
            raise Failure(f"{self.name} did not start: {self.last_words()}")

    def processes(self) -> list[psutil.Process]:
        """Its first process, then all that this one started.

        BentoML's first one is the supervisor. Its worker is in a session of its own, and goes on serving if only the
        supervisor is killed.
        """
        import psutil

        first = psutil.Process(self.process.pid)
        return [first, *first.children(recursive=True)]

    def signal(self, number: int) -> None:
        """Send a signal to all its processes."""
        import psutil

        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def cpu_seconds(self) -> float:
        """Processor time of its processes so far."""
        times = [process.cpu_times() for process in self.processes()]
        return float(sum(t.user + t.system for t in times))

    def memory_mb(self) -> float:
        """What its processes hold in memory; one that ends meanwhile holds none."""
        import psutil

        held = 0
        for process in self.processes():
            with suppress(psutil.NoSuchProcess):
                held += process.memory_info().rss
        return held / 1e6

    def last_words(self) -> str:
        return (self.log.read_text("utf-8", "replace").strip().splitlines() or ["no message"])[-1]

    def close(self) -> None:
        """End all its processes."""
        import psutil

        left: list[psutil.Process] = []
        with suppress(psutil.NoSuchProcess):
            left = self.processes()
            self.signal(signal.SIGCONT)  # one that is stopped would not see SIGTERM
        end(self.process)
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(left, timeout=ENDED_WITHIN_S)  # until then the port still takes connections


class Podium(Server):
    """`bentoml serve` with a BentoML home of its own, whose models are the store's."""

    def __init__(self, name: str, folder: Path, store: Path, variables: Mapping[str, str]) -> None:
        folder.mkdir()
        port, home = free_port(), home_with(folder / "home", store)
        command = bentoml("service:Podium", port)
        super().__init__(name, port, command, folder / "log", {**variables, "BENTOML_HOME": str(home)})


def bentoml(service: str, port: int) -> list[str]:
    """The command that serves `service`."""
    return [str(Path(sys.executable).with_name("bentoml")), "serve", service, "--host", HOST, "--port", str(port)]


def home_with(home: Path, store: Path) -> Path:
    """A BentoML home whose models are those of `store`."""
    home.mkdir()
    (home / "models").symlink_to(store, target_is_directory=True)
    return home
