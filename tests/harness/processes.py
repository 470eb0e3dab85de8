"""Processes that a test has started, or that those have started: interrupted, ended."""

import signal
import subprocess
import time
from pathlib import Path


def gone(pid):
    """Return whether a process has ended, at the latest after some seconds."""
    for _ in range(200):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            return True
        if state == "Z":  # killed and not yet waited for
            return True
        time.sleep(0.05)
    return False


def interrupt_the_next_start(monkeypatch):
    """Interrupt this process while it starts another one; return the list of those started."""
    started, real = [], subprocess.Popen

    def interrupted(*words, **named):
        started.append(real(*words, **named))
        signal.raise_signal(signal.SIGINT)
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    return started
