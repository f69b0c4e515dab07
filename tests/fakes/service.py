"""A classification service of thirty lines that answers with given statuses."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress

CLASSIFICATION = {
    "model": "resnet50", "version": "v", "engine": "onnxruntime", "precision": "int8", "weights": "untrained",
    "predictions": [{"class_id": 1, "synset": None, "label": "x", "probability": 1.0}],
    "timing_ms": {"decode": 0.01, "queue": 0.02, "inference": 0.03, "total": 0.07}, "batch_size": 2,
}  # fmt: skip


@contextmanager
def service(statuses: Sequence[int]) -> Iterator[tuple[str, list[str]]]:
    """An HTTP server that answers with `statuses` in turn; its address, and the request lines that it received."""
    seen: list[str] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while line := await reader.readline():
                length = 0
                while (header := (await reader.readline()).strip()) != b"":
                    if header.lower().startswith(b"content-length:"):
                        length = int(header.split(b":")[1])
                await reader.readexactly(length)
                status = statuses[len(seen) % len(statuses)]
                seen.append(line.decode())
                body = CLASSIFICATION if status == 200 else {"error": {"code": "x", "message": "y"}}
                text = json.dumps(body).encode()
                head = b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
                writer.write(head % (status, len(text)) + text)
                await writer.drain()
        finally:
            # Also if it is cancelled at the end: no socket outlives the loop.
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()

    loop, ready = asyncio.new_event_loop(), threading.Event()
    server: list[asyncio.Server] = []

    async def start() -> None:
        server.append(await asyncio.start_server(answer, "127.0.0.1", 0))
        ready.set()

    def serve() -> None:
        loop.run_until_complete(start())
        loop.run_forever()

    async def stop() -> None:
        server[0].close()
        others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)

    thread = threading.Thread(target=serve)
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{server[0].sockets[0].getsockname()[1]}", seen
    finally:
        asyncio.run_coroutine_threadsafe(stop(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
