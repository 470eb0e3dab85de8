"""Child process of a probe: imports one engine's adapter and writes its capabilities to a file."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from pathlib import Path


def answer(module: str) -> dict[str, object]:
    """Return the capabilities of an engine as JSON values, or the reason why it has none here."""
    try:
        found = importlib.import_module(module).probe()
        result: dict[str, object] = found.to_json()
        return result
    except BaseException as error:  # an engine's import may raise anything, SystemExit included
        first = (str(error).strip().splitlines() or [""])[0]
        if isinstance(error, ModuleNotFoundError):
            return {"reason": f"not installed: {first}"}
        return {"reason": f"{type(error).__name__}: {first}".rstrip(": ")}


def main() -> None:
    """Write the answer to a file that is complete or missing, even if the engine crashes."""
    module, path = sys.argv[1:]
    # An import that hangs must not outlive the parent. ``harness.child_process`` has the same call,
    # but this package does not import the harness.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    written = Path(path).with_suffix(".partial")
    written.write_text(json.dumps(answer(module), default=repr))
    written.rename(path)
    os._exit(0)  # an engine's exit handlers may hang


if __name__ == "__main__":
    main()
