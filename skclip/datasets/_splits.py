"""Few-shot sampling."""

from __future__ import annotations

from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state, column_or_1d


def few_shot_split(
    y: ArrayLike, shots: int, random_state: int | np.random.RandomState | None = None
) -> tuple[NDArray, NDArray]:
    """Draw the same number of samples of every class; the rest is the test set.

    With the same `random_state` smaller draws are contained in larger ones, as few-shot curves need.

    Parameters
    ----------
    y : array-like of shape (n_samples,)
        Labels.
    shots : int
        Samples per class, at least 1.
    random_state : int, RandomState instance or None, default=None

    Returns
    -------
    train, test : ndarray of int
        Sorted positions; `test` holds every sample that `train` does not.

    Raises
    ------
    ValueError
        If a class has fewer than `shots` samples; the message names it.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.datasets import few_shot_split
    >>> y = np.repeat(["cat", "dog"], 10)
    >>> train, test = few_shot_split(y, 2, random_state=0)
    >>> len(train), len(test)
    (4, 16)
    """
    if not isinstance(shots, Integral) or shots < 1:
        raise ValueError(f"shots must be an integer >= 1, got {shots!r}.")
    labels = column_or_1d(y)
    rng = check_random_state(random_state)
    order = rng.permutation(len(labels))
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    if len(counts) == 0:
        raise ValueError("y is empty.")
    if counts.min() < shots:
        short = counts.argmin()
        raise ValueError(
            f"Class {classes[short].item()!r} has {counts[short]} samples, fewer than the {shots} shots asked for."
        )
    by_class = order[np.argsort(codes[order], kind="stable")]
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    train = np.sort(by_class[(starts[:, None] + np.arange(shots)).ravel()])
    return train, np.setdiff1d(np.arange(len(labels)), train, assume_unique=True)
