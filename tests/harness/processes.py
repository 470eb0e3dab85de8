"""Whether processes that a test has started, or that those have started, have ended."""

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
