"""Accuracy over a series of sessions."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skclip.metrics import (
    average_incremental_accuracy,
    forgetting,
    incremental_accuracy,
    incremental_accuracy_matrix,
    performance_drop,
)

NAN = np.nan
MATRIX = np.array([[0.8, NAN, NAN], [0.9, 0.6, NAN], [0.5, 0.7, 1.0]])


def test_by_hand():
    assert_allclose(incremental_accuracy(MATRIX), [0.8, 0.75, 2.2 / 3])
    assert_allclose(incremental_accuracy(MATRIX, [60, 20, 20]), [0.8, (54 + 12) / 80, (30 + 14 + 20) / 100])
    assert average_incremental_accuracy(MATRIX) == pytest.approx((0.8 + 0.75 + 2.2 / 3) / 3)
    assert average_incremental_accuracy(MATRIX, [60, 20, 20]) == pytest.approx((0.8 + 0.825 + 0.64) / 3)
    assert performance_drop(MATRIX) == pytest.approx(0.8 - 2.2 / 3)
    assert performance_drop(MATRIX, [60, 20, 20]) == pytest.approx(0.8 - 0.64)
    # of the first session 0.9 - 0.5 is lost, of the second -0.1; the last cannot have been forgotten yet
    assert forgetting(MATRIX) == pytest.approx((0.4 - 0.1) / 2)


def test_what_stands_above_the_diagonal_does_not_count():
    filled = np.where(np.isnan(MATRIX), 7.0, MATRIX)
    assert_array_equal(incremental_accuracy(filled), incremental_accuracy(MATRIX))
    assert forgetting(filled) == forgetting(MATRIX)
    assert filled[0, 1] == 7.0


def test_nothing_lost():
    kept = np.tril(np.full((4, 4), 0.5))
    assert forgetting(kept) == performance_drop(kept) == 0.0
    assert average_incremental_accuracy(kept) == 0.5


def test_the_matrix_is_the_accuracy_of_each_session_after_each():
    rng = np.random.default_rng(0)
    sessions = [[5, 0], [3], [1, 4, 2]]
    y_true = rng.integers(0, 6, 60)
    y_preds = [np.where(rng.random(60) < 0.5, y_true, 9) for _ in sessions]
    found = incremental_accuracy_matrix(y_true, y_preds, sessions)
    for i in range(3):
        for j in range(3):
            of_session = [k for k in range(60) if y_true[k] in sessions[j]]
            expected = np.mean([y_preds[i][k] == y_true[k] for k in of_session]) if j <= i else NAN
            assert_allclose(found[i, j], expected)
    # with the sizes of the sessions it is the accuracy over all pictures of classes seen
    sizes = [sum(label in session for label in y_true) for session in sessions]
    assert_allclose(incremental_accuracy(found, sizes)[-1], np.mean(y_preds[-1] == y_true))


@pytest.mark.parametrize(
    ("accuracies", "sizes", "message"),
    [
        ([[0.5, 0.5]], None, r"shape \(S, S\)"),
        ([], None, r"shape \(S, S\)"),
        ([[0.5, 0.0], [1.5, 0.5]], None, r"accuracies\[1, 0\] is 1.5"),
        ([[0.5, 0.0], [0.5, NAN]], None, r"accuracies\[1, 1\] is nan"),
        ([[0.5]], [1, 2], r"sizes must have shape \(1,\)"),
        ([[0.5]], [0], r"sizes\[0\] is 0"),
    ],
)
def test_what_is_no_matrix_of_accuracies(accuracies, sizes, message):
    for metric in (incremental_accuracy, average_incremental_accuracy, performance_drop):
        with pytest.raises(ValueError, match=message):
            metric(accuracies, sizes)


def test_one_session_forgets_nothing_that_could_be_measured():
    with pytest.raises(ValueError, match="of one session"):
        forgetting([[0.5]])


@pytest.mark.parametrize(
    ("y_true", "n", "sessions", "message"),
    [
        ([0, 1, 2], 2, [[0], [1]], r"y_true\[2\] is 2, a label of no session"),
        ([0, 1, 1], 2, [[0, 1], [1]], r"y_true\[1\] is 1, a label of 2 sessions"),
        ([0, 1, 1], 2, [[0, 1], [2]], r"no picture of sessions\[1\]"),
        ([0, 1, 1], 1, [[0], [1]], "after 1 sessions, but there are 2"),
        ([0, 1, 1], 0, [], "sessions is empty"),
    ],
)
def test_labels_that_belong_to_no_one_session(y_true, n, sessions, message):
    with pytest.raises(ValueError, match=message):
        incremental_accuracy_matrix(y_true, [y_true] * n, sessions)
