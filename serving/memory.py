"""What glibc keeps of freed memory, and what the service gives back to the system."""

from __future__ import annotations

import ctypes
from contextlib import suppress
from pathlib import Path

MADV_DONTNEED = 4  # Linux: drop these pages
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # glibc's malloc.h
LARGE = 4 << 20  # bytes; a photograph of a megapixel is decoded in blocks below it


def bound_heap() -> None:
    """Have glibc give blocks of `LARGE` and more back to the system as soon as they are freed, and keep at most that
    much of each thread's smaller ones.

    Without this, glibc raises its bound with each block that is freed, up to 32 MB. After a few large images the
    service would keep hundreds of megabytes.
    """
    with suppress(OSError, AttributeError):  # another system
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_THRESHOLD, LARGE)
        libc.mallopt(M_TRIM_THRESHOLD, LARGE)


def give_back_memory() -> None:
    """Give the system what engines have freed, and the weights of which a `lean` engine has a packed copy.

    glibc would keep most of it. If a dropped page of a file is needed again, the system reads it again.
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
