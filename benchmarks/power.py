"""Watts and joules, from counters that the hardware keeps; where there is none, null and the reason.

Two counters are read: NVIDIA's board energy (NVML, millijoules, for what runs on the GPU) and Intel's and AMD's
package energy (RAPL through powercap, microjoules, for what runs on the CPU). Both count the whole device, other
tenants included. The paper read a current probe in front of the board (Canziani et al., arXiv 1605.07678, section 2).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from benchmarks.records import Record, nothing_measured

POWERCAP = Path("/sys/class/powercap")

# Engines whose work is done by the GPU; the work of all others shows in the CPU's counter.
ON_GPU = frozenset({"tensorrt", "tensorrt-rtx"})

# NVML's counter steps about every 100 ms: in five seconds one step more or less is 2 %.
SHORTEST_WINDOW_S = 5.0

# A counter that stands still for this long is not connected, as in most virtual machines.
ALIVE_S = 1.0

Clock = Callable[[], float]
Sleep = Callable[[float], None]


class SensorError(Exception):
    """There is no such sensor, or it cannot be read; the message is the `reason` of the records."""


class Sensor(Protocol):
    source: str

    def joules(self) -> float:
        """Energy since the sensor was opened; the device's work is finished before this is called."""
        ...

    def details(self) -> dict[str, Any]: ...


class Rapl:
    """The package and memory domains of RAPL under `root`, summed; each counter's wrap-around is followed.

    Raises `SensorError` where there is no domain or it may not be read (only root may, on current kernels).
    """

    source = "rapl"

    def __init__(self, root: Path = POWERCAP) -> None:
        self._counters: dict[Path, int] = {}
        self._range: dict[Path, int] = {}
        self._joules = 0.0
        for folder in sorted(root.glob("intel-rapl:*")):
            # The core and uncore domains are parts of the package, and psys contains it: they would count twice.
            name = _text(folder / "name")
            if not (name.startswith("package") or name == "dram"):
                continue
            try:
                self._counters[folder] = int((folder / "energy_uj").read_text())
                self._range[folder] = int((folder / "max_energy_range_uj").read_text())
            except PermissionError as error:
                raise SensorError(f"RAPL is here but only root may read it ({folder / 'energy_uj'})") from error
            except (OSError, ValueError) as error:
                raise SensorError(f"RAPL cannot be read: {error}") from error
        if not self._counters:
            raise SensorError("this machine shows no RAPL energy counter, as virtual machines do not")

    def joules(self) -> float:
        for folder, before in self._counters.items():
            try:
                now = int((folder / "energy_uj").read_text())
            except (OSError, ValueError) as error:
                raise SensorError(f"RAPL stopped answering: {error}") from error
            passed = now - before if now >= before else now - before + self._range[folder]
            self._joules += passed / 1e6
            self._counters[folder] = now
        return self._joules

    def details(self) -> dict[str, Any]:
        return {"domains": [_text(folder / "name") for folder in self._counters]}


class Nvml:
    """The board energy of one NVIDIA GPU, `nvmlDeviceGetTotalEnergyConsumption` (Volta and later)."""

    source = "nvml"

    def __init__(self, index: int = 0) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise SensorError("nvidia-ml-py is not installed; pip install 'podium[bench]'") from error
        self._nvml = pynvml
        try:
            pynvml.nvmlInit()
            self._device = pynvml.nvmlDeviceGetHandleByIndex(index)
            self._first = int(pynvml.nvmlDeviceGetTotalEnergyConsumption(self._device))
        except pynvml.NVMLError as error:
            raise SensorError(f"NVML gives no energy counter: {error}") from error

    def joules(self) -> float:
        try:
            return (int(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._device)) - self._first) / 1e3
        except self._nvml.NVMLError as error:
            raise SensorError(f"NVML stopped answering: {error}") from error

    def details(self) -> dict[str, Any]:
        """Temperature in degrees Celsius and the SM clock in MHz, now; null where the board does not say."""
        asked: dict[str, Callable[[Any, Any], Any]] = {
            "temperature_c": lambda n, d: n.nvmlDeviceGetTemperature(d, n.NVML_TEMPERATURE_GPU),
            "sm_clock_mhz": lambda n, d: n.nvmlDeviceGetClockInfo(d, n.NVML_CLOCK_SM),
        }
        found: dict[str, Any] = {}
        for name, ask in asked.items():
            try:
                found[name] = int(ask(self._nvml, self._device))
            except self._nvml.NVMLError:
                found[name] = None
        return found


def sensor_for(engine: str, sleep: Sleep = time.sleep) -> Sensor:
    """The counter in which the work of `engine` shows, seen to move; `SensorError` says why there is none."""
    sensor: Sensor = Nvml() if engine in ON_GPU else Rapl()
    return alive(sensor, sleep)


def alive(sensor: Sensor, sleep: Sleep = time.sleep) -> Sensor:
    """`sensor` if its counter moves; an idle machine draws power too, so one that stands still is not connected."""
    before = sensor.joules()
    sleep(ALIVE_S)
    if sensor.joules() == before:
        raise SensorError(f"the {sensor.source} counter is there but stands still, as in many virtual machines")
    return sensor


def measure(
    sensor: Sensor,
    load: Callable[[], Callable[[], object]],
    batch: int,
    *,
    idle_s: float,
    window_s: float,
    trials: int,
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
) -> Record:
    """The `power` of a record: idle first, then `load()` gives the call to repeat, for `trials` windows.

    Watts are of the whole device; net is gross minus idle, as in the paper's figure 4. `window_s` is the mean length
    of the windows as they were, `trials` how many there were, and `std_w` how far their means lie apart.
    """
    before, began = sensor.joules(), clock()
    sleep(idle_s)
    idle = (sensor.joules() - before) / (clock() - began)

    call = load()
    windows: list[tuple[float, float, int]] = []
    for _ in range(trials):
        calls, before, began = 0, sensor.joules(), clock()
        while clock() - began < max(window_s, SHORTEST_WINDOW_S):
            call()
            calls += 1
        joules, seconds = sensor.joules() - before, clock() - began
        windows.append((joules, seconds, calls * batch))
    watts = [joules / seconds for joules, seconds, _ in windows]
    seconds, images = sum(w[1] for w in windows), sum(w[2] for w in windows)
    mean = sum(w[0] for w in windows) / seconds
    return nothing_measured("") | {
        "source": sensor.source,
        "reason": None,
        "idle_w": idle,
        "mean_w": mean,
        "net_w": mean - idle,
        "std_w": statistics.stdev(watts) if len(watts) > 1 else None,
        "joules_per_image": mean * seconds / images,
        "net_joules_per_image": (mean - idle) * seconds / images,
        "window_s": seconds / len(windows),
        "trials": len(windows),
        **sensor.details(),
    }


def _text(path: Path) -> str:
    try:
        return path.read_text("utf-8").strip()
    except OSError:
        return ""
