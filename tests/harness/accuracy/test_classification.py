"""Accuracy on hand-made cases that can be counted on paper."""

import numpy as np
import pytest

from harness.accuracy import classification

TRUTH = np.array([0, 0, 0, 1, 1, 2, 2, 2, 2, -100])
PREDICTED = np.array([0, 0, 1, 1, 1, 2, 2, 0, 1, 4])


def test_confusion_counts_true_rows_and_predicted_columns():
    matrix = classification.confusion_matrix(TRUTH, PREDICTED, 3)
    assert matrix.tolist() == [[2, 1, 0], [0, 2, 0], [1, 1, 2]]


def test_the_measures_of_a_matrix():
    matrix = classification.confusion_matrix(TRUTH, PREDICTED, 3)
    assert classification.nonzero_accuracy(matrix) == pytest.approx(6 / 9)
    np.testing.assert_allclose(classification.class_accuracy(matrix), [2 / 3, 1, 2 / 4])
    np.testing.assert_allclose(classification.class_purity(matrix), [2 / 3, 2 / 4, 1])
    np.testing.assert_allclose(
        classification.intersection_over_union(matrix), [2 / 4, 2 / 4, 2 / 4]
    )


def test_an_absent_class_has_no_accuracy_and_an_unpredicted_class_no_purity():
    matrix = classification.confusion_matrix(np.array([0, 0]), np.array([0, 1]), 3)
    assert np.isnan(classification.class_accuracy(matrix)[1:]).all()
    assert classification.class_purity(matrix)[1] == 0
    assert np.isnan(classification.class_purity(matrix)[2])


def test_events_have_equal_weight_whatever_their_number_of_voxels():
    large = np.zeros(90, int)
    small = np.zeros(10, int)
    result = classification.measure_accuracy([large, small], [large, small + 1], 2)
    assert result.mean == pytest.approx(0.5)
    assert result.std == pytest.approx(0.5)
    assert classification.nonzero_accuracy(result.confusion) == pytest.approx(0.9)


def test_events_without_voxels_of_a_class_are_left_out_of_the_mean():
    empty = np.array([], int)
    ignored = np.array([-100, -100])
    one = np.array([1])
    result = classification.measure_accuracy([empty, ignored, one], [empty, ignored * 0, one], 2)
    assert result.events.tolist() == [1.0]


def test_without_events_there_is_no_accuracy():
    result = classification.measure_accuracy([], [], 5)
    assert np.isnan(result.mean)
    assert result.confusion.shape == (5, 5)
