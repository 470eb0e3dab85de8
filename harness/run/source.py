"""The source of the engines that a worker measures: a commit, and the environment it runs in."""

from __future__ import annotations

import importlib.util
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from harness.instruments import machine


@dataclass(frozen=True)
class EngineSource:
    """A folder with the package ``backends``. The harness is always the one that is running.

    Attributes
    ----------
    root : Path
        The folder that holds the package ``backends``.
    commit : str
        Its commit; empty outside a repository.
    dirty : bool
        Whether tracked files differ from that commit.
    python : str
        The interpreter of every engine; empty for that of each engine.
    environment : str
        The interpreter as the user names it; empty if ``python`` is.
    """

    root: Path
    commit: str
    dirty: bool
    python: str = ""
    environment: str = ""

    @property
    def label(self) -> str:
        """The source beside this working copy, in words."""
        return f"in {self.environment}" if self.environment else f"at {self.commit[:12]}"

    @classmethod
    def here(cls) -> EngineSource:
        """Return the source beside the running harness."""
        return cls(machine.ROOT, *machine.commit())

    @classmethod
    def imported(cls) -> EngineSource:
        """Return the source of the ``backends`` that this process imports.

        In an environment of asv that is the commit that asv has installed there and names in
        ``ASV_COMMIT``.
        """
        found = importlib.util.find_spec("backends")
        assert found is not None and found.origin is not None
        root = Path(found.origin).resolve().parent.parent
        if root == machine.ROOT:
            return cls.here()
        return cls(root, os.environ.get("ASV_COMMIT", ""), dirty=False)

    def command(self, python: str, module: str = "harness.run.worker") -> list[str]:
        """Return the start of the command line that runs a module with these engines.

        Notes
        -----
        The finder of an editable installation takes precedence over ``sys.path``. It is removed,
        so that ``backends`` is imported from ``root``.
        """
        roots = [self.root, machine.ROOT]
        if python != sys.executable:  # an environment has a torch of its own
            from backends.environments import code

            roots = [code(root) for root in roots]
        start = (
            "import runpy, sys; "
            "sys.meta_path[:] = [f for f in sys.meta_path if 'Redirecting' not in type(f).__name__]"
            f"; sys.path[:0] = {list(map(str, roots))!r}; "
            f"runpy.run_module({module!r}, run_name='__main__', alter_sys=True)"
        )
        return [python, "-P", "-c", start]
