"""The child process of a probe: import one engine's adapter and write down what it can do."""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
from pathlib import Path


def answer(module: str) -> dict[str, object]:
    """Return the capabilities of an engine as JSON values, or the reason of its absence."""
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
    """Write the answer in one step, so that a dying engine leaves a whole answer or none."""
    module, path = sys.argv[1:]
    if sys.platform == "linux":  # an import that hangs must not outlive the parent
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    written = Path(path).with_suffix(".partial")
    written.write_text(json.dumps(answer(module), default=repr))
    written.rename(path)
    os._exit(0)  # an engine's exit handlers may hang


if __name__ == "__main__":
    main()
