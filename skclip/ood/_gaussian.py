"""Gaussians of one covariance in feature space: learning them, and the distance to the nearest of them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import cholesky
from scipy.linalg.blas import dtrmm, strmm

from skclip.ood._detector import KnownRows, in_sample_positions
from skclip.ood._device import resolve_fitted
from skclip.utils._arrays import check_features, first_view, row_batches, unit_rows
from skclip.utils._base import SkclipWarning, stack_level
from skclip.utils._covariance import whitening
from skclip.utils._moments import ClassMoments, unit_blocks
from skclip.utils._params import HasMethods, StrOptions
from skclip.utils._shared_gaussian import Rows, class_moments, per_view, product_type, shared_covariance
from skclip.utils._training import check_chunk, check_directions, check_target

if TYPE_CHECKING:
    import torch

COVARIANCE_CONSTRAINTS: dict[str, list[Any]] = {
    "covariance": [StrOptions({"empirical", "ks", "ledoit_wolf", "oas", "pooled"}), HasMethods(["fit"])],
}

# covariances that are functions of the class moments, so that chunks of rows suffice
_OF_MOMENTS = ("empirical", "ks", "oas")


class Gaussians(NamedTuple):
    """K means and the covariance they share: ``d_k(x) = |(x - location) whitening - means_k|^2``."""

    location: NDArray  # (d,) near the means, so that rounding is that of differences
    whitening: NDArray  # (d, r)
    means: NDArray  # (K, r), whitened


class Learned(NamedTuple):
    """What was estimated from unit rows."""

    means: NDArray  # (K, d), not re-normalised
    covariance: NDArray  # (d, d)
    gaussians: Gaussians


def learn_gaussians(covariance: Any, moments: ClassMoments, rows: Rows | None) -> Learned:
    """Means of the classes and their covariance, of "empirical" with divisor N.

    A class without rows has the mean of all and no part in the distances.
    """
    means, location = moments.means(), moments.centroid()
    matrix = shared_covariance(covariance, moments, rows, ddof=0)
    root = whitening(matrix)
    return Learned(means, matrix, Gaussians(location, root, (means[moments.counts > 0] - location) @ root))


def learn_background(covariance: Any, moments: ClassMoments, rows: Rows | None) -> Learned:
    """The same of all rows as one class: the mean of all, and the covariance about it."""
    one_class = None if rows is None else rows._replace(codes=np.zeros_like(rows.codes))
    return learn_gaussians(covariance, moments.merged(), one_class)


def gather(covariance: Any, known: KnownRows, n_classes: int) -> tuple[ClassMoments, Rows]:
    """Moments of all views of a training set, and the rows that some covariances need besides."""
    rows = Rows(known.X, *per_view(known.codes, None, known.n_views))
    return class_moments(covariance, rows, n_classes), rows


def set_gaussians(estimator: Any, moments: ClassMoments, rows: Rows | None) -> None:
    """Fitted attributes of `estimator`, whose parameter `covariance` says how.

    Warns
    -----
    SkclipWarning
        If the covariance is singular.
    """
    estimator.means_, estimator.covariance_, gaussians = learn_gaussians(estimator.covariance, moments, rows)
    estimator.location_, estimator.whitening_, estimator.whitened_means_ = gaussians
    estimator.rank_ = gaussians.whitening.shape[1]
    if is_of_moments(estimator.covariance):
        estimator.moments_ = asdict(moments)
    if estimator.rank_ < len(estimator.covariance_):
        warn_singular(estimator, int(moments.n_samples))


def warn_singular(estimator: Any, n_rows: int) -> None:
    rank, n_features = estimator.rank_, len(estimator.covariance_)
    warnings.warn(
        f"The covariance={estimator.covariance!r} of {n_rows} rows is singular: rank {rank} of {n_features}. "
        f"{type(estimator).__name__} measures distances in these {rank} directions and ignores the others. Pass more "
        'rows, or covariance="ks", "oas" or "ledoit_wolf", which see every direction.',
        SkclipWarning,
        stacklevel=stack_level(),
    )


def is_of_moments(covariance: Any) -> bool:
    return isinstance(covariance, str) and covariance in _OF_MOMENTS


def adds_up(estimator: Any) -> bool:
    """Whether sums over rows are all that a detector needs; AttributeError telling why not."""
    if not is_of_moments(estimator.covariance):
        raise AttributeError(
            f"partial_fit cannot estimate covariance={estimator.covariance!r} from sums over rows; use "
            f"{', '.join(map(repr, _OF_MOMENTS))}, or fit."
        )
    if isinstance(estimator.calibration, str) and estimator.calibration == "cv":
        raise AttributeError(
            'partial_fit keeps sums and no rows, so nothing can be held out for calibration="cv". Pass "in_sample", '
            "in-distribution pictures of their own, or use fit."
        )
    return True


def continued_moments(estimator: Any, X: Any, y: ArrayLike | None, classes: ArrayLike | None) -> ClassMoments:
    """Those of all chunks so far and of X, y; sets ``classes_`` (and ``n_features_in_``) when it is the first.

    Raises
    ------
    ValueError
        If there are `classes` but no y, a chunk has labels where the first had none, or the other way round, `classes`
        change, or y holds another label.
    """
    first = not hasattr(estimator, "offset_")
    if not first and not hasattr(estimator, "moments_"):
        raise ValueError("partial_fit cannot continue a fit with another covariance, which kept no sums over rows.")
    _check_same_kind(estimator, y, classes, first)
    if y is None:
        X, n_views = check_features(estimator, X, reset=first)
        codes = np.zeros(len(X) // n_views, dtype=np.intp)
        check_directions(X, codes, np.array(["in-distribution"]), n_views)
        estimator.classes_ = None
    else:
        if first and classes is None:
            classes = np.unique(check_target(estimator, y))
        X, codes, _, n_views, _ = check_chunk(estimator, X, y, classes, None, first=first, n_least=1)
    if first:
        moments = ClassMoments.empty(1 if y is None else len(estimator.classes_), estimator.n_features_in_)
    else:
        state: dict[str, Any] = {name: np.copy(value)[()] for name, value in estimator.moments_.items()}
        moments = ClassMoments(**state)
    codes, _ = per_view(codes, None, n_views)
    moments.add(X, codes, dtype=product_type(estimator.covariance, X))
    return moments


def _check_same_kind(estimator: Any, y: ArrayLike | None, classes: ArrayLike | None, first: bool) -> None:
    if y is None and classes is not None:
        raise ValueError("partial_fit got classes but no y; pass the labels of this chunk, or neither.")
    if first or (y is None) == (estimator.classes_ is None):
        return
    had, has = ("no y", "y") if y is not None else ("y", "no y")
    raise ValueError(f"Earlier chunks had {had}, this one has {has}; either all rows have labels or none.")


def nearest_distances(X: NDArray, gaussians: Sequence[Gaussians], device: torch.device | None = None) -> NDArray:
    """Squared Mahalanobis distance of unit rows to the nearest mean, for each of `gaussians`.

    Parameters
    ----------
    X : ndarray of shape (n, d)
        Rows of any length; not modified.
    gaussians : sequence of Gaussians
    device : torch.device or None
        None is NumPy. Otherwise float64 too, but on MPS, which has float32 only.

    Returns
    -------
    ndarray of shape (n, len(gaussians)), float64

    Notes
    -----
    O(n d r + n K r) time. Temporaries stay within scikit-learn's ``working_memory``.
    """
    if device is not None:
        import torch

        return distances_on(device, torch.float32 if device.type == "mps" else torch.float64, X, gaussians)
    distances = np.empty((len(X), len(gaussians)))
    triangular = [not np.tril(known.whitening, -1).any() for known in gaussians]
    for part in _blocks(X, gaussians):
        rows = unit_rows(X[part].astype(np.float64))
        for column, known in enumerate(gaussians):
            distances[part, column] = _nearest(rows, known, triangular[column])
    return distances


def distances_on(device: torch.device, dtype: torch.dtype, X: NDArray, gaussians: Sequence[Gaussians]) -> NDArray:
    """`nearest_distances` by torch, in `dtype`."""
    import torch

    def there(array: NDArray) -> Any:
        return torch.tensor(array, dtype=dtype, device=device)

    distances = np.empty((len(X), len(gaussians)))
    moved: list[Any] = [Gaussians(*map(there, known)) for known in gaussians]
    for part in _blocks(X, gaussians):
        rows = there(unit_rows(X[part].astype(np.float64)))
        for column, known in enumerate(moved):
            distances[part, column] = _nearest_on_device(rows, known).cpu().numpy()
    return distances


def _blocks(X: NDArray, gaussians: Sequence[Gaussians]) -> Iterator[slice]:
    widest = max(len(known.means) + 2 * known.whitening.shape[1] for known in gaussians)
    return row_batches(len(X), 8 * (widest + 4 * X.shape[1]))


def _nearest(rows: NDArray, known: Gaussians, triangular: bool) -> NDArray:
    """``min_k |z - m_k|^2 = |z|^2 - max_k (2 z . m_k - |m_k|^2)``: one product with all means.

    The whitening of a regular covariance is `triangular`, which halves the work of the other product.
    """
    centred = rows - known.location
    if triangular:
        white = dtrmm(1.0, known.whitening, centred.T, trans_a=1, overwrite_b=1).T
    else:
        white = centred @ known.whitening
    gains = white @ (2.0 * known.means.T)
    gains -= np.einsum("kr,kr->k", known.means, known.means)
    return np.maximum(np.einsum("nr,nr->n", white, white) - gains.max(axis=1), 0.0)


def _nearest_on_device(rows: Any, known: Any) -> Any:
    """`_nearest` of torch tensors."""
    white = (rows - known.location) @ known.whitening
    gains = white @ (2.0 * known.means.T)
    gains -= known.means.square().sum(dim=1)
    return (white.square().sum(dim=1) - gains.max(dim=1).values).clamp(min=0.0)


def in_sample_scores(estimator: Any, X: Any, y: ArrayLike | None, background: Learned | None) -> NDArray | None:
    """Scores for the threshold whose quantile at `contamination` is exact; those clearly above it are lower bounds.

    A row's score is at least ``-d_y(x) + d_0(x)``, y being its own class: one product with a triangular matrix, in
    float32 with a bound on its rounding, instead of one with all means in float64. Only the rows for which that may
    lie below the quantile are scored: the better classes are told apart, the fewer.

    Parameters
    ----------
    estimator : detector
        With all fitted but the threshold.
    X, y : object
        As `fit` takes them.
    background : Learned or None
        None leaves d_0 out.

    Returns
    -------
    ndarray of shape (n,) or None
        Of the pictures that `in_sample_positions` draws. None where every one of these has to be scored: where the
        bound has no use, or scores are an accelerator's.
    """
    if not _is_in_sample(estimator.calibration) or resolve_fitted(estimator.device) is not None:
        return None
    rows = first_view(*check_features(estimator, X))
    if len(rows) <= rows.shape[1]:
        return None
    codes = np.zeros(len(rows), dtype=np.intp)
    if y is not None:
        codes = np.searchsorted(estimator.classes_, check_target(estimator, y))
    drawn = in_sample_positions(len(rows))
    if drawn is not None:
        rows, codes = rows[drawn], codes[drawn]
    gaussians = Gaussians(estimator.location_, estimator.whitening_, estimator.whitened_means_)
    bounds = own_class_bounds(rows, codes, Learned(estimator.means_, estimator.covariance_, gaussians), background)
    if bounds is None:
        return None
    return exact_tail(bounds, estimator.contamination, lambda positions: estimator._score_rows(rows[positions]))


def exact_tail(bounds: NDArray, share: float, score: Callable[[NDArray], NDArray]) -> NDArray:
    """Lower bounds (n,), with exact values in the place of all that are at or below the quantile at `share`.

    Parameters
    ----------
    bounds : ndarray of shape (n,)
    share : float
        In [0, 1].
    score : callable
        Exact values at positions; asked for the lowest bounds first, and no further than they can matter.
    """
    n_lowest = int(np.ceil(share * (len(bounds) - 1))) + 1
    order, values, limit = np.argsort(bounds), bounds.copy(), np.inf
    start, stop = 0, n_lowest
    while start < len(bounds):
        part = order[start:stop]
        part = part[bounds[part] <= limit]
        if not part.size:
            break
        values[part] = score(part)
        # that many exact values are this low, so no bound above it can belong to one of the lowest
        limit = np.partition(values[order[:stop]], n_lowest - 1)[n_lowest - 1]
        start, stop = stop, stop + n_lowest // 4 + 1
    return values


def _is_in_sample(calibration: Any) -> bool:
    return isinstance(calibration, str) and calibration == "in_sample"


def own_class_bounds(X: NDArray, codes: NDArray, known: Learned, background: Learned | None) -> NDArray | None:
    """At most ``-d_y(x) + d_0(x)`` of each row, (n,); None where that is no concave function of the row.

    With ``u = x - location``, m the class mean about it and ``D = P - P_0`` it is ``-u^T D u + 2 u^T P m - m^T P m``.
    """
    location, root, _ = known.gaussians
    precision = root @ root.T
    slopes = (known.means - location) @ precision
    constants = np.einsum("kd,kd->k", slopes, known.means - location)
    curvature = precision
    if background is not None:
        curvature = precision - background.gaussians.whitening @ background.gaussians.whitening.T
    # raised a little: where K <= d the difference is singular, and rounding would make it indefinite
    raised = curvature + 1e-9 * np.trace(precision) * np.eye(len(curvature))
    try:
        factor = np.asfortranarray(cholesky(raised, lower=True), dtype=np.float32)
    except np.linalg.LinAlgError:
        return None
    # a sum of d products, of factors rounded themselves, and rows rounded on their way here
    eps = float(np.finfo(np.float32).eps)
    of_sums, of_rows = (X.shape[1] + 16) * eps, 8.0 * eps
    size, steepest = np.linalg.norm(factor), 2.0 * np.sqrt(np.einsum("kd,kd->k", slopes, slopes))
    slopes32, location32 = (2.0 * slopes).astype(np.float32), location.astype(np.float32)
    bounds = -constants[codes]
    # scaled in the type of X: float32 may not hold rows of another length
    for unit, part in unit_blocks(X, X.dtype):
        rows = unit.astype(np.float32, copy=False)
        rows -= location32
        own = codes[part]
        bounds[part] += np.einsum("nd,nd->n", rows, slopes32[own])
        rounding = of_sums * np.sqrt(np.einsum("nd,nd->n", rows, rows)) + of_rows
        roots = strmm(1.0, factor, rows.T, lower=1, trans_a=1, overwrite_b=1)
        lengths = np.sqrt((1.0 + of_sums) * np.einsum("dn,dn->n", roots, roots))
        bounds[part] -= np.square(lengths + rounding * size) + rounding * steepest[own]
    return bounds if np.isfinite(bounds).all() else None
