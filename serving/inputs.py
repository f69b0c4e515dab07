"""What a bulk run classifies: images in a folder, of a glob, in Parquet files, here or in object storage.

They are listed once, cut into numbered parts, and the list is kept beside the results: a task reads only its own part
of it, and nothing ever holds all the names. Everything goes through pyarrow's filesystems, so `s3://` is as good as a
path.
"""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from models.console import Failure, Usage
from serving.errors import RequestError, TooLarge

if TYPE_CHECKING:
    from pyarrow import Field, RecordBatch, Schema
    from pyarrow.fs import FileSystem
    from pyarrow.parquet import ParquetFile

# What counts as an image in a folder. A glob takes whatever it matches.
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PARQUET = ".parquet"
NAMES = ("path", "id", "filename", "file_name", "name", "key", "url")  # columns that may name an image, in this order

MAGIC = re.compile(r"[*?\[]")
ROWS_AT_ONCE = 16  # of a Parquet file: what a task holds of it
PARTS_IN_A_LIST = 100  # so that a task opens a small file, however long the whole list


class Unreadable(RequestError):
    """The bytes of an image could not be read at all."""

    code = "unreadable"


class Place(NamedTuple):
    """A path in a filesystem; `prefix` makes it again what a user would type."""

    files: FileSystem
    path: str
    prefix: str = ""

    def __truediv__(self, name: str) -> Place:
        return self._replace(path=f"{self.path.rstrip('/')}/{name}")

    def __str__(self) -> str:
        return self.prefix + self.path

    @property
    def local(self) -> bool:
        return bool(self.files.type_name == "local")


