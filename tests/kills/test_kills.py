"""Some trials; ``python -m tests.kills --trials 100`` makes more."""

import pytest

from tests.kills.trial import disturb, undisturbed
from tests.kills.victims import VICTIMS

TRIALS = 2


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("victim", VICTIMS, ids=lambda victim: victim.name)
def test_a_disturbed_command_gives_the_same_when_it_is_repeated(victim):
    pytest.importorskip("calzone")
    expected = undisturbed(victim)
    for seed in range(TRIALS):
        assert disturb(victim, seed, expected).problems == []
