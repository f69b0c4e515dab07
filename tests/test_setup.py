"""What the set-up must hold beyond what pip resolves."""

from __future__ import annotations

import ssl
from pathlib import Path

import certifi


def test_the_installed_bundle_trusts_none_of_the_emsign_roots() -> None:
    """BentoML 1.4.40 raised the least certifi it takes to drop them; the Makefile lowers that floor by one day."""
    context = ssl.create_default_context(cafile=certifi.where())
    names = [str(certificate["subject"]).lower() for certificate in context.get_ca_certs()]
    assert len(names) > 100
    assert not [name for name in names if "emsign" in name or "emudhra" in name]


def test_the_requirements_of_serving_do_not_include_torch() -> None:
    import tomllib

    from tests.conftest import ROOT

    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    serving = [*project["dependencies"], *project["optional-dependencies"]["cpu"]]
    assert not [need for need in serving if need.startswith(("torch", "onnx=", "onnxscript"))]
    assert Path(ROOT / "LICENSE").read_text("utf-8").lstrip().startswith("Apache License")
