"""Every path of the service, and other spellings of it that a proxy or a server might take for the path itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from prometheus_client import CollectorRegistry

from serving.api import Api
from serving.artifact import Artifact
from serving.classify import Serving
from serving.settings import Settings
from tests.fakes.interface import behind

METHODS = ("GET", "HEAD", "POST", "PUT", "OPTIONS")
LOOK = {"Authorization": "Bearer look"}

# None of these is that path.
SPELLINGS: dict[str, Callable[[str], str]] = {
    "a letter in hexadecimal": lambda path: f"{path[:-1]}%{ord(path[-1]):02x}",
    "every letter in hexadecimal": lambda path: "/" + "".join(f"%{ord(c):02X}" for c in path[1:]),
    "a newline": lambda path: f"{path}%0a",
    "a line's end": lambda path: f"{path}%0D%0A",
    "a newline, twice encoded": lambda path: f"{path}%250a",
    "a NUL": lambda path: f"{path}%00",
    "a tab": lambda path: f"{path}%09",
    "a blank": lambda path: f"{path}%20",
    "a blank as plus": lambda path: f"{path}+",
    "a question mark": lambda path: f"{path}%3fmodel=tiny",
    "a number sign": lambda path: f"{path}%23",
    "an encoded slash": lambda path: "/%2f".join(path.rsplit("/", 1)),
    "an encoded slash in place of the first": lambda path: f"%2F{path[1:]}",
    "only encoded slashes": lambda path: "/" + path[1:].replace("/", "%2f") + "%2f",
    "a doubled slash": lambda path: f"/{path}",
    "every slash doubled": lambda path: path.replace("/", "//"),
    "a slash at the end": lambda path: f"{path}/",
    "backslashes": lambda path: "/" + path[1:].replace("/", "\\") + "\\",
    "a dot segment": lambda path: f"/.{path}",
    "a dot segment at the end": lambda path: f"{path}/.",
    "a way up": lambda path: f"/x/..{path}",
    "a way up from one of our paths": lambda path: f"/v2/..{path}",
    "a way up, encoded": lambda path: f"/x/%2e%2e{path}",
    "a way up over the top": lambda path: f"/..{path}",
    "a way down and up": lambda path: f"{path}/x/..",
    "a dot": lambda path: f"{path}.",
    "a dot, encoded": lambda path: f"{path}%2e",
    "a semicolon": lambda path: f"{path};",
    "a parameter": lambda path: f"{path};a=b",
    "upper case": str.upper,
    "one capital": lambda path: path[:-1] + path[-1].upper(),
    "a wide letter": lambda path: f"{path[:-1]}%EF%BD%81",
    "an overlong slash": lambda path: f"/%c0%af{path[1:]}",
    "a comma": lambda path: f"{path},",
}

# Other ways in HTTP to write a request for the same path.
SAME: dict[str, Callable[[str], str]] = {
    "as it is": lambda path: path,
    "an empty query": lambda path: f"{path}?",
    "a path in the query": lambda path: f"{path}?/livez",
    "an encoded newline in the query": lambda path: f"{path}?%0a",
    "the absolute form": lambda path: f"http://127.0.0.1{path}",
}


def interface(tiny: Artifact, app: Any = behind, **environment: str) -> Api:
    return Api(app, Serving(Settings.read(environment), [tiny], CollectorRegistry()))


def named(path: str, tiny: Artifact) -> str:
    return path.replace("NETWORK", "tiny").replace("VERSION", tiny.version)


def paths(tiny: Artifact) -> dict[str, set[str]]:
    """Every path of the table with the methods it takes."""
    api = interface(tiny)
    return {named(path, tiny): set(end.methods) for path, end in api.routes.endpoints.items()}


def spelled(known: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Every path in every spelling that is not a path of the service, with the name of the spelling."""
    table = set(known)
    for path in sorted(table):
        for name, spell in SPELLINGS.items():
            if (raw := spell(path)) not in table:
                yield name, raw
