"""What the head of an image declares, read before anything is decoded: its size, and what decoding it will cost.

An image's cost is not its size in bytes. Each format has a function here that walks the head, bounded and in place, and
estimates memory and processor time. A head that is not as encoders write it is no error here: its `unusual` says why,
and such an image is decoded in a process of its own (`serving.sandbox`). Only what no budget could pay is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from serving.errors import TooLarge

# Bytes that Pillow keeps of a pixel: 1 for grey and palettes, 4 for anything in colour.
COLOUR, GREY, DEEP_GREY = 4, 1, 2

# Processor nanoseconds for a pixel, on a core of 2.3 to 3 GHz, of the costliest ordinary image found of each kind.
# `benchmarks/campaigns/costly_images.py` makes them.
NANOSECONDS = {"JPEG": 25, "PNG": 60, "WEBP": 80, "BMP": 8, "GIF": 40, "TIFF": 60, "RLE": 200}
SCAN_NANOSECONDS = 1.0  # for each scan of a JPEG and each pixel, even if the scan is empty
BYTE_NANOSECONDS = 15.0  # for each byte of a JPEG's scans

# Of a JPEG's segments before its picture. A camera writes ten, a depth map in extended XMP two hundred.
MOST_SEGMENTS, PLAIN_SEGMENTS = 1024, 64
MOST_EXIFS = 32  # Pillow copies those before to add one
PLAIN_METADATA = 256 << 10  # bytes; Pillow walks some of it in Python
PLAIN_MARKERS = (0xC0, 0xC4, 0xDB, 0xDD, 0xFE)  # frame, tables, restarts, comment: Pillow takes nothing else from them
PLAIN_SCANS = 32  # libjpeg's own script for a progressive picture has 10
PLAIN_CHUNKS = 4096  # of a PNG; at 8 kB each they hold 32 MB
PLAIN_TEXTS = 4  # compressed PNG chunks; each may grow to a megabyte
PLAIN_DIRECTORY = 1 << 20  # bytes that the entries of one EXIF directory point to; they may overlap


@dataclass(frozen=True, slots=True)
class Head:
    """Size in pixels (0: the head does not tell), `memory` in bytes at the decoder's peak, `seconds` of processor.

    `plain` is a baseline JPEG of three components in one scan: every decoder built on libjpeg-turbo makes the same
    pixels of it. `annotated` says that it has metadata which only Pillow reads: it may turn the picture.
    """

    width: int
    height: int
    memory: int
    seconds: float
    unusual: str = ""
    plain: bool = False
    annotated: bool = False


def read(name: str, body: bytes) -> Head:
    """The head of `body`, whose format is `name`. Raises `TooLarge`."""
    try:
        return READERS[name](body)
    except (IndexError, struct.error):
        return unread("it is cut off")


def unread(why: str) -> Head:
    return Head(0, 0, 0, 0.0, why)


def costs(name: str, width: int, height: int, bytes_per_pixel: float, unusual: str = "", more: float = 0.0) -> Head:
    pixels = width * height
    return Head(width, height, int(pixels * bytes_per_pixel), pixels * NANOSECONDS[name] / 1e9 + more, unusual)


def jpeg(body: bytes) -> Head:
    """Segments up to the first scan. A picture in one scan, as cameras write it, costs no look at the rest."""
    at, segments, exifs = 2, 0, 0
    frame, marker, turned, unusual = 0, 0, False, ""
    plain, annotated = True, False
    while True:
        if body[at] != 0xFF:
            return unread("there is something between its segments")
        marker, size = body[at + 1], body[at + 2] << 8 | body[at + 3]
        if marker == 0xDA:
            break
        if marker == 0xFF or marker < 0xC0 or 0xD0 <= marker <= 0xD9 or size < 2:
            return unread("there is something between its segments")
        segments += 1
        if segments > MOST_SEGMENTS:
            raise TooLarge(
                f"the JPEG has more than the {MOST_SEGMENTS:,} segments allowed before its picture; "
                "save it without its metadata"
            )
        if marker not in PLAIN_MARKERS and not (marker == 0xE0 and size >= 16):
            annotated = True
            plain = plain and marker != 0xEE  # Adobe's says which colours these are
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            if frame:
                return unread("it has two frames")
            frame = at
        elif marker == 0xE1 and body[at + 4 : at + 10] == b"Exif\0\0":
            exifs += 1
            if exifs > MOST_EXIFS:
                raise TooLarge(
                    f"the JPEG has more than {MOST_EXIFS} segments of EXIF data; save it without its metadata"
                )
            known, turned = directory(body, at + 10, at + 2 + size)
            unusual = unusual or known
        elif marker == 0xE2 and body[at + 4 : at + 8] == b"MPF\0":
            unusual, plain = unusual or directory(body, at + 8, at + 2 + size)[0], False
        at += 2 + size
    if not frame:
        return unread("it has a scan before a frame")
    if segments > PLAIN_SEGMENTS or at > PLAIN_METADATA or exifs > 1:
        unusual = unusual or f"{segments} segments of {at:,} bytes stand before its picture"
    head = jpeg_frame(body, frame, at, turned, unusual)
    plain = plain and body[frame + 1] == 0xC0 and body[frame + 9] == 3 == body[at + 4]
    return replace(head, plain=plain and not head.unusual, annotated=annotated)


def jpeg_frame(body: bytes, frame: int, scan: int, turned: bool, unusual: str) -> Head:
    marker, height, width, components = struct.unpack_from(">xB3xHHB", body, frame)
    if body[frame + 4] != 8 or components not in (1, 3, 4) or not width or not height:
        return unread("its frame is not of 8 bits and 1, 3 or 4 components")
    stored = GREY if components == 1 else COLOUR
    scans, coefficients = 1, 0.0
    if marker == 0xC2 or body[scan + 4] != components:
        # Decoded as a whole before the first row is given out: 2 bytes for each coefficient.
        scans, coefficients = body.count(b"\xff\xda", scan), 2 * samples(body, frame, components)
        if scans > PLAIN_SCANS:
            unusual = unusual or f"it has {scans:,} scans"
    if marker not in (0xC0, 0xC1, 0xC2):
        unusual = unusual or "it is not Huffman-coded in 8 by 8 blocks"
        coefficients = 2.0 * components
    # Beside the pixels: the coefficients, then the picture turned, or brought to RGB.
    peak = stored + max(coefficients, COLOUR if turned or components != 3 else 0)
    more = ((scans - 1) * width * height * SCAN_NANOSECONDS + (len(body) - scan) * BYTE_NANOSECONDS) / 1e9
    return costs("JPEG", width, height, peak, unusual, more)


def samples(body: bytes, frame: int, components: int) -> float:
    """Samples that a frame keeps for each pixel: 1.5 for colour at half the resolution."""
    factors = [(body[at] >> 4, body[at] & 15) for at in range(frame + 11, frame + 11 + 3 * components, 3)]
    across, down = max(f[0] for f in factors), max(f[1] for f in factors)
    return sum(f[0] * f[1] for f in factors) / max(1, across * down)


def directory(body: bytes, begin: int, end: int) -> tuple[str, bool]:
    """Why the EXIF directory at `begin` is costly to read, "" if it is not; and whether it may turn the picture."""
    order, end = {b"II*\0": "<", b"MM\0*": ">"}.get(body[begin : begin + 4]), min(end, len(body))
    if order is None or begin + 8 > end:
        return "", False
    (first,) = struct.unpack_from(f"{order}I", body, begin + 4)
    at = begin + first
    if at + 2 > end:
        return "", False
    (entries,) = struct.unpack_from(f"{order}H", body, at)
    entries = min(entries, (end - at - 2) // 12)
    kind = np.dtype([("tag", f"{order}u2"), ("type", f"{order}u2"), ("count", f"{order}u4"), ("value", f"{order}u4")])
    table = np.frombuffer(body, kind, entries, at + 2)
    # A value that does not lie within the directory's bytes is not read.
    pointed = int(np.minimum(table["count"].astype(np.int64) * 12, end - begin).sum())
    return ("its EXIF entries point to the same bytes" if pointed > PLAIN_DIRECTORY else ""), 274 in table["tag"]


def png(body: bytes) -> Head:
    width, height, depth, colour, interlaced = struct.unpack_from(">IIBBxxB", body, 16)
    if body[12:16] != b"IHDR":
        return unread("it does not begin with IHDR")
    at, chunks, texts, others, unusual = 8, 0, 0, 0, ""
    end = len(body)
    while at + 8 <= end and not unusual:
        size, kind = struct.unpack_from(">I4s", body, at)
        chunks += 1
        if kind == b"IEND":
            break
        if kind != b"IDAT":
            others += size
            if kind in (b"zTXt", b"iTXt", b"iCCP"):
                texts += 1
            if kind == b"eXIf":
                unusual = directory(body, at + 8, at + 8 + size)[0]
            elif kind[1:] in (b"cTL", b"dAT"):
                unusual = "it is an animation"
            elif kind == b"IHDR" and chunks > 1:
                unusual = "it has two heads"  # of which Pillow takes the second
            elif body[at + 8 : at + 25] == b"Raw profile type ":
                unusual = "its EXIF is text"
        if chunks > PLAIN_CHUNKS or texts > PLAIN_TEXTS or others > PLAIN_METADATA:
            unusual = f"it has {chunks:,} chunks, {texts} of them compressed, and {others:,} bytes of metadata"
        at += 12 + size
    if interlaced:
        unusual = unusual or "it is interlaced"
    deep = DEEP_GREY if depth == 16 else GREY
    # Beside the pixels the picture turned, brought to RGB, or laid over white.
    return costs("PNG", width, height, (COLOUR if colour in (2, 4, 6) else deep) + COLOUR, unusual)


def webp(body: bytes) -> Head:
    kind, unusual = body[12:16], ""
    if kind == b"VP8 ":
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", body, 26))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", body, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    elif kind == b"VP8X":
        width = int.from_bytes(body[24:27], "little") + 1
        height = int.from_bytes(body[27:30], "little") + 1
        unusual = webp_chunks(body)
    else:
        return unread("its first chunk is unknown")
    # libwebp's two canvases, its own picture, and Pillow's copy of that.
    return costs("WEBP", width, height, WEBP_BYTES, unusual)


WEBP_BYTES = 17


def webp_chunks(body: bytes) -> str:
    at = 12
    for _ in range(16):
        if at + 8 > len(body):
            return ""
        kind, size = struct.unpack_from("<4sI", body, at)
        if kind in (b"ANIM", b"ANMF"):
            return "it is an animation"
        if kind == b"EXIF":
            begin = at + 8 + 6 * (body[at + 8 : at + 14] == b"Exif\0\0")
            if why := directory(body, begin, at + 8 + size):
                return why[0]
        at += 8 + size + (size & 1)
    return "it has more than 16 chunks"


def bmp(body: bytes) -> Head:
    (size,) = struct.unpack_from("<I", body, 14)
    if size not in (40, 52, 56, 108, 124):
        return unread("its header is of another kind")
    width, height, bits, compression = struct.unpack_from("<ii2xHI", body, 18)
    width, height = abs(width), abs(height)
    if compression in (1, 2):  # Pillow decodes these in Python
        return costs("RLE", width, height, COLOUR * 2, "it is run-length encoded")
    unusual = "" if compression == 0 and bits in (8, 24, 32) else f"it has {bits} bits and compression {compression}"
    return costs("BMP", width, height, COLOUR * 2, unusual)


def gif(body: bytes) -> Head:
    width, height = struct.unpack_from("<HH", body, 6)
    return costs("GIF", width, height, COLOUR * 2, "Pillow reads its blocks in Python")


WIDTH, HEIGHT, BITS, SAMPLES, ROWS, PLANAR, TILE_WIDTH, TILE_HEIGHT = TAGS = 256, 257, 258, 277, 278, 284, 322, 323


def tiff(body: bytes) -> Head:
    """The first directory; libtiff keeps a whole strip or tile beside the picture."""
    why = "libtiff is only run in a process of its own"
    order = "<" if body[:2] == b"II" else ">"
    (first,) = struct.unpack_from(f"{order}I", body, 4)
    (entries,) = struct.unpack_from(f"{order}H", body, first)
    kind = np.dtype([("tag", f"{order}u2"), ("type", f"{order}u2"), ("count", f"{order}u4"), ("value", "V4")])
    entries = min(entries, max(0, len(body) - first - 2) // 12)
    table = np.frombuffer(body, kind, entries, first + 2)
    found: dict[int, int] = {}
    for entry in table[np.isin(table["tag"], (WIDTH, HEIGHT, BITS, SAMPLES, ROWS, PLANAR, TILE_WIDTH, TILE_HEIGHT))][
        :64
    ]:
        raw = bytes(entry["value"])
        found[int(entry["tag"])] = int(struct.unpack_from(f"{order}{'H' if entry['type'] == 3 else 'I'}", raw)[0])
    width, height = found.get(WIDTH, 0), found.get(HEIGHT, 0)
    if not width or not height:
        return unread(why)
    samples = found.get(SAMPLES, 1)
    bits = 16 if samples > 2 else found.get(BITS, 1)  # those of several samples stand elsewhere: at most these
    across, down = found.get(TILE_WIDTH, width), found.get(TILE_HEIGHT, min(found.get(ROWS, height), height))
    piece = across * down * bits // 8 * (1 if found.get(PLANAR) == 2 else samples)
    head = costs("TIFF", width, height, COLOUR * 2, why)
    return Head(width, height, head.memory + piece, head.seconds, why)


READERS: dict[str, Callable[[bytes], Head]] = {
    "JPEG": jpeg, "PNG": png, "WEBP": webp, "BMP": bmp, "GIF": gif, "TIFF": tiff,
}  # fmt: skip
