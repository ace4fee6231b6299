"""Labelled pictures for classes known by name only, found by text in an unlabelled collection."""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted

from skclip.retrieval._retriever import CLIPRetriever
from skclip.utils._arrays import check_prototypes, unit_rows

# of float32 cosines: what two encodings of one picture may differ by
_SAME = 1.0 - 1e-6


def retrieve_support(
    retriever: CLIPRetriever, zero_shot: Any, n_per_class: int = 16, *, return_indices: bool = False
) -> tuple[NDArray, ...]:
    """The pictures of a collection that are nearest to the name of each class, as a labelled training set.

    With it, adapters that learn from labelled pictures, such as `skclip.adapters.SuSXClassifier`, can be fitted to
    classes of which nothing but the name is known.

    Parameters
    ----------
    retriever : CLIPRetriever
        Fitted on the collection.
    zero_shot : ZeroShotClassifier or array-like of shape (K, d)
        The classes. A classifier is cloned and fitted; one without `model` gets that of `retriever`. The rows of an
        array are the prototypes of the labels 0..K-1.
    n_per_class : int, default=16
        Pictures of each class.
    return_indices : bool, default=False
        Also return which rows of the collection were taken.

    Returns
    -------
    X : ndarray of shape (K * n_per_class, d)
        Unit rows, sorted by class, the most similar of each class first.
    y : ndarray of shape (K * n_per_class,)
        Labels.
    indices : ndarray of shape (K * n_per_class,)
        Only with `return_indices`.

    Raises
    ------
    ValueError
        If the collection has fewer than `n_per_class` different pictures, or text and collection are of different
        models.

    Notes
    -----
    The query of a class is its prototype: the mean over all of its sentences. Copies of a picture count once within
    a class, and a picture may be taken for two classes. The labels are guesses, the better the more the collection
    is about the classes.

    Cost: one search of K queries.

    References
    ----------
    V. Udandarao et al., "SuS-X: Training-Free Name-Only Transfer of Vision-Language Models", ICCV 2023,
    arXiv:2211.16198: SuS-LC.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.retrieval import CLIPRetriever, retrieve_support
    >>> collection = np.array([[0.9, 0.1], [0.8, 0.3], [0.1, 0.7], [0.2, 0.9]])
    >>> retriever = CLIPRetriever().fit(collection)
    >>> X, y, indices = retrieve_support(retriever, np.eye(2), n_per_class=2, return_indices=True)
    >>> y, indices
    (array([0, 0, 1, 1]), array([0, 1, 2, 3]))
    """
    check_is_fitted(retriever)
    if not isinstance(n_per_class, Integral) or n_per_class < 1:
        raise ValueError(f"n_per_class must be an integer >= 1, got {n_per_class!r}.")
    classes, prototypes = _prototypes(zero_shot, retriever)
    indices = _distinct_nearest(retriever, prototypes, int(n_per_class))
    X, y = retriever.X_fit_[indices.ravel()], np.repeat(classes, n_per_class)
    return (X, y, indices.ravel()) if return_indices else (X, y)


def _prototypes(zero_shot: Any, retriever: CLIPRetriever) -> tuple[NDArray, NDArray]:
    if not hasattr(zero_shot, "fit"):
        prototypes = check_prototypes(zero_shot, "zero_shot")
        return np.arange(len(prototypes)), prototypes
    text = clone(zero_shot)
    if getattr(text, "model", "") is None and getattr(text, "prototypes", None) is None:
        text.set_params(model=retriever.query_model())
    text = text.fit(None, None)
    digests = {getattr(text, "weights_digest_", None), retriever.weights_digest_} - {None}
    if len(digests) > 1:
        raise ValueError(
            f"zero_shot encodes text with {text.model!r}, but the pictures were encoded by other weights "
            f"({retriever.model_!r}); features of two models do not compare."
        )
    return text.classes_, text.prototypes_


def _distinct_nearest(retriever: CLIPRetriever, queries: NDArray, n: int) -> NDArray:
    """(n_queries, n) rows nearest to each query, without copies of rows that stand before them."""
    n_asked, n_rows = n, retriever.n_samples_fit_
    while True:
        n_asked = min(2 * n_asked, n_rows)
        _, found = retriever.kneighbors(queries, n_asked)
        chosen = [row[_is_first(retriever.X_fit_[row])][:n] for row in found]
        fewest = min(map(len, chosen))
        if fewest == n:
            return np.stack(chosen)
        if n_asked == n_rows:
            raise ValueError(f"n_per_class={n}, but the retriever was fitted on {fewest} different pictures only.")


def _is_first(rows: NDArray) -> NDArray:
    """Whether each of some unit rows differs from all before it."""
    rows = unit_rows(rows.astype(np.float64))
    return ~np.any(np.tril(rows @ rows.T > _SAME, -1), axis=1)
