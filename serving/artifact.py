"""An artifact: a folder with a manifest, which `export/store.py` writes into BentoML's model store.

A file whose sha256 differs from the manifest's record is never loaded. What a name without a version means is decided
here, and nowhere else.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, TypedDict, cast

from models.console import Failure
from models.preprocess import Label, Preprocess

MANIFEST = "manifest.json"
LABELS = "labels.json"


class ArtifactError(Failure):
    """An artifact that is missing, damaged or not what was asked for."""


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Parent(TypedDict):
    """What a file was made from: another file of the artifact, or the weights."""

    file: str
    sha256: str | None


class FileRecord(TypedDict, total=False):
    """One file in the manifest. Every ONNX file and plan has the fields up to `parity`; `labels.json` has two."""

    sha256: str
    size: int
    engines: list[str]
    precision: str
    parent: Parent
    command: str
    parity: dict[str, Any]  # export.parity.Verdict, and the same `by_engine`
    opset: int
    float_layers: list[str]  # of INT8: the layers that stayed in float
    calibration: dict[str, Any]
    top1: str  # whether the top-1 accuracy of INT8 was judged
    plan: dict[str, Any]  # export.to_engine.PlanRecord


class Input(TypedDict):
    """The recipe from photograph to tensor: `models.preprocess.Preprocess` and the form of the tensor."""

    size: list[int]
    resize: int
    crop: int
    interpolation: Literal["bilinear", "bicubic", "lanczos"]
    mode: Literal["RGB", "L"]
    mean: list[float]
    std: list[float]
    layout: str
    dtype: str


class Manifest(TypedDict, total=False):
    """`manifest.json`, as docs/records.md describes it. The first six are in every manifest; see `load`."""

    schema: int
    network: str
    weights: dict[str, Any]  # models.weights.Weights
    input: Input
    classes: int
    files: dict[str, FileRecord]
    architecture: str | None
    family: str
    year: int | None
    paper: str | None
    published: dict[str, Any] | None  # models.Published
    params: int | None
    macs: int | None
    max_batch: int
    environment: dict[str, Any]
    fingerprint: str
    tuning: dict[str, Any]  # as `export.tune.tune` returns it


@dataclass(frozen=True)
class Artifact:
    """One exported network: its folder and its manifest."""

    folder: Path
    manifest: Manifest
    version: str = ""
    created: datetime | None = None  # as BentoML's store has it; None for a folder outside the store

    @property
    def network(self) -> str:
        """Its name: one of `models.SPECS`, or the one that `export --name` gave."""
        return self.manifest["network"]

    @property
    def architecture(self) -> str | None:
        """The row of `models.SPECS` that it is built by; None for a network of the user's own."""
        # Manifests from before `--name` have the family only: "custom" was a network of the user's own.
        own = self.manifest.get("family") == "custom"
        return self.manifest.get("architecture", None if own else self.network)

    @property
    def exported(self) -> str:
        """When it was exported, for people: "2026-11-22 10:03 UTC"."""
        return f"{self.created.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if self.created else "at an unknown time"

    @property
    def tag(self) -> str:
        return f"{self.network}:{self.version}" if self.version else self.network

    @property
    def weights(self) -> str:
        """ "pretrained", "custom" or "untrained"."""
        return str(self.manifest["weights"]["kind"])

    @property
    def classes(self) -> int:
        return self.manifest["classes"]

    @cached_property
    def preprocess(self) -> Preprocess:
        recipe = self.manifest["input"]
        return Preprocess(
            resize=recipe["resize"],
            crop=recipe["crop"],
            interpolation=recipe["interpolation"],
            mean=tuple(recipe["mean"]),
            std=tuple(recipe["std"]),
            mode=recipe["mode"],
        )

    @cached_property
    def labels(self) -> tuple[Label, ...]:
        rows = json.loads(self.file(LABELS).read_text("utf-8"))
        return tuple(Label(row["label"], row.get("synset")) for row in rows)

    def file(self, name: str) -> Path:
        """The path of a file that the manifest records, after checking its sha256.

        Raises `ArtifactError` if the file is not recorded, lies outside the folder, is a link, or has changed.
        """
        record = self.manifest["files"].get(name)
        if record is None:
            raise ArtifactError(f"{self.tag}: {name} is not recorded in its {MANIFEST}; export it again")
        path = self.folder / name
        if Path(name).name != name or path.is_symlink():
            raise ArtifactError(f"{self.tag}: {name!r} does not name a plain file of the artifact; export it again")
        if not path.is_file():
            raise ArtifactError(f"{self.tag}: {name} is missing from {self.folder}; export it again")
        actual = sha256(path)
        if actual != record["sha256"]:
            raise ArtifactError(
                f"{self.tag}: {name} has sha256 {actual[:12]}..., its record says {record['sha256'][:12]}...; "
                "it was changed or damaged after export: export it again"
            )
        return path

    def graphs(self) -> dict[tuple[str, str], str]:
        """The file for every (engine, precision) that can run this artifact, in the manifest's order."""
        return {
            (engine, record["precision"]): name
            for name, record in self.manifest["files"].items()
            for engine in record.get("engines", ())
        }


def load(folder: Path, version: str = "", created: datetime | None = None) -> Artifact:
    """The artifact in `folder`. Raises `ArtifactError` if its manifest is missing or cannot be read."""
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text("utf-8"))
        missing = {"schema", "network", "weights", "input", "classes", "files"} - manifest.keys()
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{folder} holds no readable {MANIFEST} ({error}); export the network again") from error
    if missing:
        raise ArtifactError(f"{path} lacks {', '.join(sorted(missing))}; export the network again")
    return Artifact(folder, cast(Manifest, manifest), version, created)


# --- the store --------------------------------------------------------------------------------------------------------

LATEST = "latest"


def stored(name: str | None = None) -> list[Any]:
    """The models in BentoML's store that are artifacts of ours, or those called `name`.

    Of each name the one that the bare name means comes first: trained before untrained, then newest first. An untrained
    export must not take the place of a trained one.
    """
    import bentoml

    models = [model for model in bentoml.models.list(name) if (Path(model.path) / MANIFEST).is_file()]
    return sorted(models, key=lambda model: (trained(model), model.info.creation_time), reverse=True)


def trained(model: Any) -> bool:
    """Whether the weights in one of BentoML's models are trained, as `export/store.py` has labelled it."""
    return bool(model.info.labels.get("weights") != "untrained")


def defaults() -> list[str]:
    """The tag that each name in the store means, in the order of `stored`."""
    tags: dict[str, str] = {}
    for model in stored():
        tags.setdefault(model.tag.name, str(model.tag))
    return list(tags.values())


def read(model: Any) -> Artifact:
    """The artifact in one of BentoML's models. Raises `ArtifactError` as `load` does."""
    return load(Path(model.path), model.tag.version or "", model.info.creation_time)


def find(tag: str) -> Artifact:
    """The artifact called `tag` in BentoML's model store.

    "resnet50:<version>" is that version. "resnet50" and "resnet50:latest" are the newest trained version, or the newest
    one if none is trained. Raises `ArtifactError` if there is none.
    """
    import bentoml
    from bentoml.exceptions import BentoMLException

    name, _, version = tag.partition(":")
    try:
        models = [bentoml.models.get(tag)] if version not in ("", LATEST) else stored(name) if name else []
    except (BentoMLException, ValueError):
        models = []
    if not models:
        raise ArtifactError(
            f"no exported model is called {tag!r}; `python -m export {name}` makes one, "
            "`python -m export list` shows what there is"
        )
    return read(models[0])
