"""The settings: environment variables `PODIUM_*`, read and checked once, before anything starts."""

from __future__ import annotations

import difflib
import errno
import re
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from PIL import Image

from models.console import Failure
from serving.artifact import Artifact, defaults, find
from serving.bentoml_seams import models_of_bento
from serving.limits import Limits
from serving.runtime import ENGINES
from serving.text import quoted

# Pillow warns above this, and refuses twice as many.
MOST_PIXELS = Image.MAX_IMAGE_PIXELS or 89_478_485


# Connections if there is no limit on open files. Each takes about 10 kB while it waits.
MOST_CONNECTIONS = 1 << 16


def number(low: float, high: float, kind: type[int] | type[float] = int) -> Callable[[str], float]:
    def read(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = kind(-1)
        if not low <= value <= high:
            what = "a whole number" if kind is int else "a number"
            raise ValueError(f"must be {what} between {low:,} and {high:,}")
        return value

    return read


def one_of(*names: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in names:
            raise ValueError(f"must be one of {', '.join(names)}")
        return text

    return read


def tags(text: str) -> tuple[str, ...]:
    names = tuple(tag.strip() for tag in text.split(",") if tag.strip())
    networks = [tag.split(":")[0] for tag in names]
    if twice := {network for network in networks if networks.count(network) > 1}:
        raise ValueError(f"names {', '.join(sorted(twice))} twice; one version of a network is served at a time")
    return names


def secret(text: str) -> str:
    # HTTP drops the spaces around a header's value.
    if text != text.strip() or not text or not text.isascii() or not text.isprintable():
        raise ValueError(
            "must be printable ASCII without spaces around it, and not empty; unset it to serve without one"
        )
    return text


@dataclass(frozen=True)
class Setting:
    name: str
    default: str | None
    read: Callable[[str], Any]
    meaning: str


# fmt: off
SETTINGS = (
    #       PODIUM_...      default      what is allowed                        meaning
    Setting("MODELS",       "",          tags,                                  "names or tags to serve, separated by commas; the first answers if a request names none. A name means its newest trained version, or its newest if none is trained. Empty: every name in the store, trained before untrained, the most recently exported first"),  # noqa: E501
    Setting("ENGINE",       "auto",      one_of("auto", *ENGINES),              "the engine; `auto` takes a GPU's if one can be used, else what the export measured as fastest on a machine like this, else INT8 before fp32 and OpenVINO before ONNX Runtime"),  # noqa: E501
    Setting("PRECISION",    "auto",      one_of("auto", "fp32", "fp16", "int8"), "the precision; `auto` as above"),
    Setting("THREADS",      "0",         number(0, 1024),                       "threads of one engine call; 0: as many as tuning chose, else one per core"),  # noqa: E501
    Setting("MAX_BATCH",    "8",         number(1, 1024),                       "most images in one engine call"),
    Setting("MAX_DELAY_MS", "0",         number(0, 10_000, float),              "how long an idle engine waits for a batch to fill; 0: not at all"),  # noqa: E501
    Setting("MAX_QUEUE",    "64",        number(1, 100_000),                    "most unanswered images of one model; more are answered 429"),  # noqa: E501
    Setting("MAX_BODY_MB",  "20",        number(0.001, 2_000, float),           "largest request body, in units of 1,000,000 bytes"),  # noqa: E501
    Setting("MAX_PIXELS",   "50000000",  number(1, MOST_PIXELS),                "most pixels of one image, width times height"),  # noqa: E501
    Setting("IMAGE_CPU_MS", "4000",      number(1, 600_000, float),             "most processor time that decoding one image may take"),  # noqa: E501
    Setting("TIMEOUT_MS",   "10000",     number(1, 3_600_000, float),           "how long the head of a request may take, then the request, from its body's first byte to its answer, and then the reading of that"),  # noqa: E501
    Setting("MAX_CONNECTIONS", "0",    number(0, 1_000_000),                  "most connections open at once; more are answered 503 and closed. 0: as many as the limit on open files allows"),  # noqa: E501
    Setting("LOG",          "text",      one_of("text", "json"),                "lines of the serving process for people, or one JSON object each"),  # noqa: E501
    Setting("TOKEN",        None,        secret,                                "bearer token that everything then asks for but health, /metrics and the files of the page"),  # noqa: E501
    Setting("ADMIN_TOKEN",  None,        secret,                                "bearer token that /models/NETWORK/load and /unload ask for; unset, they are off"),  # noqa: E501
)
# fmt: on


# Other variables PODIUM_... that are not mistakes: other parts of the project and the files of deploy/ read them, or
# Kubernetes sets them in every pod for a service called podium or podium-SOMETHING.
OTHERS = ("CACHE", "WEIGHTS_MIRROR", "SUPERVISOR_FD", "BIND", "FIGURES", "PEER")
OTHER = re.compile(
    r"REPLICA_\d+|(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)


def unknown(environment: Mapping[str, str]) -> list[str]:
    """A line for every variable `PODIUM_...` that nothing reads, with the setting that may be meant.

    These are warnings, not errors: an environment may be shared, or written for another version, and that must not keep
    a server from starting.
    """
    names = [setting.name for setting in SETTINGS]
    lines = []
    for variable in sorted(environment):
        name = variable.removeprefix("PODIUM_")
        if name == variable or name in names or name in OTHERS or OTHER.fullmatch(name):
            continue
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.75)
        meant = f"did you mean PODIUM_{near[0]}?" if near else f"there are PODIUM_{', '.join(names)}"
        lines.append(f"{quoted(variable)} is not a setting and changes nothing; {meant}")
    return lines


@dataclass(frozen=True)
class Settings:
    """The values of `SETTINGS`; times in seconds, sizes in bytes."""

    models: tuple[str, ...]
    engine: str
    precision: str
    threads: int
    max_batch: int
    max_delay: float
    max_queue: int
    max_body: int
    image: Limits
    timeout: float
    max_connections: int
    log: str
    token: str | None
    admin_token: str | None

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """The settings in `environment`. Raises `Failure` with one line: the variable, its value, what is allowed."""
        values: dict[str, Any] = {}
        for setting in SETTINGS:
            name = f"PODIUM_{setting.name}"
            text = environment.get(name, setting.default)
            try:
                values[setting.name] = None if text is None else setting.read(text)
            except ValueError as error:
                shown = "its value" if setting.read is secret else repr(text)
                raise Failure(f"{name}: {shown} {error}") from None
        return cls(
            models=values["MODELS"],
            engine=values["ENGINE"],
            precision=values["PRECISION"],
            threads=values["THREADS"],
            max_batch=values["MAX_BATCH"],
            max_delay=values["MAX_DELAY_MS"] / 1e3,
            max_queue=values["MAX_QUEUE"],
            max_body=int(values["MAX_BODY_MB"] * 1e6),
            image=Limits(values["MAX_PIXELS"], values["IMAGE_CPU_MS"] / 1e3),
            timeout=values["TIMEOUT_MS"] / 1e3,
            max_connections=max_connections(values["MAX_CONNECTIONS"]),
            log=values["LOG"],
            token=values["TOKEN"],
            admin_token=values["ADMIN_TOKEN"],
        )


# Open files that are not connections: models, libraries, pipes.
OTHER_FILES = 128


def max_connections(wanted: int) -> int:
    """`wanted`, or for 0 as many as the limit on open files allows. Raises `Failure` if it does not allow so many."""
    allowed = connections_allowed()
    if wanted > allowed:
        raise Failure(
            f"PODIUM_MAX_CONNECTIONS: {wanted:,} is more than the limit on open files leaves room for, {allowed:,}; "
            "set less, or raise that limit (ulimit -n)"
        )
    return wanted or allowed


def connections_allowed() -> int:
    """How many connections the limit on open files allows."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MOST_CONNECTIONS
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return min(max(limit - OTHER_FILES, limit // 2), MOST_CONNECTIONS)


def check_address(host: str, port: int) -> None:
    """Raises `Failure` if nothing can listen on `host` and `port`."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        reason = "something listens there already" if error.errno == errno.EADDRINUSE else error.strerror
        raise Failure(f"cannot serve on {host} port {port}: {reason}; choose another with --port or --host") from None


def check_temporary() -> None:
    """Raises `Failure` if no temporary file can be made. BentoML needs some, and would fail with a long traceback."""
    try:
        with TemporaryDirectory(prefix="podium-"):
            pass
    except OSError as error:
        raise Failure(f"{error.strerror}; free some space, or name a folder that has some in TMPDIR") from None


def artifacts(models: tuple[str, ...], source: Path) -> list[Artifact]:
    """The artifacts to serve, the default first: those that `models` names, else all in the store.

    A bento serves the versions it was built with, even if the store has newer ones. Raises `Failure` if a model is
    missing, or if there is none at all.
    """
    inside = models_of_bento(source)
    if inside is None:
        wanted = list(models) or defaults()
    else:
        by_name = {name: tag for tag in inside for name in (tag, tag.split(":")[0], f"{tag.split(':')[0]}:latest")}
        for tag in models:
            if tag not in by_name:
                raise Failure(f"PODIUM_MODELS: this bento does not carry {tag!r}; it carries {', '.join(inside)}")
        wanted = [by_name[tag] for tag in models] or inside
    if not wanted:
        raise Failure("there is no exported model to serve; `python -m export resnet50` makes one")
    return [find(tag) for tag in wanted]
