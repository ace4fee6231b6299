"""Virtual-logit matching: the energy of the logits less what the features hold beside the classes."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from numpy.typing import NDArray

from skclip.ood._classifier_based import CLASSIFIER_CONSTRAINTS, LinearDetectorMixin, LinearHead
from skclip.ood._detector import CALIBRATION_CONSTRAINTS
from skclip.ood._residual import DIM_CONSTRAINTS, head_origin, principal_dim, residual_basis, residual_norms
from skclip.ood._scores import free_energy
from skclip.utils._base import SkclipBase, SkclipWarning, stack_level
from skclip.utils._docs import fill_doc

# residuals of the training rows below this share of their length are rounding
_NO_RESIDUAL = 1e-10


@fill_doc
class ViMDetector(LinearDetectorMixin, SkclipBase):
    """Energy of the logits, less the part of the features outside their principal space: sees classes and features.

    ``log sum_k exp(L_k) - alpha norm(R^T (z - u))`` [1]_, larger for what is in-distribution: z are the features as the
    head reads them, u is where its logits are nearest to 0, and R spans all but the `dim` principal directions of the
    training features about u. The factor alpha makes the residual of training pictures as large as their largest logit
    on average, a virtual logit. Better than either alone where logits and features both know something.

    Parameters
    ----------
    %(linear_classifier)s
    %(dim)s
        d leaves no residual, and gives the score of `EnergyDetector`.
    %(contamination)s
    %(calibration)s

    Attributes
    ----------
    center_ : ndarray of shape (d,)
        u.
    residual_basis_ : ndarray of shape (d, d - dim)
        R.
    dim_ : int
        `dim` in use.
    alpha_ : float
        Factor of the residual; 0 where there is none.
    %(linear_head_)s
    %(classifier_)s
    %(classes_of_classifier)s
    %(n_features_in_)s
    %(feature_names_in_)s
    %(offset_)s

    See Also
    --------
    ResidualDetector : The residual alone.
    EnergyDetector : The logits alone.

    Notes
    -----
    alpha is estimated on the pictures of `fit`, whose residuals are too small where there are few more of them than
    `dim`. Not more than `dim` have none at all, which is an error.

    Cost: O(n d^2 + d^3) at fit beside the classifier, O(d (K + d - dim)) a picture.

    References
    ----------
    .. [1] H. Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022, arXiv:2203.10807.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.adapters import GDAClassifier
    >>> from skclip.ood import ViMDetector
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat([0, 1], 30)
    >>> X = rng.normal(size=(60, 6)) * [1, 1, 1, 0.1, 0.1, 0.1] + 5 * np.eye(2, 6)[y]
    >>> detector = ViMDetector(GDAClassifier(), dim=3).fit(X, y)
    >>> detector.predict([[5.0, 0.0, 0.0, 0.0, 0.0, 0.0], [5.0, 0.0, 0.0, 3.0, 3.0, 3.0]])
    array([ 1, -1])
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **CLASSIFIER_CONSTRAINTS,
        **DIM_CONSTRAINTS,
        **CALIBRATION_CONSTRAINTS,
    }

    def __init__(
        self,
        classifier: Any = None,
        *,
        dim: int | None = None,
        contamination: float = 0.05,
        calibration: Any = "in_sample",
    ) -> None:
        self.classifier = classifier
        self.dim = dim
        self.contamination = contamination
        self.calibration = calibration

    def _learn_rows(self, head: LinearHead, X: NDArray) -> None:
        self.dim_ = principal_dim(self.dim, X.shape[1])
        if self.dim_ > X.shape[1]:
            raise ValueError(f"dim={self.dim_} is more than the {X.shape[1]} features; pass at most as many.")
        self.center_ = head_origin(head)
        self.residual_basis_ = residual_basis(head, X, self.center_, self.dim_)
        self.alpha_ = self._virtual_scale(head, X) if self.dim_ < X.shape[1] else 0.0

    def _virtual_scale(self, head: LinearHead, X: NDArray) -> float:
        """alpha: mean largest logit over mean residual, of the training rows."""
        largest, residual, length = 0.0, 0.0, 0.0
        for _, rows in head.blocks(X):
            largest += head.logits(rows).max(axis=1).sum()
            residual += residual_norms(rows, self.center_, self.residual_basis_).sum()
            length += np.linalg.norm(rows - self.center_, axis=1).sum()
        if residual <= _NO_RESIDUAL * length:
            raise ValueError(
                f"The dim = {self.dim_} principal directions hold all n_samples = {len(X)} training rows, whose "
                "residual is to be measured; pass more rows or a smaller dim."
            )
        if largest < 0.0:
            warnings.warn(
                f"The largest logits of the training pictures are negative on average ({largest / len(X):.3g}), and so "
                "is alpha_: a residual counts in favour of a picture. Take a classifier trained by softmax, such as "
                "LinearProbeClassifier.",
                SkclipWarning,
                stacklevel=stack_level(),
            )
        return float(largest / residual)

    def _score_rows(self, rows: NDArray, logits: NDArray) -> NDArray:
        return free_energy(logits) - self.alpha_ * residual_norms(rows, self.center_, self.residual_basis_)
