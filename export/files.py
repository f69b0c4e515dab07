"""Every file of one export: made, held against the PyTorch original, and saved together or not at all."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from models.console import Failure

if TYPE_CHECKING:
    from export.images import Images
    from export.parity import Verdict
    from export.quantize import Calibrated, Recipe
    from models.weights import Network
    from serving.artifact import Artifact
    from serving.engines import Runtime

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


def make(
    network: Network, precisions: tuple[str, ...], engines: tuple[str, ...], options: argparse.Namespace, command: str
) -> tuple[Artifact, bool]:
    """Write every file, hold each against the PyTorch original, and save them together with the `command` for it.

    Gives the artifact, and whether it was made now: one that came from the same inputs is kept.
    """
    from export import store
    from export.images import Images
    from serving.runtime import cores, cpu_model

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
        "tune": [cpu_model(), cores()] if options.tune else None,  # what holds for another machine is measured again
        "as_traced": options.as_traced,
        "images": images.fingerprint(),
        "labels": [[item.label, item.synset] for item in network.labels],
        "module": store.module_digest(network.module) if options.module else None,
    }
    manifest["fingerprint"] = store.fingerprint(manifest, request)
    kept = None if options.force else store.unchanged(network.name, manifest["fingerprint"], network.weights.kind)
    if kept:
        return kept, False
    if warning := images.unjudged():
        print(f"warning: {network.name}: {warning}", file=sys.stderr)
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
        manifest["files"] = {name: {**record, "command": command} for name, record in work.records.items()}
        if options.tune:
            from export.tune import tune

            tuning = tune(network.name, work.runnable(), network.preprocess.shape, options.max_batch)
            manifest |= {"tuning": tuning} if tuning else {}
        return store.save(manifest, {name: Path(folder) / name for name in work.records}, network.labels), True


def _macs(network: Network) -> int | None:
    """Multiply-accumulates of one image; None for someone else's graph, which has no layers of ours to count."""
    from export.from_onnx import Foreign
    from models.describe import count_macs

    if isinstance(network.module, Foreign):
        return None
    height, width, channels = network.preprocess.shape
    return count_macs(network.module, (channels, height, width))


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
        from serving.artifact import sha256

        fp32, images = self.folder / "fp32.onnx", self.images.to_calibrate()
        calibrated = Calibrated(fp32, images, self.folder, f"calibrating {self.network.name}")
        for recipe in RECIPES.values():
            engines = self._asked(e for e in recipe.engines if e in CPU_ENGINES)
            if self.everything or set(recipe.engines) & set(self.engines):
                verdicts, left = self._quantize(calibrated, recipe, engines)
                extra = {
                    "float_layers": left,
                    "calibration": calibration_record(self.images.folder, len(images)),
                    "top1": self.images.top1(),
                }
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
        from serving.artifact import sha256

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
        from serving.artifact import sha256
        from serving.runtime import ENGINES, available

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
