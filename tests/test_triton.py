"""The model repository for Triton: read back with the ModelConfig message that tritonclient ships."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import onnx
import pytest

from export.store import manifest_of, save
from export.triton import MARK, onnx_ends, write_repository
from models.console import Failure
from models.preprocess import Preprocess, default_labels
from serving.artifact import Artifact
from tests.conftest import save_tiny, tiny_onnx

PLAN = {"buckets": [1, 2, 4], "any_batch": 3, "input": "image", "output": "probabilities", "engine": "tensorrt"}


@pytest.fixture(scope="module")
def schema() -> Any:
    """model_config_pb2 by its path: importing it as part of its package would require grpcio."""
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        pytest.skip("tritonclient is not installed")
    path = Path(package.submodule_search_locations[0]) / "grpc" / "model_config_pb2.py"
    found = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    return module


def read(schema: Any, folder: Path) -> Any:
    from google.protobuf import text_format

    return text_format.Parse((folder / "config.pbtxt").read_text("utf-8"), schema.ModelConfig())


def planned(network: str, folder: Path, record: dict[str, Any] | None = PLAN, max_batch: int = 4) -> Artifact:
    """An artifact with a plan; its bytes are never run here."""
    manifest = manifest_of(
        network,
        {"kind": "untrained", "origin": "seed 0", "sha256": None, "license": None},
        Preprocess(resize=36, crop=32),
        10,
        max_batch=max_batch,
    )
    name = "tensorrt-fp16-nvidia-l4.plan"
    (folder / name).write_bytes(b"plan")
    manifest["files"] = {name: {"engines": ["tensorrt"], "precision": "fp16"}}
    if record:
        manifest["files"][name]["plan"] = record
    return save(manifest, {name: folder / name}, default_labels(10))


def test_an_onnx_artifact_is_served_as_its_graph_and_manifest_say(schema: Any, tiny: Artifact, tmp_path: Path) -> None:
    made = write_repository(tiny, tmp_path / "models")
    folder = tmp_path / "models" / "tiny"
    assert (folder / "1" / "model.onnx").read_bytes() == (tiny.folder / "fp32.onnx").read_bytes()
    config = read(schema, folder)
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 64)
    (image,), (scores,) = config.input, config.output
    assert (image.name, list(image.dims)) == ("image", [32, 32, 3])
    assert image.data_type == schema.TYPE_UINT8
    assert (scores.name, list(scores.dims), scores.label_filename) == ("probabilities", [10], "labels.txt")
    assert scores.data_type == schema.TYPE_FP32
    assert config.HasField("dynamic_batching")
    assert config.dynamic_batching.max_queue_delay_microseconds == 2000
    assert [group.kind for group in config.instance_group] == [schema.ModelInstanceGroup.KIND_CPU]
    assert [(w.batch_size, list(w.inputs["image"].dims)) for w in config.model_warmup] == [
        (1, [32, 32, 3]),
        (64, [32, 32, 3]),
    ]
    assert all(w.inputs["image"].random_data for w in config.model_warmup)
    labels = (folder / "labels.txt").read_text("utf-8").splitlines()
    assert labels == [item.label for item in tiny.labels]
    assert (made.engine, made.precision) == ("onnxruntime", "fp32")


def test_the_command_mounts_the_repository_and_requests_gpus_only_for_a_gpu(tiny: Artifact, tmp_path: Path) -> None:
    cpu = write_repository(tiny, tmp_path / "with space").command
    assert f"'{tmp_path}/with space:/models:ro'" in cpu
    assert cpu.endswith("tritonserver --model-repository /models")
    assert "--gpus" not in cpu
    assert "--gpus all" in write_repository(tiny, tmp_path / "gpu", gpu=True).command


def test_an_onnx_file_runs_on_the_gpu_when_asked(schema: Any, tiny: Artifact, tmp_path: Path) -> None:
    write_repository(tiny, tmp_path, gpu=True)
    assert read(schema, tmp_path / "tiny").instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU


def test_a_plan_is_served_through_its_profile_of_every_size(schema: Any, tmp_path: Path) -> None:
    artifact = planned("planned", tmp_path)
    made = write_repository(artifact, tmp_path / "models")
    folder = tmp_path / "models" / "planned"
    config = read(schema, folder)
    assert (folder / "1" / "model.plan").read_bytes() == b"plan"
    assert (config.backend, config.max_batch_size) == ("tensorrt", 4)
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.KIND_GPU
    assert list(config.instance_group[0].profile) == ["3"]
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4]
    assert made.gpu


def test_a_plan_for_one_image_is_not_batched(schema: Any, tmp_path: Path) -> None:
    artifact = planned("single", tmp_path, {**PLAN, "buckets": [1], "any_batch": None}, max_batch=1)
    write_repository(artifact, tmp_path / "models")
    config = read(schema, tmp_path / "models" / "single")
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")
    assert [w.batch_size for w in config.model_warmup] == [1]


@pytest.mark.parametrize(
    ("record", "complaint"), [(None, "no record"), ({**PLAN, "any_batch": None}, "no profile for every batch size")]
)
def test_a_plan_that_triton_could_not_run_is_refused(
    record: dict[str, Any] | None, complaint: str, tmp_path: Path
) -> None:
    artifact = planned("unfit", tmp_path, record)
    with pytest.raises(Failure, match=complaint):
        write_repository(artifact, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_names_that_need_quoting_are_quoted(schema: Any, tmp_path: Path) -> None:
    path = tiny_onnx(tmp_path / "odd.onnx")
    model = onnx.load(path)
    model.graph.node[0].input[0] = model.graph.input[0].name = 'an "odd"\\name'
    onnx.save(model, path)
    assert onnx_ends(path) == ('an "odd"\\name', "probabilities")
    artifact = planned("odd", tmp_path, {**PLAN, "input": 'an "odd"\\name'})
    write_repository(artifact, tmp_path / "models")
    assert read(schema, tmp_path / "models" / "odd").input[0].name == 'an "odd"\\name'


def test_a_second_network_joins_and_a_second_version_replaces(schema: Any, tiny: Artifact, tmp_path: Path) -> None:
    out = tmp_path / "models"
    write_repository(tiny, out)
    (out / "tiny" / "1" / "stale").write_text("")
    write_repository(save_tiny(tmp_path, "other", classes=7), out)
    write_repository(tiny, out)
    assert sorted(p.name for p in out.iterdir()) == sorted(["other", "tiny", MARK])
    assert not (out / "tiny" / "1" / "stale").exists()
    assert list(read(schema, out / "other").output[0].dims) == [7]
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".podium-")] == []


def test_a_folder_that_we_did_not_write_is_left_alone(tiny: Artifact, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(Failure, match="not a repository of ours"):
        write_repository(tiny, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "file").write_text("")
    with pytest.raises(Failure, match="cannot write to"):
        write_repository(tiny, tmp_path / "file")


@pytest.mark.parametrize(
    ("engine", "precision", "complaint"),
    [
        ("openvino", "auto", "choose onnxruntime or tensorrt"),
        ("tensorrt", "auto", "no file that Triton can run as engine tensorrt"),
        ("auto", "int8", "it has onnxruntime fp32, openvino fp32"),
    ],
)
def test_what_triton_cannot_run_is_refused(
    engine: str, precision: str, complaint: str, tiny: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(Failure, match=complaint):
        write_repository(tiny, tmp_path / "models", engine, precision)
    assert not (tmp_path / "models").exists()


def test_a_changed_file_is_not_exported(tmp_path: Path) -> None:
    artifact = save_tiny(tmp_path, "changed")
    copied = tmp_path / "copy"
    shutil.copytree(artifact.folder, copied)
    with (copied / "fp32.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(Failure, match="changed or damaged"):
        write_repository(Artifact(copied, artifact.manifest), tmp_path / "models")
