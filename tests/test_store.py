"""The store: what an export depends on, which version a name means, and what lists and logs say."""

from __future__ import annotations

import json
import logging
import random
import shutil
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from benchmarks.engine import cells as measure
from benchmarks.engine.commands import chosen
from export import store
from export.images import Images
from export.triton import write_repository
from models import SPECS
from models.console import Failure
from models.weights import Network, load
from serving.artifact import Artifact, ArtifactError, defaults, find
from serving.classify import Serving
from serving.settings import Settings
from serving.settings import artifacts as served
from tests.conftest import ROOT, export, save_tiny, tiny_onnx

DIGITS = ROOT / "examples" / "digits"
QUICK = ("--engine", "onnxruntime")  # for tests that are not about the engines


# --- what an export depends on ----------------------------------------------------------------------------------------


@pytest.fixture
def rooms(tmp_path: Path) -> Path:
    for room in ("export", "models", "serving"):
        shutil.copytree(ROOT / room, tmp_path / room, ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path


def test_every_file_of_models_and_export_is_in_the_fingerprint_or_listed_as_outside_it(rooms: Path) -> None:
    files = {path.relative_to(rooms).as_posix() for room in ("export", "models") for path in rooms.glob(f"{room}/*.py")}
    files |= {"serving/images.py"}  # what calibration and parity see
    before = store.code(rooms)
    assert set(before) | set(store.OUTSIDE) == files
    assert not set(before) & set(store.OUTSIDE)
    for name in sorted(files):
        text = (rooms / name).read_bytes()
        (rooms / name).write_bytes(text + b"\n# changed\n")
        assert (store.code(rooms) != before) == (name not in store.OUTSIDE), name
        (rooms / name).write_bytes(text)


def test_a_new_file_is_in_the_fingerprint_whatever_its_name(rooms: Path) -> None:
    marks = [store.code(rooms)]
    for name in ("export/weights.py", "models/quantize.py"):  # each is the name of a file in the other package
        (rooms / name).write_text("new\n")
        marks.append(store.code(rooms))
        assert len(marks[-1]) == len(marks[-2]) + 1


@pytest.fixture(scope="module")
def lenet5() -> Network:
    return load("lenet5", "pretrained")


def by_class(folder: Path, shift: int = 0) -> Path:
    """The example digits, one folder for each class; `shift` moves them into wrong folders, that many classes away."""
    for path in DIGITS.glob("*.png"):
        place = folder / str((int(path.stem) + shift) % 10)
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place / path.name)
    return folder


def flat(folder: Path, rename: Callable[[str], str] = str) -> Path:
    folder.mkdir()
    for path in DIGITS.glob("*.png"):
        shutil.copyfile(path, folder / f"{rename(path.stem)}.png")
    return folder


def images(network: Network, precisions: tuple[str, ...] = ("fp32", "int8"), **options: Path | None) -> Images:
    return Images(network, precisions, options.get("calibration"), options.get("images"))


def test_photographs_are_known_by_their_contents_and_classes(lenet5: Network, tmp_path: Path) -> None:
    one, other = flat(tmp_path / "one"), flat(tmp_path / "other", lambda stem: str(9 - int(stem)))
    known = by_class(tmp_path / "classes")

    def mark(**options: Path | None) -> Any:
        return images(lenet5, ("fp32", "int8"), **options).fingerprint()

    before = mark(calibration=one, images=one)
    assert mark(calibration=other, images=other) == before, "neither names nor their order count"
    marks = [
        before,
        mark(calibration=one),
        mark(calibration=one, images=known),
        mark(calibration=known, images=one),
        mark(calibration=one, images=by_class(tmp_path / "wrong", 1)),
    ]
    original = (one / "7.png").read_bytes()
    (one / "7.png").write_bytes(original[:-1] + bytes([original[-1] ^ 1]))  # the same number of bytes
    marks.append(mark(calibration=one, images=one))
    assert marks[3] == before, "what calibrates needs no label"
    del marks[3]
    assert len({json.dumps(m) for m in marks}) == len(marks)


