"""Small array helpers of the estimators on feature matrices."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import validate_data

FLOATS = [np.float64, np.float32]


def unit_rows(X: NDArray) -> NDArray:
    """Rows of `X` divided by their Euclidean norm; a zero row stays zero. `X` is not modified."""
    norms = np.sqrt(np.einsum("ij,ij->i", X, X))
    norms[norms == 0.0] = 1.0
    return X / norms[:, None]


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
    X = validate_data(estimator, X, reset=reset, dtype=FLOATS)
    return X, n_views


def first_view(X: NDArray, n_views: int) -> NDArray:
    """View 0 (the plain picture) of the flattened views of `check_features`."""
    return X if n_views == 1 else X[::n_views]
