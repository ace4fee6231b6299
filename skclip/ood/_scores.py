"""Scores of logits (n, K), as pure functions: larger = more in-distribution."""

from __future__ import annotations

from numpy.typing import NDArray
from scipy.special import entr, logsumexp, softmax


def max_softmax(logits: NDArray, temperature: float = 1.0) -> NDArray:
    """``max_k softmax(L / T)_k``, (n,)."""
    return softmax(logits / temperature, axis=1).max(axis=1)


def negative_entropy(probabilities: NDArray) -> NDArray:
    """``sum_k p_k log p_k`` with 0 log 0 = 0, (n,): 0 for certainty, -log K for equal shares."""
    return -entr(probabilities).sum(axis=1)


def free_energy(logits: NDArray, temperature: float = 1.0) -> NDArray:
    """``T log sum_k exp(L_k / T)``, (n,): the negative free energy."""
    return temperature * logsumexp(logits / temperature, axis=1)
