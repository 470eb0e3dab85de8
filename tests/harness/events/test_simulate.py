import hashlib
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from harness import __main__ as cli
from harness.errors import BadInput
from harness.events import CLASSES, Label
from harness.events import simulate as simulation
from harness.events.argon_data import argon_data_folder, seltzer_berger
from harness.events.native import EventWriter
from harness.events.simulate import (
    CHUNK,
    PITCH_CM,
    PRESETS,
    Recipe,
    SimulationError,
    draw_primaries,
    label_tracks,
    simulate,
)
from harness.events.statistics import summarise


@pytest.fixture
def geant4():
    pytest.importorskip("calzone", reason="Geant4 is not installed")
    pytest.importorskip("xraydb")


def test_vertices_follow_the_recipe():
    preset = PRESETS["standard"]
    rng = np.random.default_rng(0)
    chunks = [draw_primaries(preset, 192, rng) for _ in range(60)]
    half = 192 * PITCH_CM / 2
    multiplicities = []
    for chunk in chunks:
        assert np.linalg.norm(chunk["direction"], axis=1) == pytest.approx(np.ones(len(chunk)))
        assert np.abs(chunk["position"]).max() < half
        for event in range(CHUNK):
            here = chunk[chunk["event"] == event]
            assert (here["position"] == here["position"][0]).all()
            multiplicities.append(len(here))
            kinds = [sum(np.isin(here["pid"], c.particles)) for c in preset.categories]
            assert sum(kinds) == len(here)
            assert all(n <= c.most for n, c in zip(kinds, preset.categories, strict=True))
    assert set(multiplicities) == {2, 3, 4, 5}
    assert np.mean(multiplicities) == pytest.approx(3.5, abs=0.15)
    every = np.concatenate(chunks)
    assert set(every["pid"].tolist()) == {11, -11, 13, -13, 22, 211, -211, 2212}
    for category in preset.categories:
        energies = every["energy"][np.isin(every["pid"], category.particles)]
        low, high = category.energy_mev
        assert low <= energies.min() < low + 30
        assert high - 30 < energies.max() <= high
    assert np.abs(every["direction"].mean(axis=0)).max() < 0.05


def classify(*tracks) -> list[Label]:
    """Tracks of one event: number, parent, particle, process."""
    number, parent, pid, creator = (np.array(column) for column in zip(*tracks, strict=True))
    labels = label_tracks(np.zeros(len(tracks), int), number, parent, pid, creator.astype("S16"))
    return [Label(label) for label in labels]


def test_tracks_are_labelled_by_the_rule_of_the_data_set():
    assert classify(
        (1, 0, 2212, "Primary"),
        (2, 0, -211, "Primary"),
        (3, 0, 22, "Primary"),
        (4, 0, 11, "Primary"),
        (5, 1, 11, "Ionisation"),
        (6, 5, 11, "Ionisation"),
        (7, 2, 22, "pi-Inelastic"),
        (8, 7, 11, "Compton"),
        (9, 2, 2212, "pi-Inelastic"),
        (10, 2, 1000180400, "Elastic"),
        (11, 3, -11, "Conversion"),
    ) == [
        Label.HIP,
        Label.MIP,
        Label.SHOWER,
        Label.SHOWER,
        Label.DELTA,
        Label.DELTA,
        Label.SHOWER,
        Label.SHOWER,
        Label.HIP,
        Label.MIP,
        Label.SHOWER,
    ]


def test_what_a_michel_electron_radiates_is_michel():
    assert classify(
        (1, 0, 211, "Primary"),
        (2, 1, -13, "Decay"),
        (3, 2, -11, "Decay"),
        (4, 3, 22, "Bremsstrahlung"),
        (5, 4, 11, "Compton"),
        (6, 3, 22, "Annihilation"),
        (7, 6, 11, "Photoelectric"),
    ) == [Label.MIP, Label.MIP, *[Label.MICHEL] * 5]


