"""Which classes are taken for which? The pairs that matter, where a matrix has too many cells to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_consistent_length

from skclip._media import are_pictures, check_images
from skclip.plotting._figures import WRONG, display_name, divide, import_pyplot, show_picture, spare_axes
from skclip.utils._names import check_labels

# inches: the bars, and a row of the figure with and without pictures
_BARS, _TALL, _LOW = 3.8, 0.62, 0.34


class ConfusionDisplay:
    """The most confused pairs of classes, with examples.

    For tens to thousands of classes, of which scikit-learn's `ConfusionMatrixDisplay` would draw a matrix that nobody
    can read. A bar is a pair "true → predicted"; the pictures beside it were mistaken so. Use `from_estimator` or
    `from_predictions`.

    Parameters
    ----------
    true, predicted : ndarray of shape (n_pairs,)
        Labels of each pair, the most confused first.
    count : ndarray of shape (n_pairs,)
        How often.
    total : ndarray of shape (n_pairs,)
        Rows of the true class (of both classes, where pairs have no direction).
    examples : list of list of pictures, default=None
        Some pictures of each pair.
    n_wrong, n_rows : int, default=None
        Errors and rows altogether, for the title.
    normalize : {"true"} or None, default=None
        "true" draws ``count / total``.
    symmetric : bool, default=False
        Whether a pair counts both directions.
    class_names : {label: str}, default=None
        What to write instead of labels.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The bars.
    figure_ : matplotlib Figure
        The figure.
    bars_ : matplotlib BarContainer
        One bar of each pair.
    example_axes_ : list of list of matplotlib Axes
        Of the pictures.

    See Also
    --------
    sklearn.metrics.ConfusionMatrixDisplay : The whole matrix, for few classes.

    Examples
    --------
    >>> from skclip.plotting import ConfusionDisplay
    >>> y_true = ["cat", "cat", "cat", "dog", "dog", "owl"]
    >>> y_pred = ["dog", "dog", "cat", "dog", "cat", "owl"]
    >>> display = ConfusionDisplay.from_predictions(y_true, y_pred)
    >>> display.true, display.predicted, display.count
    (array(['cat', 'dog'], dtype='<U3'), array(['dog', 'cat'], dtype='<U3'), array([2, 1]))
    """

    def __init__(
        self,
        true: NDArray,
        predicted: NDArray,
        count: NDArray,
        total: NDArray,
        *,
        examples: Sequence[Sequence[Any]] | None = None,
        n_wrong: int | None = None,
        n_rows: int | None = None,
        normalize: str | None = None,
        symmetric: bool = False,
        class_names: Mapping[Any, str] | None = None,
    ) -> None:
        self.true = true
        self.predicted = predicted
        self.count = count
        self.total = total
        self.examples = examples
        self.n_wrong = n_wrong
        self.n_rows = n_rows
        self.normalize = normalize
        self.symmetric = symmetric
        self.class_names = class_names

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: ArrayLike, *, pictures: Any = None, ax: Any = None, **kwargs: Any
    ) -> ConfusionDisplay:
        """Draw the errors of a fitted classifier on test data.

        Parameters
        ----------
        estimator : classifier
            Fitted.
        X : object
            What `estimator` takes. If these are pictures, they are the examples.
        y : array-like of shape (n,)
            True labels.
        pictures : sequence of n pictures, default=None
            Examples, where X are features.
        ax, **kwargs
            As in `from_predictions`.

        Returns
        -------
        ConfusionDisplay
        """
        if pictures is None and are_pictures(X):
            pictures = X
        return cls.from_predictions(y, estimator.predict(X), pictures=pictures, ax=ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_pred: ArrayLike,
        *,
        n_pairs: int = 10,
        pictures: Any = None,
        n_examples: int = 4,
        normalize: str | None = None,
        symmetric: bool = False,
        class_names: Mapping[Any, str] | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> ConfusionDisplay:
        """Draw the errors of predictions.

        Parameters
        ----------
        y_true, y_pred : array-like of shape (n,)
            True and predicted labels.
        n_pairs : int, default=10
            At most this many pairs.
        pictures : sequence of n pictures, default=None
            Of which examples are shown.
        n_examples : int, default=4
            At most this many of each pair, those that come first.
        normalize : {"true"} or None, default=None
            Rank by count, or by share of the true class; small classes come to the top of the latter.
        symmetric : bool, default=False
            Take "cat → dog" and "dog → cat" together.
        class_names : {label: str}, default=None
            What to write instead of labels.
        ax, **kwargs
            As in `plot`.

        Returns
        -------
        ConfusionDisplay

        Raises
        ------
        ValueError
            If lengths differ or nothing is confused.
        """
        if normalize not in ("true", None):
            raise ValueError(f'normalize must be "true" or None, got {normalize!r}.')
        true, predicted = check_labels(y_true, name="y_true"), check_labels(y_pred, name="y_pred")
        check_consistent_length(true, predicted)
        if pictures is not None:
            pictures = check_images(pictures)
            check_consistent_length(pictures, true)
        pairs, rows = most_confused(true, predicted, n_pairs, by_share=normalize == "true", symmetric=symmetric)
        display = cls(
            **pairs,
            examples=None if pictures is None else [[pictures[i] for i in some[:n_examples]] for some in rows],
            n_wrong=int(np.sum(true != predicted)),
            n_rows=len(true),
            normalize=normalize,
            symmetric=symmetric,
            class_names=class_names,
        )
        return display.plot(ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure. With examples it is divided, so it must be one of ``plt.subplots``.
        **kwargs : dict
            Passed to matplotlib's ``barh``.

        Returns
        -------
        self : ConfusionDisplay
        """
        plt = import_pyplot("ConfusionDisplay")
        n, n_examples = len(self.count), max(map(len, self.examples or []), default=0)
        height = 1.1 + n * (_TALL if n_examples else _LOW)
        fields = None
        if n_examples:
            # the bars, and as many square fields as there are examples beside each of them
            ratios = [_BARS, *[_TALL] * n_examples]
            size = (2.2 + sum(ratios), height)
            figure, fields = divide(ax, plt, n, 1 + n_examples, size, width_ratios=ratios)
            ax = figure.add_subplot(fields[:, 0])
        elif ax is None:
            _, ax = plt.subplots(figsize=(2.2 + _BARS, height), layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        lengths = self.count / self.total if self.normalize == "true" else self.count
        self.bars_ = ax.barh(np.arange(n), lengths, **{"color": WRONG, "height": 0.55, **kwargs})
        ax.bar_label(self.bars_, [f"{c} of {t}" for c, t in zip(self.count, self.total)], padding=3, fontsize=9)
        arrow = "↔" if self.symmetric else "→"
        names = [[display_name(label, self.class_names) for label in side] for side in (self.true, self.predicted)]
        ax.set_yticks(np.arange(n), labels=[f"{one} {arrow} {other}" for one, other in zip(*names)])
        ax.set(xlim=(0, 1.3 * lengths.max()), ylim=(n - 0.5, -0.5))
        share = "share of both classes" if self.symmetric else "share of the true class"
        ax.set_xlabel(share if self.normalize == "true" else "pictures")
        if self.normalize is None:
            ax.xaxis.get_major_locator().set_params(integer=True)
        if self.n_wrong is not None and self.n_rows:
            overall = f"{self.n_wrong} of {self.n_rows} wrong ({self.n_wrong / self.n_rows:.1%})"
            ax.set_title(f"{overall}, {int(self.count.sum())} of them here", fontsize=10, loc="left")
        spare_axes(ax)
        self.example_axes_ = [] if fields is None else [self._draw_examples(row, fields) for row in range(n)]
        return self

    def _draw_examples(self, row: int, fields: Any) -> list[Any]:
        """The pictures of a pair, in line with its bar."""
        assert self.examples is not None
        drawn = []
        for column, picture in enumerate(self.examples[row], start=1):
            drawn.append(self.figure_.add_subplot(fields[row, column]))
            show_picture(drawn[-1], picture)
        return drawn


def most_confused(
    true: NDArray, predicted: NDArray, n_pairs: int, *, by_share: bool, symmetric: bool
) -> tuple[dict[str, Any], list[NDArray]]:
    """The pairs of labels confused most, without a matrix of all pairs; ties keep the order of the labels.

    Returns
    -------
    pairs : dict of ndarray
        true, predicted, count, total.
    rows : list of ndarray
        The rows of each pair.
    """
    classes = np.unique(np.concatenate([true, predicted]))
    codes, guesses = np.searchsorted(classes, true), np.searchsorted(classes, predicted)
    totals = np.bincount(codes, minlength=len(classes))
    wrong = np.flatnonzero(codes != guesses)
    if wrong.size == 0:
        raise ValueError(f"All {len(true)} predictions are right: there are no confused pairs to draw.")
    one, other = codes[wrong], guesses[wrong]
    if symmetric:
        one, other = np.minimum(one, other), np.maximum(one, other)
    keys, inverse, count = np.unique(one * len(classes) + other, return_inverse=True, return_counts=True)
    one, other = np.divmod(keys, len(classes))
    total = totals[one] + totals[other] if symmetric else totals[one]
    order = np.argsort(-(count / total if by_share else count), kind="stable")[:n_pairs]
    pairs = {
        "true": classes[one[order]],
        "predicted": classes[other[order]],
        "count": count[order],
        "total": total[order],
    }
    return pairs, [wrong[inverse == pair] for pair in order]