def place(text: str) -> Place:
    """Where `text`, a path or a URI that pyarrow knows, points. Raises `Usage` for any other."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem, LocalFileSystem

    if "://" not in text:
        return Place(LocalFileSystem(), str(Path(text).absolute()))
    try:
        files, path = FileSystem.from_uri(text)
    except (ArrowException, OSError, ValueError, ImportError) as error:
        raise Usage(f"{without_secret(text)} is no address that pyarrow can open: {error}") from error
    return Place(files, path, "" if files.type_name == "local" else text.split("://")[0] + "://")


def absolute(text: str) -> str:
    """A path from the root, as another process or node needs it; a URI as it is."""
    return text if "://" in text else str(Path(text).absolute())


def without_secret(text: str) -> str:
    """`text` without the key and secret that a URI may carry, for what is written down."""
    return re.sub(r"(://)[^/@]*@", r"\1", text)


class Source(NamedTuple):
    """Where the images are, and which files count."""

    base: Place
    pattern: re.Pattern[str] | None = None  # of the path below `base`; None: by suffix
    depth: int | None = None  # how many folders down the pattern can match

    def files(self) -> Iterator[str]:
        """The paths of every input file, in the order the filesystem gives them, as it gives them."""
        from pyarrow.fs import FileType

        base = self.base.path.rstrip("/")
        kind = self.base.files.get_file_info(self.base.path).type
        if kind is FileType.NotFound:
            raise Usage(f"there is nothing at {self.base}")
        if kind is FileType.File:
            yield self.base.path
            return
        for path in (_walk_here if self.base.local else _walk)(self.base, self.depth):
            if self.pattern is None:
                if path.lower().endswith((*SUFFIXES, PARQUET)):
                    yield path
            elif self.pattern.fullmatch(path[len(base) + 1 :]):
                yield path


def source(text: str) -> Source:
    """`text` as a file, a folder (searched through) or a glob: `*`, `?`, `[...]`, and `**/` for any folders.

    In a URI a question mark begins its options.
    """
    body, mark, options = text.partition("?") if "://" in text else (text, "", "")
    if not (magic := MAGIC.search(body)):
        return Source(place(text))
    start = body.rfind("/", 0, magic.start()) + 1
    pattern = body[start:]
    return Source(
        place((body[:start] or ".") + mark + options),
        re.compile(_regex(pattern), re.DOTALL),
        None if "**" in pattern else pattern.count("/"),
    )


def _regex(pattern: str) -> str:
    """A glob as a regular expression; `*` and `?` stay inside a folder, `**/` crosses any number of them."""
    tokens = re.findall(r"\*\*/|\*+|\?|\[[!^]?\]?[^\]]*\]|.", pattern, re.DOTALL)
    known = {"**/": "(?:[^/]+/)*", "*": "[^/]*", "**": ".*", "?": "[^/]"}

    def one(token: str) -> str:
        if token in known:
            return known[token]
        if len(token) > 2 and token[0] == "[":
            inside = re.sub(r"([\\\[&~|])", r"\\\1", token[1:-1])
            return f"[^{inside[1:]}]" if inside[0] in "!^" else f"[{inside}]"
        return re.escape(token)

    return "".join(map(one, tokens))


def _walk_here(base: Place, depth: int | None) -> Iterator[str]:
    """The files below a folder of this machine, one at a time: a folder of any size takes no memory.

    What is hidden is left out, and links to folders are not followed, for they can lead in circles.
    """
    folders = deque([(base.path, 0)])
    while folders:
        folder, level = folders.pop()
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir(follow_symlinks=False):
                    if depth is None or level < depth:
                        folders.append((entry.path, level + 1))
                elif entry.is_file():
                    yield entry.path


def _walk(base: Place, depth: int | None) -> Iterator[str]:
    """The same anywhere else: pyarrow lists one folder at a time, so the largest one sets the memory."""
    from pyarrow.fs import FileSelector, FileType

    folders = deque([(base.path, 0)])
    while folders:
        folder, level = folders.pop()
        for info in base.files.get_file_info(FileSelector(folder)):
            if info.base_name.startswith("."):
                continue
            if info.type is FileType.Directory:
                if depth is None or level < depth:
                    folders.append((info.path, level + 1))
            elif info.type is FileType.File:
                yield info.path


class Entry(NamedTuple):
    """An image file, or, with `rows`, that many rows of a Parquet file from `first` on."""

    path: bytes  # as the filesystem has it: not every name is UTF-8
    first: int | None = None
    rows: int | None = None

    @property
    def images(self) -> int:
        return 1 if self.rows is None else self.rows


class Columns(NamedTuple):
    """The columns of a Parquet source; None: found by type and name."""

    image: str | None = None
    name: str | None = None


FOUND = Columns()


def parts(found: Source, size: int, columns: Columns) -> Iterator[list[Entry]]:
    """The inputs cut into parts of about `size` images: files together, Parquet files by their row groups."""
    files: list[Entry] = []
    for path in found.files():
        if path.lower().endswith(PARQUET):
            yield from ([entry] for entry in _cut(found.base._replace(path=path), size, columns))
            continue
        files.append(Entry(os.fsencode(path)))
        if len(files) == size:
            yield files
            files = []
    if files:
        yield files


def _cut(file: Place, size: int, columns: Columns) -> Iterator[Entry]:
    """Whole row groups together up to `size` rows; a larger one in equal pieces, which read what comes before."""
    from pyarrow import ArrowException

    try:
        with _table(file) as table:
            _columns(table.schema_arrow, columns, str(file))
            groups = [table.metadata.row_group(i).num_rows for i in range(table.num_row_groups)]
    except (ArrowException, OSError) as error:
        raise Failure(f"{file} is not a Parquet file that can be read: {error}") from error
    path, first, rows = os.fsencode(file.path), 0, 0
    for group in groups:
        if rows and rows + group > size:
            yield Entry(path, first, rows)
            first, rows = first + rows, 0
        rows += group
        if rows > size:
            pieces = -(-rows // size)
            ends = [first + rows * (i + 1) // pieces for i in range(pieces)]
            for end in ends:
                yield Entry(path, first, end - first)
                first = end
            rows = 0
    if rows:
        yield Entry(path, first, rows)


def _table(file: Place) -> ParquetFile:
    from pyarrow.parquet import ParquetFile

    # Buffered and not read ahead: a row group of photographs can be larger than the memory.
    return ParquetFile(file.path, filesystem=file.files, buffer_size=1 << 20, pre_buffer=False)


Leaf = tuple[str, ...]  # a column, or a field of a struct


def _columns(schema: Schema, wish: Columns, where: str) -> tuple[Leaf, Leaf | None]:
    """Where the images are and what names them; of a struct with `bytes` and `path`, as Hugging Face's, its fields."""
    from pyarrow import types

    def bytes_in(field: Field) -> Leaf | None:
        if types.is_binary(field.type) or types.is_large_binary(field.type):
            return (field.name,)
        if types.is_struct(field.type) and any(inner.name == "bytes" for inner in field.type):
            return (field.name, "bytes")
        return None

    for name in wish:
        if name is not None and name not in schema.names:
            raise Usage(f"{where} has no column {name!r}; it has {', '.join(schema.names)}")
    found = [leaf for field in schema if wish.image in (None, field.name) and (leaf := bytes_in(field))]
    if len(found) != 1:
        what = f"{len(found)} columns of bytes ({', '.join(leaf[0] for leaf in found)})" if found else "no such column"
        raise Usage(f"{where}: the images are in one column of bytes, and it has {what}; --image-column names one")
    image = found[0]
    if wish.name is not None:
        return image, (wish.name,)
    if len(image) == 2 and any(inner.name == "path" for inner in schema.field(image[0]).type):
        return image, (image[0], "path")
    return image, next(((name,) for name in NAMES if name in schema.names and name != image[0]), None)


# --- the list ---------------------------------------------------------------------------------------------------------


