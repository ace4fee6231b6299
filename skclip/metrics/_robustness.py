"""How much of its accuracy a model keeps where pictures change."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skclip.metrics._checks import check_accuracies, check_scores, check_share


def mean_corruption_error(errors: ArrayLike, baseline_errors: ArrayLike) -> float:
    """Error under corruption relative to a baseline model, averaged over the kinds of corruption (mCE).

    ``mCE = mean_c (sum_s E_sc / sum_s E^base_sc)`` [1]_, over severities s and corruptions c. The baseline's share
    of the difficulty is divided out, so that no hard corruption dominates.

    Parameters
    ----------
    errors : array-like of shape (C, S)
        Error rates of the model, one row per corruption, one column per severity.
    baseline_errors : array-like of shape (C, S)
        Those of the baseline on the same pictures.

    Returns
    -------
    float
        1 for the baseline itself, smaller for a more robust model.

    Raises
    ------
    ValueError
        If the shapes differ, an entry is no error rate, or the baseline makes no error under some corruption.

    References
    ----------
    .. [1] D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
       Perturbations", ICLR 2019, arXiv:1903.12261.

    Examples
    --------
    >>> from skclip.metrics import mean_corruption_error
    >>> mean_corruption_error([[0.1, 0.2], [0.3, 0.3]], [[0.2, 0.4], [0.3, 0.3]])
    0.75
    """
    errors, baseline = _check_errors(errors, baseline_errors)
    return _mean_ratio(errors.sum(axis=1), baseline.sum(axis=1), "makes no error")


def relative_mean_corruption_error(
    errors: ArrayLike, baseline_errors: ArrayLike, *, clean_error: float, baseline_clean_error: float
) -> float:
    """Degradation under corruption relative to that of a baseline model (relative mCE).

    ``mean_c (sum_s (E_sc - E_clean) / sum_s (E^base_sc - E^base_clean))`` [1]_: a model that is merely more accurate
    everywhere is not more robust.

    Parameters
    ----------
    errors : array-like of shape (C, S)
        Error rates of the model, one row per corruption, one column per severity.
    baseline_errors : array-like of shape (C, S)
        Those of the baseline on the same pictures.
    clean_error, baseline_clean_error : float
        Error rates of both on the pictures without corruption.

    Returns
    -------
    float
        1 for the baseline itself, smaller for a model that loses less.

    Raises
    ------
    ValueError
        If the shapes differ, an entry is no error rate, or some corruption does not hurt the baseline.

    References
    ----------
    .. [1] D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
       Perturbations", ICLR 2019, arXiv:1903.12261.

    Examples
    --------
    >>> from skclip.metrics import relative_mean_corruption_error
    >>> relative_mean_corruption_error([[0.5, 0.75]], [[0.5, 1.0]], clean_error=0.25, baseline_clean_error=0.0)
    0.5
    """
    errors, baseline = _check_errors(errors, baseline_errors)
    clean = check_share("clean_error", clean_error)
    baseline_clean = check_share("baseline_clean_error", baseline_clean_error)
    lost = (errors - clean).sum(axis=1)
    return _mean_ratio(lost, (baseline - baseline_clean).sum(axis=1), "makes no more errors than without it")


def effective_robustness(accuracy_id: ArrayLike, accuracy_shift: ArrayLike, line: Any) -> Any:
    """Accuracy under shift beyond what accuracy without shift predicts: ``acc_shift - line(acc_id)`` [1]_.

    Parameters
    ----------
    accuracy_id : float or array-like of shape (m,)
        Accuracy of each model on in-distribution pictures.
    accuracy_shift : float or array-like of shape (m,)
        Accuracy of the same models on the shifted pictures.
    line : object with predict, or callable
        What standard models keep: a fitted `RobustnessLine`, or a function of the in-distribution accuracies.

    Returns
    -------
    float or ndarray of shape (m,)
        0 on the line of the standard models. A useful intervention has both this and `relative_robustness` positive.

    See Also
    --------
    skclip.evaluation.RobustnessLine : Fits the line to a pool of models.

    References
    ----------
    .. [1] R. Taori et al., "Measuring Robustness to Natural Distribution Shifts in Image Classification", NeurIPS
       2020, arXiv:2007.00644, equation (1).

    Examples
    --------
    >>> from skclip.metrics import effective_robustness
    >>> effective_robustness(0.75, 0.75, lambda accuracy: accuracy - 0.25)
    0.25
    """
    given_id = check_accuracies("accuracy_id", accuracy_id)
    given_shift = check_accuracies("accuracy_shift", accuracy_shift)
    if given_id.shape != given_shift.shape:
        raise ValueError(
            f"accuracy_id has shape {given_id.shape} and accuracy_shift {given_shift.shape}; pass one pair per model."
        )
    predict = line.predict if hasattr(line, "predict") else line
    beyond = given_shift - np.asarray(predict(np.atleast_1d(given_id)), dtype=np.float64).reshape(given_id.shape)
    return float(beyond) if beyond.ndim == 0 else beyond


def relative_robustness(accuracy_shift: ArrayLike, baseline_accuracy_shift: ArrayLike) -> Any:
    """Accuracy under shift gained over the model before an intervention: ``acc_shift(new) - acc_shift(base)`` [1]_.

    Parameters
    ----------
    accuracy_shift : float or array-like of shape (m,)
        Accuracy under shift with the intervention.
    baseline_accuracy_shift : float or array-like of shape (m,)
        Without it.

    Returns
    -------
    float or ndarray of shape (m,)

    References
    ----------
    .. [1] R. Taori et al., "Measuring Robustness to Natural Distribution Shifts in Image Classification", NeurIPS
       2020, arXiv:2007.00644, equation (2).

    Examples
    --------
    >>> from skclip.metrics import relative_robustness
    >>> relative_robustness(0.75, 0.5)
    0.25
    """
    gained = check_accuracies("accuracy_shift", accuracy_shift) - check_accuracies(
        "baseline_accuracy_shift", baseline_accuracy_shift
    )
    return float(gained) if gained.ndim == 0 else gained


def _check_errors(errors: ArrayLike, baseline_errors: ArrayLike) -> tuple[NDArray, NDArray]:
    """Two matrices of error rates of one shape, (C, S)."""
    checked = []
    for name, values in (("errors", errors), ("baseline_errors", baseline_errors)):
        matrix = check_scores(name, values, ndim=2)
        outside = np.argwhere((matrix < 0.0) | (matrix > 1.0))
        if len(outside):
            c, s = outside[0]
            raise ValueError(f"{name}[{c}, {s}] is {matrix[c, s]:g}; error rates lie between 0 and 1, not in percent.")
        checked.append(matrix)
    if checked[0].shape != checked[1].shape:
        raise ValueError(
            f"errors has shape {checked[0].shape} and baseline_errors {checked[1].shape}; both are (corruptions, "
            "severities)."
        )
    return checked[0], checked[1]


def _mean_ratio(sums: NDArray, baseline_sums: NDArray, reason: str) -> float:
    unusable = np.flatnonzero(baseline_sums <= 0.0)
    if unusable.size:
        raise ValueError(
            f"Under the corruption of row {unusable[0]} the baseline {reason}, so nothing can be relative to it; leave "
            "that row out of both matrices."
        )
    return float(np.mean(sums / baseline_sums))
