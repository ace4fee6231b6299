"""Support pictures that vote by affinity and by divergence, and how much either vote should weigh."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

from skclip.adapters._cache import Cache, affinity_votes, cache_logits, sum_votes
from skclip.adapters._cache_search import search_alpha_beta
from skclip.adapters._held_out import same_pictures
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
from skclip.adapters._tip_adapter import fitted_cache, set_cache
from skclip.utils._arrays import row_batches, unit_rows
from skclip.utils._base import SkclipWarning
from skclip.utils._class_text import ClassText, fitted_text
from skclip.utils._cosine import cosine_logits
from skclip.utils._training import Training

# what "cv" tries
BETAS = np.geomspace(1.0, 256.0, 9)
DELTAS = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])

# what alpha and gamma can make of the spread of a term over the classes, in units of that of the other terms
_MOST_SPREAD = 1e4

# so many pictures are left out in turn, of as many as there are
_MOST_LEFT_OUT = 4096


class Weights(NamedTuple):
    """The numbers of the method; "cv" where one is to be chosen."""

    alpha: Any
    beta: Any
    gamma: Any
    delta: Any = 0.0


# instead of "cv" where half of the classes or more have a single picture
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
    estimator: Any,
    training: Training,
    support: Support,
    signature: Signature | None,
    text: ClassText | None,
    asked: Weights,
) -> Weights:
    """Set the fitted attributes that SuS-X and CapS-Adapter share; `signature` is None without a divergence term."""
    cache = support.cache
    set_cache(estimator, cache)
    estimator.signature_sums_ = estimator.affinity_range_ = estimator.divergence_range_ = None
    if signature is not None:
        estimator.signature_sums_ = signature_sums(cache.keys, signature, cache.codes, cache.weights, cache.n_classes)
    chosen = asked
    if text is None and signature is None and support.captions is None:
        # what is left is Tip-Adapter without text
        alpha, beta = search_alpha_beta(
            training,
            estimator.classes_,
            None,
            alpha=asked.alpha,
            beta=asked.beta,
            normalize_values=False,
            defaults=(DOCUMENTED.alpha, DOCUMENTED.beta),
            stacklevel=4,
        )
        chosen = asked._replace(alpha=alpha, beta=beta)
    elif "cv" in asked:
        chosen = choose_weights(estimator, support, signature, text, asked)
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
    cache = fitted_cache(estimator)
    keys, counts = blended_keys(cache.keys, captions, delta), cache.counts()
    logits = np.zeros((len(rows), cache.n_classes))
    if text is not None:
        logits += cosine_logits(rows, text.prototypes, text.logit_scale)
    if estimator.alpha_ > 0.0:
        logits += estimator.alpha_ * cache_logits(rows, cache._replace(keys=keys), estimator.beta_)
    if signature is not None and estimator.gamma_ > 0.0:
        if estimator.rescale == "fit":
            ranges = Ranges(tuple(estimator.affinity_range_), tuple(estimator.divergence_range_))
        else:
            ranges = Ranges(affinity_range(rows, keys), divergence_range(rows, cache.keys, signature))
        for part in row_batches(len(rows), 8 * (4 * estimator.signature_sums_.shape[1] + 3 * cache.n_classes)):
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
        counts = support.cache.counts()[codes]
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
            tile = affinity_votes(keys[columns] @ self.queries[rows].T, beta).T
            tile[apart.own(rows, columns)] = 0.0
            return tile

        cache = support.cache
        return self.lifted(sum_votes(votes, len(self.codes), cache.codes, cache.weights, cache.n_classes))

    def divergences(self, support: Support, signature: Signature, sums: NDArray) -> NDArray:
        """Divergences summed by class without the own picture, (n, K)."""
        log_queries = signature(self.queries)
        totals = divergence_sums(log_queries, sums, support.cache.counts())
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
        return divergence_logits(self.totals, self.support.cache.counts(), ranges)


def choose_weights(
    estimator: Any, support: Support, signature: Signature | None, text: ClassText | None, asked: Weights
) -> Weights:
    """Numbers for what is asked as "cv", from support pictures that are left out in turn.

    A picture is left out with its repeats, and the votes of its own class are scaled up to the whole class again.
    Taken is what gives the left-out pictures the lowest log-loss, however the logits as a whole are scaled.

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
    too_few = bool(np.mean(n_pictures > 1) <= 0.5)
    if n_pictures.min() < 2:
        _warn_of_single_pictures(estimator.classes_[n_pictures.argmin()].item(), asked, too_few)
    if too_few:
        return Weights(*(default if value == "cv" else value for value, default in zip(asked, DOCUMENTED)))
    evidence = _Evidence.of(support, signature, estimator.signature_sums_, text)
    best, lowest = DOCUMENTED, np.inf
    for delta in DELTAS.tolist() if asked.delta == "cv" else [asked.delta]:
        divergence = evidence.divergence(delta)
        for beta in BETAS.tolist() if asked.beta == "cv" else [asked.beta]:
            terms = {"alpha": evidence.votes(delta, beta), "gamma": divergence}
            loss, found = _weights_of_terms(evidence, terms, asked)
            if loss < lowest:
                best, lowest = Weights(found["alpha"], beta, found["gamma"], delta), loss
    return best


