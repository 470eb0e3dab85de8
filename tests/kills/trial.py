"""One trial: a command, one of its processes that is ended, and the command again."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.kills.victims import Victim

TOKEN = "SSCN_BENCH_KILL_TRIAL"
"""Environment variable by which all processes of a trial are found."""

SIGNALS = ("KILL", "TERM", "INT", "STOP")
END_SECONDS = 600.0
"""Longest time for a disturbed command to end by itself."""

GONE_SECONDS = 10.0
"""Longest time for the processes of a command to end after it."""


@dataclass
class Undisturbed:
    """The result of a command that nothing disturbs."""

    seconds: float
    result: Any
    files: list[str]
    temporary: list[str]


@dataclass
class Trial:
    """One trial.

    Attributes
    ----------
    seed : int
        Determines the process, the signal and the moment.
    role, number : str
        The kind of process, and the name of the signal.
    hit : bool
        Whether there was such a process before the command ended.
    problems : list of str
        What differs from an undisturbed command.
    """

    seed: int
    role: str
    number: str
    hit: bool = False
    problems: list[str] = field(default_factory=list)


class Scene:
    """A folder with the files, the temporary folder and the run-time folder of one command."""

    def __init__(self, victim: Victim) -> None:
        self.victim = victim
        self.root = Path(tempfile.mkdtemp(prefix="sscn-bench-kill-"))
        self.folder, self.temporary, runtime = (
            self.root / name for name in ("work", "temporary", "runtime")
        )
        for path in (self.folder, self.temporary, runtime):
            path.mkdir(mode=0o700)
        self.log = self.root / "log"
        self.environment = os.environ | {
            TOKEN: str(self.root),
            "TMPDIR": str(self.temporary),
            "XDG_RUNTIME_DIR": str(runtime),
            "OMP_NUM_THREADS": "1",
            "MPLCONFIGDIR": str(self.root),
            "TORCHINDUCTOR_CACHE_DIR": str(self.root / "torch"),
        }
        victim.prepare(self.folder)

    def start(self, *, again: bool) -> subprocess.Popen[bytes]:
        """Start the command."""
        with self.log.open("wb") as log:
            return subprocess.Popen(
                self.victim.command(self.folder, again=again),
                cwd=Path(__file__).parents[2],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def processes(self) -> dict[int, str]:
        """Return the command lines of all processes of this trial that are alive."""
        mark = f"{TOKEN}={self.root}".encode()
        found = {}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdecimal():
                continue
            try:
                if mark not in (entry / "environ").read_bytes().split(b"\0"):
                    continue
                words = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:  # it has ended
                continue
            if words:  # those that have ended and were not collected have none
                found[int(entry.name)] = words
        return found

    def of_role(self, role: str, parent: int) -> list[int]:
        """Return the processes of a role."""
        found = self.processes()
        if role == "parent":
            return [parent] if parent in found else []
        reference = {pid for pid, words in found.items() if "harness.run.references" in words}
        if role == "reference":
            return sorted(reference)
        return sorted(set(found) - reference - {parent})

    def files(self) -> list[str]:
        """Return the names of the files that the command has written."""
        return sorted(
            str(path.relative_to(self.folder)) for path in self.folder.rglob("*") if path.is_file()
        )

    def left(self) -> list[str]:
        """Return what lies in the temporary folder."""
        return sorted(path.name for path in self.temporary.iterdir())

    def said(self) -> str:
        """Return the end of the output of the last command."""
        return self.log.read_text(errors="replace")[-3000:]

    def close(self) -> None:
        """End what is left, and remove the folder."""
        for pid in self.processes():
            send(pid, signal.SIGKILL)
        shutil.rmtree(self.root, ignore_errors=True)


def undisturbed(victim: Victim) -> Undisturbed:
    """Run a command without a disturbance."""
    scene = Scene(victim)
    try:
        start = time.monotonic()
        code = scene.start(again=False).wait(END_SECONDS)
        if code:
            raise RuntimeError(f"{victim.name} ends with {code} undisturbed: {scene.said()}")
        seconds = time.monotonic() - start
        return Undisturbed(seconds, victim.result(scene.folder), scene.files(), scene.left())
    finally:
        scene.close()


def disturb(victim: Victim, seed: int, expected: Undisturbed) -> Trial:
    """Run a command, end one of its processes, repeat the command, and compare what it leaves."""
    rng = random.Random(seed)
    trial = Trial(seed, rng.choice(victim.roles), rng.choice(SIGNALS))
    delay, pause = rng.uniform(0, expected.seconds), rng.uniform(0.2, 1.0)
    scene = Scene(victim)
    try:
        process = scene.start(again=False)
        _strike(scene, process, trial, delay, pause, rng)
        _expect_end(scene, process, trial)
        for _ in range(3):
            process = scene.start(again=True)
            if _expect_end(scene, process, trial) == 0:
                break
        else:
            trial.problems.append(f"the command does not end with 0 again: {scene.said()}")
        _compare(scene, trial, expected)
    finally:
        scene.close()
    return trial


def _strike(
    scene: Scene,
    process: subprocess.Popen[bytes],
    trial: Trial,
    delay: float,
    pause: float,
    rng: random.Random,
) -> None:
    """Send the signal of a trial to a process of its role, as soon after the delay as it exists."""
    time.sleep(delay)
    while process.poll() is None:
        pids = scene.of_role(trial.role, process.pid)
        if pids:
            pid = rng.choice(pids)
            trial.hit = send(pid, signal.Signals[f"SIG{trial.number}"])
            if trial.number == "STOP":
                time.sleep(pause)
                send(pid, signal.SIGKILL)
            return
        time.sleep(0.01)


def send(pid: int, number: signal.Signals) -> bool:
    """Send a signal; return whether the process was there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _expect_end(scene: Scene, process: subprocess.Popen[bytes], trial: Trial) -> int | None:
    """Wait for the end of a command, and of all its processes after it."""
    try:
        code: int | None = process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        trial.problems.append(f"the command does not end: {scene.said()}")
        process.kill()
        code = None
    deadline = time.monotonic() + GONE_SECONDS
    while (left := scene.processes()) and time.monotonic() < deadline:
        time.sleep(0.05)
    if left:
        trial.problems.append(f"left running: {list(left.values())}")
        for pid in left:
            send(pid, signal.SIGKILL)
    if "Traceback" in scene.said():
        trial.problems.append(f"a traceback: {scene.said()}")
    return code


def _compare(scene: Scene, trial: Trial, expected: Undisturbed) -> None:
    """Compare what lies in the folders with what an undisturbed command leaves."""
    try:
        found = scene.victim.result(scene.folder)
    except Exception as error:
        trial.problems.append(f"no result: {type(error).__name__}: {error}")
        return
    if found != expected.result:
        trial.problems.append(f"the result differs: {found} instead of {expected.result}")
    if scene.files() != expected.files:
        apart = sorted(set(scene.files()) ^ set(expected.files))
        trial.problems.append(f"other files: {apart}")
    if scene.left() != expected.temporary:
        trial.problems.append(f"left in the temporary folder: {scene.left()}")
