"""Variance of the softmax over class names."""

from __future__ import annotations

from numbers import Real
from typing import Any

from numpy.typing import NDArray
from scipy.special import softmax

from skclip.ood._detector import CALIBRATION_CONSTRAINTS
from skclip.ood._prompt_based import TEXT_CONSTRAINTS, PromptDetectorMixin, cosines
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval


def softmax_variance(cosines: NDArray, temperature: float) -> NDArray:
    """``var_k softmax(c / T)_k``, (n,): the mean squared distance of the K shares from 1 / K."""
    return softmax(cosines / temperature, axis=1).var(axis=1)


@fill_doc
class VarianceDetector(PromptDetectorMixin, SkclipBase):
    """Refuse what is equally far from all class names: variance of the softmax over them.

    ``var_k softmax(c / T)_k``, with c the cosines of a picture with the class text; an option of the code of MCM [1]_.
    It reads all classes where `MCMDetector` reads the best one: take it where a picture shows several of them at once.

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
    MCMDetector : Reads the best class alone.

    Notes
    -----
    Cost: ``O(n K d)``.

    With one class the score is 0 everywhere.

    References
    ----------
    .. [1] Y. Ming, Z. Cai, J. Gu, Y. Sun, W. Li and Y. Li, "Delving into Out-of-Distribution Detection with
       Vision-Language Representations", NeurIPS 2022, arXiv:2211.13445.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import VarianceDetector
    >>> detector = VarianceDetector(np.eye(3)).fit(np.eye(3) + 0.1)
    >>> detector.predict([[1.0, 0.0, 0.1], [1.0, 1.0, 1.0]])
    array([ 1, -1])
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
        return softmax_variance(cosines(X, self.prototypes_), self.temperature)
