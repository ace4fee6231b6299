"""Averages of learned tensors over the course of a training."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import torch

Tensors = dict[str, "torch.Tensor"]


class Averaging(ABC):
    """What a training returns in place of its last tensors.

    An average begins as a copy of the tensors that training starts with; after every step or epoch, which is its
    `unit`, it moves by a `share` of the way to the tensors of that moment.
    """

    unit: ClassVar[str]  # "step" or "epoch"

    @abstractmethod
    def share(self, count: int) -> float:
        """How far the average moves at the `count`-th unit, which counts from 1."""

    def update(self, average: Tensors, learned: Tensors, count: int) -> None:
        """Move the average, in place."""
        share = self.share(count)
        if share == 0.0:
            return
        for name, value in average.items():
            value.lerp_(learned[name].detach(), share)

    def result(self, average: Tensors, learned: Tensors) -> Tensors:
        """What a training that ends now returns."""
        return average


@dataclass(frozen=True)
class EMA(Averaging):
    """Exponential moving average by the step: ``average = decay * average + (1 - decay) * learned``."""

    decay: float
    unit = "step"

    def share(self, count: int) -> float:
        return 1.0 - self.decay


@dataclass(frozen=True)
class Gaussian(Averaging):
    """Mean over the epochs e = 1, 2, ... with weights in proportion to ``exp(-(e - mu)^2 / (2 sigma^2))``.

    The Gaussian weighted aggregation of PromptSRC [1]_. The weights sum to 1 over the epochs there were, so that a
    training that ends early has a mean as well. `sigma` of infinity is the plain mean, a tiny one picks the epoch
    nearest to `mu`.

    References
    ----------
    .. [1] "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023, arXiv:2307.06948.
    """

    mu: float
    sigma: float
    unit = "epoch"

    def share(self, count: int) -> float:
        squares = [(epoch - self.mu) ** 2 for epoch in range(1, count + 1)]
        # relative to the nearest epoch, of weight 1: far from `mu` all of them would underflow
        weights = [math.exp((min(squares) - square) / self.sigma / self.sigma / 2) for square in squares]
        return weights[-1] / sum(weights)


@dataclass(frozen=True)
class WiSE(Averaging):
    """Interpolation between where training starts and where it ends: ``(1 - alpha) * start + alpha * learned`` [1]_.

    References
    ----------
    .. [1] "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv:2109.01903.
    """

    alpha: float
    unit = "epoch"

    def share(self, count: int) -> float:
        return 0.0

    def result(self, average: Tensors, learned: Tensors) -> Tensors:
        return {name: start.lerp(learned[name].detach(), self.alpha) for name, start in average.items()}
