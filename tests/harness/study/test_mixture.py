"""Training events are simulated once, enriched in rare classes, despite interruptions."""

import numpy as np
import pytest

from harness.events import Event, Label, simulate
from harness.events.statistics import summarise
from harness.study import mixture
from harness.study.mixture import EventFolder
from harness.study.views import View


def stand_in(recipe, count, *, processes=None):
    """A simulation without Geant4: event i has 450 + 10 i voxels."""
    stand_in.calls.append((recipe, count))
    for i in range(count):
        number = 450 + 10 * i
        voxels = np.stack(np.unravel_index(np.arange(number), (recipe.size,) * 3), 1)
        yield Event(
            voxels.astype(np.int32),
            np.full(number, recipe.seed, np.float32),
            np.zeros(number, np.uint8),
            recipe.size,
            "stand-in",
        )


@pytest.fixture(autouse=True)
def _simulation(monkeypatch):
    stand_in.calls = []
    monkeypatch.setattr(mixture, "simulate", stand_in)
    monkeypatch.setattr(mixture, "FILE_EVENTS", 8)


def quiet(done, total):
    assert done <= total


def test_presets_alternate_and_every_file_has_a_seed_of_its_own(tmp_path):
    EventFolder(tmp_path, 32, 36, 7).simulate_missing(quiet)
    recipes = [recipe for recipe, _ in stand_in.calls]
    wanted = ["michel", "standard", "michel", "delta", "michel"]
    assert [recipe.preset for recipe in recipes] == wanted
    assert [recipe.seed for recipe in recipes] == [7, 8, 9, 10, 11]
    assert [count for _, count in stand_in.calls] == [8, 8, 8, 8, 4]


def test_events_that_are_nearly_empty_are_left_out(tmp_path):
    EventFolder(tmp_path, 32, 8, 7).simulate_missing(quiet)
    events = View(str(tmp_path), 32).open()
    assert [len(event) for event in events] == [500, 510, 520]


def test_existing_files_are_not_simulated_again(tmp_path):
    EventFolder(tmp_path, 32, 8, 7).simulate_missing(quiet)
    stand_in.calls.clear()
    EventFolder(tmp_path, 32, 16, 7).simulate_missing(quiet)
    assert [recipe.seed for recipe, _ in stand_in.calls] == [8]


def test_an_interrupted_file_is_simulated_again_and_the_others_are_kept(tmp_path):
    seen = []

    def interrupt(done, total):
        seen.append(done)
        if done == 12:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        EventFolder(tmp_path, 32, 16, 7).simulate_missing(interrupt)
    assert seen[-1] == 12
    assert len(View(str(tmp_path), 32).open()) == 3
    EventFolder(tmp_path, 32, 16, 7).simulate_missing(quiet)
    assert len(View(str(tmp_path), 32).open()) == 6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("preset", "label", "least"), [("michel", Label.MICHEL, 2.0), ("delta", Label.DELTA, 1.5)]
)
def test_the_presets_hold_more_of_the_rare_classes(preset, label, least):
    pytest.importorskip("calzone")
    pytest.importorskip("xraydb")

    def share(name):
        events = simulate.simulate(simulate.Recipe(192, 5, name), 96)
        return summarise(events).classes[label]

    assert share(preset) > least * share("standard")
