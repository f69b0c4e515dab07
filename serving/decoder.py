"""The program of a child process that decodes (`serving.sandbox`): one image after the other, within its limits."""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from PIL import Image

from models.preprocess import Preprocess, kernel_agrees
from serving.errors import DamagedImage, RequestError
from serving.images import decode_here, printable
from serving.limits import BODY_COPIES, Limits

LENGTH = struct.Struct("<I")
PIXELS, ERROR, READY = b"P", b"E", b"R"
# Images from the threads of the service come first: its clients outnumber those who send what is costly.
NICE = 5


def main(descriptor: int) -> None:
    """Answer what comes over the socket `descriptor`, until it closes."""
    with socket.socket(fileno=descriptor) as connection, connection.makefile("rb") as requests:
        restrict()
        Image.init()
        kernel_agrees()
        said, begin = Said(), address_space()
        connection.sendall(READY)
        while head := requests.read(2 * LENGTH.size):
            sizes = LENGTH.unpack(head[: LENGTH.size])[0], LENGTH.unpack(head[LENGTH.size :])[0]
            asked, body = json.loads(requests.read(sizes[0])), requests.read(sizes[1])
            if len(body) < sizes[1]:
                return
            connection.sendall(answer(asked, body, begin, said))
            del body


def restrict() -> None:
    """Before any image: last in line for the processor and first for the kernel to end if memory runs out; no files."""
    # The server ends us, by closing the socket, after its last answer. A signal to its whole group must not, before.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGPROF, signal.SIG_DFL)
    os.nice(NICE)
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000", "ascii")
    for limit in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):
        resource.setrlimit(limit, (0, 0))


def answer(asked: dict[str, Any], body: bytes, begin: int, said: Said) -> bytes:
    asked["recipe"] |= {name: tuple(asked["recipe"][name]) for name in ("mean", "std")}
    recipe = Preprocess(**asked["recipe"])
    limits = Limits(**asked["limits"])
    try:
        with within(limits, begin, BODY_COPIES * len(body)):
            pixels = decode_here(body, asked["name"], recipe, limits.pixels)
    except RequestError as error:
        code, told = error.code, str(error)
        if isinstance(error, DamagedImage) and (more := printable(said.take())):
            told = f"{told} ({more})"
    else:
        said.take()
        return PIXELS + pixels.tobytes()
    text = json.dumps([code, told]).encode()
    return ERROR + LENGTH.pack(len(text)) + text


@contextmanager
def within(limits: Limits, begin: int, spare: int = 0) -> Iterator[None]:
    """The kernel ends this process past its processor seconds, by SIGPROF, and refuses it memory past its limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    if begin:
        most = begin + limits.memory + spare
        resource.setrlimit(resource.RLIMIT_AS, (min([most, *(of for of in (soft, hard) if of >= 0)]), hard))
    signal.setitimer(signal.ITIMER_PROF, limits.seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        if begin:
            resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def address_space() -> int:
    """Bytes of address space that this process has taken; 0 if the system does not tell."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[0]) * resource.getpagesize()
    except OSError:
        return 0


class Said:
    """What libraries write to stderr: kept until it is asked for, at most what a pipe holds, and never in the log."""

    def __init__(self) -> None:
        self.reading, writing = os.pipe()
        for end in (self.reading, writing):
            os.set_blocking(end, False)  # a full pipe drops what more is said
        os.dup2(writing, 2)
        os.close(writing)

    def take(self) -> str:
        try:
            return os.read(self.reading, 1 << 16).decode(errors="replace")
        except BlockingIOError:
            return ""
