"""Images made to cost as much as their format allows: small to send, within the limits on bytes and pixels.

Each is made when it is needed, with the same bytes every time. Files that Pillow cannot write are assembled here.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageFile

from benchmarks.campaigns.cases import png, zeros

# The largest square under the default of PODIUM_MAX_PIXELS.
SIDE = 7000
NOISY = 2200  # noise of this side stays under PODIUM_MAX_BODY_MB
SEGMENT = 65_533  # the most bytes that a JPEG segment holds


@dataclass(frozen=True)
class Costly:
    """One image; `make` gives its bytes."""

    name: str
    make: Callable[[], bytes]

    @property
    def format(self) -> str:
        return self.name.split()[0]


def images(side: int = SIDE) -> Iterator[Costly]:
    """The corpus, with pictures of `side` x `side` pixels."""
    for name, make in (
        *jpegs(side).items(), *pngs(side).items(), *webps(side).items(), *bmps(side).items(), *gifs(side).items(),
        *tiffs(side).items(),
    ):  # fmt: skip
        yield Costly(name, make)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    most, ImageFile.MAXBLOCK = ImageFile.MAXBLOCK, 64 << 20  # for JPEGs that are encoded in one piece
    try:
        image.save(file, kind, **options)
    finally:
        ImageFile.MAXBLOCK = most
    return file.getvalue()


def flat(side: int, mode: str = "RGB") -> Image.Image:
    return Image.new(mode, (side, side))


def noise(side: int, channels: int = 3) -> Image.Image:
    values = np.random.default_rng(0).integers(0, 256, (side, side, channels), np.uint8)
    return Image.fromarray(values if channels > 1 else values[..., 0])


def orientation(value: int = 6) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = value
    return exif


def jpegs(side: int) -> dict[str, Callable[[], bytes]]:
    small = saved(noise(32), "JPEG")
    return {
        "JPEG baseline, turned": lambda: saved(flat(side), "JPEG", exif=orientation()),
        "JPEG noise at full quality": lambda: saved(noise(min(side, NOISY)), "JPEG", quality=100, subsampling=0),
        "JPEG progressive noise": lambda: saved(
            noise(min(side, NOISY)), "JPEG", quality=95, subsampling=0, progressive=True
        ),
        "JPEG progressive, turned": lambda: saved(
            flat(side), "JPEG", progressive=True, subsampling=0, exif=orientation()
        ),
        "JPEG progressive, four colours": lambda: saved(flat(side, "CMYK"), "JPEG", progressive=True, subsampling=0),
        "JPEG of 30 scans": lambda: rescanned(saved(flat(side), "JPEG", progressive=True), 20),
        "JPEG of 10,000 small scans": lambda: rescanned(saved(flat(500), "JPEG", progressive=True), 10_000),
        "JPEG of 10,000 scans": lambda: rescanned(saved(flat(2000), "JPEG", progressive=True), 10_000),
        "JPEG of 100,000 EXIF segments": lambda: headed(small, segment(0xE1, b"Exif\0\0" + bytes(150)) * 100_000),
        "JPEG of 1,000 EXIF segments": lambda: headed(small, segment(0xE1, b"Exif\0\0" + bytes(19_000)) * 1000),
        "JPEG whose EXIF entries overlap": lambda: headed(small, segment(0xE1, b"Exif\0\0" + overlapping(SEGMENT - 6))),
        "JPEG whose MPF entries overlap": lambda: headed(small, segment(0xE2, b"MPF\0" + overlapping(SEGMENT - 4))),
        "JPEG of Photoshop blocks": lambda: headed(
            small, segment(0xED, b"Photoshop 3.0\0" + b"8BIM\4\4\0\0\0\0\0\0" * 5400) * 300
        ),
        "JPEG of 5,000,000 bytes of padding": lambda: headed(small, b"\xff" * 5_000_000),
        "JPEG long and thin": lambda: saved(Image.new("RGB", (90, 65_000)), "JPEG"),
    }  # fmt: skip


def segment(marker: int, data: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data


def headed(jpeg: bytes, segments: bytes) -> bytes:
    return jpeg[:2] + segments + jpeg[2:]


def rescanned(jpeg: bytes, times: int) -> bytes:
    """`jpeg` with its last scan repeated."""
    scan = jpeg[jpeg.rindex(b"\xff\xda") : -2]
    return jpeg[:-2] + scan * times + jpeg[-2:]


def overlapping(size: int, order: str = "<") -> bytes:
    """An EXIF directory of `size` bytes; every entry points to as many of them as possible."""
    entries = (size - 14) // 12
    rest = 12 * entries + 6  # bytes from the start of the directory
    table = b"".join(struct.pack(f"{order}HHII", i, 7, rest, 8) for i in range(1, entries + 1))
    return (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, entries) + table + bytes(4)


def paeth(side: int, channels: int) -> bytes:
    """Rows of zeros, with the filter that a decoder needs longest for."""
    return zlib.compress((b"\4" + bytes(side * channels)) * side)


def pngs(side: int) -> dict[str, Callable[[], bytes]]:
    def dot(*chunks: tuple[bytes, bytes]) -> bytes:
        return png(64, 48, [*chunks, (b"IDAT", zeros(65 * 48))])

    text = zeros(1_000_000)
    return {
        "PNG in colour, Paeth": lambda: png(side, side, [(b"IDAT", paeth(side, 3))], colour=2),
        "PNG with transparency, turned": lambda: png(
            side, side, [(b"eXIf", orientation().tobytes()[6:]), (b"IDAT", paeth(side, 4))], colour=6
        ),
        "PNG of 16 bits": lambda: png(side, side, [(b"IDAT", paeth(side, 2))], depth=16),
        "PNG of 16 bits, turned": lambda: png(
            side, side, [(b"eXIf", orientation().tobytes()[6:]), (b"IDAT", paeth(side, 2))], depth=16
        ),
        "PNG of 16 bits with transparency": lambda: png(side, side, [(b"IDAT", paeth(side, 8))], depth=16, colour=6),
        "PNG with a transparent colour, turned": lambda: png(
            side,
            side,
            [(b"eXIf", orientation().tobytes()[6:]), (b"tRNS", bytes(6)), (b"IDAT", paeth(side, 3))],
            colour=2,
        ),
        "PNG interlaced": lambda: interlaced(side),
        "PNG of noise": lambda: saved(noise(min(side, NOISY)), "PNG", compress_level=1),
        "PNG of 60 texts of a megabyte": lambda: dot(*[(b"zTXt", b"a\0\0" + text)] * 60),
        "PNG of 3,000 profiles": lambda: dot(*[(b"iCCP", b"a\0\0" + text)] * 3000),
        "PNG of 1,000,000 chunks": lambda: dot(*[(b"tEXt", b"a\0b")] * 1_000_000),
        "PNG of 1,000,000 empty pieces": lambda: dot(*[(b"IDAT", b"")] * 1_000_000),
        "PNG whose EXIF entries overlap": lambda: dot((b"eXIf", overlapping(780_000))),
        "PNG whose text is EXIF": lambda: dot(
            (b"tEXt", b"Raw profile type exif\0\n\n\n" + overlapping(400_000).hex().encode())
        ),
    }  # fmt: skip


def interlaced(side: int) -> bytes:
    """A picture in colour in seven passes (PNG specification, 8.2), every row filtered with Paeth."""
    packer, parts = zlib.compressobj(), list[bytes]()
    for left, top, across, down in (
        (0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2)
    ):  # fmt: skip
        width, height = -(-(side - left) // across), -(-(side - top) // down)
        for _ in range(height):
            parts.append(packer.compress(b"\4" + bytes(3 * width)))
    file = bytearray(png(side, side, [(b"IDAT", b"".join(parts) + packer.flush())], colour=2))
    file[28] = 1
    file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    return bytes(file)


def webps(side: int) -> dict[str, Callable[[], bytes]]:
    """At most 16,383 pixels a side; `method` and `quality` save time of the encoder, not of the decoder."""
    quick: dict[str, Any] = {"method": 0, "quality": 0}
    return {
        "WEBP lossless, turned": lambda: saved(flat(side), "WEBP", lossless=True, exif=orientation(), **quick),
        "WEBP lossless, transparent, turned": lambda: saved(
            flat(side, "RGBA"), "WEBP", lossless=True, exif=orientation(), exact=True, **quick
        ),
        "WEBP lossless noise": lambda: saved(noise(min(side, 2000)), "WEBP", lossless=True, **quick),
        "WEBP lossy, turned": lambda: saved(flat(side), "WEBP", exif=orientation(), **quick),
        "WEBP lossy noise": lambda: saved(noise(min(side, 3000)), "WEBP", quality=95, method=0),
        "WEBP animation": lambda: saved(
            flat(min(side, 1000)), "WEBP", save_all=True, append_images=[noise(min(side, 1000))], **quick
        ),
    }  # fmt: skip


def bmps(side: int) -> dict[str, Callable[[], bytes]]:
    return {
        "BMP in colour": lambda: saved(flat(min(side, 2500)), "BMP"),
        "BMP run-length encoded": lambda: run_lengths(side, 8),
        "BMP run-length encoded, small": lambda: run_lengths(min(side, 4000), 8),
        "BMP run-length encoded in 4 bits": lambda: run_lengths(min(side, 4000), 4),
        "BMP of one bit": lambda: saved(flat(side, "1"), "BMP"),
    }


def run_lengths(side: int, bits: int) -> bytes:
    """Rows that end after their first pixel: Pillow fills each one in Python, byte by byte."""
    rows = b"\1\1\0\0" * side + b"\0\1"
    palette = bytes(4 * 2**bits)
    offset = 54 + len(palette)
    return (
        struct.pack("<2sIHHI", b"BM", offset + len(rows), 0, 0, offset)
        + struct.pack("<IiiHHIIiiII", 40, side, side, 1, bits, 1 if bits == 8 else 2, len(rows), 0, 0, 2**bits, 0)
        + palette
        + rows
    )


def gifs(side: int) -> dict[str, Callable[[], bytes]]:
    def commented() -> bytes:
        small = saved(noise(32, 1), "GIF")
        at = small.index(b"\x2c", 13 + 768)
        return small[:at] + b"\x21\xfe" + (b"\xff" + bytes(255)) * 75_000 + b"\0" + small[at:]

    def beyond() -> bytes:
        large = bytearray(saved(flat(side, "L"), "GIF"))
        large[6:10] = struct.pack("<HH", 10, 10)
        return bytes(large)

    return {
        "GIF of one colour": lambda: saved(flat(side, "L"), "GIF"),
        "GIF with transparency": lambda: saved(flat(side, "P"), "GIF", transparency=0),
        "GIF of noise": lambda: saved(noise(min(side, 3500), 1), "GIF"),
        "GIF of a comment of 19 MB": commented,
        "GIF whose frame is larger than it": beyond,
    }


def tiffs(side: int) -> dict[str, Callable[[], bytes]]:
    def deep(kind: str, **options: Any) -> bytes:
        return saved(Image.new(kind, (side, side)), "TIFF", **options)

    return {
        "TIFF in one strip": lambda: saved(
            flat(side), "TIFF", compression="tiff_adobe_deflate", strip_size=1 << 30, exif=orientation()
        ),
        "TIFF with transparency, turned": lambda: saved(
            flat(side, "RGBA"), "TIFF", compression="tiff_adobe_deflate", exif=orientation()
        ),
        "TIFF of 32-bit numbers": lambda: deep("I", compression="tiff_adobe_deflate"),
        "TIFF of floats, turned": lambda: deep("F", compression="tiff_adobe_deflate", exif=orientation()),
        "TIFF of 16 bits": lambda: deep("I;16", compression="tiff_adobe_deflate"),
        "TIFF in four colours": lambda: saved(flat(side, "CMYK"), "TIFF", compression="tiff_lzw"),
        "TIFF of noise, LZW": lambda: saved(noise(min(side, NOISY)), "TIFF", compression="tiff_lzw"),
        "TIFF with JPEG inside": lambda: saved(flat(side), "TIFF", compression="jpeg"),
        "TIFF as facsimile": lambda: saved(flat(side, "1"), "TIFF", compression="group4"),
        "TIFF of one tile": one_tile,
        "TIFF whose entries overlap": lambda: overlapping(400_000),
        "TIFF of damaged strips": lambda: damaged(saved(flat(min(side, 2000)), "TIFF", compression="tiff_lzw")),
    }  # fmt: skip


def damaged(tiff: bytes) -> bytes:
    """With every tenth byte of its strips inverted: libtiff writes a line about each."""
    file = bytearray(tiff)
    file[8 : len(file) // 2 : 10] = bytes(255 - value for value in file[8 : len(file) // 2 : 10])
    return bytes(file)


def one_tile(side: int = 30_000) -> bytes:
    """64 x 48 pixels in one tile of `side` x `side`, which must be decoded as a whole."""
    data = zeros(side * side)
    tags = [
        (256, 4, 64), (257, 4, 48), (258, 3, 8), (259, 3, 8), (262, 3, 1), (277, 3, 1), (322, 4, side // 16 * 16),
        (323, 4, side // 16 * 16), (324, 4, 0), (325, 4, len(data)),
    ]  # fmt: skip
    offset = 8 + 2 + 12 * len(tags) + 4
    entries = (struct.pack("<HHII", tag, kind, 1, offset if tag == 324 else value) for tag, kind, value in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(entries) + bytes(4) + data
