"""Every place where Podium relies on what BentoML, uvicorn or circus do not promise.

Each function is one such place. It says why we need it, and fails with one sentence if the other side has changed. All
of them run before the first request: most when `service.build` makes the service, the last few when it is started.
docs/decisions/9-seams.md tells which public ways we looked for. tests/test_seams.py runs them against the pinned
versions, and shows that each one fails when the other side is changed.
"""

from __future__ import annotations

import asyncio
import inspect
import os
import signal
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from models.console import Failure

# The versions that this module was written for. pyproject.toml and bentofile.yaml install them.
PINNED = {"bentoml": "1.4.40", "kantoku": "0.18.3", "uvicorn": "0.54.0"}


class SeamError(Failure):
    """A package has changed where Podium relies on it."""


@contextmanager
def relying(package: str, what: str) -> Iterator[None]:
    """What fails in here becomes a `SeamError`: `package` is not what it was when we wrote against it."""
    try:
        yield
    except (AttributeError, ImportError, LookupError, OSError, TypeError) as error:
        raise SeamError(
            f"{package} {version(package)} has changed {what}, which Podium relies on: {error}; "
            f"pip install '{package}=={PINNED[package]}'"
        ) from error


def need(holds: object, what: str) -> None:
    if not holds:
        raise LookupError(what)


def parameters(function: Callable[..., Any]) -> list[str]:
    return list(inspect.signature(function).parameters)


# --- uvicorn ----------------------------------------------------------------------------------------------------------

CYCLE = ("scope", "transport", "flow", "logger", "access_logger", "access_log", "default_headers", "message_event",
         "expect_100_continue", "keep_alive", "on_response")  # fmt: skip
CYCLE_STATE = ("disconnected", "keep_alive", "waiting_for_100_continue", "body", "more_body", "response_started",
               "response_complete", "message_event")  # fmt: skip
SERVER_STATE = ("connections", "tasks", "total_requests", "default_headers")


@cache
def request_cycle() -> Any:
    """uvicorn's class that runs the application for one request and writes its answer.

    `serving.connection` has bounds that uvicorn's own protocol lacks. What happens between the head of a request and
    the end of its answer is the same for both, so we use uvicorn's.
    """
    with relying("uvicorn", "the cycle of a request in uvicorn.protocols.http.httptools_impl"):
        from uvicorn.protocols.http.httptools_impl import RequestResponseCycle
        from uvicorn.server import ServerState

        need(tuple(parameters(RequestResponseCycle)) == CYCLE, "it is made from other arguments")
        cycle, state = RequestResponseCycle(**dict.fromkeys(CYCLE)), ServerState()  # type: ignore[arg-type]
        for name in CYCLE_STATE:
            need(hasattr(cycle, name), f"it has no {name}")
        for name in SERVER_STATE:
            need(hasattr(state, name), f"the server's state has no {name}")
    return RequestResponseCycle


def accept_with(protocol: Callable[..., asyncio.Protocol]) -> None:
    """Have uvicorn make each connection by `protocol`.

    BentoML makes uvicorn's `Config` and leaves its argument `http`, the public way, at "auto". So we change what
    "auto" means in this process.
    """
    with relying("uvicorn", "uvicorn.config.HTTP_PROTOCOLS"):
        from uvicorn.config import HTTP_PROTOCOLS, Config
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

        expected = ["config", "server_state", "app_state", "_loop"]
        need(parameters(HttpToolsProtocol) == expected, "a protocol is made from other arguments")
        HTTP_PROTOCOLS["auto"] = protocol  # type: ignore[assignment]
        # What it would serve does not matter here.
        config = Config(protocol, interface="asgi3", log_config=None, lifespan="off", ws="none")
        config.load()
        need(config.http_protocol_class is protocol, 'http="auto" is not looked up in it')
        for name in ("loaded", "loaded_app", "root_path", "timeout_keep_alive", "asgi_version"):
            need(hasattr(config, name), f"the configuration has no {name}")


def exit_handler(number: int) -> Callable[[int, Any], object]:
    """uvicorn's handler of a signal, which stops the server. Ours comes before it, so that `/readyz` is 503 first.

    uvicorn has no hook before it stops listening; its lifespan ends after that.
    """
    with relying("uvicorn", "a handler that uvicorn sets by signal.signal"):
        handler = signal.getsignal(number)
        need(callable(handler), f"there is none for {signal.Signals(number).name}")
    return handler  # type: ignore[return-value]


# --- BentoML ----------------------------------------------------------------------------------------------------------


