"""Some mutations of every format; ``python -m tests.fuzz --seconds 3600`` tries more."""

import pytest

from tests.fuzz.formats import FORMATS
from tests.fuzz.runner import try_format

COUNT = 40

NEVER_REFUSED = ("asv-database", "records")
"""Formats of which damaged parts are left out with a warning."""


@pytest.mark.parametrize("name", [form.name for form in FORMATS])
def test_mutated_files_are_refused_in_one_sentence_or_read(name):
    outcome = try_format(name, 0, COUNT)
    assert outcome.failures == []
    assert sum(outcome.counts.values()) == COUNT
    assert bool(outcome.counts["refused"]) == (name not in NEVER_REFUSED)
