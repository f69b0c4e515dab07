"""The artifact and its manifest in BentoML's model store: one model per network, one version per export."""

from __future__ import annotations

import hashlib
import json
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from models import Spec
from models.console import Failure
from models.preprocess import Label, Preprocess
from serving.runtime import LABELS, MANIFEST, Artifact, ArtifactError, cpu_model, find, gpu, load, sha256

SCHEMA = 1

# Those whose versions decide what an export gives.
PACKAGES = (
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt-rtx",
    "numpy",
    "pillow",
    "bentoml",
)


def environment() -> dict[str, Any]:
    """What this machine and its packages are, as far as it decides what an export gives."""
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
    """The GPU that plans built here are for; None where there is none."""
    try:
        here = gpu()
    except Failure:
        return None
    return here.name if here else None


def manifest_of(
    network: str,
    weights: Mapping[str, Any],
    recipe: Preprocess,
    classes: int,
    max_batch: int,
    row: Spec | None = None,
    params: int | None = None,
    macs: int | None = None,
) -> dict[str, Any]:
    """The manifest's head; `files` is filled by the exporter and completed by `save`."""
    published = row.published if row else None
    return {
        "schema": SCHEMA,
        "network": network,
        "family": row.family if row else "custom",
        "year": row.year if row else None,
        "paper": row.paper if row else None,
        "published": {
            "top1_error": published.top1_error,
            "top5_error": published.top5_error,
            "protocol": published.protocol,
            "source": published.source,
        }
        if published
        else None,
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


def fingerprint(manifest: Mapping[str, Any], request: Mapping[str, Any]) -> str:
    """What an export depends on, as one sha256: the network, its weights, what was asked, the packages and our code."""
    rooms = [Path(__file__).parent, Path(__file__).parents[1] / "models"]
    code = {path.name: sha256(path) for room in rooms for path in sorted(room.glob("*.py"))}
    parts = {**manifest, "request": dict(request), "code": code, "environment": manifest["environment"]["versions"]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def unchanged(network: str, mark: str) -> Artifact | None:
    """The newest artifact of `network` if it is whole and was exported from the same inputs, else None."""
    try:
        artifact = find(network)
        if artifact.manifest.get("fingerprint") != mark:
            return None
        for name in artifact.manifest["files"]:
            artifact.file(name)
    except ArtifactError:
        return None
    return artifact


def save(manifest: Mapping[str, Any], files: Mapping[str, Path], labels: Sequence[Label]) -> Artifact:
    """A new version of `manifest["network"]` holding `files` (name to where it lies now) and `labels`.

    BentoML builds a model in a temporary folder and moves it into the store when the block ends well, so that an
    interrupted export leaves nothing. The records in `manifest["files"]` are completed with each file's size and
    sha256.
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
            records = {name: dict(manifest["files"][name]) for name in files} | {LABELS: {}}
            for name, record in records.items():
                record.update(sha256=sha256(folder / name), size=(folder / name).stat().st_size)
            written = {**manifest, "files": records}
            (folder / MANIFEST).write_text(json.dumps(written, ensure_ascii=False, indent=1) + "\n", "utf-8")
    except (BentoMLException, OSError) as error:
        with suppress(BentoMLException, OSError):
            if model:  # saved it may be, but for the store's note of which version is the newest
                bentoml.models.delete(model.tag)
        why = error.args[0][0][2] if isinstance(error, shutil.Error) else error  # the first of a folder's files
        repair = "; BENTOML_HOME names its folder, TMPDIR one for temporary files" if isinstance(error, OSError) else ""
        raise Failure(f"cannot save {manifest['network']} in BentoML's model store: {why}{repair}") from error
    return find(str(model.tag))


def artifacts() -> list[Artifact]:
    """Every artifact of ours in the store, newest first within a network; other BentoML models are passed over.

    One that cannot be read is named on stderr and passed over too: it must not hide the others.
    """
    import bentoml

    models = [m for m in bentoml.models.list() if (Path(m.path) / MANIFEST).is_file()]
    models.sort(key=lambda m: m.info.creation_time, reverse=True)
    models.sort(key=lambda m: m.tag.name)
    found = []
    for model in models:
        try:
            found.append(load(Path(model.path), model.tag.version or ""))
        except ArtifactError as error:
            print(f"warning: {error}", file=sys.stderr)
    return found
