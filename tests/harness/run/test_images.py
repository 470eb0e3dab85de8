import numpy as np
import pytest
import torch

from backends.contract import SparseBatch
from harness.run.images import BatchImages, coarsest_stride, with_other_features
from harness.run.workload import load_batch
from harness.spec.cell import Cell


def make_batch(dim=3, size=192, events=2, sites=200, spread=40, seed=0):
    random = np.random.default_rng(seed)
    rows = np.concatenate(
        [
            np.concatenate(
                [np.full((sites, 1), e), random.integers(0, spread, (sites, dim))], axis=1
            )
            for e in range(events)
        ]
    )
    rows = np.unique(rows, axis=0)
    return SparseBatch(
        torch.from_numpy(rows).to(torch.int32).contiguous(),
        torch.arange(len(rows), dtype=torch.float32)[:, None],
        torch.arange(len(rows)) % 5,
        size,
        events,
    )


def sites_per_level(batch, depth=5):
    sites = batch.sites.clone()
    for _ in range(depth):
        yield len(sites.unique(dim=0))
        sites[:, 1:] //= 2


def pairs(batch):
    """Return the number of pairs of a submanifold convolution."""
    size = batch.spatial_size + 2
    weights = torch.tensor([size**k for k in reversed(range(batch.dim + 1))])
    moved = batch.sites.long()
    moved[:, 1:] += 1
    keys = (moved * weights).sum(1)
    taps = torch.cartesian_prod(*[torch.arange(-1, 2)] * batch.dim) @ weights[1:]
    return sum(int(torch.isin(keys + tap, keys).sum()) for tap in taps)


@pytest.mark.parametrize("dim", [2, 3])
def test_no_image_is_repeated_and_the_work_stays(dim):
    batch = make_batch(dim)
    images = BatchImages(batch, 16, 0)
    taken = [images.check, *images.take(300)]
    seen = {image.sites.numpy().tobytes() for image in (batch, *taken)}
    assert len(seen) == 302
    levels = list(sites_per_level(batch))
    for image in taken[:150:15]:
        assert list(sites_per_level(image)) == levels
        assert pairs(image) == pairs(batch)


def test_features_and_labels_go_with_their_sites():
    batch = make_batch(events=1)
    for image in BatchImages(batch, 16, 3).take(20):
        original = image.features[:, 0].long()
        assert torch.equal(image.labels, batch.labels[original])
        # Each axis of the image is an axis of the batch, mirrored or shifted.
        moved, before = image.sites[:, 1:].long(), batch.sites[original, 1:].long()
        for axis in range(3):
            differences = [(moved[:, axis] - s * before[:, a]) for a in range(3) for s in (1, -1)]
            assert any(bool((d == d[0]).all()) for d in differences)


def test_rows_keep_the_order_of_the_input():
    batch = make_batch()
    image = BatchImages(batch, 16, 0).take(1)[0]
    assert torch.equal(image.sites, image.sites.unique(dim=0))
    shuffled = torch.randperm(len(batch.sites), generator=torch.Generator().manual_seed(0))
    unsorted = SparseBatch(
        batch.sites[shuffled].contiguous(), batch.features[shuffled], None, 192, 2
    )
    image = BatchImages(unsorted, 16, 0).take(1)[0]
    assert torch.equal(image.features, unsorted.features)


def test_every_engine_is_given_the_same_images():
    one, other = (BatchImages(make_batch(), 16, 7) for _ in range(2))
    assert torch.equal(one.check.sites, other.check.sites)
    for a, b in zip(one.take(100), other.take(100), strict=True):
        assert torch.equal(a.sites, b.sites)


def test_an_event_that_fills_the_volume_is_wrapped_around():
    batch = make_batch(spread=192, sites=2000, events=1)
    images = [image.sites.numpy().tobytes() for image in BatchImages(batch, 16, 0).take(200)]
    assert len(set(images)) == 200


def test_a_batch_without_other_images_still_has_some():
    full = torch.cartesian_prod(*[torch.arange(2, dtype=torch.int32)] * 3)
    sites = torch.cat([torch.zeros(8, 1, dtype=torch.int32), full], 1).contiguous()
    batch = SparseBatch(sites, torch.ones(8, 1), None, 2, 1)
    assert len(BatchImages(batch, 1, 0).take(3)) == 3


def test_events_without_sites_are_left_empty():
    batch = make_batch(events=1)
    batch = SparseBatch(batch.sites, batch.features, batch.labels, 192, 3)
    assert {int(image.sites[:, 0].max()) for image in BatchImages(batch, 16, 0).take(3)} == {0}


def test_detector_events_keep_their_levels():
    cell = Cell("s", "sscn", 192, 1, "forward", "cold")
    batch, _ = load_batch(cell, "sample")
    images = BatchImages(batch, coarsest_stride(cell), 0)
    levels = list(sites_per_level(batch))
    for image in images.take(60)[::12]:
        assert list(sites_per_level(image)) == levels


def test_other_features_are_the_same_values_on_other_sites():
    batch = make_batch()
    other = with_other_features(batch)
    assert not torch.equal(other.features, batch.features)
    assert torch.equal(other.features.sort(0).values, batch.features.sort(0).values)
    assert torch.equal(other.sites, batch.sites)
