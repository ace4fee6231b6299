"""What did the decision rest on? Queries beside their nearest pictures."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_consistent_length

from skclip._media import are_pictures, check_images
from skclip.plotting._figures import GRAY, RIGHT, WRONG, display_name, divide, frame, import_pyplot, show_picture
from skclip.utils._names import check_labels

_FONT_SIZE = 9
_INCHES_PER_CHARACTER = 0.6 * _FONT_SIZE / 72


class NeighboursDisplay:
    """Each query at the left, its nearest pictures at the right, the most similar first.

    Where labels are known, a neighbour of the query's label has a blue frame and a tick, another an orange one and a
    cross. Use `from_estimator` or `from_predictions`.

    Parameters
    ----------
    similarities : ndarray of shape (n, k)
        Of each query with its neighbours.
    neighbors : list of n lists of k pictures
        The neighbours.
    queries : sequence of n pictures or texts
        What is shown at the left.
    query_labels : ndarray of shape (n,), default=None
        Labels of the queries.
    neighbor_labels : ndarray of shape (n, k), default=None
        Labels of the neighbours.
    class_names : {label: str}, default=None
        What to write instead of labels.
    texts : bool, default=False
        Whether `queries` are sentences.

    Attributes
    ----------
    axes_ : ndarray of shape (n, k + 1)
        The first column shows the queries.
    ax_ : matplotlib Axes
        Of the first query.
    figure_ : matplotlib Figure
        The figure.
    images_ : list of list of matplotlib AxesImage
        The neighbours' pictures.

    Examples
    --------
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.plotting import NeighboursDisplay
    >>> from skclip.retrieval import CLIPRetriever
    >>> world = make_picture_world(100)
    >>> retriever = CLIPRetriever("skclip-tiny").fit(world.images, world.target)
    >>> display = NeighboursDisplay.from_estimator(
    ...     retriever, texts=["a photo of a red circle"], pictures=world.images, n_neighbors=3
    ... )
    >>> display.axes_.shape
    (1, 4)
    """

    def __init__(
        self,
        similarities: NDArray,
        neighbors: Sequence[Sequence[Any]],
        queries: Sequence[Any],
        *,
        query_labels: NDArray | None = None,
        neighbor_labels: NDArray | None = None,
        class_names: Mapping[Any, str] | None = None,
        texts: bool = False,
    ) -> None:
        self.similarities = similarities
        self.neighbors = neighbors
        self.queries = queries
        self.query_labels = query_labels
        self.neighbor_labels = neighbor_labels
        self.class_names = class_names
        self.texts = texts

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any = None,
        y: ArrayLike | None = None,
        *,
        pictures: Any,
        labels: ArrayLike | None = None,
        texts: Sequence[str] | None = None,
        query_pictures: Any = None,
        n_neighbors: int = 5,
        class_names: Mapping[Any, str] | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> NeighboursDisplay:
        """Search the neighbours of some queries and draw them.

        Parameters
        ----------
        estimator : object
            Fitted, with ``kneighbors(X, n_neighbors)`` that returns similarities and row numbers:
            `skclip.retrieval.CLIPRetriever`, `skclip.adapters.SimilarityVoteClassifier`,
            `skclip.adapters.FewShotInspector`.
        X : object, default=None
            Queries that `estimator` takes: features, or pictures.
        y : array-like of shape (n,), default=None
            Labels of the queries, or of `texts`.
        pictures : sequence of m pictures
            What `estimator` was fitted on, in that order.
        labels : array-like of shape (m,), default=None
            Labels of `pictures`. None: those that the estimator was fitted with; of a `CLIPRetriever` fitted without
            any, the row numbers.
        texts : sequence of n str, default=None
            Sentences as queries, instead of X, for a `CLIPRetriever`.
        query_pictures : sequence of n pictures, default=None
            What is shown of the queries, where X are features.
        n_neighbors : int, default=5
            Neighbours of each query.
        class_names, ax, **kwargs
            As in `from_predictions`.

        Returns
        -------
        NeighboursDisplay
        """
        if texts is None and query_pictures is None:
            if not are_pictures(X):
                raise ValueError("X are no pictures: pass those that they come from as query_pictures.")
            query_pictures = X
        if texts is None:
            similarities, indices = estimator.kneighbors(X, n_neighbors)
        else:
            similarities, indices = estimator.kneighbors(X, n_neighbors, texts=texts)
        return cls.from_predictions(
            similarities,
            indices,
            pictures=pictures,
            labels=_labels_of_fit(estimator) if labels is None else labels,
            texts=texts,
            query_pictures=query_pictures,
            query_labels=y,
            class_names=class_names,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls,
        similarities: ArrayLike,
        indices: ArrayLike,
        *,
        pictures: Any,
        labels: ArrayLike | None = None,
        texts: Sequence[str] | None = None,
        query_pictures: Any = None,
        query_labels: ArrayLike | None = None,
        class_names: Mapping[Any, str] | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> NeighboursDisplay:
        """Draw neighbours that were found before.

        Parameters
        ----------
        similarities, indices : array-like of shape (n, k)
            Of each query, the most similar first; rows of `pictures`.
        pictures : sequence of m pictures
            What was searched.
        labels : array-like of shape (m,), default=None
            Labels of `pictures`.
        texts : sequence of n str, default=None
            The queries, if they were sentences.
        query_pictures : sequence of n pictures, default=None
            The queries, if they were pictures.
        query_labels : array-like of shape (n,), default=None
            Labels of the queries.
        class_names : {label: str}, default=None
            What to write instead of labels.
        ax, **kwargs
            As in `plot`.

        Returns
        -------
        NeighboursDisplay

        Raises
        ------
        ValueError
            If lengths differ, an index is no row of `pictures`, or both or none of `texts` and `query_pictures` are
            given.
        """
        similarities, indices = np.asarray(similarities), np.asarray(indices)
        if similarities.shape != indices.shape or indices.ndim != 2 or indices.size == 0:
            raise ValueError(
                f"similarities and indices must be of one shape (n, k); got {similarities.shape}, {indices.shape}."
            )
        if (texts is None) == (query_pictures is None):
            raise ValueError("Pass the queries, either as query_pictures or as texts.")
        pictures = check_images(pictures)
        outside = indices[(indices < 0) | (indices >= len(pictures))]
        if outside.size:
            raise ValueError(f"indices holds {outside[0]}, but there are {len(pictures)} pictures.")
        queries = list(texts) if texts is not None else check_images(query_pictures)
        check_consistent_length(queries, indices)
        if query_labels is not None:
            query_labels = check_labels(query_labels, name="query_labels")
            check_consistent_length(query_labels, indices)
        if labels is not None:
            labels = check_labels(labels, name="labels")
            check_consistent_length(labels, pictures)
        display = cls(
            similarities,
            [[pictures[i] for i in row] for row in indices.tolist()],
            queries,
            query_labels=query_labels,
            neighbor_labels=None if labels is None else np.asarray(labels)[indices],
            class_names=class_names,
            texts=texts is not None,
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax: Any = None, *, size: float = 1.25) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Made by ``plt.subplots``; divided into one field per picture. None makes a figure.
        size : float, default=1.25
            Of each picture of a new figure, in inches.

        Returns
        -------
        self : NeighboursDisplay
        """
        plt = import_pyplot("NeighboursDisplay")
        n, k = self.similarities.shape
        figsize = ((k + 1.4) * size, n * (size + 0.5) + 0.1)
        if ax is not None:
            size = ax.get_position().width * ax.figure.get_size_inches()[0] / (k + 1.4)
        self._n_characters = max(4, int(size / _INCHES_PER_CHARACTER))
        # a narrow column sets the queries apart
        self.figure_, fields = divide(ax, plt, n, k + 2, figsize, width_ratios=[1, 0.06, *[1] * k])
        grid = np.array([[self.figure_.add_subplot(fields[i, j]) for j in range(k + 2)] for i in range(n)])
        for spacer in grid[:, 1]:
            spacer.set_axis_off()
        self.axes_ = np.delete(grid, 1, axis=1)
        self.ax_ = self.axes_[0, 0]
        self.images_ = []
        for row in range(n):
            self._draw_query(row)
            self.images_.append([self._draw_neighbor(row, column) for column in range(k)])
        return self

    def _draw_query(self, row: int) -> None:
        ax = self.axes_[row, 0]
        if self.texts:
            ax.set_axis_off()
            text = textwrap.fill(self.queries[row], self._n_characters)
            ax.text(
                0.5, 0.5, text, ha="center", va="center", transform=ax.transAxes, fontweight="bold", fontsize=_FONT_SIZE
            )
            return
        show_picture(ax, self.queries[row])
        frame(ax, "black", 1.5)
        label = "" if self.query_labels is None else f"\n{self._name(self.query_labels[row])}"
        ax.set_title(f"query{label}", fontsize=_FONT_SIZE, fontweight="bold")

    def _draw_neighbor(self, row: int, column: int) -> Any:
        ax = self.axes_[row, column + 1]
        image = show_picture(ax, self.neighbors[row][column])
        title = f"{self.similarities[row, column]:.3f}"
        color, width = GRAY, 1.0
        if self.neighbor_labels is not None:
            label = self.neighbor_labels[row, column]
            if self.query_labels is not None:
                right = bool(label == self.query_labels[row])
                color, width = RIGHT if right else WRONG, 3.0
                title = f"{'✓' if right else '✗'} {title}"
            title = f"{title}\n{self._name(label)}"
        frame(ax, color, width)
        ax.set_title(title, fontsize=_FONT_SIZE)
        return image

    def _name(self, label: Any) -> str:
        name = display_name(label, self.class_names)
        return name if len(name) <= self._n_characters else f"{name[: self._n_characters - 1]}…"


def _labels_of_fit(estimator: Any) -> NDArray | None:
    """The label of each row that an estimator was fitted on, if it keeps them."""
    if hasattr(estimator, "ids_"):
        return estimator.ids_
    if hasattr(estimator, "codes_") and hasattr(estimator, "classes_"):
        return estimator.classes_[estimator.codes_]
    return None
