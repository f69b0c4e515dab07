"""From the bytes of a request to the pixels a network takes, within limits.

Whatever the bytes are, the outcome is pixels or one of three errors: `UnsupportedImage` (not a format we take),
`TooLarge` (more pixels, memory or processor time than allowed) or `DamagedImage`.

What its head declares decides where an image is decoded. One that is as encoders write it, and not large, is decoded
where it is asked for; any other one in a process that can be killed (`serving.sandbox`). simplejpeg decodes plain JPEGs
(`decode_fast`); Pillow decodes the rest, and whatever simplejpeg has a doubt about (`decode_here`).
"""

from __future__ import annotations

import io
import threading
import warnings
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import PIL
from PIL import Image, UnidentifiedImageError

from models.preprocess import Pixels, Preprocess, fast_pixels, flatten, full_scale, kernel_agrees, pixels
from serving import heads
from serving.costly import Costly
from serving.errors import DamagedImage, TooLarge, UnsupportedImage
from serving.heads import Head
from serving.limits import HERE_BYTES, HERE_SECONDS, Limits
from serving.sandbox import Sandbox, shared

try:
    import simplejpeg
except ImportError:  # no wheel for this machine
    simplejpeg = None

# The formats we take, by the bytes they begin with.
SIGNATURES = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"BM", "BMP"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
)
FORMATS = "JPEG, PNG, WebP, BMP, GIF or TIFF"

# The content types a body may declare. Which format it is, its first bytes decide: browsers and tools mislabel.
CONTENT_TYPES = frozenset(
    {
        "image/jpeg",
        "image/jpg",
        "image/png",
        "image/webp",
        "image/bmp",
        "image/x-ms-bmp",
        "image/gif",
        "image/tiff",
        "application/octet-stream",
    }
)

# EXIF orientation -> what turns the picture upright (EXIF 2.32, 4.6.4, tag 274).
ORIENTATION = 274
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

# An estimate this far over the budget is no longer a matter of the processor's speed.
CERTAINLY = 2.0
SCALING_SECONDS = 20e-9  # for each pixel that an image is scaled to
STRIP_PIXELS = 1 << 20

# Pillow warns of what it can live with, damaged EXIF and many pixels; our own limit on these is stricter than its.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def check_content_type(declared: str) -> None:
    """Raises `UnsupportedImage` for a declared type that is no image we take; "" declares nothing."""
    if declared and declared not in CONTENT_TYPES:
        raise UnsupportedImage(
            f"content type {declared[:80]!r} is not taken; send the image as image/jpeg, image/png, image/webp, "
            "image/bmp, image/gif, image/tiff or application/octet-stream, or as the field `image` of a multipart form"
        )


def image_format(body: bytes) -> str:
    """Pillow's name of the format that `body` begins like."""
    for signature, name in SIGNATURES:
        if body.startswith(signature):
            return name
    if body[:4] == b"RIFF" and body[8:12] == b"WEBP":
        return "WEBP"
    raise UnsupportedImage(f"the {len(body):,} bytes sent are not a {FORMATS} image")


def decode(body: bytes, recipe: Preprocess, limits: Limits, sandbox: Sandbox | None = None) -> Pixels:
    """`body` as uint8 [crop, crop, channels], upright, as `recipe` wants it.

    What the head declares is checked before a pixel is decoded. Of an animation the first frame counts.
    """
    return Picture(body, limits, sandbox).pixels(recipe)


class Checked(NamedTuple):
    """The format of an image, whether it may be decoded in this process, and whether the fast decoder may try it."""

    name: str
    ordinary: bool
    fast: bool
    annotated: bool


def check(body: bytes, recipe: Preprocess, limits: Limits) -> Checked:
    """What the head of `body` declares.

    Raises `UnsupportedImage`, `TooLarge` and `DamagedImage`.
    """
    name = image_format(body)
    head = heads.read(name, body)
    if head.width and head.height:
        check_size((head.width, head.height), recipe, limits.pixels)
    taken = memory(head, recipe)
    if taken > limits.memory:
        raise TooLarge(
            f"decoding this {name} of {head.width:,} x {head.height:,} pixels takes {taken / 1e6:,.0f} MB; "
            f"{limits.memory / 1e6:,.0f} are allowed; send it smaller, or as a plain JPEG"
        )
    seconds = head.seconds + scaled(head, recipe) * SCALING_SECONDS
    if seconds > CERTAINLY * limits.seconds:
        raise TooLarge(
            f"decoding this {name} of {head.width:,} x {head.height:,} pixels takes about {seconds:,.0f} s "
            f"of processor time; {limits.seconds:,g} are allowed; send it smaller, or saved anew as a plain JPEG"
        )
    here = min(HERE_SECONDS, limits.seconds)
    ordinary = not head.unusual and taken <= HERE_BYTES and seconds <= here
    # What the fast decoder gives up, Pillow decodes from the beginning.
    fast = ordinary and head.plain and recipe.mode == "RGB" and seconds <= here / 2
    return Checked(name, ordinary, fast, head.annotated)


def scaled(head: Head, recipe: Preprocess) -> int:
    """Pixels of the image once its short side is `recipe.resize`: 116,000 of a photograph, millions of a long line."""
    short = min(head.width, head.height)
    return recipe.resize * recipe.resize * max(head.width, head.height) // short if short else 0


def memory(head: Head, recipe: Preprocess) -> int:
    """Bytes that decoding and scaling take at their peak, beside the encoded image."""
    return head.memory + 2 * heads.COLOUR * scaled(head, recipe)


