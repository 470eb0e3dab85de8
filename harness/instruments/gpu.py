"""The GPU that torch uses, found among those of NVML, and queries of it that may fail."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

THROTTLE = {4: "power cap", 8: "hardware slowdown", 32: "software thermal", 64: "hardware thermal"}
"""Bits of nvmlDeviceGetCurrentClocksEventReasons that mean a lower clock than requested."""


class NoGpu(Exception):
    """NVML is missing or does not list the device; the message says which."""


def open_nvml() -> Any:
    """Return the initialised NVML module.

    Raises
    ------
    NoGpu
        If the package or the driver is missing.
    """
    try:
        import pynvml
    except ImportError:
        raise NoGpu("nvidia-ml-py is not installed") from None
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError as error:
        raise NoGpu(f"NVML does not start: {error}") from None
    return pynvml


def find_device(nvml: Any, environment: Mapping[str, str], uuid: str | None, index: int = 0) -> Any:
    """Return NVML's handle of torch's current device.

    Parameters
    ----------
    nvml : module
        ``pynvml`` or a stand-in.
    environment : mapping
        ``CUDA_VISIBLE_DEVICES`` is read from it.
    uuid : str or None
        The device's UUID as torch reports it, with or without its ``GPU-`` or ``MIG-`` prefix.
    index : int
        Torch's index of the device among the visible ones.

    Raises
    ------
    NoGpu
        If no visible device matches.

    Notes
    -----
    NVML counts all devices of the machine, CUDA only the visible ones; the UUID identifies a
    device in both. ``CUDA_VISIBLE_DEVICES`` holds indices, UUIDs, abbreviated UUIDs or a MIG
    instance.
    """
    visible = [part.strip() for part in environment.get("CUDA_VISIBLE_DEVICES", "").split(",")]
    visible = [part for part in visible if part]
    candidates: list[tuple[str, Any]] = []
    if index < len(visible) and visible[index].startswith("MIG-"):
        # Torch reports the UUID of a MIG instance's parent: try the instance first.
        candidates.append(("uuid", visible[index]))
    if uuid:
        bare = uuid.startswith(("GPU-", "MIG-"))
        candidates += [("uuid", prefix + uuid) for prefix in ([""] if bare else ["GPU-", "MIG-"])]
    elif index < len(visible):
        name = visible[index]
        candidates.append(("index", int(name)) if name.isdecimal() else ("uuid", name))
    elif not visible:
        candidates.append(("index", index))
    for kind, name in candidates:
        if kind == "uuid":
            handle = _by_uuid(nvml, name)
        else:
            handle = query(nvml, "nvmlDeviceGetHandleByIndex", name)
        if handle is not None:
            return handle
    raise NoGpu("NVML does not know the device that torch uses")


def _by_uuid(nvml: Any, name: str) -> Any:
    """Find a device or a MIG instance by its UUID, which may be abbreviated."""
    handle = query(nvml, "nvmlDeviceGetHandleByUUID", name)
    if handle is not None:
        return handle
    for number in range(query(nvml, "nvmlDeviceGetCount") or 0):
        handle = query(nvml, "nvmlDeviceGetHandleByIndex", number)
        uuid = None if handle is None else query(nvml, "nvmlDeviceGetUUID", handle)
        if uuid is not None and _text(uuid).startswith(name):
            return handle
    return None


def query(nvml: Any, function_name: str, *arguments: Any, **options: Any) -> Any:
    """Call a function of NVML; return None if the device, driver or container lacks it."""
    function = getattr(nvml, function_name, None)
    if function is None:
        return None
    try:
        return function(*arguments, **options)
    except nvml.NVMLError:
        return None


def throttle_reasons(nvml: Any, handle: Any) -> list[str] | None:
    """Return the current reasons for a reduced clock; None where NVML does not report them."""
    bits = query(nvml, "nvmlDeviceGetCurrentClocksEventReasons", handle)
    if bits is None:
        bits = query(nvml, "nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    if bits is None:
        return None
    return [name for bit, name in THROTTLE.items() if bits & bit]


def conditions(nvml: Any, handle: Any) -> dict[str, Any]:
    """Return the current conditions that a GPU's speed depends on.

    Returns
    -------
    dict
        ``sm_clock_mhz``, ``temperature_c``, ``power_limit_w`` and ``throttle``; None where NVML
        does not report it.
    """
    limit = query(nvml, "nvmlDeviceGetEnforcedPowerLimit", handle)
    return {
        "sm_clock_mhz": query(nvml, "nvmlDeviceGetClockInfo", handle, 1),  # NVML_CLOCK_SM
        "temperature_c": query(nvml, "nvmlDeviceGetTemperature", handle, 0),  # NVML_TEMPERATURE_GPU
        "power_limit_w": None if limit is None else limit / 1000,
        "throttle": throttle_reasons(nvml, handle),
    }


def device_facts(nvml: Any, handle: Any) -> dict[str, Any]:
    """Return the constant properties of a device."""
    mode = query(nvml, "nvmlDeviceGetMigMode", handle)
    name, uuid = query(nvml, "nvmlDeviceGetName", handle), query(nvml, "nvmlDeviceGetUUID", handle)
    ecc = query(nvml, "nvmlDeviceGetEccMode", handle)
    driver = query(nvml, "nvmlSystemGetDriverVersion")
    return {
        "gpu": None if name is None else _text(name),
        "gpu_uuid": None if uuid is None else _text(uuid),
        "driver": None if driver is None else _text(driver),
        "ecc": None if ecc is None else bool(ecc[0]),
        "mig": None if mode is None else bool(mode[0]),
    }


def _text(value: Any) -> str:
    """Return text; older NVML bindings return bytes."""
    return value.decode() if isinstance(value, bytes) else str(value)
