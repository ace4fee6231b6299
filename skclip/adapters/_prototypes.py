"""What adapters that learn around class prototypes by gradient do before they train."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skclip.adapters._gradient import Pictures, pictures_to_train_on
from skclip.adapters._held_out import distinct_pictures
from skclip.utils._arrays import unit_rows
from skclip.utils._class_text import set_text, warn_if_guessing
from skclip.utils._cosine import DEFAULT_LOGIT_SCALE
from skclip.utils._moments import class_sums
from skclip.utils._training import check_training


class Lesson(NamedTuple):
    """Where training starts and what it sees."""

    prototypes: NDArray  # (K, d) unit rows: the class text, or the means of the training rows
    logit_scale: float
    pictures: Pictures
    validation: Pictures | None
    rng: np.random.RandomState


def prepare(estimator: Any, X: Any, y: ArrayLike, sample_weight: ArrayLike | None) -> Lesson:
    """Check the training set of a `fit`, resolve its text, and hold out pictures where `early_stopping` asks for it.

    Sets what `check_training` and `set_text` set; without text ``logit_scale_`` is the parameter, or 100. Warnings
    point at the caller of `fit`.
    """
    training = check_training(estimator, X, y, sample_weight)
    text = set_text(estimator)
    warn_if_guessing(training, text)
    if text is None:
        estimator.logit_scale_ = DEFAULT_LOGIT_SCALE if estimator.logit_scale is None else float(estimator.logit_scale)
    pictures, validation, rng = pictures_to_train_on(estimator, training)
    prototypes = class_means(pictures, len(estimator.classes_)) if text is None else text.prototypes
    prototypes = prototypes.astype(pictures.views.dtype, copy=False)
    return Lesson(prototypes, estimator.logit_scale_, pictures, validation, rng)


def class_means(pictures: Pictures, n_classes: int) -> NDArray:
    """Unit weighted means of the rows of each class, every view a row: (K, d)."""
    rows, codes, weights = pictures.flat()
    return unit_rows(class_sums(rows, codes, n_classes, weights.astype(rows.dtype)))


def means_of_others(pictures: Pictures, n_classes: int) -> tuple[Pictures, NDArray]:
    """Class means without the picture that is compared with them.

    Returns
    -------
    distinct : Pictures
        The pictures with repeats merged, so that a picture is left out wholly.
    others : ndarray of shape (n_distinct, d)
        Unit mean of the other pictures of the class; of the picture itself where it is alone.
    """
    rows, _, _ = pictures.flat()
    weights = np.ones(len(pictures.codes)) if pictures.weights is None else pictures.weights
    views, codes, weights = distinct_pictures(rows, pictures.codes, weights, pictures.views.shape[1])
    own = weights[:, None] * views.sum(axis=1, dtype=np.float64)
    totals = class_sums(own, codes, n_classes)[codes]
    alone = np.bincount(codes, minlength=n_classes)[codes] == 1
    others = unit_rows(np.where(alone[:, None], totals, totals - own))
    return Pictures(views, codes, weights), others.astype(rows.dtype, copy=False)
