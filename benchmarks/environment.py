"""The environment block of a result file: the machine, the versions and the command, and when two are comparable."""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

from benchmarks.records import Environment
from serving.runtime import cores, cpu_model

PACKAGES = (
    "podium", "numpy", "onnxruntime", "onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx", "torch", "bentoml",
)  # fmt: skip

# The instruction sets that decide how fast a network runs: the vector width, and the INT8 and BF16 dot products.
FLAGS = (
    "sse4_2", "avx", "f16c", "fma", "avx2", "avx_vnni", "avx512f", "avx512bw", "avx512_vnni", "avx512_bf16",
    "avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "bf16", "sve",
)  # fmt: skip

# What must be equal before records of two files are compared, or before a run adds to a file.
IDENTITY = ("cpu", "flags", "cores", "memory_mb", "gpus", "os", "python", "packages", "limits")


def describe(threads: int = 0) -> Environment:
    """This machine now. `threads` is the number that engines are given; 0 means every core."""
    return {
        "cpu": cpu_model(),
        "flags": flags(),
        "cores": cores(),
        "threads": threads or cores(),
        "memory_mb": memory_mb(),
        "gpus": gpus(),
        "limits": limits(),
        "os": f"{platform.system()} {platform.release()}",
        "virtual": "hypervisor" in cpu_flags(),
        "python": platform.python_version(),
        "packages": packages(),
        "load_at_start": [round(load, 2) for load in os.getloadavg()] if hasattr(os, "getloadavg") else None,
        "governor": text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
    }


def differences(one: Mapping[str, object], other: Mapping[str, object], names: Sequence[str] = IDENTITY) -> list[str]:
    """What differs between two environments, in words."""
    return [f"{name} {one.get(name)!r} and {other.get(name)!r}" for name in names if one.get(name) != other.get(name)]


# If other work uses this share of the processors, it takes time from what is measured.
BUSY = 0.25


def busy(environment: Environment) -> str | None:
    """A warning if the machine had other work when the run began, by the load of the minute before."""
    load = (environment.get("load_at_start") or [0.0])[0]
    if load <= BUSY * environment["cores"]:
        return None
    return (
        f"the machine had a load of {load:g} on {environment['cores']} cores in the minute before the run began; "
        "if that was other work and went on, times are longer than the machine's own"
    )


def machine(environment: Environment) -> str:
    """A name for the machine from its hardware, not the name its owner gave it: "amd-epyc-9b14-2c"."""
    gpus = environment.get("gpus") or []
    name = gpus[0]["name"] if gpus else environment["cpu"]
    plain = re.sub(r"\((r|tm)\)|\b(cpu|processor|nvidia)\b|@.*", " ", name.lower())
    return "-".join([*re.findall(r"[a-z0-9]+", plain), f"{environment['cores']}c"])


def text(path: str) -> str | None:
    try:
        return Path(path).read_text("utf-8").strip()
    except OSError:
        return None


def cpu_flags() -> set[str]:
    line = re.search(r"^(?:flags|Features)\s*:(.*)$", text("/proc/cpuinfo") or "", re.MULTILINE)
    return set(line[1].split()) if line else set()


def flags() -> list[str]:
    present = cpu_flags()
    return [flag for flag in FLAGS if flag in present]


def memory_mb() -> int | None:
    total = re.search(r"^MemTotal:\s*(\d+) kB", text("/proc/meminfo") or "", re.MULTILINE)
    return round(int(total[1]) * 1024 / 1e6) if total else None


def limits() -> dict[str, float | None]:
    """What a container allows: processors (from its quota) and memory in MB; null if there is no limit."""
    quota, period = (text("/sys/fs/cgroup/cpu.max") or "max 1").split()[:2]
    if quota == "max":
        quota = text("/sys/fs/cgroup/cpu/cpu.cfs_quota_us") or "-1"
        period = text("/sys/fs/cgroup/cpu/cpu.cfs_period_us") or "1"
    memory = text("/sys/fs/cgroup/memory.max") or text("/sys/fs/cgroup/memory/memory.limit_in_bytes") or "max"
    # Without a limit the older interface of cgroups gives a number near 2^63.
    bounded = memory.isdigit() and int(memory) < 1 << 60
    return {
        "cpus": int(quota) / int(period) if int(quota) > 0 else None,
        "memory_mb": round(int(memory) / 1e6) if bounded else None,
    }


def gpus() -> list[dict[str, str]]:
    """Every NVIDIA GPU: name, memory, driver, power limit and clocks, as the driver gives them."""
    asked = ("name", "memory.total", "driver_version", "power.limit", "clocks.max.sm", "mig.mode.current")
    try:
        answer = subprocess.run(
            ["nvidia-smi", f"--query-gpu={','.join(asked)}", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=30, check=True,
        )  # fmt: skip
    except (OSError, subprocess.SubprocessError):
        return by_nvml()
    rows = (line.split(", ") for line in answer.stdout.strip().splitlines())
    return [dict(zip(asked, row, strict=False)) for row in rows]


def by_nvml() -> list[dict[str, str]]:
    """The same from NVML, if the driver is there without its command, as in some containers."""
    try:
        import pynvml

        pynvml.nvmlInit()
        driver = pynvml.nvmlSystemGetDriverVersion()
        boards = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]
        return [
            {
                "name": pynvml.nvmlDeviceGetName(board),
                "memory.total": f"{pynvml.nvmlDeviceGetMemoryInfo(board).total >> 20} MiB",
                "driver_version": driver,
            }
            for board in boards
        ]
    except Exception:  # no package, driver or board; NVML's errors are its own classes
        return []


def packages() -> dict[str, str]:
    versions = {}
    for name in PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return versions


def command() -> str:
    """The command that was given, without this machine's paths."""
    if Path(sys.argv[0]).name == "__main__.py" and Path(sys.argv[0]).parent.name == "benchmarks":
        return shlex.join(["python", "-m", "benchmarks", *sys.argv[1:]])
    return shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])


def warn_if_busy(here: Environment) -> None:
    if warning := busy(here):
        print(f"python -m benchmarks: {warning}", file=sys.stderr)
