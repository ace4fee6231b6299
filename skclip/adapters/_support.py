"""Support pictures that vote by affinity and by divergence, and how much either vote should weigh."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import convolve1d

from skclip.adapters._cache import Cache, affinity_votes, cache_logits, sum_votes
from skclip.adapters._held_out import same_pictures
from skclip.adapters._mixing import HeldOut, alpha_of_spread, best_alpha
from skclip.adapters._signatures import (
    Apart,
    Ranges,
    Signature,
    affinity_range,
    divergence_logits,
    divergence_range,
    divergence_sums,
    signature_sums,
    spread_out,
)
from skclip.adapters._text import ClassText, fitted_text
from skclip.adapters._training import Training
from skclip.utils._arrays import row_batches, unit_rows
from skclip.utils._base import SkclipWarning
from skclip.utils._cosine import cosine_logits

# what "cv" tries; a share is the spread of a term over the classes in units of the zero-shot logits' spread
BETAS = np.geomspace(1.0, 64.0, 7)
ALPHA_SHARES = np.geomspace(0.01, 100.0, 17)
GAMMA_SHARES = np.geomspace(0.01, 10.0, 10)
DELTAS = np.linspace(0.0, 1.0, 6)

# of all terms together where there is no text, and only probabilities depend on it
_FACTOR_BOUNDS = (1e-4, 1e4)

# so many pictures are left out in turn, of as many as there are
_MOST_LEFT_OUT = 4096


class Weights(NamedTuple):
    """The numbers of the method; "cv" where one is to be chosen."""

    alpha: Any
    beta: Any
    gamma: Any
    delta: Any = 0.0


# instead of "cv" where every class has a single picture
DOCUMENTED = Weights(1.0, 1.0, 1.0, 0.5)


class Support(NamedTuple):
    """Support pictures, sorted by class.

    Attributes
    ----------
    cache : Cache
        Of the pictures alone.
    queries : ndarray of shape (m, d)
        Unit rows, each picture as prediction would meet it: view 0.
    captions : ndarray of shape (m, d) or None
        Unit rows.
    groups : ndarray of shape (m,)
        Equal for repeats of a picture, whatever their captions.
    """

    cache: Cache
    queries: NDArray
    captions: NDArray | None
    groups: NDArray

    @classmethod
    def of(cls, training: Training, n_classes: int, captions: NDArray | None = None) -> Support:
        cache = Cache.of(training, n_classes)
        queries = cache.keys
        if training.n_views > 1:
            queries = unit_rows(training.X[:: training.n_views])[cache.order]
        captions = None if captions is None else captions[cache.order]
        return cls(cache, queries, captions, same_pictures(cache.keys, cache.codes))

    def keys(self, delta: float) -> NDArray:
        """What affinities are taken with, (m, d)."""
        return blended_keys(self.cache.keys, self.captions, delta)

    def counts(self) -> NDArray:
        """Sum of the weights of each class, (K,)."""
        return np.bincount(self.cache.codes, weights=self.cache.weights, minlength=self.cache.n_classes)

    def distinct(self) -> NDArray:
        """Position of the first repeat of each picture, in an order that the values alone decide."""
        return np.unique(self.groups, return_index=True)[1]

    def measured(self) -> tuple[NDArray, Apart]:
        """Pictures that tell the ranges, (n, d), and which keys are themselves."""
        chosen = self.distinct()
        chosen = chosen[spread_out(len(chosen))]
        return self.cache.keys[chosen], Apart(self.groups[chosen], self.groups)

    def affinity_range(self, delta: float) -> tuple[float, float]:
        pictures, apart = self.measured()
        return affinity_range(pictures, self.keys(delta), apart)

    def divergence_range(self, signature: Signature) -> tuple[float, float]:
        pictures, apart = self.measured()
        return divergence_range(pictures, self.cache.keys, signature, apart)


def blended_keys(images: NDArray, captions: NDArray | None, delta: float) -> NDArray:
    """``(1 - delta) F + delta C``, not normalised, (m, d).

    CapS-Adapter (ACM MM 2024) blends the similarities ``x F^T`` and ``x C^T``, which is the same and costs two
    products.
    """
    if captions is None or delta == 0.0:
        return images
    delta = float(delta)  # a NumPy scalar would turn float32 rows into float64
    return (1.0 - delta) * images + delta * captions.astype(images.dtype, copy=False)


def fit_support(
    estimator: Any, support: Support, signature: Signature | None, text: ClassText | None, asked: Weights
) -> Weights:
    """Set the fitted attributes that SuS-X and CapS-Adapter share; `signature` is None without a divergence term."""
    cache = support.cache
    estimator.keys_, estimator.codes_, estimator.weights_ = cache.keys, cache.codes, cache.weights
    estimator.signature_sums_ = estimator.affinity_range_ = estimator.divergence_range_ = None
    if signature is not None:
        estimator.signature_sums_ = signature_sums(cache.keys, signature, cache.codes, cache.weights, cache.n_classes)
    chosen = choose_weights(estimator, support, signature, text, asked) if "cv" in asked else asked
    estimator.alpha_, estimator.beta_ = float(chosen.alpha), float(chosen.beta)
    estimator.gamma_ = 0.0 if signature is None else float(chosen.gamma)
    if signature is not None and estimator.rescale == "fit":
        estimator.affinity_range_ = np.array(support.affinity_range(float(chosen.delta)))
        estimator.divergence_range_ = np.array(support.divergence_range(signature))
    return chosen


def support_logits(
    estimator: Any, rows: NDArray, signature: Signature | None, captions: NDArray | None = None, delta: float = 0.0
) -> NDArray:
    """Logits of unit rows by what `fit_support` has set, (n, K)."""
    text = fitted_text(estimator)
    if text is not None and estimator.alpha_ == estimator.gamma_ == 0.0:
        return cosine_logits(rows, text.prototypes, text.logit_scale)
    n_classes = len(estimator.classes_)
    keys = blended_keys(estimator.keys_, captions, delta)
    logits = np.zeros((len(rows), n_classes))
    if text is not None:
        logits += cosine_logits(rows, text.prototypes, text.logit_scale)
    if estimator.alpha_ > 0.0:
        order = np.arange(len(keys))
        cache = Cache(keys, estimator.codes_, estimator.weights_, order, n_classes)
        logits += estimator.alpha_ * cache_logits(rows, cache, estimator.beta_)
    if signature is not None and estimator.gamma_ > 0.0:
        if estimator.rescale == "fit":
            ranges = Ranges(tuple(estimator.affinity_range_), tuple(estimator.divergence_range_))
        else:
            ranges = Ranges(affinity_range(rows, keys), divergence_range(rows, estimator.keys_, signature))
        counts = np.bincount(estimator.codes_, weights=estimator.weights_, minlength=n_classes)
        for part in row_batches(len(rows), 8 * (4 * estimator.signature_sums_.shape[1] + 3 * n_classes)):
            totals = divergence_sums(signature(rows[part]), estimator.signature_sums_, counts)
            logits[part] += estimator.gamma_ * divergence_logits(totals, counts, ranges)
    return logits


class _LeftOut(NamedTuple):
    """Support pictures as queries that their own keys do not answer."""

    queries: NDArray  # (n, d)
    codes: NDArray  # (n,)
    weights: NDArray  # (n,) of all repeats
    groups: NDArray  # (n,)
    lift: NDArray  # (n,) weight of the class by its weight without the picture
    keys: NDArray  # (n, d) their own, of pictures alone

    @classmethod
    def of(cls, support: Support) -> _LeftOut:
        """Distinct pictures of classes that have another."""
        _, first, group = np.unique(support.groups, return_index=True, return_inverse=True)
        own = np.bincount(group, weights=support.cache.weights)
        codes = support.cache.codes[first]
        several = np.bincount(codes, minlength=support.cache.n_classes)[codes] > 1
        chosen = np.flatnonzero(several)
        chosen = chosen[spread_out(len(chosen), _MOST_LEFT_OUT)]
        first, codes, own = first[chosen], codes[chosen], own[chosen]
        counts = support.counts()[codes]
        lift = counts / np.maximum(counts - own, np.finfo(np.float64).eps * counts)
        return cls(support.queries[first], codes, own, support.groups[first], lift, support.cache.keys[first])

    def lifted(self, totals: NDArray) -> NDArray:
        """`totals` with the votes of the own class scaled up to the whole class."""
        totals[np.arange(len(totals)), self.codes] *= self.lift
        return totals

    def votes(self, support: Support, keys: NDArray, beta: float) -> NDArray:
        """Cache logits without the own picture, (n, K)."""
        apart = Apart(self.groups, support.groups)

        def votes(rows: slice, columns: slice) -> NDArray:
            tile = affinity_votes(self.queries[rows] @ keys[columns].T, beta)
            tile[apart.own(rows, columns)] = 0.0
            return tile

        cache = support.cache
        return self.lifted(sum_votes(votes, len(self.codes), cache.codes, cache.weights, cache.n_classes))

    def divergences(self, support: Support, signature: Signature, sums: NDArray) -> NDArray:
        """Divergences summed by class without the own picture, (n, K)."""
        log_queries = signature(self.queries)
        totals = divergence_sums(log_queries, sums, support.counts())
        own = np.einsum("ic,ic->i", np.exp(log_queries), log_queries - signature(self.keys))
        totals[np.arange(len(totals)), self.codes] -= self.weights * own
        return self.lifted(totals)


class _Evidence(NamedTuple):
    """The terms of the method on pictures that are left out, each (n, K)."""

    left: _LeftOut
    support: Support
    zero_shot: NDArray | None
    totals: NDArray | None  # divergences summed by class
    divergence_range: tuple[float, float]

    @classmethod
    def of(cls, support: Support, signature: Signature | None, sums: NDArray | None, text: ClassText | None) -> Self:
        left = _LeftOut.of(support)
        zero_shot = totals = None
        if text is not None:
            zero_shot = cosine_logits(left.queries, text.prototypes, text.logit_scale).astype(np.float64)
        divergence = (0.0, 0.0)
        if signature is not None and sums is not None:
            totals, divergence = left.divergences(support, signature, sums), support.divergence_range(signature)
        return cls(left, support, zero_shot, totals, divergence)

    def votes(self, delta: float, beta: float) -> NDArray:
        return self.left.votes(self.support, self.support.keys(delta), beta)

    def divergence(self, delta: float) -> NDArray | None:
        if self.totals is None:
            return None
        ranges = Ranges(self.support.affinity_range(delta), self.divergence_range)
        return divergence_logits(self.totals, self.support.counts(), ranges)

    def unit(self, reference: NDArray, term: NDArray) -> float:
        """What gives `term` the spread of `reference` over the classes."""
        unit = alpha_of_spread([self.held_out(reference, term)], 1.0, (0.0, np.inf))
        return unit if np.isfinite(unit) else 1.0

    def held_out(self, zero_shot: NDArray | None, few_shot: NDArray) -> HeldOut:
        return HeldOut(zero_shot, few_shot, self.left.codes, self.left.weights)


def choose_weights(
    estimator: Any, support: Support, signature: Signature | None, text: ClassText | None, asked: Weights
) -> Weights:
    """Numbers for what is asked as "cv", from support pictures that are left out in turn.

    A picture is left out with its repeats, and the votes of its own class are scaled up to the whole class again.
    Taken is the point of the grid that gets most pictures right, averaged over its neighbours; of equals the middle.

    Parameters
    ----------
    estimator : object
        With ``classes_`` and ``signature_sums_``.
    support : Support
    signature : callable or None
    text : ClassText or None
    asked : Weights
    """
    n_pictures = np.bincount(support.cache.codes[support.distinct()])
    if n_pictures.min() < 2:
        _warn_of_single_pictures(estimator, n_pictures, asked)
    if n_pictures.max() < 2:
        return Weights(*(default if value == "cv" else value for value, default in zip(asked, DOCUMENTED)))
    evidence = _Evidence.of(support, signature, estimator.signature_sums_, text)
    # without text, a common factor of all terms says nothing about accuracy
    scale_is_free = text is None and asked.alpha == "cv" and (signature is None or asked.gamma in ("cv", 0))
    tried = Weights(
        np.ones(1) if scale_is_free else _tried(asked.alpha, ALPHA_SHARES),
        _tried(asked.beta, BETAS),
        np.zeros(1) if signature is None else _tried(asked.gamma, GAMMA_SHARES),
        _tried(asked.delta, DELTAS),
    )
    right = np.empty((len(tried.delta), len(tried.beta), len(tried.gamma), len(tried.alpha)))
    units = np.ones((*right.shape[:2], 2))
    for d, delta in enumerate(tried.delta):
        divergence = evidence.divergence(delta)
        for b, beta in enumerate(tried.beta):
            votes = evidence.votes(delta, beta)
            units[d, b] = _units(evidence, votes, divergence, asked)
            alphas, gammas = units[d, b, 0] * tried.alpha, units[d, b, 1] * tried.gamma
            right[d, b] = _right_on_grid(evidence, votes, divergence, alphas, gammas)
    d, b, g, a = middle_of_best(right)
    found = Weights(units[d, b, 0] * tried.alpha[a], tried.beta[b], units[d, b, 1] * tried.gamma[g], tried.delta[d])
    return _calibrated(evidence, found) if scale_is_free else found


def right_along(base: NDArray, direction: NDArray, codes: NDArray, weights: NDArray, steps: NDArray) -> NDArray:
    """Weight of the rows whose largest entry of ``base + step * direction`` is that of their class, for each step >= 0.

    A row is right between the steps at which other classes draw level, so that all steps cost one pass. A tie is
    wrong.

    Parameters
    ----------
    base, direction : ndarray of shape (n, K)
    codes, weights : ndarray of shape (n,)
    steps : ndarray of shape (n_steps,)

    Returns
    -------
    ndarray of shape (n_steps,)
    """
    right = np.zeros(len(steps))
    for part in row_batches(len(base), 40 * base.shape[1]):
        own = np.arange(len(base[part])), codes[part]
        lead = base[part][own][:, None] - base[part]
        gain = direction[part][own][:, None] - direction[part]
        lead[own] = np.inf
        with np.errstate(divide="ignore", invalid="ignore"):
            level = -lead / gain
        above = np.max(level, axis=1, where=gain > 0.0, initial=-np.inf)
        below = np.min(level, axis=1, where=gain < 0.0, initial=np.inf)
        below[np.any((gain == 0.0) & (lead <= 0.0), axis=1)] = -np.inf
        is_right = (above[:, None] < steps) & (steps < below[:, None])
        right += weights[part] @ is_right
    return right


def middle_of_best(values: NDArray) -> tuple[int, ...]:
    """Place of the largest entry after averaging with neighbours (1, 2, 1) along each axis; of equals the one nearest
    to their centre."""
    for axis, size in enumerate(values.shape):
        if size > 1:
            values = convolve1d(values, np.array([0.25, 0.5, 0.25]), axis=axis, mode="nearest")
    best = np.argwhere(values >= values.max() * (1.0 - 1e-9))
    middle = best[np.square(best - best.mean(axis=0)).sum(axis=1).argmin()]
    return tuple(middle.tolist())


def _tried(asked: Any, grid: NDArray) -> NDArray:
    return grid if asked == "cv" else np.array([float(asked)])


def _units(evidence: _Evidence, votes: NDArray, divergence: NDArray | None, asked: Weights) -> tuple[float, float]:
    """Units of the shares of alpha and gamma; 1 where these are numbers."""
    alpha = gamma = 1.0
    if evidence.zero_shot is not None:
        alpha = evidence.unit(evidence.zero_shot, votes) if asked.alpha == "cv" else 1.0
        if asked.gamma == "cv" and divergence is not None:
            gamma = evidence.unit(evidence.zero_shot, divergence)
    elif divergence is not None and asked.gamma == "cv":
        gamma = evidence.unit(votes if asked.alpha == "cv" else asked.alpha * votes, divergence)
    elif divergence is not None and asked.alpha == "cv" and asked.gamma > 0.0:
        alpha = evidence.unit(asked.gamma * divergence, votes)
    return alpha, gamma


def _right_on_grid(
    evidence: _Evidence, votes: NDArray, divergence: NDArray | None, alphas: NDArray, gammas: NDArray
) -> NDArray:
    """Weight of the left-out pictures that are right, (n_gammas, n_alphas)."""
    zero_shot = np.zeros_like(votes) if evidence.zero_shot is None else evidence.zero_shot
    codes, weights = evidence.left.codes, evidence.left.weights
    return np.stack(
        [
            right_along(
                zero_shot if divergence is None else zero_shot + gamma * divergence, votes, codes, weights, alphas
            )
            for gamma in gammas
        ]
    )


def _calibrated(evidence: _Evidence, found: Weights) -> Weights:
    """`found`, alpha and gamma times the factor of best probabilities."""
    votes, divergence = evidence.votes(found.delta, found.beta), evidence.divergence(found.delta)
    both = votes if divergence is None else votes + found.gamma * divergence
    factor = best_alpha([evidence.held_out(None, both)], _FACTOR_BOUNDS)
    return found._replace(alpha=factor, gamma=factor * found.gamma)


def _warn_of_single_pictures(estimator: Any, n_pictures: NDArray, asked: Weights) -> None:
    names = [name for name, value in asked._asdict().items() if value == "cv"]
    alone = estimator.classes_[n_pictures.argmin()].item()
    documented = ", ".join(f"{name}={getattr(DOCUMENTED, name):g}" for name in names)
    outcome = f"it is {documented}" if n_pictures.max() < 2 else "the pictures of other classes decide"
    warnings.warn(
        f'{", ".join(names)}: "cv" leaves out pictures, but class {alone!r} has a single one: {outcome}. Pass '
        "numbers to choose and to silence this.",
        SkclipWarning,
        stacklevel=5,
    )
