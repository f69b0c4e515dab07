"""What glibc keeps of freed memory, and what the service gives back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

MADV_DONTNEED = 4  # Linux: drop these pages
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGE = 4 << 20  # bytes; a photograph of a megapixel is decoded in blocks below it


def bound_heap() -> None:
    """Have glibc give large blocks back to the system as soon as they are freed, and keep of each thread's small ones
    no more than that for the next.

    By itself it keeps every size that was ever freed, up to 32 MB: after a few large images a service would hold
    hundreds of megabytes for good.
    """
    with suppress(OSError, AttributeError):  # another system
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE)


def give_back_memory() -> None:
    """Let the system have what engines have freed, and the weights that a `lean` one has packed already.

    glibc would keep most of it for later. Dropped pages of a file are read again if they are asked for.
    """
    try:
        libc, maps = ctypes.CDLL("libc.so.6"), Path("/proc/self/maps").read_text("ascii", "replace")
    except OSError:  # another system
        return
    for line in maps.splitlines():
        if ".blob" in line and " r--" in line:
            begin, end = (int(address, 16) for address in line.split()[0].split("-"))
            libc.madvise(ctypes.c_void_p(begin), ctypes.c_size_t(end - begin), MADV_DONTNEED)
    libc.malloc_trim(0)
