"""`python -m tests.fuzzing TARGET [--seconds N] [--seed N] [--keep] [FILE...]`: fuzz, or run files again."""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.fuzzing.run import ROOT, fuzz, keep, replay
from tests.fuzzing.target import NAMES

FINDINGS = ROOT / ".podium" / "fuzzing"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzzing", description="Fuzz what reads a client's bytes.")
    parser.add_argument("target", choices=NAMES)
    parser.add_argument("files", nargs="*", type=Path, help="run these instead, each once")
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0, help="0: another one each time")
    parser.add_argument("--keep", action="store_true", help="then add to the kept corpus what reaches something new")
    given = parser.parse_args()
    folder = FINDINGS / given.target
    if given.files:
        found = replay(given.target, given.files, folder)
    else:
        found = fuzz(given.target, given.seconds, folder, given.seed, folder / "corpus")
        if given.keep and found is None:
            found = keep(given.target, folder / "corpus", folder)
    print(found or "nothing found")
    return 0 if found is None else 1


if __name__ == "__main__":
    raise SystemExit(main())