def test_the_examples_are_known_by_their_contents_too(lenet5: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    before = images(lenet5, ("fp32",)).fingerprint()
    monkeypatch.setattr("export.parity.examples", lambda recipe: sorted(DIGITS.glob("*.png"))[1:])
    assert images(lenet5, ("fp32",)).fingerprint() != before


def test_every_option_is_in_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    marks = []

    def stop(name: str, mark: str, kind: str) -> None:
        marks.append(mark)
        raise Failure("enough")

    monkeypatch.setattr(store, "unchanged", stop)
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    for path, synset in ((first, "n1"), (second, "n2")):
        path.write_text(json.dumps([{"label": str(i), "synset": f"{synset}{i}"} for i in range(10)]))
    graph = ("--onnx", tiny_onnx(tmp_path / "tiny.onnx"))
    for argv in (
        ("lenet5",), ("lenet5", "--weights", "untrained"), ("lenet5", "--max-batch", "8"),
        ("lenet5", "--name", "other"),
        ("lenet5", "--precision", "fp16"), ("lenet5", "--engine", "openvino"), ("lenet5", "--as-traced"),
        ("lenet5", "--as-traced", "--name", "lenet5"), ("lenet5", "--labels", first), ("lenet5", "--labels", second),
        ("lenet5", "--images", by_class(tmp_path / "digits")), ("lenet5", "--tune"),
        graph, (*graph, "--resize", "36"), (*graph, "--interpolation", "bicubic"),
    ):  # fmt: skip
        assert export(*argv) == 1
    assert capsys.readouterr().err.count("enough") == len(marks) == len(set(marks))
    assert export("lenet5") == 1 and marks[-1] == marks[0]


def test_a_changed_module_of_the_users_is_exported_again(tmp_path: Path) -> None:
    text = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed({seed})
        self.last = torch.nn.Linear(3, 4)

    def forward(self, x):
        return self.last(x.mean((2, 3)){scale})

def changing():
    return Net()
"""
    source, versions = tmp_path / "changing.py", []
    for seed, scale in ((0, ""), (0, ""), (1, ""), (1, " * 2")):
        source.write_text(text.format(seed=seed, scale=scale))
        assert export("--module", f"{source}:changing", "--num-classes", "4", *QUICK) == 0
        versions.append(find("changing").version)
    assert [versions.index(version) for version in versions] == [0, 0, 2, 3]


# --- what a name means ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_a_name_means_its_newest_trained_version_or_else_its_newest(seed: int, tmp_path: Path) -> None:
    draw = random.Random(seed)
    names = [f"name{seed}{letter}" for letter in "abc"]
    made: dict[str, list[Artifact]] = {}
    meant: dict[str, str] = {}
    for _ in range(10):
        name = draw.choice(names)
        kind = draw.choice(["untrained", "untrained", "pretrained", "custom"])
        versions = made.setdefault(name, [])
        versions.append(save_tiny(tmp_path, name, weights=kind))
        meant[name] = ([a for a in versions if a.weights != "untrained"] or versions)[-1].tag
        assert find(name).tag == find(f"{name}:latest").tag == meant[name]
        assert [find(a.tag).tag for a in versions] == [a.tag for a in versions], "a version is that version"
    assert [a.tag for a in served(tuple(meant), tmp_path)] == list(meant.values())
    listed = [a for a in store.artifacts() if a.network in meant]
    assert {a.network: a.tag for a in reversed(listed)} == meant, "the default version of each name is listed first"
    assert len(listed) == sum(map(len, made.values()))
    assert {tag for tag in defaults() if tag.split(":")[0] in meant} == set(meant.values())
    assert {a.tag for a in chosen(Namespace(models=None, set=None)) if a.network in meant} == set(meant.values())
    kinds = [find(tag).weights != "untrained" for tag in defaults()]
    assert kinds == sorted(kinds, reverse=True), "the default is trained if any version is"


def test_an_untrained_export_is_kept_beside_the_trained_one() -> None:
    assert export("lenet5", "--name", "both", *QUICK) == 0
    trained = find("both")
    versions = set()
    for _ in range(2):
        assert export("lenet5", "--name", "both", "--weights", "untrained", *QUICK) == 0
        versions |= {a.version for a in store.artifacts() if a.network == "both"}
        assert find("both").version == trained.version
    assert len(versions) == 2, "the second time it is unchanged"


def test_a_tag_that_does_not_exist_is_named() -> None:
    for tag in ("nothing", "nothing:latest", "nothing:v1", "no/thing!", ""):
        with pytest.raises(ArtifactError, match="no exported model is called"):
            find(tag)


# --- --name -----------------------------------------------------------------------------------------------------------


def test_two_exports_of_one_architecture_are_served_together(tmp_path: Path) -> None:
    assert export("lenet5", "--name", "my_digits", *QUICK) == 0
    assert export("lenet5", "--name", "drawn_digits", "--weights", "untrained", *QUICK) == 0
    both = served(Settings.read({"PODIUM_MODELS": "my_digits,drawn_digits"}).models, tmp_path)
    assert [(a.network, a.architecture, a.weights) for a in both] == [
        ("my_digits", "lenet5", "pretrained"),
        ("drawn_digits", "lenet5", "untrained"),
    ]
    cell = measure.Cell(both[0], "onnxruntime", "fp32", 1)
    described = measure.describe(cell, 1, measure.BRIEF)
    assert (described["network"], described["macs"]) == ("my_digits", SPECS["lenet5"].macs)
    made = write_repository(both[0], tmp_path / "triton")
    assert made.network == "my_digits" and (tmp_path / "triton" / "my_digits" / "config.pbtxt").is_file()


def test_a_name_may_be_the_networks_own(tmp_path: Path) -> None:
    assert export("lenet5", "--name", "lenet5", "--max-batch", "4", *QUICK) == 0
    assert find("lenet5").manifest["max_batch"] == 4
    assert export("lenet5", "--as-traced", "--max-batch", "4", *QUICK) == 0
    assert find("lenet5_traced").architecture == "lenet5"


@pytest.mark.parametrize(
    ("argv", "complaint"),
    [
        (["lenet5", "--name", "Mine"], "lower-case letters"),
        (["lenet5", "--name", ""], "lower-case letters"),
        (["lenet5", "--name", "a" * 64], "at most 63"),
        (["lenet5", "--name=-a"], "lower-case letters"),
        (["lenet5", "--name", "a:b"], "lower-case letters"),
        (["lenet5", "--name", "resnet50"], "resnet50 is the name of a network, but this is lenet5"),
        (["lenet5", "alexnet", "--name", "mine"], "2 networks are asked for"),
        (["--set", "five", "--name", "mine"], "5 networks are asked for"),
        (["--module", "examples/efficientnet_lite0.py:network", "--name", "vgg16"], "this is a network of your own"),
    ],
)
def test_an_invalid_name_is_refused(argv: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert export(*argv) == 2
    err = capsys.readouterr().err
    assert complaint in err and err.count("\n") == 1


# --- what is said -----------------------------------------------------------------------------------------------------


def test_list_says_when_how_many_classes_and_which_is_the_default(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = save_tiny(tmp_path, "listed", 7, "custom")
    untrained = save_tiny(tmp_path, "listed", 8)
    assert trained.created is not None
    assert export("list") == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith(("tag", "listed:"))]
    assert rows[0][:5] == ["tag", "default", "exported", "weights", "classes"]
    date = trained.exported.split()
    assert rows[1][:7] == [trained.tag, "yes", *date, "custom", "7"]
    assert rows[2][:6] == [untrained.tag, *untrained.exported.split(), "untrained", "8"]
    assert export("list", "--json") == 0
    data = {row["tag"]: row for row in json.loads(capsys.readouterr().out)}
    assert [data[a.tag]["default"] for a in (trained, untrained)] == [True, False]
    assert data[trained.tag]["exported"] == trained.created.isoformat() and data[trained.tag]["classes"] == 7


async def test_the_log_says_what_is_served(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("bentoml"), "propagate", True)
    first, second = save_tiny(tmp_path, "first", weights="custom"), save_tiny(tmp_path, "second")
    settings = Settings.read({"PODIUM_ENGINE": "onnxruntime", "PODIUM_THREADS": "1"})
    serving = Serving(settings, [first, second], CollectorRegistry())
    with caplog.at_level(logging.INFO, "bentoml.podium"):
        await serving.start()
        await serving.stop()
    lines = [record.getMessage() for record in caplog.records if "loaded and warm" in record.getMessage()]
    engine = "onnxruntime fp32 on 1 thread"
    assert lines == [
        f"{first.tag} is loaded and warm: custom weights, exported {first.exported}, {engine}, the default",
        f"{second.tag} is loaded and warm: untrained weights, exported {second.exported}, {engine}",
    ]