def write_list(
    found: Iterable[list[Entry]], folder: Place, progress: Callable[[int], None] = lambda _: None
) -> tuple[int, int]:
    """Write the parts to `folder`, a row group each; how many parts and how many images there are."""
    import pyarrow as pa
    from pyarrow.parquet import ParquetWriter

    schema = pa.schema([("path", pa.binary()), ("first", pa.int64()), ("rows", pa.int64())])
    writer, count, images = None, 0, 0
    folder.files.create_dir(folder.path)
    try:
        for part in found:
            if count % PARTS_IN_A_LIST == 0:
                if writer:
                    writer.close()
                file = folder / _list_of(count)
                writer = ParquetWriter(file.path, schema, filesystem=file.files, compression="zstd")
            assert writer is not None
            writer.write_table(pa.table(list(map(list, zip(*part, strict=True))), schema=schema))
            count, images = count + 1, images + sum(entry.images for entry in part)
            progress(images)
    except OSError as error:
        raise Failure(f"the inputs cannot be listed: {error}") from error
    finally:
        if writer:
            writer.close()
    return count, images


def read_list(folder: Place, part: int) -> list[Entry]:
    """The inputs of one part."""
    with _table(folder / _list_of(part)) as table:
        columns = table.read_row_group(part % PARTS_IN_A_LIST).to_pydict()
    return [Entry(*row) for row in zip(columns["path"], columns["first"], columns["rows"], strict=True)]


def _list_of(part: int) -> str:
    return f"{part // PARTS_IN_A_LIST:06}.parquet"


# --- the images -------------------------------------------------------------------------------------------------------

Load = Callable[[], bytes]  # raises `RequestError`


def images(base: Place, entries: Iterable[Entry], columns: Columns, max_bytes: int) -> Iterator[tuple[str, Load]]:
    """The name of every input, and what gives its bytes; exactly as many as were listed, come what may."""
    from pyarrow import ArrowException

    for entry in entries:
        file = base._replace(path=os.fsdecode(entry.path))
        if entry.first is None:
            # A name that is not UTF-8 is shown with its bytes escaped.
            yield base.prefix + entry.path.decode("utf-8", "backslashreplace"), partial(_read, file, max_bytes)
            continue
        done = 0
        try:
            for one in _rows(file, entry, columns, max_bytes):
                yield one
                done += 1
        except (ArrowException, OSError) as error:
            for row in range(entry.first + done, entry.first + entry.images):
                yield f"{file}#{row}", partial(_fail, f"the Parquet file cannot be read: {error}")


def _read(file: Place, max_bytes: int) -> bytes:
    try:
        with file.files.open_input_file(file.path) as opened:
            _check_size(opened.size(), max_bytes)
            return bytes(opened.read())
    except OSError as error:
        raise Unreadable(f"the file cannot be read: {error}") from error


def _check_size(size: int, max_bytes: int) -> None:
    if size > max_bytes:
        raise TooLarge(f"the image has {size:,} bytes; {max_bytes:,} are allowed")


def _fail(message: str) -> bytes:
    raise Unreadable(message)


def _rows(file: Place, entry: Entry, columns: Columns, max_bytes: int) -> Iterator[tuple[str, Load]]:
    assert entry.first is not None
    with _table(file) as table:
        image, name = _columns(table.schema_arrow, columns, str(file))
        starts = [0, *accumulate(table.metadata.row_group(i).num_rows for i in range(table.num_row_groups))]
        end = entry.first + entry.images
        groups = [i for i in range(table.num_row_groups) if starts[i] < end and starts[i + 1] > entry.first]
        row = starts[groups[0]]
        wanted = [".".join(leaf) for leaf in (image, name) if leaf]
        for batch in table.iter_batches(batch_size=ROWS_AT_ONCE, row_groups=groups, columns=wanted):
            first, last = max(entry.first - row, 0), min(end - row, batch.num_rows)
            taken = batch.slice(first, max(0, last - first))
            bodies = _column(taken, image)
            names = _column(taken, name) if name else [None] * len(bodies)
            for i, (body, called) in enumerate(zip(bodies, names, strict=True), start=row + first):
                label = f"{file}#{i}" if called is None else str(called)
                yield (
                    label,
                    partial(_fail, "the row has no bytes") if body is None else partial(_given, body, max_bytes),
                )
            row += batch.num_rows
            if row >= end:
                return


def _column(batch: RecordBatch, leaf: Leaf) -> list[Any]:
    values: list[Any] = batch.column(leaf[0]).to_pylist()
    for field in leaf[1:]:  # of a struct, which may itself be null
        values = [None if value is None else value[field] for value in values]
    return values


def _given(body: bytes, max_bytes: int) -> bytes:
    _check_size(len(body), max_bytes)
    return body
