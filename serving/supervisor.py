"""A worker that cannot start ends the server, with one line that says why and status 1; and it ends with its server.

`bentoml serve` is a supervisor and its worker. It starts a worker that ended again: right for one that had served, but
one that cannot start would be started for ever. So a worker tells the supervisor that it is ready, or why it is not.
A supervisor that is killed ends nobody, and its worker would keep the port for ever: so a worker watches the pipe.
BentoML looks for workers that ended every ten seconds: so it is told to look as soon as one has.
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

# The pipe to the supervisor that its workers inherit, by the number of its file descriptor. What goes through it are
# lines: the worker's process id, and why it cannot start, or nothing where it is ready.
PIPE = "PODIUM_SUPERVISOR_FD"

# Seconds in which a worker without its supervisor may answer what is under way.
GRACE = 5.0


def watch(command: click.Context) -> None:
    """In the supervisor, before its first worker: a worker that ends and was never ready ends `command` with a line."""
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
                worker, _, why = line.partition(" ")
                said[worker] = why
        try:
            # Only a look: the supervisor itself collects what its workers leave.
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None or failure:
            return
        failure = said.get(str(found.si_pid), unsaid(found.si_status, found.si_code != os.CLD_EXITED))
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
    """Why a worker ended that could not say so; nothing where it was asked to end."""
    if not killed:
        return f"the worker ended with status {status} before it was ready; its log says why" if status else ""
    if status in (signal.SIGTERM, signal.SIGINT):
        return ""
    return (
        f"{signal.Signals(status).name} ended the worker while it loaded the models; "
        "where memory ran out, name fewer of them in PODIUM_MODELS"
    )


def follow() -> None:
    """In a worker, as early as can be: from now on it ends when its supervisor does, however that ends.

    The supervisor alone holds the reading end of the pipe, and the kernel closes it. That is seen whenever it happened,
    so that there is no moment before this in which a supervisor could die unnoticed; a parent-death signal has one, and
    comes too when only the thread that started the worker ends.
    """
    if PIPE in os.environ:
        pipe = inherited_pipe(int(os.environ[PIPE]))
        threading.Thread(target=_end_with, args=(pipe,), name="supervisor", daemon=True).start()


def _end_with(pipe: int) -> None:
    gone = select.poll()
    gone.register(pipe, 0)  # an error, or a hang-up, is told in any case
    gone.poll()
    log.warning("the supervisor is gone; the worker ends too, in at most %g s", GRACE)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE)
    os.kill(os.getpid(), signal.SIGKILL)


@contextmanager
def starting() -> Iterator[None]:
    """What is raised in here ends a worker that is watched; a defect of ours leaves its traceback in the log."""
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
        # At once: BentoML and its web server would each log the exception too.
        os._exit(1)


def ready() -> None:
    """In a worker: from now on it is started again when it ends."""
    if PIPE in os.environ:
        tell("")


def tell(why: str) -> None:
    # No longer than what a pipe takes in one piece.
    line = f"{os.getpid()} {why}".encode()[: select.PIPE_BUF - 1] + b"\n"
    os.write(int(os.environ[PIPE]), line)
