"""The sensors of power and energy: RAPL's counters, and the NVIDIA board that CUDA shows first.

RAPL is Intel's and AMD's counter of the energy of a processor package and its memory, read through powercap. NVML
counts for boards since Volta. Both count the whole device, including what other programs use.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Protocol

POWERCAP = Path("/sys/class/powercap")

# RAPL's counters step about every millisecond, so over this time one step is 1 %.
SHORTEST_S = 0.1

Clock = Callable[[], float]


class SensorError(Exception):
    """There is no such sensor, or it cannot be read. The message is the reason."""


class NoCounter(SensorError):
    """The board is there, but does not count energy."""


class Sensor(Protocol):
    name: str

    def joules(self) -> float:
        """Energy since the sensor was opened."""
        ...

    def watts(self) -> float | None:
        """Power now, or the mean since the last call; None if that time is too short to tell."""
        ...


class Domain:
    """One energy counter of RAPL.

    The counter wraps around at `max_energy_range_uj` (on many Intel processors 262 kJ, 44 minutes at 100 W), so it must
    be read at least once in each round. Raises `SensorError` if it may not be read (current kernels allow only root).
    """

    def __init__(self, folder: Path, clock: Clock = time.monotonic) -> None:
        self._folder, self._clock = folder, clock
        self.domain = _text(folder / "name")
        package = _text(folder.parent / folder.name.rpartition(":")[0] / "name")  # of its memory
        self.name = ":".join(filter(None, ("rapl", package, self.domain)))
        try:
            self._last = self._counter()
            self._range = int((folder / "max_energy_range_uj").read_text())
        except PermissionError as error:
            raise SensorError(f"RAPL is here but only root may read it ({folder / 'energy_uj'})") from error
        except (OSError, ValueError) as error:
            raise SensorError(f"RAPL cannot be read: {error}") from error
        self._microjoules = 0
        self._asked = (0.0, clock())
        self._watts: float | None = None

    def joules(self) -> float:
        try:
            now = self._counter()
        except (OSError, ValueError) as error:
            raise SensorError(f"RAPL stopped answering: {error}") from error
        self._microjoules += now - self._last if now >= self._last else now - self._last + self._range
        self._last = now
        return self._microjoules / 1e6

    def watts(self) -> float | None:
        joules, now = self.joules(), self._clock()
        before, since = self._asked
        if now - since >= SHORTEST_S:
            self._asked, self._watts = (joules, now), (joules - before) / (now - since)
        return self._watts

    def _counter(self) -> int:
        return int((self._folder / "energy_uj").read_text())


def domains(root: Path = POWERCAP) -> list[Path]:
    """The folders of the packages and their memory. The counters of cores and uncore are parts of a package's, and psys
    contains it, so they would count twice.
    """
    names = {folder: _text(folder / "name") for folder in sorted(root.glob("intel-rapl:*"))}
    return [folder for folder, name in names.items() if name.startswith("package") or name == "dram"]


class Board:
    """The energy of one NVIDIA GPU, `nvmlDeviceGetTotalEnergyConsumption` (Volta and later), and its power.

    It is the GPU that CUDA shows first. With several boards, set the environment variable CUDA_DEVICE_ORDER to
    PCI_BUS_ID, because that is NVML's order.
    """

    _first: int  # millijoules
    _last: int

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise SensorError("nvidia-ml-py is not installed; pip install 'podium[bench]'") from error
        self._nvml = pynvml
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")[0].strip() or "0"
        self.name = f"nvml:{visible}"
        try:
            pynvml.nvmlInit()
            by_index, by_uuid = pynvml.nvmlDeviceGetHandleByIndex, pynvml.nvmlDeviceGetHandleByUUID
            self._device = by_index(int(visible)) if visible.isdigit() else by_uuid(visible)
        except pynvml.NVMLError as error:
            raise SensorError(f"NVML shows no GPU: {error}") from error
        self._begin()

    def joules(self) -> float:
        try:
            now = self._counter()
        except self._nvml.NVMLError as error:
            raise SensorError(f"NVML stopped answering: {error}") from error
        if now < self._last:
            raise SensorError("NVML's energy counter began anew: the driver was loaded again while it was read")
        self._last = now
        return (now - self._first) / 1e3

    def watts(self) -> float:
        """The board's own reading, on recent boards a mean over one second."""
        try:
            return self._power()
        except self._nvml.NVMLError as error:
            raise SensorError(f"NVML stopped answering: {error}") from error

    def _begin(self) -> None:
        try:
            self._first = self._last = self._counter()
        except self._nvml.NVMLError as error:
            raise NoCounter(f"NVML gives no energy counter: {error}") from error

    def _counter(self) -> int:
        return int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device))

    def _power(self) -> float:
        return float(self._nvml.nvmlDeviceGetPowerUsage(self._device)) / 1e3


def sensors(root: Path = POWERCAP, clock: Clock = time.monotonic) -> list[Sensor]:
    """Every sensor that can be read here. Each counts from now on."""
    found: list[Sensor] = []
    for folder in domains(root):
        with suppress(SensorError):
            found.append(Domain(folder, clock))
    with suppress(SensorError):
        found.append(Board())
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""
