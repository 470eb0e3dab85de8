"""Batches of events as plain arrays: a fixed batch for measurements, a stream for training.

Every batch is a dictionary:

- ``sites``: int32, (N, 1 + dim), the number of the event in the batch first;
- ``features``: float32, (N, inputs): the energy in MeV, its square root, its cube root and so on;
- ``labels``: int64, (N,), ``IGNORED`` where the label is none of the five classes;
- ``spatial_size``: int, voxels per side;
- ``batch_size``: int, number of events.
"""

import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness.errors import BadInput
from harness.events.cube import symmetries, transform
from harness.events.event import CLASSES, Event
from harness.events.event_set import EventSet

IGNORED = -100
"""Target of voxels outside the five classes: what torch's cross entropy leaves out by default."""

Batch = dict[str, Any]


def collate(
    events: Sequence[Event], *, features: str = "energy", mixed: bool = False, inputs: int = 1
) -> Batch:
    """Join events to one batch.

    Parameters
    ----------
    events : sequence of Event
        Of one size and dimension.
    features : {"energy", "one"}
        The voxel's energy in MeV, or 1 for every voxel.
    mixed : bool
        Whether sizes may differ; the volume of the batch is then that of the largest event.
    inputs : int
        Features per voxel. Our events have one; further ones are its roots, so that networks with
        several inputs can be measured and trained.

    Raises
    ------
    BadInput
        If there is no event, sizes differ, or the feature is unknown.
    """
    if not events:
        raise BadInput("a batch needs at least one event")
    sizes = {event.size for event in events}
    if len({event.dim for event in events}) > 1 or (len(sizes) > 1 and not mixed):
        raise BadInput("a batch needs events of one size and dimension; choose one size")
    if features not in ("energy", "one"):
        raise BadInput(f"feature {features!r} is unknown; choose energy or one")
    counts = [len(event) for event in events]
    numbers = np.repeat(np.arange(len(events), dtype=np.int32), counts)
    energies = np.concatenate([event.energies for event in events])
    labels = np.concatenate([event.labels for event in events]).astype(np.int64)
    return {
        "sites": np.column_stack([numbers, np.concatenate([event.voxels for event in events])]),
        "features": _roots(energies if features == "energy" else np.ones_like(energies), inputs),
        "labels": np.where(labels < CLASSES, labels, IGNORED),
        "spatial_size": max(sizes),
        "batch_size": len(events),
    }


def _roots(values: NDArray[np.float32], number: int) -> NDArray[np.float32]:
    """Return values beside their square roots, cube roots and so on, with their signs."""
    columns = [values] + [
        np.copysign(np.abs(values) ** np.float32(1 / degree), values)
        for degree in range(2, number + 1)
    ]
    return np.stack(columns, axis=1)


def labelled_batches(
    event_set: EventSet, count: int, batch: int, seed: int, *, inputs: int = 1
) -> Iterator[Batch]:
    """Yield the events whose labels make an accuracy, in batches.

    The first batch is that of ``benchmark_batch``, if the set has as many events with voxels.

    Parameters
    ----------
    event_set : EventSet
    count : int
        Number of events; all events with voxels if there are fewer.
    batch : int
        Events per batch; the last batch may have fewer.
    seed : int
        Of their order.
    inputs : int
        As for ``collate``.
    """
    order = np.random.default_rng(seed).permutation(len(event_set)).tolist()
    events = islice((event for i in order if len(event := event_set[i])), count)
    while chosen := list(islice(events, batch)):
        yield collate(chosen, inputs=inputs)


