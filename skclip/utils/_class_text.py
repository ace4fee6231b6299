"""What adapters take from ``zero_shot=``: one prototype for each class of y, aligned by label."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone

from skclip.utils._arrays import check_prototypes, first_view, unit_rows
from skclip.utils._base import SkclipWarning, stack_level
from skclip.utils._cosine import DEFAULT_LOGIT_SCALE, chance_message, cosine_logits, is_chance
from skclip.utils._names import rows_of_labels
from skclip.utils._training import Training

# the warning about guessing needs a sample, not every row
_MOST_CHECKED = 2000

# of the regression of pictures on names, both of about unit length
_RIDGE = 0.3


class ClassText(NamedTuple):
    """Class text, row k for ``classes_[k]``.

    Attributes
    ----------
    prototypes : ndarray of shape (K, d)
        Unit rows.
    logit_scale : float
    estimator : object or None
        The fitted text-side estimator; None where an array was given.
    """

    prototypes: NDArray
    logit_scale: float
    estimator: Any


def resolve_text(
    zero_shot: Any, classes: NDArray | None, n_features: int | None, logit_scale: float | None
) -> ClassText | None:
    """Prototypes of `classes` from the ``zero_shot`` parameter of an adapter.

    Parameters
    ----------
    zero_shot : estimator, array-like of shape (n_prototypes, d), or None
        An estimator is cloned and fitted (a `FrozenEstimator` stays as it is). The rows of an array belong
        to the labels 0..n_prototypes-1.
    classes : ndarray of shape (K,) or None
        Labels of y, sorted. Prototypes of other labels are left out. None: all that `zero_shot` knows.
    n_features : int or None
        d, the width of the image features; None does not compare.
    logit_scale : float or None
        None is the estimator's own, and 100 for an array.

    Returns
    -------
    ClassText or None
        None where `zero_shot` is None.

    Raises
    ------
    ValueError
        If a label has no prototype, labels do not fit an array, or the widths differ.
    """
    if zero_shot is None:
        return None
    if hasattr(zero_shot, "fit"):
        estimator = clone(zero_shot).fit(None, classes)
        if not hasattr(estimator, "prototypes_"):
            raise ValueError(
                f"zero_shot={zero_shot!r} holds no prototypes after fit; a frozen ZeroShotClassifier must be fitted "
                "before it is frozen."
            )
        known, prototypes = estimator.classes_, np.asarray(estimator.prototypes_)
        own_scale = float(estimator.logit_scale_)
        source = "zero_shot"
    else:
        estimator = None
        prototypes = check_prototypes(zero_shot, "zero_shot")
        known, own_scale = np.arange(len(prototypes)), DEFAULT_LOGIT_SCALE
        source = "the rows of zero_shot"
        if classes is not None:
            _check_positions(classes, len(prototypes))
    if n_features not in (None, prototypes.shape[1]):
        raise ValueError(
            f"zero_shot holds prototypes of width {prototypes.shape[1]}, but X has {n_features} features; "
            "both must come from one model."
        )
    rows = np.arange(len(known)) if classes is None else rows_of_labels(known, classes, source=source)
    scale = own_scale if logit_scale is None else float(logit_scale)
    return ClassText(unit_rows(prototypes[rows]), scale, estimator)


def set_text(estimator: Any) -> ClassText | None:
    """Resolve the ``zero_shot`` and ``logit_scale`` of an adapter that knows its classes, and set ``prototypes_``,
    ``logit_scale_`` and ``zero_shot_``: all None without text."""
    text = resolve_text(estimator.zero_shot, estimator.classes_, estimator.n_features_in_, estimator.logit_scale)
    set_fitted_text(estimator, text)
    return text


def set_unscaled_text(estimator: Any) -> ClassText | None:
    """The same where the scale of the logits plays no part: sets ``prototypes_`` and ``zero_shot_`` alone."""
    text = resolve_text(estimator.zero_shot, estimator.classes_, estimator.n_features_in_, None)
    estimator.prototypes_, estimator.zero_shot_ = (None, None) if text is None else (text.prototypes, text.estimator)
    return text


def set_fitted_text(estimator: Any, text: ClassText | None) -> None:
    """What `fitted_text` reads."""
    estimator.prototypes_, estimator.logit_scale_, estimator.zero_shot_ = (None, None, None) if text is None else text


def fitted_text(estimator: Any) -> ClassText | None:
    """What `set_text` has set."""
    if estimator.prototypes_ is None:
        return None
    return ClassText(estimator.prototypes_, estimator.logit_scale_, estimator.zero_shot_)


def warn_if_guessing(training: Training, text: ClassText | None, *, source: str = "zero_shot") -> None:
    """Warn where there is text, and it names the training pictures no better than chance would.

    Features and prototypes of two models with equal width cannot be told apart by their shapes; this shows
    them.
    """
    if text is None:
        return
    X, codes = first_view(training.X, training.n_views), training.codes
    chosen = np.unique(np.linspace(0, len(X) - 1, min(len(X), _MOST_CHECKED)).astype(np.intp))
    guesses = np.argmax(cosine_logits(X[chosen], text.prototypes, 1.0), axis=1)
    n_right = int(np.sum(guesses == codes[chosen]))
    if is_chance(n_right, len(chosen), len(text.prototypes)):
        message = chance_message(n_right, len(chosen), len(text.prototypes), source)
        warnings.warn(message, SkclipWarning, stacklevel=stack_level())


def names_misplaced(rows: NDArray, prototypes: NDArray) -> bool:
    """Whether pictures follow the relations among the class names, but do not lie where the names are.

    Tells from a single picture per class that the pictures are to be trusted more than the text, as in a style that
    the text tower has never met. Each picture is predicted from its name, by ridge regression of the pictures of
    all other classes on their names. True if these predictions recognise more of the pictures than the names
    themselves do, by more than two standard errors of the paired difference.

    Parameters
    ----------
    rows : ndarray of shape (K, d)
        One unit row per class.
    prototypes : ndarray of shape (K, d)
        Unit rows.
    """
    by_name = np.argmax(rows @ prototypes.T.astype(rows.dtype, copy=False), axis=1) == np.arange(len(rows))
    pictures = (rows - rows.mean(axis=0)).astype(np.float64)
    names = unit_rows((prototypes - prototypes.mean(axis=0)).astype(np.float64))
    gram = names.T @ names
    weights = np.linalg.solve(gram + _RIDGE * np.eye(len(gram)), names.T)  # (d, K)
    predicted = names @ (weights @ pictures)
    leverage = np.einsum("kd,dk->k", names, weights)[:, None]
    held_out = (predicted - leverage * pictures) / (1.0 - leverage)
    directions = unit_rows(pictures)
    scores = directions @ unit_rows(predicted).T
    own = np.einsum("kd,kd->k", directions, unit_rows(held_out))
    np.fill_diagonal(scores, -np.inf)
    by_relation = own > scores.max(axis=1)
    gained, lost = int(np.sum(by_relation & ~by_name)), int(np.sum(by_name & ~by_relation))
    return bool(gained - lost > 2.0 * np.sqrt(gained + lost))


def _check_positions(classes: NDArray, n_prototypes: int) -> None:
    whole = classes.dtype.kind in "iu" or (classes.dtype.kind == "f" and bool(np.all(classes == np.floor(classes))))
    if whole and classes.min() >= 0 and classes.max() < n_prototypes:
        return
    outside = [label for label in classes.tolist() if not whole or not 0 <= label < n_prototypes]
    raise ValueError(
        f"zero_shot is an array of {n_prototypes} prototypes, whose labels can only be 0..{n_prototypes - 1}, "
        f"but y holds {', '.join(map(repr, outside[:5]))}. Pass ZeroShotClassifier(prototypes=..., "
        "classes=[label of each row])."
    )
