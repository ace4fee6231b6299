"""Scores of logits (n, K), as pure functions: larger = more in-distribution."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import entr, softmax

from skclip.utils._arrays import row_batches
from skclip.utils._moments import class_sums

# what a probability of a template counts as at least: one that is 0 would make every divergence infinite
_SMALLEST_PROBABILITY = 1e-12


def max_softmax(logits: NDArray, temperature: float = 1.0) -> NDArray:
    """``max_k softmax(L / T)_k``, (n,)."""
    return softmax(logits / temperature, axis=1).max(axis=1)


def negative_entropy(probabilities: NDArray) -> NDArray:
    """``sum_k p_k log p_k`` with 0 log 0 = 0, (n,): 0 for certainty, -log K for equal shares."""
    return -entr(probabilities).sum(axis=1)


def free_energy(logits: NDArray, temperature: float = 1.0) -> NDArray:
    """``T log sum_k exp(L_k / T)``, (n,): the negative free energy."""
    largest = logits.max(axis=1)
    # scipy's logsumexp, which also takes signs and weights, needs three times as long
    with np.errstate(invalid="ignore"):  # of infinite logits, which callers refuse
        excess = np.exp((logits - largest[:, None]) / temperature).sum(axis=1)
    return largest + temperature * np.log(excess)


def generalized_entropy(probabilities: NDArray, gamma: float = 0.1, n_largest: int | None = None) -> NDArray:
    """``-sum p^gamma (1 - p)^gamma`` over the `n_largest` probabilities of each row, (n,); None is all.

    Parameters
    ----------
    probabilities : ndarray of shape (n, K)
    gamma : float, default=0.1
    n_largest : int, default=None
    """
    at = np.arange(len(probabilities)), probabilities.argmax(axis=1)
    others = probabilities.copy()
    others[at] = 0.0
    rest = 1.0 - probabilities
    # 1 - p of the largest would be rounded to 0 where the others are as small as 1e-17, whose tenth root is 0.02
    rest[at] = others.sum(axis=1)
    terms = (probabilities * rest) ** gamma
    if n_largest is not None and n_largest < probabilities.shape[1]:
        largest = np.argpartition(-probabilities, n_largest - 1, axis=1)[:, :n_largest]
        terms = np.take_along_axis(terms, largest, axis=1)
    return -terms.sum(axis=1)


def mean_posteriors(logits: NDArray) -> NDArray:
    """Mean softmax of the rows with the same largest logit, (K, K); row j is one-hot where no row has the j-th."""
    n_classes = logits.shape[1]
    sums, counts = np.zeros((n_classes, n_classes)), np.zeros((n_classes, 1))
    for part in row_batches(len(logits), 32 * n_classes):
        probabilities = softmax(logits[part].astype(np.float64), axis=1)
        predicted = probabilities.argmax(axis=1)
        sums += class_sums(probabilities, predicted, n_classes)
        counts[:, 0] += np.bincount(predicted, minlength=n_classes)
    return np.where(counts > 0.0, sums / np.maximum(counts, 1.0), np.eye(n_classes))


def match_posteriors(probabilities: NDArray, templates: NDArray) -> NDArray:
    """``-min_j KL(p, d_j)`` for the rows d_j of `templates`, (n,), none of whose entries counts as less than 1e-12."""
    log_templates = np.log(np.maximum(templates, _SMALLEST_PROBABILITY))
    return entr(probabilities).sum(axis=1) + (probabilities @ log_templates.T).max(axis=1)


def gradient_norm(rows: NDArray, logits: NDArray) -> NDArray:
    """``norm1(z) sum_k |K p_k - 1|``, (n,), for rows z (n, d) and the logits that a linear layer makes of them.

    The L1 norm of the gradient of ``-sum_k log p_k`` with respect to the weights of that layer, in closed form: the
    gradient is the outer product of ``K p - 1`` and z.
    """
    probabilities = softmax(logits, axis=1)
    surprise = np.abs(logits.shape[1] * probabilities - 1.0).sum(axis=1)
    return np.abs(rows).sum(axis=1) * surprise
