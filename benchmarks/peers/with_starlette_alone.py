"""Starlette on uvicorn alone: it reads the body, answers with five classes, and does nothing else."""

from __future__ import annotations

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from benchmarks.peers import work


async def classify(request: Request) -> JSONResponse:
    return JSONResponse({"bytes": len(await request.body()), "predictions": work.NOTHING})


if __name__ == "__main__":
    app = Starlette(routes=[Route("/classify", classify, methods=["POST"])])
    uvicorn.run(app, host="127.0.0.1", port=work.job()["port"], log_level="warning")
