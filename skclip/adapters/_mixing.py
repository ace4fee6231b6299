"""How much a few-shot term should weigh beside the zero-shot logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize


class HeldOut(NamedTuple):
    """Logits of pictures that the few-shot term has not seen."""

    zero_shot: NDArray | None  # (m, K)
    few_shot: NDArray  # (m, K)
    codes: NDArray  # (m,)
    weights: NDArray  # (m,)


def best_alpha(blocks: Sequence[HeldOut], bounds: tuple[float, float]) -> float:
    """The alpha of ``zero_shot + alpha * few_shot`` that fits held-out labels best.

    Minimises the log-loss of ``softmax(a * zero_shot + b * few_shot)`` over a, b >= 0, a convex problem in
    two numbers, and returns b / a. Leaving a free keeps the choice independent of how sharp the zero-shot
    logits are: a logit scale that is too large or too small says nothing about which of the two terms knows
    more. A penalty of the weight of one picture keeps separable problems finite.

    Without zero-shot logits the result is b, the alpha of best calibrated probabilities.

    Parameters
    ----------
    blocks : sequence of HeldOut
        All held-out pictures.
    bounds : (float, float)
        The result is clipped to these.
    """
    units = _spreads(blocks)

    def objective(weights: NDArray) -> tuple[float, NDArray]:
        return _penalised_log_loss(weights / units, units, blocks)

    start = np.where(np.isfinite(units), 1.0, 0.0)
    limits = [(0.0, None) if np.isfinite(unit) else (0.0, 0.0) for unit in units]
    solution = minimize(objective, start, jac=True, method="L-BFGS-B", bounds=limits).x / units
    if not np.isfinite(units[0]):
        return float(np.clip(solution[1], *bounds))
    if solution[1] == 0.0:  # the few-shot term has nothing to add
        return bounds[0]
    return float(np.clip(solution[1] / max(solution[0], solution[1] / bounds[1]), *bounds))


def most_accurate_alpha(blocks: Sequence[HeldOut], bounds: tuple[float, float], tie_break: float) -> float:
    """The alpha of ``zero_shot + alpha * few_shot`` that gets most held-out labels right.

    The number right is taken at four alphas per decade and averaged over neighbours (weights 1, 2, 3, 2, 1), because
    with few pictures a single one decides.

    Parameters
    ----------
    blocks : sequence of HeldOut
        All held-out pictures, with zero-shot logits.
    bounds : (float, float)
        Smallest and largest alpha.
    tie_break : float
        Of equally good alphas, the one nearest to this (in ratio) is taken.
    """
    grid = np.geomspace(*bounds, 1 + round(4 * np.log10(bounds[1] / bounds[0])))
    right = np.zeros(len(grid))
    for block in blocks:
        for i, alpha in enumerate(grid):
            best = np.argmax(block.zero_shot + alpha * block.few_shot, axis=1)
            right[i] += block.weights @ (best == block.codes)
    window = np.array([1.0, 2.0, 3.0, 2.0, 1.0]) / 9.0
    smooth = np.convolve(np.pad(right, 2, mode="edge"), window, mode="valid")
    equal = grid[smooth >= smooth.max() * (1.0 - 1e-9)]
    return float(equal[np.abs(np.log(equal / tie_break)).argmin()])


def alpha_of_spread(blocks: Sequence[HeldOut], share: float, bounds: tuple[float, float]) -> float:
    """The alpha at which the few-shot term spreads over the classes `share` times as much as the zero-shot term."""
    zero_shot, few_shot = _spreads(blocks)
    return float(np.clip(share * zero_shot / few_shot, *bounds)) if np.isfinite(few_shot) else bounds[0]


def _spreads(blocks: Sequence[HeldOut]) -> NDArray:
    """Root mean square of the two terms about their row means; infinite where absent or constant."""
    squares, weight = np.zeros(2), 0.0
    for block in blocks:
        for i, logits in enumerate((block.zero_shot, block.few_shot)):
            if logits is not None:
                squares[i] += np.sum(block.weights * logits.var(axis=1, dtype=np.float64))
        weight += block.weights.sum()
    return np.where(squares > 0.0, np.sqrt(squares / weight), np.inf)


def _penalised_log_loss(weights: NDArray, units: NDArray, blocks: Sequence[HeldOut]) -> tuple[float, NDArray]:
    """Mean log-loss plus the penalty, and its gradient by the scaled weights."""
    loss, gradient, total, heaviest = 0.0, np.zeros(2), 0.0, 0.0
    for block in blocks:
        terms = [(i, logits) for i, logits in enumerate((block.zero_shot, block.few_shot)) if logits is not None]
        mixed = sum(weights[i] * logits for i, logits in terms)
        mixed = mixed - mixed.max(axis=1, keepdims=True)
        rows = np.arange(len(mixed))
        target = mixed[rows, block.codes]
        np.exp(mixed, out=mixed)
        normaliser = mixed.sum(axis=1)
        loss += float(np.sum(block.weights * (np.log(normaliser) - target)))
        for i, logits in terms:
            expected = np.einsum("mk,mk->m", mixed, logits) / normaliser
            gradient[i] += np.sum(block.weights * (expected - logits[rows, block.codes]))
        total += float(block.weights.sum())
        heaviest = max(heaviest, float(block.weights.max()))
    finite = np.isfinite(units)
    scaled = np.where(finite, weights * np.where(finite, units, 0.0), 0.0)
    penalty = heaviest / total
    gradient = np.where(finite, gradient / units, 0.0) / total
    return loss / total + 0.5 * penalty * float(scaled @ scaled), gradient + penalty * scaled
