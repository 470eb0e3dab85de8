import os
import threading
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.instruments import gpu, machine, memory
from harness.instruments.clock import CudaClock, HostClock
from harness.instruments.energy import NvmlEnergy, RaplEnergy, joules_per_event
from harness.instruments.gpu import NoGpu, conditions, device_facts, find_device
from harness.instruments.memory import NvmlMemory, ResidentMemory, TorchMemory, nvml_baselines
from tests.harness.instruments.fake_nvml import NOT_SUPPORTED, Device, FakeNvml, process, used


class Ticks:
    """A clock that the test sets."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


class FakeCuda:
    """A device that works for a while after the call has returned."""

    def __init__(self, ticks, work):
        self.ticks, self.work, self.pending = ticks, work, 0.0
        self.events = []

    def Event(self, enable_timing):
        assert enable_timing
        event = SimpleNamespace(at=None)
        event.record = lambda: setattr(event, "at", self.ticks.now + self.pending)
        event.elapsed_time = lambda other: 1000 * (other.at - event.at)
        return event

    def launch(self):
        self.ticks.now += 0.001
        self.pending += self.work

    def synchronize(self):
        self.ticks.now += self.pending
        self.pending = 0.0


def test_the_host_clock_times_the_call():
    ticks = Ticks()

    def call():
        ticks.now += 0.25

    found = HostClock(ticks).time(call)
    assert found.host == pytest.approx(0.25)
    assert found.device is None


def test_the_cuda_clock_waits_for_the_device():
    ticks = Ticks()
    cuda = FakeCuda(ticks, work=0.5)
    cuda.pending = 3.0  # an earlier kernel must not count
    found = CudaClock(cuda, ticks).time(cuda.launch)
    assert found.host == pytest.approx(0.501)
    assert found.device == pytest.approx(0.501)


def test_resident_memory_is_the_peak_of_the_call_over_what_was_there():
    def call():
        del_me = bytearray(64 << 20)
        del_me[::4096] = b"x" * len(del_me[::4096])

    first = ResidentMemory().measure(call)
    second = ResidentMemory().measure(lambda: None)
    assert first["rss_peak_reset"]
    assert first["peak_rss_bytes"] - first["baseline_bytes"] > 60 << 20
    assert second["peak_rss_bytes"] - second["baseline_bytes"] < 16 << 20


def test_without_permission_to_reset_the_peak_the_reason_is_given(tmp_path):
    (tmp_path / "status").write_text("VmHWM:\t 2048 kB\nVmRSS:\t 1024 kB\n")
    (tmp_path / "clear_refs").mkdir()
    found = ResidentMemory(tmp_path).measure(lambda: None)
    assert found == {
        "baseline_bytes": 1 << 20,
        "peak_rss_bytes": 2 << 20,
        "rss_peak_reset": False,
    }


def test_torch_memory_is_reset_before_the_call():
    said = []
    cuda = SimpleNamespace(
        synchronize=lambda: said.append("synchronize"),
        empty_cache=lambda: said.append("empty"),
        reset_peak_memory_stats=lambda: said.append("reset"),
        max_memory_allocated=lambda: 10,
        max_memory_reserved=lambda: 20,
    )
    found = TorchMemory(cuda).measure(lambda: said.append("call"))
    assert found == {"torch_allocated_bytes": 10, "torch_reserved_bytes": 20}
    assert said.index("reset") < said.index("call") < said.index("synchronize", 3)


GIB = 1 << 30


def watch(device, baseline, pid=77):
    instrument = NvmlMemory(FakeNvml(device), device, pid, baseline, interval=0.001)
    return instrument.measure(lambda: threading.Event().wait(0.02))


def test_the_memory_of_the_process_is_preferred_if_nvml_reports_it():
    device = Device(
        "GPU-a",
        {
            "memory_v1": used(9 * GIB),
            "memory_v2": used(8 * GIB, reserved=GIB),
            "nvmlDeviceGetComputeRunningProcesses_v3": [process(5, GIB), process(77, 3 * GIB)],
        },
    )
    found = watch(device, {"v1_used": GIB, "v2_used": GIB})
    assert found["nvml_meaning"] == "process"
    assert found["nvml_peak_bytes"] == 3 * GIB
    assert found["nvml_baseline_bytes"] == 0


def test_in_a_container_with_host_pids_the_device_over_its_baseline_counts():
    device = Device(
        "GPU-a",
        {
            "memory_v1": used(9 * GIB),
            "memory_v2": [used(2 * GIB), used(7 * GIB), used(3 * GIB)],
            "nvmlDeviceGetComputeRunningProcesses_v3": [process(4242, 6 * GIB)],
        },
    )
    found = watch(device, {"v1_used": GIB, "v2_used": GIB})
    assert found["nvml_meaning"] == "v2_used"
    assert found["nvml_peak_bytes"] == 7 * GIB  # the highest of all samples
    assert found["nvml_baseline_bytes"] == GIB
    assert found["nvml_interval_s"] == 0.001


def test_a_process_without_a_number_does_not_count():
    device = Device(
        "GPU-a",
        {
            "memory_v1": used(9 * GIB),
            "nvmlDeviceGetComputeRunningProcesses_v3": [process(77, None)],
        },
    )
    found = watch(device, {"v1_used": 8 * GIB, "v2_used": None})
    assert found["nvml_meaning"] == "v1_used"
    assert found["nvml_peak_bytes"] - found["nvml_baseline_bytes"] == GIB


def test_a_device_that_supports_nothing_gives_nothing():
    found = watch(Device("GPU-a"), {})
    assert found["nvml_peak_bytes"] is None
    assert found["nvml_meaning"] is None


def test_the_sampler_ends_even_if_the_call_fails():
    before = threading.active_count()
    device = Device("GPU-a", {"memory_v1": used(1)})
    instrument = NvmlMemory(FakeNvml(device), device, 1, {}, 0.001)
    with pytest.raises(ZeroDivisionError):
        instrument.measure(lambda: 1 / 0)
    assert threading.active_count() == before


def test_memory_outside_torch_is_what_torch_did_not_reserve():
    entries = {
        "torch_reserved_bytes": 3 * GIB,
        "nvml_peak_bytes": 9 * GIB,
        "nvml_baseline_bytes": 2 * GIB,
    }
    assert memory.outside_torch(entries) == {"outside_torch_bytes": 4 * GIB}
    assert memory.outside_torch(entries | {"nvml_peak_bytes": None}) == {}


def test_baselines_are_read_of_every_device():
    nvml = FakeNvml(Device("GPU-a", {"memory_v1": used(5)}), Device("GPU-b"))
    found = nvml_baselines(nvml, pid=1)
    assert found["GPU-a"]["v1_used"] == 5
    assert found["GPU-b"]["v1_used"] is None


DEVICES = [Device("GPU-aaaa-1"), Device("GPU-bbbb-2"), Device("GPU-cccc-3")]
MIG = Device("MIG-dddd-4")


@pytest.mark.parametrize(
    ("visible", "uuid", "index", "expected"),
    [
        (None, None, 1, "GPU-bbbb-2"),
        ("2,0", None, 0, "GPU-cccc-3"),
        ("2,0", None, 1, "GPU-aaaa-1"),
        ("GPU-bbbb-2", None, 0, "GPU-bbbb-2"),
        ("GPU-bb", None, 0, "GPU-bbbb-2"),  # CUDA takes abbreviations
        (None, "bbbb-2", 0, "GPU-bbbb-2"),  # torch leaves the prefix out
        ("1", "GPU-bbbb-2", 0, "GPU-bbbb-2"),
        ("0", "cccc-3", 0, "GPU-cccc-3"),  # CUDA's order of devices is not NVML's
        ("MIG-dddd-4", "aaaa-1", 0, "MIG-dddd-4"),  # torch reports the parent's UUID
        ("MIG-gone", "aaaa-1", 0, "GPU-aaaa-1"),
    ],
)
def test_the_device_is_the_one_that_torch_uses(visible, uuid, index, expected):
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    found = find_device(FakeNvml(*DEVICES, MIG), environment, uuid, index)
    assert found.uuid == expected


@pytest.mark.parametrize(
    ("visible", "uuid", "index"), [("9", None, 0), ("GPU-x", None, 0), ("0", None, 1)]
)
def test_an_unknown_device_is_said_to_be_unknown(visible, uuid, index):
    with pytest.raises(NoGpu, match="does not know"):
        find_device(FakeNvml(*DEVICES), {"CUDA_VISIBLE_DEVICES": visible}, uuid, index)


def test_conditions_name_the_reasons_for_a_slow_clock():
    device = Device(
        "GPU-a",
        {
            "nvmlDeviceGetClockInfo": 1410,
            "nvmlDeviceGetTemperature": 61,
            "nvmlDeviceGetEnforcedPowerLimit": 400_000,
            "nvmlDeviceGetCurrentClocksEventReasons": 4 | 32 | 1,  # 1: idle, which is no fault
        },
    )
    assert conditions(FakeNvml(device), device) == {
        "sm_clock_mhz": 1410,
        "temperature_c": 61,
        "power_limit_w": 400.0,
        "throttle": ["power cap", "software thermal"],
    }


def test_older_drivers_know_the_reasons_under_another_name():
    device = Device("GPU-a", {"nvmlDeviceGetCurrentClocksThrottleReasons": 8})
    assert gpu.throttle_reasons(FakeNvml(device), device) == ["hardware slowdown"]


def test_a_device_that_refuses_to_answer_leaves_gaps():
    device = Device(
        "GPU-a", {"nvmlDeviceGetName": b"NVIDIA A100", "nvmlDeviceGetEccMode": [(1, 1)]}
    )
    nvml = FakeNvml(device)
    assert set(conditions(nvml, device).values()) == {None}
    found = device_facts(nvml, device)
    assert found["gpu"] == "NVIDIA A100"
    assert found["ecc"] is True
    assert found["driver"] is None


def test_energy_is_shared_among_the_events_of_all_repeats():
    ticks = Ticks()
    device = Device("GPU-a")
    spent = {"joules": 5000.0}

    def call():
        ticks.now += 0.3
        spent["joules"] += 60.0

    counter = SimpleNamespace(joules=lambda: spent["joules"])
    assert joules_per_event(call, counter, 4, seconds=2.0, now=ticks) == pytest.approx(15.0)
    assert 2.0 <= ticks.now - 100 < 4.0
    device.answers["nvmlDeviceGetTotalEnergyConsumption"] = 1500
    assert NvmlEnergy(FakeNvml(device), device).joules() == 1.5


class Updated:
    """A device of 200 W whose counter changes at intervals."""

    def __init__(self, interval, phase):
        self.ticks, self.interval, self.phase = Ticks(), interval, phase

    def call(self, seconds):
        self.ticks.now += seconds

    def joules(self):
        return 200 * self.interval * ((self.ticks.now + self.phase) // self.interval)

    def energy(self, seconds):
        return joules_per_event(lambda: self.call(seconds), self, 1, now=self.ticks)


@given(
    seconds=st.floats(1e-3, 30),
    interval=st.floats(0.02, 0.1),
    phase=st.floats(0, 0.1),
)
def test_energy_does_not_depend_on_where_the_updates_of_the_counter_fall(seconds, interval, phase):
    energy = Updated(interval, phase).energy(seconds)
    largest = min(seconds, interval) / 2  # of a window of 2 s
    assert energy == pytest.approx(200 * seconds, rel=1.01 * largest)


@pytest.mark.parametrize("interval", [0.3, 1.0, 5.0])
def test_energy_of_too_few_updates_is_not_recorded(interval):
    assert Updated(interval, 0.1).energy(0.002) is None


def test_a_call_that_is_longer_than_a_window_is_measured_once():
    device = Updated(0.1, 0.05)
    assert device.energy(16.0) == pytest.approx(3200, rel=0.01)
    assert device.ticks.now == 116


@pytest.mark.parametrize("answer", [NOT_SUPPORTED, 1000])
def test_without_a_moving_counter_there_is_no_energy(answer):
    device = Device("GPU-a", {"nvmlDeviceGetTotalEnergyConsumption": answer})
    ticks = Ticks()

    def call():
        ticks.now += 1

    assert joules_per_event(call, NvmlEnergy(FakeNvml(device), device), 1, now=ticks) is None


def test_rapl_adds_packages_and_survives_the_wrap_of_a_counter(tmp_path):
    for number, energy in ((0, 900), (1, 10)):
        package = tmp_path / f"intel-rapl:{number}"
        package.mkdir()
        (package / "energy_uj").write_text(str(energy))
        (package / "max_energy_range_uj").write_text("1000")
    core = tmp_path / "intel-rapl:0:0"  # part of package 0: counting it would count twice
    core.mkdir()
    (core / "energy_uj").write_text("5")
    counter = RaplEnergy(tmp_path)
    assert counter.joules() == 0
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("100")
    (tmp_path / "intel-rapl:1" / "energy_uj").write_text("60")
    assert counter.joules() == pytest.approx(250e-6)


def test_without_rapl_there_is_no_energy(tmp_path):
    assert RaplEnergy(tmp_path).joules() is None


def test_stolen_time_is_counted_from_the_start(tmp_path):
    stat, clock = tmp_path / "stat", iter([100.0, 110.0])
    stat.write_text("cpu  9 9 9 9 9 9 9 500 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n")
    stolen = machine.StolenTime(stat, lambda: next(clock))
    ticks = 500 + 2 * os.sysconf("SC_CLK_TCK")
    stat.write_text(f"cpu  99 99 99 99 99 99 99 {ticks} 0 0\n")
    assert stolen.share() == pytest.approx(0.2 / os.cpu_count())


def test_stolen_time_is_unknown_without_a_counter(tmp_path):
    (tmp_path / "old").write_text("cpu  9 9 9 9\n")
    assert machine.StolenTime(tmp_path / "old").share() is None
    assert machine.StolenTime(tmp_path / "none").share() is None


def test_this_machine_is_described():
    found = machine.facts()
    assert found["cores"] == os.cpu_count()
    assert found["memory_bytes"] > machine.available_bytes() > 0
    assert found["processor"]
    assert "python" in machine.versions()


def test_the_commit_is_known_and_dirty_when_a_file_changed(tmp_path):
    import subprocess

    def git(*words):
        identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *words], check=True)

    assert machine.commit(tmp_path) == ("", True)
    git("init", "-q")
    (tmp_path / "file").write_text("1")
    git("add", "file")
    git("commit", "-q", "-m", "one")
    commit, dirty = machine.commit(tmp_path)
    assert len(commit) == 40
    assert not dirty
    (tmp_path / "file").write_text("2")
    assert machine.commit(tmp_path) == (commit, True)
    inner = tmp_path / "inner"
    inner.mkdir()
    assert machine.commit(inner) == ("", True)  # somebody else's repository


def test_the_name_of_the_processor_is_read_in_every_format(tmp_path):
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Example 9000\n")
    assert machine.processor_name(tmp_path / "cpuinfo") == "Example 9000"
    assert machine.processor_name(tmp_path / "missing")
