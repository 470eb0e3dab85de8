import threading
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import BadInput
from harness.events import Event, EventSet, TrainingLoader, benchmark_batch, collate
from harness.events.batches import IGNORED
from harness.events.cube import symmetries, transform
from tests.harness.events.conftest import make_event
from tests.harness.events.strategies import events


class MemorySet(EventSet):
    """Events in memory, which counts its reads."""

    name = "memory"
    sha256 = "0"

    def __init__(self, held: list[Event]) -> None:
        self.held = held
        self.sizes = (held[0].size,)
        self.reads = 0

    def __len__(self) -> int:
        return len(self.held)

    def read(self, start, stop):
        self.reads += stop - start
        return self.held[start:stop]


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)


def shape_of(batch, number):
    """Return the energies of an event, which no symmetry of the cube changes."""
    return tuple(sorted(batch["features"][batch["sites"][:, 0] == number, 0].tolist()))


def test_collate_joins_events_with_their_numbers(some_events):
    batch = collate(some_events)
    assert batch["sites"].shape == (175, 4)
    assert batch["sites"].dtype == np.int32
    assert np.bincount(batch["sites"][:, 0], minlength=5).tolist() == [50, 20, 0, 70, 35]
    assert np.array_equal(batch["sites"][:50, 1:], some_events[0].voxels)
    assert batch["features"].dtype == np.float32
    assert np.array_equal(batch["features"][50:70, 0], some_events[1].energies)
    assert batch["labels"].dtype == np.int64
    assert np.array_equal(batch["labels"][140:], some_events[4].labels)
    assert (batch["spatial_size"], batch["batch_size"]) == (32, 5)


def test_collate_in_2d_and_with_ones(some_events):
    flat = make_event(9, dim=2)
    batch = collate([flat, flat], features="one")
    assert batch["sites"].shape == (18, 3)
    assert batch["features"].tolist() == [[1.0]] * 18


def test_labels_outside_the_five_classes_are_no_target():
    event = make_event(9)
    labels = np.arange(9, dtype=np.uint8)
    batch = collate([replace(event, labels=labels)])
    assert batch["labels"].tolist() == [0, 1, 2, 3, 4, *[IGNORED] * 4]


@pytest.mark.parametrize(
    ("chosen", "words"),
    [
        ([], "at least one"),
        ([make_event(3, 8), make_event(3, 16)], "one size"),
        ([make_event(3, 8), make_event(3, 8, dim=2)], "one size and dimension"),
    ],
)
def test_collate_refuses_what_is_no_batch(chosen, words):
    with pytest.raises(BadInput, match=words):
        collate(chosen)


def test_collate_refuses_unknown_features(some_events):
    with pytest.raises(BadInput, match="'charge' is unknown"):
        collate(some_events, features="charge")


@given(events(), st.integers(0, 47))
def test_a_turned_event_is_the_same_event(event, number):
    turned = transform(event.voxels, event.size, symmetries(3)[number])
    assert ((turned >= 0) & (turned < event.size)).all()
    apart = event.voxels[:, None] - event.voxels[None]
    assert np.array_equal((apart**2).sum(-1), ((turned[:, None] - turned[None]) ** 2).sum(-1))


@pytest.mark.parametrize(("dim", "count"), [(2, 8), (3, 48)])
def test_symmetries_are_all_different_and_begin_with_the_identity(dim, count):
    corner = np.array([[1, 2, 4][:dim], [0, 0, 0][:dim]], np.int32)
    images = [transform(corner, 10, symmetry) for symmetry in symmetries(dim)]
    assert np.array_equal(images[0], corner)
    assert len({image.tobytes() for image in images}) == count


def test_the_benchmark_batch_is_fixed_by_its_seed(some_events):
    held = MemorySet(some_events)
    first, skipped = benchmark_batch(held, 3, seed=1)
    again, _ = benchmark_batch(held, 3, seed=1)
    others = [benchmark_batch(held, 3, seed=seed)[0] for seed in range(2, 8)]
    assert same(first, again)
    assert not all(same(first, other) for other in others)
    assert first["batch_size"] == 3
    assert skipped in (0, 1)


def test_the_benchmark_batch_counts_empty_events_and_never_holds_one(some_events):
    batch, skipped = benchmark_batch(MemorySet(some_events), 4, seed=0)
    counts = sorted(np.bincount(batch["sites"][:, 0]).tolist())
    assert counts == [20, 35, 50, 70]
    assert skipped <= 1
    assert benchmark_batch(MemorySet(some_events), 5, seed=0)[1] == 1


def test_a_large_benchmark_batch_repeats_events_in_other_orientations(some_events):
    batch, _ = benchmark_batch(MemorySet(some_events), 4 * 48, seed=0)
    assert batch["batch_size"] == 192
    bodies = [batch["sites"][batch["sites"][:, 0] == number, 1:].tobytes() for number in range(192)]
    assert len(set(bodies)) == 192
    with pytest.raises(BadInput, match="4 events in 48 orientations do not fill a batch of 193"):
        benchmark_batch(MemorySet(some_events), 193, seed=0)


