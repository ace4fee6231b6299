"""Size of the gradient that a linear head would receive."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from skclip.ood._classifier_based import CLASSIFIER_CONSTRAINTS, LinearDetectorMixin
from skclip.ood._detector import CALIBRATION_CONSTRAINTS
from skclip.ood._scores import gradient_norm
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc


@fill_doc
class GradNormDetector(LinearDetectorMixin, SkclipBase):
    """Refuse pictures whose gradient is small: features that are small, or answers that are near equal shares.

    The L1 norm of the gradient of ``-sum_k log p_k`` with respect to the weights of the last layer [1]_. For a linear
    head it needs no gradient: it is ``norm1(z) sum_k |K p_k - 1|``, with z the features as the head reads them.

    Parameters
    ----------
    %(linear_classifier)s
    %(contamination)s
    %(calibration)s

    Attributes
    ----------
    %(linear_head_)s
    %(classifier_)s
    %(classes_of_classifier)s
    %(n_features_in_)s
    %(feature_names_in_)s
    %(offset_)s

    See Also
    --------
    MSPDetector : Much the same on unit rows, whose L1 norm varies little.

    Notes
    -----
    The length of features in networks trained for classification is what makes it work there; CLIP's directions have
    none, and what is left of it, their L1 norm, depends on the coordinates.

    Cost: O(K d) a picture.

    References
    ----------
    .. [1] R. Huang, A. Geng and Y. Li, "On the Importance of Gradients for Detecting Distributional Shifts in the
       Wild", NeurIPS 2021, arXiv:2110.00218.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import GradNormDetector
    >>> detector = GradNormDetector(np.eye(3)).fit(np.eye(3) + 0.1)
    >>> detector.score_samples([[1.0, 1.0, 1.0], [0.0, 0.0, 1.0]]).round(6)
    array([0., 4.])
    """

    _parameter_constraints: dict[str, list[Any]] = {**CLASSIFIER_CONSTRAINTS, **CALIBRATION_CONSTRAINTS}

    def __init__(self, classifier: Any = None, *, contamination: float = 0.05, calibration: Any = "in_sample") -> None:
        self.classifier = classifier
        self.contamination = contamination
        self.calibration = calibration

    def _score_rows(self, rows: NDArray, logits: NDArray) -> NDArray:
        return gradient_norm(rows, logits)
