"""What every command line here shares: one-line errors, exit statuses, `--debug`, progress bars, types of options."""

from __future__ import annotations

import argparse
import errno
import math
import sys
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any, TypeVar

T = TypeVar("T")


class Failure(Exception):
    """The work failed, but not by a defect of ours; the message names the repair. Exit status 1."""

    status = 1


class Usage(Failure):
    """The command was asked for something that does not exist. Exit status 2, as argparse does."""

    status = 2


def parser(prog: str, description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser with an example below its options and the `--debug` switch."""
    arguments = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    arguments.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return arguments


class Commands:
    """The commands of a parser, each with its own example; the first line of `about` is its line in the list."""

    def __init__(self, of: argparse.ArgumentParser) -> None:
        self._prog, self._parsers = of.prog, of.add_subparsers(required=True, metavar="COMMAND")

    def add(
        self, name: str, call: Callable[[argparse.Namespace], int | None], about: str, example: str
    ) -> argparse.ArgumentParser:
        command = self._parsers.add_parser(
            name,
            help=about.partition("\n")[0],
            description=about,
            epilog=f"example:\n  {self._prog} {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.set_defaults(call=call)
        return command


def run(arguments: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse, call the `call` that the parser set, and turn a `Failure` into one line on stderr and its exit status."""
    options = arguments.parse_args(argv)
    call: Callable[[argparse.Namespace], int | None] = options.call
    try:
        status = call(options) or 0
        sys.stdout.flush()  # so that a full disk fails here, and not when the interpreter ends
        return status
    except (Failure, KeyboardInterrupt, OSError) as error:
        if options.debug:
            raise
        if isinstance(error, Failure):
            print(f"{arguments.prog}: {' '.join(str(error).split())}", file=sys.stderr)
            return error.status
        if isinstance(error, BrokenPipeError):
            # The reader (for example `head`) went away; keep the interpreter from reporting that at exit.
            sys.stdout = None
            return 0
        if isinstance(error, OSError):
            if (why := unwritable(error)) is None:
                raise
            sys.stdout = None  # because it may be what cannot be written
            print(f"{arguments.prog}: {why}", file=sys.stderr)
            return 1
        print(f"{arguments.prog}: interrupted; what was finished is kept", file=sys.stderr)
        return 130


def unwritable(error: OSError) -> str | None:
    """What to do about a file that cannot be written, as one line; None if the error is about something else."""
    place = f"cannot write {error.filename}" if error.filename else "cannot write a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No usable temporary directory" in str(error):
        return f"{place}: {error.strerror}; free some space, or name a folder for temporary files in TMPDIR"
    if error.errno in (errno.EROFS, errno.EACCES):
        return f"{place}: {error.strerror}; choose a place where you may write"
    return None


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Yield `items` and show a progress bar on stderr, if stderr is a terminal."""
    with Bar(description, len(items) if total is None and isinstance(items, Sized) else total) as bar:
        for item in items:
            yield item
            bar.advance()


class Bar:
    """A progress bar on stderr for work that is not a loop; with `total` None it only shows that work goes on."""

    def __init__(self, description: str, total: float | None = None, *, bytes_: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)
        columns: tuple[Any, ...] = (TextColumn("{task.description}"), BarColumn())
        columns += (
            (DownloadColumn(),) if bytes_ else (TextColumn("{task.completed:g}/{task.total:g}"),) if total else ()
        )
        self._progress = Progress(
            *columns, TimeRemainingColumn(), console=console, transient=True, disable=not console.is_terminal
        )
        self._task = self._progress.add_task(description, total=total)

    def __enter__(self) -> Bar:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def advance(self, amount: float = 1) -> None:
        self._progress.advance(self._task, amount)

    def describe(self, description: str) -> None:
        self._progress.update(self._task, description=description)


def table(rows: Sequence[Sequence[object]], header: Sequence[str], right: Iterable[int] = ()) -> str:
    """`rows` under `header` in aligned columns; the columns numbered in `right` are aligned to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    aligned = set(right)
    return "\n".join(
        "  ".join(
            c.rjust(w) if i in aligned else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


# --- types of options -------------------------------------------------------------------------------------------------


def words(text: str) -> list[str]:
    items = [word for word in text.split(",") if word]
    if not items:
        raise argparse.ArgumentTypeError("expected a comma-separated list")
    return items


def positives(text: str) -> list[float]:
    return [positive(word) for word in words(text)]


def positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def positive_integers(text: str) -> list[int]:
    values = [natural(word) for word in words(text)]
    if 0 in values:
        raise argparse.ArgumentTypeError("expected integers from 1")
    return values


def positive_integer(text: str) -> int:
    if "," in text or not (value := natural(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1")
    return value


def natural(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a non-negative integer")
    return int(text)
