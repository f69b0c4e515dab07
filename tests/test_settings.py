"""The variables `PODIUM_*`: every one that something reads is known, and any other is named."""

from __future__ import annotations

import re

import pytest

from models.console import Failure
from serving.__main__ import main
from serving.settings import SETTINGS, Settings, unknown
from tests.conftest import ROOT

READ = [f"PODIUM_{setting.name}" for setting in SETTINGS]


def test_what_the_project_itself_sets_and_reads_is_known() -> None:
    written: set[str] = set(READ)
    for pattern in ("deploy/**/*.yaml", "deploy/*.cfg", "serving/*.py", "models/*.py", "docs/*.md", "benchmarks/*.py"):
        for path in ROOT.glob(pattern):
            written.update(re.findall(r"\bPODIUM_[A-Z0-9_]*[A-Z0-9]\b", path.read_text("utf-8")))
    assert len(written) > len(SETTINGS) + 8
    assert unknown(dict.fromkeys(written, "")) == []


@pytest.mark.parametrize("service", ["PODIUM", "PODIUM_CANARY"])
def test_what_kubernetes_sets_for_a_service_of_our_name_is_known(service: str) -> None:
    """https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables"""
    names = ("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_3000_TCP", "PORT_3000_TCP_PROTO",
             "PORT_3000_TCP_PORT", "PORT_3000_TCP_ADDR")  # fmt: skip
    assert unknown({f"{service}_{name}": "" for name in names}) == []


def test_what_is_not_ours_is_nobodys_business() -> None:
    assert unknown({"PATH": "", "podium_models": "", "OTHER_PODIUM_MODLES": "", "PODIUM": ""}) == []


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("PODIUM_MODLES", "MODELS"), ("PODIUM_TOKENS", "TOKEN"), ("PODIUM_MAX_BODY", "MAX_BODY_MB"),
        ("PODIUM_TIMEOUT", "TIMEOUT_MS"), ("PODIUM_ADMINTOKEN", "ADMIN_TOKEN"), ("PODIUM_MODELS_", "MODELS"),
        ("PODIUM_PORTS", ""), ("PODIUM_", ""), ("PODIUM_\n", ""), ("PODIUM_\x1b[31m", ""),
    ],
)  # fmt: skip
def test_a_variable_that_nothing_reads_is_named(name: str, meant: str) -> None:
    [line] = unknown({**dict.fromkeys(READ, ""), name: "its value"})
    assert line.startswith(f"{name!r} is not a setting") and "its value" not in line and line.isprintable()
    assert f"did you mean PODIUM_{meant}?" in line if meant else "there are PODIUM_MODELS" in line


@pytest.mark.parametrize("value", [" padded-word", "padded-word ", "padded-word\n", "padded\tword", "  "])
def test_a_token_that_no_header_can_carry_is_refused(value: str) -> None:
    for name in ("PODIUM_TOKEN", "PODIUM_ADMIN_TOKEN"):
        with pytest.raises(Failure, match=f"^{name}: its value must be printable") as failure:
            Settings.read({name: value})
        assert "word" not in str(failure.value)


@pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecatedSince211")  # BentoML 1.4.40 at its import
def test_bulk_names_a_misspelt_setting_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PODIUM_ENGIN", "openvino")
    assert main(["bulk", "photographs", "--model", "nothing", "--out", "answers"]) == 1
    first, second = capsys.readouterr().err.splitlines()
    assert "'PODIUM_ENGIN' is not a setting and changes nothing; did you mean PODIUM_ENGINE?" in first
    assert "no exported model is called 'nothing'" in second
