"""Small array helpers of the estimators on feature matrices."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn import get_config
from sklearn.utils import check_array, gen_batches
from sklearn.utils.validation import validate_data

FLOATS = [np.float64, np.float32]


def unit_rows(X: NDArray) -> NDArray:
    """Rows of `X` divided by their Euclidean norm; a zero row stays zero. `X` is not modified."""
    squares = np.einsum("ij,ij->i", X, X)
    # squares of very short or very long rows leave the range of the type; their directions are fine
    limits = np.finfo(X.dtype)
    extreme = np.flatnonzero(~((squares > limits.tiny / limits.eps) & (squares < limits.max)))
    if extreme.size:
        X, squares = X.copy(), squares.copy()
        largest = np.abs(X[extreme]).max(axis=1, initial=0.0, keepdims=True)
        X[extreme] /= np.where(largest > 0.0, largest, 1.0)
        squares[extreme] = np.maximum(np.einsum("ij,ij->i", X[extreme], X[extreme]), largest[:, 0] == 0.0)
    return X / np.sqrt(squares)[:, None]


def check_features(estimator: Any, X: Any, *, reset: bool = False) -> tuple[NDArray, int]:
    """Validate feature X, (n, d) or (n, V, d) views, as scikit-learn would.

    Views are reshaped before `validate_data`, so that ``n_features_in_`` is d.

    Returns
    -------
    X : ndarray of shape (n * V, d), float32 or float64
        Row ``i * V + v`` is view v of picture i.
    n_views : int
        V; 1 for a 2-D `X`.
    """
    n_views = 1
    if getattr(X, "ndim", 2) == 3:
        X = np.asarray(X)
        n_views = X.shape[1]
        if n_views == 0:
            raise ValueError(f"X holds 0 views per sample (shape={X.shape}) while a minimum of 1 is required.")
        X = X.reshape(-1, X.shape[2])
    try:
        X = validate_data(estimator, X, reset=reset, dtype=FLOATS)
    except ValueError as error:
        place = _first_not_finite(X, n_views)
        if place is None:
            raise
        raise ValueError(f"{str(error).splitlines()[0]} The first is {place}.") from error
    return X, n_views


def _first_not_finite(X: Any, n_views: int) -> str | None:
    """The first NaN or infinity as the user would index it; None if there is none or X is no numeric matrix."""
    if np.iscomplexobj(X):
        return None
    try:
        bad = np.argwhere(~np.isfinite(np.asarray(X, dtype=np.float64)))
    except (TypeError, ValueError):
        return None
    if bad.ndim != 2 or bad.shape[1] != 2 or len(bad) == 0:
        return None
    row, column = bad[0].tolist()
    return f"X[{row}, {column}]" if n_views == 1 else f"X[{row // n_views}, {row % n_views}, {column}]"


def first_view(X: NDArray, n_views: int) -> NDArray:
    """View 0 (the plain picture) of the flattened views of `check_features`."""
    return X if n_views == 1 else X[::n_views]


def check_prototypes(prototypes: Any, name: str) -> NDArray:
    """One row per class, (K, d), float32 or float64; ValueError naming the first without a direction."""
    rows = check_array(prototypes, dtype=FLOATS, input_name=name)
    zero = np.flatnonzero(~rows.any(axis=1))
    if zero.size:
        raise ValueError(f"{name}[{zero[0]}] is all zeros; a class needs a direction.")
    return rows


def check_weights(sample_weight: ArrayLike | None, n_samples: int) -> NDArray | None:
    """Weights as float64 of shape (n,), or None; a number is the weight of every sample.

    Raises
    ------
    ValueError
        If there are too many or too few, one is negative, NaN or infinite, or all are zero.
    """
    if sample_weight is None:
        return None
    weights = np.asarray(sample_weight)
    if weights.ndim == 0:
        weights = np.full(n_samples, float(weights))
    weights = check_array(weights, ensure_2d=False, dtype=np.float64, input_name="sample_weight")
    if weights.ndim != 1:
        raise ValueError(f"sample_weight must be 1D, one weight per sample; got shape {weights.shape}.")
    if len(weights) != n_samples:
        raise ValueError(f"sample_weight.shape == {weights.shape}, expected ({n_samples},).")
    negative = np.flatnonzero(weights < 0)
    if negative.size:
        raise ValueError(f"sample_weight[{negative[0]}] is {weights[negative[0]]}; weights must not be negative.")
    if not weights.any():
        raise ValueError("Every sample_weight is zero; at least one sample must have a positive weight.")
    return weights


def row_batches(n_rows: int, bytes_per_row: int) -> Iterator[slice]:
    """Consecutive slices of rows whose temporaries stay within scikit-learn's ``working_memory``."""
    most = int(get_config()["working_memory"] * 2**20) // max(1, bytes_per_row)
    return gen_batches(n_rows, max(1, most))


def take_rows(X: Any, positions: NDArray) -> Any:
    """Samples of a matrix, a table or a sequence of pictures."""
    if hasattr(X, "iloc"):
        return X.iloc[positions]
    if hasattr(X, "shape"):
        return X[positions]
    if not hasattr(X, "__getitem__"):
        return np.asarray(X)[positions]
    return [X[position] for position in positions.tolist()]
