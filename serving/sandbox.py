"""Child processes in which an image is decoded that may cost anything.

A decoder cannot be stopped in a thread. In a process of its own it can: the kernel ends it past its processor time and
refuses it memory past its limit, and a crash of it costs its image alone. A child is warm, takes one image after the
other, imports only Pillow, numpy and simplejpeg, and ends with the process that started it, however that ends: its
socket then closes. What comes back over it is the bare pixels, or an error of three kinds.
"""

from __future__ import annotations

import atexit
import json
import logging
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
from contextlib import suppress
from dataclasses import asdict
from functools import cache
from math import prod
from pathlib import Path

import numpy as np

from models.preprocess import Pixels, Preprocess
from serving.errors import (
    CLOSING,
    OUR_FAULT,
    Closing,
    DamagedImage,
    InferenceFailed,
    Overloaded,
    RequestError,
    TooLarge,
)
from serving.limits import Limits

log = logging.getLogger("bentoml.podium")

ROOT = Path(__file__).parents[1]
PROGRAM = "import sys; sys.path.insert(0, sys.argv[2]); from serving.decoder import main; main(int(sys.argv[1]))"
START_SECONDS = 60.0  # until a child has imported what it needs, on a machine that does much else
# A child that gets no processor is given up after this many times its budget.
PATIENCE = 10.0
# What it may know of our environment: where its interpreter and libraries lie, and none of our tokens.
KEPT = ("PATH", "PYTHONPATH", "PYTHONHOME", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "HOME", "TMPDIR")
# One thread, and memory given back as soon as it is freed.
SET = {
    "OPENBLAS_NUM_THREADS": "1",
    "OMP_NUM_THREADS": "1",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": "4194304",
    "MALLOC_TRIM_THRESHOLD_": "4194304",
}
LENGTH = struct.Struct("<I")
PIXELS, ERROR, READY = b"P", b"E", b"R"
LONGEST_ERROR = 4096
ERRORS: dict[str, type[RequestError]] = {error.code: error for error in (TooLarge, DamagedImage)}


class Child:
    """One child process and the socket to it. Any failure of it ends it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        kept = {name: value for name in KEPT if (value := os.environ.get(name)) is not None}
        with theirs:
            try:
                self.process = subprocess.Popen(
                    [sys.executable, "-c", PROGRAM, str(theirs.fileno()), str(ROOT)],
                    env=kept | SET,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # a Ctrl-C is for the server, which still answers what is under way
                )
            except OSError:
                ours.close()
                raise
        self.socket = ours
        self.socket.settimeout(START_SECONDS)
        try:
            ready = self.socket.recv(1) == READY
        except OSError:
            ready = False
        if not ready:
            self.end()
            log.error("a decoder process did not start: status %s; its own words are above", self.process.returncode)
            raise InferenceFailed(OUR_FAULT)

    def ask(self, body: bytes, name: str, recipe: Preprocess, limits: Limits) -> Pixels:
        """Raises `TooLarge` and `DamagedImage` of the image, `OSError` and `EOFError` if the child fails."""
        self.socket.settimeout(PATIENCE * limits.seconds)
        head = json.dumps({"name": name, "recipe": asdict(recipe), "limits": asdict(limits)}).encode()
        self.socket.sendall(LENGTH.pack(len(head)) + LENGTH.pack(len(body)) + head)
        self.socket.sendall(body)
        kind = self._receive(1)
        if kind == PIXELS:
            return np.frombuffer(self._receive(prod(recipe.shape)), np.uint8).reshape(recipe.shape)
        (length,) = LENGTH.unpack(self._receive(LENGTH.size))
        if kind != ERROR or length > LONGEST_ERROR:
            raise EOFError
        code, message = json.loads(self._receive(length))
        raise ERRORS[code](message)

    def _receive(self, count: int) -> bytearray:
        got = bytearray(count)
        left = memoryview(got)
        while left:
            read = self.socket.recv_into(left)
            if not read:
                raise EOFError
            left = left[read:]
        return got

    def end(self) -> int:
        """Kill it, if it still runs; its status."""
        self.socket.close()
        with suppress(subprocess.TimeoutExpired):
            return self.process.wait(0 if self.process.poll() is not None else 0.05)
        self.process.kill()
        return self.process.wait()


class Sandbox:
    """At most `size` children, started when first needed and again after one ended."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._room = threading.Semaphore(size)
        self._change = threading.Lock()
        self._idle: list[Child] = []
        self._busy: set[Child] = set()
        self._closed = False

    def decode(self, body: bytes, name: str, recipe: Preprocess, limits: Limits) -> Pixels:
        """As `images.decode`, in a child; waits for one. Raises `Closing` too, and `Overloaded` if memory ran out."""
        with self._room:
            child = self._take()
            try:
                pixels = child.ask(body, name, recipe, limits)
            except RequestError:
                self._give(child)
                raise
            except TimeoutError:
                self._lose(child)
                raise TooLarge(f"decoding the {name} did not end within {PATIENCE * limits.seconds:,g} s") from None
            except Exception:  # whatever it says now, it is not to be asked again
                raise self._failure(self._lose(child), name, limits) from None
            self._give(child)
            return pixels

    def close(self) -> None:
        """End every child, and with it what it is at. Takes nothing more."""
        with self._change:
            self._closed = True
            idle, self._idle = self._idle, []
            for child in self._busy:  # whose thread then clears up after it
                child.process.kill()
        for child in idle:
            child.end()

    def _take(self) -> Child:
        with self._change:
            if self._closed:
                raise Closing(CLOSING)
            child = self._idle.pop() if self._idle else None
            if child is not None and child.process.poll() is None:
                self._busy.add(child)
                return child
        if child is not None:
            child.end()
        try:
            child = Child()
        except OSError as error:  # no more processes, files or memory
            log.warning("no process can be started to decode an image: %s", error.strerror)
            raise Overloaded("no process can be started to decode this image; try again in 1 s", 1) from None
        with self._change:
            self._busy.add(child)
            if not self._closed:
                return child
        self._lose(child)
        raise Closing(CLOSING)

    def _give(self, child: Child) -> None:
        with self._change:
            self._busy.discard(child)
            if not self._closed:
                self._idle.append(child)
                return
        child.end()

    def _lose(self, child: Child) -> int:
        with self._change:
            self._busy.discard(child)
        return child.end()

    def _failure(self, status: int, name: str, limits: Limits) -> RequestError:
        if self._closed:
            return Closing(CLOSING)
        if status == -signal.SIGPROF:
            return TooLarge(
                f"decoding the {name} takes more than the {1e3 * limits.seconds:,.0f} ms of processor time allowed "
                "(PODIUM_IMAGE_CPU_MS); send it smaller, or saved anew as a plain JPEG"
            )
        if status == -signal.SIGKILL:  # not by us
            return Overloaded(f"memory ran out while the {name} was decoded; try again in 1 s", 1)
        how = signal.Signals(-status).name if status < 0 else f"status {status}"
        log.warning("a decoder process ended on a %s: %s", name, how)
        return DamagedImage(f"the {name} image is damaged: its decoder crashed ({how})")


@cache
def shared() -> Sandbox:
    """The sandbox of a program that is not the service: as many children as there are processors."""
    sandbox = Sandbox(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    atexit.register(sandbox.close)
    return sandbox
