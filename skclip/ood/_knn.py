"""Distance to the k-th nearest training row."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skclip.ood._bank import (
    BANK_CONSTRAINTS,
    add_rows,
    check_more_known,
    largest_in_bank,
    query_blocks,
    threshold_rows,
    threshold_scores,
)
from skclip.ood._detector import CALIBRATION_CONSTRAINTS, FeatureDetectorMixin, KnownRows
from skclip.utils._arrays import unit_rows
from skclip.utils._base import SkclipBase, unchanged_on_failure
from skclip.utils._docs import fill_doc
from skclip.utils._faiss import FLAT
from skclip.utils._params import check_parameters


@fill_doc
class KNNDetector(FeatureDetectorMixin, SkclipBase):
    """Refuse what has no training picture near it: the distance to the k-th nearest.

    ``-(2 - 2 cos(x, f_(k)))`` [1]_, the squared Euclidean distance at unit length between a picture and its k-th
    nearest training row, with the sign flipped. It assumes nothing of the shape of classes, and needs neither labels
    nor text; noise that all classes share drowns it, where `MahalanobisDetector` sees through.

    Parameters
    ----------
    n_neighbors : int, default=50
        k. Smaller for few pictures per class: beyond those of a cluster, the k-th nearest is of another one.
    %(bank_search)s
    %(contamination)s
    calibration : {"in_sample", "cv"} or array-like, default="in_sample"
        Pictures whose scores set the threshold.

        - "in_sample": those of `fit`, of more than 10,000 a random 10,000, each of which is its own nearest
          neighbour: with a small k the threshold is so high that most new pictures are refused, all of them with k = 1.
        - "cv": those of `fit`, each with all its own views left out of the search, exactly; recommended for k below
          about 20.
        - in-distribution pictures of their own, as X of `fit`.

    Attributes
    ----------
    bank_ : ndarray of shape (m, d)
        Unit rows of the training pictures, every view of them.
    %(bank_attributes)s
    %(classes_known)s
    %(offset_)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    NNGuideDetector : Neighbours and the logits of a classifier.
    MahalanobisDetector : Distance to class means, in the noise that the classes share.

    Notes
    -----
    Rows are scaled to unit length, in `fit` as in scoring; one of zeros has cosine 0 with everything. Of X with shape
    (n, V, d) every view is a row of the bank, and view 0 is scored. pytorch-ood gives the distance, not its square.

    Float32 rows are searched in float32, which resolves cosines to about 1e-7.

    Cost: O(n m d) for n pictures, one product of matrices in blocks within scikit-learn's ``working_memory``; `fit`
    also scores the pictures that set the threshold, O(m^2 d) with "cv". The bank takes 2 kB per row of 512 float32
    features.

    References
    ----------
    .. [1] Y. Sun et al., "Out-of-Distribution Detection with Deep Nearest Neighbors", ICML 2022, arXiv:2204.06507,
       section 3.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.ood import KNNDetector
    >>> rng = np.random.default_rng(0)
    >>> X = np.repeat(np.eye(4)[:2], 50, axis=0) + 0.1 * rng.normal(size=(100, 4))
    >>> detector = KNNDetector(5, calibration="cv").fit(X)
    >>> detector.predict(np.eye(4))
    array([ 1,  1, -1, -1])
    """

    _parameter_constraints: dict[str, list[Any]] = {**BANK_CONSTRAINTS, **CALIBRATION_CONSTRAINTS}

    def __init__(
        self,
        n_neighbors: int = 50,
        *,
        device: str = "cpu",
        backend: str = "exact",
        faiss_factory: str = FLAT,
        faiss_parameters: str | None = None,
        contamination: float = 0.05,
        calibration: Any = "in_sample",
    ) -> None:
        self.n_neighbors = n_neighbors
        self.device = device
        self.backend = backend
        self.faiss_factory = faiss_factory
        self.faiss_parameters = faiss_parameters
        self.contamination = contamination
        self.calibration = calibration

    def partial_fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Add pictures to the bank; after all chunks the detector is that of one `fit`.

        %(partial_fit_bank)s
        """
        check_parameters(self)
        if not hasattr(self, "offset_"):
            return self.fit(X, y)
        with unchanged_on_failure(self):
            self._learn_rows(check_more_known(self, X, y))
            self.offset_ = self._offset(threshold_scores(self))
        return self

    def _learn_rows(self, known: KnownRows) -> None:
        add_rows(self, unit_rows(known.X), known.n_views)

    def _score_rows(self, X: NDArray) -> NDArray:
        return np.concatenate([self._distances(unit_rows(X[part])) for part in query_blocks(self, len(X))])

    def _held_out_scores(self, X: Any, y: ArrayLike | None, params: dict[str, Any]) -> NDArray:
        """Exact, whatever `fit` was given: those of the pictures of the bank without themselves."""
        return self._bank_scores(held_out=True)

    def _bank_scores(self, *, held_out: bool) -> NDArray:
        plain = threshold_rows(self, held_out=held_out)
        return np.concatenate([
            self._distances(self.bank_[plain[part]], self.pictures_[plain[part]] if held_out else None)
            for part in query_blocks(self, len(plain))
        ])  # fmt: skip

    def _distances(self, queries: NDArray, pictures: NDArray | None = None) -> NDArray:
        kth = largest_in_bank(self, queries, pictures).min(axis=1).astype(np.float64)
        return np.minimum(2.0 * kth - 2.0, 0.0)
