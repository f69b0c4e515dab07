"""Defects planted into what the targets test. Each of these targets must find its defect, which proves its checks."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from math import prod
from time import process_time
from typing import Any
from unittest import mock

import numpy as np

from serving import forms as serving_forms
from serving import oip as serving_oip
from serving.connection import Connection
from serving.errors import InferenceFailed
from tests.fuzzing import connection, decode, forms, oip
from tests.fuzzing.target import Defect, Target

MANY = 300_000_000


def with_(target: Target, module: Any, name: str, planted: Any) -> Target:
    def run(data: bytes) -> None:
        with mock.patch.object(module, name, planted):
            target.run(data)

    return replace(target, run=run)


def in_decode(planted: Callable[..., Any]) -> Target:
    return with_(decode.TARGET, decode, "decode", planted)


def soon(target: Target) -> Target:
    """With less time than code without defects gets, so that the test takes less time too."""
    return replace(target, seconds=0.2)


def spin(*_: Any) -> None:
    while True:
        pass


def waste(recipe: Any) -> Any:
    began = process_time()
    while process_time() < began + 0.3:
        pass
    return np.zeros(recipe.shape, np.uint8)


def fail(error: Exception) -> Callable[..., Any]:
    def planted(*_: Any) -> None:
        raise error

    return planted


def allocate(_: bytes, recipe: Any, *__: Any) -> Any:
    return np.ones(MANY, np.uint8)[: prod(recipe.shape)].reshape(recipe.shape).copy()


decode_hangs_in_python = soon(in_decode(spin))
decode_hangs_in_c = soon(in_decode(lambda *_: sum(range(1 << 62))))
decode_is_slow = soon(in_decode(lambda body, recipe, *_: waste(recipe)))
decode_allocates = in_decode(allocate)
decode_raises = in_decode(fail(ZeroDivisionError("a planted defect")))
decode_is_our_fault = in_decode(fail(InferenceFailed("it failed")))
decode_gives_other_pixels = in_decode(lambda body, recipe, *_: np.zeros((1, *recipe.shape), np.uint8))

real_multipart, real_parse, real_render = serving_forms.multipart, serving_oip.parse, serving_oip.render


def loses_a_part(body: bytes, boundary: bytes, form: Any, most: int) -> None:
    real_multipart(body, boundary, form, most)
    del form.images[-1:]


def deep(data: bytes) -> None:
    """Wrong for one word, which no input resembles. Every letter of it is a branch."""
    if data[:1] == b"q" and data[1:2] == b"z" and data[2:3] == b"j" and data[3:4] == b"!":
        raise Defect("the word is said")


deep_down = Target(deep, seconds=1.0, memory=50_000_000, longest=1 << 10)


def brightens(*given: Any) -> Any:
    request = real_parse(*given)
    if len(request.images):
        request.images.setflags(write=False)
        return mock.Mock(wraps=request, images=request.images + 1, id=request.id, binary=False, classification=0)
    return request


def answers_another(*given: Any) -> Any:
    answer, raw = real_render(*given)
    return answer | {"id": "another"}, raw


forms_lose_a_part = with_(forms.TARGET, forms, "multipart", loses_a_part)
oip_brightens = with_(oip.TARGET, serving_oip, "parse", brightens)
oip_answers_another = with_(oip.TARGET, serving_oip, "render", answers_another)
oip_raises = with_(oip.TARGET, serving_oip, "parse", fail(ValueError("a planted defect")))


class Raises(Connection):
    def data_received(self, data: bytes) -> None:
        raise IndexError("a planted defect")


class Hoards(Connection):
    hoard = b""

    def data_received(self, data: bytes) -> None:
        self.hoard += 100 * data
        super().data_received(data)


class Insists(Connection):
    """Goes on writing although its client does not read."""

    def data_received(self, data: bytes) -> None:
        wire: Any = self.transport
        if not (wire.read_by_client or wire.sending_ended):
            wire.write(bytes(connection.MOST_OUT + 1))
        super().data_received(data)


class AnswersTwice(Connection):
    def connection_lost(self, exc: Exception | None) -> None:
        wire: Any = self.transport
        wire.sent += bytes(wire.sent)
        super().connection_lost(exc)


class ForgetsTime(Connection):
    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        loop: Any = asyncio.get_running_loop()
        for handle in list(loop._scheduled):
            handle.cancel()


class NeverEnds(asyncio.Protocol):
    """Always has a timer, and does nothing else."""

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def connection_made(self, _: Any) -> None:
        self.timer = asyncio.get_running_loop().call_later(60, self.connection_made, None)

    def connection_lost(self, _: Exception | None) -> None:
        self.timer.cancel()

    def eof_received(self) -> bool:
        return True

    def shutdown(self) -> None:
        pass


def in_connection(planted: type) -> Target:
    return with_(connection.TARGET, connection, "Connection", planted)


connection_raises = in_connection(Raises)
connection_hoards = in_connection(Hoards)
connection_insists = in_connection(Insists)
connection_answers_twice = in_connection(AnswersTwice)
connection_forgets_time = in_connection(ForgetsTime)
connection_never_ends = in_connection(NeverEnds)
