"""What BentoML, uvicorn and circus do not promise is as it was in the versions we pin, and a change of it is told."""

from __future__ import annotations

import ast
import inspect
import os
import re
import signal
import subprocess
import textwrap
import tomllib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bentoml
import circus.arbiter
import circus.exc
import click
import pytest
import uvicorn.config
import uvicorn.protocols.http.httptools_impl as httptools_impl
import uvicorn.server
from _bentoml_sdk import Service
from bentoml._internal.configuration.containers import BentoMLContainer
from bentoml.exceptions import BentoMLConfigException
from prometheus_client import CollectorRegistry
from starlette.applications import Starlette

import serving.bentoml_seams as seams
from serving.api import Api
from serving.artifact import Artifact
from serving.behind import DOCUMENTS
from serving.bentoml_seams import PINNED, SeamError
from serving.connection import Bounds, Connection
from tests.conftest import ROOT
from tests.fakes.server import BENTOML

Patch = pytest.MonkeyPatch


@pytest.fixture(autouse=True)
def restored(monkeypatch: Patch) -> None:
    """What the seams change in other packages is put back after each test."""
    monkeypatch.setattr(circus.arbiter.Arbiter, "start", circus.arbiter.Arbiter.start)
    monkeypatch.setitem(uvicorn.config.HTTP_PROTOCOLS, "auto", uvicorn.config.HTTP_PROTOCOLS["auto"])
    seams.request_cycle.cache_clear()


def protocol(config: Any, server_state: Any, app_state: Any, _loop: Any = None) -> Connection:
    return Connection(config, server_state, app_state, _loop, bounds=Bounds())


def serve_command(**options: object) -> Any:
    context = click.Context(click.Command("serve"), info_name="serve")
    context.params.update(options)
    with context:
        return seams.serve_command()


def application() -> Any:
    return seams.fronted(lambda app: app, DOCUMENTS)(name="empty").to_asgi()


def test_the_versions_are_those_that_are_installed_and_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    for package, pinned in PINNED.items():
        assert version(package) == pinned
        assert f"{package}=={pinned}" in project["dependencies"]


def test_no_other_module_relies_on_what_is_not_promised() -> None:
    private = re.compile(
        r"\bbentoml\._|_bentoml_|\bHTTP_PROTOCOLS\b|\bcircus\b|__class__ =|uvicorn\.protocols|getsignal"
    )
    code = [ROOT / "service.py", *(ROOT / "serving").glob("*.py"), *(ROOT / "export").glob("*.py")]
    assert [path.name for path in code if private.search(path.read_text("utf-8"))] == ["bentoml_seams.py"]


# As they are


def test_uvicorn_makes_connections_by_our_protocol() -> None:
    seams.accept_with(protocol)
    config = uvicorn.Config("tests.test_seams:protocol", log_config=None)
    config.load()
    assert config.http_protocol_class is protocol


def test_the_cycle_asks_a_connection_for_nothing_that_it_has_not() -> None:
    tree = ast.parse(textwrap.dedent(inspect.getsource(seams.request_cycle())))
    asked = {
        node.attr
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("self.transport", "self.flow")
    }
    assert {"write", "close", "is_closing", "drain", "write_paused", "resume_reading"} >= asked and "drain" in asked
    given = {*vars(Connection), *re.findall(r"self\.(\w+)", inspect.getsource(Connection.__init__))}
    assert asked <= given


def test_bentoml_serves_what_stands_in_front_of_its_application() -> None:
    kind = seams.fronted(lambda app: ("in front of", app), DOCUMENTS)
    service = bentoml.service(name="empty", service_class=kind)(type("Empty", (), {}))
    place, app = service.to_asgi()
    assert place == "in front of" and isinstance(app, Starlette)


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        ({"tracing": {"exporter_type": None}}, False),
        ({"tracing": {"exporter_type": "otlp"}}, True),
        ({"tracing": {"exporter_type": None}, "services": {"podium": {"tracing": {"exporter_type": "jaeger"}}}}, True),
        ({"tracing": {"exporter_type": None}, "services": {"podium": {"tracing": None}, "other": 1}}, False),
    ],
)
def test_traces_are_wanted_if_an_exporter_is_configured(monkeypatch: Patch, config: Any, wanted: bool) -> None:
    assert "exporter_type" in BentoMLContainer.config.get()["tracing"]
    monkeypatch.setattr(BentoMLContainer, "config", SimpleNamespace(get=lambda: config))
    assert seams.tracing_wanted() is wanted


def test_bentoml_serve_has_the_options_that_are_read() -> None:
    told = subprocess.run([*BENTOML, "serve", "--help"], capture_output=True, text=True, check=True).stdout
    assert {"--host", "--port", "--reload"} <= set(re.findall(r"--[a-z]+", told))
    assert seams.serve_command() is None
    assert serve_command(host="::1", port=3000, reload=False).params["port"] == 3000
    with click.Context(click.Command("other"), info_name="other"):
        assert seams.serve_command() is None


def test_the_arbiter_is_told_of_when_it_starts() -> None:
    seen = list[Any]()
    circus.arbiter.Arbiter.start = lambda self, cb=None: seen.append((self, cb))
    started = seams.started_arbiters()
    circus.arbiter.Arbiter.start("the arbiter", None)
    assert started == ["the arbiter"] and seen == [("the arbiter", None)]


