"""python -m export: from a network to artifacts that are proven the same network."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import importlib.util
import json
import shlex
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models import SETS, expand
from models.console import Failure, Usage, parser, run, table

if TYPE_CHECKING:
    from export.parity import Inputs, Verdict
    from export.quantize import Calibrated, Recipe
    from models.preprocess import Label
    from models.weights import Network
    from serving.runtime import Artifact, Runtime

PRECISIONS = ("fp32", "int8", "fp16")
CPU_ENGINES = ("onnxruntime", "openvino")
ENGINES = (*CPU_ENGINES, "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")

# The engines that run an ONNX file as it is. No CPU engine is offered float16: it is cast back there, and no faster.
ONNX_ENGINES = {"fp32": (*CPU_ENGINES, "onnxruntime-cuda"), "fp16": ("onnxruntime-cuda",)}

# The ONNX file that the plan of each engine and precision is built from; TensorRT-RTX is offered in fp16 alone.
PLANS = {
    ("tensorrt", "fp32"): "fp32.onnx",
    ("tensorrt", "fp16"): "fp16.onnx",
    ("tensorrt", "int8"): "int8-tensorrt.onnx",
    ("tensorrt-rtx", "fp16"): "fp16.onnx",
}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    actions = {"list": listing, "show": show, "verify": verify, "evaluate": evaluate, "triton": triton}
    if argv and argv[0] in actions:
        return run(action_parser(argv[0], actions[argv[0]]), argv[1:])
    return run(export_parser(), argv)


def export_parser() -> argparse.ArgumentParser:
    made = parser(
        "python -m export",
        "Export networks to ONNX, prove them the same as in PyTorch, and save them in BentoML's model store.\n"
        "Also: python -m export list | show TAG | verify TAG | evaluate TAG --images DIR | triton TAG --out DIR",
        "python -m export resnet50 squeezenet1_1 --weights auto",
    )
    made.add_argument("networks", nargs="*", metavar="NETWORK", help="names from `python -m models list`")
    made.add_argument("--set", choices=SETS, help="a whole set of networks")
    made.add_argument(
        "--weights", default="auto", help="auto (default), pretrained, untrained, or a .safetensors or .pth file"
    )
    made.add_argument("--precision", default="fp32", help=f"comma-separated, of {', '.join(PRECISIONS)} (default fp32)")
    made.add_argument(
        "--engine", default="", help="comma-separated, of onnxruntime, openvino (default: those installed)"
    )
    made.add_argument("--max-batch", type=int, default=64, help="the largest batch the file accepts (default 64)")
    made.add_argument("--num-classes", type=int, help="how many classes a checkpoint of your own has")
    made.add_argument("--labels", type=Path, help="the names of the classes: a text file, one per line, or a JSON list")
    made.add_argument(
        "--images", type=Path, help="the folder of photographs parity is judged on (default: the examples)"
    )
    made.add_argument("--calibration", type=Path, help="the folder of photographs INT8 is calibrated on")
    made.add_argument(
        "--tune", action="store_true", help="measure the engines and precisions here and record the fastest for serving"
    )
    made.add_argument("--workspace-mb", type=int, default=4096, help="memory TensorRT may use to build (default 4096)")
    made.add_argument(
        "--optimization-level", type=int, choices=range(6), default=3, help="TensorRT's, 0 to 5 (default 3)"
    )
    made.add_argument(
        "--module", metavar="MODULE:CALLABLE", help="a network of your own: package.module:callable or file.py:callable"
    )
    made.add_argument("--onnx", type=Path, metavar="FILE", help="a classifier exported by others, opset 7 and up")
    foreign = made.add_argument_group("what a file given to --onnx does not say")
    foreign.add_argument("--name", help="what to call it (default: the file's name)")
    foreign.add_argument("--layout", choices=("NCHW", "NHWC"), help="where its channels are")
    foreign.add_argument("--mean", type=_numbers, metavar="M,...", help="of its pixels, in units of full scale")
    foreign.add_argument("--std", type=_numbers, metavar="S,...", help="of its pixels, in units of full scale")
    foreign.add_argument("--resize", type=int, help="the short side before the crop (default: 256/224 of the crop)")
    foreign.add_argument("--crop", type=int, help="the side of its input, where the file leaves it open")
    foreign.add_argument("--interpolation", choices=("bilinear", "bicubic", "lanczos"), default="bilinear")
    made.add_argument("--as-traced", action="store_true", help="leave out what is lowered for engines, to compare with")
    made.add_argument("--force", action="store_true", help="export again what has not changed")
    made.set_defaults(call=export)
    return made


def action_parser(action: str, call: Any) -> argparse.ArgumentParser:
    texts = {
        "list": ("The artifacts in the store.", "python -m export list"),
        "show": ("An artifact's manifest.", "python -m export show resnet50:latest"),
        "verify": (
            "Check every file of an artifact against its sha256, load it in each engine installed, and run it.",
            "python -m export verify resnet50",
        ),
        "evaluate": (
            "Top-1 and top-5 accuracy on labelled photographs: a folder per synset, or a labels.json.",
            "python -m export evaluate squeezenet1_1 --images photographs/",
        ),
        "triton": (
            "A Triton model repository for an artifact.",
            "python -m export triton resnet50 --out triton-models",
        ),
    }
    made = parser(f"python -m export {action}", *texts[action])
    made.set_defaults(call=call)
    if action == "list":
        made.add_argument("--json", action="store_true", help="for machines")
        return made
    made.add_argument("tag", metavar="TAG", help="NETWORK, NETWORK:latest or NETWORK:VERSION")
    if action == "verify":
        made.add_argument("--images", type=Path, help="a folder of photographs (default: the examples)")
    if action == "triton":
        made.add_argument("--out", type=Path, required=True, help="the folder of the model repository")
        made.add_argument("--engine", default="auto", help="onnxruntime, tensorrt or auto (default)")
        made.add_argument("--precision", default="auto", help="a precision the artifact has, or auto (default)")
        made.add_argument("--gpu", action="store_true", help="run on an NVIDIA GPU")
    if action == "evaluate":
        made.add_argument(
            "--images", type=Path, required=True, help="folder per synset or per label, or with a labels.json"
        )
        made.add_argument("--engine", default="all", help="an engine, auto (what serving takes), or all (default)")
        made.add_argument("--precision", default="all", help="a precision the artifact has, or all (default)")
        made.add_argument("--predictions", type=Path, help="also write the top-5 of every photograph to this JSON file")
        made.add_argument("--json", action="store_true", help="for machines")
    return made


# --- export -----------------------------------------------------------------------------------------------------------


def export(options: argparse.Namespace) -> int:
    precisions, engines = _choices(options.precision, PRECISIONS, "precision"), _engines(options.engine)
    for engine in sorted({engine for engine, _ in PLANS}.intersection(engines)):
        able = [p for e, p in PLANS if e == engine]
        if options.engine and not set(able) & set(precisions):
            raise Usage(f"{engine} runs {', '.join(able)}: add it to --precision")
    if options.max_batch < 1:
        raise Usage(f"--max-batch {options.max_batch} must be at least 1")
    own = options.module or options.onnx
    if own and (options.networks or options.set or (options.module and options.onnx)):
        raise Usage("--module and --onnx take the place of a network's name; give one of the three")
    names = [] if own else expand(options.networks, options.set)
    from models.weights import load, read_labels

    labels = read_labels(options.labels) if options.labels else ()
    classes = options.num_classes or (len(labels) or None)
    if labels and options.num_classes and len(labels) != options.num_classes:
        raise Usage(f"--labels has {len(labels)} names, --num-classes is {options.num_classes}")
    failed = []
    for position, name in enumerate(names or [str(own)], start=1):
        started = time.monotonic()
        try:
            network = _own(options, labels) if own else load(name, options.weights, classes, labels)
            if options.as_traced:
                network = dataclasses.replace(network, name=f"{network.name}_traced")
            artifact, made = _export(network, precisions, engines, options)
        except Failure as error:
            if len(names) < 2 or isinstance(error, Usage) or options.debug:
                raise
            failed.append(name)
            print(f"python -m export: {name}: {error}", file=sys.stderr)
            continue
        took = f"{time.monotonic() - started:.0f} s" if made else "unchanged, kept"
        of = f"[{position}/{len(names)}] " if len(names) > 1 else ""
        print(f"{of}{artifact.tag}  {', '.join(precisions)}  {artifact.weights.upper()} weights  parity passed  {took}")
    if failed:
        raise Failure(f"{len(failed)} of {len(names)} networks failed: {', '.join(failed)}")
    return 0


def _export(
    network: Network, precisions: tuple[str, ...], engines: tuple[str, ...], options: argparse.Namespace
) -> tuple[Artifact, bool]:
    """Write every file, hold each against the PyTorch original, and save them together.

    Gives the artifact, and whether it was made now: one that came from the same inputs is kept.
    """
    from export import store

    manifest = store.manifest_of(
        network.name,
        network.weights.record(),
        network.preprocess,
        network.classes,
        options.max_batch,
        network.row,
        params=sum(p.numel() for p in network.module.parameters()),
        macs=_macs(network),
    )
    images = Images(network, precisions, options)
    request = {
        "precisions": precisions,
        "engines": engines if options.engine else "all",
        "plans": [options.workspace_mb, options.optimization_level, str(store.gpu_name())],
        "tune": options.tune,
        "images": images.fingerprint(),
        "labels": [item.label for item in network.labels],
    }
    manifest["fingerprint"] = store.fingerprint(manifest, request)
    kept = None if options.force else store.unchanged(network.name, manifest["fingerprint"])
    if kept:
        return kept, False
    with tempfile.TemporaryDirectory(prefix="podium-") as folder:
        work = Work(network, Path(folder), images, engines, options)
        work.fp32()
        if "fp16" in precisions:
            work.fp16()
        if "int8" in precisions:
            work.int8()
        work.plans(precisions, options.workspace_mb, options.optimization_level)
        if "fp32" not in precisions:
            del work.records["fp32.onnx"]  # the others were made from it; it was not asked for
        command = _command(network, precisions, engines, options)
        manifest["files"] = {name: {**record, "command": command} for name, record in work.records.items()}
        if options.tune:
            from export.tune import tune

            manifest["tuning"] = tune(network.name, work.runnable(), network.preprocess.shape, options.max_batch)
        return store.save(manifest, {name: Path(folder) / name for name in work.records}, network.labels), True


def _macs(network: Network) -> int | None:
    """Multiply-accumulates of one image; None for someone else's graph, which has no layers of ours to count."""
    from export.from_onnx import Foreign
    from models.describe import count_macs

    if isinstance(network.module, Foreign):
        return None
    height, width, channels = network.preprocess.shape
    return count_macs(network.module, (channels, height, width))


