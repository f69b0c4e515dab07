"""Thousands of requests that are damaged, lying or malicious, made from one seed.

Every case is the bytes of one request on a connection of its own, and what may come back: 4xx alone; 4xx or 200, if the
damage may have left a picture that can be read; or, if the bytes are not HTTP, also a closed connection. Nothing here
sends anything: `hostile` does.
"""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.load.wire import request

BAD, EITHER, PARSER = "4xx", "4xx or 200", "4xx or closed"

# Small, so that a cut at every tenth byte of each format is a few hundred requests.
WIDTH, HEIGHT = 40, 30
STRIDE = 10
FLIPS = 90  # pictures with flipped bits, of each format
FORMS = 60  # forms with flipped bits

FORMATS: dict[str, tuple[str, dict[str, Any]]] = {
    #                    Pillow    options
    "JPEG":             ("JPEG",   {"quality": 80}),
    "progressive JPEG": ("JPEG",   {"quality": 80, "progressive": True}),
    "PNG":              ("PNG",    {}),
    "WebP":             ("WEBP",   {"quality": 80}),
    "lossless WebP":    ("WEBP",   {"lossless": True}),
    "GIF":              ("GIF",    {}),
    "BMP":              ("BMP",    {}),
    "TIFF":             ("TIFF",   {}),
    "TIFF by LZW":      ("TIFF",   {"compression": "tiff_lzw"}),
    "TIFF by deflate":  ("TIFF",   {"compression": "tiff_adobe_deflate"}),
}  # fmt: skip

MIB = 1 << 20


@dataclass(frozen=True)
class Case:
    """One request, with all the bytes that are sent, and what may be answered."""

    family: str
    name: str
    request: bytes
    may: str = BAD

    @property
    def title(self) -> str:
        return f"{self.family}: {self.name}"

    def allows(self, status: int) -> bool:
        """Whether `status` is a right answer; 0 is a connection that was closed without one."""
        if status == 0:
            return self.may == PARSER
        return 400 <= status < 500 or (status == 200 and self.may == EITHER)


def cases(seed: int = 0, network: str = "resnet50", shape: tuple[int, int, int] = (224, 224, 3)) -> Iterator[Case]:
    """Every case; a seed always gives the same bytes in the same order.

    `network` is one that the service has loaded, and `shape` is that of its input.
    """
    generator = np.random.default_rng(seed)
    pictures = {name: picture(generator, *how) for name, how in FORMATS.items()}
    jpeg = pictures["JPEG"]
    yield from truncated(pictures)
    yield from flipped(pictures, generator)
    yield from types(pictures)
    yield from bombs()
    yield from nothing()
    yield from polyglots(pictures)
    yield from forms(jpeg, generator)
    yield from queries(jpeg)
    yield from paths(jpeg, network)
    yield from protocol(network, shape, generator)
    yield from not_http(jpeg)


