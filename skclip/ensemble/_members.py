"""Named classifiers, given the same X and y: what every ensemble of them does."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone, is_classifier
from sklearn.model_selection import check_cv
from sklearn.utils.metadata_routing import MetadataRouter, MethodMapping
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, validate_data

from skclip.utils._arrays import check_weights, take_rows
from skclip.utils._names import check_labels

Members = Sequence[tuple[str, Any]]


def readable_members(members: Any, default: Members) -> Members:
    """Names and classifiers without those that are dropped; none where they cannot be read."""
    if members is None:
        return default
    if not _is_list_of_pairs(members):
        return []
    return [(name, member) for name, member in members if not isinstance(member, str)]


def check_members(ensemble: Any, parameter: str, default: Members, *, kind: str) -> list[tuple[str, Any]]:
    """Names and classifiers of a list that is a parameter of `ensemble`, checked; without those that are dropped.

    Raises
    ------
    ValueError
        If it is no such list, nothing is left of it, or a member is no classifier with ``predict_proba``; `kind` is
        what the message calls one.
    """
    given = getattr(ensemble, parameter)
    members = list(readable_members(given, default))
    if given is not None:
        readable = _is_list_of_pairs(given)
        if not readable or any(isinstance(member, str) and member != "drop" for _, member in given):
            raise ValueError(f"{parameter} must be a list of (name, classifier) or (name, 'drop'); got {given!r}.")
        ensemble._validate_names([name for name, _ in given])
    if not members:
        raise ValueError(f"{parameter} holds no classifier; at least one is needed.")
    ensemble._check_estimators_are_instances([member for _, member in members])
    for name, member in members:
        if not is_classifier(member):
            raise ValueError(f"{kind} {name!r}, {member!r}, is not a classifier.")
        if not hasattr(member, "predict_proba"):
            raise ValueError(
                f"{kind} {name!r}, {member!r}, has no predict_proba, so its confidence cannot be measured; "
                "CalibratedClassifierCV around it gives one."
            )
    return members


def check_ensemble_target(ensemble: Any, X: Any, y: ArrayLike | None) -> NDArray:
    """y as an array of labels, one for each sample of X, whatever X is."""
    if y is not None and not hasattr(y, "dtype"):
        y = check_labels(y)
    y = check_labels(validate_data(ensemble, y=y))
    if y.dtype.kind == "f":  # other kinds cannot be a regression target, and few shots would draw a warning
        check_classification_targets(y)
    check_consistent_length(X, y)
    if not len(y):
        raise ValueError("Found 0 sample(s) in X while a minimum of 1 is required.")
    return y


def check_two_classes(ensemble: Any, classes: NDArray, codes: NDArray, sample_weight: ArrayLike | None) -> None:
    """Refuse labels, or weights, that leave a single class."""
    weights = check_weights(sample_weight, len(codes))
    present = np.unique(codes if weights is None else codes[weights > 0.0])
    if len(present) < 2:
        where = "y holds" if weights is None else "sample_weight leaves"
        labels = classes[present].tolist()
        raise ValueError(f"{where} one class only, {labels}; {type(ensemble).__name__} needs at least two classes.")


def fit_router(ensemble: Any, members: Members) -> MetadataRouter:
    """Routing of metadata from the ``fit`` of the ensemble to that of its members."""
    router = MetadataRouter(owner=ensemble)
    for name, member in members:
        if member is not None:
            router.add(**{name: member}, method_mapping=MethodMapping().add(caller="fit", callee="fit"))
    return router


def fit_clone(member: Any, X: Any, y: ArrayLike | None, fit_params: dict[str, Any]) -> Any:
    return clone(member).fit(X, y, **fit_params)


def params_of_fold(fit_params: dict[str, Any], positions: NDArray, n_samples: int) -> dict[str, Any]:
    """Metadata of some samples: what has an entry for each of `n_samples` is cut, the rest stays."""
    return {
        key: take_rows(value, positions) if hasattr(value, "__len__") and len(value) == n_samples else value
        for key, value in fit_params.items()
    }


def aligned(probabilities: NDArray, known: NDArray, classes: NDArray, name: str) -> NDArray:
    """Columns of the labels `known` as columns of `classes`.

    Unknown classes get 0, and what went to labels outside `classes` is shared out in proportion; equally where there
    is nothing else in a row.

    Parameters
    ----------
    probabilities : ndarray of shape (n, len(known))
    known, classes : ndarray
        Labels.
    name : str
        Whose answers these are, for the error.

    Returns
    -------
    ndarray of shape (n, len(classes)), float64

    Raises
    ------
    ValueError
        If no label is in both.
    """
    places = {label: column for column, label in enumerate(classes.tolist())}
    kept = [(column, places[label]) for column, label in enumerate(np.asarray(known).tolist()) if label in places]
    if not kept:
        raise ValueError(f"{name!r} knows the labels {known[:5].tolist()}, but y holds {classes[:5].tolist()}.")
    columns = np.zeros((len(probabilities), len(classes)))
    sources, targets = np.array(kept).T
    columns[:, targets] = probabilities[:, sources]
    if len(kept) == len(known):
        return columns
    totals = columns.sum(axis=1, keepdims=True)
    return np.divide(columns, totals, out=np.full_like(columns, 1.0 / len(classes)), where=totals > 0.0)


def held_out_splits(cv: Any, y: NDArray, codes: NDArray) -> list[tuple[NDArray, NDArray]] | None:
    """Positions to fit on and to be tried on; None where a number of folds is asked for and no class can be split."""
    if not is_number_of_folds(cv):
        splits = check_cv(cv, y, classifier=True).split(np.zeros((len(y), 1)), y)
        return [(np.asarray(train), np.asarray(test)) for train, test in splits]
    counts = np.bincount(codes)
    several = np.flatnonzero(counts[codes] > 1)
    if not several.size:
        return None
    alone = np.flatnonzero(counts[codes] == 1)
    n_folds = min(5 if cv is None else int(cv), int(counts[counts > 1].min()))
    splitter = check_cv(n_folds, y[several], classifier=True)
    splits = splitter.split(np.zeros((len(several), 1)), codes[several])
    return [(np.sort(np.append(several[train], alone)), several[test]) for train, test in splits]


def is_number_of_folds(cv: Any) -> bool:
    return cv is None or isinstance(cv, Integral)


def _is_list_of_pairs(members: Any) -> bool:
    return isinstance(members, (list, tuple)) and all(
        isinstance(member, (tuple, list)) and len(member) == 2 and isinstance(member[0], str) for member in members
    )
