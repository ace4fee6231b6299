"""Free energy of the logits."""

from __future__ import annotations

from numbers import Real
from typing import Any

from numpy.typing import NDArray

from skclip.ood._classifier_based import CLASSIFIER_CONSTRAINTS, LogitDetectorMixin
from skclip.ood._detector import CALIBRATION_CONSTRAINTS
from skclip.ood._scores import free_energy
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval


@fill_doc
class EnergyDetector(LogitDetectorMixin, SkclipBase):
    """Refuse what all classes together claim too little: the free energy of the logits.

    ``T log sum_k exp(L_k / T)``, the free energy of [1]_ with its sign flipped. A soft `MaxLogitDetector`:
    above it by at most ``T log K``.

    Parameters
    ----------
    %(classifier)s
        One that offers probabilities only has no logits, and is refused.
    temperature : float, default=1.0
        T. Towards 0 the largest logit alone counts; far above the logits, their mean.
    %(contamination)s
    %(calibration)s

    Attributes
    ----------
    %(classifier_)s
    %(classes_of_classifier)s
    %(offset_)s

    See Also
    --------
    MaxLogitDetector : Its limit for small temperatures.
    ViMDetector : Takes off what the features hold beside the classes.

    Notes
    -----
    Cost: that of the classifier. Logits of class text are cosines times a scale of about 100; of plain cosines the
    energy is nearly their mean, and tells little.

    References
    ----------
    .. [1] W. Liu et al., "Energy-based Out-of-distribution Detection", NeurIPS 2020, arXiv:2010.03759.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import EnergyDetector
    >>> detector = EnergyDetector(np.eye(3)).fit(np.eye(3) + 0.1)
    >>> detector.predict([[1.0, 0.0, 0.0], [1.0, 1.0, 1.0]])
    array([ 1, -1])
    """

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
        return free_energy(logits, self.temperature)
