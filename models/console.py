"""What every command line here shares: one-line errors, exit codes, `--debug`, progress bars."""

from __future__ import annotations

import argparse
import errno
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
