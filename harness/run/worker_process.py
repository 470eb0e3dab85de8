"""Worker processes on this machine: start, request an answer, and find out how one died."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any, Protocol

from harness.child_process import end_session, start_session, was_stopped
from harness.errors import MachineFailure
from harness.results.record import Measurement
from harness.run.failures import Failed
from harness.run.task import Task
from harness.temporary import temporary_failure

GRACE = 3.0
"""Longest time in which a worker that has closed its channel ends, in seconds."""

_ERROR_BYTES = 4000
"""Length of the end of a dead worker's standard error that is searched for the cause."""

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

_TRITON = "TRITON_CACHE_DIR"
"""Where Triton keeps what it has compiled, and ``spconv-triton`` what it has tuned."""

_TUNERS = (
    *("WARPCONVNET_BENCHMARK_CACHE_DIR", "WARPCONVNET_BENCHMARK_CACHE_DIR_OVERRIDE"),
    *("FLEX_GEMM_AUTOTUNE_CACHE_PATH", _TRITON),
)
"""Variables of the places where engines keep which of their kernels they found to be fastest."""

_WITHOUT_TUNER = ("sscn",)
"""Engines that choose their Triton kernels by size alone."""

_COMPILERS = ("TORCHINDUCTOR_CACHE_DIR", "CUDA_CACHE_PATH")
"""Where torch.compile and the CUDA driver keep what they have compiled."""


class Worker(Protocol):
    """A process that measures one cell.

    Attributes
    ----------
    partial : dict
        Entries of the record that were sent before the engine ran.
    """

    partial: Measurement

    def request(self, command: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send a command and return its answer; raise ``Failed`` if there is none."""
        ...

    def close(self) -> None:
        """End the process and everything that it started."""
        ...


class LocalWorker:
    """A worker process on this machine.

    Parameters
    ----------
    command : list of str
        Starts the worker; the file descriptors of its two channels are appended.
    threads : int
        Threads for OpenMP and BLAS; 0 for one per processor that this process may use.
    caches : str
        A folder for the caches of this worker's own, in which tuners find no choices of earlier
        processes; empty for the temporary folder.
    first : bool
        Whether the first call is measured: compilers get a cache of this worker's own, too. What
        they compile does not depend on measurements, and other workers use the user's caches.
    engine : str
        Name of the engine. One without a tuner uses the user's cache of Triton, too.

    Raises
    ------
    Failed
        ``unavailable`` if the process does not start.
    MachineFailure
        If the temporary folder cannot be used.
    """

    def __init__(
        self,
        command: list[str],
        threads: int = 0,
        *,
        caches: str = "",
        first: bool = False,
        engine: str = "",
    ) -> None:
        count = str(threads or len(os.sched_getaffinity(0)))
        try:
            self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the worker)
            self._caches = tempfile.TemporaryDirectory(dir=caches or None)
        except OSError as error:
            raise temporary_failure(error) from None
        commands, self._commands = os.pipe()
        self._answers, answers = os.pipe()
        self._oom_kills = _oom_kills()
        self._unread = b""
        self._closed = False
        self.partial: Measurement = {}
        names = [*_TUNERS, *_COMPILERS] if first else [*_TUNERS]
        if engine in _WITHOUT_TUNER and not first:
            names.remove(_TRITON)
        own = {name: str(Path(self._caches.name, name.lower())) for name in names}
        try:
            self._process = start_session(
                [*command, str(commands), str(answers)],
                env=os.environ | dict.fromkeys(_THREAD_VARIABLES, count) | own,
                stdin=subprocess.DEVNULL,
                stdout=self._log,
                stderr=self._log,
                pass_fds=(commands, answers),
            )
        except BaseException as error:
            self._release()
            self._caches.cleanup()
            if not isinstance(error, OSError):
                raise
            raise Failed("unavailable", f"its interpreter does not start: {error}") from None
        finally:
            os.close(commands)
            os.close(answers)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def request(self, command: dict[str, Any], timeout: float) -> dict[str, Any]:
        """Send a command and return its answer.

        Parameters
        ----------
        command : dict
            JSON values.
        timeout : float
            Longest time to wait for the answer, in seconds.

        Raises
        ------
        Failed
            ``timeout`` if there is no answer in time, ``crashed`` if the worker died or sent
            anything but a JSON object, ``out-of-memory`` if it died of that.
        MachineFailure
            If the machine prevents the measurement.
        """
        if self._closed:
            raise Failed("crashed", "the worker has been closed")
        with contextlib.suppress(BrokenPipeError):  # a dead worker is noticed when reading
            os.write(self._commands, json.dumps(command).encode() + b"\n")
        deadline = time.monotonic() + timeout
        answer = self._answer(deadline, timeout)
        while "partial" in answer:
            self.partial = answer["partial"]
            answer = self._answer(deadline, timeout)
        if "machine_failure" in answer:
            self.close()
            raise MachineFailure(str(answer["machine_failure"]))
        return answer

    def _answer(self, deadline: float, timeout: float) -> dict[str, Any]:
        line = self._line(deadline)
        if line is None:
            self.close()
            raise Failed("timeout", f"gave no answer in {timeout:g} s and was killed")
        try:
            answer = json.loads(line)
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            if not line:
                raise self._death()
            self.close()
            raise Failed("crashed", "the worker answered something that is not a JSON object")
        return answer

    def _line(self, deadline: float) -> bytes | None:
        """Read one line; None after the deadline, empty if the worker closed its channel."""
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._answers], [], [], left)[0]:
                return None
            part = os.read(self._answers, 1 << 16)
            if not part:
                return b""
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line

    def _death(self) -> Failed:
        """Find out how the worker died."""
        try:
            code = self._process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.close()
            return Failed("crashed", "the worker closed its channel without an answer")
        self._log.seek(max(self._log.seek(0, os.SEEK_END) - _ERROR_BYTES, 0))
        printed = self._log.read().decode(errors="replace").strip()
        last = printed.splitlines()[-1] if printed else ""
        if code == -signal.SIGKILL and _oom_kills() > self._oom_kills:
            return Failed("out-of-memory", "the kernel killed it because memory ran out")
        if code < 0:
            how = f"died of {signal.Signals(-code).name}"
        else:
            how = f"ended with exit code {code} without an answer"
        memory = "bad_alloc" in printed or "MemoryError" in printed
        return Failed(
            "out-of-memory" if memory else "crashed",
            f"{how}: {last}" if last else how,
            stopped=was_stopped(code) and not memory,
        )

    def close(self) -> None:
        """Kill the process and everything that it started in its session."""
        if self._closed:
            return
        self._release()
        end_session(self._process)
        self._caches.cleanup()

    def _release(self) -> None:
        self._closed = True
        os.close(self._commands)
        os.close(self._answers)
        self._log.close()


def _oom_kills() -> int:
    """Return the number of processes that the kernel has killed for memory since it started."""
    try:
        lines = Path("/proc/vmstat").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("oom_kill ")), 0)


def start_local(task: Task) -> Worker:
    """Start a worker for a task on this machine."""
    command = task.source.command(task.python)
    job = task.job
    cell = job.cell
    return LocalWorker(
        command, job.threads, caches=job.references, first=cell.map == "first", engine=cell.backend
    )
