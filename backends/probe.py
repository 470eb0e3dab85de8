"""Child process of a probe: imports one engine's adapter and writes its capabilities to a file."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys


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
    """Write the answer in one step, so that it is complete or missing if the engine crashes.

    The arguments are the engine's module and the descriptor of the file for the answer.
    """
    module, handle = sys.argv[1:]
    # An import that hangs must not outlive the parent. ``harness.child_process`` has the same call,
    # but this package does not import the harness.
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    os.write(int(handle), json.dumps(answer(module), default=repr).encode())
    os._exit(0)  # an engine's exit handlers may hang


if __name__ == "__main__":
    main()
