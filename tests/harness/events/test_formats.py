"""Round trips through every writer and reader."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from harness.events import Event, Label, open_events
from harness.events.native import EventWriter
from harness.events.packed import write_packed
from tests.harness.events import files
from tests.harness.events.conftest import make_event
from tests.harness.events.strategies import event_lists

# Each example writes and reads a file.
thorough = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow])


@pytest.fixture(scope="module")
def path():
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder) / "events"


def assert_same(read: Event, written: Event, labels=None) -> None:
    assert read.size == written.size
    assert np.array_equal(read.voxels, written.voxels)
    assert np.array_equal(read.energies, written.energies)
    assert np.array_equal(read.labels, written.labels if labels is None else labels)


def assert_reads_back(path: Path, written: list[Event]) -> None:
    with open_events(path) as event_set:
        assert len(event_set) == len(written)
        assert event_set.size == written[0].size
        for read, event in zip(event_set, written, strict=True):
            assert_same(read, event)
        assert_same(event_set[-1], written[-1])
        assert len(event_set[0].name) > len(str(path))


@given(event_lists(classes=len(Label)))
@thorough
def test_own_format(path, events):
    with EventWriter(path, events[0].size, 3, "test") as writer:
        for event in events:
            writer.append(event)
    assert_reads_back(path, events)


@given(event_lists(dim=2))
@thorough
def test_own_format_in_2d(path, events):
    with EventWriter(path, events[0].size, 2, "test") as writer:
        for event in events:
            writer.append(event)
    assert_reads_back(path, events)


@given(event_lists(classes=len(Label)))
@thorough
def test_packed_format_is_exact_but_for_one_per_cent_of_energy(path, events):
    write_packed(path, events)
    event_set = open_events(path)
    assert len(event_set) == len(events)
    for read, event in zip(event_set, events, strict=True):
        assert np.array_equal(read.voxels, event.voxels)
        assert np.array_equal(read.labels, event.labels)
        assert np.allclose(read.energies, event.energies, rtol=0.01, atol=0)


@given(event_lists(size=17))
@settings(thorough, max_examples=8)
def test_larcv2(path, events):
    files.write_larcv2(path, events)
    assert_reads_back(path, events)


@given(event_lists())
@thorough
def test_larcv3(path, events):
    files.write_larcv3(path, events)
    assert_reads_back(path, events)


@given(event_lists(size=768))
@thorough
def test_second_revision_of_pilarnet_m_tells_protons_from_other_tracks(path, events):
    files.write_pilarnet_m(path, events, revision=2)
    assert_reads_back(path, events)


@given(event_lists(size=768))
@thorough
def test_first_revision_of_pilarnet_m_knows_tracks_only(path, events):
    files.write_pilarnet_m(path, events, revision=1)
    with open_events(path) as event_set:
        for read, event in zip(event_set, events, strict=True):
            tracks = (event.labels == Label.HIP) | (event.labels == Label.MIP)
            assert_same(read, event, np.where(tracks, Label.TRACK, event.labels))


@pytest.mark.parametrize("revision", [1, 2])
def test_the_revision_of_pilarnet_m_shows_without_its_extra_data_set(path, revision):
    events = [make_event(count, size=768, seed=count) for count in (30, 7, 12, 5)]
    files.write_pilarnet_m(path, events, revision, extra=False)
    with open_events(path) as event_set:
        for read, event in zip(event_set, events, strict=True):
            tracks = (event.labels <= Label.MIP) & (revision == 1)
            assert_same(read, event, np.where(tracks, Label.TRACK, event.labels))


def test_pilarnet_m_has_low_energy_scatters(path):
    write = files.write_pilarnet_m
    event = Event(
        np.array([[1, 2, 767]], np.int32),
        np.ones(1, np.float32),
        np.array([Label.LOW_ENERGY], np.uint8),
        768,
        "scatter",
    )
    for revision in (1, 2):
        write(path, [event], revision=revision)
        with open_events(path) as event_set:
            assert_same(event_set[0], event)


@pytest.mark.parametrize("name", ["larcv2_pilarnet_event48.root", "larcv3_pilarnet_event48.h5"])
def test_the_real_event_is_the_same_in_every_format(fixtures, name):
    with np.load(fixtures / "pilarnet_dlprod_192px_00_event48.npz") as archive:
        voxels, energies, labels = (archive[key] for key in ("voxels", "energy", "fivetypes"))
    order = np.lexsort(voxels.T[::-1])
    with open_events(fixtures / name) as event_set:
        first = event_set[0]
        assert [len(event) for event in event_set] == [5180, 100, 0, 1000]
        assert event_set.size == 192
    assert np.array_equal(first.voxels, voxels[order])
    assert np.array_equal(first.energies, energies[order])
    assert np.array_equal(first.labels, labels[order])


@pytest.mark.parametrize(
    ("name", "fastest"),
    [("larcv2_pilarnet_event48.root", 0), ("larcv3_pilarnet_event48.h5", 2)],
)
def test_the_shorter_entries_cut_the_event_in_the_order_of_the_format(fixtures, name, fastest):
    with open_events(fixtures / name) as event_set:
        whole, short, _, long = event_set
    by_id = whole.voxels if fastest == 2 else whole.voxels[:, ::-1]
    order = np.lexsort(by_id.T[::-1])
    for part, cut in ((short, order[:100]), (long, order[100:1100])):
        chosen = np.sort(cut)
        assert np.array_equal(part.voxels, whole.voxels[chosen])
        assert np.array_equal(part.energies, whole.energies[chosen])
        assert np.array_equal(part.labels, whole.labels[chosen])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="the system does not count reads")
@pytest.mark.parametrize("kind", ["own", "larcv3"])
def test_opening_a_large_file_and_reading_an_event_reads_little_of_it(path, kind):
    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    event = make_event(20_000, size=512)
    if kind == "larcv3":
        files.write_larcv3(path, [event] * 40)
    else:
        with EventWriter(path, 512, 3, "test") as writer:
            for _ in range(40):
                writer.append(event)
    before = bytes_read()
    with open_events(path) as event_set:
        assert_same(event_set[20], event)
    assert bytes_read() - before < path.stat().st_size / 8
