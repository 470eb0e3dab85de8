"""Michel electrons on hand-made tracks."""

import math

import numpy as np

from harness.accuracy import michel
from harness.events.event import Label

MIP, MICHEL, SHOWER = int(Label.MIP), int(Label.MICHEL), int(Label.SHOWER)


def line(start, direction, length):
    return np.array(start) + np.arange(length)[:, None] * np.array(direction)


def track_with_michel(at=40, length=41, gap=0):
    """A straight track along x, three voxels wide, and 8 voxels along y from its voxel ``at``."""
    width = np.array([(0, y, z) for y in (-1, 0, 1) for z in (-1, 0, 1)])
    track = (line((0, 20, 20), (1, 0, 0), length)[:, None] + width).reshape(-1, 3)
    electron = line((at, 22 + gap, 20), (0, 1, 0), 8)
    return np.concatenate([track, electron]), np.array([MIP] * len(track) + [MICHEL] * 8)


def reconstruct(voxels, truth, predicted):
    return michel.reconstruct(voxels, np.ones(len(voxels)), truth, predicted)


def test_a_perfect_prediction_has_full_efficiency_and_purity():
    voxels, truth = track_with_michel()
    event = reconstruct(voxels, truth, truth)
    assert (event.true_clusters, event.found) == (1, 1)
    (candidate,) = event.candidates
    assert (candidate.voxels, candidate.shared, candidate.true_voxels) == (8, 8, 8)
    assert candidate.energy == candidate.true_energy == 8.0


def test_an_electron_from_the_middle_of_a_track_is_no_candidate():
    voxels, truth = track_with_michel(at=20)
    event = reconstruct(voxels, truth, truth)
    assert event.true_clusters == 1
    assert event.candidates == ()


def test_a_cluster_away_from_every_track_is_no_candidate_and_no_true_michel():
    voxels, truth = track_with_michel(gap=3)
    assert reconstruct(voxels, truth, truth) == michel.EventMichels(0, 0, ())


def test_a_short_track_lies_within_the_cut_and_still_counts():
    voxels, truth = track_with_michel(at=11, length=12)
    assert reconstruct(voxels, truth, truth).found == 1


def test_missing_voxels_lower_the_efficiency_and_additional_ones_the_purity():
    voxels, truth = track_with_michel()
    predicted = truth.copy()
    predicted[-2:] = SHOWER  # the far end of the electron
    predicted[(voxels == (40, 21, 20)).all(1) | (voxels == (39, 21, 20)).all(1)] = MICHEL
    event = reconstruct(voxels, truth, predicted)
    (candidate,) = event.candidates
    assert (candidate.voxels, candidate.shared, candidate.true_voxels) == (8, 6, 8)
    summary = michel.summarize_michels([event])
    assert summary.cluster_efficiency == 6 / 8
    assert summary.cluster_purity == 6 / 8


def test_a_missed_and_an_unmatched_michel_lower_efficiency_and_purity():
    voxels, truth = track_with_michel()
    missed = reconstruct(voxels, truth, np.where(truth == MICHEL, SHOWER, truth))
    invented = reconstruct(voxels, np.where(truth == MICHEL, SHOWER, truth), truth)
    right = reconstruct(voxels, truth, truth)
    assert (missed.true_clusters, missed.found, missed.candidates) == (1, 0, ())
    assert (invented.true_clusters, len(invented.candidates)) == (0, 1)
    assert invented.candidates[0].matched == -1
    summary = michel.summarize_michels([missed, invented, right])
    assert (summary.efficiency, summary.purity) == (1 / 2, 1 / 2)
    assert (summary.cluster_efficiency, summary.cluster_purity) == (1.0, 1.0)


def test_an_electron_at_each_end_of_a_track_is_found():
    voxels, truth = track_with_michel()
    far = voxels[truth == MICHEL] + (-40, 0, 0)  # at the other end of the track
    voxels = np.concatenate([voxels, far])
    truth = np.append(truth, [MICHEL] * 8)
    predicted = truth.copy()
    event = reconstruct(voxels, truth, predicted)
    assert (event.true_clusters, event.found, len(event.candidates)) == (2, 2, 2)


def test_without_michels_there_are_no_numbers():
    voxels, truth = track_with_michel()
    none = np.where(truth == MICHEL, SHOWER, truth)
    summary = michel.summarize_michels([reconstruct(voxels, none, none)])
    assert summary.candidates == summary.true_clusters == 0
    assert math.isnan(summary.efficiency)
    assert math.isnan(summary.cluster_purity)
