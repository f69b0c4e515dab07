"""Every file of one export: made, compared with the PyTorch original, and saved together or not at all."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export import parity, store
from export.images import Images
from export.parity import Run, Verdict
from export.quantize import RECIPES, Calibrated, Recipe, calibration_record, groups_of
from export.to_engine import buckets_up_to, build_plan, plan_name
from export.tune import tune
from models.console import Failure, progress
from models.weights import Network, cache
from serving import runtime
from serving.artifact import Artifact, FileRecord, Parent, sha256
from serving.engines import Runtime

if TYPE_CHECKING:
    from models.preprocess import Pixels
    from serving.engines import Scores

PRECISIONS = ("fp32", "int8", "fp16")
CPU_ENGINES = ("onnxruntime", "openvino")
ENGINES = (*CPU_ENGINES, "onnxruntime-cuda", "tensorrt", "tensorrt-rtx")

# The engines that run an ONNX file as it is. No CPU engine is offered float16, because it casts the values back and is
# not faster.
ONNX_ENGINES = {"fp32": (*CPU_ENGINES, "onnxruntime-cuda"), "fp16": ("onnxruntime-cuda",)}

# The ONNX file that the plan of each engine and precision is built from. TensorRT-RTX is offered in fp16 only.
PLANS = {
    ("tensorrt", "fp32"): "fp32.onnx",
    ("tensorrt", "fp16"): "fp16.onnx",
    ("tensorrt", "int8"): "int8-tensorrt.onnx",
    ("tensorrt-rtx", "fp16"): "fp16.onnx",
}


@dataclass(frozen=True)
class Order:
    """What one export is asked to make."""

    precisions: tuple[str, ...]
    engines: tuple[str, ...]
    all_engines: bool  # no engine was named: files are also made for engines that are not installed here
    max_batch: int
    calibration: Path | None
    photographs: Path | None  # that judge; None: half of those for calibration, else the examples
    tune: bool
    workspace_mb: int
    optimization_level: int
    as_traced: bool
    own_module: bool  # the network is the user's own code
    force: bool


def make(network: Network, order: Order, command: str) -> tuple[Artifact, bool]:
    """Write every file, compare each with the PyTorch original, and save them together with the `command` for it.

    Returns the artifact, and whether it was made now: an artifact that came from the same inputs is kept.
    """
    manifest = store.manifest_of(
        network.name,
        network.weights.record(),
        network.preprocess,
        network.classes,
        order.max_batch,
        network.row,
        params=sum(p.numel() for p in network.module.parameters()),
        macs=_macs(network),
    )
    images = Images(network, order.precisions, order.calibration, order.photographs)
    request = {
        "precisions": order.precisions,
        "engines": "all" if order.all_engines else order.engines,
        "plans": [order.workspace_mb, order.optimization_level, str(store.gpu_name())],
        "tune": [runtime.cpu_model(), runtime.cores()] if order.tune else None,  # another machine measures again
        "as_traced": order.as_traced,
        "images": images.fingerprint(),
        "labels": [[item.label, item.synset] for item in network.labels],
        "module": store.module_digest(network.module) if order.own_module else None,
    }
    mark = manifest["fingerprint"] = store.fingerprint(manifest, request)
    kept = None if order.force else store.unchanged(network.name, mark, network.weights.kind)
    if kept:
        return kept, False
    if warning := images.unjudged():
        print(f"warning: {network.name}: {warning}", file=sys.stderr)
    with tempfile.TemporaryDirectory(prefix="podium-") as folder:
        work = Work(network, Path(folder), images, order)
        work.fp32()
        if "fp16" in order.precisions:
            work.fp16()
        if "int8" in order.precisions:
            work.int8()
        work.plans()
        if "fp32" not in order.precisions:
            del work.records["fp32.onnx"]  # the other files were made from it, but it was not asked for
        manifest["files"] = {name: {**record, "command": command} for name, record in work.records.items()}
        if order.tune and (tuning := tune(network.name, work.runnable(), network.preprocess.shape, order.max_batch)):
            manifest["tuning"] = tuning
        return store.save(manifest, {name: Path(folder) / name for name in work.records}, network.labels), True


def _macs(network: Network) -> int | None:
    """Multiply-accumulates of one image; None for an ONNX file of others, whose layers we do not know."""
    from export.from_onnx import Foreign
    from models.describe import count_macs

    if isinstance(network.module, Foreign):
        return None
    height, width, channels = network.preprocess.shape
    return count_macs(network.module, (channels, height, width))


class Work:
    """The files of one export before they are saved, each compared with the PyTorch original."""

    def __init__(self, network: Network, folder: Path, images: Images, order: Order) -> None:
        self.network, self.folder, self.order = network, folder, order
        self.images, self.inputs = images, images.inputs()
        self.sizes = tuple(sorted({1, min(5, order.max_batch), min(8, order.max_batch)}))
        self.records: dict[str, FileRecord] = {}
        self.reference = parity.scores(self._original(), self.inputs.batch, self.sizes, f"{network.name} in PyTorch")

    def _original(self) -> Run:
        import torch

        from export.to_onnx import Served

        served = Served(self.network.module, self.network.preprocess).eval()

        def run(batch: Pixels) -> Scores:
            with torch.inference_mode():
                scores: Scores = served(torch.from_numpy(batch)).numpy()
            return scores

        return run

    def _asked(self, engines: Iterable[str]) -> tuple[str, ...]:
        return tuple(engine for engine in engines if engine in self.order.engines)

    def _weights(self) -> Parent:
        return {"file": self.network.weights.origin, "sha256": self.network.weights.sha256}

    def fp32(self) -> None:
        from export.from_onnx import Foreign, wrap
        from export.to_onnx import to_onnx

        path = self.folder / "fp32.onnx"
        if isinstance(self.network.module, Foreign):
            wrap(self.network, path, self.order.max_batch)
        else:
            to_onnx(self.network, path, self.order.max_batch, as_traced=self.order.as_traced)
        self.keep(path, "fp32", self._asked(ONNX_ENGINES["fp32"]), self._weights())

    def fp16(self) -> None:
        """The float16 file, for GPUs: ONNX Runtime runs it, and TensorRT builds plans from it."""
        from export.from_onnx import Foreign
        from export.to_onnx import to_onnx

        path = self.folder / "fp16.onnx"
        if isinstance(self.network.module, Foreign):
            raise Failure(f"{self.network.name}: fp16 is exported only from PyTorch; ask for fp32 and int8")
        to_onnx(self.network, path, self.order.max_batch, half=True)
        self.keep(path, "fp16", self._asked(ONNX_ENGINES["fp16"]), self._weights())

    def int8(self) -> None:
        """The INT8 file of every family of engines asked for; layers that fail the comparison stay in float."""
        fp32, images = self.folder / "fp32.onnx", self.images.to_calibrate()
        calibrated = Calibrated(fp32, images, self.folder, f"calibrating {self.network.name}")
        for recipe in RECIPES.values():
            engines = self._asked(e for e in recipe.engines if e in CPU_ENGINES)
            if self.order.all_engines or set(recipe.engines) & set(self.order.engines):
                verdicts, left = self._quantize(calibrated, recipe, engines)
                extra: FileRecord = {
                    "float_layers": left,
                    "calibration": calibration_record(self.images.folder, len(images)),
                    "top1": self.images.top1(),
                }
                parent: Parent = {"file": fp32.name, "sha256": sha256(fp32)}
                self.keep(self.folder / recipe.file, "int8", engines, parent, extra, verdicts)

    def _quantize(
        self, calibrated: Calibrated, recipe: Recipe, engines: tuple[str, ...]
    ) -> tuple[dict[str, Verdict], list[str]]:
        """Quantize all layers, or all but the smallest number of groups of layers with which the comparison passes.

        Returns the verdicts that passed, and the layers left in float.
        """
        path, layers = self.folder / recipe.file, calibrated.layers()
        calibrated.quantize(path, recipe)
        verdicts = self.judge(path, "int8", engines)
        first = parity.worst(verdicts.values())
        if first.passed:
            return verdicts, []
        groups, harm = groups_of(list(layers)), []
        for group in progress(groups, f"trying which layers of {self.network.name} to leave in float"):
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
            "in float does not repair it. Calibrate on more photographs, or on the kind it will see. Nothing was saved."
        )

    def judge(self, path: Path, precision: str, engines: tuple[str, ...]) -> dict[str, Verdict]:
        """The verdict on `path` in each of `engines`; in ONNX Runtime if the file is for a GPU."""
        return {
            engine: self._compare(runtime.ENGINES[engine](path, precision, runtime.cores()), precision)
            for engine in engines or ("onnxruntime",)
        }

    def _compare(self, engine: Runtime, precision: str) -> Verdict:
        """The answers of `engine` compared with the original's; `engine` is closed afterwards."""
        answers = parity.scores(
            engine.run, self.inputs.batch, self.sizes, f"{self.network.name} {precision} in {engine.engine}"
        )
        engine.close()
        limits = parity.limits(precision, self.network.weights.kind)
        return parity.compare(self.reference, answers, self.inputs, limits)

    def keep(
        self,
        path: Path,
        precision: str,
        engines: tuple[str, ...],
        parent: Parent,
        extra: FileRecord | None = None,
        verdicts: dict[str, Verdict] | None = None,
    ) -> None:
        """Record `path` for the manifest, or raise `Failure` if it is not the same network.

        `verdicts` are those of `judge`, if the file was judged already.
        """
        from export.to_onnx import OPSET

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

    def plans(self) -> None:
        """A TensorRT plan for every such engine and precision asked for, judged if there is a GPU to run it."""
        for (engine, precision), name in PLANS.items():
            if engine not in self.order.engines or precision not in self.order.precisions:
                continue
            source, unnamed = self.folder / name, self.folder / "building.plan"
            plan = build_plan(
                source,
                unnamed,
                engine,  # type: ignore[arg-type]  # the keys of PLANS
                precision,
                self.network.preprocess.shape,
                buckets_up_to(self.order.max_batch),
                workspace_mb=self.order.workspace_mb,
                optimization_level=self.order.optimization_level,
                timing_cache=cache() / "tensorrt.timings",
            )
            path = unnamed.rename(self.folder / plan_name(plan))
            verdict: dict[str, Any] = {"verdict": "not run", "reason": "no GPU here; its ONNX file passed"}
            if engine in runtime.available():
                judged = self._compare(runtime.ENGINES[engine](path, precision, 1, plan.record()), precision)
                self._demand(judged, precision, engine)
                verdict = judged.record()
            self.records[path.name] = {
                "engines": [engine],
                "precision": precision,
                "parent": {"file": source.name, "sha256": plan.onnx_sha256},
                "sha256": sha256(path),
                "plan": plan.record(),
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
