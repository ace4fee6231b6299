"""Maximum concept matching."""

from __future__ import annotations

from numbers import Real
from typing import Any

from numpy.typing import NDArray

from skclip.ood._detector import CALIBRATION_CONSTRAINTS
from skclip.ood._prompt_based import TEXT_CONSTRAINTS, PromptDetectorMixin, cosines
from skclip.ood._scores import max_softmax
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval


@fill_doc
class MCMDetector(PromptDetectorMixin, SkclipBase):
    """Refuse what resembles no class name more than the others: maximum concept matching.

    ``max_k softmax(c / T)_k`` [1]_, with c the cosines of a picture with the class text. Needs the names of the
    classes and not one picture; take it where there are no labels. At T = 1 the softmax of cosines is nearly flat,
    and that is what makes it work: it ranks by how far the best class stands above the mean of all. At T = 0.01 it is
    `MSPDetector` of the zero-shot classifier.

    Parameters
    ----------
    %(zero_shot_of_detector)s
    temperature : float, default=1.0
        T, the divisor of the cosines.
    %(contamination)s
    %(calibration)s

    Attributes
    ----------
    %(classes_of_text)s
    %(prototypes_of_text)s
    %(offset_of_text)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    GLMCMDetector : Looks at regions of the picture as well.
    NegLabelDetector : Compares with words that name no class, too.
    MSPDetector : The same of any classifier's logits.

    Notes
    -----
    Cost: ``O(n K d)``.

    With one class the score is 1 everywhere.

    References
    ----------
    .. [1] Y. Ming, Z. Cai, J. Gu, Y. Sun, W. Li and Y. Li, "Delving into Out-of-Distribution Detection with
       Vision-Language Representations", NeurIPS 2022, arXiv:2211.13445, equation 2.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import MCMDetector
    >>> detector = MCMDetector(np.eye(3)).fit(np.eye(3) + 0.1)
    >>> detector.predict([[1.0, 0.0, 0.1], [1.0, 1.0, 1.0]])
    array([ 1, -1])

    Without pictures there is a score, but no threshold:

    >>> MCMDetector(np.eye(3)).fit().score_samples([[1.0, 0.1, 0.1], [1.0, 1.0, 1.0]]).round(3)
    array([0.549, 0.333])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **TEXT_CONSTRAINTS,
        "temperature": [Interval(Real, 0, None, closed="neither")],
        **CALIBRATION_CONSTRAINTS,
    }

    def __init__(
        self,
        zero_shot: Any = None,
        *,
        temperature: float = 1.0,
        contamination: float = 0.05,
        calibration: Any = "in_sample",
    ) -> None:
        self.zero_shot = zero_shot
        self.temperature = temperature
        self.contamination = contamination
        self.calibration = calibration

    def _score_rows(self, X: NDArray) -> NDArray:
        return max_softmax(cosines(X, self.prototypes_), self.temperature)
