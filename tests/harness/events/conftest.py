import os
from pathlib import Path

import numpy as np
import pytest

from harness.events.event import Event, checked_event, voxels_of_keys


@pytest.fixture
def fixtures() -> Path:
    """The folder of real files that SSCN_BENCH_EVENT_FILES names; the project carries none."""
    folder = os.environ.get("SSCN_BENCH_EVENT_FILES", "")
    if not folder:
        pytest.skip("SSCN_BENCH_EVENT_FILES names no folder of real files")
    return Path(folder)


def make_event(count: int, size: int = 32, seed: int = 0, dim: int = 3) -> Event:
    rng = np.random.default_rng(seed)
    keys = rng.choice(size**dim, count, replace=False)
    return checked_event(
        voxels_of_keys(keys, size, dim),
        rng.uniform(0.01, 5, count).astype(np.float32),
        rng.integers(0, 5, count),
        size,
        f"made {seed}",
    )


@pytest.fixture
def some_events() -> list[Event]:
    """Events of one size, the third one empty."""
    return [make_event(count, seed=count) for count in (50, 20, 0, 70, 35)]
