"""Events for property tests."""

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from harness.events import CLASSES, Event
from harness.events.event import checked_event, voxels_of_keys

energies_mev = st.floats(0.001953125, 2.0**14, width=32)


@st.composite
def events(draw, size=None, dim=3, classes=CLASSES, most=40) -> Event:
    """Draw an event, possibly empty."""
    side = size or draw(st.integers(1, 40))
    count = draw(st.integers(0, min(most, side**dim)))
    keys = draw(st.sets(st.integers(0, side**dim - 1), min_size=count, max_size=count))
    voxels = voxels_of_keys(np.array(sorted(keys), np.int64), side, dim)
    energies = draw(hnp.arrays(np.float32, count, elements=energies_mev))
    labels = draw(hnp.arrays(np.uint8, count, elements=st.integers(0, classes - 1)))
    return checked_event(voxels, energies, labels, side, "drawn")


@st.composite
def event_lists(draw, dim=3, classes=CLASSES, size=None) -> list[Event]:
    """Draw some events of one size."""
    side = size or draw(st.integers(1, 40))
    return draw(st.lists(events(side, dim, classes), min_size=1, max_size=4))
