"""Sparse layers of SPINE on any engine: importing this package registers them as a backend.

SPINE imports ``spine.model.sparse.backends.<name>`` for the name that the environment variable
``SPINE_SPARSE_BACKEND`` holds. A finder of modules answers for the name of this backend, so that no
file is added to SPINE. The engine is that of ``SSCN_BENCH_SPINE_ENGINE`` (``sscn`` by default).
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

NAME = "sscn_bench"
"""The value of ``SPINE_SPARSE_BACKEND`` that selects this backend."""

_MODULE = f"spine.model.sparse.backends.{NAME}"


class _Finder:
    """Finds the adapter under the name by which SPINE imports it."""

    @staticmethod
    def find_spec(
        fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the specification of the adapter; None for every other module."""
        if fullname != _MODULE:
            return None
        adapter = Path(__file__).with_name("adapter.py")
        return importlib.util.spec_from_file_location(fullname, adapter)


if _Finder not in sys.meta_path:
    sys.meta_path.append(_Finder)