def picture(generator: np.random.Generator, kind: str, options: dict[str, Any]) -> bytes:
    """A small picture with detail in it, as a file."""
    coarse = generator.integers(0, 256, (HEIGHT // 5, WIDTH // 5, 3), dtype=np.uint8)
    return saved(Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC), kind, **options)


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


# --- pictures ---------------------------------------------------------------------------------------------------------


def truncated(pictures: dict[str, bytes]) -> Iterator[Case]:
    for name, body in pictures.items():
        for end in range(0, len(body), STRIDE):
            # A file of a few bytes is bad; one that lacks only its last bytes may be readable.
            may = BAD if end < 20 else EITHER
            yield Case("truncated", f"{name} cut to {end} bytes", request(body[:end]), may)


def flip(body: bytes, generator: np.random.Generator) -> bytes:
    """`body` with up to eight of its bits flipped."""
    damaged = bytearray(body)
    for place in generator.integers(0, 8 * len(body), generator.integers(1, 9)):
        damaged[place // 8] ^= 1 << int(place % 8)
    return bytes(damaged)


def flipped(pictures: dict[str, bytes], generator: np.random.Generator) -> Iterator[Case]:
    for name, body in pictures.items():
        for i in range(FLIPS):
            yield Case("flipped bits", f"{name} {i}", request(flip(body, generator)), EITHER)


def types(pictures: dict[str, bytes]) -> Iterator[Case]:
    jpeg = pictures["JPEG"]
    for kind in (
        "text/plain", "text/html", "application/json", "image/svg+xml", "image/avif", "image", "image/", "/", "*/*",
        "image/*", "video/mp4", "application/x-www-form-urlencoded", "multipart/mixed; boundary=B", "image/jpeg/png",
        "application/octet-stream2", "x" * 5000, "imag\u00e9/jpeg", "application/pdf", "image/heic", "image/x-icon",
    ):  # fmt: skip
        yield Case("content type", kind[:40], request(jpeg, kind))
    for kind in ("image/png", "image/jpeg; charset=utf-8", "IMAGE/JPEG", "image/jpeg;;;", 'image/jpeg; a="'):
        yield Case("content type", f"a JPEG called {kind}", request(jpeg, kind), EITHER)
    yield Case("content type", "none", request(jpeg, None), EITHER)
    for coding in ("gzip", "deflate", "br", "gzip, gzip", "x"):
        body = zlib.compress(jpeg)
        yield Case("content type", f"coded as {coding}", request(body, headers=[("Content-Encoding", coding)]))


def png(width: int, height: int, chunks: Sequence[tuple[bytes, bytes]], depth: int = 8, colour: int = 0) -> bytes:
    """A PNG whose head says `width` x `height`, with these chunks, valid or not."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", head), *chunks, (b"IEND", b"")]
    packed = (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in parts
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(packed)


def zeros(count: int) -> bytes:
    """`count` zero bytes, compressed piece by piece: they are never in memory together."""
    packer = zlib.compressobj(9)
    whole, rest = divmod(count, MIB)
    return b"".join(packer.compress(bytes(MIB)) for _ in range(whole)) + packer.compress(bytes(rest)) + packer.flush()


def bombs() -> Iterator[Case]:
    """Small files that claim to be large, or unpack to something large, or both."""

    def case(name: str, body: bytes, may: str = BAD) -> Case:
        return Case("bomb", name, request(body), may)

    for size in (65_535, 1_000_000, 0x7FFFFFFF, 0xFFFFFFFF):
        yield case(f"PNG of {size:,} x {size:,} in its head", png(size, size, [(b"IDAT", zlib.compress(b""))]))
    for width, height in ((0, 0), (0, 10), (1, 0)):
        yield case(f"PNG of {width} x {height}", png(width, height, [(b"IDAT", zlib.compress(b""))]))
    big = 20_000
    yield case("PNG of 400,000,000 white pixels", png(big, big, [(b"IDAT", zeros((big // 8 + 1) * big))], depth=1))
    # Within the limit on pixels: it may be answered, and shows what the limit costs.
    yield case("PNG of 49,000,000 pixels", png(7000, 7000, [(b"IDAT", zeros(7001 * 7000))]), EITHER)
    yield case(
        "PNG of 49,000,000 pixels of 16 bits", png(7000, 7000, [(b"IDAT", zeros(14_001 * 7000))], depth=16), EITHER
    )
    yield case("PNG of 49,000,000 pixels, half there", png(7000, 7000, [(b"IDAT", zeros(7001 * 3500))]), EITHER)
    long = 5_000_000
    yield case("PNG of one line", png(long, 1, [(b"IDAT", zeros(long + 1))]))
    yield case("PNG of one column", png(1, long, [(b"IDAT", zeros(2 * long))]))
    small = (b"IDAT", zeros((WIDTH + 1) * HEIGHT))
    unpacked = zeros(200 * MIB)
    for chunk, head in ((b"zTXt", b"a\0\0"), (b"iTXt", b"a\0\1\0\0\0"), (b"iCCP", b"a\0\0")):
        named = f"PNG whose {chunk.decode()} unpacks to 200 MiB"
        yield case(named, png(WIDTH, HEIGHT, [(chunk, head + unpacked), small]), EITHER)
    yield case("PNG with 200 MiB behind its pixels", png(WIDTH, HEIGHT, [(b"IDAT", unpacked)]), EITHER)
    yield case("PNG of 20,000 chunks", png(WIDTH, HEIGHT, [(b"tEXt", b"a\0b")] * 20_000 + [small]), EITHER)
    yield case("PNG of empty IDAT chunks", png(WIDTH, HEIGHT, [(b"IDAT", b"")] * 10_000), EITHER)
    tiles = struct.pack(">II", 0xFFFFFFFF, 0)
    yield case("APNG of 4,294,967,295 frames", png(WIDTH, HEIGHT, [(b"acTL", tiles), small]), EITHER)

    blank = Image.new("L", (WIDTH, HEIGHT))
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        frames = saved(
            blank, kind, save_all=True, append_images=[Image.new("L", (WIDTH, HEIGHT), i) for i in (1, 2)] * 150
        )
        yield case(f"{kind} of 301 frames", frames, EITHER)
    gif = bytearray(saved(blank, "GIF"))
    gif[6:10] = struct.pack("<HH", 65_535, 65_535)
    yield case("GIF of 65,535 x 65,535 in its head", bytes(gif), EITHER)
    bmp = bytearray(saved(blank, "BMP"))
    for width, height in ((0x7FFFFFFF, 0x7FFFFFFF), (70_000, 70_000), (1, 0x7FFFFFFF), (-1, 10), (10, -(1 << 31))):
        bmp[18:26] = struct.pack("<ii", width, height)
        yield case(f"BMP of {width:,} x {height:,}", bytes(bmp), EITHER if width < 0 or height < 0 else BAD)
    bmp[18:26] = struct.pack("<ii", 7000, 7000)
    yield case("BMP of 7,000 x 7,000 without pixels", bytes(bmp))
    for kind in ("", "tiff_lzw", "tiff_adobe_deflate", "packbits", "jpeg"):
        tiff = bytearray(saved(blank, "TIFF", **({"compression": kind} if kind else {})))
        for width, height in ((60_000, 60_000), (7000, 7000)):
            big_tiff = resized_tiff(bytes(tiff), width, height)
            yield case(f"TIFF {kind} of {width:,} x {height:,} in its head", big_tiff, EITHER)
    jpeg = saved(blank, "JPEG")
    at = jpeg.index(b"\xff\xc0") + 5
    for width, height in ((65_500, 65_500), (7000, 7000), (0, 0), (65_500, 1)):
        lying = jpeg[:at] + struct.pack(">HH", height, width) + jpeg[at + 4 :]
        yield case(f"JPEG of {width:,} x {height:,} in its head", lying, EITHER)
    yield case("JPEG of 60,000 comments", jpeg[:2] + b"\xff\xfe\x00\x02" * 60_000 + jpeg[2:], EITHER)
    exif = b"\xff\xe1" + struct.pack(">H", 60_000) + b"Exif\0\0II*\0" + b"\xff" * 59_988
    yield case("JPEG whose EXIF points everywhere", jpeg[:2] + exif + jpeg[2:], EITHER)
    webp = b"VP8X" + struct.pack("<I", 10) + b"\x02\0\0\0" + b"\xff" * 6
    yield case("WebP of 16,777,216 x 16,777,216", b"RIFF" + struct.pack("<I", 4 + len(webp)) + b"WEBP" + webp)


def resized_tiff(body: bytes, width: int, height: int) -> bytes:
    """The TIFF `body` (little endian) with other sizes in its first directory."""
    tiff = bytearray(body)
    (at,) = struct.unpack_from("<I", tiff, 4)
    (count,) = struct.unpack_from("<H", tiff, at)
    for i in range(count):
        entry = at + 2 + 12 * i
        (tag,) = struct.unpack_from("<H", tiff, entry)
        if tag in (256, 257):  # one value of type LONG
            struct.pack_into("<HII", tiff, entry + 2, 4, 1, width if tag == 256 else height)
    return bytes(tiff)


def nothing() -> Iterator[Case]:
    for size in (0, 1, 2, 3, 4, 7, 8, 12, 100, 10_000, MIB):
        for byte in (b"\0", b"\xff", b" ", b"A"):
            yield Case("nothing in it", f"{size} x {byte!r}", request(byte * size))
    for head in (
        b"\xff\xd8\xff",
        b"\x89PNG\r\n\x1a\n",
        b"BM",
        b"GIF87a",
        b"GIF89a",
        b"II*\0",
        b"MM\0*",
        b"RIFFxxxxWEBP",
    ):
        for rest in (b"", b"\0" * 20, b"\0" * 10_000, b"\xff" * 10_000):
            yield Case("nothing in it", f"{head!r} and {rest[:1]!r} x {len(rest)}", request(head + rest))
    # The largest body that is accepted, one byte more, and a larger one.
    for size in (20_000_000, 20_000_001, 25_000_000):
        yield Case("nothing in it", f"{size:,} bytes", request(bytes(size)))


def polyglots(pictures: dict[str, bytes]) -> Iterator[Case]:
    script, archive = b"<script>alert(1)</script>", b"PK\x05\x06" + bytes(18)
    php, svg = (
        b"<?php system($_GET['c']); ?>",
        b'<svg xmlns="http://www.w3.org/2000/svg"><image href="http://localhost/"/></svg>',
    )
    others = {
        "HTML": script,
        "ZIP": archive,
        "PHP": php,
        "SVG": svg,
        "PDF": b"%PDF-1.7\n%%EOF",
        "ELF": b"\x7fELF" + bytes(60),
    }
    others |= {
        "pickle": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x04true\x85R.",
        "XML": b"<!DOCTYPE a [<!ENTITY b SYSTEM 'file:///etc/passwd'>]><a>&b;</a>",
    }
    for name, other in others.items():
        yield Case("polyglot", f"{name} alone", request(other))
        for kind, body in pictures.items():
            yield Case("polyglot", f"{kind} and {name}", request(body + other), EITHER)
            yield Case("polyglot", f"{name} and {kind}", request(other + body))
            cut = len(body) // 2
            yield Case("polyglot", f"{name} inside {kind}", request(body[:cut] + other + body[cut:]), EITHER)
    kinds = list(pictures)
    for first, second in pairwise(kinds):
        yield Case("polyglot", f"{first} and {second}", request(pictures[first] + pictures[second]), EITHER)
        half = pictures[first][: len(pictures[first]) // 2] + pictures[second][len(pictures[second]) // 2 :]
        yield Case("polyglot", f"half {first}, half {second}", request(half), EITHER)
    yield Case("polyglot", "GIF that is JavaScript", request(b"GIF89a/*" + bytes(60) + b"*/=1;alert(1)"))


# --- forms, queries and paths -----------------------------------------------------------------------------------------


def part(name: str, value: bytes, more: str = "") -> bytes:
    return f'--B\r\nContent-Disposition: form-data; name="{name}"{more}\r\n\r\n'.encode() + value + b"\r\n"


END = b"--B--\r\n"
FORM = "multipart/form-data; boundary=B"


def forms(jpeg: bytes, generator: np.random.Generator) -> Iterator[Case]:
    def case(name: str, body: bytes, kind: str = FORM, may: str = BAD, target: str = "/classify") -> Case:
        return Case("broken form", name, request(body, kind, target), may)

    image = part("image", jpeg, '; filename="a.jpg"')
    whole = part("top_k", b"3") + image + END
    for end in range(0, len(whole) - len(END) - 2, STRIDE):
        yield case(f"cut to {end} bytes", whole[:end])
    head = len(whole) - len(jpeg) - len(END) - 2
    for i in range(FORMS):  # in the heads alone: there are enough flipped pictures already
        yield case(f"flipped bits {i}", flip(whole[:head], generator) + whole[head:], may=EITHER)

    for kind in (
        "multipart/form-data", "multipart/form-data; boundary=", "multipart/form-data; boundary=C",
        f"multipart/form-data; boundary={'B' * 1000}", "multipart/form-data; boundary", "multipart/form-data; b=B",
    ):  # fmt: skip
        yield case(f"sent as {kind[:50]}", whole, kind)
    yield case("no part", END)
    yield case("no body", b"")
    yield case("no image", part("top_k", b"3") + END)
    yield case("an empty image", part("image", b"") + END)
    yield case("two images", image + image + END)
    yield case("a thousand images", image * 1000 + END, target="/classify/batch")
    yield case("ten thousand parts", part("top_k", b"3") * 10_000 + END)
    for field in ("model", "top_k"):
        yield case(f"{field} twice", part(field, b"3") * 2 + image + END)
        yield case(f"{field} of 100 kB", part(field, b"3" * 100_000) + image + END)
        yield case(f"{field} that is not text", part(field, b"\xff\xfe\0") + image + END)
        yield case(f"{field} of JSON", part(field, b'{"a": [1]}') + image + END)
        yield case(f"an image called {field}", part(field, jpeg) + END)
    for value in (b"0", b"-1", b"1e3", b"1_0", b"99999999999", b"\xd9\xa3", b'"', b"[]"):
        yield case(f"top_k {value!r}", part("top_k", value) + image + END)
    yield case("an unknown field", part("colour", b"red") + image + END)
    yield case("a field without a name", b"--B\r\nContent-Disposition: form-data\r\n\r\nx\r\n" + image + END)
    yield case("a field with an empty name", part("", b"x") + image + END)
    yield case("no disposition", b"--B\r\nContent-Type: image/jpeg\r\n\r\n" + jpeg + b"\r\n" + END)
    yield case("another disposition", image.replace(b"form-data", b"attachment") + END)
    yield case("a head of 100 kB", part("image", jpeg, '; filename="' + "a" * 100_000 + '"') + END)
    yield case("a head without an end", b'--B\r\nContent-Disposition: form-data; name="image"\r\n' + END)
    yield case("line feeds alone", whole.replace(b"\r\n", b"\n"))
    yield case("carriage returns alone", b"\r".join(part("top_k", b"3").split(b"\r\n")) + END)
    yield case("no last boundary", image)
    yield case("the last boundary alone", b"--B--")
    yield case("the last boundary first", END + whole, may=EITHER)
    yield case("another boundary inside", image.replace(b"--B\r\n", b"--C\r\n") + END)
    yield case(
        "an image of another type",
        part("image", jpeg).replace(b"\r\n\r\n", b"\r\nContent-Type: text/html\r\n\r\n", 1) + END,
    )
    base64 = part("image", b"aGVsbG8=").replace(b"\r\n\r\n", b"\r\nContent-Transfer-Encoding: base64\r\n\r\n", 1)
    yield case("an image in base64", base64 + END)
    yield case("an address for an image", part("image", b"http://169.254.169.254/latest/meta-data") + END)
    yield case("a path for an image", part("image", b"/etc/passwd") + END)
    for name in ("../../../../etc/passwd", "a\\0.jpg", "C:\\a.jpg", "a" * 5000, "\u202egpj.exe", '"', ""):
        yield case(f"a file called {name[:20]}", part("image", jpeg, f'; filename="{name}"') + END, may=EITHER)
    inner = part("image", jpeg).replace(b"--B", b"--C") + b"--C--\r\n"
    nested = b'--B\r\nContent-Disposition: form-data; name="image"\r\nContent-Type: multipart/mixed; boundary=C\r\n\r\n'
    yield case("a form in a form", nested + inner + END)
    yield case("words before and after", b"before\r\n" + whole + b"after", may=EITHER)
    for target in ("/classify/batch", "/compare"):
        yield case(f"no image to {target}", part("top_k", b"3") + END, target=target)
        yield case(f"a broken form to {target}", whole[: len(whole) // 2], target=target)


def queries(jpeg: bytes) -> Iterator[Case]:
    bad = (
        "top_k=0", "top_k=-1", "top_k=1.5", "top_k=1e3", "top_k=", "top_k=abc", "top_k=99999999999999999999",
        "top_k=%00", "top_k=%D9%A3", "top_k=1&top_k=2", "model=a&model=b", "colour=red", "model=", "model=missing",
        "model=..%2F..%2Fetc%2Fpasswd", "model=%FF%FE", "model=%00", "model=" + "a" * 5000, "&".join(["a=b"] * 40),
        "top_k", "top_k=%", "top_k=%ZZ", "=", "a", "model[]=a", "model=%0D%0ASet-Cookie:a=b", "top_k=true",
        "model=%3Cscript%3E", "top_k=5;model=a", "TOP_K=5", "model=" + "%41" * 2000, "image=http://localhost/a.jpg",
    )  # fmt: skip
    for query in bad:
        for target in ("/classify", "/compare"):
            # `/compare` checks top_k against each model's classes, and answers 200 with an error for every model.
            may = EITHER if (target, query) == ("/compare", "top_k=0") else BAD
            yield Case("bad query", f"{target} {query[:40]}", request(jpeg, target=f"{target}?{query}"), may)


def paths(jpeg: bytes, network: str) -> Iterator[Case]:
    for method in ("GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"):
        for target in (
            "/classify",
            "/classify/batch",
            "/compare",
            f"/models/{network}/load",
            f"/v2/models/{network}/infer",
        ):
            yield Case("path or method", f"{method} {target}", request(jpeg, target=target, method=method))
    for target in (
        "/models/missing", "/models/..", "/models/%2e%2e/load", "/v2/models/missing", "/v2/models/missing/infer",
        f"/v2/models/{network}/versions/0/infer", f"/v2/models/{network}/nothing", f"/models/{network}/nothing",
        "/models//load", "/v2/models/", "/v2/models//infer", "/classify/nothing", "/" + "a" * 5000,
        "/ui/../../etc/passwd", "/ui/%2e%2e/service.py", "/.git/config", "/%00", "/\u00e9",
        f"/models/{network}/load?version=0",
    ):  # fmt: skip
        for method in ("GET", "POST"):
            yield Case("path or method", f"{method} {target[:40]}", request(jpeg, target=target, method=method))
    for token in ("", "Bearer", "Bearer ", "Bearer x", "Basic eDp5", "Bearer " + "x" * 5000, "Bearer \u00e9"):
        for action in ("load", "unload"):
            wrong = request(target=f"/models/{network}/{action}", headers=[("Authorization", token)])
            yield Case("path or method", f"{action} with {token[:20]!r}", wrong)


# --- the Open Inference Protocol --------------------------------------------------------------------------------------


def protocol(network: str, shape: tuple[int, int, int], generator: np.random.Generator) -> Iterator[Case]:
    target, count = f"/v2/models/{network}/infer", int(np.prod(shape))
    pixels = generator.integers(0, 256, count, dtype=np.uint8).tobytes()

    def said(**changes: Any) -> dict[str, Any]:
        tensor = {"name": "image", "datatype": "UINT8", "shape": [1, *shape], "parameters": {"binary_data_size": count}}
        return {"inputs": [tensor | changes]}

    def case(name: str, what: Any, raw: bytes = pixels, length: str | None = None, may: str = BAD) -> Case:
        head = what if isinstance(what, bytes) else json.dumps(what).encode()
        headers = [("Inference-Header-Content-Length", str(len(head)) if length is None else length)]
        return Case("bad protocol", name, request(head + raw, "application/octet-stream", target, headers=headers), may)

    wrong: Any  # whatever JSON can hold
    good = json.dumps(said()).encode()
    for length in (
        "-1", "0", "1", str(len(good) - 1), str(len(good) + 1), "99999999999999999999", "x", "1.0", "0x10", " ",
    ):  # fmt: skip
        yield case(f"a head said to be {length} bytes", good, length=length)
    for wrong in (-1, 0, 1, count - 1, count + 1, 1 << 63, 1 << 70, "1", 1.5, [], True):
        yield case(f"a tensor said to be {wrong!r} bytes", said(parameters={"binary_data_size": wrong}))
    for raw in (b"", pixels[:-1], pixels + b"\0", pixels * 2):
        yield case(f"a tensor of {len(raw)} bytes", said(), raw)
    for wrong in (
        [], [1], [0, *shape], [-1, *shape], [1 << 31, *shape], [1 << 63, *shape], [1 << 70, *shape], [2, *shape],
        [1, *shape, 1], [1, shape[2], *shape[:2]], [1, 1, 1, count], [1, -shape[0], -shape[1], shape[2]], ["a"] * 4,
        [None] * 4, [[1]] * 4, 1, None, {}, "1234", [1.5, *shape], [1e308] * 4,
    ):  # fmt: skip
        yield case(f"shape {str(wrong)[:40]}", said(shape=wrong), may=EITHER if wrong == [1.5, *shape] else BAD)
    for wrong in ("FP32", "INT8", "BYTES", "uint8", "", None, 1, [], "UINT8" * 1000):
        yield case(f"datatype {str(wrong)[:20]}", said(datatype=wrong))
    for wrong in ("images", "", None, 1, "../image"):
        yield case(f"an input called {wrong!r}", said(name=wrong))
    for body in (
        b"", b"{", b"[]", b"null", b"1", b'"a"', b"{}", b'{"inputs": []}', b'{"inputs": {}}', b'{"inputs": null}',
        b'{"inputs": [1]}', b'{"inputs": [{}, {}]}', b"\xff\xfe", b"[" * 100_000, b'{"inputs":' * 10_000,
        b'{"a": NaN}', b'{"inputs": [' + b"{}," * 10_000 + b"{}]}", b"1" * 100_000, b'"\\ud800"',
    ):  # fmt: skip
        yield case(f"a head {body[:20]!r} of {len(body):,} bytes", body)
        yield Case(
            "bad protocol", f"JSON {body[:20]!r} of {len(body):,} bytes", request(body, "application/json", target)
        )
    for wrong in (
        [], [1], ["a"] * 3, [256] * count, [-1] * count, [1.5], [None], {}, "a", [[1], [1, 2]], [1 << 70], [True],
    ):  # fmt: skip
        yield case(f"data {str(wrong)[:20]}", said(parameters={}, data=wrong), b"", "")
    for wrong in ([], [{}], [1], {}, [{"name": "x"}], [{"name": "probabilities"}] * 2):
        yield case(f"outputs {str(wrong)[:40]}", said() | {"outputs": wrong}, may=EITHER if not wrong else BAD)
    for wrong in (-1, 100_000, "a", None, [], 1 << 70, 1.5):
        output = [{"name": "probabilities", "parameters": {"classification": wrong}}]
        yield case(f"classification {wrong!r}", said() | {"outputs": output}, may=EITHER if wrong == 1.5 else BAD)
    for end in range(0, len(good), STRIDE):
        yield case(f"a head cut to {end} bytes", good[:end])
    for i in range(FORMS):
        yield case(f"a head with flipped bits {i}", flip(good, generator), may=EITHER)


# --- not HTTP ---------------------------------------------------------------------------------------------------------


def not_http(jpeg: bytes) -> Iterator[Case]:
    """Bytes that only the HTTP parser sees; it may answer 400 or close the connection."""
    head = b"POST /classify HTTP/1.1\r\nHost: a\r\nContent-Type: image/jpeg\r\n"
    size = b"Content-Length: %d\r\n" % len(jpeg)
    chunked = head + b"Transfer-Encoding: chunked\r\n\r\n"
    wrong = {
        "garbage": b"\0\1\2\3\xff\xfe\r\n\r\n",
        "a greeting of TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(500),
        "HTTP/2's preface": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "HTTP/9.9": b"GET /nothing HTTP/9.9\r\nHost: a\r\n\r\n",
        "no version": b"GET /nothing\r\n\r\n",
        "no target": b"GET HTTP/1.1\r\n\r\n",
        "two targets": b"GET /nothing /nothing HTTP/1.1\r\nHost: a\r\n\r\n",
        "an unknown method": b"FETCH /classify HTTP/1.1\r\nHost: a\r\n\r\n",
        "a method of 10 kB": b"A" * 10_000 + b" / HTTP/1.1\r\n\r\n",
        "two lengths": head + size + b"Content-Length: 5\r\n\r\n" + jpeg,
        "a length below zero": head + b"Content-Length: -1\r\n\r\n" + jpeg,
        "a length that is not a number": head + b"Content-Length: ten\r\n\r\n" + jpeg,
        "a length of forty digits": head + b"Content-Length: " + b"9" * 40 + b"\r\n\r\n" + jpeg,
        "length and chunks": head + size + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
        "an unknown transfer coding": head + b"Transfer-Encoding: rot13\r\n\r\nhello",
        "a chunk of no size": chunked + b"x\r\nhello\r\n0\r\n\r\n",
        "a chunk below zero": chunked + b"-5\r\nhello\r\n0\r\n\r\n",
        "a chunk of too great a size": chunked + b"F" * 40 + b"\r\nhello\r\n0\r\n\r\n",
        "a chunk without its end": chunked + b"5\r\nhelloworld\r\n0\r\n\r\n",
        "a chunk's comment of 100 kB": chunked + b"5;" + b"a" * 100_000 + b"\r\nhello\r\n0\r\n\r\n",
        "a header without a colon": head + b"nothing\r\n\r\n",
        "a header with a space in its name": head + b"a b: c\r\n\r\n",
        "a header with a zero byte": head + b"a: b\0c\r\n" + size + b"\r\n" + jpeg,
        "a header that goes on": head + b"a: b\r\n c\r\n" + size + b"\r\n" + jpeg,
        "a header of 1 MB": head + b"a: " + b"b" * 1_000_000 + b"\r\n\r\n",
        "10,000 headers": head + b"a: b\r\n" * 10_000 + b"Content-Length: 0\r\n\r\n",
        "a target of 1 MB": b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\nHost: a\r\n\r\n",
        "bytes in the target": b"GET /\xff\xfe HTTP/1.1\r\nHost: a\r\n\r\n",
        "no host": b"POST /classify HTTP/1.1\r\nContent-Length: 0\r\n\r\n",
        "another host's address": b"POST http://localhost/classify HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n",
        "a proxy's request": b"CONNECT localhost:80 HTTP/1.1\r\nHost: a\r\n\r\n",
        "an upgrade": head + b"Connection: Upgrade\r\nUpgrade: websocket\r\nContent-Length: 0\r\n\r\n",
        "a WebSocket": b"GET /classify HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        "an Expect of nonsense": head + b"Expect: the-unexpected\r\nContent-Length: 0\r\n\r\n",
        "line feeds alone": head.replace(b"\r\n", b"\n") + b"Content-Length: 0\n\n",
        "a body longer than said": head + b"Content-Length: 5\r\n\r\n" + jpeg,
    }
    for name, sent in wrong.items():
        yield Case("not HTTP", name, sent, PARSER)
