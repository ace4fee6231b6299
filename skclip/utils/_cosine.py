"""Logits of unit rows: cosines with class prototypes, and linear models, shared by several classifiers."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from skclip.utils._arrays import row_batches, unit_rows

# multiplier of the cosines where nothing tells a better one: what CLIP's training clips its own to
DEFAULT_LOGIT_SCALE = 100.0


def cosine_logits(rows: NDArray, prototypes: NDArray, logit_scale: float) -> NDArray:
    """``logit_scale * x_i . t_k`` of unit rows and unit prototypes, (n, K), in the floating type of `rows`."""
    return logit_scale * (rows @ prototypes.T.astype(rows.dtype, copy=False))


def linear_logits(X: NDArray, coef: NDArray, intercept: NDArray | float = 0.0) -> NDArray:
    """``x . coef_k + intercept_k`` of the rows of `X` at unit length, (n, K), float64."""
    logits = np.empty((len(X), len(coef)))
    for part in row_batches(len(X), 8 * (len(coef) + 3 * X.shape[1])):
        logits[part] = unit_rows(X[part].astype(np.float64)) @ coef.T + intercept
    return logits


def is_chance(n_right: int, n: int, n_classes: int) -> bool:
    """Whether `n_right` of `n` could be guessing among `n_classes`; False where `n` is too small to tell."""
    if n_classes < 2 or n < 30:
        return False
    chance = 1.0 / n_classes
    return n_right <= n * chance + 2.0 * np.sqrt(n * chance * (1.0 - chance))


def chance_message(n_right: int, n: int, n_classes: int, source: str) -> str:
    """What to say about features and class text that seem to come from two models."""
    return (
        f"Zero-shot accuracy on {n} training rows is {n_right / n:.3f}, no better than chance (1/{n_classes}). "
        f"Check that X and {source} come from the same model, and that every label has its own name."
    )
