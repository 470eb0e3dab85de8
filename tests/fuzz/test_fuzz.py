"""Some mutations of every format; ``python -m tests.fuzz --seconds 3600`` tries more."""

import pytest

from tests.fuzz.formats import FORMATS
from tests.fuzz.runner import try_format


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_mutated_files_are_refused_in_one_sentence_or_read(form):
    outcome = try_format(form.name, 0, form.trials)
    assert outcome.failures == []
    assert sum(outcome.counts.values()) == form.trials
    assert bool(outcome.counts["refused"]) != form.always_read
