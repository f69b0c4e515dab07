"""The artifact and its manifest in BentoML's model store: one model for each network, one version for each export."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from models import Spec
from models.console import Failure
from models.preprocess import Label, Preprocess
from serving.artifact import (
    LABELS,
    MANIFEST,
    Artifact,
    ArtifactError,
    FileRecord,
    Manifest,
    find,
    read,
    sha256,
    stored,
    trained,
)
from serving.runtime import cpu_model
from serving.trt import gpu

SCHEMA = 1

# The packages whose versions decide what an export gives.
PACKAGES = (
    *("torch", "onnx", "onnxscript", "onnxruntime", "openvino", "tensorrt", "tensorrt-rtx"),
    *("numpy", "pillow", "bentoml"),
)


def environment() -> dict[str, Any]:
    """The machine and the versions of its packages, which decide what an export gives."""
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": cpu_model(),
        "versions": versions,
    }


def gpu_name() -> str | None:
    """The GPU that plans are built for here; None if there is none."""
    try:
        here = gpu()
    except Failure:
        return None
    return here.name if here else None


def manifest_of(
    name: str,
    weights: Mapping[str, Any],
    recipe: Preprocess,
    classes: int,
    max_batch: int,
    row: Spec | None = None,
    params: int | None = None,
    macs: int | None = None,
) -> Manifest:
    """The manifest without its files, which the exporter adds and `save` completes."""
    return {
        "schema": SCHEMA,
        "network": name,
        "architecture": row.name if row else None,
        "family": row.family if row else "custom",
        "year": row.year if row else None,
        "paper": row.paper if row else None,
        "published": asdict(row.published) if row and row.published else None,
        "params": params,
        "macs": macs,
        "weights": dict(weights),
        "input": {
            "size": [recipe.crop, recipe.crop],
            "resize": recipe.resize,
            "crop": recipe.crop,
            "interpolation": recipe.interpolation,
            "mode": recipe.mode,
            "mean": list(recipe.mean),
            "std": list(recipe.std),
            "layout": "NHWC",
            "dtype": "uint8",
        },
        "classes": classes,
        "max_batch": max_batch,
        "files": {},
        "environment": environment(),
    }


# Files of the two rooms that no artifact depends on, and why. Every other file is part of each artifact's fingerprint.
OUTSIDE = {
    "export/__init__.py": "empty",
    "export/__main__.py": "reads options, which are part of the fingerprint themselves, and prints",
    "export/triton.py": "copies what was saved",
    "export/verify.py": "checks what was saved",
    "models/__main__.py": "lists and describes",
    "models/console.py": "shows progress and errors",
    "models/train_lenet.py": "trained the LeNet-5 that is shipped, whose sha256 is in the manifest",
}

# Files of other rooms that make the pixels on which INT8 is calibrated and every file is judged.
PIXELS = ("serving/images.py",)


def code(root: Path = Path(__file__).parents[1]) -> dict[str, str]:
    """The sha256 of every file that decides what an export gives, by its path below `root`."""
    files = [path for room in ("export", "models") for path in root.glob(f"{room}/*.py")]
    files += [root / name for name in PIXELS]
    by_name = {path.relative_to(root).as_posix(): path for path in files}
    return {name: sha256(path) for name, path in by_name.items() if name not in OUTSIDE}


def fingerprint(manifest: Manifest, request: Mapping[str, Any]) -> str:
    """One sha256 over all that an export depends on: network, weights, request, versions of packages, and our code."""
    parts = {**manifest, "request": dict(request), "code": code(), "environment": manifest["environment"]["versions"]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def module_digest(module: Any) -> str:
    """A sha256 over a module of the user's own: its layers, its tensors, and the files with its code."""
    import torch

    digest = hashlib.sha256(repr(module).encode())
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    sources = {getattr(getattr(type(part).forward, "__code__", None), "co_filename", "") for part in module.modules()}
    for mark in sorted(sha256(path) for path in map(Path, sources) if path.is_file()):
        digest.update(mark.encode())
    return digest.hexdigest()


def unchanged(name: str, mark: str, kind: str) -> Artifact | None:
    """The newest artifact called `name` if it is whole and its fingerprint is `mark`, else None.

    An untrained export is compared with the newest untrained one, because the name goes on meaning the trained one.
    """
    from bentoml.exceptions import BentoMLException

    try:
        newest = next(model for model in stored(name) if trained(model) == (kind != "untrained"))
        artifact = read(newest)
        if artifact.manifest.get("fingerprint") != mark:
            return None
        for file in artifact.manifest["files"]:
            artifact.file(file)
    except (ArtifactError, BentoMLException, StopIteration):
        return None
    return artifact


def save(manifest: Manifest, files: Mapping[str, Path], labels: Sequence[Label]) -> Artifact:
    """A new version of `manifest["network"]` with `files` (name to its present place) and `labels`.

    BentoML builds a model in a temporary folder and moves it into the store if the block ends without an error, so an
    interrupted export leaves nothing. Each record in `manifest["files"]` gets the file's size and sha256.
    """
    import bentoml
    from bentoml.exceptions import BentoMLException

    if len(labels) != manifest["classes"]:
        raise Failure(f"{len(labels)} labels for {manifest['classes']} classes; give one label per class, in order")
    model = None
    try:
        with bentoml.models.create(manifest["network"], labels={"weights": manifest["weights"]["kind"]}) as model:
            folder = Path(model.path)
            for name, source in files.items():
                shutil.copyfile(source, folder / name)
            names = [{"label": item.label, "synset": item.synset} for item in labels]
            (folder / LABELS).write_text(json.dumps(names, ensure_ascii=False, indent=0), "utf-8")
            records: dict[str, FileRecord] = {
                name: {
                    **manifest["files"].get(name, {}),
                    "sha256": sha256(folder / name),
                    "size": (folder / name).stat().st_size,
                }
                for name in (*files, LABELS)
            }
            written = {**manifest, "files": records}
            (folder / MANIFEST).write_text(json.dumps(written, ensure_ascii=False, indent=1) + "\n", "utf-8")
    except (BentoMLException, OSError) as error:
        with suppress(BentoMLException, OSError):
            if model:  # it may be saved, except for the store's note of the newest version
                bentoml.models.delete(model.tag)
        why = error.args[0][0][2] if isinstance(error, shutil.Error) else error  # the first of a folder's files
        repair = "; BENTOML_HOME names its folder, TMPDIR one for temporary files" if isinstance(error, OSError) else ""
        raise Failure(f"cannot save {manifest['network']} in BentoML's model store: {why}{repair}") from error
    return find(str(model.tag))


def artifacts() -> list[Artifact]:
    """Every artifact of ours in the store, sorted by name; of each name, the one that the bare name means comes first.

    Other models of BentoML's are left out. One that cannot be read is named on stderr, so that it does not hide the
    rest.
    """
    readable = []
    for model in sorted(stored(), key=lambda model: str(model.tag.name)):
        try:
            readable.append(read(model))
        except ArtifactError as error:
            print(f"warning: {error}", file=sys.stderr)
    return readable
