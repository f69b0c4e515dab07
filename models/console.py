"""What every command line here shares: one-line errors, exit codes, `--debug`, progress bars."""

from __future__ import annotations

import argparse
import errno
import math
import sys
from collections.abc import Callable, Iterable, Sequence, Sized
from typing import Any, TypeVar

T = TypeVar("T")


class Failure(Exception):
    """The work failed, through no defect of ours; the message names the repair. Exit status 1."""

    status = 1


class Usage(Failure):
    """The command was asked for something that does not exist. Exit status 2, as argparse does."""

    status = 2


def parser(prog: str, description: str, example: str) -> argparse.ArgumentParser:
    """An argument parser with an example below its options and the `--debug` switch."""
    made = argparse.ArgumentParser(
        prog=prog,
        description=description,
        epilog=f"example:\n  {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("--debug", action="store_true", help="show the traceback of an error")
    return made


class Commands:
    """The commands of a parser, each with an example of its own."""

    def __init__(self, of: argparse.ArgumentParser) -> None:
        self._prog, self._made = of.prog, of.add_subparsers(required=True, metavar="COMMAND")

    def add(
        self, name: str, call: Callable[[argparse.Namespace], int], about: str, example: str
    ) -> argparse.ArgumentParser:
        made = self._made.add_parser(
            name,
            help=about.partition("\n")[0],
            description=about,
            epilog=f"example:\n  {self._prog} {name} {example}",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        made.set_defaults(call=call)
        return made


def run(arguments: argparse.ArgumentParser, argv: Sequence[str] | None = None) -> int:
    """Parse, call the `call` that the parser set, and turn a `Failure` into one line on stderr and its exit status."""
    options = arguments.parse_args(argv)
    call: Callable[[argparse.Namespace], int | None] = options.call
    try:
        status = call(options) or 0
        sys.stdout.flush()  # a disk that is full says so here, and not when the interpreter ends
        return status
    except (Failure, KeyboardInterrupt, OSError) as error:
        if options.debug:
            raise
        if isinstance(error, Failure):
            print(f"{arguments.prog}: {' '.join(str(error).split())}", file=sys.stderr)
            return error.status
        if isinstance(error, BrokenPipeError):
            # The reader (`head`, say) went away; keep the interpreter from complaining about it at exit.
            sys.stdout = None
            return 0
        if isinstance(error, OSError):
            if (why := unwritable(error)) is None:
                raise
            sys.stdout = None  # which may be what cannot be written
            print(f"{arguments.prog}: {why}", file=sys.stderr)
            return 1
        print(f"{arguments.prog}: interrupted; what was finished is kept", file=sys.stderr)
        return 130


def unwritable(error: OSError) -> str | None:
    """What to do where a file cannot be written, as one line; None where the error is about something else."""
    place = f"cannot write {error.filename}" if error.filename else "cannot write a file"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG) or "No usable temporary directory" in str(error):
        return f"{place}: {error.strerror}; free some space, or name a folder for temporary files in TMPDIR"
    if error.errno in (errno.EROFS, errno.EACCES):
        return f"{place}: {error.strerror}; choose a place that may be written to"
    return None


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Yield `items` behind a progress bar on stderr; silent where stderr is no terminal."""
    with Bar(description, len(items) if total is None and isinstance(items, Sized) else total) as bar:
        for item in items:
            yield item
            bar.advance()


class Bar:
    """A progress bar on stderr for work that is not a loop; `total` None shows that something moves."""

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
    """`rows` under `header` in aligned columns; the columns numbered in `right` are set to the right."""
    cells = [[str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    aligned = set(right)
    return "\n".join(
        "  ".join(
            c.rjust(w) if i in aligned else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in cells
    )


# What an option's text may be


def words(text: str) -> list[str]:
    found = [word for word in text.split(",") if word]
    if not found:
        raise argparse.ArgumentTypeError("expected a comma-separated list")
    return found


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
    found = [natural(word) for word in words(text)]
    if 0 in found:
        raise argparse.ArgumentTypeError("expected integers from 1")
    return found


def positive_integer(text: str) -> int:
    [found] = positive_integers(text) if "," not in text else [0]
    if not found:
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer from 1")
    return found


def natural(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a non-negative integer")
    return int(text)
