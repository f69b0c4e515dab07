"""python -m export: from a network to artifacts that are proven to give the same answers."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export import own
from export.files import ENGINES, PLANS, PRECISIONS, Order, make
from models import SETS, expand
from models.console import Failure, Usage, parser, run, table

if TYPE_CHECKING:
    from models.weights import Network
    from serving.artifact import Artifact

ACTIONS = ("list", "show", "verify", "evaluate", "triton")


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    calls = dict(zip(ACTIONS, (listing, show, verify, evaluate, triton), strict=True))
    if argv and argv[0] in ACTIONS:
        return run(action_parser(argv[0], calls[argv[0]]), argv[1:])
    return run(export_parser(), argv)


def export_parser() -> argparse.ArgumentParser:
    arguments = parser(
        "python -m export",
        "Export networks to ONNX, prove that they answer as in PyTorch, and save them in BentoML's model store.\n"
        "Also: python -m export list | show TAG | verify TAG | evaluate TAG --images DIR | triton TAG --out DIR",
        "python -m export resnet50 squeezenet1_1 --weights auto",
    )
    add = arguments.add_argument
    add("networks", nargs="*", metavar="NETWORK", help="names from `python -m models list`")
    add("--set", choices=SETS, help="a whole set of networks")
    add("--weights", default="auto", help="auto (default), pretrained, untrained, or a .safetensors or .pth file")
    add("--precision", default="fp32", help=f"comma-separated, of {', '.join(PRECISIONS)} (default fp32)")
    add("--engine", default="", help=f"comma-separated, of {', '.join(ENGINES)} (default: those installed)")
    add("--max-batch", type=int, default=64, help="the largest batch the file accepts (default 64)")
    add("--num-classes", type=int, help="how many classes a checkpoint of your own has")
    add("--labels", type=Path, help="the names of the classes: a text file, one on each line, or a JSON list")
    add("--images", type=Path, help="the folder of photographs that judge the files (default: the examples)")
    add("--calibration", type=Path, help="the folder of photographs that calibrate INT8")
    add("--name", help="the name of the artifact (default: the network's or the file's)")
    add(
        "--tune",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the engines and precisions here for some seconds, and record the fastest for serving (default)",
    )
    add("--workspace-mb", type=int, default=4096, help="memory TensorRT may use to build (default 4096)")
    add("--optimization-level", type=int, choices=range(6), default=3, help="TensorRT's, 0 to 5 (default 3)")
    add("--module", metavar="MODULE:CALLABLE", help="your own network: package.module:callable or file.py:callable")
    add("--onnx", type=Path, metavar="FILE", help="a classifier that others exported, opset 7 or newer")
    add("--as-traced", action="store_true", help="leave the graph as PyTorch traced it, to compare with")
    add("--force", action="store_true", help="export even what has not changed")
    foreign = arguments.add_argument_group("what a file given to --onnx does not say").add_argument
    foreign("--layout", choices=("NCHW", "NHWC"), help="where its channels are")
    foreign("--mean", type=_numbers, metavar="M,...", help="of its pixels, in units of full scale")
    foreign("--std", type=_numbers, metavar="S,...", help="of its pixels, in units of full scale")
    foreign("--resize", type=int, help="the short side before the crop (default: 256/224 of the crop)")
    foreign("--crop", type=int, help="the side of its input, if the file leaves it open")
    foreign("--interpolation", choices=("bilinear", "bicubic", "lanczos"), default="bilinear")
    arguments.set_defaults(call=export)
    return arguments


# Of each action: its description, and the example in its help.
TEXTS = {
    "list": ("The artifacts in the store.", "python -m export list"),
    "show": ("An artifact's manifest.", "python -m export show resnet50:latest"),
    "verify": (
        "Check every file of an artifact against its sha256, load it in each engine installed, and run it.",
        "python -m export verify resnet50",
    ),
    "evaluate": (
        "Top-1 and top-5 accuracy on labelled photographs: a folder for each synset, or a labels.json.",
        "python -m export evaluate squeezenet1_1 --images photographs/",
    ),
    "triton": ("A Triton model repository for an artifact.", "python -m export triton resnet50 --out triton-models"),
}


def action_parser(action: str, call: Callable[[argparse.Namespace], int]) -> argparse.ArgumentParser:
    arguments = parser(f"python -m export {action}", *TEXTS[action])
    arguments.set_defaults(call=call)
    add = arguments.add_argument
    if action in ("list", "evaluate"):
        add("--json", action="store_true", help="for machines")
    if action != "list":
        add("tag", metavar="TAG", help="NETWORK, NETWORK:latest or NETWORK:VERSION")
    if action == "verify":
        add("--images", type=Path, help="a folder of photographs (default: the examples)")
    if action == "triton":
        add("--out", type=Path, required=True, help="the folder of the model repository")
        add("--engine", default="auto", help="onnxruntime, tensorrt or auto (default)")
        add("--precision", default="auto", help="a precision the artifact has, or auto (default)")
        add("--gpu", action="store_true", help="run on an NVIDIA GPU")
    if action == "evaluate":
        add("--images", type=Path, required=True, help="a folder for each synset or label, or one with a labels.json")
        add("--engine", default="all", help="an engine, auto (what serving takes), or all (default)")
        add("--precision", default="all", help="a precision the artifact has, or all (default)")
        add("--predictions", type=Path, help="also write the top-5 of every photograph to this JSON file")
    return arguments


# --- export -----------------------------------------------------------------------------------------------------------


def export(options: argparse.Namespace) -> int:
    precisions, engines = _choices(options.precision, PRECISIONS, "precision"), _engines(options.engine)
    own_network = bool(options.module or options.onnx)
    if own_network and (options.networks or options.set or (options.module and options.onnx)):
        raise Usage("give one of these: names of networks, --set, --module, --onnx")
    names = [""] if own_network else expand(options.networks, options.set)
    check(options, precisions, engines, names)
    from models.weights import load, read_labels

    labels = read_labels(options.labels) if options.labels else ()
    classes = options.num_classes or (len(labels) or None)
    if labels and options.num_classes and len(labels) != options.num_classes:
        raise Usage(f"--labels has {len(labels)} names, --num-classes is {options.num_classes}")
    order = Order(
        precisions, engines, not options.engine, options.max_batch, options.calibration, options.images, options.tune,
        options.workspace_mb, options.optimization_level, options.as_traced, bool(options.module), options.force
    )  # fmt: skip
    failed = []
    for position, name in enumerate(names, start=1):
        started = time.monotonic()
        try:
            network = own.network(options, labels) if own_network else load(name, options.weights, classes, labels)
            network = own.named(network, options.name, options.as_traced)
            artifact, is_new = make(network, order, command(options, network))
        except Failure as error:
            if len(names) < 2 or isinstance(error, Usage) or options.debug:
                raise
            failed.append(name)
            print(f"python -m export: {name}: {error}", file=sys.stderr)
            continue
        of = f"[{position}/{len(names)}] " if len(names) > 1 else ""
        print(f"{of}{_result(artifact, precisions, time.monotonic() - started if is_new else None)}")
    if failed:
        raise Failure(f"{len(failed)} of {len(names)} networks failed: {', '.join(failed)}")
    return 0


def _result(artifact: Artifact, precisions: tuple[str, ...], seconds: float | None) -> str:
    """The line about an artifact that took `seconds` to make; None means that it was kept."""
    from export.tune import said

    tuning = artifact.manifest.get("tuning")
    parts = [
        artifact.tag,
        ", ".join(precisions),
        f"{artifact.weights.upper()} weights",
        "parity passed",
        *([said(tuning)] if tuning else []),
        "unchanged, kept" if seconds is None else f"{seconds:.0f} s",
    ]
    return "  ".join(parts)


# Options for an ONNX file of others, and options for building a TensorRT plan.
FOREIGN = ("layout", "mean", "std", "resize", "crop", "interpolation")
OF_PLANS = ("workspace_mb", "optimization_level")


def check(options: argparse.Namespace, precisions: tuple[str, ...], engines: tuple[str, ...], names: list[str]) -> None:
    """Raise `Usage` for options that contradict each other, and for an option that would have no effect."""
    plan_engines = {engine for engine, _ in PLANS}.intersection(engines)
    for engine in sorted(plan_engines):
        able = [p for e, p in PLANS if e == engine]
        if options.engine and not set(able) & set(precisions):
            raise Usage(f"{engine} runs {', '.join(able)}: add it to --precision")
    if options.max_batch < 1:
        raise Usage(f"--max-batch {options.max_batch} must be at least 1")
    if options.name is not None:
        if len(names) > 1:
            raise Usage(f"--name {options.name} names one artifact, but {len(names)} networks are asked for")
        own.check_name(options.name, names[0] or None)  # before anything is fetched
    idle = [(dest, "is for --onnx") for dest in FOREIGN if not options.onnx]
    idle += [(dest, "is for TensorRT: add --engine tensorrt") for dest in OF_PLANS if not plan_engines]
    idle += [("weights", "is for a network given by name")] if options.module or options.onnx else []
    idle += [("as_traced", "is for a network in PyTorch")] if options.onnx else []
    if options.images and "int8" not in precisions:
        idle.append(("calibration", "is for --precision int8, because --images has the photographs that judge"))
    for dest, why in idle:
        if dest in given(options):
            raise Usage(f"{flag(dest)} {why}; leave it out")


# Options that decide how a command runs but not what it makes, and those that the network's name replaces.
NOT_OF_THE_FILE = ("call", "debug", "force", "networks", "set")


def given(options: argparse.Namespace) -> dict[str, Any]:
    """The options of an export that differ from their defaults."""
    defaults = export_parser()
    return {dest: value for dest, value in vars(options).items() if value != defaults.get_default(dest)}


def flag(dest: str) -> str:
    return f"--{dest.replace('_', '-')}"


def command(options: argparse.Namespace, network: Network) -> str:
    """The command that makes `network`'s files again: every option that was given, and the weights that were used."""
    values = {dest: value for dest, value in given(options).items() if dest not in NOT_OF_THE_FILE}
    words = ["python", "-m", "export"]
    if not (options.module or options.onnx):
        words += [network.row.name] if network.row else []
        if network.weights.kind != "custom":
            values["weights"] = network.weights.kind  # because `auto` may give others another day
    for dest, value in values.items():
        if isinstance(value, bool):
            words.append(flag(dest) if value else flag(f"no_{dest}"))
            continue
        text = ",".join(map(repr, value)) if isinstance(value, tuple) else str(value)
        words += [f"{flag(dest)}={text}"] if text.startswith("-") else [flag(dest), text]
    return shlex.join(words)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _choices(text: str, allowed: tuple[str, ...], what: str) -> tuple[str, ...]:
    asked = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [part for part in asked if part not in allowed]
    if unknown or not asked:
        raise Usage(f"--{what} {text!r}: choose from {', '.join(allowed)}")
    return asked


