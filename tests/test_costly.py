"""Images built to cost as much as possible, and their limits: processor seconds and bytes, measured by the kernel."""

from __future__ import annotations

import io
import resource
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
from PIL import Image

from benchmarks.campaigns.cases import png, zeros
from benchmarks.campaigns.costly_images import (
    Costly,
    flat,
    headed,
    images,
    interlaced,
    noise,
    one_tile,
    orientation,
    overlapping,
    rescanned,
    run_lengths,
    saved,
    segment,
)  # fmt: skip
from models.preprocess import DEEP, Preprocess, flatten
from serving import heads
from serving import images as decoding
from serving.errors import RequestError, TooLarge
from serving.images import check, image_format, opaque
from serving.limits import ASIDE_BYTES, BODY_COPIES, Limits
from serving.sandbox import Sandbox
from tests.conftest import SHARED
from tests.fakes.pictures import encoded, photograph

# As `serving.images` sets it in a running server; pytest sets its own.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

SIDE = 1500
LIMITS = Limits(pixels=SIDE * SIDE, seconds=2.0)
RECIPE = Preprocess()
CORPUS = list(images(SIDE))


@pytest.fixture(scope="module")
def one() -> Iterator[Sandbox]:
    made = Sandbox(1)
    yield made
    made.close()


def child(of: Sandbox) -> psutil.Process:
    if not of._idle:
        of.decode(encoded(photograph()), "PNG", RECIPE, LIMITS)
    return psutil.Process(of._idle[0].process.pid)


def peak(process: psutil.Process) -> int:
    return int(Path(f"/proc/{process.pid}/status").read_text("ascii").partition("VmHWM:")[2].split()[0]) * 1024


def killed_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux tells the peak memory of a process")
@pytest.mark.parametrize("costly", CORPUS, ids=[costly.name for costly in CORPUS])
def test_no_image_costs_more_than_it_may(one: Sandbox, costly: Costly) -> None:
    body = costly.make()
    assert len(body) < 20_000_000, "it could not be sent"
    name, began = image_format(body), time.thread_time()
    assert name == costly.format
    try:
        ordinary = check(body, RECIPE, LIMITS).ordinary
    except TooLarge as error:
        assert str(error)
        ordinary, refused = False, True
    else:
        refused = False
    assert time.thread_time() - began < 0.1, "the head alone"
    if refused:
        return
    head, process = heads.read(name, body), child(one)
    Path(f"/proc/{process.pid}/clear_refs").write_text("5", "ascii")
    held, used, ended = process.memory_info().rss, sum(process.cpu_times()[:2]), killed_seconds()
    try:
        one.decode(body, name, RECIPE, LIMITS)
    except RequestError as error:
        assert 400 <= error.status < 500 and len(str(error)) < 500
    if not process.is_running():
        assert killed_seconds() - ended < used + LIMITS.seconds + 0.5
        return
    grown, seconds = peak(process) - held, sum(process.cpu_times()[:2]) - used
    assert seconds < LIMITS.seconds + 0.5
    assert grown < LIMITS.memory + BODY_COPIES * len(body)
    if ordinary:  # nothing else limits these
        assert seconds < 3 * head.seconds + 0.2
        assert grown < head.memory + BODY_COPIES * len(body) + ASIDE_BYTES
    elif head.width:
        # The formula in the docs.
        assert grown < decoding.memory(head, RECIPE) + BODY_COPIES * len(body) + ASIDE_BYTES


def test_the_corpus_is_always_the_same_and_has_every_outcome() -> None:
    quick = [costly for costly in CORPUS if costly.name.startswith("JPEG")][-4:]
    assert all(costly.make() == again.make() for costly, again in zip(quick, quick, strict=True))
    assert {costly.format for costly in CORPUS} == set(heads.READERS)
    assert len({costly.name for costly in CORPUS}) == len(CORPUS) > 50


BIG = Limits(50_000_000)
SMALL = saved(noise(32), "JPEG")


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            rescanned(saved(flat(2000), "JPEG", progressive=True), 10_000),
            r"2,000 x 2,000 .* s of processor time; 4",
        ),
        (run_lengths(7000, 8), r"BMP of 7,000 x 7,000 pixels takes about 10 s of processor time; 4 are allowed"),
        (headed(SMALL, segment(0xE1, b"Exif\0\0" + bytes(150)) * 100_000), r"more than 32 segments of EXIF"),
        (headed(SMALL, segment(0xFE, b"") * 100_000), r"more than the 1,024 segments allowed"),
        (one_tile(30_000), r"takes 90\d MB; 864 are allowed; send it smaller, or as a plain JPEG"),
    ],
    ids=["scans", "run lengths", "EXIF", "comments", "tile"],
)
def test_an_image_beyond_every_budget_is_refused_by_its_head(body: bytes, says: str) -> None:
    began = time.thread_time()
    with pytest.raises(TooLarge, match=says):
        check(body, RECIPE, BIG)
    assert time.thread_time() - began < 0.1


