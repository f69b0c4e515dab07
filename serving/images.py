"""From the bytes of a request to the pixels a network takes, within limits.

Whatever the bytes are, the outcome is pixels or one of three errors: `UnsupportedImage` (no format we take),
`TooLarge` (more pixels than allowed) or `DamagedImage`.
"""

from __future__ import annotations

import io
import threading
import warnings

from PIL import Image, UnidentifiedImageError

from models.preprocess import Pixels, Preprocess, flatten, pixels
from serving.errors import DamagedImage, TooLarge, UnsupportedImage

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


def decode(body: bytes, recipe: Preprocess, max_pixels: int) -> Pixels:
    """`body` as uint8 [crop, crop, channels], upright, as `recipe` wants it.

    The size is checked before a pixel is decoded. Of an animation the first frame counts.
    """
    name = image_format(body)
    # Pillow raises anything on hostile bytes (OSError, SyntaxError, struct.error, KeyError and more), and whatever goes
    # wrong in this block is due to the bytes.
    try:
        image: Image.Image = Image.open(io.BytesIO(body), formats=(name,))
        check_size(image.size, recipe, max_pixels)
        image.load()
        image = flatten(upright(image), recipe.mode)
        check_size(image.size, recipe, max_pixels)
    except (TooLarge, DamagedImage):
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLarge(f"the image has more than the {max_pixels:,} pixels allowed") from None
    except UnidentifiedImageError as error:  # whose text is our buffer's address
        raise DamagedImage(f"the {name} image is damaged: its head cannot be read") from error
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DamagedImage(f"the {name} image is damaged: {reason}") from error
    return pixels(image, recipe)


class Picture:
    """The image of one request, decoded once for every recipe it is asked for, in whichever thread asks first."""

    def __init__(self, body: bytes, max_pixels: int) -> None:
        self.body, self.max_pixels = body, max_pixels
        self._turn = threading.Lock()
        self._made: dict[Preprocess, Pixels] = {}

    def pixels(self, recipe: Preprocess) -> Pixels:
        """What `decode` gives, and raises."""
        with self._turn:
            if recipe not in self._made:
                self._made[recipe] = decode(self.body, recipe, self.max_pixels)
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


def upright(image: Image.Image) -> Image.Image:
    """`image` turned as its EXIF orientation says; unreadable EXIF says nothing."""
    try:
        turn = UPRIGHT.get(image.getexif().get(ORIENTATION, 1))
    except Exception:
        return image
    return image if turn is None else image.transpose(turn)
