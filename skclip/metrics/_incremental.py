"""What a classifier knows, and has forgotten, after each of a series of sessions that bring new classes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skclip.metrics._checks import check_predictions
from skclip.utils._names import check_labels


def incremental_accuracy_matrix(
    y_true: ArrayLike, y_preds: Sequence[ArrayLike], sessions: Sequence[ArrayLike]
) -> NDArray[np.float64]:
    """Accuracy on the classes of each session after each session.

    Parameters
    ----------
    y_true : array-like of shape (n,)
        Labels of the test pictures of all sessions.
    y_preds : sequence of S array-likes of shape (n,)
        Labels predicted for all of them after session 1, 2, ...; those of sessions to come are not read.
    sessions : sequence of S array-likes
        Labels of each session, such as ``sessions_`` of `CPECLIPClassifier`.

    Returns
    -------
    ndarray of shape (S, S)
        Entry (i, j) is the accuracy after session i on the pictures of session j; NaN where j > i.

    Raises
    ------
    ValueError
        If a label belongs to no session or to two, or a session has no picture.

    Examples
    --------
    >>> from skclip.metrics import incremental_accuracy_matrix
    >>> y_true = ["cat", "dog", "owl", "owl"]
    >>> after_1, after_2 = ["cat", "dog", "cat", "cat"], ["owl", "dog", "owl", "owl"]
    >>> incremental_accuracy_matrix(y_true, [after_1, after_2], [["cat", "dog"], ["owl"]])
    array([[1. , nan],
           [0.5, 1. ]])
    """
    if len(y_preds) != len(sessions):
        raise ValueError(f"y_preds holds predictions after {len(y_preds)} sessions, but there are {len(sessions)}.")
    checked = [check_predictions(y_true=y_true, y_pred=y_pred)[0] for y_pred in y_preds]
    if not checked:
        raise ValueError("sessions is empty; at least one is needed.")
    labels = checked[0][0]
    members = _members(labels, sessions)
    matrix = np.full((len(sessions), len(sessions)), np.nan)
    for i, (_, predicted) in enumerate(checked):
        for j in range(i + 1):
            matrix[i, j] = np.mean(predicted[members[j]] == labels[members[j]])
    return matrix


def incremental_accuracy(accuracies: ArrayLike, sizes: ArrayLike | None = None) -> NDArray[np.float64]:
    """Accuracy on all classes seen so far, after each session.

    Parameters
    ----------
    accuracies : array-like of shape (S, S)
        As `incremental_accuracy_matrix` gives; entries above the diagonal are not read.
    sizes : array-like of shape (S,), default=None
        Test pictures of each session. None counts all sessions alike.

    Returns
    -------
    ndarray of shape (S,)

    Raises
    ------
    ValueError
        If an entry on or below the diagonal is no accuracy, or a size is not positive.

    References
    ----------
    X. Tao et al., "Few-Shot Class-Incremental Learning", CVPR 2020, arXiv:2004.10956.

    Examples
    --------
    >>> from skclip.metrics import incremental_accuracy
    >>> incremental_accuracy([[0.9, 0.0], [0.8, 0.6]], sizes=[300, 100]).round(3)
    array([0.9 , 0.75])
    """
    matrix = _check_matrix(accuracies)
    weights = _check_sizes(sizes, len(matrix))
    return np.array([np.average(row[: i + 1], weights=weights[: i + 1]) for i, row in enumerate(matrix)])


def average_incremental_accuracy(accuracies: ArrayLike, sizes: ArrayLike | None = None) -> float:
    """Mean of `incremental_accuracy` over the sessions.

    Parameters
    ----------
    accuracies : array-like of shape (S, S)
        As `incremental_accuracy_matrix` gives.
    sizes : array-like of shape (S,), default=None
        Test pictures of each session. None counts all sessions alike.

    Returns
    -------
    float

    Raises
    ------
    ValueError
        If an entry on or below the diagonal is no accuracy, or a size is not positive.

    References
    ----------
    S.-A. Rebuffi et al., "iCaRL: Incremental Classifier and Representation Learning", CVPR 2017, arXiv:1611.07725.

    Examples
    --------
    >>> from skclip.metrics import average_incremental_accuracy
    >>> average_incremental_accuracy([[0.9, 0.0], [0.8, 0.6]])
    0.8
    """
    return float(incremental_accuracy(accuracies, sizes).mean())


def performance_drop(accuracies: ArrayLike, sizes: ArrayLike | None = None) -> float:
    """How much lower `incremental_accuracy` is after the last session than after the first.

    Part of it is that there are more classes to tell apart; see `forgetting` for what is lost of those known before.

    Parameters
    ----------
    accuracies : array-like of shape (S, S)
        As `incremental_accuracy_matrix` gives.
    sizes : array-like of shape (S,), default=None
        Test pictures of each session. None counts all sessions alike.

    Returns
    -------
    float
        Negative where later sessions are easier.

    Raises
    ------
    ValueError
        If an entry on or below the diagonal is no accuracy, or a size is not positive.

    References
    ----------
    C. Zhang et al., "Few-Shot Incremental Learning with Continually Evolved Classifiers", CVPR 2021,
    arXiv:2104.03047.

    Examples
    --------
    >>> from skclip.metrics import performance_drop
    >>> round(performance_drop([[0.9, 0.0], [0.8, 0.6]]), 3)
    0.2
    """
    seen = incremental_accuracy(accuracies, sizes)
    return float(seen[0] - seen[-1])


def forgetting(accuracies: ArrayLike) -> float:
    """Mean over the sessions but the last of the best accuracy they ever had less that after the last session.

    Parameters
    ----------
    accuracies : array-like of shape (S, S)
        As `incremental_accuracy_matrix` gives, of two sessions at least.

    Returns
    -------
    float
        0 where nothing is lost; negative where later sessions help with the classes of earlier ones.

    Raises
    ------
    ValueError
        If there is one session only, or an entry on or below the diagonal is no accuracy.

    References
    ----------
    A. Chaudhry et al., "Riemannian Walk for Incremental Learning: Understanding Forgetting and Intransigence",
    ECCV 2018, arXiv:1801.10112, eq. 3.

    Examples
    --------
    >>> from skclip.metrics import forgetting
    >>> forgetting([[1.0, 0.0, 0.0], [0.75, 0.5, 0.0], [0.5, 0.75, 1.0]])
    0.125
    """
    matrix = _check_matrix(accuracies)
    if len(matrix) < 2:
        raise ValueError("accuracies is of one session; what is forgotten shows after a second one.")
    lost = [matrix[j:-1, j].max() - matrix[-1, j] for j in range(len(matrix) - 1)]
    return float(np.mean(lost))


def _members(labels: NDArray, sessions: Sequence[ArrayLike]) -> list[NDArray]:
    """Positions of the pictures of each session; every label belongs to one."""
    known = [np.unique(check_labels(session, name=f"sessions[{i}]")) for i, session in enumerate(sessions)]
    members = [np.flatnonzero(np.isin(labels, session)) for session in known]
    counts = np.bincount(np.concatenate(members), minlength=len(labels))
    if (counts != 1).any():
        first = int(np.flatnonzero(counts != 1)[0])
        where = "no session" if counts[first] == 0 else f"{counts[first]} sessions"
        raise ValueError(f"y_true[{first}] is {labels[first].item()!r}, a label of {where}; it must be of one.")
    for i, rows in enumerate(members):
        if not len(rows):
            raise ValueError(f"y_true holds no picture of sessions[{i}], so that its accuracy is not known.")
    return members


def _check_matrix(accuracies: ArrayLike) -> NDArray[np.float64]:
    """The lower triangle as accuracies, NaN above it."""
    matrix = np.array(accuracies, dtype=np.float64)
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1] or not matrix.size:
        raise ValueError(
            f"accuracies must be of shape (S, S), a row after each session and a column of each; got {matrix.shape}."
        )
    for i, j in zip(*np.tril_indices(len(matrix))):
        if not 0.0 <= matrix[i, j] <= 1.0:
            raise ValueError(f"accuracies[{i}, {j}] is {matrix[i, j]:g}; accuracies lie between 0 and 1.")
    matrix[np.triu_indices(len(matrix), 1)] = np.nan
    return matrix


def _check_sizes(sizes: ArrayLike | None, n_sessions: int) -> NDArray[np.float64]:
    if sizes is None:
        return np.ones(n_sessions)
    checked = np.asarray(sizes, dtype=np.float64)
    if checked.shape != (n_sessions,):
        raise ValueError(f"sizes must have shape ({n_sessions},), one for each session; got {checked.shape}.")
    bad = np.flatnonzero(~(checked > 0) | np.isinf(checked))
    if bad.size:
        raise ValueError(f"sizes[{bad[0]}] is {checked[bad[0]]:g}; every session needs test pictures.")
    return checked
