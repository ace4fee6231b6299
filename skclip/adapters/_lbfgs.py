"""Limited-memory BFGS for smooth convex functions that are cheap to evaluate along a line."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

# pairs of steps and gradient changes that stand for the curvature; they cost little beside a pass over the rows
MEMORY = 20

# a step is good enough when the slope has fallen to this share of what it was
_SLOPE_SHARE = 0.4
_MAX_TRIALS = 30


class LineObjective(Protocol):
    """A function that remembers where it stands.

    Attributes
    ----------
    weight : float
        What a difference of function values is divided by before it is compared with the tolerance.
    rounding : float
        Relative error of function values.
    """

    weight: float
    rounding: float

    def start(self, point: NDArray) -> tuple[float, NDArray]:
        """Go to `point`; value and gradient there."""

    def aim(self, direction: NDArray) -> None:
        """Choose the line through the present point."""

    def at(self, step: float) -> tuple[float, float]:
        """Value and slope after `step` times the direction."""

    def move(self, step: float) -> NDArray:
        """Go to where `at` was called last; gradient there."""

    def refresh(self) -> None:
        """Adapt the preconditioner to the present point."""

    def precondition(self, vector: NDArray) -> NDArray:
        """An approximate inverse Hessian times `vector`; symmetric and positive semi-definite."""


class Minimum(NamedTuple):
    """Where the iterations ended."""

    point: NDArray
    losses: list[float]  # value at the start and after every iteration
    converged: bool
    stalled: bool  # no step along the line is better, within rounding


def minimise(
    objective: LineObjective, start: NDArray, *, tol: float, max_iter: int, first_step: float = 1.0
) -> Minimum:
    """Minimise a convex function.

    The inverse Hessian of each iteration is the preconditioner, scaled by ``s^T y / y^T P y`` of the last step s and
    gradient change y, and updated by the last 20 pairs [1]_. The preconditioner is refreshed after iterations 2, 5, 10,
    20, 40, ...: old pairs stay valid, they are facts about the function.

    Parameters
    ----------
    objective : LineObjective
    start : ndarray
    tol : float
        Stop where ``sqrt(g^T H g / weight)`` is no larger, H the inverse Hessian as known by then: half of its square
        is the mean decrease that a Newton step promises.
    max_iter : int
    first_step : float
        First trial of the first iteration; 1 in all others.

    References
    ----------
    .. [1] D. C. Liu and J. Nocedal, "On the limited memory BFGS method for large scale optimization", Mathematical
       Programming 45, 1989.
    """
    point = start.copy()
    loss, gradient = objective.start(point)
    losses = [loss]
    pairs: deque[Pair] = deque(maxlen=MEMORY)
    next_refresh, trial = 2, first_step
    while True:
        direction = -inverse_hessian_product(gradient, pairs, objective.precondition)
        slope = float(np.vdot(gradient, direction))
        if -slope <= tol**2 * objective.weight:
            return Minimum(point, losses, converged=True, stalled=False)
        if len(losses) > max_iter:
            return Minimum(point, losses, converged=False, stalled=False)
        objective.aim(direction)
        found = line_search(objective.at, loss, slope, trial, objective.rounding)
        if found is None:
            return Minimum(point, losses, converged=False, stalled=True)
        step, loss = found
        change, before = step * direction, gradient
        gradient = objective.move(step)
        point += change
        losses.append(loss)
        add_pair(pairs, change, gradient - before)
        if len(losses) - 1 == next_refresh:
            objective.refresh()
            next_refresh = 5 if next_refresh == 2 else 2 * next_refresh
        trial = 1.0


class Pair(NamedTuple):
    """A step, the change of the gradient over it, and one over their product."""

    step: NDArray
    change: NDArray
    scale: float


def add_pair(pairs: deque[Pair], step: NDArray, change: NDArray) -> None:
    """Remember a step, unless rounding has left nothing of its curvature."""
    product = float(np.vdot(step, change))
    if product > np.finfo(np.float64).eps * np.linalg.norm(step) * np.linalg.norm(change):
        pairs.append(Pair(step, change, 1.0 / product))


def inverse_hessian_product(
    gradient: NDArray, pairs: deque[Pair], precondition: Callable[[NDArray], NDArray]
) -> NDArray:
    """The two-loop recursion, with a scaled preconditioner as initial inverse Hessian."""
    if not pairs:
        return precondition(gradient)
    vector, shares = gradient.copy(), []
    for pair in reversed(pairs):
        shares.append(pair.scale * float(np.vdot(pair.step, vector)))
        vector -= shares[-1] * pair.change
    last = pairs[-1]
    scale = 1.0 / (last.scale * float(np.vdot(last.change, precondition(last.change))))
    vector = scale * precondition(vector)
    for pair, share in zip(pairs, reversed(shares)):
        vector += (share - pair.scale * float(np.vdot(pair.change, vector))) * pair.step
    return vector


def line_search(
    at: Callable[[float], tuple[float, float]], loss: float, slope: float, trial: float, rounding: float
) -> tuple[float, float] | None:
    """A step along a line of a convex function, and the value there; None if rounding hides any decrease.

    The root of the slope is bracketed and found by false position: near the minimum slopes are known to more digits
    than values.

    Parameters
    ----------
    at : callable
        Value and slope after a step.
    loss, slope : float
        At step 0; the slope is negative.
    trial : float
        First step to try.
    rounding : float
        Relative increase of the value that may be rounding.
    """
    low, low_slope, high, high_slope = 0.0, slope, np.inf, np.inf
    for _ in range(_MAX_TRIALS):
        value, here = at(trial)
        if abs(here) <= -_SLOPE_SHARE * slope and value <= loss + rounding * abs(loss):
            return trial, value
        if here > 0.0 or not np.isfinite(value):
            # Far beyond the minimum a loss that saturates has next to no slope, which says nothing about its root.
            high, high_slope = trial, here if value <= loss else np.inf
        else:
            low, low_slope = trial, here
        trial = _next_trial(low, low_slope, high, high_slope)
    return None


def _next_trial(low: float, low_slope: float, high: float, high_slope: float) -> float:
    if high == np.inf:
        return 4.0 * low
    width = high - low
    root = low - low_slope * width / (high_slope - low_slope) if np.isfinite(high_slope) else low
    return float(np.clip(root, low + 0.1 * width, high - 0.1 * width))
