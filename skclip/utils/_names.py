"""Which name belongs to which label: pure functions, aligned by label and never by position.

scikit-learn sorts labels. Of the first ten ImageNet classes, eight names move when the names are sorted, so a
list of names can only be trusted where its order does not matter or is the order of the labels 0, 1, 2, ...
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

ClassNames = Mapping[Any, str] | Sequence[str]


def check_labels(labels: Any, *, name: str = "y") -> NDArray:
    """One-dimensional array of labels of one type.

    Parameters
    ----------
    labels : array-like of shape (n,)
        Strings, integers, booleans or floats.
    name : str
        The parameter that errors name.

    Returns
    -------
    ndarray of shape (n,)
        Never of dtype object.

    Raises
    ------
    TypeError
        If the labels mix strings, booleans and numbers, or hold anything else: NumPy would turn such a list
        silently into strings.
    ValueError
        If they are not one-dimensional, or one of them is NaN.
    """
    array = labels if isinstance(labels, np.ndarray) else np.asarray(labels, dtype=object)
    if array.ndim == 2 and array.shape[1] == 1:
        array = array.ravel()
    if array.ndim != 1:
        raise ValueError(f"{name} must be one-dimensional, one label each; got shape {array.shape}.")
    if array.dtype.kind not in "Ubiuf":
        array = _array_of_one_kind(array.tolist(), name)
    if array.dtype.kind == "f" and np.isnan(array).any():
        position = int(np.flatnonzero(np.isnan(array))[0])
        raise ValueError(f"{name} contains NaN at position {position}; every label must be known.")
    return array


def _array_of_one_kind(labels: list[Any], name: str) -> NDArray:
    first: str | None = None
    for position, label in enumerate(labels):
        kind = _kind(label)
        if kind is None:
            raise TypeError(
                f"{name}[{position}] is {label!r} of type {type(label).__name__}; labels are strings, "
                "integers, booleans or floats, all of one kind."
            )
        first = first or kind
        if kind != first:
            raise TypeError(
                f"{name} holds labels of mixed type: {name}[0] is {labels[0]!r} ({first}) but "
                f"{name}[{position}] is {label!r} ({kind}). Use one type for all labels."
            )
    return np.asarray(labels, dtype=str if first == "string" else None)


def _kind(label: Any) -> str | None:
    if isinstance(label, str):
        return "string"
    if isinstance(label, bool | np.bool_):
        return "boolean"
    return "number" if isinstance(label, Real) else None


def rows_of_labels(classes: ArrayLike, labels: ArrayLike, *, what: str = "y", source: str = "classes") -> NDArray:
    """Position in `classes` of each of `labels`.

    Parameters
    ----------
    classes : array-like of shape (K,)
        Distinct labels, in any order.
    labels : array-like of shape (m,)
        Labels to look up. A string never equals a number.
    what, source : str
        How an error names `labels` and `classes`.

    Returns
    -------
    ndarray of shape (m,), intp

    Raises
    ------
    ValueError
        If a label is not among `classes`, naming it.
    """
    rows = {label: row for row, label in enumerate(np.asarray(classes).tolist())}
    wanted = np.asarray(labels).tolist()
    unknown = [label for label in wanted if label not in rows]
    if unknown:
        raise ValueError(f"{what} holds {_listed(unknown)}, unknown to {source}. Known labels: {_listed(list(rows))}.")
    return np.array([rows[label] for label in wanted], dtype=np.intp)


def align_names(class_names: ClassNames, labels: ArrayLike | None = None) -> tuple[NDArray, list[str]]:
    """Labels and their names, in the order of ``np.unique`` over the labels.

    Parameters
    ----------
    class_names : {label: str} or list of str
        A list is accepted only where it cannot be misread: where the labels are 0..K-1, or are the names.
    labels : array-like of shape (m,), default=None
        What is known of the labels: those of y, repeated or not; some of the K may be absent. With None, a
        list of names is its own labels.

    Returns
    -------
    classes : ndarray of shape (K,)
        Distinct labels, sorted.
    names : list of str
        ``names[k]`` is the name of ``classes[k]``.

    Raises
    ------
    TypeError
        If `class_names` is neither a mapping nor a list of strings.
    ValueError
        If a label has no name, or a list could be misread; the message shows the dict to write.
    """
    if isinstance(class_names, Mapping):
        return _names_from_mapping(class_names, labels)
    names = check_name_list(class_names)
    present = None if labels is None else np.unique(check_labels(labels, name="labels"))
    if present is not None and _are_positions(present, len(names)):
        return np.arange(len(names)), names
    if present is not None and not set(present.tolist()) <= set(names):
        raise ValueError(_ambiguous(names, present))
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"class_names repeats {_listed(twice)}, and without a dict the names are the labels. Write a "
            "dict {label: name}; two labels may then share a name."
        )
    classes, order = np.unique(np.asarray(names, dtype=str), return_index=True)
    return classes, [names[i] for i in order]


def check_name_list(class_names: Any) -> list[str]:
    """`class_names` as a list of str; TypeError or ValueError naming the entry that is not a usable name."""
    if isinstance(class_names, str) or not isinstance(class_names, Sequence | np.ndarray):
        raise TypeError(
            f"class_names must be a dict {{label: name}} or a list of names; got {class_names!r} "
            f"of type {type(class_names).__name__}."
        )
    names = [_checked_name(name, f"class_names[{i}]") for i, name in enumerate(class_names)]
    if not names:
        raise ValueError("class_names is empty; at least one class is needed.")
    return names


def _names_from_mapping(class_names: Mapping[Any, str], labels: ArrayLike | None) -> tuple[NDArray, list[str]]:
    if not class_names:
        raise ValueError("class_names is empty; at least one class is needed.")
    keys = check_labels(list(class_names), name="the keys of class_names")
    texts = [_checked_name(name, f"class_names[{label!r}]") for label, name in class_names.items()]
    classes, order = np.unique(keys, return_index=True)
    if labels is not None:
        present = np.unique(check_labels(labels, name="labels"))
        rows_of_labels(classes, present, what="y", source="class_names")
    return classes, [texts[i] for i in order]


def _checked_name(name: Any, where: str) -> str:
    if not isinstance(name, str):
        raise TypeError(f"{where} is {name!r} of type {type(name).__name__}; a name is a str.")
    if not name.strip():
        raise ValueError(f"{where} is an empty name.")
    return str(name)


def _are_positions(labels: NDArray, n_names: int) -> bool:
    """Whether distinct `labels` are whole numbers among 0..n_names-1."""
    if labels.dtype.kind not in "iuf" or labels.size == 0:
        return False
    return bool(labels.min() >= 0 and labels.max() < n_names and np.all(labels == np.floor(labels)))


def _ambiguous(names: list[str], present: NDArray) -> str:
    shown = present[:3].tolist()
    pattern = ", ".join(f"{label!r}: <its name>" for label in shown)
    more = ", ..." if len(present) > 3 or len(names) > len(shown) else ""
    return (
        f"class_names is a list of {len(names)} names ({_listed(names)}), but the labels "
        f"({_listed(present.tolist())}) are neither 0..{len(names) - 1} nor among the names, and labels are "
        f"sorted, so position does not tell which name belongs to which label. Write "
        f"class_names={{{pattern}{more}}}."
    )


def _listed(values: Iterable[Any], most: int = 5) -> str:
    """At most `most` values as they would be typed, then how many are left."""
    values = list(values)
    text = ", ".join(repr(int(v) if isinstance(v, Integral) and not isinstance(v, bool) else v) for v in values[:most])
    left = len(values) - most
    return text + (f" and {left} more" if left > 0 else "")
