"""Reconstruction of Michel electrons from predicted voxels, as defined in the 2018 study.

Voxels of a class are clustered with DBSCAN. A predicted Michel cluster is a *candidate* if it
touches the end of a predicted MIP cluster, that is, if the track remains connected after the MIP
voxels around the point of contact are removed. A candidate is *matched* to the true Michel cluster
that is closest to most of its voxels.

- Identification efficiency: matched true clusters over all true clusters that touch a true MIP.
- Identification purity: matched candidates over all candidates.
- Cluster efficiency: voxels shared with the true cluster over the voxels of the true cluster.
- Cluster purity: voxels shared with the true cluster over the voxels of the candidate.

The last two are means over matched candidates. The parameters of the algorithm (reach, least
numbers of voxels, radius) are those of the study's published code.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from harness.accuracy.dbscan import NOISE, dbscan
from harness.events.event import Label

# Squared distances between voxels are integers. These two values therefore mean "at most" and
# "less than" 2 sqrt(2), independently of the rounding of the square root.
REACH = 2.83
TOUCH = 2.82
LEAST_MICHEL = 5
LEAST_MIP = 10
LEAST_REST = 5
CUT_RADIUS = 15.0


@dataclass(frozen=True)
class Candidate:
    """A predicted Michel electron.

    Attributes
    ----------
    voxels : int
        Number of voxels of the predicted cluster.
    energy : float
        Energy of the predicted cluster in MeV.
    matched : int
        Number of the matched true cluster, or ``NOISE``.
    shared : int
        Number of voxels in both clusters; 0 without a match.
    true_voxels : int
        Number of voxels of the true cluster; 0 without a match.
    true_energy : float
        Energy of the true cluster in MeV; 0 without a match.
    """

    voxels: int
    energy: float
    matched: int
    shared: int
    true_voxels: int
    true_energy: float


@dataclass(frozen=True)
class EventMichels:
    """The Michel electrons of one event.

    Attributes
    ----------
    true_clusters : int
        Number of true Michel clusters that touch a true MIP voxel.
    found : int
        Number of those with a matched candidate.
    candidates : tuple of Candidate
        All candidates.
    """

    true_clusters: int
    found: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class MichelSummary:
    """Efficiencies and purities of a set of events, with their counts; NaN without clusters."""

    true_clusters: int
    found: int
    candidates: int
    matched: int
    efficiency: float
    purity: float
    cluster_efficiency: float
    cluster_purity: float


def reconstruct(
    voxels: NDArray[np.integer],
    energies: NDArray[np.floating],
    truth: NDArray[np.integer],
    predicted: NDArray[np.integer],
) -> EventMichels:
    """Return the Michel electrons of one event, matched to the true ones.

    Parameters
    ----------
    voxels : ndarray of int, shape (N, dim)
        Coordinates.
    energies : ndarray, shape (N,)
        Energies in MeV.
    truth, predicted : ndarray of int, shape (N,)
        True and predicted labels, values of ``harness.events.Label``.
    """
    is_true, is_predicted = truth == Label.MICHEL, predicted == Label.MICHEL
    true_number = np.full(len(voxels), NOISE, np.int64)
    true_number[is_true] = dbscan(voxels[is_true], REACH, LEAST_MICHEL)
    predicted_number = np.full(len(voxels), NOISE, np.int64)
    predicted_number[is_predicted] = dbscan(voxels[is_predicted], REACH, LEAST_MICHEL)

    mip = voxels[truth == Label.MIP]
    real = {
        number
        for number in range(true_number.max(initial=-1) + 1)
        if _distance(voxels[true_number == number], mip) <= TOUCH
    }
    tracks = voxels[predicted == Label.MIP]
    track_number = dbscan(tracks, REACH, LEAST_MIP)
    tracks, track_number = tracks[track_number != NOISE], track_number[track_number != NOISE]

    candidates = []
    for number in range(predicted_number.max(initial=-1) + 1):
        inside = predicted_number == number
        if not touches_an_end(voxels[inside], tracks, track_number):
            continue
        match = _closest_cluster(voxels[inside], voxels[is_true], true_number[is_true])
        chosen = true_number == match if match != NOISE else np.zeros(len(voxels), bool)
        candidates.append(
            Candidate(
                int(inside.sum()),
                float(energies[inside].sum()),
                match,
                int((inside & chosen).sum()),
                int(chosen.sum()),
                float(energies[chosen].sum()),
            )
        )
    found = real & {candidate.matched for candidate in candidates}
    return EventMichels(len(real), len(found), tuple(candidates))


def touches_an_end(
    cluster: NDArray[np.integer], tracks: NDArray[np.integer], track_number: NDArray[np.int64]
) -> bool:
    """Return whether a cluster touches the end of a track.

    Parameters
    ----------
    cluster : ndarray, shape (M, dim)
        Voxels of the cluster.
    tracks : ndarray, shape (T, dim)
        Voxels of all tracks.
    track_number : ndarray of int64, shape (T,)
        Number of the track of each of these voxels.
    """
    if not len(tracks):
        return False
    distance, nearest = cKDTree(tracks).query(cluster)
    closest = int(np.argmin(distance))
    if distance[closest] > TOUCH:
        return False
    contact = int(nearest[closest])
    track = tracks[track_number == track_number[contact]]
    far = track[np.linalg.norm(track - tracks[contact], axis=1) > CUT_RADIUS]
    if not len(far):
        return True
    return int(dbscan(far, REACH, LEAST_REST).max()) == 0


def _distance(cluster: NDArray[np.integer], others: NDArray[np.integer]) -> float:
    """Return the least distance between two sets of voxels; infinite if one is empty."""
    if not len(cluster) or not len(others):
        return float("inf")
    return float(cKDTree(others).query(cluster)[0].min())


def _closest_cluster(
    cluster: NDArray[np.integer], others: NDArray[np.integer], numbers: NDArray[np.int64]
) -> int:
    """Return the number of the cluster closest to most voxels within reach, or ``NOISE``."""
    if not len(others):
        return NOISE
    distance, nearest = cKDTree(others).query(cluster)
    chosen = numbers[nearest[distance <= TOUCH]]
    chosen = chosen[chosen != NOISE]
    return int(np.bincount(chosen).argmax()) if len(chosen) else NOISE


def summarize_michels(events: Iterable[EventMichels]) -> MichelSummary:
    """Return the efficiencies and purities of a set of events."""
    events = list(events)
    candidates = [candidate for event in events for candidate in event.candidates]
    matched = [candidate for candidate in candidates if candidate.matched != NOISE]
    true_clusters = sum(event.true_clusters for event in events)
    found = sum(event.found for event in events)
    return MichelSummary(
        true_clusters=true_clusters,
        found=found,
        candidates=len(candidates),
        matched=len(matched),
        efficiency=_mean(found, true_clusters),
        purity=_mean(len(matched), len(candidates)),
        cluster_efficiency=_mean(sum(c.shared / c.true_voxels for c in matched), len(matched)),
        cluster_purity=_mean(sum(c.shared / c.voxels for c in matched), len(matched)),
    )


def _mean(total: float, count: int) -> float:
    return total / count if count else float("nan")