def fronted(front: Callable[[Any], Any], documents: tuple[str, ...]) -> Any:
    """The class of a BentoML service whose application stands behind `front`, for the argument `service_class`.

    That argument is in the signature of `bentoml.service` and in no documentation. The public `add_asgi_middleware`
    puts ours behind BentoML's tracing, timer and metrics, which cost more than the rest of the way through the server.
    `documents` are the paths that `serving.behind` asks BentoML's application for.
    """
    with relying("bentoml", "bentoml.service(service_class=...) and Service.to_asgi"):
        import bentoml
        from _bentoml_sdk import Service

        need("service_class" in parameters(bentoml.service), "there is no service_class")
        need(parameters(Service.to_asgi) == ["self", "is_main"], "to_asgi takes other arguments")

    class Fronted(Service):  # type: ignore[misc]
        __slots__ = ()

        def to_asgi(self, is_main: bool = True) -> Any:
            app = super().to_asgi(is_main)
            with relying("bentoml", "documents of BentoML's application"):
                for path in documents:
                    need(any(getattr(route, "path", None) == path for route in app.routes), f"there is no {path}")
            return front(app)

    return Fronted


def tracing_wanted() -> bool:
    """Whether the user's BentoML configuration sends traces anywhere. If not, no time is spent on making them.

    BentoML reads that configuration from several places and shows the result to nobody.
    """
    with relying("bentoml", "the `tracing` of bentoml._internal's configuration"):
        from bentoml._internal.configuration.containers import BentoMLContainer

        config = BentoMLContainer.config.get()
        need("exporter_type" in config["tracing"], "it has no exporter_type")
        services = [each for each in (config.get("services") or {}).values() if isinstance(each, dict)]
        return any((part.get("tracing") or {}).get("exporter_type") for part in (config, *services))


def models_of_bento(source: Path) -> list[str] | None:
    """The tags of the models in the bento whose source folder is `source`, in its order; None if it is no bento's.

    A service learns of its bento only after it was made. So we look for the file beside its source.
    """
    if not (source.parent / "bento.yaml").is_file():
        return None
    with relying("bentoml", "the models that a bento's description lists"):
        from bentoml import Bento

        return [str(model.tag) for model in Bento.from_path(str(source.parent)).info.all_models]


def serve_command() -> Any:
    """The command `bentoml serve` that this process runs, with its options; None if it runs something else.

    BentoML calls the deployment hook without them, and we need the address to say in one line that it is taken.
    """
    import click

    command = click.get_current_context(silent=True)
    if command is None or command.info_name != "serve":
        return None
    with relying("bentoml", "the options of `bentoml serve`"):
        for name in ("host", "port", "reload"):
            need(name in command.params, f"there is no --{name}")
    return command


# --- circus, which BentoML starts workers with (the distribution is called kantoku) ----------------------------------

# Seconds after which an arbiter that was busy is asked again.
AGAIN = 0.1


def started_arbiters() -> list[Any]:
    """A list that the arbiter of `bentoml serve`, which starts workers, is added to when it starts.

    BentoML makes it after the deployment hook and shows it to nobody.
    """
    with relying("kantoku", "circus.arbiter.Arbiter"):
        from circus.arbiter import Arbiter
        from circus.exc import ConflictError

        need(issubclass(ConflictError, Exception), "a busy arbiter raises another error")
        need(parameters(Arbiter.start) == ["self", "cb"], "its start takes other arguments")
        need(parameters(Arbiter.manage_watchers) == ["self"], "its manage_watchers takes other arguments")
        started, start = list[Any](), Arbiter.start

    def remember(arbiter: Any, *arguments: Any) -> Any:
        started.append(arbiter)
        return start(arbiter, *arguments)

    Arbiter.start = remember
    return started


def look_soon(arbiter: Any) -> None:
    """Have `arbiter` start each worker that has ended again; for the handler of a signal. By itself it looks every
    ten seconds.
    """
    # By the thread-safe way: no other one wakes the loop from a signal's handler.
    arbiter.loop.asyncio_loop.call_soon_threadsafe(arbiter.loop.add_callback, _look, arbiter)


async def _look(arbiter: Any) -> None:
    from circus.exc import ConflictError

    while True:
        try:
            await arbiter.manage_watchers()
            return
        except ConflictError:
            await asyncio.sleep(AGAIN)


def inherited_pipe(descriptor: int) -> int:
    """The pipe `descriptor` from the supervisor, which circus hands to a worker because sockets are among its files."""
    with relying("kantoku", "workers that inherit file descriptors"):
        need(stat.S_ISFIFO(os.fstat(descriptor).st_mode), f"{descriptor} is not a pipe")
    return descriptor