def test_a_captured_muon_gives_nuclear_photons_that_are_showers():
    assert classify(
        (1, 0, 13, "Primary"),
        (2, 1, 22, "Capture"),
        (3, 1, 11, "Capture"),
        (4, 1, 11, "Ionisation"),
    ) == [Label.MIP, Label.SHOWER, Label.MICHEL, Label.DELTA]


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        ({"size": 8, "seed": 0}, "choose 16 to 4096"),
        ({"size": 192, "seed": -1}, "negative"),
        ({"size": 192, "seed": 0, "preset": "cosmic"}, "choose one of standard, michel"),
    ],
)
def test_impossible_recipes(recipe, words):
    with pytest.raises(BadInput, match=words):
        Recipe(**recipe)


def test_a_missing_extra_is_named(monkeypatch):
    monkeypatch.setattr(simulation, "find_spec", lambda name: None if name == "calzone" else 1)
    with pytest.raises(BadInput, match=r"needs calzone.* -m pip install .*\[simulate\]"):
        next(simulate(Recipe(192, 0), 1))


def test_the_bremsstrahlung_table_is_complete():
    energies, fractions, values = seltzer_berger()
    assert values.shape == (57, 30)
    assert (np.diff(energies) > 0).all()
    assert (np.diff(fractions) > 0).all()
    assert (energies[0], energies[-1]) == (1e-3, 1e4)
    assert (values > 0).all()


@pytest.fixture
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SSCN_BENCH_CACHE", str(tmp_path / "cache"))


def test_the_argon_data_are_built_once_and_agree_with_reference_cross_sections(geant4, own_cache):
    folder = argon_data_folder()
    table = np.loadtxt(
        folder / "G4EMLOW8.8" / "epics2017" / "phot" / "pe-cs-18.dat", skiprows=2, ndmin=2
    )
    # NIST XCOM at 10 keV: 62.6 cm2/g of photoelectric absorption in argon.
    sigma = np.interp(0.01, table[:, 0], table[:, 1]) / 0.01**3
    assert sigma * 0.602214 / 39.948 == pytest.approx(62.6, rel=0.03)
    built = folder.stat().st_mtime_ns
    assert argon_data_folder() == folder
    assert folder.stat().st_mtime_ns == built
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_events_do_not_depend_on_their_number_and_look_like_events(geant4):
    recipe = Recipe(64, seed=3)
    whole = list(simulate(recipe, CHUNK + 3, processes=1))
    assert len(whole) == CHUNK + 3
    for event, again in zip(whole, simulate(recipe, 4, processes=1), strict=False):
        assert np.array_equal(event.voxels, again.voxels)
        assert np.array_equal(event.energies, again.energies)
        assert event.name == again.name
    assert whole[CHUNK + 2].name == "simulated, standard, 64 px, seed 3, event 18"
    measured = summarise(whole)
    assert 14 < measured.neighbours < 18
    assert sum(measured.classes[:CLASSES]) == pytest.approx(1)


@pytest.mark.slow
def test_the_same_bytes_whatever_the_number_of_processes(geant4, tmp_path):
    digests = set()
    for processes in (1, 2, 3):
        path = tmp_path / f"{processes}.h5"
        with EventWriter(path, 192, 3, "test") as writer:
            for event in simulate(Recipe(192, seed=9), 5 * CHUNK + 1, processes=processes):
                writer.append(event)
        digests.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(digests) == 1


@pytest.mark.slow
def test_the_michel_preset_has_more_michel_electrons(geant4):
    shares = {
        preset: summarise(simulate(Recipe(192, seed=3, preset=preset), 96)).classes[Label.MICHEL]
        for preset in PRESETS
    }
    assert shares["michel"] > 3 * shares["standard"]


def test_an_abort_of_geant4_is_one_sentence_with_its_last_words(
    geant4, tmp_path, monkeypatch, capsys
):
    for folder in argon_data_folder().iterdir():
        (tmp_path / folder.name).mkdir()
    monkeypatch.setattr(simulation, "argon_data_folder", lambda: tmp_path)
    with pytest.raises(SimulationError, match=r"died.*G4"):
        next(simulate(Recipe(64, seed=0), 1))
    out = str(tmp_path / "out.h5")
    with pytest.raises(SystemExit) as ended:
        cli.main(["events", "simulate", "--out", out, "--size", "64", "--count", "1"])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "a simulation process died; repeat the command" in line
    assert not Path(out).exists()


def test_a_simulation_can_be_left_before_its_end(geant4):
    events = simulate(Recipe(64, seed=0), 10_000, processes=2)
    assert len(list(islice(events, 2))) == 2
    events.close()
