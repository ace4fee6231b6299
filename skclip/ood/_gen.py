"""Generalized entropy of the class probabilities."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

from numpy.typing import NDArray
from scipy.special import softmax

from skclip.ood._classifier_based import CLASSIFIER_CONSTRAINTS, LogitDetectorMixin
from skclip.ood._detector import CALIBRATION_CONSTRAINTS
from skclip.ood._scores import generalized_entropy
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval


@fill_doc
class GENDetector(LogitDetectorMixin, SkclipBase):
    """Refuse pictures with many faint second choices: a generalized entropy of the largest probabilities.

    ``-sum_k p_k^gamma (1 - p_k)^gamma`` over the M largest probabilities, a generalized entropy with its sign flipped,
    as the paper prints it [1]_. A small gamma makes small probabilities count, which the entropy hardly sees; a small M
    leaves out the tail of a long list of classes.

    Parameters
    ----------
    %(classifier)s
    gamma : float, default=0.1
        Exponent, below 1 in the paper. 1 with all classes gives the Gini index, ``sum p^2 - 1``.
    M : int, default=100
        How many of the largest probabilities count; all of them where there are no more classes.
    %(contamination)s
    %(calibration)s

    Attributes
    ----------
    %(classifier_)s
    %(classes_of_classifier)s
    %(offset_)s

    See Also
    --------
    EntropyDetector : Shannon's.

    Notes
    -----
    Cost: that of the classifier, and one partial sort of the K probabilities. A classifier that offers probabilities
    only will do, but those that it has rounded to 0 are lost.

    References
    ----------
    .. [1] X. Liu, Y. Lochman and C. Zach, "GEN: Pushing the Limits of Softmax-Based Out-of-Distribution Detection",
       CVPR 2023.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import GENDetector
    >>> detector = GENDetector(np.eye(3)).fit(np.eye(3) + 0.1)
    >>> detector.predict([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    array([ 1, -1])
    """

    _shift_invariant = True
    _parameter_constraints: dict[str, list[Any]] = {
        **CLASSIFIER_CONSTRAINTS,
        "gamma": [Interval(Real, 0, None, closed="neither")],
        "M": [Interval(Integral, 1, None, closed="left")],
        **CALIBRATION_CONSTRAINTS,
    }

    def __init__(
        self,
        classifier: Any = None,
        *,
        gamma: float = 0.1,
        M: int = 100,
        contamination: float = 0.05,
        calibration: Any = "in_sample",
    ) -> None:
        self.classifier = classifier
        self.gamma = gamma
        self.M = M
        self.contamination = contamination
        self.calibration = calibration

    def _score_logits(self, logits: NDArray) -> NDArray:
        return generalized_entropy(softmax(logits, axis=1), self.gamma, self.M)
