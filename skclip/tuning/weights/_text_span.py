"""TextSpan: the texts that say best what a head of the image tower adds to the features."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_array, check_is_fitted, validate_data

from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval, check_parameters

# of the variance along the first text: what is below is what rounding has left
_NOTHING_LEFT = 1e-12


@fill_doc
class TextSpan(ClassNamePrefixFeaturesOutMixin, TransformerMixin, SkclipBase):
    """Explain rows of features by the few texts along whose features they differ most.

    A greedy search [1]_: of the texts, projected on the space that the rows span, the one is taken along which the
    centred rows vary most; it is removed from rows and texts, and the search goes on in what is left. The rows are
    meant to be what one head of an image tower adds to the features of many pictures: the texts then say what the head
    tells apart, such as colours or shapes.

    Parameters
    ----------
    n_texts : int, default=10
        Texts to find.
    rank : int, default=None
        Directions of the rows, the largest first, on which texts are projected: for a head the width of its values, 64
        in ViT-B-16. None is all of them.

    Attributes
    ----------
    indices_ : ndarray of shape (m,), int64
        Positions of the texts that were found, the most telling first; fewer than `n_texts` where the others have
        nothing to add.
    components_ : ndarray of shape (m, d)
        What each of them adds to those before it: orthogonal directions of length 1.
    explained_variance_ratio_ : ndarray of shape (m,)
        Share of the variance of the rows along each of them.
    mean_ : ndarray of shape (d,)
        Of the rows.
    %(n_features_in_)s

    See Also
    --------
    CLIPSVDClassifier.interpret : The texts of the heads of a tuned tower.

    Notes
    -----
    As published, texts are compared by the length of their projection too: one that lies in the space of the rows
    comes before one that lies mostly outside. All is exact and in float64; a search among M texts costs
    ``O(M r (d + r m))`` for rank r, whatever the number of rows.

    References
    ----------
    .. [1] Y. Gandelsman, A. A. Efros and J. Steinhardt, "Interpreting CLIP's Image Representation via Text-Based
       Decomposition", ICLR 2024, arXiv:2310.05916.

    Examples
    --------
    >>> from skclip import CLIPFeatures, CLIPTextFeatures
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import TextSpan
    >>> world = make_picture_world(64, shapes=["circle"], colors=["red", "blue"], styles=["sketch"])
    >>> texts = ["a red circle", "a star", "a heart"]
    >>> features = CLIPFeatures("skclip-tiny").fit_transform(world.images)
    >>> span = TextSpan(n_texts=1).fit(features, CLIPTextFeatures("skclip-tiny").fit_transform(texts))
    >>> texts[span.indices_[0]]
    'a red circle'
    """

    _parameter_constraints: dict[str, list[Any]] = {
        "n_texts": [Interval(Integral, 1, None, closed="left")],
        "rank": [Interval(Integral, 1, None, closed="left"), None],
    }

    def __init__(self, n_texts: int = 10, *, rank: int | None = None) -> None:
        self.n_texts = n_texts
        self.rank = rank

    def fit(self, X: ArrayLike, text_features: ArrayLike) -> Self:
        """Find the texts.

        Parameters
        ----------
        X : array-like of shape (n, d)
            What is to be explained, of n pictures, at least 2.
        text_features : array-like of shape (M, d)
            Unit rows of the texts, by the same model.

        %(self)s

        Raises
        ------
        ValueError
            If rows and texts are not of one width.
        """
        check_parameters(self)
        rows: NDArray = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        texts = check_array(text_features, dtype=np.float64, input_name="text_features")
        if texts.shape[1] != rows.shape[1]:
            raise ValueError(
                f"X has {rows.shape[1]} features and text_features has {texts.shape[1]}; both must be of one model."
            )
        basis = _row_space(rows, self.rank)
        mean = rows.mean(axis=0)
        centred = (rows - mean) @ basis.T
        indices, directions, variances = _search(centred.T @ centred / len(rows), texts @ basis.T, self.n_texts)
        self.mean_ = mean
        self.indices_ = np.asarray(indices, dtype=np.int64)
        self.components_ = directions @ basis
        self.explained_variance_ratio_ = variances / max(float(rows.var(axis=0).sum()), np.finfo(np.float64).tiny)
        return self

    def transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """Where centred rows stand along the texts.

        Parameters
        ----------
        X : array-like of shape (n, d)

        Returns
        -------
        ndarray of shape (n, m)
        """
        check_is_fitted(self)
        return (validate_data(self, X, dtype=np.float64, reset=False) - self.mean_) @ self.components_.T

    def inverse_transform(self, X: ArrayLike) -> NDArray[np.float64]:
        """The part of rows that the texts explain: their mean, and what `transform` has found of them.

        Parameters
        ----------
        X : array-like of shape (n, m)

        Returns
        -------
        ndarray of shape (n, d)
        """
        check_is_fitted(self)
        return self.mean_ + np.asarray(X, dtype=np.float64) @ self.components_

    @property
    def _n_features_out(self) -> int:
        return len(self.components_)


def _row_space(X: NDArray, rank: int | None) -> NDArray:
    """Orthonormal rows (r, d): the leading right singular vectors, none of which X lacks."""
    _, values, vectors = np.linalg.svd(X, full_matrices=False)
    present = values > values[0] * max(X.shape) * np.finfo(np.float64).eps
    return vectors[present][:rank]


def _search(covariance: NDArray, texts: NDArray, n_texts: int) -> tuple[list[int], NDArray, NDArray]:
    """Positions of texts, orthonormal directions (m, r), and the variance along each.

    What is removed from the rows need not be: texts without it do not see it.
    """
    indices: list[int] = []
    directions: list[NDArray] = []
    first = None
    for _ in range(n_texts):
        along = np.einsum("mr,mr->m", texts @ covariance, texts)
        best = int(along.argmax())
        first = along[best] if first is None else first
        if along[best] <= _NOTHING_LEFT * first:
            break
        unit = texts[best] / np.linalg.norm(texts[best])
        indices.append(best)
        directions.append(unit)
        texts = texts - np.outer(texts @ unit, unit)
    found = np.asarray(directions).reshape(len(directions), len(covariance))
    return indices, found, np.einsum("mr,rs,ms->m", found, covariance, found)
