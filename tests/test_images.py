"""From bytes to pixels: every kind of image as a person sees it, every kind of rubbish as a typed error."""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from models.preprocess import RESAMPLING, Preprocess, geometry, pixels, windows
from serving.errors import DamagedImage, RequestError, TooLarge, UnsupportedImage
from serving.images import ORIENTATION, UPRIGHT, check_content_type, decode, image_format
from serving.limits import Limits
from tests.conftest import SHARED
from tests.fakes.pictures import encoded, photograph

# As `serving.images` sets it for a running server; pytest sets its own.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")

RECIPE = Preprocess(resize=36, crop=32)
LIMITS = Limits(1_000_000)


def off_by(first: np.ndarray, second: np.ndarray) -> float:
    return float(np.abs(first.astype(int) - second.astype(int)).mean())


@pytest.mark.parametrize("name", ["PNG", "BMP", "GIF", "TIFF", "JPEG", "WEBP"])
def test_takes_every_format(name: str) -> None:
    body = encoded(photograph(), name)
    got = decode(body, RECIPE, LIMITS)
    assert image_format(body) == name
    assert got.shape == (32, 32, 3) and got.dtype == np.uint8
    assert off_by(got, pixels(photograph(), RECIPE)) < 6


@pytest.mark.parametrize("name", ["PNG", "BMP", "TIFF"])
def test_lossless_formats_give_the_reference_pixels(name: str) -> None:
    assert np.array_equal(decode(encoded(photograph(), name), RECIPE, LIMITS), pixels(photograph(), RECIPE))


# torchvision's own numbers, a few of the 360 in ../shared: width, height, resize, crop; then the resized width and
# height, and the crop's left and top. The long side is truncated (36 x 593: 3870.97), the corner rounded half to even
# (86 x 600: 95.5; 170 x 298: 110.5).
GEOMETRY = (
    (33, 609, 333, 299, 333, 6145, 17, 2923),
    (36, 593, 235, 224, 235, 3870, 6, 1823),
    (86, 600, 32, 32, 32, 223, 0, 96),
    (170, 298, 256, 227, 256, 448, 14, 110),
    (500, 375, 256, 224, 341, 256, 58, 16),
)


def of_torchvision() -> list[tuple[int, ...]]:
    path = SHARED / "reference" / "torchvision_geometry.json"
    return [tuple(row) for row in json.loads(path.read_text("utf-8"))["rows"]] if path.exists() else list(GEOMETRY)


def test_the_geometry_is_torchvisions() -> None:
    rows = of_torchvision()
    assert set(GEOMETRY[:4]) <= set(rows)
    for width, height, resize, crop, *expected in (*rows, *GEOMETRY):
        resized, corner = geometry((width, height), Preprocess(resize, crop))
        assert [*resized, *corner] == expected, (width, height, resize, crop)


def whole(image: Image.Image, recipe: Preprocess) -> np.ndarray:
    """The recipe as torchvision does it on the image: all of it scaled, then cropped."""
    resized, (left, top) = geometry(image.size, recipe)
    scaled = image.resize(resized, RESAMPLING[recipe.interpolation])
    return np.asarray(scaled.crop((left, top, left + recipe.crop, top + recipe.crop)))


@pytest.mark.parametrize("interpolation", RESAMPLING)
@pytest.mark.parametrize(
    "size", [(500, 375), (375, 500), (256, 256), (512, 512), (333, 500), (267, 562), (64, 500), (1024, 300), (90, 70)]
)
def test_scaling_no_more_than_the_crop_changes_no_bit(size: tuple[int, int], interpolation: Any) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    for resize, crop in ((256, 224), (232, 224), (64, 64), (73, 50)):
        recipe = Preprocess(resize, crop, interpolation)
        np.testing.assert_array_equal(pixels(Image.fromarray(noise), recipe), whole(Image.fromarray(noise), recipe))


def test_no_size_changes_a_bit() -> None:
    """Sizes at random, and the published recipes; `whole` has torchvision's geometry, which the test above holds."""
    random = np.random.default_rng(1)
    noise = Image.fromarray(random.integers(0, 256, (700, 700, 3), dtype=np.uint8))
    for number in range(120):
        width, height = (int(side) for side in random.integers(30, 700, 2))
        image = noise.crop((0, 0, width, height))
        resize, crop = ((256, 224), (232, 224), (235, 224), (342, 299), (256, 227), (28, 28))[number % 6]
        recipe = Preprocess(resize, crop, list[Any](RESAMPLING)[number % 3])
        assert np.array_equal(pixels(image, recipe), whole(image, recipe)), (width, height, recipe)


def test_a_photographs_short_side_is_not_scaled_whole() -> None:
    resized, corner = geometry((500, 375), Preprocess())
    across, down = windows((500, 375), resized, corner, 224)
    assert down == (16 * 375 / 256, 240 * 375 / 256, 224, 0) and across == (0, 500, 341, 58)


def test_a_photograph_sent_has_the_pixels_of_the_same_photograph_opened() -> None:
    folder = SHARED / "images"
    if not folder.is_dir():
        pytest.skip(f"no photographs at {SHARED}")
    for path in sorted(folder.glob("*.JPEG")):
        sent = decode(path.read_bytes(), Preprocess(), Limits(50_000_000))
        assert np.array_equal(sent, whole(Image.open(path).convert("RGB"), Preprocess())), path.name


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_honoured(name: str, orientation: int) -> None:
    undo = {
        Image.Transpose.ROTATE_90: Image.Transpose.ROTATE_270,
        Image.Transpose.ROTATE_270: Image.Transpose.ROTATE_90,
    }
    turn = UPRIGHT.get(orientation)
    stored = photograph() if turn is None else photograph().transpose(undo.get(turn, turn))
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    got = decode(encoded(stored, name, exif=exif), RECIPE, LIMITS)
    assert off_by(got, pixels(photograph(), RECIPE)) < 6


