"""Divergence of the class probabilities from those that are typical of a class."""

from __future__ import annotations

from typing import Any

from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax

from skclip.ood._classifier_based import CLASSIFIER_CONSTRAINTS, LogitDetectorMixin
from skclip.ood._detector import CALIBRATION_CONSTRAINTS
from skclip.ood._scores import match_posteriors, mean_posteriors
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc


@fill_doc
class KLMatchingDetector(LogitDetectorMixin, SkclipBase):
    """Refuse what the classifier answers in a way that is typical of no class.

    ``-min_j KL(p, d_j)`` [1]_: p are the probabilities of the picture, and d_j the mean probabilities of the training
    pictures that the classifier takes for class j, whatever their labels. A class for which it takes none is matched
    by full certainty. A picture between two classes that are often taken for one another passes, which the largest
    probability would refuse.

    Parameters
    ----------
    %(classifier)s
    %(contamination)s
    %(calibration)s

    Attributes
    ----------
    templates_ : ndarray of shape (K, K)
        d_j, one per row.
    %(classifier_)s
    %(classes_of_classifier)s
    %(offset_)s

    See Also
    --------
    EntropyDetector : Takes full certainty alone as typical.

    Notes
    -----
    A classifier is surer of pictures that it was fitted on. Where it learns much from `fit`, fit it on others and
    freeze it, so that the templates tell what it says of new pictures.

    Probabilities of templates count as at least 1e-12. Cost: that of the classifier, and O(K^2) a picture.

    References
    ----------
    .. [1] D. Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings", ICML 2022,
       arXiv:1911.11132.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import KLMatchingDetector
    >>> detector = KLMatchingDetector(np.eye(3)).fit(np.eye(3) + 0.1)
    >>> detector.predict([[1.0, 0.1, 0.1], [1.0, 1.0, 1.0]])
    array([ 1, -1])
    """

    _shift_invariant = True
    _parameter_constraints: dict[str, list[Any]] = {**CLASSIFIER_CONSTRAINTS, **CALIBRATION_CONSTRAINTS}

    def __init__(self, classifier: Any = None, *, contamination: float = 0.05, calibration: Any = "in_sample") -> None:
        self.classifier = classifier
        self.contamination = contamination
        self.calibration = calibration

    def _learn(self, X: Any, y: ArrayLike | None, **params: Any) -> None:
        super()._learn(X, y, **params)
        self.templates_ = mean_posteriors(self._logits(X))

    def _score_logits(self, logits: NDArray) -> NDArray:
        return match_posteriors(softmax(logits, axis=1), self.templates_)
