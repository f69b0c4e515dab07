"""Which request goes to which handler: its method, its path in the only spelling that counts, and who may ask.

A path is matched as it was written, before any decoding. No path of ours needs a percent sign, so a path that has one
is unknown. A proxy may decode paths, and then it and we must not understand two different ones.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from starlette.types import Receive, Scope

from serving.errors import MethodNotAllowed, NotFound, RequestError
from serving.exchange import Raw

# "open": everybody. "user": who sends PODIUM_TOKEN, or everybody if it is not set. "admin": who sends
# PODIUM_ADMIN_TOKEN, or nobody if it is not set.
Access = Literal["open", "user", "admin"]
Method = Literal["GET", "POST"]
Handler = Callable[[Scope, Receive, float], Awaitable[dict[str, Any] | Raw]]

# What may stand in place of NETWORK and VERSION in a path: the names that the model store allows. The store takes upper
# case for lower; we do not, because that would be a second spelling.
NAME = r"[a-z0-9](?:[-._a-z0-9]{0,61}[a-z0-9])?"
PARAMETER = re.compile(r"\b(NETWORK|VERSION)\b")


@dataclass(frozen=True)
class Route:
    """One method of one path, who may use it, and what answers. A GET route answers HEAD too."""

    method: Method
    path: str
    access: Access
    handler: Handler


@dataclass(frozen=True)
class Endpoint:
    """A path with its routes by method. The endpoint without routes stands for every unknown path."""

    path: str
    methods: dict[str, Route]

    def refusal(self, method: str, path: str) -> RequestError:
        """Why `method` is not answered for `path`."""
        if not self.methods:
            return NotFound(
                f"{path[:80]!r} is not a path of this service; /docs.json lists them, "
                "each in its one spelling: no percent-encoding, no doubled slash, no slash at the end but that of /ui/"
            )
        allow = ", ".join(self.methods)
        return MethodNotAllowed(f"{self.path} takes {allow}, not {method[:20]}", allow)


class Routes:
    """A table of routes, and the search in it."""

    def __init__(self, routes: Iterable[Route]) -> None:
        self.endpoints: dict[str, Endpoint] = {}
        self._unknown = Endpoint("", {})
        for route in routes:
            methods = self.endpoints.setdefault(route.path, Endpoint(route.path, {})).methods
            if route.method in methods:
                raise ValueError(f"{route.method} {route.path} is in the table twice")
            methods[route.method] = route
            if route.method == "GET":
                methods["HEAD"] = route
        self._exact = {path: end for path, end in self.endpoints.items() if not PARAMETER.search(path)}
        self._patterns = [
            (re.compile(PARAMETER.sub(rf"(?P<\1>{NAME})", re.escape(path))), endpoint)
            for path, endpoint in self.endpoints.items()
            if path not in self._exact
        ]

    def __iter__(self) -> Iterator[Route]:
        for endpoint in self.endpoints.values():
            yield from (route for method, route in endpoint.methods.items() if method == route.method)

    def find(self, path: str, scope: Scope) -> Endpoint:
        """The endpoint of a path as it was written. The names in the path go into `scope["path_params"]`."""
        if (exact := self._exact.get(path)) is not None:
            return exact
        for pattern, endpoint in self._patterns:
            if match := pattern.fullmatch(path):
                scope["path_params"] = match.groupdict()
                return endpoint
        return self._unknown


def written(scope: Scope) -> str:
    """The request's path as it was written, or the decoded one if the server does not give it."""
    raw: bytes | None = scope.get("raw_path")
    return scope["path"] if raw is None else raw.decode("latin-1")
