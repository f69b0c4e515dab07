"""From network to artifact: it answers as PyTorch does or is not saved, and a changed artifact is not loaded."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from export import parity
from export.__main__ import main
from export.evaluate import Accuracy, evaluate
from export.store import artifacts, save
from export.to_onnx import Served
from models.console import Failure
from models.preprocess import Preprocess, default_labels
from models.weights import load
from serving.artifact import Artifact, ArtifactError, find
from serving.images import decode
from serving.limits import Limits
from serving.runtime import available, choose, open
from tests.conftest import ROOT, SHARED, export, save_tiny, tiny_onnx

DIGITS = ROOT / "examples" / "digits"


def test_the_manifest_holds_every_documented_field(lenet5: Artifact) -> None:
    manifest = lenet5.manifest
    assert (manifest["network"], manifest["family"], manifest["year"], manifest["classes"]) == (
        "lenet5",
        "lenet",
        1998,
        10,
    )
    assert manifest["weights"]["kind"] == "pretrained"
    assert len(manifest["weights"]["sha256"]) == 64
    assert manifest["input"] | {"mean": 0, "std": 0} == {
        "size": [32, 32], "resize": 32, "crop": 32, "interpolation": "bilinear", "mode": "L",
        "mean": 0, "std": 0, "layout": "NHWC", "dtype": "uint8",
    }  # fmt: skip
    record = manifest["files"]["fp32.onnx"]
    assert record["engines"] == ["onnxruntime", "openvino"]
    assert (record["precision"], record["opset"]) == ("fp32", 20)
    assert record["parent"]["sha256"] == manifest["weights"]["sha256"]
    assert record["size"] == (lenet5.folder / "fp32.onnx").stat().st_size
    assert record["parity"]["verdict"] == "pass"
    assert record["parity"]["images"] == {"photographs": 10, "random": 4, "extreme": 4}
    assert record["parity"]["thresholds"]["agreement"] == 1.0
    assert set(record["parity"]["by_engine"]) == {"onnxruntime", "openvino"}
    assert 0 < record["parity"]["max_abs_error"] < 1e-4
    assert manifest["environment"]["versions"]["torch"] == torch.__version__
    assert json.loads((lenet5.folder / "labels.json").read_text())[3] == {"label": "3", "synset": None}


def test_the_graph_takes_bytes_and_gives_probabilities(lenet5: Artifact) -> None:
    model = onnx.load(lenet5.folder / "fp32.onnx")
    image, scores = model.graph.input[0], model.graph.output[0]
    assert image.type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert [d.dim_param or d.dim_value for d in image.type.tensor_type.shape.dim][1:] == [32, 32, 1]
    assert image.type.tensor_type.shape.dim[0].dim_param
    assert [d.dim_param or d.dim_value for d in scores.type.tensor_type.shape.dim][1:] == [10]


def test_the_graph_carries_no_local_path(lenet5: Artifact) -> None:
    raw = (lenet5.folder / "fp32.onnx").read_bytes()
    assert str(ROOT).encode() not in raw
    assert b"site-packages" not in raw
    assert b".py" not in raw


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_every_engine_reads_the_example_digits_correctly(engine: str, lenet5: Artifact) -> None:
    runtime = open(lenet5, engine)
    assert (runtime.engine, runtime.precision) == (engine, "fp32")
    images = parity.inputs(lenet5.preprocess)
    scores = runtime.run(images.batch[:10])
    runtime.close()
    assert scores.argmax(1).tolist() == [int(Path(name).stem) for name in images.names[:10]]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("count", [1, 3, 64])
def test_every_batch_size_gives_what_single_images_give(engine: str, count: int, lenet5: Artifact) -> None:
    batch = np.random.default_rng(0).integers(0, 256, (count, 32, 32, 1), dtype=np.uint8)
    runtime = open(lenet5, engine)
    together = runtime.run(batch)
    alone = np.concatenate([runtime.run(batch[i : i + 1]) for i in range(count)])
    runtime.close()
    np.testing.assert_allclose(together, alone, atol=1e-5)


def test_exporting_again_keeps_an_unchanged_version(lenet5: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("lenet5") == 0
    assert "unchanged, kept" in capsys.readouterr().out
    assert find("lenet5").version == lenet5.version
    assert export("lenet5", "--max-batch", "8") == 0
    assert find("lenet5").version != lenet5.version


def test_verify_and_show_and_list(lenet5: Artifact, capsys: pytest.CaptureFixture[str]) -> None:
    assert export("verify", lenet5.tag) == 0
    out = capsys.readouterr().out
    assert f"{lenet5.tag} is whole" in out
    assert out.count("18 images checked") == len(available())
    assert export("show", lenet5.tag) == 0
    assert json.loads(capsys.readouterr().out)["files"]["fp32.onnx"]["parity"]["verdict"] == "pass"
    assert export("list") == 0
    assert lenet5.tag in capsys.readouterr().out
    assert export("list", "--json") == 0
    assert lenet5.tag in {row["tag"] for row in json.loads(capsys.readouterr().out)}


# --- the gate ---------------------------------------------------------------------------------------------------------


def broken_export(monkeypatch: pytest.MonkeyPatch, damage: Any) -> None:
    """Make the exporter write a graph whose weights `damage` has changed."""
    from export import to_onnx

    original = to_onnx.to_onnx

    def damaged(network: Any, path: Path, max_batch: int, **options: bool) -> None:
        original(network, path, max_batch, **options)
        model = onnx.load(path)
        for initializer in model.graph.initializer:
            values = onnx.numpy_helper.to_array(initializer)
            if values.dtype == np.float32 and values.size > 10:
                initializer.CopyFrom(onnx.numpy_helper.from_array(damage(values), initializer.name))
        onnx.save(model, path)

    monkeypatch.setattr(to_onnx, "to_onnx", damaged)


@pytest.mark.parametrize(
    ("damage", "complaint"),
    [
        (lambda w: w * 1.01, "relative error"),
        (lambda w: np.roll(w, 1), "agreement"),
        (lambda w: w * np.float32(np.nan), "not finite"),
    ],
    ids=["one percent", "shuffled", "nan"],
)
def test_a_graph_with_other_answers_is_not_saved(
    damage: Any, complaint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {a.tag for a in artifacts()}
    broken_export(monkeypatch, damage)
    assert export("lenet5", "--force") == 1
    err = capsys.readouterr().err
    assert complaint in err
    assert "Traceback" not in err
    assert {a.tag for a in artifacts()} == before


def scores_of(*rows: list[float]) -> Any:
    return np.array(rows, np.float32)


def images_of(count: int) -> parity.Inputs:
    names = tuple(f"image {i}" for i in range(count))
    return parity.Inputs(np.zeros((count, 1, 1, 3), np.uint8), names, ("photographs",) * count)


def test_agreement_ignores_ties() -> None:
    limits = parity.Thresholds("all", None, None, 0, lead=0.1, agreement=1.0)
    sure, tie = [0.7, 0.2, 0.1], [0.34, 0.33, 0.33]
    tie_turned = parity.compare(scores_of(sure, tie), scores_of(sure, [0.33, 0.34, 0.33]), images_of(2), limits)
    assert tie_turned.passed
    assert (tie_turned.top1_agreement, tie_turned.confident_agreement) == (0.5, 1.0)
    sure_turned = parity.compare(scores_of(sure, tie), scores_of([0.2, 0.7, 0.1], tie), images_of(2), limits)
    assert sure_turned.failures == ("agreement 0 < 1",)
    assert sure_turned.worst_image == "image 0"
    no_leads = parity.compare(scores_of(tie), scores_of(tie), images_of(1), limits)
    assert no_leads.confident_agreement is None


def test_a_handful_of_images_may_differ_in_one_answer_but_never_in_float32() -> None:
    rows = [[0.7, 0.2, 0.1]] * 20
    turned = [[0.2, 0.7, 0.1], *rows[1:]]
    for agreement, passed in ((1.0, False), (0.99, True)):
        limits = parity.Thresholds("all", None, None, 0, lead=0.1, agreement=agreement)
        assert parity.compare(scores_of(*rows), scores_of(*turned), images_of(20), limits).passed == passed
    two = [turned[0], turned[0], *rows[2:]]
    assert not parity.compare(scores_of(*rows), scores_of(*two), images_of(20), limits).passed


def test_int8_is_judged_by_photographs_and_by_their_labels() -> None:
    right, wrong = [0.8, 0.1, 0.1], [0.1, 0.8, 0.1]
    images = parity.Inputs(
        np.zeros((4, 1, 1, 3), np.uint8), tuple("abcd"), ("photographs",) * 3 + ("extreme",), (0, 0, 0, -1)
    )
    limits = parity.Thresholds("photographs", None, None, 0.5, lead=1.0, agreement=0.99, top1_loss=1.0)
    flat = parity.compare(scores_of(right, right, right, right), scores_of(right, right, right, wrong), images, limits)
    assert flat.passed, "noise, which calibration never sees, must not decide the verdict"
    lost = parity.compare(scores_of(*[right] * 4), scores_of(right, wrong, wrong, right), images, limits)
    assert lost.top1_loss == pytest.approx(200 / 3)
    assert any(f.startswith("top-1 loss") for f in lost.failures)


def test_the_relative_error_is_that_of_the_logits() -> None:
    logits = np.random.default_rng(0).normal(size=(5, 1000)) * 3

    def softmax(z: NDArray[np.float64]) -> NDArray[np.float32]:
        exponents = np.exp(z)
        return np.asarray(exponents / exponents.sum(1, keepdims=True), np.float32)

    moved = logits.copy()
    moved[2, 7] += 0.05
    centred = logits - logits.mean(1, keepdims=True)
    verdict = parity.compare(softmax(logits), softmax(moved), images_of(5), parity.THRESHOLDS["fp32"])
    assert verdict.max_relative_error == pytest.approx(0.05 / np.abs(centred[2]).max(), rel=0.01)
    assert verdict.worst_image == "image 2"
    assert not verdict.passed


def test_inputs_hold_photographs_noise_and_extremes(tmp_path: Path) -> None:
    found = parity.inputs(Preprocess())
    assert found.counts() == {"photographs": 4, "random": 4, "extreme": 4}
    named = dict(zip(found.names, found.batch, strict=True))
    assert named["all black"].max() == 0
    assert named["all white"].min() == 255
    assert set(np.unique(named["checkerboard"])) == {0, 255}
    (tmp_path / "a.jpg").write_bytes(b"no image")
    with pytest.raises(Failure, match=r"a\.jpg is not a readable image"):
        parity.inputs(Preprocess(), parity.photographs(tmp_path))
    with pytest.raises(Failure, match="holds no photographs"):
        parity.photographs(tmp_path / "nowhere")


def test_a_photograph_is_judged_on_the_pixels_that_the_service_makes_of_it(tmp_path: Path) -> None:
    ramp = np.add.outer(np.arange(300), 2 * np.arange(400)).astype(np.uint8)
    turned = Image.Exif()
    turned[274] = 6
    Image.fromarray(ramp).save(tmp_path / "a.png", exif=turned)
    judged = parity.read(tmp_path / "a.png", Preprocess())
    assert np.array_equal(judged, decode((tmp_path / "a.png").read_bytes(), Preprocess(), Limits(1_000_000)))
    Image.fromarray(ramp).transpose(Image.Transpose.ROTATE_270).save(tmp_path / "b.png")
    assert np.array_equal(judged, parity.read(tmp_path / "b.png", Preprocess()))


# --- trust ------------------------------------------------------------------------------------------------------------


def test_a_changed_file_is_never_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = save_tiny(tmp_path, "changed")
    graph = artifact.folder / "fp32.onnx"
    graph.chmod(0o644)
    graph.write_bytes(graph.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="changed or damaged"):
        open(artifact)
    assert export("verify", "changed") == 1
    assert "sha256" in capsys.readouterr().err


def test_a_link_an_absent_file_and_a_path_outside_are_refused(tmp_path: Path) -> None:
    artifact = save_tiny(tmp_path, "linked")
    graph = artifact.folder / "fp32.onnx"
    graph.unlink()
    with pytest.raises(ArtifactError, match="is missing"):
        artifact.file("fp32.onnx")
    graph.symlink_to(tiny_onnx(tmp_path / "elsewhere.onnx"))
    with pytest.raises(ArtifactError, match="plain file"):
        artifact.file("fp32.onnx")
    artifact.manifest["files"]["../fp32.onnx"] = artifact.manifest["files"]["fp32.onnx"]
    with pytest.raises(ArtifactError, match="plain file"):
        artifact.file("../fp32.onnx")
    with pytest.raises(ArtifactError, match="not recorded"):
        artifact.file("other.onnx")


def test_a_damaged_manifest_is_named_and_hides_no_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    artifact = save_tiny(tmp_path, "damaged")
    (artifact.folder / "manifest.json").write_text("{}")
    with pytest.raises(ArtifactError, match="lacks"):
        find("damaged")
    (artifact.folder / "manifest.json").write_text("{")
    with pytest.raises(ArtifactError, match=r"no readable manifest\.json"):
        find("damaged")
    assert "damaged" not in {a.network for a in artifacts()}
    assert "no readable manifest.json" in capsys.readouterr().err
    bentoml.models.delete(artifact.tag)


def test_a_failed_save_leaves_nothing(tiny: Artifact, tmp_path: Path) -> None:
    before = {a.tag for a in artifacts()}
    files = {"fp32.onnx": tmp_path / "nowhere.onnx"}
    with pytest.raises(Failure, match="cannot save"):
        save({**tiny.manifest, "files": {"fp32.onnx": {}}}, files, default_labels(10))
    with pytest.raises(Failure, match="9 labels for 10 classes"):
        save(tiny.manifest, {}, default_labels(9))
    assert {a.tag for a in artifacts()} == before


def test_the_engine_that_runs_is_the_one_that_is_named(tiny: Artifact) -> None:
    assert choose(tiny, "openvino")[:2] == ("openvino", "fp32")
    for engine, precision, complaint in (
        ("abacus", "auto", "no engine is called"),
        ("auto", "int8", "has no file for engine auto at precision int8"),
    ):
        with pytest.raises(ArtifactError, match=complaint):
            choose(tiny, engine, precision)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "status", "complaint"),
    [
        ([], 2, "name a network"),
        (["resnet5"], 2, "did you mean"),
        (["lenet5", "--precision", "fp7"], 2, "choose from fp32"),
        (["lenet5", "--engine", "abacus"], 2, "choose from onnxruntime, openvino"),
        (["lenet5", "--weights", "nowhere.pth"], 2, "is neither a file nor"),
        (["lenet5", "--max-batch", "0"], 2, "at least 1"),
        (["lenet5", "--labels", "nowhere.txt"], 2, "nowhere.txt"),
        (["--module", "nowhere"], 2, "package.module:callable"),
        (["--module", "nowhere.py:network"], 2, "no such file"),
        (["--module", "nowhere:network"], 1, "is what it needs installed?"),
        (["--module", "json:nothing"], 2, "no callable"),
        (["--module", "builtins:dict"], 2, "expected a models.weights.Network"),
        (["lenet5", "--module", "json:loads"], 2, "give one of these"),
        (["verify", "nothing"], 1, "python -m export nothing"),
        (["show", "nothing"], 1, "no exported model"),
        (["show", "no/thing!"], 1, "no exported model"),
    ],
)
def test_mistakes_get_one_line_and_a_status(
    argv: list[str], status: int, complaint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert export(*argv) == status
    err = capsys.readouterr().err
    assert complaint in err
    assert err.count("\n") == 1


def test_a_wrong_key_exits_1_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = load("lenet5", "pretrained").module.state_dict()
    first = next(iter(state))
    state["typo"] = state.pop(first)
    torch.save(state, tmp_path / "wrong.pth")
    assert export("lenet5", "--weights", tmp_path / "wrong.pth") == 1
    err = capsys.readouterr().err
    assert f"missing {first}" in err
    assert "unexpected typo" in err


def test_one_failure_in_a_set_does_not_stop_the_others(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from models import weights

    real = weights.load
    monkeypatch.setattr(
        weights, "load", lambda name, *rest: real("nothing" if name == "alexnet" else name, *rest) if name != "alexnet"
        else (_ for _ in ()).throw(weights.WeightsError("alexnet.pth: damaged")),
    )  # fmt: skip
    assert export("alexnet", "lenet5") == 1
    captured = capsys.readouterr()
    assert "lenet5:" in captured.out
    assert "1 of 2 networks failed: alexnet" in captured.err


@pytest.mark.parametrize("argv", [["--help"], ["verify", "--help"], ["evaluate", "--help"]])
def test_help_shows_an_example(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    assert stopped.value.code == 0
    assert "example:\n  python -m export" in capsys.readouterr().out


def test_debug_shows_the_traceback() -> None:
    command = [sys.executable, "-m", "export", "show", "nothing", "--debug"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


# --- networks of your own ---------------------------------------------------------------------------------------------

OWN = """
import torch
from models.console import Failure
from models.preprocess import Preprocess
from models.weights import Network, Weights

