"""The largest logit."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray

from skclip.ood._classifier_based import CLASSIFIER_CONSTRAINTS, LogitDetectorMixin
from skclip.ood._detector import CALIBRATION_CONSTRAINTS
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc


@fill_doc
class MaxLogitDetector(LogitDetectorMixin, SkclipBase):
    """Refuse what no class claims: the largest logit.

    ``max_k L_k`` [1]_. Of class text it is the cosine with the nearest name, and unlike a probability it does not
    suffer from two classes that share a picture: usually ahead of `MSPDetector` where classes are many or close.

    Parameters
    ----------
    %(classifier)s
        One that offers probabilities only has no logits, and is refused.
    %(contamination)s
    %(calibration)s

    Attributes
    ----------
    %(classifier_)s
    %(classes_of_classifier)s
    %(offset_)s

    See Also
    --------
    EnergyDetector : A soft maximum.
    MSPDetector : Relative to the other classes.

    Notes
    -----
    Cost: that of the classifier.

    References
    ----------
    .. [1] D. Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022,
       arXiv:1911.11132.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import MaxLogitDetector
    >>> detector = MaxLogitDetector(np.eye(3)).fit(np.eye(3) + 0.1)
    >>> detector.score_samples([[0.0, 3.0, 4.0]])
    array([80.])
    """

    _parameter_constraints: dict[str, list[Any]] = {**CLASSIFIER_CONSTRAINTS, **CALIBRATION_CONSTRAINTS}

    def __init__(self, classifier: Any = None, *, contamination: float = 0.05, calibration: Any = "in_sample") -> None:
        self.classifier = classifier
        self.contamination = contamination
        self.calibration = calibration

    def _score_logits(self, logits: NDArray) -> NDArray:
        return logits.max(axis=1)
