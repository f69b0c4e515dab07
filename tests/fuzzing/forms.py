"""Queries and multipart forms, read also by the parser of python_multipart: a form that both accept means the same.

An input is a query, a line feed, a boundary, a line feed, and a body.
"""

from __future__ import annotations

import re
from urllib.parse import urlencode

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from serving.errors import RequestError
from serving.forms import Form, multipart, one_image, plain, query
from tests.fuzzing.target import Defect, Target

MOST_IMAGES = 8
FAULTS = (400, 413, 415)
LINE = rb"(?:^|(?<=\r\n))%s(?=\r\n|--\r\n|--$)"
# RFC 9110, 5.6.6.
DISPOSITION = re.compile(rb"""form-data(?:[ \t]*;[ \t]*[\w-]+=(?:[\w.-]+|"(?:[^"\\]|\\["\\])*"))*""", re.IGNORECASE)
PARAMETER = re.compile(rb"""[ \t]*;[ \t]*([\w-]+)=(?:[\w.-]+|"(?:[^"\\]|\\["\\])*")""")


def run(data: bytes) -> None:
    raw, _, rest = data.partition(b"\n")
    boundary, _, body = rest.partition(b"\n")
    read_query(raw)
    form = accepted(boundary, body)
    if form is not None and (parts := others(boundary, body)) is not None:
        images, fields = meant(parts)
        if form.images != images or form.fields != fields:
            raise Defect(f"{form} here, {images} and {fields} there")


def read_query(raw: bytes) -> None:
    form = Form()
    try:
        pairs = query(raw)
        for name, value in pairs:
            form.add(name, value)
        form.top_k  # noqa: B018, which raises
    except RequestError as error:
        refused(error)
    else:
        if query(urlencode(pairs).encode()) != pairs:
            raise Defect(f"{raw!r} is read as {pairs}")


def accepted(boundary: bytes, body: bytes) -> Form | None:
    form = Form()
    try:
        multipart(body, boundary, form, MOST_IMAGES)
        form.top_k  # noqa: B018, which raises
    except RequestError as error:
        refused(error)
        return None
    try:
        one_image(form)
    except RequestError as error:
        refused(error)
    return form


def refused(error: RequestError) -> None:
    if error.status not in FAULTS:
        raise Defect(f"{error.status} {error}") from error


def others(boundary: bytes, body: bytes) -> list[tuple[bytes, bytes]] | None:
    """The name and content of each part, as python_multipart reads them; None if the two need not agree."""
    line = b"--" + boundary
    if not body.startswith(line) or body.count(line) != len(re.findall(LINE % re.escape(line), body)):
        return None  # the readers differ on where a preamble, or a content that holds the boundary, ends
    if b"\r\n\r\n" + line in body:
        return None  # a head without a content: it continues to read after it
    parts: list[tuple[dict[bytes, bytes], bytearray]] = []
    name, value, ended = bytearray(), bytearray(), False

    def begin() -> None:
        parts.append(({}, bytearray()))

    def head_end() -> None:
        if parts[-1][0].setdefault(bytes(name).lower(), bytes(value)) != bytes(value):
            raise FormParserError  # no standard says which of two counts
        name.clear()
        value.clear()

    def end() -> None:
        nonlocal ended
        ended = True

    parser = MultipartParser(
        boundary,
        {
            "on_part_begin": begin,
            "on_part_data": lambda data, start, stop: parts[-1][1].extend(data[start:stop]),
            "on_header_field": lambda data, start, stop: name.extend(data[start:stop]),
            "on_header_value": lambda data, start, stop: value.extend(data[start:stop]),
            "on_header_end": head_end,
            "on_end": end,
        },
    )
    try:
        parser.write(body)
        parser.finalize()
    except FormParserError:
        return None
    if not ended:
        return None
    heads = [head.get(b"content-disposition", b"") for head, _ in parts]
    if not all(map(well_formed, heads)):
        return None  # each reader understands such a head in its own way
    names = [parse_options_header(head)[1].get(b"name", b"") for head in heads]
    return [(name, bytes(content)) for name, (_, content) in zip(names, parts, strict=True)]


def well_formed(disposition: bytes) -> bool:
    """Whether it has the standard form, and no parameter twice."""
    names = [name.lower() for name in PARAMETER.findall(disposition)]
    return DISPOSITION.fullmatch(disposition) is not None and len(set(names)) == len(names)


def meant(parts: list[tuple[bytes, bytes]]) -> tuple[list[bytes], dict[str, str]]:
    images = [content for name, content in parts if name == b"image"]
    texts = [(name.decode("utf-8", "replace"), plain(content)) for name, content in parts if name != b"image"]
    return images, {name: text for name, text in texts if text is not None}


TARGET = Target(run, seconds=1.0, memory=50_000_000)
