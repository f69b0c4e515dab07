"""python -m serving: classify without a server."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any

from models import console
from models.console import Usage


def main(argv: Sequence[str] | None = None) -> int:
    return console.run(parser(), argv)


def parser() -> argparse.ArgumentParser:
    program = console.parser(
        "python -m serving",
        "Classify without a server. (`bentoml serve` serves.)",
        "python -m serving bulk photographs/ --model resnet50 --out answers/",
    )
    commands = program.add_subparsers(required=True, metavar="COMMAND")
    about = (
        "Classify a folder, a glob or Parquet files of images into Parquet files, on this machine or on a Ray cluster."
    )
    bulk_ = commands.add_parser(
        "bulk",
        help=about,
        description=f"{about}\nThe same command continues a run that was stopped.",
        epilog="example:\n  python -m serving bulk 's3://bucket/**/*.jpg' --model resnet50 --out s3://bucket/answers",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bulk_.set_defaults(call=bulk)
    bulk_.add_argument("source", metavar="SOURCE", help="a folder, a glob in quotes, a file, or a URI such as s3://")
    bulk_.add_argument("--model", required=True, metavar="TAG", help="an artifact, as `python -m export list` shows it")
    bulk_.add_argument("--out", required=True, metavar="DIR", help="the folder for the answers, or a URI")
    bulk_.add_argument(
        "--engine", metavar="E", help="default: as serving chooses (PODIUM_ENGINE, else what tuning chose)"
    )
    bulk_.add_argument("--precision", metavar="P", help="default: as serving chooses")
    bulk_.add_argument("--top-k", type=int, metavar="N", help="classes of an answer (default: 5)")
    bulk_.add_argument("--part-size", type=int, metavar="N", help="images in one task and its file (default: 256)")
    bulk_.add_argument(
        "--image-column",
        metavar="NAME",
        help="the column of images in Parquet files (default: the only one with bytes)",
    )
    bulk_.add_argument(
        "--id-column", metavar="NAME", help="the column that names an image (default: path, id, filename, ...)"
    )
    bulk_.add_argument("--ray-address", metavar="HOST:PORT", help="a Ray cluster (default: Ray on this machine)")
    bulk_.add_argument(
        "--cores", type=int, default=0, metavar="N", help="cores of each actor, which has one engine (default: 1)"
    )
    return program


def bulk(options: argparse.Namespace) -> int:
    for name in ("top_k", "part_size", "cores"):
        if (value := getattr(options, name)) is not None and value < (0 if name == "cores" else 1):
            raise Usage(f"--{name.replace('_', '-')} {value} must be at least 1")
    from serving.artifact import find
    from serving.inputs import Columns
    from serving.settings import Settings, unknown

    for line in unknown(os.environ):
        print(f"python -m serving bulk: {line}", file=sys.stderr)
    settings, artifact = Settings.read(os.environ), find(options.model)
    from serving.bulk import PART_SIZE, classify, job

    wanted = job(
        artifact,
        options.source,
        engine=options.engine or settings.engine,
        precision=options.precision or settings.precision,
        top_k=options.top_k,
        part_size=options.part_size or PART_SIZE,
        columns=Columns(options.image_column, options.id_column),
        image=settings.image,
        max_bytes=settings.max_body,
    )
    summary = classify(wanted, artifact, options.source, options.out, address=options.ray_address, cores=options.cores)
    print(final(summary, options.out))
    return 0


def final(summary: dict[str, Any], out: str) -> str:
    ran, errors = summary["this_run"], summary["errors"]
    said = f"{summary['images']:,} images"
    if before := summary["images"] - ran["images"]:
        said += f", {before:,} of them done before"
    if ran["images"]:
        said += f"; {ran['images']:,} in {ran['seconds']:,.1f} s, {ran['images_per_second']:,.1f} images/s"
    which = ", ".join(f"{count:,} {code}" for code, count in errors.items()) or "none"
    return f"{said}; errors: {which}; {out}"


if __name__ == "__main__":
    sys.exit(main())
