"""What a bulk run classifies: images in a folder, a glob or Parquet files, on this machine or in object storage.

They are listed once and cut into numbered parts. The list is kept beside the results: a task reads only its own part of
it, and no process holds all names. pyarrow opens all files, so an address `s3://` works as a path does.
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

# The files of a folder that are images. A glob takes every file that it matches.
SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff")
PARQUET = ".parquet"
NAMES = ("path", "id", "filename", "file_name", "name", "key", "url")  # columns that may name an image, in this order

MAGIC = re.compile(r"[*?\[]")
ROWS_AT_ONCE = 16  # rows of a Parquet file that a task holds
PARTS_IN_A_LIST = 100  # so that a task opens a small file, however long the whole list


class Unreadable(RequestError):
    """The bytes of an image could not be read."""

    code = "unreadable"


class Place(NamedTuple):
    """A path in a filesystem. With `prefix` before it, it is what a user would type."""

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
    """The place that `text`, a path or a URI, names. Raises `Usage` if pyarrow cannot open it."""
    from pyarrow import ArrowException
    from pyarrow.fs import FileSystem, LocalFileSystem

    if "://" not in text:
        return Place(LocalFileSystem(), str(Path(text).absolute()))
    try:
        files, path = FileSystem.from_uri(text)
    except (ArrowException, OSError, ValueError, ImportError) as error:
        raise Usage(f"{without_secret(text)} is not an address that pyarrow can open: {error}") from error
    return Place(files, path, "" if files.type_name == "local" else text.split("://")[0] + "://")


def absolute(text: str) -> str:
    """An absolute path, as another process or node needs it; a URI as it is."""
    return text if "://" in text else str(Path(text).absolute())


def without_secret(text: str) -> str:
    """`text` without the key and secret that a URI may hold, for files and messages."""
    return re.sub(r"(://)[^/@]*@", r"\1", text)


class Source(NamedTuple):
    """Where the images are, and which files count."""

    base: Place
    pattern: re.Pattern[str] | None = None  # of the path below `base`; None: by suffix
    depth: int | None = None  # how many folders down the pattern can match

    def files(self) -> Iterator[str]:
        """The path of every input file, in the filesystem's order."""
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
    """`text` as a file, a folder (with all below it) or a glob: `*`, `?`, `[...]`, and `**/` for any folders.

    In a URI, a question mark begins the options.
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
    """A glob as a regular expression. `*` and `?` match within one folder, `**/` any number of folders."""
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
    """The files below a folder of this machine, one at a time, so that a folder of any size takes no memory.

    Hidden files are left out. Links to folders are not followed, because they can lead in circles.
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
    """The same for other filesystems. pyarrow lists one folder at a time, so the largest one sets the memory."""
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
    """An image file; or, if `rows` is set, so many rows of a Parquet file from `first` on."""

    path: bytes  # as the filesystem has it, because not every name is UTF-8
    first: int | None = None
    rows: int | None = None

    @property
    def images(self) -> int:
        return 1 if self.rows is None else self.rows


class Columns(NamedTuple):
    """The columns of a Parquet source. None: they are found by type and name."""

    image: str | None = None
    name: str | None = None


FOUND = Columns()


def parts(found: Source, size: int, columns: Columns) -> Iterator[list[Entry]]:
    """The inputs in parts of about `size` images: image files together, Parquet files cut by their row groups."""
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
    """Whole row groups together, up to `size` rows. A larger group is cut into equal pieces, and each of these reads
    the rows before it too.
    """
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

    # Buffered, not read ahead: a row group of photographs can be larger than the memory.
    return ParquetFile(file.path, filesystem=file.files, buffer_size=1 << 20, pre_buffer=False)


Leaf = tuple[str, ...]  # a column, or a field of a struct


def _columns(schema: Schema, wanted: Columns, where: str) -> tuple[Leaf, Leaf | None]:
    """The column of images and the one that names them; for a struct with `bytes` and `path`, as Hugging Face has it,
    those fields.
    """
    from pyarrow import types

    def bytes_in(field: Field) -> Leaf | None:
        if types.is_binary(field.type) or types.is_large_binary(field.type):
            return (field.name,)
        if types.is_struct(field.type) and any(inner.name == "bytes" for inner in field.type):
            return (field.name, "bytes")
        return None

    for name in wanted:
        if name is not None and name not in schema.names:
            raise Usage(f"{where} has no column {name!r}; it has {', '.join(schema.names)}")
    leaves = [leaf for field in schema if wanted.image in (None, field.name) and (leaf := bytes_in(field))]
    if len(leaves) != 1:
        what = (
            f"{len(leaves)} columns of bytes ({', '.join(leaf[0] for leaf in leaves)})" if leaves else "no such column"
        )
        raise Usage(f"{where}: the images must be in one column of bytes, and it has {what}; --image-column names one")
    image = leaves[0]
    if wanted.name is not None:
        return image, (wanted.name,)
    if len(image) == 2 and any(inner.name == "path" for inner in schema.field(image[0]).type):
        return image, (image[0], "path")
    return image, next(((name,) for name in NAMES if name in schema.names and name != image[0]), None)


# --- the list ---------------------------------------------------------------------------------------------------------


def write_list(
    found: Iterable[list[Entry]], folder: Place, progress: Callable[[int], None] = lambda _: None
) -> tuple[int, int]:
    """Write the parts to `folder`, each as a row group. Returns how many parts and images there are."""
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
    """The name of every input and a function that gives its bytes; always exactly as many as were listed."""
    from pyarrow import ArrowException

    for entry in entries:
        file = base._replace(path=os.fsdecode(entry.path))
        if entry.first is None:
            # In a name that is not UTF-8, the other bytes are shown as escapes.
            yield base.prefix + entry.path.decode("utf-8", "backslashreplace"), partial(_read, file, max_bytes)
            continue
        done = 0
        try:
            for row in _rows(file, entry, columns, max_bytes):
                yield row
                done += 1
        except (ArrowException, OSError) as error:
            for number in range(entry.first + done, entry.first + entry.images):
                yield f"{file}#{number}", partial(_fail, f"the Parquet file cannot be read: {error}")


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
    for field in leaf[1:]:  # a field of a struct, which may be null
        values = [None if value is None else value[field] for value in values]
    return values


def _given(body: bytes, max_bytes: int) -> bytes:
    _check_size(len(body), max_bytes)
    return body
