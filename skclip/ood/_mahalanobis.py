"""Mahalanobis distance to the nearest class."""

from __future__ import annotations

from typing import Any, Self

from numpy.typing import ArrayLike, NDArray
from sklearn.utils.metaestimators import available_if

from skclip.ood._detector import CALIBRATION_CONSTRAINTS, FeatureDetectorMixin, KnownRows
from skclip.ood._device import DEVICE_CONSTRAINTS, resolve, resolve_fitted
from skclip.ood._gaussian import (
    COVARIANCE_CONSTRAINTS,
    Gaussians,
    adds_up,
    continued_moments,
    gather,
    in_sample_scores,
    nearest_distances,
    set_gaussians,
)
from skclip.utils._base import SkclipBase, unchanged_on_failure
from skclip.utils._docs import fill_doc
from skclip.utils._params import check_parameters


@fill_doc
class MahalanobisDetector(FeatureDetectorMixin, SkclipBase):
    """Refuse what is far from every class, measured in the noise that the classes share.

    ``-min_k (x - mu_k)^T P (x - mu_k)`` [1]_, with mu_k the class means and P the inverse of the pooled within-class
    covariance of unit rows; the paper's confidence score, its distance with the sign flipped. It sees what logits do
    not: directions in which pictures of known classes never vary. It needs rows, several times as many as there are
    features; with fewer take shrinkage ("ks", "ledoit_wolf") and ``calibration="cv"``.

    Parameters
    ----------
    %(covariance_of_detector)s
    %(device_of_scores)s
    %(contamination)s
    %(calibration)s

    Attributes
    ----------
    %(classes_known)s
    %(gaussians_)s
    %(offset_)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    RelativeMahalanobisDetector : Less the distance to all rows as one class; mostly better for related classes.
    KNNDetector : Distance to rows instead of means, for classes of several clusters.

    Notes
    -----
    Rows are scaled to unit length, in `fit` as in scoring. Without y all rows are one class. Where no class has two
    different rows there is no within-class scatter; the scatter about the mean of all rows, which bounds it, takes
    its place, and the identity that of no scatter at all.

    Rows are much nearer to means and covariance that they were themselves averaged into than new pictures are: with
    N within a few times d, the threshold of ``calibration="in_sample"`` refuses far more than `contamination` of new
    in-distribution pictures. "cv" errs a little to the other side, as each fold learns from fewer rows.

    Cost: `fit` O(n d^2 + d^3), the threshold included, which needs the exact scores of few rows: a bound tells those
    that cannot lie below it. Scores O(n d (d + K)), in blocks within scikit-learn's ``working_memory``: rows are
    whitened once and multiplied with all whitened means at once. Scores are computed in float64, on CUDA too. MPS has
    float32 only; three or four digits of its scores are right.

    References
    ----------
    .. [1] K. Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution Samples and Adversarial
       Attacks", NeurIPS 2018, arXiv:1807.03888, equations (1) and (2).

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import MahalanobisDetector
    >>> rng = np.random.default_rng(0)
    >>> X = np.repeat(np.eye(4)[:2], 50, axis=0) + 0.1 * rng.normal(size=(100, 4))
    >>> detector = MahalanobisDetector().fit(X, np.repeat(["cat", "dog"], 50))
    >>> detector.predict(np.eye(4))
    array([ 1,  1, -1, -1])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **COVARIANCE_CONSTRAINTS,
        **DEVICE_CONSTRAINTS,
        **CALIBRATION_CONSTRAINTS,
    }

    def __init__(
        self,
        covariance: Any = "empirical",
        *,
        device: str = "cpu",
        contamination: float = 0.05,
        calibration: Any = "in_sample",
    ) -> None:
        self.covariance = covariance
        self.device = device
        self.contamination = contamination
        self.calibration = calibration

    @available_if(adds_up)
    def partial_fit(self, X: Any, y: ArrayLike | None = None, classes: ArrayLike | None = None) -> Self:
        """Continue with a chunk of pictures; after all chunks the Gaussians are those of one `fit`, up to rounding.

        %(partial_fit_detector)s
        """
        check_parameters(self)
        resolve(self.device)
        with unchanged_on_failure(self):
            set_gaussians(self, continued_moments(self, X, y, classes), None)
            self.offset_ = self._offset(self._calibration_scores(X, y, {}))
        return self

    def _learn_rows(self, known: KnownRows) -> None:
        resolve(self.device)
        moments, rows = gather(self.covariance, known, 1 if self.classes_ is None else len(self.classes_))
        set_gaussians(self, moments, rows)

    def _calibration_scores(self, X: Any, y: ArrayLike | None, params: dict[str, Any]) -> NDArray:
        scores = in_sample_scores(self, X, y, None)
        return super()._calibration_scores(X, y, params) if scores is None else scores

    def _score_rows(self, X: NDArray) -> NDArray:
        known = Gaussians(self.location_, self.whitening_, self.whitened_means_)
        return -nearest_distances(X, [known], resolve_fitted(self.device))[:, 0]
