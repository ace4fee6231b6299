"""`CLIPRetriever`: the pictures that are nearest to a text or to a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from skclip._backbones import DEFAULT_MODEL, weights_digest
from skclip._media import are_pictures, check_images
from skclip.features import CLIPFeatures, CLIPTextFeatures
from skclip.metrics._checks import check_count
from skclip.retrieval._folder import load_folder, save_folder
from skclip.utils._arrays import check_features, first_view, unit_rows
from skclip.utils._base import SkclipBase, forget_fit
from skclip.utils._faiss import FLAT, index_of, replace_index, search_index
from skclip.utils._names import check_labels
from skclip.utils._neighbors import most_similar
from skclip.utils._params import Interval, StrOptions, check_parameters

# parameters of the extraction, handed on under their own names
_PASSED_ON = ("device", "precision", "batch_size", "n_workers", "store", "verbose")


class CLIPRetriever(SkclipBase):
    """Search a collection of pictures by text or by picture.

    `fit` takes the collection: pictures, or features that were extracted before. `kneighbors` finds what is most
    similar in it to sentences (``kneighbors(texts=[...])``), to other pictures, or to features.

    Parameters
    ----------
    model : str, default=None
        Model that encodes pictures and texts, see `skclip.CLIPFeatures`. With None, pictures are encoded by
        `skclip`'s default model; a collection of features then has no known model, and is searched by features
        only.
    n_neighbors : int, default=5
        Rows found for each query, unless `kneighbors` is told otherwise.
    backend : {"exact", "faiss"}, default="exact"
        "exact" compares each query with every row, in blocks of matrix products. "faiss" searches with the package
        faiss-cpu, which is worth its while with an approximate `faiss_factory` on millions of rows.
    faiss_factory : str, default="Flat"
        What faiss builds, in the words of ``faiss.index_factory``: "Flat" is exact, "IVF4096,Flat" and "HNSW32" are
        approximate.
    faiss_parameters : str, default=None
        Of the search, in the words of ``faiss.ParameterSpace``: "nprobe=32", "efSearch=128".
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}, default="auto"
        Where the model runs.
    precision : {"auto", "float32", "bf16", "fp16"}, default="auto"
        Of the model.
    batch_size : int or "auto", default="auto"
        Pictures or texts per forward pass.
    n_workers : int or None, default=None
        Threads that read pictures.
    store : "memory", path or None, default="memory"
        Where extracted features are kept, see `skclip.CLIPFeatures`.
    verbose : int, default=0
        1 shows the progress of the extraction.

    Attributes
    ----------
    X_fit_ : ndarray of shape (m, d)
        Unit rows of the collection; a read-only memory map after `load`.
    ids_ : ndarray of shape (m,)
        What y said of each row; 0, 1, 2, ... without y.
    n_samples_fit_ : int
        m, rows of the collection.
    model_ : str or None
        The model that encodes queries; None where it is not known.
    weights_digest_ : str or None
        Identity of the weights that encoded the collection; None where features were given.
    faiss_index_ : ndarray of uint8, or None
        The index of an approximate `faiss_factory`.
    n_features_in_ : int
        d.
    feature_names_in_ : ndarray of shape (d,)
        Only where `fit` saw a data frame of features.

    See Also
    --------
    retrieve_support : A training set for classes known by name only.
    skclip.plotting.NeighboursDisplay : The pictures that were found, side by side.
    sklearn.neighbors.NearestNeighbors : The same on features, with distances.

    Notes
    -----
    Answers are cosine **similarities, the largest first**; scikit-learn's `NearestNeighbors` gives distances, the
    smallest first. ``1 - similarities`` is its ``metric="cosine"``. Of equal similarities the lower row comes first.
    Cosines of a text with pictures are small even where it fits (0.2 to 0.35 for CLIP models), so texts and pictures
    as queries cannot share a threshold.

    A list of strings as X is a list of **paths**, everywhere; sentences are passed as ``texts=``.

    A collection may also be one of texts: fit on the features of `skclip.CLIPTextFeatures`, name the `model`, and
    search it by pictures.

    With features of shape (n, V, d) view 0, the plain picture, is read.

    The exact search is one matrix product of O(n m d) for n queries in m rows, plus a few percent to find the best;
    its temporaries stay within scikit-learn's ``working_memory``. The collection takes 2 kB per row of 512 float32
    features; `save` and `load` keep it on disk and read what a search needs.

    A pickle (joblib) holds the rows and no model. Texts and pictures are never searched with other weights than
    those that encoded the collection: that raises.

    Examples
    --------
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.retrieval import CLIPRetriever
    >>> world = make_picture_world(300)
    >>> retriever = CLIPRetriever("skclip-tiny", n_neighbors=3).fit(world.images, world.target)
    >>> similarities, indices = retriever.kneighbors(texts=["a photo of a red circle"])
    >>> retriever.ids_[indices]
    array([['red circle', 'red circle', 'red circle']], dtype='<U15')
    >>> similarities, indices = retriever.kneighbors(world.images[:2])
    >>> indices[:, 0]
    array([0, 1])
    """

    _set_last = "X_fit_"
    _parameter_constraints: dict[str, list[Any]] = {
        "model": [str, None],
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "backend": [StrOptions({"exact", "faiss"})],
        "faiss_factory": [str],
        "faiss_parameters": [str, None],
    }

    def __init__(
        self,
        model: str | None = None,
        *,
        n_neighbors: int = 5,
        backend: str = "exact",
        faiss_factory: str = FLAT,
        faiss_parameters: str | None = None,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | str = "auto",
        n_workers: int | None = None,
        store: str | Path | None = "memory",
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.n_neighbors = n_neighbors
        self.backend = backend
        self.faiss_factory = faiss_factory
        self.faiss_parameters = faiss_parameters
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.n_workers = n_workers
        self.store = store
        self.verbose = verbose

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Take a collection.

        Parameters
        ----------
        X : sequence of n pictures, or array-like of shape (n, d) or (n, V, d)
            Pictures as `skclip.CLIPFeatures` takes them - paths, PIL images, encoded bytes, uint8 arrays -, or
            features, of any length.
        y : array-like of shape (n,), default=None
            What to call each row: file names, keys of a data base, labels; strings or numbers. Kept as `ids_`, saved
            with the rows, and what `score` compares with.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If X is empty, X and y differ in length, a picture cannot be read, or all rows are zeros.
        """
        check_parameters(self)
        model, digest = self.model, None
        if are_pictures(X):
            X, model = check_images(X), self.model or DEFAULT_MODEL
            _ids(y, 0, len(X))  # before anything is encoded
            X = self._encoder(CLIPFeatures, model).fit_transform(X)
            digest = weights_digest(model)
        forget_fit(self)
        rows = unit_rows(first_view(*check_features(self, X, reset=True)))
        if not rows.any():
            raise ValueError(f"All {len(rows)} rows of X are zeros; features have a direction. Were they encoded?")
        ids = _ids(y, 0, len(rows))
        self._set_rows(rows, ids)
        self._numbered = y is None
        self.model_, self.weights_digest_ = model, digest
        return self

    def partial_fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Add rows to the collection; after all chunks it is that of one `fit`.

        Parameters
        ----------
        X : sequence of n pictures, or array-like of shape (n, d) or (n, V, d)
            As in `fit`. To a collection of features, pictures may be added where `model` is known.
        y : array-like of shape (n,), default=None
            As in `fit`: always, or never.

        Returns
        -------
        self : object

        Raises
        ------
        ValueError
            If the width differs from that of the collection, or y is given to some chunks only.

        Notes
        -----
        Each call copies the collection once, and builds the index of an approximate `faiss_factory` anew: add rows by
        the thousand.
        """
        if not hasattr(self, "X_fit_"):
            return self.fit(X, y)
        check_parameters(self)
        if (y is None) != self._numbered:
            raise ValueError(
                "fit was given no y, so partial_fit takes none."
                if self._numbered
                else "fit was given y, so partial_fit needs the ids of the new rows too."
            )
        if are_pictures(X):
            X = check_images(X)
            _ids(y, 0, len(X))
        rows = unit_rows(self._features(X))
        ids = _ids(y, self.n_samples_fit_, len(rows))
        _check_one_kind(self.ids_, ids)
        self._set_rows(np.concatenate([self.X_fit_, rows]), np.concatenate([self.ids_, ids]))
        return self

    def kneighbors(
        self,
        X: Any = None,
        n_neighbors: int | None = None,
        return_similarity: bool = True,
        *,
        texts: Sequence[str] | None = None,
    ) -> Any:
        """The rows of the collection that are most similar to each query.

        Parameters
        ----------
        X : sequence of n pictures, or array-like of shape (n, d) or (n, V, d), default=None
            Pictures or features; strings are paths. With neither X nor `texts`, the rows of the collection are the
            queries, and no row is its own neighbour.
        n_neighbors : int, default=None
            Rows per query; None is the parameter of that name.
        return_similarity : bool, default=True
            False returns `indices` alone.
        texts : sequence of n str, default=None
            Sentences, instead of X. Models are used to captions: "a photo of a dog" finds more than "dog".

        Returns
        -------
        similarities : ndarray of shape (n, n_neighbors)
            Cosines, the largest first; in the floating type of the collection.
        indices : ndarray of shape (n, n_neighbors)
            Rows of the collection; ``retriever.ids_[indices]`` is what y said of them.

        Raises
        ------
        ValueError
            If the collection has fewer than `n_neighbors` rows, the widths differ, a query is all zeros, X and `texts`
            are both given, or texts or pictures meet a collection of features without `model`, or of other weights.
        """
        check_is_fitted(self)
        k = self._checked_n_neighbors(n_neighbors)
        itself = X is None and texts is None
        n_others = self.n_samples_fit_ - itself
        if k > n_others:
            raise ValueError(
                f"Expected n_neighbors <= {'n_samples_fit - 1' if itself else 'n_samples_fit'}, but n_neighbors = {k}, "
                f"n_samples_fit = {self.n_samples_fit_}."
            )
        queries = self.X_fit_ if itself else _directions(self._features(X, texts))
        similarities, indices = self._search(queries, k + itself)
        if itself:
            similarities, indices = _without_self(similarities, indices)
        return (similarities, indices) if return_similarity else indices

    def recall_at_k(
        self,
        X: Any = None,
        y: ArrayLike | None = None,
        *,
        texts: Sequence[str] | None = None,
        k: int | Sequence[int] = (1, 5, 10),
    ) -> Any:
        """Share of queries that find what they should among the k nearest (R@k).

        Parameters
        ----------
        X : sequence of n pictures, or array-like of shape (n, d) or (n, V, d), default=None
            Queries as in `kneighbors`.
        y : array-like of shape (n,)
            The id that each query should find, one of `ids_`: the row number where `fit` had no y. Where ids repeat,
            as labels do, any row of that id counts; an id that no row has is never found.
        texts : sequence of n str, default=None
            Sentences, instead of X.
        k : int or sequence of int, default=(1, 5, 10)
            How many neighbours are looked at.

        Returns
        -------
        float, or ndarray of shape (len(k),) for a sequence

        Raises
        ------
        ValueError
            If k is no positive whole number, or as `kneighbors`.
        TypeError
            If y holds texts and the ids are numbers, or the other way round.

        See Also
        --------
        skclip.metrics.retrieval_recall : The same from a whole matrix of similarities.
        """
        if X is None and texts is None:
            raise ValueError("recall_at_k needs queries: pictures or features as X, or texts=.")
        if y is None:
            raise ValueError("recall_at_k needs y, the id of the row that each query should find.")
        check_is_fitted(self)
        wanted = check_labels(y)
        _check_one_kind(self.ids_, wanted)
        sizes = [check_count("k", size) for size in np.atleast_1d(np.asarray(k)).tolist()]
        indices = self.kneighbors(X, max(sizes), False, texts=texts)
        check_consistent_length(indices, wanted)
        found = self.ids_[indices] == wanted[:, None]
        recalls = np.array([found[:, :size].any(axis=1).mean() for size in sizes])
        return recalls if np.ndim(k) else float(recalls[0])

    def score(self, X: Any = None, y: ArrayLike | None = None, *, texts: Sequence[str] | None = None) -> float:
        """R@k for k = `n_neighbors`.

        Parameters
        ----------
        X : sequence of n pictures, or array-like of shape (n, d) or (n, V, d), default=None
            Queries as in `kneighbors`.
        y : array-like of shape (n,)
            The id that each query should find.
        texts : sequence of n str, default=None
            Sentences, instead of X.

        Returns
        -------
        float
        """
        check_is_fitted(self)
        return self.recall_at_k(X, y, texts=texts, k=self._checked_n_neighbors(None))

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the collection into a folder, from which `load` opens it without reading it whole.

        Parameters
        ----------
        folder : path
            Made if missing. A collection saved there before is replaced, in one step: whoever opens the folder finds
            the old one or the new one, also after a crash. Two processes must not save to one folder at once.

        Raises
        ------
        OSError
            If something cannot be written.

        Notes
        -----
        Rows and ids become NumPy files, parameters, model name and digest of its weights a JSON file. Nothing is
        pickled.
        """
        check_is_fitted(self)
        arrays = {"rows": self.X_fit_}
        if not self._numbered:
            arrays["ids"] = self.ids_
        if self.faiss_index_ is not None:
            arrays["index"] = self.faiss_index_
        names = getattr(self, "feature_names_in_", None)
        description = {
            "parameters": {name: _jsonable(value) for name, value in self.get_params(deep=False).items()},
            "model": self.model_,
            "weights_digest": self.weights_digest_,
            "shape": list(self.X_fit_.shape),
            "feature_names": None if names is None else names.tolist(),
        }
        save_folder(folder, description, arrays)

    @classmethod
    def load(cls, folder: str | os.PathLike[str], *, check_weights: bool = True) -> CLIPRetriever:
        """Open a folder written by `save`.

        Parameters
        ----------
        folder : path
        check_weights : bool, default=True
            Compare the model's weights, which must be at hand or are fetched, with those that encoded the collection.
            With False this waits until a text or a picture is searched.

        Returns
        -------
        CLIPRetriever
            Fitted; its rows are a read-only memory map, so keep the folder.

        Raises
        ------
        FileNotFoundError
            If nothing was saved there.
        ValueError
            If a file is damaged, or the weights of the model are others.
        """
        description, arrays = load_folder(folder)
        retriever = cls(**description["parameters"])
        rows = arrays.get("rows")
        if rows is None or list(rows.shape) != description["shape"]:
            raise ValueError(f"{folder} is damaged: its rows are not of shape {description['shape']}.")
        retriever.n_features_in_ = rows.shape[1]
        if description["feature_names"] is not None:
            retriever.feature_names_in_ = np.asarray(description["feature_names"], dtype=object)
        retriever.X_fit_, retriever.n_samples_fit_ = rows, len(rows)
        retriever._numbered = "ids" not in arrays
        retriever.ids_ = arrays.get("ids", np.arange(len(rows)))
        retriever.faiss_index_ = arrays.get("index")
        retriever.model_, retriever.weights_digest_ = description["model"], description["weights_digest"]
        if check_weights:
            retriever._check_weights()
        return retriever

    def query_model(self) -> str:
        """The name of the model that encodes texts and pictures for this collection.

        Returns
        -------
        str

        Raises
        ------
        ValueError
            If the collection is one of features and `model` is None, or the model's weights have changed.
        """
        check_is_fitted(self)
        if self.model_ is None:
            raise ValueError(
                "The collection was given as features, and nothing tells which model they come from. Pass its name, "
                f"{type(self).__name__}(model=...), or search by features of that model."
            )
        self._check_weights()
        return self.model_

    def _check_weights(self) -> None:
        if self.model_ is None or self.weights_digest_ is None:
            return
        now = weights_digest(self.model_)
        if now != self.weights_digest_:
            raise ValueError(
                f"The weights of {self.model_!r} are not those that encoded the collection (digest "
                f"{self.weights_digest_[:12]} then, {now[:12]} now), so its rows cannot be compared with new texts or "
                "pictures. Fit again."
            )

    def _set_rows(self, rows: NDArray, ids: NDArray) -> None:
        """The fitted state that a search reads."""
        self.faiss_index_ = replace_index(self, rows, self.faiss_factory if self.backend == "faiss" else None)
        self.X_fit_, self.ids_, self.n_samples_fit_ = rows, ids, len(rows)

    def _search(self, queries: NDArray, k: int) -> tuple[NDArray, NDArray]:
        if self.backend == "exact":
            return most_similar(queries, self.X_fit_, k)
        index = index_of(self, self.X_fit_, self.faiss_index_, self.faiss_factory)
        return search_index(index, queries, self.X_fit_, k, self.faiss_parameters)

    def _features(self, X: Any, texts: Any = None) -> NDArray:
        """Features of what is not of the collection, in its floating type."""
        if texts is not None:
            if X is not None:
                raise ValueError("Both X and texts are given; search for one of them at a time.")
            X = self._encoder(CLIPTextFeatures, self.query_model()).transform(texts)
        elif are_pictures(X):
            X = self._encoded_pictures(X)
        else:
            X = first_view(*check_features(self, X))
        if X.shape[1] != self.n_features_in_:
            raise ValueError(
                f"model={self.model_!r} gives {X.shape[1]} features, but the collection has {self.n_features_in_}; "
                "both must come from one model."
            )
        return X.astype(self.X_fit_.dtype, copy=False)

    def _encoded_pictures(self, X: Any) -> NDArray:
        try:
            return self._encoder(CLIPFeatures, self.query_model()).transform(X)
        except ValueError as error:
            if "no such file" in str(error):
                error.add_note("Strings as X are paths; sentences are passed as texts=[...].")
            raise

    def _encoder(self, kind: Any, model: str | None) -> Any:
        """A `CLIPFeatures` or `CLIPTextFeatures` with the parameters of this estimator."""
        known = kind().get_params()
        encoder = kind(model, **{name: getattr(self, name) for name in _PASSED_ON if name in known})
        if hasattr(self, "n_features_in_"):
            # as good as fitted: a device that was there at fit and is missing here means a warning and the CPU
            encoder._n_features_out = self.n_features_in_
        return encoder

    def _checked_n_neighbors(self, n_neighbors: int | None) -> int:
        k = self.n_neighbors if n_neighbors is None else n_neighbors
        if isinstance(k, bool) or not isinstance(k, Integral):
            raise TypeError(f"n_neighbors must be an integer, got {k!r}.")
        if k < 1:
            raise ValueError(f"n_neighbors must be >= 1, got {k}.")
        return int(k)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def _directions(queries: NDArray) -> NDArray:
    """Unit rows; ValueError for the first that has no direction, and so no neighbours."""
    zero = np.flatnonzero(~queries.any(axis=1))
    if zero.size:
        raise ValueError(f"X[{zero[0]}] is all zeros, so that nothing is more similar to it than anything else.")
    return unit_rows(queries)


def _ids(y: ArrayLike | None, start: int, n: int) -> NDArray:
    if y is None:
        return np.arange(start, start + n)
    ids = check_labels(y)
    if len(ids) != n:
        raise ValueError(f"X holds {n} rows and y {len(ids)} ids; every row needs one.")
    return ids


def _check_one_kind(ids: NDArray, more: NDArray) -> None:
    """TypeError where texts meet numbers, which are never equal."""
    if (more.dtype.kind in "US") != (ids.dtype.kind in "US"):
        raise TypeError(f"y holds {more[0].item()!r}, but the ids are such as {ids[0].item()!r}.")


def _without_self(similarities: NDArray, indices: NDArray) -> tuple[NDArray, NDArray]:
    """Neighbours of the rows themselves, (n, k + 1), without each row's own entry: (n, k)."""
    n = len(indices)
    own = indices == np.arange(n)[:, None]
    own[~own.any(axis=1), -1] = True  # more copies of a row than were asked for stand before it
    return similarities[~own].reshape(n, -1), indices[~own].reshape(n, -1)


def _jsonable(value: Any) -> Any:
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value
