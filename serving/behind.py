"""BentoML's application behind ours, of which we want one document.

That application has endpoints of its own, with none of our limits and no token. So no client's request is handed to it.
It is asked for the documents of this list, with a request that is made here.
"""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Scope

from serving.exchange import Raw

# BentoML's clients read it to learn about `classify`.
DOCUMENTS = ("/schema.json",)


class Document:
    """The handler for one document of `app`."""

    def __init__(self, app: ASGIApp, path: str) -> None:
        self._app, self._path = app, path

    async def __call__(self, scope: Scope, _: object, deadline: float) -> Raw:
        status, kind, chunks, asked = 0, b"", list[bytes](), False

        async def receive() -> Message:
            nonlocal asked
            if asked:
                await asyncio.Future()  # as if the client stayed connected; the deadline ends the wait
            asked = True
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Message) -> None:
            nonlocal status, kind
            if message["type"] == "http.response.start":
                status, kind = message["status"], dict(message.get("headers", ())).get(b"content-type", b"")
            else:
                chunks.append(message.get("body", b""))

        own = {"method": "GET", "path": self._path, "raw_path": self._path.encode(), "query_string": b"", "headers": []}
        async with asyncio.timeout_at(deadline):
            await self._app({**scope, **own, "extensions": {}}, receive, send)
        if status != 200:
            raise RuntimeError(f"the application behind answered {status or 'nothing'} for {self._path}")
        return Raw(b"".join(chunks), kind)
