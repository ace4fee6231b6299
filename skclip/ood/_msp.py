"""Maximum softmax probability."""

from __future__ import annotations

from numbers import Real
from typing import Any

from numpy.typing import NDArray

from skclip.ood._classifier_based import CLASSIFIER_CONSTRAINTS, LogitDetectorMixin
from skclip.ood._detector import CALIBRATION_CONSTRAINTS
from skclip.ood._scores import max_softmax
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval


@fill_doc
class MSPDetector(LogitDetectorMixin, SkclipBase):
    """Refuse what the classifier is not sure of: the largest softmax probability.

    ``max_k softmax(L / T)_k`` [1]_, with L the logits of `classifier`. The baseline of every comparison; it sees
    nothing of what all classes have in common, and unknown pictures that resemble one class more than the others
    pass.

    Parameters
    ----------
    %(classifier)s
    temperature : float, default=1.0
        T. Above 1 it flattens the probabilities, which can change the order.
    %(contamination)s
    %(calibration)s

    Attributes
    ----------
    %(classifier_)s
    %(classes_of_classifier)s
    %(offset_)s

    See Also
    --------
    MCMDetector : The same of cosines with class names, at the temperature of its paper.
    EntropyDetector : Reads all probabilities.

    Notes
    -----
    Cost: that of the classifier.

    References
    ----------
    .. [1] D. Hendrycks and K. Gimpel, "A Baseline for Detecting Misclassified and Out-of-Distribution Examples in
       Neural Networks", ICLR 2017, arXiv:1610.02136.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import MSPDetector
    >>> prototypes = np.eye(3)
    >>> detector = MSPDetector(prototypes).fit(np.eye(3) + 0.1)
    >>> detector.predict([[1.0, 0.1, 0.1], [1.0, 1.0, 1.0]])
    array([ 1, -1])
    """

    _shift_invariant = True
    _parameter_constraints: dict[str, list[Any]] = {
        **CLASSIFIER_CONSTRAINTS,
        "temperature": [Interval(Real, 0, None, closed="neither")],
        **CALIBRATION_CONSTRAINTS,
    }

    def __init__(
        self,
        classifier: Any = None,
        *,
        temperature: float = 1.0,
        contamination: float = 0.05,
        calibration: Any = "in_sample",
    ) -> None:
        self.classifier = classifier
        self.temperature = temperature
        self.contamination = contamination
        self.calibration = calibration

    def _score_logits(self, logits: NDArray) -> NDArray:
        return max_softmax(logits, self.temperature)
