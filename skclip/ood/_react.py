"""Energy after cutting off large activations."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skclip.ood._classifier_based import CLASSIFIER_CONSTRAINTS, LinearDetectorMixin, LinearHead
from skclip.ood._detector import CALIBRATION_CONSTRAINTS
from skclip.ood._scores import free_energy
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval


@fill_doc
class ReActDetector(LinearDetectorMixin, SkclipBase):
    """Energy of the logits of features that are cut off at the top, as unknown pictures excite few features strongly.

    ``log sum_k exp(L_k)`` of ``min(z, c)`` [1]_, with z the features as the head reads them and c a
    percentile of all entries of the training features.

    Made for features after a ReLU, none of which is negative; CLIP's have both signs, of which it cuts the positive
    side alone. Prefer `EnergyDetector` or `ViMDetector` there.

    Parameters
    ----------
    %(linear_classifier)s
    percentile : float, default=90.0
        Share of the entries of the training features, in percent, that stays as it is. 100 is the energy, but for
        features beyond those of training.
    %(contamination)s
    %(calibration)s

    Attributes
    ----------
    ceiling_ : float
        c.
    %(linear_head_)s
    %(classifier_)s
    %(classes_of_classifier)s
    %(n_features_in_)s
    %(feature_names_in_)s
    %(offset_)s

    See Also
    --------
    EnergyDetector : Without cutting.

    Notes
    -----
    Depends on the coordinates of the features. Cost: O(n d) time at fit beside the
    classifier, and twice the memory of the training features in float64; O(K d) a picture.

    References
    ----------
    .. [1] Y. Sun, C. Guo and Y. Li, "ReAct: Out-of-distribution Detection With Rectified Activations", NeurIPS 2021,
       arXiv:2111.12797.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import ReActDetector
    >>> detector = ReActDetector(np.eye(3), percentile=50).fit(np.eye(3) + 0.1)
    >>> round(detector.ceiling_, 4)
    0.0902
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **CLASSIFIER_CONSTRAINTS,
        "percentile": [Interval(Real, 0, 100, closed="right")],
        **CALIBRATION_CONSTRAINTS,
    }

    def __init__(
        self,
        classifier: Any = None,
        *,
        percentile: float = 90.0,
        contamination: float = 0.05,
        calibration: Any = "in_sample",
    ) -> None:
        self.classifier = classifier
        self.percentile = percentile
        self.contamination = contamination
        self.calibration = calibration

    def _learn_rows(self, head: LinearHead, X: NDArray) -> None:
        self.ceiling_ = float(np.percentile(head.read(X), self.percentile))

    def _score_rows(self, rows: NDArray, logits: NDArray) -> NDArray:
        return free_energy(np.minimum(rows, self.ceiling_) @ self.coef_.T + self.intercept_)
