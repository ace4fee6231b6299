"""Maximum concept matching with the means of classes in the place of their names."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from skclip.ood._detector import CALIBRATION_CONSTRAINTS, FeatureDetectorMixin, KnownRows
from skclip.ood._prompt_based import bytes_of_cosines, cosines
from skclip.ood._scores import max_softmax
from skclip.utils._arrays import row_batches, unit_rows
from skclip.utils._base import SkclipBase
from skclip.utils._moments import class_sums


class _MeanMatchingDetector(FeatureDetectorMixin, SkclipBase):
    """``max_k softmax(cos(x, mu_k))_k`` with mu_k the mean of the unit rows of class k.

    As `MCMDetector` it ranks by how far the best class stands above the mean of all, and so does not depend on what
    all pictures have in common; means show what text does not know of the look of the pictures. A member of the
    default `OODEnsemble`.
    """

    _parameter_constraints: dict[str, list[Any]] = {**CALIBRATION_CONSTRAINTS}

    def __init__(self, *, contamination: float = 0.05, calibration: Any = "in_sample") -> None:
        self.contamination = contamination
        self.calibration = calibration

    def _learn_rows(self, known: KnownRows) -> None:
        codes = np.repeat(known.codes, known.n_views)
        n_classes = 1 if self.classes_ is None else len(self.classes_)
        self.means_ = unit_rows(class_sums(unit_rows(known.X.astype(np.float64)), codes, n_classes))

    def _score_rows(self, X: NDArray) -> NDArray:
        scores = np.empty(len(X))
        for part in row_batches(len(X), bytes_of_cosines(*self.means_.shape)):
            scores[part] = max_softmax(cosines(X[part], self.means_))
        return scores
