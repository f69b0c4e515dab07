"""What a request to classify asks for: images and parameters, from its query and its multipart form."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass, field
from functools import lru_cache
from urllib.parse import parse_qsl

from serving.errors import BadRequest, TooLarge
from serving.images import check_content_type
from serving.text import quoted

# Bytes of a field that is not an image: a name or a number.
LONGEST_FIELD = 1000

LONGEST_HEAD = 8000
LONGEST_BOUNDARY = 200  # the standard allows 70
LONGEST_CONTENT_TYPE = 1000

# Parts that are not images. They are few, so that a form that consists of part heads is refused early.
MOST_FIELDS = 16

# Header lines of a part, and parameters of a header. Browsers and clients send up to three of each.
MOST_OPTIONS = 16

# One parameter of a header (RFC 9110, 5.6.6). It is matched where the one before ended, so that a header is read once.
OPTION = re.compile(rb'[ \t]*;[ \t]*([^\s;="]+)[ \t]*=[ \t]*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))', re.DOTALL)


FIELDS = ("model", "top_k")


@dataclass
class Form:
    """What a request asks for."""

    images: list[bytes] = field(default_factory=list)
    fields: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, value: str) -> None:
        if name not in FIELDS:
            raise BadRequest(f"{quoted(name)} is not a parameter; {', '.join(FIELDS)} and the field image are")
        if name in self.fields:
            raise BadRequest(f"{name} is given more than once")
        self.fields[name] = value

    @property
    def model(self) -> str | None:
        return self.fields.get("model")

    @property
    def top_k(self) -> int | None:
        text = self.fields.get("top_k")
        if text is None:
            return None
        if not (text.isascii() and text.isdecimal() and len(text) <= 9):
            raise BadRequest(f"top_k is {quoted(text)}; it must be a whole number from 1 on")
        return int(text)


def query(raw: bytes) -> list[tuple[str, str]]:
    if not raw:
        return []
    try:
        return parse_qsl(raw.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=16)
    except ValueError:
        raise BadRequest("the query cannot be read; write it like model=resnet50&top_k=5") from None


def one_image(form: Form) -> bytes:
    if len(form.images) != 1 or not form.images[0]:
        sent = len(form.images) if len(form.images) != 1 else "an empty"
        raise BadRequest(f"{sent} image; send one, as the body or as the field `image` of a multipart form")
    return form.images[0]


def multipart(body: bytes, boundary: bytes, form: Form, most_images: int) -> None:
    """Fill `form` from a whole multipart body (RFC 7578). A search finds the ends of its parts.

    Raises `BadRequest` if the form is broken, or has unknown fields or too many, and `TooLarge` for too many images.
    """
    if not 1 <= len(boundary) <= LONGEST_BOUNDARY:
        raise BadRequest(f"the multipart Content-Type has no boundary, or one over {LONGEST_BOUNDARY} characters")
    line = b"\r\n--" + boundary
    after = Boundaries(body, line, most_images + MOST_FIELDS).after
    cut_off = BadRequest("the multipart form is cut off before its last boundary")
    # The first boundary begins the body, or follows a preamble.
    at = len(line) - 2 if body.startswith(line[2:]) else after(0)[1]
    while at >= 0 and body[at : at + 2] != b"--":
        begin = body.find(b"\r\n", at)
        head_end = body.find(b"\r\n\r\n", begin)
        if begin < 0 or head_end < 0:
            raise cut_off
        if head_end - at > LONGEST_HEAD:
            raise BadRequest(f"a part of the multipart form has a head over {LONGEST_HEAD} bytes")
        if line in body[begin:head_end]:
            raise BadRequest("a part of the multipart form has a head without an end")
        name, content_type = _part(body[begin:head_end])
        end, at = after(head_end + 2)
        if at < 0:
            raise cut_off
        value = body[head_end + 4 : end]
        if name == "image":
            check_content_type(content_type)
            if len(form.images) >= most_images:
                raise TooLarge(f"more than {most_images} images; send fewer at a time")
            form.images.append(value)
        elif len(value) > LONGEST_FIELD:
            raise BadRequest(f"the field {quoted(name)} is over {LONGEST_FIELD} bytes")
        elif (text := plain(value)) is not None:
            form.add(name, text)
    if at < 0:
        raise cut_off


class Boundaries:
    """The lines of a multipart body that begin with its boundary, at most `most` of them.

    A line of content may begin like the boundary. It counts too, because to look at it costs as much.
    """

    def __init__(self, body: bytes, line: bytes, most: int) -> None:
        self.body, self.line, self.left = body, line, most

    def after(self, start: int) -> tuple[int, int]:
        """Where the next boundary line at or after `start` begins, and where its boundary ends; (-1, -1) for none."""
        body, line = self.body, self.line
        while (found := body.find(line, start)) >= 0:
            if (left := self.left) == 0:
                raise TooLarge("the form has more parts than the images and fields it may have; send fewer at a time")
            self.left = left - 1
            start = found + len(line)
            if body[start : start + 2] in (b"--", b"\r\n") or body[start : start + 1] in (b" ", b"\t"):
                return found, start
        return -1, -1


@lru_cache(256)
def declared(content_type: bytes) -> tuple[str, bytes]:
    """The type that a Content-Type names, and its boundary if the type is a form's."""
    if len(content_type) > LONGEST_CONTENT_TYPE:
        raise BadRequest(f"the Content-Type is over {LONGEST_CONTENT_TYPE} bytes")
    kind = named(content_type)
    boundary = options(content_type).get(b"boundary", b"") if kind == "multipart/form-data" else b""
    return kind, boundary