class Images:
    """The photographs of one export: those it calibrates on, and others that judge it."""

    def __init__(self, network: Network, precisions: tuple[str, ...], options: argparse.Namespace) -> None:
        from export.evaluate import labelled
        from export.parity import photographs
        from export.quantize import CALIBRATION_IMAGES

        self.network = network
        self.folder: Path | None = options.calibration
        trained = network.weights.kind != "untrained"
        if "int8" in precisions and trained and self.folder is None:
            raise Failure(
                f"INT8 of trained weights is calibrated on photographs: pass --calibration DIR, with "
                f"{CALIBRATION_IMAGES} of them or more of the kind the network will see"
            )
        found = photographs(self.folder) if self.folder else []
        judges = photographs(options.images) if options.images else found[1::2]
        self.calibration = _spread(found if options.images else found[::2], CALIBRATION_IMAGES)
        self.judges = _spread(judges, JUDGES)
        self.truth: dict[Path, int] = {}
        source = options.images or self.folder
        if source is not None and (source / "labels.json").is_file():
            self.truth = dict(labelled(source, network.labels))

    def fingerprint(self) -> list[tuple[str, int]]:
        return [(path.name, path.stat().st_size) for path in (*self.calibration, *self.judges)]

    def inputs(self) -> Inputs:
        from export.parity import inputs

        return inputs(self.network.preprocess, self.judges, self.truth)

    def to_calibrate(self) -> Any:
        """uint8 [n, height, width, channels]: the photographs, or, for untrained weights without any, what we have."""
        import numpy as np
        import torch

        from export.parity import inputs, read
        from models.weights import SEED, pictures

        recipe = self.network.preprocess
        if self.calibration:
            return np.stack([read(path, recipe) for path in self.calibration])
        seeded = (pictures(recipe, torch.Generator().manual_seed(SEED)) * 255).byte().permute(0, 2, 3, 1).numpy()
        examples = inputs(recipe)
        return np.concatenate([examples.batch[: examples.counts()["photographs"]], seeded])


