"""The labelled pictures most similar to a query vote for their classes."""

from __future__ import annotations

from numbers import Integral
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.utils.validation import check_is_fitted

from skclip.utils._arrays import check_features, first_view, unit_rows
from skclip.utils._base import SkclipBase
from skclip.utils._docs import fill_doc
from skclip.utils._neighbors import most_similar
from skclip.utils._params import Interval, check_parameters
from skclip.utils._training import Training, check_training


@fill_doc
class SimilarityVoteClassifier(ClassifierMixin, SkclipBase):
    """The most similar labelled pictures vote, each with its cosine similarity.

    Retrieval as a classifier: nothing is trained, every answer can be shown as a handful of pictures, and new
    labelled pictures only need another `fit`. A strong and honest baseline wherever pictures of one class look alike.
    Not the right choice where classes differ by a small detail in pictures that otherwise vary much; see
    `GDAClassifier` for those.

    ``P(c) = sum_{i in N(x), y_i = c} max(s_i, 0) / sum_{i in N(x)} max(s_i, 0)``, with N(x) the `n_neighbors` rows of
    largest cosine s_i [1]_. Rows are scaled to unit length here.

    Parameters
    ----------
    n_neighbors : int, default=10
        How many pictures vote. All of them where `fit` saw fewer.

    Attributes
    ----------
    %(classes_)s
    n_neighbors_ : int
        How many pictures vote.
    X_fit_ : ndarray of shape (n, d)
        Unit rows of the labelled pictures, in the order of `fit`; of several views of a picture the mean, of unit
        length again.
    codes_ : ndarray of shape (n,)
        Class of each, an index into `classes_`.
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    FewShotInspector : The best exemplars of each class, whatever the other classes hold.
    sklearn.neighbors.KNeighborsClassifier : With ``metric="cosine"`` the same neighbours; votes equally, or by the
        inverse of the distance.

    Notes
    -----
    Where no neighbour has a positive similarity there is nothing to share out, and every class gets 1 / K.

    Probabilities are shares of votes and reach 0 and 1; there are no logits, and `skclip.utils.get_logits` reads
    their logarithm where a shift of all logits does not matter.

    Of equally similar rows those that came first in `fit` are taken. Prediction is O(n m d) for m labelled pictures,
    in blocks within scikit-learn's ``working_memory``; `fit` keeps one copy of the rows.

    References
    ----------
    .. [1] K. I. Roumeliotis et al., "Orchestrator-Agent Trust: A Modular Agentic AI Visual Classification System with
       Trust-Aware Orchestration and RAG-Based Reasoning", 2025, arXiv:2507.10571 (the retrieval part).

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.adapters import SimilarityVoteClassifier
    >>> X = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    >>> clf = SimilarityVoteClassifier(n_neighbors=2).fit(X, ["cat", "cat", "dog"])
    >>> clf.predict_proba([[0.6, 0.8]]).round(3)
    array([[0.545, 0.455]])
    >>> clf.kneighbors([[0.6, 0.8]])
    (array([[0.96, 0.8 ]]), array([[1, 2]]))
    """

    _set_last = "n_neighbors_"
    _parameter_constraints: dict[str, list[Any]] = {"n_neighbors": [Interval(Integral, 1, None, closed="left")]}

    def __init__(self, n_neighbors: int = 10) -> None:
        self.n_neighbors = n_neighbors

    def fit(self, X: Any, y: ArrayLike) -> Self:
        """Keep the unit rows and their classes.

        Parameters
        ----------
        %(X_fit)s
        %(y_fit)s

        %(self)s

        Raises
        ------
        ValueError
            If y holds one class only, or every row of a class is all zeros.
        """
        check_parameters(self)
        training = check_training(self, X, y)
        self.X_fit_, self.codes_ = picture_rows(training), training.codes
        self.n_neighbors_ = min(int(self.n_neighbors), len(self.codes_))
        return self

    def predict_proba(self, X: Any) -> NDArray:
        """Share of each class in the votes.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), or None
            Image features; of V views the first is read. None: the rows of `fit`, each without its own vote.

        Returns
        -------
        ndarray of shape (n, K)
            Rows sum to 1; columns in the order of `classes_`.
        """
        check_is_fitted(self)
        return vote_shares(*self.kneighbors(X), self.codes_, len(self.classes_))

    def predict(self, X: Any) -> NDArray:
        """The label with the largest share; of equal ones the first in `classes_`.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), or None
            Image features; None as in `predict_proba`.

        Returns
        -------
        ndarray of shape (n,)
        """
        shares = self.predict_proba(X)
        return self.classes_[np.argmax(shares, axis=1)]

    def kneighbors(self, X: Any = None, n_neighbors: int | None = None) -> tuple[NDArray, NDArray]:
        """The most similar labelled pictures.

        %(kneighbors)s
        """
        check_is_fitted(self)
        return nearest_rows(self, X, n_neighbors, default=self.n_neighbors_)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def picture_rows(training: Training) -> NDArray:
    """One unit row per picture: the mean of its views."""
    if training.n_views == 1:
        return unit_rows(training.X)
    views = unit_rows(training.X).reshape(len(training.codes), training.n_views, -1)
    return unit_rows(views.mean(axis=1))


def nearest_rows(estimator: Any, X: Any, n_neighbors: int | None, *, default: int) -> tuple[NDArray, NDArray]:
    """Cosines and places of the rows of ``X_fit_`` most similar to those of X, or to themselves where X is None.

    Where `n_neighbors` is None, `default` of them, or as many as there are.
    """
    bank = estimator.X_fit_
    most = len(bank) - (X is None)
    if n_neighbors is None:
        n_neighbors = min(default, most)
    if not isinstance(n_neighbors, Integral) or not 1 <= n_neighbors <= most:
        raise ValueError(
            f"n_neighbors must be a whole number from 1 to {most}, the number of pictures to choose from; got "
            f"{n_neighbors!r}."
        )
    if X is not None:
        return most_similar(unit_rows(first_view(*check_features(estimator, X))), bank, int(n_neighbors))
    similarities, indices = most_similar(bank, bank, int(n_neighbors) + 1)
    other = indices != np.arange(len(bank))[:, None]
    # where more than n_neighbors rows equal the own one, it is not among those found
    other[other.all(axis=1), -1] = False
    shape = (len(bank), int(n_neighbors))
    return similarities[other].reshape(shape), indices[other].reshape(shape)


def vote_shares(similarities: NDArray, indices: NDArray, codes: NDArray, n_classes: int) -> NDArray:
    """Sum of the positive similarities of the neighbours of each class, over that of all neighbours.

    Parameters
    ----------
    similarities, indices : ndarray of shape (n, n_neighbors)
        Neighbours and their places in `codes`.
    codes : ndarray of shape (m,)
        Class of each labelled picture, 0..K-1.
    n_classes : int
        K.

    Returns
    -------
    ndarray of shape (n, K), float64
        1 / K each where no similarity is positive.
    """
    n = len(similarities)
    cells = codes[indices] + n_classes * np.arange(n)[:, None]
    votes = np.bincount(cells.ravel(), weights=np.maximum(similarities, 0.0).ravel(), minlength=n * n_classes)
    votes = votes.reshape(n, n_classes)
    totals = votes.sum(axis=1, keepdims=True)
    return np.divide(votes, totals, out=np.full_like(votes, 1.0 / n_classes), where=totals > 0.0)