def benchmark_batch(
    event_set: EventSet, batch: int, seed: int, *, features: str = "energy", inputs: int = 1
) -> tuple[Batch, int]:
    """Return one fixed batch, the same for every engine.

    Events are drawn in a seeded random order; empty ones are skipped. When the set has fewer
    events than the batch, they repeat in the same order, each time in another orientation of the
    cube (drawn without repetition), so that no event is in the batch twice in one orientation.

    Parameters
    ----------
    event_set : EventSet
    batch : int
        Number of events.
    seed : int
    features, inputs
        As for ``collate``.

    Returns
    -------
    batch : Batch
    skipped : int
        Number of empty events that were left out.

    Raises
    ------
    BadInput
        If the set has no event with a voxel, or too few for the batch in all orientations.
    """
    if batch < 1:
        raise BadInput(f"a batch of {batch} events cannot be measured; choose 1 or more")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(event_set)).tolist()
    chosen: list[Event] = []
    skipped = 0
    for index in order:
        event = event_set[index]
        if not len(event):
            skipped += 1
            continue
        chosen.append(event)
        if len(chosen) == batch:
            return collate(chosen, features=features, inputs=inputs), skipped
    if not chosen:
        raise BadInput(f"{event_set.name}: no event has a voxel; choose other events")
    found = len(chosen)
    turns = symmetries(chosen[0].dim)
    if batch > found * len(turns):
        raise BadInput(
            f"{event_set.name}: {found} events in {len(turns)} orientations do not fill a batch "
            f"of {batch}; choose {found * len(turns)} or fewer"
        )
    # The first turn, the identity, is used already.
    turned = [1 + rng.permutation(len(turns) - 1) for _ in range(found)]
    for extra in range(batch - found):
        event = chosen[extra % found]
        turn = turns[turned[extra % found][extra // found]]
        chosen.append(replace(event, voxels=transform(event.voxels, event.size, turn)))
    return collate(chosen, features=features, inputs=inputs), skipped


class TrainingLoader:
    """Endless shuffled, augmented batches, prepared in a background thread.

    In every epoch each event with a voxel is used once, in a new order and a random orientation
    of the cube; events that do not fill the last batch of an epoch are left out of that epoch,
    empty ones are left out. Order and orientations depend on the seed and the epoch alone, so
    a loader with a saved state continues with the same batches as an uninterrupted one.

    Events stay in memory once they have been read: reading and checking them takes several times
    as long as turning them, on processors that the training uses as well.

    Use it as a context manager, or call ``close``, to end the thread.

    Parameters
    ----------
    event_set : EventSet
    batch : int
        Events per batch.
    seed : int
    augment : bool
        Whether to turn events.
    features, inputs
        As for ``collate``.
    ahead : int
        Batches prepared in advance.
    keep : int
        Bytes of events that may stay in memory; those beyond are read in every epoch.

    Raises
    ------
    BadInput
        If the set has fewer events than a batch, or too few of them have voxels.
    """

    def __init__(
        self,
        event_set: EventSet,
        batch: int,
        seed: int,
        *,
        augment: bool = True,
        features: str = "energy",
        inputs: int = 1,
        ahead: int = 4,
        keep: int = 1 << 30,
    ) -> None:
        if not 1 <= batch <= len(event_set):
            raise BadInput(
                f"{event_set.name} has {len(event_set)} events, which do not fill a batch of "
                f"{batch}; choose 1 to {len(event_set)}"
            )
        self._set, self._batch, self._seed = event_set, batch, seed
        self._augment, self._ahead = augment, ahead
        self._features, self._inputs = features, inputs
        self._kept: dict[int, Event] = {}
        self._room = keep
        self._epoch = self._used = 0
        self._thread: threading.Thread | None = None

    def state(self) -> dict[str, int]:
        """Return the position of the loader after the batches delivered so far."""
        return {"seed": self._seed, "batch": self._batch, "epoch": self._epoch, "used": self._used}

    def restore(self, state: dict[str, int]) -> None:
        """Continue from a saved ``state``.

        Raises
        ------
        BadInput
            If the state is of a loader with another seed or batch.
        """
        if (state["seed"], state["batch"]) != (self._seed, self._batch):
            raise BadInput("the saved state is of a loader with another seed or batch size")
        self.close()
        self._epoch, self._used = state["epoch"], state["used"]

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if self._thread is None:
            self._start()
        item = self._ready.get()
        if isinstance(item, BaseException):
            self.close()
            raise item
        batch: Batch
        batch, self._epoch, self._used = item
        return batch

    def __enter__(self) -> "TrainingLoader":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the background thread; the next batch starts another one."""
        if self._thread is None:
            return
        self._stop.set()
        self._thread.join()
        self._thread = None

    def _start(self) -> None:
        self._stop = threading.Event()
        self._ready: queue.Queue[Any] = queue.Queue(self._ahead)
        self._thread = threading.Thread(
            target=self._prepare,
            args=(self._epoch, self._used, self._ready, self._stop),
            name="training-loader",
            daemon=True,
        )
        self._thread.start()

    def _prepare(
        self, epoch: int, used: int, ready: "queue.Queue[Any]", stop: threading.Event
    ) -> None:
        def deliver(item: Any) -> None:
            while not stop.is_set():
                try:
                    return ready.put(item, timeout=0.05)
                except queue.Full:
                    continue

        try:
            while not stop.is_set():
                before = used
                for batch, position in self._epoch_batches(epoch, used):
                    used = position
                    deliver((batch, epoch, used))
                    if stop.is_set():
                        return
                if used == 0 and before == 0:
                    raise BadInput(
                        f"{self._set.name}: too few events have voxels for a batch of {self._batch}"
                    )
                epoch, used = epoch + 1, 0
        except BaseException as error:  # delivered to the consumer, which raises it
            deliver(error)

    def _epoch_batches(self, epoch: int, used: int) -> Iterator[tuple[Batch, int]]:
        """Yield each batch of an epoch from position ``used`` on, with the position after it."""
        order, turn = epoch_plan(len(self._set), epoch, self._seed)
        events: list[Event] = []
        for position in range(used, len(order)):
            event = self._event(int(order[position]))
            if not len(event):
                continue
            if self._augment:
                turns = symmetries(event.dim)
                chosen = turns[int(turn[position] * len(turns))]
                event = replace(event, voxels=transform(event.voxels, event.size, chosen))
            events.append(event)
            if len(events) == self._batch:
                yield (
                    collate(events, features=self._features, mixed=True, inputs=self._inputs),
                    position + 1,
                )
                events = []

    def _event(self, index: int) -> Event:
        if index in self._kept:
            return self._kept[index]
        event = self._set[index]
        size = event.voxels.nbytes + event.energies.nbytes + event.labels.nbytes
        if size <= self._room:
            self._room -= size
            self._kept[index] = event
        return event


def epoch_plan(count: int, epoch: int, seed: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return the order of an epoch's events and a number in [0, 1) for each one's orientation."""
    rng = np.random.default_rng([seed, epoch])
    return rng.permutation(count), rng.random(count)