def network():
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(),
                                 torch.nn.Linear(4, 5))
    return Network("own", module, Weights("custom", "drawn"), Preprocess(resize=40, crop=32), classes=5)

def bare():
    return torch.nn.Sequential(torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 1000))

def headless():
    return torch.nn.AdaptiveAvgPool2d(1)
"""


def test_a_network_of_your_own_is_exported_from_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = tmp_path / "mine.py"
    source.write_text(OWN)
    assert export("--module", f"{source}:network") == 0
    assert find("own").classes == 5
    assert find("own").weights == "custom"
    assert export("--module", f"{source}:bare") == 0
    assert find("bare").labels[281].label == "tabby"
    assert export("--module", f"{source}:headless") == 1
    assert "expected (2, 1000)" in capsys.readouterr().err


def test_the_example_network_names_the_cat(efficientnet_lite0: Artifact) -> None:
    runtime = open(efficientnet_lite0)
    images = parity.inputs(efficientnet_lite0.preprocess)
    best = runtime.run(images.batch[:4]).argmax(1)
    runtime.close()
    named = {name: efficientnet_lite0.labels[i].label for name, i in zip(images.names, best, strict=False)}
    assert named["cat.jpg"] in ("Egyptian cat", "tabby")
    assert named["coffee.jpg"] == "espresso"
    assert efficientnet_lite0.weights == "pretrained"


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_accuracy_has_wilsons_interval() -> None:
    assert Accuracy(68, 100).interval == pytest.approx((58.3, 76.3), abs=0.1)
    assert Accuracy(10, 10).interval[1] == pytest.approx(100)


def test_evaluate_reads_folders_and_labels_json(
    lenet5: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in DIGITS.glob("*.png"):
        (tmp_path / path.stem).mkdir()
        (tmp_path / path.stem / path.name).write_bytes(path.read_bytes())
    result = evaluate(lenet5, tmp_path)
    assert (result.top1.hits, result.top1.images, result.top5.hits) == (10, 10, 10)
    assert result.predictions["7/7.png"][0][0] == 7

    flat = tmp_path / "flat"
    flat.mkdir()
    for path in DIGITS.glob("*.png"):
        (flat / path.name).write_bytes(path.read_bytes())
    (flat / "labels.json").write_text(json.dumps({f"{i}.png": i if i else 9 for i in range(10)}))
    assert export("evaluate", lenet5.tag, "--images", flat, "--json") == 0
    assert [r["top1"]["hits"] for r in json.loads(capsys.readouterr().out)] == [9] * len(available()), (
        "the zero that is labelled a nine is a miss"
    )

    (flat / "labels.json").write_text(json.dumps({"nowhere.png": 1}))
    assert export("evaluate", lenet5.tag, "--images", flat) == 1
    assert "nowhere.png" in capsys.readouterr().err
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "a.png").write_bytes((DIGITS / "1.png").read_bytes())
    assert export("evaluate", lenet5.tag, "--images", tmp_path) == 1
    assert "names none of the 10 classes" in capsys.readouterr().err


@pytest.mark.skipif(not (SHARED / "images").is_dir(), reason="the labelled photographs of ../shared are not here")
def test_the_example_network_scores_on_photographs_what_pytorch_scores(efficientnet_lite0: Artifact) -> None:
    from examples.efficientnet_lite0 import network

    own = network()
    served = Served(own.module.eval(), own.preprocess)
    result = evaluate(efficientnet_lite0, SHARED / "images")
    images = parity.inputs(own.preprocess, parity.photographs(SHARED / "images"))
    with torch.inference_mode():
        reference = parity.scores(lambda x: served(torch.from_numpy(x)).numpy(), images.batch[:100], (10,), "PyTorch")
    best = dict(zip(images.names, reference.argmax(1).tolist(), strict=False))
    assert {name: top[0][0] for name, top in result.predictions.items()} == best
    assert result.top1.percent > 80