def _engines(text: str) -> tuple[str, ...]:
    """The engines that `text` names, each of them installed, or all that can run here.

    An engine that builds plans only has to be installed, because a plan can be built for a GPU in another machine.
    """
    from serving.runtime import PLAN_ENGINES, available, unusable
    from serving.trt import load_module

    asked = _choices(text, ENGINES, "engine") if text else available()
    for engine in asked:
        if engine in PLAN_ENGINES:
            load_module(engine)
        elif engine not in available():
            raise Failure(unusable(engine))
    if not asked:
        raise Failure("no engine is installed that could run an export; pip install 'podium[cpu]'")
    return asked


# --- what is in the store ---------------------------------------------------------------------------------------------


def listing(options: argparse.Namespace) -> int:
    from export.store import artifacts
    from serving.artifact import defaults

    stored, meant = artifacts(), defaults()
    default = [artifact.tag in meant for artifact in stored]
    if options.json:
        rows = [
            {"tag": a.tag, "version": a.version, "exported": a.created.isoformat() if a.created else None, "default": d}
            | a.manifest
            for a, d in zip(stored, default, strict=True)
        ]
        print(json.dumps(rows, indent=1))
    elif not stored:
        print("no artifacts yet; `python -m export resnet50` makes one")
    else:
        print(table([_cells(a, d) for a, d in zip(stored, default, strict=True)], HEADER, right=(4, 6)))
    return 0


