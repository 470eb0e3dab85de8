"""A stand-in for pynvml that replays the answers of real devices, refusals included."""

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any


class NVMLError(Exception):
    pass


NOT_SUPPORTED = NVMLError("Not Supported")
NOT_FOUND = NVMLError("Not Found")


@dataclass
class Device:
    """One device; an answer that is an exception is raised, one that is a list is played back."""

    uuid: str
    answers: dict[str, Any] = field(default_factory=dict)


class FakeNvml:
    """Answers for some devices; what is not scripted is not supported."""

    NVMLError = NVMLError
    nvmlMemory_v2 = 2

    def __init__(self, *devices: Device) -> None:
        self._devices = devices

    def nvmlDeviceGetCount(self):
        return len(self._devices)

    def nvmlDeviceGetHandleByIndex(self, index):
        if not 0 <= index < len(self._devices):
            raise NOT_FOUND
        return self._devices[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        for device in self._devices:
            if device.uuid == uuid:
                return device
        raise NOT_FOUND

    def nvmlDeviceGetUUID(self, handle):
        return handle.uuid

    def nvmlDeviceGetMemoryInfo(self, handle, version=1):
        return self._play(handle, f"memory_v{version}")

    def __getattr__(self, name):
        if not name.startswith("nvml"):
            raise AttributeError(name)
        return lambda handle=None, *_: self._play(handle or self._devices[0], name)

    def _play(self, handle, name):
        answer = handle.answers.get(name, NOT_SUPPORTED)
        if isinstance(answer, list) and name != "nvmlDeviceGetComputeRunningProcesses_v3":
            answer = answer.pop(0) if len(answer) > 1 else answer[0]
        if isinstance(answer, NVMLError):
            raise answer
        return answer


def used(count, reserved=0):
    """A memory answer."""
    return SimpleNamespace(used=count, reserved=reserved, total=80 << 30)


def process(pid, count):
    """An entry of the list of processes."""
    return SimpleNamespace(pid=pid, usedGpuMemory=count)
