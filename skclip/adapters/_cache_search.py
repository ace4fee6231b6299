"""Weight and sharpness of a cache, chosen by training pictures that are left out of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from skclip.adapters._cache import Cache, LeftOut, left_out_logits
from skclip.adapters._held_out import Pictures, distinct_pictures
from skclip.adapters._mixing import HeldOut, best_alpha
from skclip.utils._arrays import unit_rows
from skclip.utils._base import SkclipWarning
from skclip.utils._class_text import ClassText
from skclip.utils._cosine import cosine_logits
from skclip.utils._training import Training

# below 1 the votes are all but linear in the affinity, above 100 the nearest key decides
BETAS = np.geomspace(1.0, 100.0, 13)
# spread of alpha * cache logits over the classes, in units of the text's spread
SPREADS = np.geomspace(1e-2, 1e2, 17)
# of the probabilities, where only their calibration depends on alpha: bounds on the spread of the logits
_CALIBRATION_SPREADS = (1e-2, 1e3)

# neighbours on a grid, because with few pictures a single one decides
_WINDOW = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9.0

_MOST_HELD_OUT = 4096
# of these pictures: 128 MiB, whatever the working memory, which must not change what is chosen
_MOST_LOGITS = 2**24
_MOST_ROUNDS = 4
# pictures that tell how far logits spread
_MOST_SPREAD = 256


def cached_pictures(training: Training, n_classes: int) -> tuple[Pictures, Cache]:
    """Distinct pictures, sorted by class, and one key for each."""
    weights = np.ones(len(training.codes)) if training.weights is None else training.weights
    pictures = distinct_pictures(training.X, training.codes, weights, training.n_views)
    pictures = pictures.take(np.argsort(pictures.codes, kind="stable"))
    rows, n_views = pictures.views.reshape(-1, training.X.shape[1]), training.n_views
    sorted_training = Training(rows, pictures.codes, pictures.weights, n_views, np.arange(len(pictures.codes)))
    return pictures, Cache.of(sorted_training, n_classes)


def search_alpha_beta(
    training: Training,
    classes: NDArray,
    text: ClassText | None,
    *,
    alpha: float | str,
    beta: float | str,
    normalize_values: bool,
    defaults: tuple[float, float],
    start_of_training: bool = False,
    stacklevel: int,
) -> tuple[float, float]:
    """alpha and beta, those that are "cv" by the accuracy on left-out training pictures.

    A picture that does without its own key leaves its class one key short of the others, whose best key is then too
    often better; a sharp kernel suffers most. So the pictures also compete with every class one key short: without
    text only so, over up to four rounds with other keys; with text once, beside one round without the own key alone,
    because in a cache that is short of a key everywhere the text weighs more than it will in the full one.

    Parameters
    ----------
    training : Training
    classes : ndarray of shape (K,)
    text : ClassText or None
    alpha, beta : float or "cv"
    normalize_values : bool
    defaults : (float, float)
        alpha and beta where most classes have a single picture.
    start_of_training : bool
        Without text, choose by log-loss instead: what training goes on to minimise.
    stacklevel : int
        Of the warning about these.
    """
    searched = [name for name, value in (("alpha", alpha), ("beta", beta)) if isinstance(value, str)]
    if not searched:
        return float(alpha), float(beta)
    pictures, cache = cached_pictures(training, len(classes))
    if normalize_values:
        cache = cache.normalized()
    sizes = np.diff(cache.starts())
    too_few = bool(np.mean(sizes > 1) <= 0.5)
    if sizes.min() < 2:
        fallback = ", ".join(f"{name} is {value:g}" for name, value in zip(("alpha", "beta"), defaults))
        outcome = f"so have most, and {fallback} unless given" if too_few else "it is not held out"
        warnings.warn(
            f'{" and ".join(searched)}="cv" holds out pictures, but class {classes[sizes.argmin()].item()!r} has a '
            f"single one: {outcome}. Pass numbers to choose them and to silence this.",
            SkclipWarning,
            stacklevel=stacklevel,
        )
    if too_few:
        alpha_default, beta_default = defaults
        return (
            alpha_default if isinstance(alpha, str) else float(alpha),
            beta_default if isinstance(beta, str) else float(beta),
        )
    held_out = _HeldOutPictures.of(pictures, cache)
    betas = BETAS if isinstance(beta, str) else np.array([float(beta)])
    if text is None and start_of_training:
        return held_out.lowest_log_loss(betas, None if isinstance(alpha, str) else float(alpha))
    if text is None:
        best_beta = float(betas[_middle_of_best(held_out.accuracy_alone(betas))])
        return (held_out.calibrated_alpha(best_beta) if isinstance(alpha, str) else float(alpha)), best_beta
    right, alphas = held_out.accuracy_with_text(betas, None if isinstance(alpha, str) else float(alpha), text)
    i, j = _middle_of_best(right)
    return float(alphas[i, j]), float(betas[i])


class _HeldOutPictures(NamedTuple):
    """Training pictures of classes with several, at most some thousand, in an order that their values decide."""

    queries: NDArray  # (n, d) view 0, unit rows
    own: NDArray  # (n,) key of each
    codes: NDArray  # (n,)
    weights: NDArray  # (n,)
    cache: Cache

    @classmethod
    def of(cls, pictures: Pictures, cache: Cache) -> _HeldOutPictures:
        several = np.flatnonzero(np.diff(cache.starts())[cache.codes] > 1)
        # spread over the classes: the number of a key within its class first
        ranks = several - cache.starts()[cache.codes[several]]
        several = several[np.argsort(ranks, kind="stable")]
        chosen = several[: max(1, min(_MOST_HELD_OUT, _MOST_LOGITS // cache.n_classes))]
        queries = unit_rows(pictures.views[chosen, 0])
        return cls(queries, chosen, cache.codes[chosen], pictures.weights[chosen], cache)

    def accuracy_alone(self, betas: NDArray) -> NDArray:
        """Weight of the pictures that the cache gets right, (n_betas,)."""
        right = np.zeros(len(betas))
        for left_out in self._rounds():
            for part, blocks in left_out_logits(self.queries, left_out, self.cache, betas):
                for i, logits in enumerate(blocks):
                    right[i] += self._right(logits, part)
        return right

    def accuracy_with_text(self, betas: NDArray, alpha: float | None, text: ClassText) -> tuple[NDArray, NDArray]:
        """Weight of the pictures that text and cache get right, and the alphas: both (n_betas, n_alphas)."""
        alphas = np.outer(self._units(betas, text), SPREADS) if alpha is None else np.full((len(betas), 1), alpha)
        right = np.zeros_like(alphas)
        for left_out in (self._own_key, next(self._rounds())):
            for part, blocks in left_out_logits(self.queries, left_out, self.cache, betas):
                zero_shot = cosine_logits(self.queries[part], text.prototypes, text.logit_scale)
                for i, block in enumerate(blocks):
                    logits = block.astype(zero_shot.dtype)
                    for j in range(alphas.shape[1]):
                        mixed = logits * zero_shot.dtype.type(alphas[i, j])
                        mixed += zero_shot
                        right[i, j] += self._right(mixed, part)
        return right, alphas

    def _units(self, betas: NDArray, text: ClassText) -> NDArray:
        """The alpha of each beta at which cache and text spread equally over the classes."""
        queries = self.queries[:_MOST_SPREAD]
        zero_shot = cosine_logits(queries, text.prototypes, text.logit_scale)
        blocks = [
            np.stack([np.asarray(logits) for logits in of_betas])
            for _, of_betas in left_out_logits(queries, self._own_key, self.cache, betas)
        ]
        return np.array([_unit(zero_shot, logits) for logits in np.concatenate(blocks, axis=1)])

    def calibrated_alpha(self, beta: float) -> float:
        """The alpha of the best calibrated probabilities without text."""
        return _calibrated(self._alone(beta))

    def lowest_log_loss(self, betas: NDArray, alpha: float | None) -> tuple[float, float]:
        """alpha and beta of the best calibrated probabilities without text."""

        def loss(beta: float) -> tuple[float, float, float]:
            held_out = self._alone(beta)
            weight = _calibrated(held_out) if alpha is None else alpha
            return sum(_log_loss(block, weight) for block in held_out), weight, beta

        return min(map(loss, betas.tolist()))[1:]

    def _alone(self, beta: float) -> list[HeldOut]:
        return [
            HeldOut(None, logits, self.codes[part], self.weights[part])
            for part, blocks in left_out_logits(self.queries, self._own_key, self.cache, np.array([beta]))
            for logits in blocks
        ]

    def _right(self, logits: NDArray, part: slice) -> float:
        return float(self.weights[part] @ (np.argmax(logits, axis=1) == self.codes[part]))

    def _own_key(self, part: slice) -> tuple[NDArray, NDArray]:
        own = self.own[part]
        return np.arange(len(own)), own

    def _rounds(self) -> Iterator[LeftOut]:
        """Every class does without one key, each time another."""
        starts = self.cache.starts()
        sizes = np.diff(starts)
        several = np.flatnonzero(sizes > 1)
        rng = np.random.RandomState(0)
        for n_round in range(min(int(sizes.max()) - 1, _MOST_ROUNDS)):
            shift = rng.randint(sizes.max(), size=len(several)) if n_round else np.zeros(len(several), dtype=np.intp)

            def left_out(part: slice, shift: NDArray = shift) -> tuple[NDArray, NDArray]:
                own, codes = self.own[part], self.codes[part]
                ranks = own - starts[codes]
                keys = starts[several] + (ranks[:, None] + shift) % sizes[several]
                keys[np.arange(len(own)), np.searchsorted(several, codes)] = own
                return np.repeat(np.arange(len(own)), len(several)), keys.ravel()

            yield left_out


def _middle_of_best(right: NDArray) -> Any:
    """Position of the largest value, averaged over neighbours: of equal ones the nearest to their centre."""
    for axis, length in enumerate(right.shape):
        if length > 1:
            padded = np.pad(right, [(2, 2) if i == axis else (0, 0) for i in range(right.ndim)], mode="edge")
            right = np.apply_along_axis(np.convolve, axis, padded, _WINDOW, mode="valid")
    best = np.argwhere(right >= right.max() * (1.0 - 1e-9))
    nearest = np.square(best - best.mean(axis=0)).sum(axis=1).argmin()
    return tuple(best[nearest].tolist())


def _calibrated(held_out: list[HeldOut]) -> float:
    spread = _spread(np.concatenate([block.few_shot for block in held_out]))
    unit = 1.0 / spread if spread > 0.0 else 1.0
    return best_alpha(held_out, (_CALIBRATION_SPREADS[0] * unit, _CALIBRATION_SPREADS[1] * unit))


def _log_loss(block: HeldOut, alpha: float) -> float:
    logits = alpha * block.few_shot
    own = logits[np.arange(len(logits)), block.codes]
    return float(block.weights @ (logsumexp(logits, axis=1) - own))


def _unit(zero_shot: NDArray, cache_logits: NDArray) -> float:
    """The alpha at which both terms spread equally over the classes; 1 where one is constant."""
    spreads = _spread(zero_shot), _spread(cache_logits)
    return spreads[0] / spreads[1] if min(spreads) > 0.0 else 1.0


def _spread(logits: NDArray) -> float:
    """Root mean square about the row means."""
    return float(np.sqrt(np.mean(logits.var(axis=1, dtype=np.float64))))
