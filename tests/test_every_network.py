"""Every network of the table, built, exported and compared with PyTorch in every engine. Takes some minutes."""

from __future__ import annotations

import shutil

import pytest

from export.__main__ import main
from models import SPECS
from serving.artifact import find


@pytest.mark.slow
@pytest.mark.parametrize("name", SPECS)
def test_it_exports_and_passes_parity(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--weights", "untrained", "--max-batch", "8", "--no-tune"]) == 0, capsys.readouterr().err
    artifact = find(name)
    row, manifest = SPECS[name], artifact.manifest
    parity = manifest["files"]["fp32.onnx"]["parity"]
    assert parity["verdict"] == "pass"
    assert set(parity["by_engine"]) >= {"onnxruntime", "openvino"}
    assert (manifest["params"], manifest["macs"], manifest["year"]) == (row.params, row.macs, row.year)
    assert manifest["weights"]["kind"] == "untrained"
    shutil.rmtree(artifact.folder)  # together they would take gigabytes