def test_a_worker_takes_no_other_descriptor_for_its_pipe(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    try:
        assert seams.inherited_pipe(writing) == writing
        with (tmp_path / "file").open("w") as file, pytest.raises(SeamError, match="is not a pipe"):
            seams.inherited_pipe(file.fileno())
    finally:
        os.close(reading)
        os.close(writing)
    with pytest.raises(SeamError, match=r"inherit file descriptors, which Podium relies on: .*Bad file descriptor"):
        seams.inherited_pipe(writing)


# As they are not


class Cycle(httptools_impl.RequestResponseCycle):
    def __init__(self, scope: Any, wire: Any) -> None:
        pass


class Forgetful(httptools_impl.RequestResponseCycle):
    __init__ = inspect.unwrap(httptools_impl.RequestResponseCycle.__init__)

    def __getattribute__(self, name: str) -> Any:
        if name == "waiting_for_100_continue":
            raise AttributeError(name)
        return super().__getattribute__(name)


class NoTasks:
    def __init__(self) -> None:
        self.connections, self.total_requests, self.default_headers = set[Any](), 0, list[Any]()


CHANGES: dict[str, tuple[str, Callable[[Patch], object], Callable[[], object]]] = {
    "no cycle": (
        "uvicorn", lambda patch: patch.delattr(httptools_impl, "RequestResponseCycle"), seams.request_cycle),
    "a cycle of other arguments": (
        "uvicorn", lambda patch: patch.setattr(httptools_impl, "RequestResponseCycle", Cycle), seams.request_cycle),
    "a cycle of another state": (
        "uvicorn", lambda patch: patch.setattr(httptools_impl, "RequestResponseCycle", Forgetful), seams.request_cycle),
    "a server of another state": (
        "uvicorn", lambda patch: patch.setattr(uvicorn.server, "ServerState", NoTasks), seams.request_cycle),
    "no table of protocols": (
        "uvicorn", lambda patch: patch.delattr(uvicorn.config, "HTTP_PROTOCOLS"), lambda: seams.accept_with(protocol)),
    "a table that nobody reads": (
        "uvicorn", lambda patch: patch.setattr(uvicorn.config.Config, "load", lambda self: setattr(
            self, "http_protocol_class", httptools_impl.HttpToolsProtocol)), lambda: seams.accept_with(protocol)),
    "protocols of other arguments": (
        "uvicorn", lambda patch: patch.setattr(httptools_impl.HttpToolsProtocol, "__init__", lambda self, server: None),
        lambda: seams.accept_with(protocol)),
    "a signal that is handled otherwise": (
        "uvicorn", lambda patch: patch.setattr(signal, "getsignal", lambda number: signal.SIG_DFL),
        lambda: seams.exit_handler(signal.SIGTERM)),
    "no service_class": (
        "bentoml", lambda patch: patch.setattr(bentoml, "service", lambda inner=None, **config: inner), application),
    "another to_asgi": (
        "bentoml", lambda patch: patch.setattr(Service, "to_asgi", lambda self: None), application),
    "no schema": (
        "bentoml", lambda patch: patch.setattr(Service, "to_asgi", lambda self, is_main: Starlette()), application),
    "no configuration of tracing": (
        "bentoml", lambda patch: patch.setattr(BentoMLContainer, "config", SimpleNamespace(get=dict)),
        seams.tracing_wanted),
    "no option --port": (
        "bentoml", lambda patch: None, lambda: serve_command(host="", reload=False)),
    "no arbiter": (
        "kantoku", lambda patch: patch.delattr(circus.arbiter, "Arbiter"), seams.started_arbiters),
    "an arbiter that manages otherwise": (
        "kantoku", lambda patch: patch.delattr(circus.arbiter.Arbiter, "manage_watchers"), seams.started_arbiters),
    "an arbiter that is never busy": (
        "kantoku", lambda patch: patch.delattr(circus.exc, "ConflictError"), seams.started_arbiters),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_on_the_other_side_is_told_in_one_sentence(monkeypatch: Patch, change: str) -> None:
    package, away, use = CHANGES[change]
    away(monkeypatch)
    with pytest.raises(SeamError) as failure:
        use()
    [line] = str(failure.value).splitlines()
    assert line.startswith(f"{package} {PINNED[package]} has changed ") and ", which Podium relies on: " in line
    assert line.endswith(f"; pip install '{package}=={PINNED[package]}'")


def test_a_bento_whose_description_is_another_is_told_of(monkeypatch: Patch, tmp_path: Path) -> None:
    assert seams.models_of_bento(tmp_path / "src") is None
    (tmp_path / "bento.yaml").touch()
    monkeypatch.setattr(bentoml, "Bento", SimpleNamespace(from_path=lambda path: SimpleNamespace(info=path)))
    with pytest.raises(SeamError, match=r"bentoml .* the models that a bento's description lists"):
        seams.models_of_bento(tmp_path / "src")


def test_the_service_is_not_built_on_what_has_changed(tiny: Artifact, monkeypatch: Patch) -> None:
    monkeypatch.setenv("PODIUM_MODELS", tiny.tag)
    from service import build

    environment = {"PODIUM_MODELS": tiny.tag}
    with monkeypatch.context() as patch:
        patch.delattr(uvicorn.config, "HTTP_PROTOCOLS")
        with pytest.raises(BentoMLConfigException, match=r"uvicorn .* has changed uvicorn.config.HTTP_PROTOCOLS"):
            build(environment, CollectorRegistry())
    service = build(environment, CollectorRegistry())
    assert [str(model.tag) for model in service.models] == [tiny.tag]
    assert isinstance(service.to_asgi(), Api) and not service.middlewares


def test_with_traces_our_application_stands_behind_bentomls(tiny: Artifact, monkeypatch: Patch) -> None:
    monkeypatch.setenv("PODIUM_MODELS", tiny.tag)
    from service import build

    monkeypatch.setattr(seams, "tracing_wanted", lambda: True)
    service = build({"PODIUM_MODELS": tiny.tag}, CollectorRegistry())
    assert [middleware for middleware, _ in service.middlewares] == [Api]
    assert isinstance(service.to_asgi(), Starlette)
