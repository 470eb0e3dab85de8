"""The folder of downloads and built tables, which are kept between runs."""

import os
from pathlib import Path


def cache_directory() -> Path:
    """Return the cache directory of the project, without creating it.

    ``SSCN_BENCH_CACHE`` names it; otherwise it is ``sscn-bench`` under ``XDG_CACHE_HOME`` or
    ``~/.cache``.
    """
    named = os.environ.get("SSCN_BENCH_CACHE")
    if named:
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "sscn-bench"
