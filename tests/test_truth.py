"""Which classes photographs show, and whether INT8 was held to them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from export import quantize
from export.evaluate import labelled, truth
from models.console import Failure
from models.preprocess import Label, imagenet_labels
from serving.artifact import find
from tests.conftest import ROOT, export

DIGITS = ROOT / "examples" / "digits"
INT8 = ("--precision", "int8", "--engine", "onnxruntime")


def pictures(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(DIGITS / "7.png", folder / name)
    return folder


def by_class(folder: Path) -> Path:
    for path in DIGITS.glob("*.png"):
        (folder / path.stem).mkdir(parents=True)
        shutil.copyfile(path, folder / path.stem / path.name)
    return folder


def test_a_folder_is_a_synset_a_label_or_an_index(tmp_path: Path) -> None:
    labels = imagenet_labels()
    for kind, name in (("synset", labels[281].synset), ("label", labels[281].label), ("index", "281")):
        folder = pictures(tmp_path / kind, f"{name}/a.png", f"deeper/{name}/b.png")
        assert labelled(folder, labels) == [(path, 281) for path in sorted(folder.rglob("*.png"))]


@pytest.mark.parametrize(
    ("labels", "folder", "classes"),
    [(("crane", "dog", "crane"), "crane", "0, 2"), (("1", "2", "3"), "1", "0, 1"), (("a", "0"), "0", "0, 1")],
    ids=["two of one label", "labels that count from one", "a label that is another's index"],
)
def test_a_name_of_two_classes_is_not_guessed(
    labels: tuple[str, ...], folder: str, classes: str, tmp_path: Path
) -> None:
    names = [Label(name, f"n{i}") for i, name in enumerate(labels)]
    with pytest.raises(Failure, match=f"'{folder}' names the classes {classes}; use one folder per synset"):
        labelled(pictures(tmp_path / "several", f"{folder}/a.png"), names)
    assert labelled(pictures(tmp_path / "synset", "n1/a.png"), names)[0][1] == 1


def test_the_folder_itself_is_no_class(tmp_path: Path) -> None:
    """Five hundred photographs in a folder called 500 are not all of class 500."""
    folder = pictures(tmp_path / "500", "a.png", "b.png")
    found, why = truth(folder, imagenet_labels())
    assert not found and "'a.png' names none of the 1000 classes" in why


def test_what_is_known_of_some_counts_for_them(tmp_path: Path) -> None:
    folder = pictures(tmp_path, "7/a.png", "others/b.png")
    found, why = truth(folder, [Label(str(i)) for i in range(10)])
    assert found == {folder / "7" / "a.png": 7}
    assert "'others' names none" in why


def top1_of(name: str) -> str:
    return str(find(name).manifest["files"]["int8-cpu.onnx"]["top1"])


def test_calibration_in_a_folder_per_class_is_judged_by_its_classes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export("lenet5", "--name", "by_class", *INT8, "--calibration", by_class(tmp_path / "classes")) == 0
    assert top1_of("by_class") == "judged on 5 labelled photographs"
    record = find("by_class").manifest["files"]["int8-cpu.onnx"]
    assert record["parity"]["top1_loss"] == 0.0
    assert "not judged" not in capsys.readouterr().err


def test_classes_that_int8_loses_are_not_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last layer's rows in another order: probabilities as sure as before, of other classes."""
    original = quantize.Calibrated.quantize

    def ruined(self: Any, path: Path, recipe: Any, keep_float: Any = ()) -> None:
        original(self, path, recipe, keep_float)
        model = onnx.load(path)
        last = [w for w in model.graph.initializer if len(w.dims) == 2][-1]
        last.CopyFrom(numpy_helper.from_array(np.roll(numpy_helper.to_array(last), 1, axis=0), last.name))
        onnx.save(model, path)

    monkeypatch.setattr(quantize.Calibrated, "quantize", ruined)
    folder = by_class(tmp_path / "classes")
    assert export("lenet5", "--name", "lost", *INT8, "--calibration", folder) == 1
    assert "top-1 loss" in capsys.readouterr().err


def test_what_cannot_be_judged_is_said_once_and_recorded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = pictures(tmp_path, *(f"{i}.png" for i in range(4)))
    assert export("lenet5", "--name", "unjudged", *INT8, "--calibration", folder) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and "unjudged: top-1 accuracy in int8 is not judged, no labels" in err
    assert top1_of("unjudged") == "not judged, no labels"
    assert find("unjudged").manifest["files"]["int8-cpu.onnx"]["parity"]["top1_loss"] is None
    assert export("lenet5", "--name", "noise", "--weights", "untrained", *INT8) == 0
    assert top1_of("noise") == "not judged, untrained weights"
    assert capsys.readouterr().err == ""


def test_labels_that_do_not_fit_are_an_error_and_no_reason_to_pass(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = pictures(tmp_path, "a.png", "b.png")
    (folder / "labels.json").write_text(json.dumps({"a.png": 10}))
    assert export("lenet5", *INT8, "--calibration", folder) == 1
    assert "class 10 is outside the 10 classes" in capsys.readouterr().err
