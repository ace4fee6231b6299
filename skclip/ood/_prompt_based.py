"""Detectors that compare pictures with class text: resolving the text, and fitting without pictures."""

from __future__ import annotations

import warnings
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from skclip.ood._detector import DetectorMixin
from skclip.utils._arrays import check_features, check_prototypes, first_view, row_batches, unit_rows
from skclip.utils._base import SkclipWarning, forget_fit, stack_level
from skclip.utils._class_text import resolve_text
from skclip.utils._cosine import chance_message, is_chance
from skclip.utils._docs import fill_doc
from skclip.utils._params import HasMethods, check_parameters
from skclip.zero_shot import ZeroShotClassifier

TEXT_CONSTRAINTS: dict[str, list[Any]] = {"zero_shot": [HasMethods(["fit"]), "array-like", None]}


@fill_doc
class PromptDetectorMixin(DetectorMixin):
    """`DetectorMixin` for scores of image features and class text, which need no pictures to be fitted.

    The class has the parameter `zero_shot` (`TEXT_CONSTRAINTS`) and defines ``_score_rows(X)`` for rows (n, d) of
    any length.
    """

    _score_rows: Any
    zero_shot: Any
    offset_: Any  # None after fit(None)
    classes_: NDArray
    prototypes_: NDArray

    def fit(self, X: Any = None, y: ArrayLike | None = None) -> Self:
        """Resolve the class text, and set the threshold.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), default=None
            In-distribution pictures, which set the threshold alone. None where there are none: then the threshold
            comes from `calibration`, where that holds pictures, or later from `calibrate`.
        y : array-like of shape (n,), default=None
            Their labels; only compared with the class text.

        %(self)s

        Raises
        ------
        ValueError
            If there is no class text, a parameter, X or y does not fit it, or ``calibration="cv"`` meets no pictures.

        Warns
        -----
        SkclipWarning
            If the nearest class of the pictures is right no more often than chance, as where features and text come
            from two models; needs y.
        """
        if X is not None or not isinstance(self.calibration, str):
            super().fit(X, y)
            if X is not None and y is not None:
                self._warn_if_guessing(X, y)
            return self
        check_parameters(self)
        if self.calibration == "cv":
            raise ValueError(
                'calibration="cv" holds out pictures, but X is None. Pass in-distribution pictures to fit, or leave '
                "calibration as it is and call calibrate(X) when there are some."
            )
        forget_fit(self)
        self._learn(None, y)
        self.offset_ = None
        return self

    def decision_function(self, X: Any) -> NDArray:
        """Distance of the score from the threshold, ``score_samples(X) - offset_``.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n,), float64
            Negative for pictures to be refused.

        Raises
        ------
        NotFittedError
            If there is no threshold: after ``fit(None)`` it takes `calibrate`.
        """
        check_is_fitted(self)
        if self.offset_ is None:
            raise NotFittedError(
                f"This {type(self).__name__} was fitted without pictures and has no threshold: call calibrate(X) with "
                "in-distribution pictures first. score_samples works without."
            )
        return super().decision_function(X)

    def predict_class(self, X: Any) -> NDArray:
        """Label of the nearest class of each picture, whether it would be refused or not.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n,)
        """
        check_is_fitted(self)
        rows = self._embeddings(self._rows(X))
        nearest = np.empty(len(rows), dtype=np.intp)
        for part in row_batches(len(rows), bytes_of_cosines(*self.prototypes_.shape)):
            nearest[part] = cosines(rows[part], self.prototypes_).argmax(axis=1)
        return self.classes_[nearest]

    def _learn(self, X: Any, y: ArrayLike | None) -> None:
        rows = None if X is None else first_view(*check_features(self, X, reset=True))
        if rows is not None:
            check_consistent_length(rows, y)
        self.classes_, self.prototypes_ = self._class_text(y)
        self._check_width(None if rows is None else rows.shape[1])

    def _class_text(self, y: ArrayLike | None) -> tuple[NDArray, NDArray]:
        """Labels (K,) and unit prototypes (K, d)."""
        text = self._fit_text(y)
        resolved = resolve_text(FrozenEstimator(text), None, None, None)
        assert resolved is not None
        return text.classes_, unit_rows(resolved.prototypes.astype(np.float64))

    def _fit_text(self, y: ArrayLike | None) -> Any:
        """The fitted clone of `zero_shot`; labels of y tell how to read a list of class names."""
        if self.zero_shot is None:
            raise ValueError(
                f"{type(self).__name__} compares pictures with class text, but zero_shot is None. Pass "
                "ZeroShotClassifier(class_names={label: name, ...}) or an array of prototypes, (n_classes, d)."
            )
        if hasattr(self.zero_shot, "fit"):
            return clone(self.zero_shot).fit(None, y)
        return ZeroShotClassifier(prototypes=check_prototypes(self.zero_shot, "zero_shot")).fit(None, y)

    def _check_width(self, n_features: int | None) -> None:
        """Compare the width of X, None without X, with that of the text."""
        width = self.prototypes_.shape[1]
        if n_features not in (None, width):
            raise ValueError(
                f"zero_shot holds prototypes of width {width}, but X has {n_features} features; both must come from "
                "one model."
            )
        self.n_features_in_: int = width

    def _warn_if_guessing(self, X: Any, y: ArrayLike) -> None:
        right = self.predict_class(X) == np.asarray(y).ravel()
        n, n_classes = len(right), len(self.classes_)
        if is_chance(int(right.sum()), n, n_classes):
            message = chance_message(int(right.sum()), n, n_classes, "zero_shot")
            warnings.warn(message, SkclipWarning, stacklevel=stack_level())

    def _rows(self, X: Any) -> NDArray:
        return first_view(*check_features(self, X))

    def _embeddings(self, rows: NDArray) -> NDArray:
        """Of each row what stands for the whole picture, (n, d)."""
        return rows

    def _scores(self, X: Any) -> NDArray:
        rows = self._rows(X)
        scores = np.empty(len(rows))
        for part in row_batches(len(rows), self._bytes_per_row(rows.shape[1])):
            scores[part] = self._score_rows(rows[part])
        return scores

    def _held_out_scores(self, X: Any, y: ArrayLike | None, params: dict[str, Any]) -> NDArray:
        # no picture of `fit` is in the score: those of detectors fitted without a fold are the same
        return self._finite_scores(X)

    def _bytes_per_row(self, n_features: int) -> int:
        """Temporaries of `_score_rows`."""
        return bytes_of_cosines(*self.prototypes_.shape)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def cosines(rows: NDArray, directions: NDArray) -> NDArray:
    """Cosines (n, m), float64, of rows (n, d) of any length with unit directions (m, d)."""
    return unit_rows(rows.astype(np.float64)) @ directions.T


def bytes_of_cosines(n_directions: int, width: int) -> int:
    """Memory that `cosines` of one row and a softmax of them take."""
    return 8 * (3 * n_directions + 2 * width)
