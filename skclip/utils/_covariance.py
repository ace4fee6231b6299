"""One covariance matrix shared by all classes: estimators as pure functions, and its inverse."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, eigh
from scipy.linalg.lapack import dpocon, dpotri, dtrtri

_EPS = np.finfo(np.float64).eps


class SharedGaussian(NamedTuple):
    """The noise of every class.

    Attributes
    ----------
    covariance : ndarray of shape (d, d)
    precision : ndarray of shape (d, d)
        Inverse of `covariance`, its pseudo-inverse where it is singular.
    log_det : float
        Logarithm of the (pseudo-)determinant of `covariance`.
    rank : int
        d, or less where `covariance` is singular.
    """

    covariance: NDArray
    precision: NDArray
    log_det: float
    rank: int


def ks_intensity(n_samples: float, n_features: int) -> float:
    """Shrinkage intensity of the Kubokawa-Srivastava estimator, ``rho = d / (N - 1 + d)``."""
    return n_features / (n_samples - 1.0 + n_features)


def ks_covariance(scatter: NDArray, n_samples: float) -> NDArray:
    """Shrinkage of ``S = scatter / (N - 1)`` to a scaled identity, ``(1 - rho) S + rho tr(S) / d I``.

    Its inverse, times rho, is the precision ``d ((N - 1) S + tr(S) I)^-1`` of [1]_, equation (6).

    References
    ----------
    .. [1] Z. Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024.
    .. [2] T. Kubokawa and M. Srivastava, "Estimation of the precision matrix of a singular Wishart
       distribution and its application in high-dimensional data", Journal of Multivariate Analysis 99(9),
       2008.
    """
    n_features = len(scatter)
    rho = ks_intensity(n_samples, n_features)
    return _shrink(scatter / (n_samples - 1.0), rho)


def empirical_covariance(scatter: NDArray, n_samples: float, ddof: int = 1) -> NDArray:
    """``S = scatter / (N - ddof)``, of the rows centred by class."""
    return scatter / (n_samples - ddof)


def oas_covariance(scatter: NDArray, n_samples: float) -> NDArray:
    """Oracle approximating shrinkage, as `sklearn.covariance.oas` of the N centred rows.

    References
    ----------
    .. [1] Y. Chen et al., "Shrinkage Algorithms for MMSE Covariance Estimation", IEEE Transactions on Signal
       Processing 58(10), 2010.
    """
    n_features = len(scatter)
    covariance = scatter / n_samples
    mean_square = np.mean(np.square(covariance))
    squared_mean = (np.trace(covariance) / n_features) ** 2
    denominator = (n_samples + 1.0) * (mean_square - squared_mean / n_features)
    intensity = 1.0 if denominator <= 0.0 else min((mean_square + squared_mean) / denominator, 1.0)
    return _shrink(covariance, intensity)


def ledoit_wolf_covariance(scatter: NDArray, n_samples: float, fourth_moment: float) -> NDArray:
    """Ledoit-Wolf shrinkage, as `sklearn.covariance.ledoit_wolf` of the N centred rows.

    Parameters
    ----------
    scatter : ndarray of shape (d, d)
        Sum of the outer products of the centred rows.
    n_samples : float
        N.
    fourth_moment : float
        Sum over the centred rows of the fourth power of their length.

    References
    ----------
    .. [1] O. Ledoit and M. Wolf, "A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices",
       Journal of Multivariate Analysis 88(2), 2004.
    """
    n_features = len(scatter)
    covariance = scatter / n_samples
    squared_norm = np.sum(np.square(covariance))
    mean = np.trace(covariance) / n_features
    distance = squared_norm - n_features * mean**2
    noise = (fourth_moment / n_samples - squared_norm) / n_samples
    intensity = 0.0 if distance <= 0.0 else float(np.clip(noise / distance, 0.0, 1.0))
    return _shrink(covariance, intensity)


def invert(covariance: NDArray) -> SharedGaussian:
    """Precision and determinant of a regularised covariance, by Cholesky; O(d^3)."""
    return _inverse(covariance, cholesky(covariance, lower=True))


def pseudo_invert(covariance: NDArray) -> SharedGaussian:
    """Precision and determinant on the space that `covariance` spans; O(d^3).

    By Cholesky where that space is certainly the whole, which takes a fifth of the time; else by eigenvectors.
    Directions with less than ``d * eps`` of the largest variance count as empty, as in `numpy.linalg.pinv`.
    """
    factor = _regular_factor(covariance)
    if factor is not None:
        return _inverse(covariance, factor)
    values, vectors = _spanned(covariance)
    precision = (vectors / values) @ vectors.T
    return SharedGaussian(covariance, precision, float(np.sum(np.log(values))), len(values))


def whitening(covariance: NDArray) -> NDArray:
    """W, (d, rank), such that ``W W^T`` is the precision of `pseudo_invert`; O(d^3).

    Rows centred and multiplied by W have squared lengths that are squared Mahalanobis distances.
    """
    factor = _regular_factor(covariance)
    if factor is None:
        values, vectors = _spanned(covariance)
        return vectors / np.sqrt(values)
    inverse, info = dtrtri(factor, lower=True)
    if info:
        raise np.linalg.LinAlgError(f"dtrtri failed with info={info}.")
    return np.ascontiguousarray(inverse.T)


def _regular_factor(covariance: NDArray) -> NDArray | None:
    """Lower Cholesky factor; None where a direction may be empty in the sense of `pseudo_invert`.

    The reciprocal condition number in the 1-norm is at most the ratio of the smallest variance to the largest; LAPACK
    seldom overestimates it by a factor above 3, and here it may by many thousands.
    """
    try:
        factor = cholesky(covariance, lower=True)
    except np.linalg.LinAlgError:
        return None
    norm = float(np.abs(covariance).sum(axis=0).max())
    reciprocal, info = dpocon(factor, norm, uplo="L")
    return factor if info == 0 and reciprocal > np.sqrt(_EPS) else None


def _inverse(covariance: NDArray, factor: NDArray) -> SharedGaussian:
    """The same from its lower Cholesky factor."""
    precision, info = dpotri(factor, lower=True)
    if info:
        raise np.linalg.LinAlgError(f"dpotri failed with info={info}.")
    lower = np.tril(precision, -1)
    precision = lower + lower.T + np.diag(np.diag(precision))
    return SharedGaussian(covariance, precision, 2.0 * float(np.sum(np.log(np.diag(factor)))), len(covariance))


def _spanned(covariance: NDArray) -> tuple[NDArray, NDArray]:
    """Variances of the directions that are not empty, (r,), and these directions, (d, r)."""
    values, vectors = eigh(covariance)
    kept = values > len(values) * _EPS * max(values[-1], 0.0)
    return values[kept], vectors[:, kept]


def _shrink(covariance: NDArray, intensity: float) -> NDArray:
    """``(1 - intensity) S + intensity tr(S) / d I``."""
    n_features = len(covariance)
    shrunk = (1.0 - intensity) * covariance
    shrunk.flat[:: n_features + 1] += intensity * np.trace(covariance) / n_features
    return shrunk
