"""Scanned digits as RGB pictures: real input without a download."""

from __future__ import annotations

from typing import Literal

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.utils import Bunch

from skclip.datasets._language import NUMBERS

_INK, _PAPER = 25.0, 240.0


def load_digit_pictures(*, image_size: int = 48, subset: Literal["train", "test", "all"] = "all") -> Bunch:
    """Load scikit-learn's handwritten digits as RGB pictures, dark ink on light paper.

    Parameters
    ----------
    image_size : int, default=48
        Side of the square pictures in pixels; the 8 x 8 scans are enlarged bicubically.
    subset : {"train", "test", "all"}, default="all"
        Every third scan is "test" (599 pictures), the others are "train" (1198). The bundled models were
        trained on "train" alone.

    Returns
    -------
    digits : :class:`~sklearn.utils.Bunch`
        images : ndarray of shape (n, image_size, image_size, 3), uint8
            The pictures.
        target : ndarray of shape (n,), int
            The digits.
        class_names : dict of int to str
            ``{0: "digit zero", ...}``, ready for `ZeroShotClassifier(class_names=...)`.

    References
    ----------
    E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning Repository,
    1998, through :func:`sklearn.datasets.load_digits`.

    Examples
    --------
    >>> from skclip.datasets import load_digit_pictures
    >>> load_digit_pictures(subset="test").images.shape
    (599, 48, 48, 3)
    """
    if subset not in ("train", "test", "all"):
        raise ValueError(f'subset must be "train", "test" or "all", got {subset!r}.')
    scans, target = load_digits(return_X_y=True)
    is_test = np.arange(len(target)) % 3 == 2
    rows = {"train": ~is_test, "test": is_test, "all": slice(None)}[subset]
    gray = np.round(_PAPER + (_INK - _PAPER) * scans[rows].reshape(-1, 8, 8) / 16.0).astype(np.uint8)
    enlarged = np.stack(
        [np.asarray(Image.fromarray(g).resize((image_size, image_size), Image.Resampling.BICUBIC)) for g in gray]
    )
    return Bunch(
        images=np.repeat(enlarged[..., None], 3, axis=3),
        target=target[rows],
        class_names={i: f"digit {word}" for i, word in enumerate(NUMBERS)},
    )
