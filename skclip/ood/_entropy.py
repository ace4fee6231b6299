"""Entropy of the class probabilities."""

from __future__ import annotations

from typing import Any

from numpy.typing import NDArray
from scipy.special import softmax

from skclip.ood._classifier_based import CLASSIFIER_CONSTRAINTS, LogitDetectorMixin
from skclip.ood._detector import CALIBRATION_CONSTRAINTS
from skclip.ood._scores import negative_entropy
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc


@fill_doc
class EntropyDetector(LogitDetectorMixin, SkclipBase):
    """Refuse pictures over which the classifier is undecided: the entropy of its probabilities.

    ``sum_k p_k log p_k``, the entropy with its sign flipped [1]_: 0 for a certain answer, ``-log K`` for equal shares.
    Better than the largest probability alone where pictures resemble several classes at once, and of a classifier
    whose probabilities are honest; as blind as every score of logits to what all classes have in common.

    Parameters
    ----------
    %(classifier)s
    %(contamination)s
    %(calibration)s

    Attributes
    ----------
    %(classifier_)s
    %(classes_of_classifier)s
    %(offset_)s

    See Also
    --------
    MSPDetector : Reads the largest probability alone.
    GENDetector : An entropy that small probabilities weigh more in.

    Notes
    -----
    Cost: that of the classifier. A classifier that offers probabilities only will do.

    References
    ----------
    .. [1] R. Chan et al., "Entropy Maximization and Meta Classification for Out-of-Distribution Detection in Semantic
       Segmentation", ICCV 2021, arXiv:2012.06575.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import EntropyDetector
    >>> detector = EntropyDetector(np.eye(3)).fit(np.eye(3) + 0.1)
    >>> detector.score_samples([[1.0, 1.0, 1.0]]).round(4)  # -log 3
    array([-1.0986])
    """

    _shift_invariant = True
    _parameter_constraints: dict[str, list[Any]] = {**CLASSIFIER_CONSTRAINTS, **CALIBRATION_CONSTRAINTS}

    def __init__(self, classifier: Any = None, *, contamination: float = 0.05, calibration: Any = "in_sample") -> None:
        self.classifier = classifier
        self.contamination = contamination
        self.calibration = calibration

    def _score_logits(self, logits: NDArray) -> NDArray:
        return negative_entropy(softmax(logits, axis=1))
