"""Power from RAPL and on NVIDIA boards, against readings played back: a counter in steps, its absence,
its restart; and what `/metrics` says of both.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

from benchmarks import environment, records
from benchmarks.engine import power
from serving import power as sensing
from serving.artifact import Artifact
from serving.classify import Serving
from serving.metrics import Metrics
from serving.settings import Settings

# A record as it is in JSON, which the tests look at freely.
Json = Any


def rapl(root: Path, name: str, label: str, microjoules: int, limit: int = 1_000_000_000) -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "name").write_text(label + "\n")
    (folder / "energy_uj").write_text(f"{microjoules}\n")
    (folder / "max_energy_range_uj").write_text(f"{limit}\n")
    return folder


def test_rapl_sums_packages_and_memory_once_and_follows_the_wrap(tmp_path: Path) -> None:
    package = rapl(tmp_path, "intel-rapl:0", "package-0", 999_000_000)
    core = rapl(tmp_path, "intel-rapl:0:0", "core", 0)
    memory = rapl(tmp_path, "intel-rapl:0:1", "dram", 0)
    rapl(tmp_path, "intel-rapl:1", "psys", 0)
    sensor = power.Rapl(tmp_path)
    assert sensor.joules() == 0
    (package / "energy_uj").write_text("2000000")
    (memory / "energy_uj").write_text("500000")
    (core / "energy_uj").write_text("7000000")
    assert sensor.joules() == pytest.approx(3.5)
    (package / "energy_uj").write_text("3000000")
    assert sensor.joules() == pytest.approx(4.5)


def test_a_dead_or_absent_sensor_is_no_sensor(tmp_path: Path) -> None:
    with pytest.raises(power.SensorError, match="no RAPL energy counter"):
        power.Rapl(tmp_path)
    package = rapl(tmp_path, "intel-rapl:0", "package-0", 0)
    with pytest.raises(power.SensorError, match="stands still"):
        power.alive(power.Rapl(tmp_path), lambda _: None)

    def work(_: float) -> None:
        package.joinpath("energy_uj").write_text("9")

    moving = power.alive(power.Rapl(tmp_path), work)
    (package / "energy_uj").unlink()
    with pytest.raises(power.SensorError, match="stopped answering"):
        moving.joules()


def test_a_sensor_that_only_root_may_read_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rapl(tmp_path, "intel-rapl:0", "package-0", 0)
    plain = Path.read_text

    def read_text(self: Path, *more: Any, **named: Any) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied", str(self))
        return plain(self, *more, **named)

    monkeypatch.setattr(Path, "read_text", read_text)
    with pytest.raises(power.SensorError, match="only root may read it"):
        power.Rapl(tmp_path)


class NVMLError(Exception):
    pass


class Board:
    """`pynvml` on one board, as its documentation and published measurements have it: millijoules since the driver was
    loaded, in steps of 100 ms; idle at 345 MHz and 70 W, at work at its power cap. Time passes in `sleep` and `work`.
    """

    NVMLError = NVMLError
    NVML_TEMPERATURE_GPU, NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_FI_DEV_POWER_INSTANT = 0, 1, 2, 186
    STEP_S = 0.1
    IDLE_W, BUSY_W = 70.0, 500.0

    def __init__(self, *, counter: bool = True, readable: bool = True) -> None:
        self.now, self.energy, self.watts = 0.0, 123.456, self.IDLE_W
        self.counter, self.readable, self.shown, self.next_step = counter, readable, 123_456, self.STEP_S
        self.opened: list[Any] = []
        self.readings = 0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.watts = self.IDLE_W
        self._pass(seconds)

    def work(self) -> None:
        self.watts = self.BUSY_W
        self._pass(0.013)

    def _pass(self, seconds: float) -> None:
        while seconds > 1e-9:
            part = min(seconds, self.next_step - self.now)
            self.now, self.energy, seconds = self.now + part, self.energy + part * self.watts, seconds - part
            if self.now >= self.next_step - 1e-9:
                self.shown, self.next_step = int(1000 * self.energy), self.next_step + self.STEP_S

    def nvmlInit(self) -> None:  # noqa: N802
        pass

    def nvmlDeviceGetHandleByIndex(self, index: int) -> str:  # noqa: N802
        self.opened.append(index)
        return "board"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 2

    def nvmlDeviceGetMemoryInfo(self, device: str) -> Any:  # noqa: N802
        return SimpleNamespace(total=8 << 30)

    def nvmlDeviceGetHandleByUUID(self, uuid: str) -> str:  # noqa: N802
        self.opened.append(uuid)
        return "board"

    def nvmlDeviceGetTotalEnergyConsumption(self, device: str) -> int:  # noqa: N802
        if not self.counter:
            raise NVMLError("Not Supported")
        return self.shown

    def nvmlDeviceGetPowerUsage(self, device: str) -> int:  # noqa: N802
        if not self.readable:
            raise NVMLError("Not Supported")
        self.readings += 1
        return int(1000 * self.watts)

    def nvmlDeviceGetFieldValues(self, device: str, fields: list[int]) -> list[Any]:  # noqa: N802
        assert fields == [186]
        return [SimpleNamespace(nvmlReturn=0, value=SimpleNamespace(uiVal=int(1000 * self.watts)))]

    def nvmlDeviceGetName(self, device: str) -> str:  # noqa: N802
        return "Played Back GPU"

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.00"

    def nvmlDeviceGetTemperature(self, device: str, sensor: int) -> int:  # noqa: N802
        return 61

    def nvmlDeviceGetClockInfo(self, device: str, which: int) -> int:  # noqa: N802
        return 3201 if which == self.NVML_CLOCK_MEM else 345 if self.watts == self.IDLE_W else 1755

    def nvmlDeviceGetMaxClockInfo(self, device: str, which: int) -> int:  # noqa: N802
        return 1980

    def nvmlDeviceGetEnforcedPowerLimit(self, device: str) -> int:  # noqa: N802
        return 500_000

    def nvmlDeviceGetCurrentClocksEventReasons(self, device: str) -> int:  # noqa: N802
        return 0x1 if self.watts == self.IDLE_W else 0x4 | 0x20

    def nvmlDeviceGetMigMode(self, device: str) -> list[int]:  # noqa: N802
        raise NVMLError("Not Supported")

    def nvmlDeviceGetComputeRunningProcesses(self, device: str) -> list[Any]:  # noqa: N802
        return [
            SimpleNamespace(pid=os.getpid(), usedGpuMemory=900_000_000),
            SimpleNamespace(pid=1, usedGpuMemory=2_500_000_000),
            SimpleNamespace(pid=2, usedGpuMemory=None),
        ]


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    return plugged(monkeypatch, Board())


def plugged(monkeypatch: pytest.MonkeyPatch, board: Board) -> Board:
    monkeypatch.setitem(sys.modules, "pynvml", board)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return board


def measured(board: Board, sensor: power.Sensor, **more: Any) -> Json:
    return power.measure(
        sensor, lambda: board.work, 8, idle_s=10, window_s=5, trials=3, clock=board.clock, sleep=board.sleep, **more
    )


def check(found: Json) -> None:
    """One step of the counter more or less is 2 % of five seconds."""
    assert found["idle_w"] == pytest.approx(Board.IDLE_W, rel=0.01)
    assert found["mean_w"] == pytest.approx(Board.BUSY_W, rel=0.02)
    assert found["net_w"] == pytest.approx(found["mean_w"] - found["idle_w"])
    # Eight images in 13 ms.
    assert found["joules_per_image"] == pytest.approx(Board.BUSY_W * 0.013 / 8, rel=0.02)
    assert found["net_joules_per_image"] == pytest.approx((Board.BUSY_W - Board.IDLE_W) * 0.013 / 8, rel=0.02)
    assert found["trials"] == len(found["trial_w"]) == 3 and 5 <= found["window_s"] < 5.1
    assert sum(found["trial_w"]) / 3 == pytest.approx(found["mean_w"], rel=1e-3) and found["std_w"] < 10


def test_the_counter_gives_joules_and_the_conditions_of_work(board: Board) -> None:
    sensor = power.sensor_for("onnxruntime-cuda", board.sleep)
    found = measured(board, sensor)
    check(found)
    assert found["source"] == "nvml" and found["reason"] is None and board.opened == [0]
    # Read while it worked: after the last window the clocks are those of an idle board.
    assert (found["sm_clock_mhz"], found["most_sm_clock_mhz"], found["memory_clock_mhz"]) == (1755, 1980, 3201)
    assert found["limited_by"] == ["power cap", "software thermal"] and found["instant_w"] == Board.BUSY_W
    assert (found["board"], found["driver"], found["temperature_c"]) == ("Played Back GPU", "580.00", 61)
    assert (found["power_limit_w"], found["mig"]) == (500.0, None)
    assert found["other_processes"] == {"count": 2, "memory_mb": 2500.0}
    item = records.unmeasured(records.Failed("engine", "x")) | {
        "kind": "cell", "network": "x", "engine": "e", "precision": "p", "batch": 1, "weights": "w", "power": found,
    }  # fmt: skip
    assert list(records.problems(item)) == []


def test_idle_is_taken_from_before_the_network_was_loaded(board: Board) -> None:
    sensor = power.of_gpu()
    found = measured(board, sensor, idle_w=40.0)
    assert found["idle_w"] == 40.0 and found["net_w"] == pytest.approx(found["mean_w"] - 40)
    assert board.now == pytest.approx(15, abs=0.1)  # no seconds of idling were added


def test_a_board_without_the_counter_is_sampled_and_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    board = plugged(monkeypatch, Board(counter=False))
    sensor = power.NvmlSampled(board.clock, period_s=None)
    sleep, work = board.sleep, board.work

    def sampled(seconds: float) -> None:
        for _ in range(round(seconds / power.SAMPLE_S)):
            sleep(power.SAMPLE_S)
            sensor.joules()

    monkeypatch.setattr(board, "sleep", sampled)
    monkeypatch.setattr(board, "work", lambda: (work(), sensor.joules()))
    found = measured(board, sensor)
    check(found)
    assert found["source"] == "nvml, sampled power" and found["reason"] is None


def test_the_fallback_samples_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    board = plugged(monkeypatch, Board(counter=False))
    enough, read = threading.Event(), board.nvmlDeviceGetPowerUsage

    def reading(device: str) -> int:
        if board.readings > 5:
            enough.set()
        return read(device)

    monkeypatch.setattr(board, "nvmlDeviceGetPowerUsage", reading)
    sensor = power.of_gpu()
    assert isinstance(sensor, power.NvmlSampled) and enough.wait(60)
    assert sensor.joules() > 0
    sensor.close()


def test_a_board_that_tells_nothing_is_no_sensor(monkeypatch: pytest.MonkeyPatch) -> None:
    plugged(monkeypatch, Board(counter=False, readable=False))
    with pytest.raises(power.SensorError, match="neither an energy counter nor power: Not Supported"):
        power.of_gpu()


def test_a_counter_that_stands_still_is_not_connected(board: Board) -> None:
    with pytest.raises(power.SensorError, match="nvml counter is there but stands still"):
        power.sensor_for("tensorrt", lambda _: None)


def test_a_counter_that_begins_anew_or_stops_ends_the_measurement(board: Board) -> None:
    sensor = power.of_gpu()
    board.sleep(1)
    assert sensor.joules() == pytest.approx(Board.IDLE_W, rel=0.01)
    board.shown = 0
    with pytest.raises(power.SensorError, match="began anew"):
        sensor.joules()
    board.counter = False
    with pytest.raises(power.SensorError, match="stopped answering: Not Supported"):
        sensor.joules()


def test_no_driver_is_no_sensor(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise NVMLError("NVML Shared Library Not Found")

    monkeypatch.setattr(board, "nvmlInit", missing)
    with pytest.raises(power.SensorError, match="shows no GPU: NVML Shared Library Not Found"):
        power.of_gpu()


@pytest.mark.parametrize(("visible", "opened"), [("", 0), ("2,0", 2), ("GPU-8d1d,1", "GPU-8d1d")])
def test_the_board_is_the_one_that_cuda_shows_first(
    board: Board, monkeypatch: pytest.MonkeyPatch, visible: str, opened: int | str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    power.of_gpu()
    assert board.opened == [opened]


def test_gpus_are_named_without_the_driver_s_command(board: Board, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: Any, **__: Any) -> None:
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(subprocess, "run", absent)
    one = {"name": "Played Back GPU", "memory.total": "8192 MiB", "driver_version": "580.00"}
    assert environment.gpus() == [one, one]
    monkeypatch.setattr(board, "nvmlInit", absent)
    assert environment.gpus() == []


# In /metrics


def exposed(metrics: Metrics) -> dict[str, float]:
    """Our samples of power and energy, by name and sensor."""
    families = text_string_to_metric_families(metrics.text().decode())
    samples = [sample for family in families for sample in family.samples]
    return {f"{sample.name} {sample.labels['sensor']}": sample.value for sample in samples if "sensor" in sample.labels}


@pytest.fixture
def no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)


@pytest.mark.usefixtures("no_board")
def test_metrics_count_every_domain_and_divide_by_the_time_between_scrapes(tmp_path: Path) -> None:
    package = rapl(tmp_path, "intel-rapl:0", "package-0", 990_000_000)
    memory = rapl(tmp_path, "intel-rapl:0:0", "dram", 0)
    rapl(tmp_path, "intel-rapl:0:1", "core", 0)
    rapl(tmp_path, "intel-rapl:1", "package-1", 0)  # stands still
    now = 100.0
    metrics = Metrics([], CollectorRegistry())
    metrics.sensors = sensing.sensors(tmp_path, lambda: now)
    assert exposed(metrics) == {}

    now += 10
    (package / "energy_uj").write_text("490000000\n")  # around: 500 J
    (memory / "energy_uj").write_text("20000000\n")
    found = {
        "podium_energy_joules_total rapl:package-0": 500,
        "podium_energy_joules_total rapl:package-0:dram": 20,
        "podium_power_watts rapl:package-0": 50,
        "podium_power_watts rapl:package-0:dram": 2,
    }
    assert exposed(metrics) == found

    # A second scrape at once has no time to divide by; it repeats the watts.
    now += 0.001
    (package / "energy_uj").write_text("490100000\n")
    assert exposed(metrics) == {**found, "podium_energy_joules_total rapl:package-0": 500.1}

    now += 4.999
    (package / "energy_uj").write_text("640000000\n")
    (memory / "energy_uj").unlink()
    after = {"podium_energy_joules_total rapl:package-0": 650, "podium_power_watts rapl:package-0": 30}
    assert exposed(metrics) == after


@pytest.mark.usefixtures("no_board")
def test_metrics_leave_out_what_cannot_be_read(tmp_path: Path) -> None:
    assert sensing.sensors(tmp_path) == []
    (rapl(tmp_path, "intel-rapl:0", "package-0", 0) / "energy_uj").unlink()
    assert sensing.sensors(tmp_path) == []
    metrics = Metrics([], CollectorRegistry())
    assert b"podium_power" not in metrics.text() and b"podium_energy" not in metrics.text()


def test_metrics_give_a_board_s_own_power_and_count(board: Board, tmp_path: Path) -> None:
    metrics = Metrics([], CollectorRegistry())
    metrics.sensors = sensing.sensors(tmp_path)
    board.sleep(10)
    board.work()
    joules = pytest.approx(10 * Board.IDLE_W, rel=0.01)
    assert exposed(metrics) == {
        "podium_energy_joules_total nvml:0": joules,
        "podium_power_watts nvml:0": Board.BUSY_W,
    }
    board.readable = False
    assert exposed(metrics) == {"podium_energy_joules_total nvml:0": joules}
    board.counter = False
    assert exposed(metrics) == {}


def test_the_service_opens_its_sensors(board: Board, tiny: Artifact) -> None:
    async def test() -> None:
        serving = Serving(Settings.read({}), [tiny], CollectorRegistry())
        await serving.start()
        board.sleep(1)
        assert exposed(serving.metrics)["podium_power_watts nvml:0"] == Board.IDLE_W
        await serving.stop()

    asyncio.run(test())


@pytest.mark.gpu
def test_a_real_board_draws_power() -> None:
    try:
        sensor = power.sensor_for("torch-cuda")
    except power.SensorError as error:
        pytest.skip(str(error))
    assert sensor.details()["driver"] and 1 < power.idle(sensor, 2) < 2000
