"""One way to the logits of any classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import is_classifier
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline


def get_logits(estimator: Any, X: Any, *, shift_invariant: bool = False) -> NDArray:
    """Logits of a fitted classifier, one column per class also for two classes.

    The first of these that `estimator` has:

    1. ``logits(X)``;
    2. of a `Pipeline`, the logits of its last step on the transformed X; of a search, those of
       ``best_estimator_``;
    3. ``decision_function(X)``, where the binary score s becomes ``[-s/2, s/2]``;
    4. the logarithm of ``predict_proba(X)``, with `shift_invariant` only.

    Parameters
    ----------
    estimator : classifier
        Fitted.
    X : object
        What the methods of `estimator` take.
    shift_invariant : bool, default=False
        Promise that the caller's result stays the same when a constant is added to all logits of a row, as
        softmax and argmax do. Log-probabilities tell the logits only up to that constant: an energy score of
        them is 0 everywhere.

    Returns
    -------
    ndarray of shape (n, K)
        Columns in the order of ``classes_``.

    Raises
    ------
    TypeError
        If `estimator` offers probabilities only and `shift_invariant` is False, or offers neither.
    ValueError
        If the decision function has another number of columns than there are classes, as one-vs-one voting
        has.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from skclip.utils import get_logits
    >>> X, y = np.array([[-1.0], [1.0]]), np.array([0, 1])
    >>> get_logits(LogisticRegression().fit(X, y), X).shape
    (2, 2)
    """
    if hasattr(estimator, "logits"):
        return np.asarray(estimator.logits(X))
    if isinstance(estimator, FrozenEstimator):
        return get_logits(estimator.estimator, X, shift_invariant=shift_invariant)
    if isinstance(estimator, Pipeline):
        rows = estimator[:-1].transform(X) if len(estimator) > 1 else X
        return get_logits(estimator[-1], rows, shift_invariant=shift_invariant)
    if hasattr(estimator, "best_estimator_"):
        return get_logits(estimator.best_estimator_, X, shift_invariant=shift_invariant)
    name = type(estimator).__name__
    if not is_classifier(estimator):
        raise TypeError(f"{name} is not a classifier, so it has no logits.")
    if hasattr(estimator, "decision_function"):
        return logits_from_decision(estimator.decision_function(X), len(estimator.classes_), name)
    if not hasattr(estimator, "predict_proba"):
        raise TypeError(f"{name} has none of logits, decision_function and predict_proba.")
    if not shift_invariant:
        raise TypeError(
            f"{name} offers probabilities only. They tell logits up to a constant per row, and this result "
            "depends on that constant; use a classifier with logits or decision_function."
        )
    probabilities = np.asarray(estimator.predict_proba(X))
    return np.log(np.maximum(probabilities, np.finfo(probabilities.dtype).tiny))


def logits_from_decision(scores: NDArray, n_classes: int, name: str) -> NDArray:
    """(n, K) logits from a decision function in scikit-learn's shape."""
    scores = np.asarray(scores)
    if scores.ndim == 1 and n_classes == 2:
        return np.column_stack([-scores / 2, scores / 2])
    if scores.ndim != 2 or scores.shape[1] != n_classes:
        raise ValueError(
            f"The decision function of {name} has shape {scores.shape} for {n_classes} classes; logits need "
            "one column "
            'per class (of SVC: decision_function_shape="ovr").'
        )
    return scores
