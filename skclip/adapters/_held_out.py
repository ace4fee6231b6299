"""Scores of pictures under Gaussian models that have not seen them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh

from skclip.utils._arrays import row_batches
from skclip.utils._covariance import ks_intensity
from skclip.utils._moments import ClassMoments

# share of the variance of all pictures that lies within classes, where no class has two pictures that could
# tell
ALONE_NOISE_SHARE = 0.9


class Pictures(NamedTuple):
    """Distinct training pictures, in an order that their values alone decide.

    Attributes
    ----------
    views : ndarray of shape (n, V, d)
        Unit rows.
    codes : ndarray of shape (n,)
        Class of each picture, 0..K-1.
    weights : ndarray of shape (n,)
        Weight of every view of a picture, summed over its repeats.
    """

    views: NDArray
    codes: NDArray
    weights: NDArray

    def take(self, chosen: NDArray) -> Pictures:
        return Pictures(self.views[chosen], self.codes[chosen], self.weights[chosen])

    def flat(self) -> tuple[NDArray, NDArray, NDArray]:
        """Rows, codes and weights with every view as a row."""
        n_views, width = self.views.shape[1:]
        return self.views.reshape(-1, width), np.repeat(self.codes, n_views), np.repeat(self.weights, n_views)


def distinct_pictures(rows: NDArray, codes: NDArray, weights: NDArray, n_views: int) -> Pictures:
    """Merge repeats, so that a picture that is left out is left out wholly.

    Parameters
    ----------
    rows : ndarray of shape (n * n_views, d)
        Unit rows; the views of a picture follow each other.
    codes, weights : ndarray of shape (n,)
        Class and weight of each picture.
    n_views : int
    """
    views = rows.reshape(len(codes), n_views, -1)
    _, first, group = np.unique(same_pictures(views, codes), return_index=True, return_inverse=True)
    return Pictures(views[first], codes[first], np.bincount(group, weights=weights))


def same_pictures(rows: NDArray, codes: NDArray) -> NDArray:
    """A number for each picture, (n,), equal for those of one class with equal values, ascending by the values.

    Parameters
    ----------
    rows : ndarray of shape (n, ...)
    codes : ndarray of shape (n,)
        Class of each picture.
    """
    flat = np.ascontiguousarray(rows.reshape(len(codes), -1) + 0.0)  # + 0.0 turns -0.0 into 0.0: equal, equal bytes
    keys = flat.view(np.dtype((np.void, flat.dtype.itemsize * flat.shape[1]))).ravel()
    contents = np.unique(keys, return_inverse=True)[1].ravel().astype(np.int64)
    return contents * (codes.max() + 1) + codes


def leave_one_out_scores(
    pictures: Pictures, log_priors: NDArray, *, unit_scale: bool
) -> Iterator[tuple[NDArray, slice]]:
    """Class scores of each picture under the "ks" model fitted without it, in closed form.

    Leaving out picture i with its V views and weight w (w_i = V w in all) moves the mean of its class by
    ``-w_i / (n_k - w_i) zbar_i``, zbar_i the mean of its centred views, and takes ``U_i^T U_i`` from the
    scatter matrix, where ``U_iv = sqrt(w) (z_iv + (sqrt(n_k / (n_k - w_i)) - 1) zbar_i)``: a change of rank
    V. N and the trace, on which the shrinkage depends, are those of the remaining rows. In the eigenvectors
    of the scatter matrix the shrunk matrix is diagonal whatever its ridge, so one decomposition and a V x V
    inverse per picture (Woodbury) give the exact inverse.

    The mean of the left-out class rests on one picture less than it will at prediction: it is longer by
    noise, and so ``mu P mu`` is larger, which would hold the Gaussian term back by far too much at few
    shots. The expected difference, ``tr(P Sigma) (v' - v) / 2`` with v and v' the variance factors of the
    mean with and without the picture, is added to its score; ``tr(P Sigma)`` is the mean squared length of
    left-out pictures, measured with the precision that has not seen them.

    A picture that is alone in its class gets the score that it would have on average if its class had been
    known by one other picture, ``x P x / 2 - tr(P Sigma)``. Where all are alone, ``tr(P Sigma)`` is taken to
    be 0.9 of what the scatter of all pictures gives.

    Parameters
    ----------
    pictures : Pictures
    log_priors : ndarray of shape (K,)
    unit_scale : bool
        False multiplies the precision by the rho of all rows.

    Yields
    ------
    scores : ndarray of shape (m, K)
        Of view 0 of the pictures ``part``.
    part : slice

    Notes
    -----
    O(d^3 + n V K d).
    """
    n_views, n_features = pictures.views.shape[1:]
    moments = ClassMoments.empty(len(log_priors), n_features)
    moments.add(*pictures.flat(), dtype=np.float64)
    model = _Model.of(moments, unit_scale)
    own = _Own.of(pictures, moments)
    bytes_per_picture = 8 * (len(log_priors) * (2 * n_views + 4) + n_features * (4 * n_views + 4))
    batches = list(row_batches(len(pictures.codes), bytes_per_picture))
    spread = _spread(pictures, model, own, batches)
    for part in batches:
        codes = pictures.codes[part]
        scores = _downdate(pictures, part, model, own).scores(model.means, codes)
        noise = own.variance_without[part] - own.variance_with[part]
        noise[own.alone[part]] = -2.0
        scores[np.arange(len(scores)), codes] += 0.5 * spread * noise
        yield scores + log_priors, part


def _spread(pictures: Pictures, model: _Model, own: _Own, batches: list[slice]) -> float:
    """``tr(P Sigma)``, Sigma the covariance of pictures about their class."""
    if own.alone.all():
        ridge = model.values.sum() / (model.n_samples - 1.0)
        total = np.sum(model.values / (model.values + ridge)) / (model.n_samples - 1.0)
        return ALONE_NOISE_SHARE * float(model.factor(model.n_samples) * total)
    squares = sum(
        _downdate(pictures, part, model, own).squared_lengths(own.variance_without[part], ~own.alone[part])
        for part in batches
    )
    return squares / float(pictures.weights[~own.alone].sum())


class _Model(NamedTuple):
    """The model of all rows, in the eigenvectors of its scatter matrix."""

    values: NDArray  # (d,)
    vectors: NDArray  # (d, d)
    means: NDArray  # (K, d)
    n_samples: float
    unit_scale: bool

    @classmethod
    def of(cls, moments: ClassMoments, unit_scale: bool) -> _Model:
        values, vectors = eigh(moments.noise()[0])
        # equal rows have no scatter; any will do
        values = np.maximum(values, 0.0) if values[-1] > 0.0 else np.ones_like(values)
        return cls(values, vectors, moments.means() @ vectors, moments.n_samples, unit_scale)

    def factor(self, n_samples: Any) -> Any:
        """What ``(scatter + ridge I)^-1`` is multiplied by: d / rho of `n_samples`, times 1 or rho of all."""
        n_features = len(self.values)
        factor = n_samples - 1.0 + n_features
        return factor if self.unit_scale else factor * ks_intensity(self.n_samples, n_features)


class _Own(NamedTuple):
    """What a picture is to its own class, each of shape (n,)."""

    weight: NDArray  # of all its views
    remaining: NDArray  # weight of the class without it
    variance_with: NDArray  # of the class mean, in units of the variance of one picture
    variance_without: NDArray
    alone: NDArray  # whether it is the only picture of its class

    @classmethod
    def of(cls, pictures: Pictures, moments: ClassMoments) -> _Own:
        weight = pictures.weights * pictures.views.shape[1]
        counts = moments.counts[pictures.codes]
        squares = np.bincount(pictures.codes, weights=weight**2, minlength=len(moments.counts))[pictures.codes]
        alone = np.bincount(pictures.codes, minlength=len(moments.counts))[pictures.codes] == 1
        # the class of a picture that is alone cannot do without it: nothing is taken from its mean
        remaining = np.where(alone, np.inf, np.maximum(counts - weight, np.finfo(np.float64).eps * counts))
        without = np.maximum(squares - weight**2, 0.0) / remaining**2
        return cls(weight, remaining, squares / counts**2, without, alone)


class _Downdate(NamedTuple):
    """Models without one picture each, in the eigenvectors of the common scatter matrix."""

    picture: NDArray  # (m, d) view 0
    centre: NDArray  # (m, d) mean of the centred views
    own_mean: NDArray  # (m, d) class mean without the picture
    diagonal: NDArray  # (m, d) inverse of eigenvalue + ridge
    scaled: NDArray  # (m, V, d) U times the diagonal
    core: NDArray  # (m, V, V) inverse of I - U diag U^T
    factor: NDArray  # (m,) what the inverse is multiplied by
    growth: NDArray  # (m,) n_k / (n_k - w_i)
    weights: NDArray  # (m,)

    def squared_lengths(self, variance_without: NDArray, chosen: NDArray) -> float:
        """Weighted sum of ``(xbar_i - mu_i)^T P_i (xbar_i - mu_i) / (1 + v'_i)``: tr(P Sigma), estimated."""
        along = np.einsum("mvd,md->mv", self.scaled, self.centre)
        length = np.einsum("md,md,md->m", self.centre, self.diagonal, self.centre)
        length += np.einsum("mv,mvw,mw->m", along, self.core, along)
        length *= self.factor * self.growth**2 / (1.0 + variance_without)
        return float(self.weights[chosen] @ length[chosen])

    def scores(self, means: NDArray, codes: NDArray) -> NDArray:
        """``mu_k P_i x_i - mu_k P_i mu_k / 2``, (m, K), with the own class's mean shifted."""
        n_pictures, n_views, n_features = self.scaled.shape
        along = np.einsum("mvd,md->mv", self.scaled, self.picture)
        solved = np.einsum("mvw,mw->mv", self.core, along)
        towards = (self.scaled.reshape(-1, n_features) @ means.T).reshape(n_pictures, n_views, -1)
        scores = (self.diagonal * self.picture) @ means.T + np.einsum("mvk,mv->mk", towards, solved)
        scores -= 0.5 * (self.diagonal @ np.square(means).T)
        scores -= 0.5 * np.einsum("mvk,mvk->mk", towards, self.core @ towards)
        own_towards = np.einsum("mvd,md->mv", self.scaled, self.own_mean)
        own = np.einsum("md,md,md->m", self.own_mean, self.diagonal, self.picture - 0.5 * self.own_mean)
        own += np.einsum("mv,mv->m", own_towards, solved)
        own -= 0.5 * np.einsum("mv,mvw,mw->m", own_towards, self.core, own_towards)
        scores[np.arange(n_pictures), codes] = own
        return self.factor[:, None] * scores


def _downdate(pictures: Pictures, part: slice, model: _Model, own: _Own) -> _Downdate:
    codes, weights = pictures.codes[part], pictures.weights[part]
    views = pictures.views[part].astype(np.float64) @ model.vectors
    centred = views - model.means[codes][:, None]
    centre = centred.mean(axis=1)
    ratio = own.weight[part] / own.remaining[part]
    lift = np.sqrt(1.0 + ratio) - 1.0
    removed = np.sqrt(weights)[:, None, None] * (centred + lift[:, None, None] * centre[:, None])
    # two effective rows: fewer would leave no degree of freedom, which only weights far apart can bring about
    remaining = np.maximum(model.n_samples - own.weight[part], 2.0)
    scatter = model.values.sum()
    trace = scatter - np.einsum("mvd,mvd->m", removed, removed)
    ridge = np.maximum(trace, np.finfo(np.float64).eps * scatter) / (remaining - 1.0)
    diagonal = 1.0 / (model.values + ridge[:, None])
    scaled = removed * diagonal[:, None]
    return _Downdate(
        picture=views[:, 0],
        centre=centre,
        own_mean=np.where(own.alone[part, None], views[:, 0], model.means[codes] - ratio[:, None] * centre),
        diagonal=diagonal,
        scaled=scaled,
        core=np.linalg.inv(np.eye(views.shape[1]) - scaled @ removed.transpose(0, 2, 1)),
        factor=model.factor(remaining),
        growth=1.0 + ratio,
        weights=weights,
    )


def stratified_folds(codes: NDArray, n_folds: int) -> NDArray:
    """Fold of each picture, (n,): the pictures of a class take turns, in their order."""
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], codes[order])
    folds = np.empty(len(codes), dtype=np.intp)
    folds[order] = (np.arange(len(codes)) - starts) % n_folds
    return folds
