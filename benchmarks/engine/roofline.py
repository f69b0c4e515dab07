"""How fast a network could be on a device: its operations and bytes against the measured rates of the device.

In the model (Williams, Waterman, Patterson, Roofline, CACM 2009) a run takes as long as its arithmetic at the measured
matrix rate or as its traffic at the measured copy bandwidth, whichever is longer. The traffic is that of a network
whose layers are fused as far as is usual. Weights are read once a batch. Every map is written once and read once.
Normalisation, activation and the sum of a residual block are part of the convolution before them, and the sum reads its
other term. A concatenation costs nothing. With small batches an engine may keep maps in a cache between layers. Then it
needs less traffic, and its share of a memory bound may be above 100 %.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

from benchmarks.records import Cell, Roofline, measured

if TYPE_CHECKING:
    import torch

BYTES = {"fp32": 4, "fp16": 2, "bf16": 2, "int8": 1}

# How often each rate is measured. The best one counts, because a ceiling is what a device can do at most.
REPEATS = 10

MEMORY, ARITHMETIC = "memory", "arithmetic"


@dataclass(frozen=True)
class Work:
    """What one network needs at one precision. A multiply-accumulate is two operations."""

    operations: int  # of one image
    weight_bytes: int  # read once a batch
    image_bytes: int  # of maps, written and read, for one image


@dataclass(frozen=True)
class Bound:
    img_s: float
    by: str  # MEMORY or ARITHMETIC
    intensity: float  # operations per byte


@cache
def work(network: str, precision: str) -> Work:
    """What one image costs in `network`, from its layers (`models.describe`); torch runs it without numbers."""
    from models.describe import describe

    data, size = describe(network), BYTES[precision]
    traffic = 0
    for layer in data["layers"]:
        if layer["kind"] == "input":
            traffic += layer["activations"]  # pixels come as bytes
        elif layer["kind"] == "add":
            traffic += size * layer["activations"]
        elif layer["kind"] != "concat":
            traffic += 2 * size * layer["activations"]
    return Work(2 * data["totals"]["macs"], size * data["totals"]["params"], traffic)


def bound(one: Work, batch: int, copy_gb_s: float, matrix_gop_s: float) -> Bound:
    """The images per second that the roofline allows at `batch`, and whether memory or arithmetic limits them."""
    operations, traffic = batch * one.operations, one.weight_bytes + batch * one.image_bytes
    arithmetic, memory = operations / (matrix_gop_s * 1e9), traffic / (copy_gb_s * 1e9)
    return Bound(batch / max(arithmetic, memory), ARITHMETIC if arithmetic >= memory else MEMORY, operations / traffic)


def of_record(item: Cell, rates: Mapping[str, float | None]) -> Roofline | None:
    """`item["roofline"]`: the bound at its batch and how near the network came; None if a part is not known.

    `timed` says which time was compared: on the device alone if it was measured, else from memory to memory with the
    copies.
    """
    rate, copied = rates.get(f"matrix_{item['precision']}_gop_s"), rates.get("copy_gb_s")
    throughput = item["throughput_img_s"]
    if not measured(item) or throughput is None or rate is None or copied is None:
        return None
    one = work(item["network"], item["precision"])
    limit = bound(one, item["batch"], copied, rate)
    device = item.get("device")
    img_s = device["throughput_img_s"] if device else throughput
    return {
        "operations": one.operations,
        "weight_bytes": one.weight_bytes,
        "image_bytes": one.image_bytes,
        "operations_per_byte": limit.intensity,
        "copy_gb_s": copied,
        "matrix_gop_s": rate,
        "attainable_img_s": limit.img_s,
        "bound_by": limit.by,
        "img_s": img_s,
        "share": img_s / limit.img_s,
        "timed": "device" if device else "memory to memory",
    }


# What a device does


def rates(device: str, precisions: tuple[str, ...], side: int = 0, megabytes: int = 0) -> dict[str, float | None]:
    """The best of `REPEATS` large copies (GB/s, bytes read and written) and matrix products (10^9 operations/s).

    `side` is of the matrices and `megabytes` of the copied block; 0 takes sizes that fill a GPU, or take a CPU seconds.
    A precision is null if the device or PyTorch has no product for it.
    """
    import torch

    side, megabytes = side or (8192 if device != "cpu" else 1536), megabytes or (2048 if device != "cpu" else 256)
    rates: dict[str, float | None] = {
        "copy_gb_s": 2e-9 * (megabytes << 20) / _best(*_copy(torch.device(device), megabytes))
    }
    for precision in precisions:
        try:
            seconds = _best(*_product(torch.device(device), precision, side))
        except RuntimeError:  # not implemented for this device
            seconds = None
        rates[f"matrix_{precision}_gop_s"] = None if seconds is None else 2e-9 * side**3 / seconds
    return rates | {"matrix_side": side, "copy_mb": (megabytes << 20) / 1e6}


Timed = tuple[Callable[[], object], Callable[[], object]]  # the call, and what waits for it


def _copy(device: torch.device, megabytes: int) -> Timed:
    import torch

    source = torch.ones(megabytes << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source), _waiter(device)


def _product(device: torch.device, precision: str, side: int) -> Timed:
    """Random matrices, because a GPU is faster with zeros than with what a network holds."""
    import torch

    generator = torch.Generator(device=device).manual_seed(0)
    if precision == "int8":
        one, other = (
            torch.randint(-128, 128, (side, side), dtype=torch.int8, device=device, generator=generator)
            for _ in range(2)
        )
        # The integer units need the second factor column by column.
        return lambda: torch._int_mm(one, other.t()), _waiter(device)
    torch.backends.cuda.matmul.allow_tf32 = False
    types = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    one, other = (torch.randn(side, side, device=device, generator=generator).to(types[precision]) for _ in range(2))
    return lambda: one @ other, _waiter(device)


def _waiter(device: torch.device) -> Callable[[], object]:
    import torch

    return torch.cuda.synchronize if device.type == "cuda" else lambda: None


def _best(call: Callable[[], object], wait: Callable[[], object]) -> float:
    """Seconds of the fastest call; the first two calls choose kernels and raise clocks, and do not count."""
    times = []
    for _ in range(REPEATS + 2):
        began = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - began)
    return min(times[2:])
