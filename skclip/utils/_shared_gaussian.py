"""The Gaussian that all classes share: from rows and their classes to a covariance and its inverse."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import has_fit_parameter

from skclip.utils._arrays import unit_rows
from skclip.utils._covariance import (
    SharedGaussian,
    empirical_covariance,
    ks_covariance,
    ledoit_wolf_covariance,
    oas_covariance,
    pseudo_invert,
)
from skclip.utils._moments import ClassMoments, unit_blocks


class Rows(NamedTuple):
    """Training rows as the moments saw them."""

    X: NDArray  # (n, d)
    codes: NDArray  # (n,)
    weights: NDArray | None  # (n,)


def per_view(codes: NDArray, weights: NDArray | None, n_views: int) -> tuple[NDArray, NDArray | None]:
    if n_views == 1:
        return codes, weights
    return np.repeat(codes, n_views), None if weights is None else np.repeat(weights, n_views)


def class_moments(covariance: Any, rows: Rows, n_classes: int) -> ClassMoments:
    moments = ClassMoments.empty(n_classes, rows.X.shape[1])
    moments.add(rows.X, rows.codes, rows.weights, dtype=product_type(covariance, rows.X))
    return moments


def shared_gaussian(covariance: Any, moments: ClassMoments, rows: Rows | None) -> SharedGaussian:
    """`shared_covariance`, and its (pseudo-)inverse."""
    return pseudo_invert(shared_covariance(covariance, moments, rows))


def shared_covariance(covariance: Any, moments: ClassMoments, rows: Rows | None, *, ddof: int = 1) -> NDArray:
    """Covariance of the rows centred by class; of all rows, about their mean, where no class has two different ones.

    Parameters
    ----------
    covariance : str or estimator
    moments : ClassMoments
        Of all rows.
    rows : Rows or None
        The rows themselves; not needed where `covariance` is a function of the moments.
    ddof : int
        What the divisor of "empirical" is less than N.

    Returns
    -------
    ndarray of shape (d, d)
        The identity where all rows are equal.
    """
    n_samples = moments.n_samples
    scatter, centres, is_total = moments.noise()
    if np.trace(scatter) <= 100.0 * moments.resolution * n_samples:
        return np.eye(len(scatter))
    if not isinstance(covariance, str):
        assert rows is not None
        return _fitted_covariance(covariance, rows, centres, moments.inflation)
    if covariance == "ks":
        return ks_covariance(scatter, n_samples)
    if covariance == "oas":
        return oas_covariance(scatter, n_samples)
    if covariance == "ledoit_wolf":
        assert rows is not None
        fourth = moments.inflation * _fourth_moment(rows, centres)
        return ledoit_wolf_covariance(scatter, n_samples, fourth)
    if covariance == "pooled" and not is_total:
        assert rows is not None
        return pooled_covariance(rows, moments.counts * moments.inflation, moments.inflation)
    return empirical_covariance(scatter, n_samples, ddof if covariance == "empirical" else 1)


def pooled_covariance(rows: Rows, counts: NDArray, inflation: float = 1.0) -> NDArray:
    """Mean over the classes with at least two rows of their covariances, divisor ``n_k - 1``.

    Parameters
    ----------
    rows : Rows
    counts : ndarray of shape (K,)
        n_k, `inflation` included.
    inflation : float
        Factor of the weights.
    """
    several = counts > 1.0
    kept = several[rows.codes]
    weights = np.ones(len(rows.codes)) if rows.weights is None else rows.weights
    weights = inflation * weights[kept] / (counts[rows.codes[kept]] - 1.0)
    moments = ClassMoments.empty(len(counts), rows.X.shape[1])
    moments.add(rows.X[kept], rows.codes[kept], weights, dtype=np.float64)
    return moments.raw_within() / several.sum()


def product_type(covariance: Any, X: NDArray) -> Any:
    """Shrinkage hides the rounding of float32 products; a pseudo-inverse would invert it."""
    return X.dtype if isinstance(covariance, str) and covariance in ("ks", "oas") else np.float64


def _fourth_moment(rows: Rows, centres: NDArray) -> float:
    """Weighted sum of the fourth powers of the lengths of the centred rows."""
    fourth = 0.0
    for block, part in unit_blocks(rows.X, np.float64):
        block -= centres[rows.codes[part]]
        powers = np.square(np.einsum("nd,nd->n", block, block))
        fourth += float(powers.sum() if rows.weights is None else powers @ rows.weights[part])
    return fourth


def _fitted_covariance(estimator: Any, rows: Rows, centres: NDArray, inflation: float) -> NDArray:
    """``covariance_`` of a clone of `estimator`, fitted to the centred rows."""
    centred = unit_rows(rows.X.astype(np.float64)) - centres[rows.codes]
    fit_params: dict[str, NDArray] = {}
    if rows.weights is not None:
        weights = rows.weights * inflation
        if has_fit_parameter(estimator, "sample_weight"):
            fit_params["sample_weight"] = weights
        elif np.array_equal(weights, np.floor(weights)):
            centred = np.repeat(centred, weights.astype(np.intp), axis=0)
        else:
            raise ValueError(
                f"covariance={estimator!r} takes no sample_weight; pass whole numbers, which are repeats, or "
                "another covariance."
            )
    fitted = clone(estimator).fit(centred, **fit_params)
    return np.asarray(fitted.covariance_, dtype=np.float64)
