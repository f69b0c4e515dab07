"""What `bentoml serve`, a supervisor with its worker, lacks: an end if the worker cannot start, and a common end.

The supervisor starts every worker again that has ended. That is right if it had served, but one that cannot start would
be started again and again. So a worker tells the supervisor that it is ready, or why it cannot start. Then the server
ends with that line and status 1. If the supervisor is killed, its worker would keep the port. So the worker watches the
pipe to it, and ends too. And the supervisor looks for ended workers every ten seconds. So we have it look at once.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import click

from models.console import Failure
from serving.bentoml_seams import inherited_pipe, look_soon, started_arbiters

log = logging.getLogger("bentoml.podium")

# The variable with the file descriptor of the pipe to the supervisor, which workers inherit. Each line in the pipe is a
# worker's process id, followed by why it cannot start, or by nothing if it is ready.
PIPE = "PODIUM_SUPERVISOR_FD"

# Seconds that a worker without its supervisor has to answer the requests it is handling.
GRACE = 5.0


def watch(command: click.Context) -> None:
    """In the supervisor, before its first worker: if a worker ends before it was ready, end `command` with one line."""
    if not hasattr(os, "waitid"):  # macOS before Python 3.13
        return
    reading, writing = os.pipe()
    os.set_blocking(reading, False)
    os.set_inheritable(writing, True)
    os.environ[PIPE] = str(writing)
    said: dict[str, str] = {}
    failure = ""
    arbiters = started_arbiters()

    def ended() -> None:
        nonlocal failure
        with suppress(BlockingIOError):
            for line in os.read(reading, 1 << 16).decode(errors="replace").splitlines():
                process, _, why = line.partition(" ")
                said[process] = why
        try:
            # WNOWAIT only looks: the supervisor itself collects its workers' statuses.
            worker = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if worker is None or failure:
            return
        failure = said.get(str(worker.si_pid), unsaid(worker.si_status, worker.si_code != os.CLD_EXITED))
        if failure:
            signal.raise_signal(signal.SIGTERM)
            return
        for arbiter in arbiters:
            look_soon(arbiter)

    def show() -> None:
        if failure:
            raise click.ClickException(failure)

    signal.signal(signal.SIGCHLD, lambda *_: ended())
    command.call_on_close(show)


def unsaid(status: int, killed: bool) -> str:
    """Why a worker ended that did not say so itself; "" if it was asked to end."""
    if not killed:
        return f"the worker ended with status {status} before it was ready; its log says why" if status else ""
    if status in (signal.SIGTERM, signal.SIGINT):
        return ""
    return (
        f"{signal.Signals(status).name} ended the worker while it loaded the models; "
        "if memory ran out, name fewer of them in PODIUM_MODELS"
    )


def follow() -> None:
    """In a worker, as early as possible: from now on it ends when its supervisor ends, for whatever reason.

    Only the supervisor holds the reading end of the pipe, and the kernel closes it. The worker sees that even if it
    happened before this call. A parent-death signal would miss that, and would also come if only the thread that
    started the worker ended.
    """
    if PIPE in os.environ:
        pipe = inherited_pipe(int(os.environ[PIPE]))
        threading.Thread(target=_end_with, args=(pipe,), name="supervisor", daemon=True).start()


def _end_with(pipe: int) -> None:
    gone = select.poll()
    gone.register(pipe, 0)  # errors and hang-ups are always reported
    gone.poll()
    log.warning("the supervisor is gone; the worker ends too, in at most %g s", GRACE)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def starting() -> Iterator[None]:
    """An exception in here ends a worker that is watched. If it is a defect of ours, the log gets its traceback."""
    try:
        yield
    except Exception as error:
        if PIPE not in os.environ:
            raise
        if isinstance(error, Failure):
            tell(" ".join(str(error).split()))
        else:
            log.exception("the worker cannot start")
            tell(f"the worker cannot start, {type(error).__name__}: the log has the traceback")
        logging.shutdown()
        # At once, because BentoML and its web server would each log the exception too.
        os._exit(1)


def ready() -> None:
    """In a worker: from now on it is started again if it ends."""
    if PIPE in os.environ:
        tell("")


def tell(why: str) -> None:
    # A pipe takes so many bytes in one piece.
    line = f"{os.getpid()} {why}".encode()[: select.PIPE_BUF - 1] + b"\n"
    os.write(int(os.environ[PIPE]), line)
