"""Learning rates by name: what a step of training is taken with, as a pure function of where it stands."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

_WARM_RATE = 1e-5
_LEAST_RATE = 1e-6


class Position(NamedTuple):
    """Where a step stands in a training. Epochs and steps count from 0."""

    epoch: int
    step: int  # since the beginning of the training
    n_epochs: int
    n_steps: int


def learning_rate(schedule: str, base: float, at: Position, warmup: int = 0) -> float:
    """The learning rate of a step.

    Parameters
    ----------
    schedule : {"dassl_cosine", "cosine", "warmup_linear_cosine", "constant", "cpe_restarts", "svd_code"}
        - "dassl_cosine", by the epoch: ``min(1e-5, base)`` in the first `warmup` epochs, then
          ``base * (1 + cos(pi * (epoch - warmup) / n_epochs)) / 2``. Of five epochs with one of warm-up the factors
          are 1, 0.9045, 0.6545 and 0.3455 after the first: it never reaches 0. That of CoOp and its descendants.
        - "cosine", by the step: from `base` to 1e-6 along half a period.
        - "warmup_linear_cosine", by the step: ``base * (step + 1) / warmup`` in the first `warmup` steps, then along
          half a period of the cosine to 0.
        - "constant".
        - "cpe_restarts", by the epoch, that of CPE-CLIP's code: from ``base / 100`` to `base` in a line over 50
          epochs, back along a cosine over 150 more, and again. With ``base=0.1`` epoch e has 0.001 + 0.00198 e:
          the few epochs of a session see the beginning of the line only.
        - "svd_code", by the step, that of CLIP-SVD's code where it counts epochs: the period of a cosine between
          `base` and 1e-6 that was meant to be of epochs is one of steps, so that the rate swings up and down.
    base : float
        The `learning_rate` of the recipe.
    at : Position
    warmup : int, default=0
        Epochs of "dassl_cosine", steps of "warmup_linear_cosine"; the others have none.

    Returns
    -------
    float
    """
    return SCHEDULES[schedule](base, at, warmup)


def _dassl_cosine(base: float, at: Position, warmup: int) -> float:
    if at.epoch < warmup:
        return min(_WARM_RATE, base)
    return base * _half_cosine((at.epoch - warmup) / at.n_epochs)


def _cosine(base: float, at: Position, warmup: int) -> float:
    return _between(min(_LEAST_RATE, base), base, _half_cosine(at.step / at.n_steps))


def _warmup_linear_cosine(base: float, at: Position, warmup: int) -> float:
    if at.step < warmup:
        return base * (at.step + 1) / warmup
    return base * _half_cosine((at.step - warmup) / (at.n_steps - warmup))


def _constant(base: float, at: Position, warmup: int) -> float:
    return base


def _cpe_restarts(base: float, at: Position, warmup: int) -> float:
    rise, cycle = 50, 200
    epoch = at.epoch % cycle
    height = epoch / rise if epoch < rise else _half_cosine((epoch - rise) / (cycle - rise))
    return _between(base / 100, base, height)


def _svd_code(base: float, at: Position, warmup: int) -> float:
    return _between(min(_LEAST_RATE, base), base, _half_cosine(at.step / at.n_epochs))


def _half_cosine(share: float) -> float:
    """From 1 at 0 to 0 at 1."""
    return 0.5 * (1.0 + math.cos(math.pi * share))


def _between(low: float, high: float, share: float) -> float:
    return low + (high - low) * share


SCHEDULES: dict[str, Callable[[float, Position, int], float]] = {
    "dassl_cosine": _dassl_cosine,
    "cosine": _cosine,
    "warmup_linear_cosine": _warmup_linear_cosine,
    "constant": _constant,
    "cpe_restarts": _cpe_restarts,
    "svd_code": _svd_code,
}