@pytest.mark.parametrize(
    ("held", "batch", "words"),
    [([make_event(0)], 1, "no event has a voxel"), ([make_event(4)], 0, "choose 1 or more")],
)
def test_impossible_benchmark_batches(held, batch, words):
    with pytest.raises(BadInput, match=words):
        benchmark_batch(MemorySet(held), batch, seed=0)


def take(loader, count):
    return [next(loader) for _ in range(count)]


def test_an_epoch_uses_every_event_once(some_events):
    full = [event for event in some_events if len(event)]
    with TrainingLoader(MemorySet(full), 2, seed=3) as loader:
        for _ in range(3):
            epoch = take(loader, 2)
            seen = {shape_of(batch, number) for batch in epoch for number in (0, 1)}
            assert seen == {tuple(sorted(event.energies.tolist())) for event in full}


def test_training_batches_are_shuffled_and_turned_reproducibly(some_events):
    def batches(seed, **options):
        with TrainingLoader(MemorySet(some_events), 2, seed, **options) as loader:
            return take(loader, 6)

    first = batches(1)
    assert all(same(a, b) for a, b in zip(first, batches(1), strict=True))
    assert not all(same(a, b) for a, b in zip(first, batches(2), strict=True))
    assert not all(same(a, b) for a, b in zip(first, batches(1, augment=False), strict=True))
    straight = batches(1, augment=False)
    bodies = {event.voxels.tobytes() for event in some_events}
    for batch in straight:
        for number in (0, 1):
            chosen = batch["sites"][:, 0] == number
            assert batch["sites"][chosen, 1:].tobytes() in bodies


@given(st.integers(0, 9), st.integers(0, 5))
def test_a_restored_loader_goes_on_exactly(before, ahead):
    held = MemorySet([make_event(5 + seed, seed=seed) for seed in range(5)])
    with TrainingLoader(held, 2, seed=7, ahead=ahead + 1) as loader:
        take(loader, before)
        state = loader.state()
        expected = take(loader, 5)
    with TrainingLoader(held, 2, seed=7) as other:
        take(other, 1)
        other.restore(state)
        assert all(same(a, b) for a, b in zip(expected, take(other, 5), strict=True))


def test_a_state_of_another_loader_is_refused(some_events):
    held = MemorySet(some_events)
    state = TrainingLoader(held, 2, seed=7).state()
    for other in (TrainingLoader(held, 2, seed=8), TrainingLoader(held, 3, seed=7)):
        with pytest.raises(BadInput, match="another seed or batch size"):
            other.restore(state)


def test_batches_are_prepared_before_they_are_asked_for(some_events):
    held = MemorySet(some_events)
    prepared = threading.Event()
    read = held.read

    def counted(start, stop):
        if held.reads >= 6:
            prepared.set()
        return read(start, stop)

    held.read = counted
    with TrainingLoader(held, 2, seed=0, ahead=4, keep=0) as loader:
        next(loader)
        assert prepared.wait(20)


def test_events_are_read_once_as_far_as_memory_allows(some_events):
    full = [event for event in some_events if len(event)]

    def epochs(keep):
        held = MemorySet(full)
        with TrainingLoader(held, 2, seed=0, ahead=1, keep=keep) as loader:
            return take(loader, 6), held.reads

    (first, all_reads), (second, few_reads) = epochs(0), epochs(1 << 20)
    assert all(same(a, b) for a, b in zip(first, second, strict=True))
    assert few_reads == len(full) < 12 <= all_reads
    size = [event.voxels.nbytes + event.energies.nbytes + event.labels.nbytes for event in full]
    _, reads = epochs(min(size))  # room for one event, or for none if a larger one comes first
    assert reads > len(full)


def test_what_goes_wrong_in_the_background_reaches_the_caller(some_events):
    class Broken(MemorySet):
        def read(self, start, stop):
            raise BadInput("events.root is truncated")

    with TrainingLoader(Broken(some_events), 2, seed=0) as loader:
        for _ in range(2):
            with pytest.raises(BadInput, match="truncated"):
                next(loader)


def test_closing_ends_the_thread(some_events):
    loader = TrainingLoader(MemorySet(some_events), 1, seed=0)
    next(loader)
    loader.close()
    assert not any(thread.name == "training-loader" for thread in threading.enumerate())


@pytest.mark.parametrize(
    ("batch", "words"), [(0, "choose 1 to 5"), (6, "choose 1 to 5"), (5, "too few events")]
)
def test_impossible_training_batches(some_events, batch, words):
    # One of the five events is empty.
    with (
        pytest.raises(BadInput, match=words),
        TrainingLoader(MemorySet(some_events), batch, seed=0) as loader,
    ):
        next(loader)


def test_a_mixed_batch_has_the_volume_of_its_largest_event():
    small, large = make_event(3, 8), make_event(5, 16)
    batch = collate([small, large], mixed=True)
    assert batch["spatial_size"] == 16
    assert batch["sites"][:3, 1:].tolist() == small.voxels.tolist()
    assert batch["sites"][3:, 1:].tolist() == large.voxels.tolist()