def test_damaged_exif_does_not_spoil_a_good_image() -> None:
    body = encoded(photograph(), "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert decode(body, RECIPE, LIMITS).shape == (32, 32, 3)


@pytest.mark.parametrize("mode", ["1", "L", "P", "CMYK", "LA", "RGBA", "I;16"])
def test_modes_come_out_as_rgb(mode: str) -> None:
    grey = photograph().convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    elif mode in ("1", "LA"):
        image = grey.convert(mode)
    else:
        image = photograph().convert(mode)
    got = decode(encoded(image, "JPEG" if mode == "CMYK" else "PNG"), RECIPE, LIMITS)
    want = pixels(grey if mode in ("1", "L", "LA", "I;16") else photograph(), RECIPE)
    # Dithered black and white, and a palette, are near the original only on average.
    assert off_by(got, want) < {"1": 60, "P": 12, "CMYK": 6}.get(mode, 1)


def test_transparency_lies_over_white() -> None:
    clear = Image.new("RGBA", (40, 40), (0, 0, 0, 0))
    assert decode(encoded(clear), RECIPE, LIMITS).min() == 255


def test_an_animation_shows_its_first_frame() -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in ("red", "blue")]
    for name in ("GIF", "WEBP", "PNG", "TIFF"):
        body = encoded(frames[0], name, save_all=True, append_images=frames[1:])
        got = decode(body, RECIPE, LIMITS).mean((0, 1))
        assert got[0] > 240 and got[2] < 15, name


def test_progressive_jpeg_gives_the_baseline_pixels() -> None:
    plain, progressive = (decode(encoded(photograph(), "JPEG", progressive=p), RECIPE, LIMITS) for p in (False, True))
    assert np.array_equal(plain, progressive)


def test_grey_networks_get_one_channel() -> None:
    recipe = Preprocess(resize=32, crop=28, mean=(0.5,), std=(0.5,), mode="L")
    assert decode(encoded(photograph(), "JPEG"), recipe, LIMITS).shape == (28, 28, 1)


@pytest.mark.parametrize(
    "body", [b"", b"hello", b"%PDF-1.7", b"<svg/>", b"\x00" * 100, b"http://127.0.0.1/cat.jpg", b"RIFFxxxxWAVE"]
)
def test_what_is_no_image_is_unsupported(body: bytes) -> None:
    with pytest.raises(UnsupportedImage, match="JPEG, PNG"):
        decode(body, RECIPE, LIMITS)


@pytest.mark.parametrize(
    "declared", ["text/html", "application/json", "image/svg+xml", "application/x-www-form-urlencoded"]
)
def test_a_declared_type_that_is_no_image_is_unsupported(declared: str) -> None:
    with pytest.raises(UnsupportedImage, match="image/jpeg"):
        check_content_type(declared)


@pytest.mark.parametrize("name", ["PNG", "BMP", "GIF", "TIFF", "JPEG", "WEBP"])
def test_truncated_anywhere_is_a_typed_error(name: str) -> None:
    body = encoded(photograph(), name)
    failures = 0
    for end in range(16, len(body) - 2, 10):
        try:
            decode(body[:end], RECIPE, LIMITS)
        except (DamagedImage, UnsupportedImage):
            failures += 1
    # The last bytes of some formats carry nothing of the picture.
    assert failures >= 0.8 * len(range(16, len(body) - 2, 10))


def bomb(width: int, height: int) -> bytes:
    """A PNG of a few dozen bytes that declares `width` x `height` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"\x00")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1001, 1000), (9_500, 9_500), (60_000, 60_000), (2**31 - 1, 2**31 - 1)])
def test_too_many_pixels_are_refused_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(TooLarge):
        decode(bomb(*size), RECIPE, LIMITS)


def test_a_thin_line_is_refused_before_it_is_scaled_up() -> None:
    with pytest.raises(TooLarge, match="long and thin"):
        decode(encoded(Image.new("L", (1, 5_000))), RECIPE, LIMITS)


def test_the_limit_itself_is_allowed() -> None:
    assert decode(encoded(Image.new("RGB", (100, 100))), RECIPE, Limits(10_000)).shape == (32, 32, 3)


SAMPLES = [encoded(photograph(), name) for name in ("PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP")]
EXIF = Image.Exif()
EXIF[ORIENTATION] = 6
SAMPLES += [
    encoded(photograph(), "JPEG", progressive=True, exif=EXIF),
    encoded(photograph().convert("P"), "PNG", transparency=3),
    encoded(photograph(), "TIFF", compression="tiff_lzw"),
    encoded(photograph().convert("CMYK"), "JPEG"),
]


@settings(max_examples=400, deadline=None)
@given(
    sample=st.sampled_from(SAMPLES),
    edits=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=12),
    end=st.floats(0.05, 1),
    tail=st.binary(max_size=20),
)
def test_mutated_images_give_pixels_or_a_typed_error(
    sample: bytes, edits: list[tuple[float, int]], end: float, tail: bytes
) -> None:
    body = bytearray(sample)
    for place, value in edits:
        body[int(place * (len(body) - 1))] = value
    mutated = bytes(body[: int(end * len(body))]) + tail
    try:
        got = decode(mutated, RECIPE, LIMITS)
    except RequestError as error:
        assert 400 <= error.status < 500
        assert str(error)
    else:
        assert got.shape == (32, 32, 3)
