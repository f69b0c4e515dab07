"""Watts and joules from counters that the hardware keeps; null and the reason if there is none.

Two counters are read: NVIDIA's board energy (NVML, in millijoules) for what runs on a GPU, and the package energy of
Intel and AMD (RAPL through powercap, in microjoules) for what runs on the CPU. Both count the whole device, other users
of it included. Boards before Volta have no counter: their power is read many times a second and summed, and the source
in the record says so. The paper read a current probe in front of the board (Canziani et al., arXiv 1605.07678,
section 2).
"""

from __future__ import annotations

import os
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

from benchmarks.records import Conditions, OtherProcesses, Power
from serving.power import POWERCAP, Board, Clock, Domain, NoCounter, domains
from serving.power import SensorError as SensorError

# Engines that work on the GPU. The work of all others shows in the CPU's counter.
ON_GPU = frozenset({"onnxruntime-cuda", "tensorrt", "tensorrt-rtx", "torch-cuda", "torch.compile-cuda"})

# NVML's counter moves about every 100 ms, so that one step more or less is 2 % of five seconds.
SHORTEST_WINDOW_S = 5.0

# A counter that does not move for so long is not connected, as in most virtual machines.
ALIVE_S = 1.0

# The period of sampled power. The sensor of recent boards gives a new reading every 25 to 100 ms.
SAMPLE_S = 0.02

Sleep = Callable[[float], None]


class Sensor(Protocol):
    source: str

    def joules(self) -> float:
        """Energy since the sensor was opened. Callers wait for the device's work to finish before they ask."""
        ...

    def details(self) -> Conditions:
        """The conditions at this moment, while the device works."""
        ...


class Rapl:
    """The package and memory domains of RAPL under `root`, summed.

    Raises `SensorError` if there is no domain or it may not be read (on current kernels only root may).
    """

    source = "rapl"

    def __init__(self, root: Path = POWERCAP) -> None:
        self._domains = [Domain(folder) for folder in domains(root)]
        if not self._domains:
            raise SensorError("this machine shows no RAPL energy counter, as virtual machines do not")

    def joules(self) -> float:
        return sum(domain.joules() for domain in self._domains)

    def details(self) -> Conditions:
        return {"domains": [domain.domain for domain in self._domains]}


# Why a board runs below its highest clocks: bits of `nvmlDeviceGetCurrentClocksEventReasons`, without those for an idle
# board and for limits that its owner set.
LIMITS = {
    0x04: "power cap",
    0x08: "hardware slowdown",
    0x10: "sync boost",
    0x20: "software thermal",
    0x40: "hardware thermal",
    0x80: "power brake",
}


class Nvml(Board):
    """The board's counter and its conditions. `others` are the processes on the board when it was opened."""

    source = "nvml"

    def __init__(self) -> None:
        super().__init__()
        self.others = self._processes()

    def details(self) -> Conditions:
        """Clocks in MHz, temperature in degrees Celsius, watts; null if the board or its driver does not say.

        `instant_w` is one reading, not averaged over a second as `nvmlDeviceGetPowerUsage` is on recent boards. If it
        is far from the mean, do not trust the counter.
        """
        n, d = self._nvml, self._device
        asked: dict[str, Callable[[], Any]] = {
            "board": lambda: n.nvmlDeviceGetName(d),
            "driver": lambda: n.nvmlSystemGetDriverVersion(),
            "temperature_c": lambda: int(n.nvmlDeviceGetTemperature(d, n.NVML_TEMPERATURE_GPU)),
            "sm_clock_mhz": lambda: int(n.nvmlDeviceGetClockInfo(d, n.NVML_CLOCK_SM)),
            "memory_clock_mhz": lambda: int(n.nvmlDeviceGetClockInfo(d, n.NVML_CLOCK_MEM)),
            "most_sm_clock_mhz": lambda: int(n.nvmlDeviceGetMaxClockInfo(d, n.NVML_CLOCK_SM)),
            "power_limit_w": lambda: n.nvmlDeviceGetEnforcedPowerLimit(d) / 1e3,
            "instant_w": self._instant,
            "limited_by": lambda: limits(n.nvmlDeviceGetCurrentClocksEventReasons(d)),
            "mig": lambda: bool(n.nvmlDeviceGetMigMode(d)[0]),
        }
        answers: dict[str, Any] = {"other_processes": self.others}
        for name, ask in asked.items():
            try:
                answers[name] = ask()
            except (
                self._nvml.NVMLError,
                AttributeError,
            ):  # unknown to the board, or to an older package
                answers[name] = None
        return cast(Conditions, answers)

    def _instant(self) -> float | None:
        [value] = self._nvml.nvmlDeviceGetFieldValues(self._device, [self._nvml.NVML_FI_DEV_POWER_INSTANT])
        return None if value.nvmlReturn else value.value.uiVal / 1e3

    def _processes(self) -> OtherProcesses | None:
        """How many other processes compute on the board, and the MB they hold; None if it does not tell.

        Their names are not recorded. Inside a container process ids may be unknown; then a process of ours that was
        there before is counted too.
        """
        try:
            processes = self._nvml.nvmlDeviceGetComputeRunningProcesses(self._device)
        except (self._nvml.NVMLError, AttributeError):
            return None
        others = [process for process in processes if process.pid != os.getpid()]
        return {"count": len(others), "memory_mb": sum((process.usedGpuMemory or 0) for process in others) / 1e6}