ORDINARY = {
    "a baseline JPEG": encoded(photograph(), "JPEG"),
    "a progressive JPEG": encoded(photograph(), "JPEG", progressive=True),
    "a JPEG of a telephone": encoded(photograph(), "JPEG", exif=orientation(), icc_profile=bytes(3000)),
    "a grey JPEG": encoded(photograph().convert("L"), "JPEG"),
    "a CMYK JPEG": encoded(photograph().convert("CMYK"), "JPEG"),
    "a PNG": encoded(photograph(), "PNG"),
    "a PNG with a palette": encoded(photograph().convert("P"), "PNG", transparency=3),
    "a PNG with EXIF": encoded(photograph(), "PNG", exif=orientation()),
    "a lossy WebP": encoded(photograph(), "WEBP"),
    "a lossless WebP with EXIF": encoded(photograph(), "WEBP", lossless=True, exif=orientation()),
    "a BMP": encoded(photograph(), "BMP"),
}
UNUSUAL = {
    "a TIFF": encoded(photograph(), "TIFF"),
    "a GIF": encoded(photograph(), "GIF"),
    "a run-length encoded BMP": run_lengths(32, 8),
    "a BMP of one bit": encoded(photograph().convert("1"), "BMP"),
    "an interlaced PNG": interlaced(16),
    "a PNG with two heads": png(9, 9, [(b"IHDR", struct.pack(">IIBBBBB", 9, 9, 8, 0, 0, 0, 0)), (b"IDAT", zeros(90))]),
    "an animated PNG": encoded(photograph(), "PNG", save_all=True, append_images=[photograph().rotate(90)]),
    "an animated WebP": encoded(photograph(), "WEBP", save_all=True, append_images=[photograph().rotate(90)]),
    "a JPEG of 40 scans": rescanned(encoded(photograph(), "JPEG", progressive=True), 30),
    "a JPEG with padding": headed(SMALL, b"\xff" * 100),
    "a JPEG with two EXIF segments": headed(SMALL, segment(0xE1, b"Exif\0\0") * 2),
    "a JPEG whose EXIF entries overlap": headed(SMALL, segment(0xE1, b"Exif\0\0" + overlapping(60_000))),
    "the same in the other order": headed(SMALL, segment(0xE1, b"Exif\0\0" + overlapping(60_000, ">"))),
    "a JPEG of much metadata": headed(SMALL, segment(0xE1, bytes(60_000)) * 5),
    "a JPEG that is cut off in its head": SMALL[:40],
    "a large JPEG": saved(flat(6000), "JPEG"),
    "a JPEG that is turned and rather large": saved(flat(4200), "JPEG", exif=orientation()),
    "a long and thin JPEG": saved(Image.new("RGB", (60, 20_000)), "JPEG"),
}


@pytest.mark.parametrize("name", ORDINARY)
def test_what_encoders_write_is_decoded_in_this_process(name: str) -> None:
    assert check(ORDINARY[name], RECIPE, BIG).ordinary


@pytest.mark.parametrize("name", UNUSUAL)
def test_unusual_and_large_images_are_decoded_in_another_process(name: str) -> None:
    assert not check(UNUSUAL[name], RECIPE, BIG).ordinary


def test_an_image_that_might_exceed_a_small_budget_is_decoded_in_another_process() -> None:
    body = saved(flat(2000), "JPEG")
    assert check(body, RECIPE, BIG).ordinary
    assert not check(body, RECIPE, Limits(BIG.pixels, 0.08)).ordinary


@pytest.mark.parametrize("name", [*ORDINARY, *UNUSUAL])
def test_a_head_has_the_size_that_pillow_reads(name: str) -> None:
    body = (ORDINARY | UNUSUAL)[name]
    head = heads.read(image_format(body), body)
    if head.width:
        assert (head.width, head.height) == Image.open(io.BytesIO(body)).size


@pytest.mark.parametrize("name", heads.READERS)
def test_any_bytes_behind_a_signature_have_a_head(name: str) -> None:
    """Cut, overwritten and random heads: a `Head` or `TooLarge`, and nothing else."""
    random = np.random.default_rng(0)
    good = encoded(photograph(), name, **({"exif": orientation()} if name in ("JPEG", "PNG", "WEBP") else {}))
    for _ in range(2000):
        body = bytearray(good[: random.integers(12, len(good))])
        for at in random.integers(4, min(len(body), 200), 4):
            body[at] = random.integers(0, 256)
        try:
            head = heads.read(name, bytes(body))
        except TooLarge:
            continue
        assert head.width >= 0 and head.memory >= 0


def test_every_photograph_is_decoded_in_this_process() -> None:
    folder = SHARED / "images"
    if not folder.is_dir():
        pytest.skip(f"no photographs at {SHARED}")
    for path in folder.glob("*.JPEG"):
        assert check(path.read_bytes(), RECIPE, BIG).ordinary, path.name


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "I", "F", "I;16", "RGB"])
@pytest.mark.parametrize("target", ["RGB", "L"])
def test_strips_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch, mode: str, target: str) -> None:
    random = np.random.default_rng(1)
    if mode in DEEP:
        kind = {"I": np.int32, "F": np.float32, "I;16": np.uint16}[mode]
        values = random.integers(0, 60_000, (70, 50)).astype(kind)
        values[:40] %= 200  # strips that look as if they had 8 bits
        image = Image.fromarray(values)
    else:
        image = Image.fromarray(random.integers(0, 256, (70, 50, 4), np.uint8), "RGBA")
        image = image if mode == "RGBA" else image.convert(mode)
    assert image.mode == mode
    for clear in (False, True) if mode in ("RGB", "L", "P") else (False,):
        if clear:
            image.info["transparency"] = (1, 2, 3) if mode == "RGB" else 3
        monkeypatch.setattr(decoding, "STRIP_PIXELS", 50 * 9)
        assert np.array_equal(np.asarray(opaque(image, target)), np.asarray(flatten(image, target)))


def test_reading_a_head_takes_microseconds() -> None:
    body = ORDINARY["a JPEG of a telephone"]
    began = time.thread_time()
    for _ in range(1000):
        check(body, RECIPE, BIG)
    assert (time.thread_time() - began) / 1000 < 500e-6