HEADER = ("tag", "default", "exported", "weights", "classes", "runs on", "MB", "architecture")


def _cells(artifact: Artifact, default: bool) -> tuple[object, ...]:
    return (
        artifact.tag,
        "yes" if default else "",
        artifact.exported,
        artifact.weights,
        artifact.classes,
        ", ".join(f"{e} {p}" for e, p in artifact.graphs()),
        f"{_size(artifact) / 1e6:.1f}",
        artifact.architecture or "your own",
    )


def _size(artifact: Artifact) -> int:
    return sum(record["size"] for record in artifact.manifest["files"].values())


def show(options: argparse.Namespace) -> int:
    from serving.artifact import find

    artifact = find(options.tag)
    print(json.dumps({"tag": artifact.tag, "folder": str(artifact.folder), **artifact.manifest}, indent=1))
    return 0


def verify(options: argparse.Namespace) -> int:
    from export.verify import verify as check
    from serving.artifact import find

    for line in check(find(options.tag), options.images):
        print(line)
    return 0


def evaluate(options: argparse.Namespace) -> int:
    from export.evaluate import evaluate as measure
    from export.evaluate import sides
    from serving.artifact import find

    artifact = find(options.tag)
    precision = "auto" if options.precision == "all" else options.precision
    auto = options.engine == "auto"
    pairs = [("auto", precision)] if auto else sides(artifact, options.engine, options.precision)
    results = [measure(artifact, options.images, *pair) for pair in pairs]
    if options.predictions:
        options.predictions.write_text(json.dumps(results[0].predictions, indent=1) + "\n", "utf-8")
    if options.json:
        print(json.dumps([result.record() for result in results], indent=1))
    else:
        rows = [(r.engine, r.precision, r.top1, r.top5) for r in results]
        print(f"{artifact.tag}  {artifact.weights.upper()} weights  {results[0].top1.images} images, 95 % intervals")
        print(table(rows, ("engine", "precision", "top-1", "top-5")))
    return 0


def triton(options: argparse.Namespace) -> int:
    from export.triton import write_repository
    from serving.artifact import find

    written = write_repository(find(options.tag), options.out, options.engine, options.precision, options.gpu)
    print(f"{written.folder}: {written.network} {written.engine} {written.precision}\nstart Triton on it:")
    print(f"  {written.command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
