"""An artifact as a model repository for NVIDIA's Triton Inference Server.

OUT/NETWORK/config.pbtxt   the configuration: shapes, batching, warm-up
OUT/NETWORK/labels.txt     the class names, for Triton's classification extension
OUT/NETWORK/1/model.onnx   or model.plan
"""

from __future__ import annotations

import json
import shlex
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from models.console import Failure
from serving.artifact import Artifact

# Releases are monthly; a plan needs the one whose TensorRT built it.
IMAGE = "nvcr.io/nvidia/tritonserver:26.07-py3"

# This file marks a repository as ours, so that it may be written again. Triton reads only folders.
MARK = "podium.json"

# How long a request may wait for others to share its batch.
QUEUE_DELAY_US = 2000

# For each engine of ours: Triton's backend, and the file name that it expects.
BACKENDS = {"onnxruntime": ("onnxruntime", "model.onnx"), "tensorrt": ("tensorrt", "model.plan")}


@dataclass(frozen=True)
class Repository:
    """The repository that was written, and the command that serves it."""

    folder: Path
    network: str
    engine: str
    precision: str
    gpu: bool

    @property
    def command(self) -> str:
        """Starts Triton on the repository: HTTP on 8000, gRPC on 8001, metrics on 8002."""
        words = ["docker", "run", "--rm", *(("--gpus", "all") if self.gpu else ()), "--shm-size", "1g"]
        words += [part for port in (8000, 8001, 8002) for part in ("-p", f"{port}:{port}")]
        words += ["-v", f"{self.folder.resolve()}:/models:ro", IMAGE, "tritonserver", "--model-repository", "/models"]
        return shlex.join(words)


def write_repository(
    artifact: Artifact, out: Path, engine: str = "auto", precision: str = "auto", gpu: bool = False
) -> Repository:
    """Add `artifact` to the model repository `out`, and replace what it has of the same network.

    `engine` auto takes the artifact's first file that Triton can run. `gpu` runs an ONNX file on the GPU; a plan always
    runs there. Raises `Failure` if no file fits, or if `out` holds something that is not ours.
    """
    engine, precision, name = _file(artifact, engine, precision)
    gpu = gpu or engine == "tensorrt"
    source = artifact.file(name)
    backend, target = BACKENDS[engine]
    plan = artifact.manifest["files"][name].get("plan") if engine == "tensorrt" else None
    if engine == "tensorrt" and plan is None:
        raise Failure(f"{artifact.tag}: {name} has no record of how it was built; export it again")
    if plan and plan["any_batch"] is None and len(plan["buckets"]) > 1:
        raise Failure(f"{artifact.tag}: {name} has no profile for every batch size, which Triton needs; build it again")
    ends = (plan["input"], plan["output"]) if plan else onnx_ends(source)
    text = config(artifact, ends, backend, gpu, plan)
    _claim(out)
    try:
        # Written beside the repository and moved in whole, so that a server that watches it never sees half a model.
        with tempfile.TemporaryDirectory(prefix=".podium-", dir=out.resolve().parent) as folder:
            model = Path(folder) / artifact.network
            (model / "1").mkdir(parents=True)
            shutil.copyfile(source, model / "1" / target)
            (model / "labels.txt").write_text("".join(f"{item.label}\n" for item in artifact.labels), "utf-8")
            (model / "config.pbtxt").write_text(text, "utf-8")
            place = out / artifact.network
            if place.exists():
                place.rename(Path(folder) / "before")
            model.rename(place)
    except OSError as error:
        raise Failure(f"cannot write to {out}: {error.strerror}; give another --out") from error
    return Repository(out, artifact.network, engine, precision, gpu)


def _file(artifact: Artifact, engine: str, precision: str) -> tuple[str, str, str]:
    """The (engine, precision, file) to serve. Unlike `serving.runtime.choose`, it need not be installed here."""
    if engine not in ("auto", *BACKENDS):
        raise Failure(f"Triton cannot run engine {engine} from an artifact; choose {' or '.join(BACKENDS)}")
    for (candidate, at), name in artifact.graphs().items():
        if candidate in BACKENDS and engine in ("auto", candidate) and precision in ("auto", at):
            return candidate, at, name
    has = ", ".join(f"{e} {p}" for e, p in artifact.graphs()) or "nothing"
    raise Failure(
        f"{artifact.tag} has no file that Triton can run as engine {engine} at precision {precision}; it has {has}. "
        f"Export it with --engine {' or '.join(BACKENDS)}"
    )


def _claim(out: Path) -> None:
    """Make `out`, or take it if it is empty or ours; `Failure` if it is neither."""
    if out.is_dir() and any(out.iterdir()) and not (out / MARK).is_file():
        raise Failure(f"{out} is not empty and is not a repository of ours; give an --out that does not exist yet")
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / MARK).write_text(json.dumps({"written by": "python -m export triton"}) + "\n", "utf-8")
    except OSError as error:
        raise Failure(f"cannot write to {out}: {error.strerror}; give another --out") from error


def onnx_ends(path: Path) -> tuple[str, str]:
    """The names of the graph's input and output."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name for tensor in graph.initializer}
    inputs = [tensor.name for tensor in graph.input if tensor.name not in weights]
    outputs = [tensor.name for tensor in graph.output]
    if len(inputs) != 1 or len(outputs) != 1:
        raise Failure(f"{path.name} has inputs {inputs} and outputs {outputs}, expected one of each")
    return inputs[0], outputs[0]


def config(
    artifact: Artifact, ends: tuple[str, str], backend: str, gpu: bool, plan: dict[str, Any] | None = None
) -> str:
    """config.pbtxt: Triton's ModelConfig message as text (its model_configuration.md). The batch axis is implied."""
    name, source, target = (json.dumps(text) for text in (artifact.network, *ends))
    most = max(plan["buckets"]) if plan else int(artifact.manifest.get("max_batch", 1))
    dims = list(artifact.preprocess.shape)
    # The profile for every size, if a plan has one: Triton looks for a fitting profile by batch size 1 only.
    profile = f'  profile: ["{plan["any_batch"]}"]\n' if plan and plan["any_batch"] is not None else ""
    text = f"""\
name: {name}
backend: "{backend}"
max_batch_size: {most}
input {{
  name: {source}
  data_type: TYPE_UINT8
  dims: {dims}
}}
output {{
  name: {target}
  data_type: TYPE_FP32
  dims: [{artifact.classes}]
  label_filename: "labels.txt"
}}
instance_group {{
  count: 1
  kind: {"KIND_GPU" if gpu else "KIND_CPU"}
{profile}}}
"""
    if most > 1:
        # On a GPU a tuned size is worth waiting for. On a CPU every size costs about the same for each image.
        sizes = plan["buckets"] if plan else []
        preferred = f"  preferred_batch_size: {[size for size in sizes if size > 1]}\n" if sizes else ""
        text += f"dynamic_batching {{\n{preferred}  max_queue_delay_microseconds: {QUEUE_DELAY_US}\n}}\n"
    for size in sorted({1, most}):
        text += f"""\
model_warmup {{
  name: "batch {size}"
  batch_size: {size}
  inputs {{
    key: {source}
    value {{
      data_type: TYPE_UINT8
      dims: {dims}
      random_data: true
    }}
  }}
}}
"""
    return text