def decode_fast(body: bytes, annotated: bool, recipe: Preprocess) -> Pixels | None:
    """The pixels of a plain JPEG, without Pillow; None where Pillow is needed, or is to say what is wrong with it."""
    if simplejpeg is None or not kernel_agrees():
        return None
    try:
        if annotated:
            with Image.open(io.BytesIO(body), formats=("JPEG",)) as image:
                if image.format != "JPEG" or orientation(image) is not None:
                    return None
        return fast_pixels(simplejpeg.decode_jpeg(body, "RGBA"), recipe)
    except Exception:
        return None


def why_slow() -> str:
    """Why this machine makes pixels by Pillow alone, and the repair; "" if it does not."""
    if simplejpeg is None:
        return "JPEGs are decoded and scaled by Pillow, which takes longer: pip install simplejpeg"
    if not kernel_agrees():
        return (
            "images are scaled by Pillow, which takes five times as long: our kernel is not installed, or does not "
            f"agree with Pillow {PIL.__version__}; install Podium again where there is a C compiler"
        )
    return ""


def decode_here(body: bytes, name: str, recipe: Preprocess, max_pixels: int) -> Pixels:
    """`decode` for a format known already, in this process, whatever it costs."""
    # Pillow raises anything on hostile bytes (OSError, SyntaxError, struct.error, KeyError and more), and whatever goes
    # wrong in this block is due to the bytes.
    try:
        image: Image.Image = Image.open(io.BytesIO(body), formats=(name,))
        check_size(image.size, recipe, max_pixels)
        image.load()
        check_size(image.size, recipe, max_pixels)
        turn = orientation(image)
        image = released(image)
        if turn is not None:
            image = image.transpose(turn)
        return pixels(opaque(image, recipe.mode), recipe)
    except (TooLarge, DamagedImage):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLarge(f"the image has more than the {max_pixels:,} pixels allowed") from None
    except MemoryError:
        raise TooLarge(f"decoding the {name} takes more memory than allowed; send it smaller") from None
    except UnidentifiedImageError as error:  # whose text is our buffer's address
        raise DamagedImage(f"the {name} image is damaged: its head cannot be read") from error
    except Exception as error:
        reason = printable(str(error)) or type(error).__name__
        raise DamagedImage(f"the {name} image is damaged: {reason}") from error


def printable(text: str) -> str:
    """`text` in one line of at most 200 characters; a decoder's words may carry the client's."""
    return " ".join("".join(c if c.isprintable() else " " for c in text[:400]).split())[:200]


class Picture:
    """The image of one request, decoded once for every recipe it is asked for, in whichever thread asks first."""

    def __init__(self, body: bytes, limits: Limits, sandbox: Sandbox | None = None) -> None:
        self.body, self.limits, self.sandbox = body, limits, sandbox
        # One for each kind of thread: those that decode here never wait for another process.
        self._turns = {ordinary: threading.Lock() for ordinary in (True, False)}
        self._made: dict[Preprocess, Pixels] = {}

    def pixels(self, recipe: Preprocess) -> Pixels:
        """What `decode` gives, and raises."""
        prepared = self.prepare(recipe)
        return prepared.prepare() if isinstance(prepared, Costly) else prepared

    def prepare(self, recipe: Preprocess) -> Pixels | Costly:
        """`pixels` at once if they are decoded in this process, else what waits for another one."""
        name, ordinary, fast, annotated = check(self.body, recipe, self.limits)
        if ordinary:
            return self._once(recipe, True, partial(self._decode, name, fast, annotated, recipe))
        sandbox = self.sandbox or shared()
        return Costly(partial(self._once, recipe, False, partial(sandbox.decode, self.body, name, recipe, self.limits)))

    def _decode(self, name: str, fast: bool, annotated: bool, recipe: Preprocess) -> Pixels:
        pixels = decode_fast(self.body, annotated, recipe) if fast else None
        return decode_here(self.body, name, recipe, self.limits.pixels) if pixels is None else pixels

    def _once(self, recipe: Preprocess, ordinary: bool, make: Callable[[], Pixels]) -> Pixels:
        with self._turns[ordinary]:
            if recipe not in self._made:
                self._made[recipe] = make()
            return self._made[recipe]


def check_size(size: tuple[int, int], recipe: Preprocess, max_pixels: int) -> None:
    """Raises `TooLarge` where the image, or what scaling its short side to the network's size makes of it, is."""
    width, height = size
    short, long = min(size), max(size)
    if short < 1:
        raise DamagedImage(f"the image is {width} x {height} pixels")
    if width * height > max_pixels:
        raise TooLarge(f"the image has {width:,} x {height:,} pixels; {max_pixels:,} are allowed")
    # A line of one pixel's width is small until its short side is 256.
    if recipe.resize * recipe.resize * long // short > max_pixels:
        raise TooLarge(f"the image is {width:,} x {height:,} pixels, too long and thin to scale to {recipe.resize}")


def orientation(image: Image.Image) -> Image.Transpose | None:
    """How `image` is turned upright, as its EXIF says; unreadable EXIF says nothing."""
    try:
        return UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return None


def released(image: Image.Image) -> Image.Image:
    """`image`, loaded, without what its decoder still holds: for WebP 12 bytes a pixel."""
    return image._new(image.im) if image.format == "WEBP" else image


def opaque(image: Image.Image, mode: str) -> Image.Image:
    """What `flatten` gives, made in strips, so that its steps in between take no memory to speak of."""
    width, height = image.size
    rows = max(1, STRIP_PIXELS // width)
    if (image.mode == mode and "transparency" not in image.info) or rows >= height:
        return flatten(image, mode)
    deepest = max(full_scale(image.crop((0, y, width, min(y + rows, height)))) for y in range(0, height, rows))
    flat = Image.new(mode, image.size)
    for y in range(0, height, rows):
        flat.paste(flatten(image.crop((0, y, width, min(y + rows, height))), mode, deepest), (0, y))
    return flat
