"""Registry of engines: built-in ones and those of entry points, probed in child processes."""

from __future__ import annotations

import functools
import importlib
import importlib.metadata
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from backends import environments
from backends.capabilities import Capabilities, Unsupported

if TYPE_CHECKING:
    from backends.contract import Backend

GROUP = "sscn_bench.backends"

BUILT_IN = {
    "sscn": "backends.sscn.adapter",
    "dense": "backends.dense",
    "dense-study": "backends.dense_study",
    "spconv": "backends.spconv",
    "minkowski": "backends.minkowski",
    "ocnn": "backends.ocnn",
    "sparseconvnet": "backends.sparseconvnet",
    "torchsparse": "backends.torchsparse",
    "spconv-triton": "backends.spconv_triton",
    "warpconvnet": "backends.warpconvnet",
    "fvdb": "backends.fvdb",
    "torch-lattice": "backends.torch_lattice",
    "flex-gemm": "backends.flex_gemm",
    "spira": "backends.spira",
}

PROGRAMS = {"spine": "backends.spine_network"}
"""Programs of others that bring a network and run it on an engine; suites name them explicitly."""

PROBE_TIMEOUT = 60.0  # seconds; importing an engine with torch takes one to five


class UnknownBackend(ValueError):
    """No engine has this name."""


@dataclass(frozen=True)
class Availability:
    """Result of a probe.

    Attributes
    ----------
    name : str
        The engine.
    capabilities : Capabilities or None
        Its capabilities on this machine; None if it is not available.
    reason : str
        Why it is not available, in one line; empty if it is available.
    """

    name: str
    capabilities: Capabilities | None
    reason: str = ""


@functools.cache
def _modules() -> dict[str, str]:
    entry_points = importlib.metadata.entry_points(group=GROUP)
    return {point.name: point.value for point in entry_points} | BUILT_IN


def names() -> list[str]:
    """Return the names of all engines: built-in ones, those of entry points, installed versions."""
    return [*BUILT_IN, *sorted(set(_modules()) - set(BUILT_IN)), *environments.installed()]


def module_name(name: str) -> str:
    """Return the module that adapts an engine.

    Raises
    ------
    UnknownBackend
        If no engine has this name.
    """
    known = environments.installed() if "@" in name else _modules() | PROGRAMS
    if name not in known:
        choices = ", ".join(names())
        raise UnknownBackend(f"there is no engine called {name!r}; choose one of {choices}")
    return (_modules() | PROGRAMS)[environments.base(name)]


def variable(name: str) -> str:
    """Return the variable of the environment that sets the interpreter of an engine."""
    return "SSCN_BENCH_PYTHON_" + re.sub(r"[^A-Z0-9]", "_", name.upper())


def interpreter(name: str) -> str:
    """Return the Python interpreter of an engine.

    The variable ``SSCN_BENCH_PYTHON_<NAME>`` (upper case, ``_`` for other characters) holds its
    path. Otherwise it is that of the environment which ``engines install`` made, or this one.
    """
    chosen = os.environ.get(variable(name))
    found = None if chosen else environments.find(name)
    return chosen or (str(found.python) if found else sys.executable)


def load(
    name: str, *, dim: int, device: str, precision: str, options: dict[str, str] | None = None
) -> Backend:
    """Create the backend of an engine.

    Raises
    ------
    UnknownBackend
        If no engine has this name.
    Unsupported
        If the engine lacks the dimension, device, precision or option.
    """
    module = importlib.import_module(module_name(name))
    capabilities = module.probe()
    options = dict(options or {})
    _check_allowed(name, "dimension", str(dim), tuple(map(str, capabilities.dims)))
    _check_allowed(name, "device", device, capabilities.devices)
    _check_allowed(name, "precision", precision, tuple(capabilities.precisions.get(device, ())))
    for option, value in options.items():
        _check_allowed(name, "option", option, tuple(capabilities.options))
        _check_allowed(name, f"value of {option}", value, tuple(capabilities.options[option]))
    defaults = {option: values[0] for option, values in capabilities.options.items()}
    backend: Backend = module.Backend(dim, device, precision, defaults | options)
    return backend


def _check_allowed(name: str, what: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        offer = f"it has {', '.join(allowed)}" if allowed else "it has none"
        raise Unsupported(f"{name} does not offer the {what} {value} here: {offer}")


def probe(name: str, timeout: float = PROBE_TIMEOUT, python: str = "") -> Availability:
    """Find out what an engine can do, in a child process, because its import may crash or hang.

    Parameters
    ----------
    name : str
        The engine.
    timeout : float
        Seconds after which the child process is killed, together with all processes it started.
    python : str
        The interpreter; by default that of the engine.

    Raises
    ------
    UnknownBackend
        If no engine has this name.
    """
    module = module_name(name)
    home = str(environments.code(Path(__file__).resolve().parent.parent))
    path = os.pathsep.join([home, *filter(None, [os.environ.get("PYTHONPATH")])])
    with tempfile.TemporaryFile() as answer:  # without a name: nothing remains of a killed process
        handle = answer.fileno()
        command = [python or interpreter(name), "-P", "-m", "backends.probe", module, str(handle)]
        try:
            child = subprocess.Popen(
                command,
                env=os.environ | {"PYTHONPATH": path},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(handle,),
                start_new_session=True,
            )
        except OSError as error:
            return Availability(name, None, f"its interpreter does not start: {error}")
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            return Availability(name, None, f"the probe gave no answer in {timeout:g} s")
        answer.seek(0)
        text = answer.read().decode(errors="replace")
        if not text:
            return Availability(name, None, f"the probe ended without an answer ({_exit(code)})")
    try:
        found = json.loads(text)
        if "reason" in found:
            return Availability(name, None, _one_line(str(found["reason"])))
        return Availability(name, Capabilities.from_json(found))
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        reason = f"the answer of its probe is malformed: {type(error).__name__}: {error}"
        return Availability(name, None, _one_line(reason))


def _one_line(text: str) -> str:
    """Return a text with every unprintable character replaced by a space.

    Escape sequences of an engine must not reach the terminal. ``harness.terminal.plain`` keeps
    newlines, which a reason must not have, and cannot be imported here.
    """
    return "".join(each if each.isprintable() else " " for each in text)


def _exit(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def probe_all(
    engines: Iterable[str] | None = None,
    timeout: float = PROBE_TIMEOUT,
    workers: int | None = None,
    python: str = "",
) -> Iterator[Availability]:
    """Probe engines in parallel and yield each result as soon as it is available.

    Parameters
    ----------
    engines : iterable of str, optional
        The engines; all by default.
    timeout : float
        Seconds per engine.
    workers : int, optional
        Child processes at a time; by default one per processor.
    python : str
        The interpreter; by default that of each engine.
    """
    with ThreadPoolExecutor(workers or os.cpu_count()) as pool:
        jobs = [pool.submit(probe, name, timeout, python) for name in engines or names()]
        for job in as_completed(jobs):
            yield job.result()