@lru_cache(256)  # the forms of one client differ only in their images
def _part(head: bytes) -> tuple[str, str]:
    """The name and the content type in a part's header lines. Raises `BadRequest` unless there is exactly one name."""
    fields: dict[bytes, bytes] = {}
    for line in head[2:].split(b"\r\n", MOST_OPTIONS):
        key, _, value = line.partition(b":")
        if (key := key.strip().lower()) in fields or len(fields) == MOST_OPTIONS:
            raise BadRequest("a part of the multipart form has a header twice, or too many")
        fields[key] = value.strip()
    disposition = fields.get(b"content-disposition", b"")
    name = options(disposition).get(b"name")
    if named(disposition) != "form-data" or name is None:
        raise BadRequest("a part of the multipart form has no name")
    return name.decode("utf-8", "replace"), named(fields.get(b"content-type", b""))


def named(value: bytes) -> str:
    """A header's value in lower case, without its parameters."""
    return value.partition(b";")[0].strip().lower().decode("latin-1")


def options(value: bytes) -> dict[bytes, bytes]:
    """The parameters of a header's value.

    Raises `BadRequest` if one is given twice or cannot be read: a proxy might read it in another way than we do.
    """
    found: dict[bytes, bytes] = {}
    at = len(value.partition(b";")[0])
    while (option := OPTION.match(value, at)) is not None and len(found) < MOST_OPTIONS:
        name, quoted_text, token = option.groups()
        if name.lower() in found:
            break
        found[name.lower()] = token if quoted_text is None else re.sub(rb"\\(.)", rb"\1", quoted_text)
        at = option.end()
    if value[at:].strip(b"; \t"):
        text = quoted(value.decode("latin-1"))
        raise BadRequest(f"the header {text} has a parameter twice, or one that cannot be read")
    return found


def plain(value: bytes) -> str | None:
    """A form field's text. BentoML's clients write JSON: quoted strings, and null for what is left out."""
    text = value.decode("utf-8", "replace").strip()
    if text == "null":
        return None
    if text.startswith('"'):
        with suppress(ValueError):
            return str(json.loads(text))
    return text
