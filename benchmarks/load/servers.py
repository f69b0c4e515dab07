"""A service in processes of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.process import ROOT, end

if TYPE_CHECKING:
    import psutil


class Replica:
    """`bentoml serve` on a port of its own, with a BentoML home of its own, whose models are the store's."""

    def __init__(self, port: int, folder: Path, store: Path, environment: dict[str, str]) -> None:
        self.port, self.log = port, folder / "log"
        folder.mkdir()
        (folder / "home").mkdir()
        (folder / "home" / "models").symlink_to(store, target_is_directory=True)
        self.environment = {**os.environ, **environment, "BENTOML_HOME": str(folder / "home")}
        self.environment["BENTOML_DO_NOT_TRACK"] = "True"
        self.start()

    def start(self) -> None:
        bentoml = str(Path(sys.executable).with_name("bentoml"))
        with self.log.open("a") as output:
            self.process = subprocess.Popen(
                [bentoml, "serve", "service:Podium", "--host", "127.0.0.1", "--port", str(self.port)],
                cwd=ROOT, env=self.environment, stdout=output, stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C is ours to handle
            )  # fmt: skip

    def processes(self) -> list[psutil.Process]:
        """BentoML's supervisor first, and its worker, which is in a session of its own and goes on serving when only
        the supervisor is killed.
        """
        import psutil

        own = psutil.Process(self.process.pid)
        return [own, *own.children(recursive=True)]

    def signal(self, number: int) -> None:
        for process in self.processes():
            process.send_signal(number)

    def cpu_seconds(self) -> float:
        """Processor time of it so far."""
        times = [process.cpu_times() for process in self.processes()]
        return float(sum(t.user + t.system for t in times))

    def memory_mb(self) -> float:
        """What it holds in memory."""
        return float(sum(process.memory_info().rss for process in self.processes())) / 1e6

    def last_words(self) -> str:
        return (self.log.read_text("utf-8", "replace").strip().splitlines() or ["no message"])[-1]

    def close(self) -> None:
        import psutil

        with suppress(psutil.NoSuchProcess):
            left = self.processes()
            self.signal(signal.SIGCONT)  # one that is stopped would not see SIGTERM
            end(self.process)
            for process in left:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
