"""Options that commands of several rooms share."""

from __future__ import annotations

import argparse


def of_one_artifact(
    command: argparse.ArgumentParser, tag: str = "TAG", what: str = "an artifact, as `python -m export list` shows it"
) -> None:
    """The options of a command that measures one artifact with one engine and precision."""
    command.add_argument("tag", metavar=tag, help=what)
    command.add_argument("--engine", default="auto", metavar="E", help="default: what serving would choose")
    command.add_argument("--precision", default="auto", metavar="P", help="default: what serving would choose")
