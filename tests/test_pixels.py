"""The fast way to the pixels: every bit as Pillow and torchvision make it, and nothing read or written outside."""

from __future__ import annotations

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np
import PIL
import pytest
from PIL import Image

from benchmarks.__main__ import main as benchmarks
from models import resample
from models.preprocess import RESAMPLING, Preprocess, fast_pixels, kernel_agrees, pixels, slow_pixels
from serving import heads, images
from serving.images import ORIENTATION, decode, decode_here
from serving.limits import Limits
from tests.conftest import ROOT, SHARED
from tests.fakes.pictures import encoded, photograph

SOURCE = ROOT / "models" / "_resample.c"
COMPILER = shutil.which("cc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")
LIMITS = Limits(50_000_000)
SHAPES = ((256, 224), (232, 224), (235, 224), (342, 299), (256, 227), (28, 28), (64, 1), (9, 5))


def build(folder: Path, *options: str) -> Path:
    """The kernel of this tree, compiled into `folder`; every warning is an error."""
    assert COMPILER is not None
    made = folder / f"_resample{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = sysconfig.get_path("include")
    options = ("-shared", "-fPIC", "-std=c11", "-Wall", "-Wextra", "-Werror", f"-I{include}", *options)
    subprocess.run([COMPILER, *options, str(SOURCE), "-o", str(made)], check=True)
    return made


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> ModuleType:
    if COMPILER is None:
        pytest.skip("no C compiler")
    loader = importlib.machinery.ExtensionFileLoader(
        "models._resample", str(build(tmp_path_factory.mktemp("kernel"), "-O3"))
    )
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def kernel(built: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    """The kernel as this tree has it, in place of what is installed."""
    monkeypatch.setattr(resample, "crop", built.crop)
    kernel_agrees.cache_clear()
    yield built
    kernel_agrees.cache_clear()


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(resample, "crop", None)
    kernel_agrees.cache_clear()
    yield
    kernel_agrees.cache_clear()


def compare(seed: int, count: int, largest: int) -> None:
    """`count` sizes at random up to `largest`, in every filter, mode and recipe in turn: both ways give the same."""
    random = np.random.default_rng(seed)
    noise = random.integers(0, 256, (largest, largest, 3), dtype=np.uint8)
    noise[: largest // 2, : largest // 2] = noise[: largest // 2, : largest // 2] // 128 * 255  # overshoots and clips
    pictures = {mode: Image.fromarray(noise).convert(mode) for mode in ("RGB", "L")}
    for number in range(count):
        width, height = (int(side) for side in np.exp(random.uniform(0, np.log(largest), 2)).round())
        mode: Literal["RGB", "L"] = "L" if number % 3 == 2 else "RGB"
        image = pictures[mode].crop((0, 0, width, height))
        resize, crop = SHAPES[number % len(SHAPES)]
        if resize * max(width, height) / min(width, height) > 20_000:
            continue
        means = (0.5,) * (3 if mode == "RGB" else 1)
        interpolation: Any = list(RESAMPLING)[number // 3 % 3]
        recipe = Preprocess(resize, crop, interpolation, means, means, mode)
        made = fast_pixels(image, recipe)
        if made is None:  # an axis that is too long
            assert max(width, height) > 500, (width, height, recipe)
            continue
        assert np.array_equal(made, slow_pixels(image, recipe)), (width, height, recipe)


@pytest.mark.usefixtures("kernel")
def test_sizes_filters_and_modes_at_random() -> None:
    assert kernel_agrees()
    compare(0, 600, 700)


@pytest.mark.slow
@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("seed", range(4))
def test_thousands_of_sizes_filters_and_modes(seed: int) -> None:
    compare(seed + 1, 2000, 1500)


@needs_compiler
def test_a_processor_without_avx2_gets_the_same_bits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code for every other processor, compiled without what is for x86 alone."""
    loader = importlib.machinery.ExtensionFileLoader("models._resample", str(build(tmp_path, "-O2", "-DPORTABLE")))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    monkeypatch.setattr(resample, "crop", module.crop)
    compare(5, 300, 700)


SANITIZED = """
import importlib.machinery, importlib.util, sys
loader = importlib.machinery.ExtensionFileLoader("models._resample", sys.argv[1])
module = importlib.util.module_from_spec(importlib.util.spec_from_loader(loader.name, loader))
loader.exec_module(module)
from benchmarks.__main__ import main as benchmarks
from models import resample
resample.crop = module.crop
from tests.test_pixels import compare, refusals
compare(6, int(sys.argv[2]), 900)
refusals(module)
print("done")
"""


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("options", [(), ("-DPORTABLE",)], ids=["this processor", "any processor"])
def test_sanitizers_find_nothing(tmp_path: Path, options: tuple[str, ...]) -> None:
    made = build(tmp_path, "-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", *options)
    runtime = subprocess.run(
        [str(COMPILER), "-print-file-name=libasan.so"], check=True, capture_output=True, text=True
    ).stdout.strip()
    if not Path(runtime).is_file():
        pytest.skip("the compiler has no libasan")
    # PYTHONMALLOC: every block is the system's, so that the sanitizer knows its end.
    here = os.environ | {
        "LD_PRELOAD": runtime, "ASAN_OPTIONS": "detect_leaks=0", "PYTHONMALLOC": "malloc", "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", SANITIZED, str(made), "700"], env=here, cwd=ROOT, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-4000:]


def refusals(module: Any) -> None:
    """Whatever its arguments claim, the kernel reads and writes within them or raises `ValueError`."""
    good: dict[str, Any] = {
        "source": np.zeros((4, 5, 4), np.uint8), "width": 5, "height": 4,
        "x_starts": np.array([0, 2], np.int32), "x_weights": np.full((2, 3), 1 << 20, np.int32),
        "y_starts": np.array([0], np.int32), "y_weights": np.full((1, 4), 1 << 20, np.int32),
        "height_first": False, "out": np.zeros((1, 2, 3), np.uint8),
    }  # fmt: skip
    module.crop(*good.values())
    wrong: list[dict[str, Any]] = [
        {"width": 6}, {"height": 5}, {"width": 0}, {"height": 0}, {"width": -5, "height": -4}, {"width": 2**62},
        {"width": 2**32, "height": 2**32}, {"height": 2**62}, {"width": 10, "height": 8},
        {"x_starts": np.array([0, 3], np.int32)}, {"x_starts": np.array([-1, 2], np.int32)},
        {"x_starts": np.array([2, 0], np.int32)}, {"x_starts": np.array([0, 2**31 - 1], np.int32)},
        {"x_starts": np.array([], np.int32)}, {"y_starts": np.array([1], np.int32)},
        {"x_weights": np.zeros((2, 6), np.int32)}, {"x_weights": np.zeros(5, np.int32)},
        {"y_weights": np.zeros(0, np.int32)}, {"out": np.zeros((1, 2, 4), np.uint8)},
        {"out": np.zeros((1, 1, 3), np.uint8)}, {"source": np.zeros((4, 5, 3), np.uint8)},
        {"source": Image.new("L", (5, 4)).__arrow_c_array__()[1]},
        {"source": Image.new("RGB", (5, 3)).__arrow_c_array__()[1]},
    ]  # fmt: skip
    for change in wrong:
        try:
            module.crop(*(good | change).values())
        except ValueError:
            continue
        raise AssertionError(change)


def test_the_kernel_refuses_what_does_not_fit(kernel: ModuleType) -> None:
    refusals(kernel)


def test_the_kernel_refuses_what_cannot_be_written_to(kernel: ModuleType) -> None:
    image = np.zeros((4, 5, 4), np.uint8)
    table, weights = np.array([0], np.int32), np.full((1, 1), 1 << 22, np.int32)
    with pytest.raises((TypeError, BufferError, ValueError)):
        kernel.crop(image, 5, 4, table, weights, table, weights, False, b"123")
    with pytest.raises((TypeError, BufferError, ValueError)):
        kernel.crop(image[:, ::2], 3, 4, table, weights, table, weights, False, np.zeros((1, 1, 3), np.uint8))


@pytest.mark.usefixtures("without")
def test_without_the_kernel_pillow_does_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not kernel_agrees() and fast_pixels(photograph(), Preprocess()) is None
    assert np.array_equal(pixels(photograph(), Preprocess()), slow_pixels(photograph(), Preprocess()))
    assert "C compiler" in images.why_slow()
    monkeypatch.setattr(images, "simplejpeg", None)
    assert "pip install simplejpeg" in images.why_slow()


def test_a_kernel_that_gives_another_bit_is_not_used(kernel: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*arguments: Any) -> None:
        kernel.crop(*arguments)
        arguments[-1][0, 0, 0] ^= 1

    monkeypatch.setattr(resample, "crop", wrong)
    assert not kernel_agrees()
    assert np.array_equal(pixels(photograph(), Preprocess()), slow_pixels(photograph(), Preprocess()))
    assert f"Pillow {PIL.__version__}" in images.why_slow()


@pytest.mark.usefixtures("kernel")
def test_a_large_picture_goes_through_the_kernel() -> None:
    image = photograph(3000, 2000)
    made = fast_pixels(image, Preprocess())
    assert made is not None and np.array_equal(made, slow_pixels(image, Preprocess()))


def test_axes_of_hostile_lengths_are_left_to_pillow_and_cost_nothing_here() -> None:
    for length, size in ((1 << 24, 256), (256, 1 << 24), (60_000, 256)):
        assert resample.cost(length, size, Image.Resampling.LANCZOS) > resample.LARGEST
    for side in (4000, 8000):  # telephones: 12 and 48 megapixels
        assert resample.cost(side, 341, Image.Resampling.BILINEAR) <= resample.LARGEST


# JPEGs that simplejpeg takes, and those that are Pillow's.


def taken(body: bytes) -> np.ndarray | None:
    checked = images.check(body, Preprocess(), LIMITS)
    assert checked.name == "JPEG"
    return images.decode_fast(body, checked.annotated, Preprocess()) if checked.fast else None


def by_pillow(body: bytes) -> np.ndarray:
    return decode_here(body, "JPEG", Preprocess(), LIMITS.pixels)


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("subsampling", [0, 1, 2])
@pytest.mark.parametrize("quality", [1, 40, 75, 92])
def test_plain_jpegs_have_pillows_pixels(subsampling: int, quality: int) -> None:
    pytest.importorskip("simplejpeg")
    random = np.random.default_rng(quality)
    for _ in range(12):
        width, height = (int(side) for side in random.integers(1, 400, 2))
        noise = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
        picture = Image.blend(Image.fromarray(noise), photograph(width, height), 0.7)
        optimized, commented = {"optimize": quality < 90}, {"comment": b"hello", "dpi": (72, 72)}
        for options in ({}, optimized, commented, {"restart_marker_blocks": 3}):
            body = encoded(picture, "JPEG", quality=quality, subsampling=subsampling, **options)
            made = taken(body)
            assert made is not None and np.array_equal(made, by_pillow(body)), (width, height, options)


@pytest.mark.usefixtures("kernel")
def test_photographs_are_taken_and_have_pillows_pixels() -> None:
    pytest.importorskip("simplejpeg")
    if not (SHARED / "images").is_dir():
        pytest.skip(f"no photographs at {SHARED}")
    bodies = [path.read_bytes() for path in sorted((SHARED / "images").glob("*.JPEG"))]
    made = [taken(body) for body in bodies]
    assert sum(picture is not None for picture in made) >= 0.9 * len(bodies)
    assert all(np.array_equal(decode(body, Preprocess(), LIMITS), by_pillow(body)) for body in bodies)


def exif(orientation: int) -> Image.Exif:
    made = Image.Exif()
    made[ORIENTATION] = orientation
    return made


XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
LEFT_TO_PILLOW = {
    "turned": encoded(photograph(), "JPEG", exif=exif(6)),
    "turned by its XMP": encoded(photograph(), "JPEG", xmp=XMP),
    "progressive": encoded(photograph(), "JPEG", progressive=True),
    "grey": encoded(photograph().convert("L"), "JPEG"),
    "CMYK": encoded(photograph().convert("CMYK"), "JPEG"),
    "RGB": encoded(photograph(), "JPEG", keep_rgb=True),
    "several": encoded(photograph(), "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))]),
}


@pytest.mark.usefixtures("kernel")
@pytest.mark.parametrize("name", LEFT_TO_PILLOW)
def test_what_is_in_doubt_is_left_to_pillow(name: str) -> None:
    body = LEFT_TO_PILLOW[name]
    assert taken(body) is None
    assert np.array_equal(decode(body, Preprocess(), LIMITS), by_pillow(body))


@pytest.mark.usefixtures("kernel")
def test_an_upright_annotated_jpeg_is_taken() -> None:
    pytest.importorskip("simplejpeg")
    body = encoded(photograph(), "JPEG", exif=exif(1), icc_profile=b"profile" * 100)
    made = taken(body)
    assert made is not None and np.array_equal(made, by_pillow(body))


@pytest.mark.usefixtures("kernel")
def test_damaged_jpegs_get_pillows_verdict() -> None:
    """Every byte of the stream changed, and every end: the same pixels, or the same sentence."""
    whole = encoded(photograph(), "JPEG")
    random, verdicts = np.random.default_rng(0), set()
    for number in range(700):
        body = bytearray(whole)
        body[int(random.integers(2, len(body)))] = int(random.integers(256))
        end = int(random.integers(200, len(body))) if number % 3 == 0 else len(body)
        changed = bytes(body[:end])

        def verdict(of: Any, *arguments: Any) -> bytes | str:
            try:
                made: np.ndarray = of(*arguments)
            except Exception as error:
                return f"{type(error).__name__}: {error}"
            return made.tobytes()

        try:
            checked = images.check(changed, Preprocess(), LIMITS)
        except Exception:
            continue
        if not (checked.name == "JPEG" and checked.ordinary):
            continue
        ours = verdict(decode, changed, Preprocess(), LIMITS)
        assert ours == verdict(by_pillow, changed), number
        verdicts.add(type(ours))
    assert verdicts == {bytes, str}


def test_what_may_have_to_be_decoded_twice_costs_no_more_than_once() -> None:
    body = encoded(photograph(), "JPEG")
    head = heads.read("JPEG", body)
    seconds = head.seconds + images.scaled(head, Preprocess()) * images.SCALING_SECONDS
    assert images.check(body, Preprocess(), Limits(50_000_000, 2.1 * seconds)).fast
    checked = images.check(body, Preprocess(), Limits(50_000_000, 1.9 * seconds))
    assert checked.ordinary and not checked.fast


def test_the_benchmark_compares_every_format_with_pillow(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.jpg").write_bytes(encoded(photograph(90, 60), "JPEG"))
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- pixels -->\n<!-- /pixels -->\nafter\n", "utf-8")
    command = ["pixels", "--images", str(tmp_path), "--megapixels", "0,0.01", "--rounds", "1", "--into", str(page)]
    assert benchmarks(command) == 0
    table = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines()[2:]]
    assert [row[:3] for row in rows] == [
        ["JPEG", "0.0054", "1"], ["JPEG", "0.01", "1"], ["PNG", "0.01", "1"], ["WEBP", "0.01", "1"],
    ]  # fmt: skip
    assert {row[-1] for row in rows} == {"the same bits"}
    assert all(float(row[3]) > 0 and float(row[4]) > 0 for row in rows)
    assert table in page.read_text("utf-8")