def _weights_of_terms(
    evidence: _Evidence, terms: dict[str, NDArray | None], asked: Weights
) -> tuple[float, dict[str, float]]:
    """Lowest log-loss, and the weight of each term."""
    found = dict.fromkeys(terms, 0.0)
    base, free = evidence.zero_shot, {}
    for name, term in terms.items():
        number = getattr(asked, name)
        if term is None:
            continue
        if number == "cv":
            free[name] = term
            continue
        found[name] = float(number)
        if number > 0.0:
            base = number * term if base is None else base + number * term
    if base is None and not free:  # every number is 0
        return 0.0, found
    loss, factors = best_mixture(base, list(free.values()), evidence.left.codes, evidence.left.weights)
    return loss, {**found, **dict(zip(free, factors.tolist()))}


def best_mixture(
    base: NDArray | None, terms: Sequence[NDArray], codes: NDArray, weights: NDArray
) -> tuple[float, NDArray]:
    """Factors of the terms beside `base` with the lowest log-loss of ``softmax(a (base + sum_i factors_i terms_i))``.

    The scale a >= 0 is left free, so that logits that are too sharp or too flat say nothing about the factors; without
    a `base` that tells classes apart it is 1, and the factors are those of best probabilities. Convex in a and a times
    the factors. A penalty of the weight of one picture keeps separable problems finite.

    Parameters
    ----------
    base : ndarray of shape (n, K) or None
    terms : sequence of ndarray of shape (n, K)
    codes, weights : ndarray of shape (n,)

    Returns
    -------
    loss : float
        Mean log-loss with penalty.
    factors : ndarray of shape (n_terms,)
    """
    if base is not None and terms and np.ptp(base, axis=1).max() == 0.0:
        base = None
    together = [*terms] if base is None else [base, *terms]
    shares = weights / weights.sum()
    spreads = np.array([np.sqrt(shares @ term.var(axis=1)) for term in together])
    units = np.divide(1.0, spreads, out=np.zeros(len(spreads)), where=spreads > 0.0)
    penalty = weights.max() / weights.sum()
    parts = list(row_batches(len(codes), 24 * together[0].shape[1]))

    def objective(scaled: NDArray) -> tuple[float, NDArray]:
        loss, gradient = 0.5 * penalty * float(scaled @ scaled), penalty * scaled
        for part in parts:
            own = np.arange(len(codes[part])), codes[part]
            logits = sum(weight * term[part] for weight, term in zip(scaled * units, together))
            logits -= logits.max(axis=1, keepdims=True)
            target = logits[own]
            np.exp(logits, out=logits)
            total = logits.sum(axis=1)
            loss += float(shares[part] @ (np.log(total) - target))
            for i, term in enumerate(together):
                expected = np.einsum("nk,nk->n", logits, term[part]) / total
                gradient[i] += units[i] * float(shares[part] @ (expected - term[part][own]))
        return loss, gradient

    solution = minimize(
        objective, np.ones(len(together)), jac=True, method="L-BFGS-B", bounds=[(0.0, _MOST_SPREAD)] * len(together)
    )
    if base is None:
        return float(solution.fun), solution.x * units
    ratios = solution.x[1:] / np.maximum(solution.x[0], solution.x[1:] / _MOST_SPREAD + np.finfo(np.float64).tiny)
    return float(solution.fun), ratios * units[1:] / units[0]


def _warn_of_single_pictures(label: Any, asked: Weights, too_few: bool) -> None:
    searched = {name: getattr(DOCUMENTED, name) for name, value in asked._asdict().items() if value == "cv"}
    numbers = ", ".join(f"{name} is {value:g}" for name, value in searched.items())
    outcome = f"so have half of them or more, and {numbers}" if too_few else "it is not left out"
    warnings.warn(
        f'{" and ".join(searched)}="cv" leaves out pictures, but class {label!r} has a single one: {outcome}. Pass '
        "numbers to choose them and to silence this.",
        SkclipWarning,
        stacklevel=5,
    )
