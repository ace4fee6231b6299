"""What of the features lies outside the principal space of the training features."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from sklearn.utils.metadata_routing import MetadataRouter
from sklearn.utils.metaestimators import available_if

from skclip.ood._classifier_based import CLASSIFIER_CONSTRAINTS, LinearDetectorMixin, LinearHead
from skclip.ood._detector import CALIBRATION_CONSTRAINTS, check_known
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval

DIM_CONSTRAINTS: dict[str, list[Any]] = {"dim": [Interval(Integral, 1, None, closed="left"), None]}

# singular values of the weights below this share of the largest are what float32 leaves of zeros: the rows of a
# softmax regression sum to zero
_SMALLEST_SINGULAR_VALUE = 1e-6


def _has_classifier(self: ResidualDetector) -> bool:
    return self.classifier is not None


@fill_doc
class ResidualDetector(LinearDetectorMixin, SkclipBase):
    """Refuse features with much outside the space in which those of training lie.

    ``-norm(R^T (z - u))``: R spans all but the `dim` principal directions of the training features about the origin
    u. The part of `ViMDetector` [1]_ that reads features alone: blind to the classes, and to unknown pictures within
    that space.

    Parameters
    ----------
    classifier : classifier or array-like of shape (K, d), default=None
        None takes rows at unit length and the origin ``u = 0``, which is that of every head without intercepts, such
        as class text; no labels are needed. A classifier with logits linear in the features moves the origin to where
        its logits are nearest to 0, as in the paper, and the rows are taken as it reads them.
    %(dim)s
        At most d - 1: there must be a residual.
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
    coef_, intercept_ : ndarray of shape (K, d) and (K,)
        The head; of no classes without a `classifier`.
    unit_rows_ : bool
        Whether rows are read at unit length.
    classifier_ : classifier or None
        The fitted clone of `classifier`.
    classes_ : ndarray of shape (K,) or None
        Those of `classifier_`; without one the labels of y, sorted, and None without y.
    %(n_features_in_)s
    %(feature_names_in_)s
    %(offset_)s

    See Also
    --------
    ViMDetector : Together with the energy of the logits.
    MahalanobisDetector : Weighs all directions by their spread.

    Notes
    -----
    Needs more than `dim` training pictures: fewer have no residual themselves, so that the in-sample threshold refuses
    all others; set it by pictures of their own then.

    Cost: O(n d^2 + d^3) at fit, O(d (d - dim)) a picture.

    References
    ----------
    .. [1] H. Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching", CVPR 2022, arXiv:2203.10807.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import ResidualDetector
    >>> X = np.random.default_rng(0).normal(size=(50, 4)) * [1.0, 1.0, 0.1, 0.1]
    >>> detector = ResidualDetector(dim=2).fit(X)
    >>> detector.predict([[1.0, 1.0, 0.1, 0.1], [0.1, 0.1, 1.0, 1.0]])
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

    @available_if(_has_classifier)
    def predict_class(self, X: Any) -> NDArray:
        """Label of each picture, whether it would be refused or not. Only with a `classifier`.

        Parameters
        ----------
        X : object
            Pictures, as `fit` takes them.

        Returns
        -------
        ndarray of shape (n,)
        """
        return super().predict_class(X)

    def get_metadata_routing(self) -> MetadataRouter:
        """Metadata routing of this object.

        Returns
        -------
        MetadataRouter
            `fit` hands metadata to that of the classifier, where there is one.
        """
        return MetadataRouter(owner=self) if self.classifier is None else super().get_metadata_routing()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required &= self.classifier is not None
        return tags

    def _learn(self, X: Any, y: ArrayLike | None, **params: Any) -> None:
        if self.classifier is not None:
            super()._learn(X, y, **params)
            return
        if params:
            raise TypeError(f"{type(self).__name__}.fit got {sorted(params)}, but has no classifier to take them.")
        known = check_known(self, X, y)
        self.classifier_ = None
        # a head of no classes: its origin is 0
        self.coef_, self.intercept_, self.unit_rows_ = head = LinearHead(
            np.zeros((0, self.n_features_in_)), np.zeros(0), True
        )
        self._learn_rows(head, known.X)

    def _learn_rows(self, head: LinearHead, X: NDArray) -> None:
        self.dim_ = principal_dim(self.dim, X.shape[1])
        if self.dim_ >= X.shape[1]:
            raise ValueError(f"dim={self.dim_} leaves no residual of {X.shape[1]} features; pass a smaller one.")
        self.center_ = head_origin(head)
        self.residual_basis_ = residual_basis(head, X, self.center_, self.dim_)

    def _score_rows(self, rows: NDArray, logits: NDArray) -> NDArray:
        return -residual_norms(rows, self.center_, self.residual_basis_)


def principal_dim(dim: int | None, n_features: int) -> int:
    """`dim`, or what the official code takes: 1000 of 2048 features or more, 512 of 768 or more, else half of them."""
    if dim is not None:
        return int(dim)
    return 1000 if n_features >= 2048 else 512 if n_features >= 768 else n_features // 2


def head_origin(head: LinearHead) -> NDArray:
    """``u = -pinv(W) b``, (d,), where the logits are nearest to 0: [1]_ of `ViMDetector`."""
    return -np.linalg.pinv(head.coef, rcond=_SMALLEST_SINGULAR_VALUE) @ head.intercept


def residual_basis(head: LinearHead, X: NDArray, origin: NDArray, dim: int) -> NDArray:
    """Eigenvectors of all but the `dim` largest eigenvalues of the second moment of ``z - u``, (d, d - dim)."""
    moment = np.zeros((X.shape[1], X.shape[1]))
    for _, rows in head.blocks(X):
        centred = rows - origin
        moment += centred.T @ centred
    return eigh(moment)[1][:, : X.shape[1] - dim]


def residual_norms(rows: NDArray, origin: NDArray, basis: NDArray) -> NDArray:
    """``norm(R^T (z - u))``, (n,)."""
    return np.linalg.norm((rows - origin) @ basis, axis=1)