class NvmlSampled(Nvml):
    """A board that counts no energy: a thread reads its power every `SAMPLE_S` seconds and sums it over time."""

    source = "nvml, sampled power"

    def __init__(self, clock: Clock = time.perf_counter, period_s: float | None = SAMPLE_S) -> None:
        """If `period_s` is None, only calls of `joules` read the power."""
        self._clock, self._period = clock, period_s
        super().__init__()

    def joules(self) -> float:
        self._sample()
        if self._broken:
            raise SensorError(f"NVML stopped answering: {self._broken}")
        return self._energy

    def close(self) -> None:
        self._over.set()

    def _begin(self) -> None:
        self._lock, self._over = threading.Lock(), threading.Event()
        self._energy, self._broken = 0.0, ""
        try:
            self._watts, self._at = self._power(), self._clock()
        except self._nvml.NVMLError as error:
            raise SensorError(f"NVML gives neither an energy counter nor power: {error}") from error
        if self._period is not None:
            threading.Thread(target=self._watch, args=(self._period,), daemon=True).start()

    def _watch(self, period: float) -> None:
        while not self._over.wait(period) and not self._broken:
            self._sample()

    def _sample(self) -> None:
        with self._lock:
            try:
                watts, at = self._power(), self._clock()
            except self._nvml.NVMLError as error:
                self._broken = str(error)
                return
            self._energy += (watts + self._watts) / 2 * (at - self._at)
            self._watts, self._at = watts, at


def limits(reasons: int) -> list[str]:
    return [name for bit, name in LIMITS.items() if reasons & bit]


def of_gpu() -> Nvml:
    """The board's counter, or its sampled power if it has none; `SensorError` if it tells neither."""
    try:
        return Nvml()
    except NoCounter:
        return NvmlSampled()


def sensor_for(engine: str, sleep: Sleep = time.sleep) -> Sensor:
    """The counter that counts the work of `engine`, after it was seen to move; `SensorError` if there is none."""
    return alive(of_gpu() if engine in ON_GPU else Rapl(), sleep)


def alive(sensor: Sensor, sleep: Sleep = time.sleep) -> Sensor:
    """`sensor` if its counter moves. An idle machine draws power too, so one that does not move is not connected."""
    before = sensor.joules()
    sleep(ALIVE_S)
    if sensor.joules() == before:
        raise SensorError(f"the {sensor.source} counter is there but stands still, as in many virtual machines")
    return sensor


def idle(sensor: Sensor, seconds: float, clock: Clock = time.perf_counter, sleep: Sleep = time.sleep) -> float:
    """Mean watts over `seconds` without work."""
    before, began = sensor.joules(), clock()
    sleep(seconds)
    return (sensor.joules() - before) / (clock() - began)


def measure(
    sensor: Sensor,
    load: Callable[[], Callable[[], object]],
    batch: int,
    *,
    idle_s: float,
    window_s: float,
    trials: int,
    idle_w: float | None = None,
    clock: Clock = time.perf_counter,
    sleep: Sleep = time.sleep,
) -> Power:
    """The `power` of a record: first idle, then `load()` gives the call to repeat, for `trials` windows.

    Watts are of the whole device; net is gross minus idle, as in the paper's figure 4. If `idle_w` was measured before
    anything was loaded, it is passed; else `idle_s` seconds of idling are measured. In the result, `window_s` is the
    mean length of the windows, `trials` their number, `trial_w` the mean watts of each, and `std_w` the standard
    deviation of those.
    """
    if idle_w is None:
        idle_w = idle(sensor, idle_s, clock, sleep)

    call = load()
    windows: list[tuple[float, float, int]] = []
    conditions: Conditions | None = None
    length = max(window_s, SHORTEST_WINDOW_S)
    for trial in range(trials):
        calls, before, began = 0, sensor.joules(), clock()
        while (passed := clock() - began) < length:
            call()
            calls += 1
            # Between two calls of the last window, because the device is then still as it works.
            if conditions is None and trial == trials - 1 and passed >= length / 2:
                conditions = sensor.details()
        joules, seconds = sensor.joules() - before, clock() - began
        windows.append((joules, seconds, calls * batch))
    watts = [joules / seconds for joules, seconds, _ in windows]
    seconds, images = sum(w[1] for w in windows), sum(w[2] for w in windows)
    mean = sum(w[0] for w in windows) / seconds
    return {
        "source": sensor.source,
        "reason": None,
        "idle_w": idle_w,
        "mean_w": mean,
        "net_w": mean - idle_w,
        "std_w": statistics.stdev(watts) if len(watts) > 1 else None,
        "trial_w": watts,
        "joules_per_image": mean * seconds / images,
        "net_joules_per_image": (mean - idle_w) * seconds / images,
        "window_s": seconds / len(windows),
        "trials": len(windows),
        **(sensor.details() if conditions is None else conditions),
    }