JUDGES = 128  # photographs at most: enough to tell 99 % from 97 %, and seconds for the largest network


def _spread(items: list[Path], count: int) -> list[Path]:
    """At most `count` of `items`, evenly spread, so that a folder sorted by class gives some of each."""
    return [items[i * len(items) // count] for i in range(count)] if len(items) > count else items


class Work:
    """The files of one export on their way to the store, each held against the PyTorch original."""

    def __init__(
        self, network: Network, folder: Path, images: Images, engines: tuple[str, ...], options: argparse.Namespace
    ) -> None:
        from export import parity

        max_batch = options.max_batch

        self.network, self.folder, self.max_batch = network, folder, max_batch
        self.engines, self.as_traced = engines, options.as_traced
        # Where no engines are named, the files of those that are not installed here are made as well.
        self.everything = not options.engine
        self.images, self.inputs = images, images.inputs()
        self.sizes = tuple(sorted({1, min(5, max_batch), min(8, max_batch)}))
        self.records: dict[str, dict[str, Any]] = {}
        self.reference = parity.scores(self._original(), self.inputs.batch, self.sizes, f"{network.name} in PyTorch")

    def _original(self) -> Any:
        import torch

        from export.to_onnx import Served

        served = Served(self.network.module, self.network.preprocess).eval()

        def run(batch: Any) -> Any:
            with torch.inference_mode():
                return served(torch.from_numpy(batch)).numpy()

        return run

    def _asked(self, engines: Iterable[str]) -> tuple[str, ...]:
        return tuple(engine for engine in engines if engine in self.engines)

    def fp32(self) -> None:
        from export.from_onnx import Foreign, wrap
        from export.to_onnx import to_onnx

        path = self.folder / "fp32.onnx"
        if isinstance(self.network.module, Foreign):
            wrap(self.network, path, self.max_batch)
        else:
            to_onnx(self.network, path, self.max_batch, as_traced=self.as_traced)
        weights = self.network.weights
        self.keep(path, "fp32", self._asked(ONNX_ENGINES["fp32"]), {"file": weights.origin, "sha256": weights.sha256})

    def fp16(self) -> None:
        """float16, for GPUs: run by ONNX Runtime, or built into a plan by TensorRT."""
        from export.from_onnx import Foreign
        from export.to_onnx import to_onnx

        path = self.folder / "fp16.onnx"
        if isinstance(self.network.module, Foreign):
            raise Failure(f"{self.network.name}: fp16 is exported from PyTorch alone; ask for fp32 and int8")
        to_onnx(self.network, path, self.max_batch, half=True)
        weights = self.network.weights
        self.keep(path, "fp16", self._asked(ONNX_ENGINES["fp16"]), {"file": weights.origin, "sha256": weights.sha256})

    def int8(self) -> None:
        """The INT8 file of every family of engines asked for; layers that break the gate stay in float."""
        from export.quantize import RECIPES, Calibrated, calibration_record
        from serving.runtime import sha256

        fp32, images = self.folder / "fp32.onnx", self.images.to_calibrate()
        calibrated = Calibrated(fp32, images, self.folder, f"calibrating {self.network.name}")
        for recipe in RECIPES.values():
            engines = self._asked(e for e in recipe.engines if e in CPU_ENGINES)
            if self.everything or set(recipe.engines) & set(self.engines):
                verdicts, left = self._quantize(calibrated, recipe, engines)
                extra = {"float_layers": left, "calibration": calibration_record(self.images.folder, len(images))}
                parent = {"file": fp32.name, "sha256": sha256(fp32)}
                self.keep(self.folder / recipe.file, "int8", engines, parent, extra, verdicts)

    def _quantize(
        self, calibrated: Calibrated, recipe: Recipe, engines: tuple[str, ...]
    ) -> tuple[dict[str, Verdict], list[str]]:
        """Quantize all of it, or all but the fewest groups of layers without which the gate passes.

        Gives the verdicts that passed, and the layers left in float.
        """
        from export import parity
        from export.quantize import groups_of
        from models.console import progress

        path, layers = self.folder / recipe.file, calibrated.layers()
        calibrated.quantize(path, recipe)
        verdicts = self.judge(path, "int8", engines)
        first = parity.worst(verdicts.values())
        if first.passed:
            return verdicts, []
        groups, harm = groups_of(list(layers)), []
        for group in progress(groups, f"which layers of {self.network.name} suffer"):
            calibrated.quantize(path, recipe, [layer for layer in layers if layer not in group])
            harm.append(parity.worst(self.judge(path, "int8", engines[:1]).values()).cosine)
        ranked = sorted(range(len(groups)), key=harm.__getitem__)
        for count in range(1, len(groups) // 2 + 1):
            left = [layer for i in ranked[:count] for layer in groups[i]]
            calibrated.quantize(path, recipe, left)
            verdicts = self.judge(path, "int8", engines)
            if parity.worst(verdicts.values()).passed:
                return verdicts, [layers[layer] for layer in left]
        worst = [layers[layer] for layer in groups[ranked[0]]]
        raise Failure(
            f"{self.network.name} int8 is not the same network: {'; '.join(first.failures)}; worst image: "
            f"{first.worst_image}; most damaging layers: {worst[0]} to {worst[-1]}; leaving half of the layers "
            "in float does not mend it. Calibrate on more photographs, or on the kind it will see. Nothing was saved."
        )

    def judge(self, path: Path, precision: str, engines: tuple[str, ...]) -> dict[str, Verdict]:
        """`path` against the original in each of `engines`; in ONNX Runtime where it is made for a GPU."""
        from serving.runtime import ENGINES, cores

        return {
            engine: self._compare(ENGINES[engine](path, precision, cores()), precision)
            for engine in engines or ("onnxruntime",)
        }

    def _compare(self, runtime: Runtime, precision: str) -> Verdict:
        """The answers of `runtime`, which is closed after, against the original's."""
        from export import parity

        what = f"{self.network.name} {precision} in {runtime.engine}"
        answer = parity.scores(runtime.run, self.inputs.batch, self.sizes, what)
        runtime.close()
        limits = parity.limits(precision, self.network.weights.kind)
        return parity.compare(self.reference, answer, self.inputs, limits)

    def keep(
        self,
        path: Path,
        precision: str,
        engines: tuple[str, ...],
        parent: dict[str, Any],
        extra: dict[str, Any] | None = None,
        verdicts: dict[str, Verdict] | None = None,
    ) -> None:
        """Record `path` for the manifest, or raise `Failure` where it is not the same network.

        `verdicts` are those of `judge` where it was asked already.
        """
        from export import parity
        from export.to_onnx import OPSET
        from serving.runtime import sha256

        verdicts = verdicts or self.judge(path, precision, engines)
        for engine, verdict in verdicts.items():
            self._demand(verdict, precision, engine)
        self.records[path.name] = {
            "engines": list(engines),
            "precision": precision,
            "opset": OPSET,
            "parent": parent,
            "sha256": sha256(path),
            **(extra or {}),
            "parity": {
                **parity.worst(verdicts.values()).record(),
                "by_engine": {engine: verdict.record() for engine, verdict in verdicts.items()},
            },
        }

    def plans(self, precisions: tuple[str, ...], workspace_mb: int, optimization_level: int) -> None:
        """A TensorRT plan for every such engine and precision asked for, judged where there is a GPU to run it."""
        from export.to_engine import buckets_up_to, build_plan, plan_name
        from models.weights import cache
        from serving.runtime import ENGINES, available, sha256

        for (engine, precision), name in PLANS.items():
            if engine in self.engines and precision in precisions:
                source = self.folder / name
                unnamed = self.folder / "building.plan"
                made = build_plan(
                    source,
                    unnamed,
                    engine,  # type: ignore[arg-type]  # PLANS holds just these
                    precision,
                    self.network.preprocess.shape,
                    buckets_up_to(self.max_batch),
                    workspace_mb=workspace_mb,
                    optimization_level=optimization_level,
                    timing_cache=cache() / "tensorrt.timings",
                )
                path = unnamed.rename(self.folder / plan_name(made))
                verdict: dict[str, Any] = {
                    "verdict": "not run",
                    "reason": "no GPU here; its ONNX file passed",
                }
                if engine in available():
                    judged = self._compare(ENGINES[engine](path, precision, 1, made.record()), precision)
                    self._demand(judged, precision, engine)
                    verdict = judged.record()
                self.records[path.name] = {
                    "engines": [engine],
                    "precision": precision,
                    "parent": {"file": source.name, "sha256": made.onnx_sha256},
                    "sha256": sha256(path),
                    "plan": made.record(),
                    "parity": verdict,
                }

    def _demand(self, verdict: Verdict, precision: str, engine: str) -> None:
        if not verdict.passed:
            raise Failure(
                f"{self.network.name} {precision} is not the same network in {engine}: "
                f"{'; '.join(verdict.failures)}; worst image: {verdict.worst_image}. Nothing was saved."
            )

    def runnable(self) -> dict[tuple[str, str], Path]:
        """The ONNX file for each (engine, precision) that tuning compares."""
        return {
            (engine, record["precision"]): self.folder / name
            for name, record in self.records.items()
            for engine in record["engines"]
            if engine in CPU_ENGINES
        }


def _command(
    network: Network, precisions: tuple[str, ...], engines: tuple[str, ...], options: argparse.Namespace
) -> str:
    """The command that makes this file again, with what was resolved in place of what was asked."""
    words = ["python", "-m", "export"]
    if options.onnx:
        words += ["--onnx", options.onnx.name]
        for flag in ("name", "layout", "resize", "crop", "interpolation"):
            value = getattr(options, flag)
            words += [f"--{flag}", str(value)] if value else []
        for flag in ("mean", "std"):
            value = getattr(options, flag)
            words += [f"--{flag}", ",".join(f"{v:g}" for v in value)] if value else []
    elif options.module:
        words += ["--module", options.module]
    else:
        words.append(network.name)
        kind = network.weights.kind
        words += ["--weights", Path(options.weights).name if kind == "custom" else kind]
    words += ["--precision", ",".join(precisions), "--engine", ",".join(engines), "--max-batch", str(options.max_batch)]
    words += ["--as-traced"] if options.as_traced else []
    words += ["--num-classes", str(options.num_classes)] if options.num_classes else []
    words += ["--labels", options.labels.name] if options.labels else []
    return shlex.join(words)


def _numbers(text: str) -> tuple[float, ...]:
    return tuple(float(part) for part in text.split(","))


def _own(options: argparse.Namespace, labels: Sequence[Label]) -> Network:
    """The network that --onnx or --module names."""
    if options.module:
        return _from_callable(options.module)
    from export.from_onnx import read

    return read(
        options.onnx,
        options.layout,
        options.mean,
        options.std,
        options.resize,
        options.crop,
        options.interpolation,
        labels,
        options.name,
    )


def _from_callable(reference: str) -> Network:
    """The `Network` that MODULE:CALLABLE gives; a bare nn.Module is taken to want ImageNet's recipe."""
    from torch import nn

    from models.weights import Network, Weights

    where, _, name = reference.partition(":")
    if not where or not name:
        raise Usage(f"--module {reference}: expected package.module:callable or file.py:callable")
    try:
        if where.endswith(".py"):
            found = importlib.util.spec_from_file_location(Path(where).stem, where)
            if found is None or found.loader is None or not Path(where).is_file():
                raise Usage(f"--module {where}: no such file")
            module = importlib.util.module_from_spec(found)
            found.loader.exec_module(module)
        else:
            module = importlib.import_module(where)
    except ImportError as error:
        raise Failure(f"--module {where}: {error}; is what it needs installed?") from error
    maker = getattr(module, name, None)
    if not callable(maker):
        raise Usage(f"--module {reference}: {where} has no callable {name!r}")
    made = maker()
    if isinstance(made, nn.Module):
        made = Network(name.lower(), made, Weights("custom", reference))
    if not isinstance(made, Network):
        raise Usage(
            f"--module {reference} gave {type(made).__name__}, expected a models.weights.Network or an nn.Module"
        )
    made.module.eval()
    return made


def _choices(text: str, allowed: tuple[str, ...], what: str) -> tuple[str, ...]:
    asked = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    unknown = [part for part in asked if part not in allowed]
    if unknown or not asked:
        raise Usage(f"--{what} {text!r}: choose of {', '.join(allowed)}")
    return asked


def _engines(text: str) -> tuple[str, ...]:
    """The engines named, each installed; or all that can run here. A plan can be built for a GPU that is elsewhere."""
    from serving.runtime import PLAN_ENGINES, available, load_module, unusable

    asked = _choices(text, ENGINES, "engine") if text else available()
    for engine in asked:
        if engine in PLAN_ENGINES:
            load_module(engine)
        elif engine not in available():
            raise Failure(unusable(engine))
    if not asked:
        raise Failure("no engine is installed to prove an export with; pip install 'podium[cpu]'")
    return asked


# --- what is in the store ---------------------------------------------------------------------------------------------


def listing(options: argparse.Namespace) -> int:
    from export.store import artifacts

    found = artifacts()
    if options.json:
        print(json.dumps([{"tag": a.tag, "version": a.version, **a.manifest} for a in found], indent=1))
    elif not found:
        print("no artifacts yet; `python -m export resnet50` makes one")
    else:
        rows = [
            (a.tag, ", ".join(f"{e} {p}" for e, p in a.graphs()), a.weights, f"{_size(a) / 1e6:.1f}") for a in found
        ]
        print(table(rows, ("tag", "runs on", "weights", "MB"), right=(3,)))
    return 0


def _size(artifact: Artifact) -> int:
    return sum(record["size"] for record in artifact.manifest["files"].values())


def show(options: argparse.Namespace) -> int:
    from serving.runtime import find

    artifact = find(options.tag)
    print(json.dumps({"tag": artifact.tag, "folder": str(artifact.folder), **artifact.manifest}, indent=1))
    return 0


def verify(options: argparse.Namespace) -> int:
    import numpy as np

    from export import parity
    from serving.runtime import PLAN_ENGINES, available, find, unusable
    from serving.runtime import open as open_runtime

    artifact = find(options.tag)
    for name in artifact.manifest["files"]:
        artifact.file(name)
    if len(artifact.labels) != artifact.classes:
        raise Failure(f"{artifact.tag}: {len(artifact.labels)} labels for {artifact.classes} classes; export it again")
    images = parity.inputs(artifact.preprocess, parity.photographs(options.images) if options.images else ())
    answers: dict[str, Any] = {}
    for (engine, precision), name in artifact.graphs().items():
        verdict = artifact.manifest["files"][name].get("parity", {}).get("verdict")
        if verdict != "pass" and not (engine in PLAN_ENGINES and verdict == "not run"):
            raise Failure(f"{artifact.tag}: {name} has no passed parity on record ({verdict}); export it again")
        if engine not in available():
            print(f"{name}  {engine} {precision}  sha256 checked, recorded parity: {verdict}; {unusable(engine)}")
            continue
        runtime = open_runtime(artifact, engine, precision)
        answer = parity.scores(runtime.run, images.batch, (1, 5), f"{artifact.tag} in {engine}")
        runtime.close()
        if answer.shape != (len(images.batch), artifact.classes) or not np.allclose(answer.sum(1), 1, atol=1e-3):
            raise Failure(f"{artifact.tag}: {engine} gives no probabilities: shape {answer.shape}; export it again")
        # Engines that run the same file must agree here too, not only on the machine that exported it.
        first = answers.setdefault(name, answer)
        again = parity.compare(first, answer, images, parity.limits(precision, artifact.weights))
        if not again.passed:
            raise Failure(f"{artifact.tag}: {engine} disagrees on {name} on this machine: {'; '.join(again.failures)}")
        print(f"{name}  {engine} {precision}  sha256 and {len(images.batch)} images checked, parity passed")
    print(f"{artifact.tag} is whole ({artifact.weights.upper()} weights)")
    return 0


def evaluate(options: argparse.Namespace) -> int:
    from export.evaluate import evaluate as measure
    from export.evaluate import sides
    from serving.runtime import find

    artifact = find(options.tag)
    pairs = [("auto", "auto")] if options.engine == "auto" else sides(artifact, options.engine, options.precision)
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
    from serving.runtime import find

    made = write_repository(find(options.tag), options.out, options.engine, options.precision, options.gpu)
    print(f"{made.folder}: {made.network} {made.engine} {made.precision}\nstart Triton on it:\n  {made.command}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
