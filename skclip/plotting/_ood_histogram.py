"""How far apart do a detector's scores of known and of unknown pictures lie?"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skclip.metrics import fpr_at_tpr, ood_auroc
from skclip.metrics._checks import check_scores
from skclip.metrics._scorers import accepting_threshold, in_distribution_scores, innermost, split_by_sign
from skclip.plotting._figures import COLORS, GRAY, import_pyplot, spare_axes

_UNNAMED = "unknown"
_BEYOND = 0.005  # share of the scores of a set that may lie outside of the axes on each side
_MOST_NAMES_INSIDE = 5
_MOST_FILLED = 3
_DASHES = ("-", "--", ":")  # of sets that share a colour
_LINE_HEIGHT = 0.065  # of a line of the legend, as a share of the axes


class OODHistogramDisplay:
    """Histograms of the scores of known and of unknown pictures, with the threshold between them.

    What lies to the right of the threshold is accepted. Use `from_estimator` or `from_predictions`.

    Parameters
    ----------
    scores_in : array-like of shape (n,)
        Scores of in-distribution pictures: larger = more in-distribution.
    scores_out : array-like of shape (m,) or {name: array-like}
        Scores of one set of other pictures, or of several.
    threshold : float, default=None
        Score from which a picture is accepted; not drawn where it is infinite.
    name : str, default=None
        Name of the detector, below the scores.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The plot.
    figure_ : matplotlib Figure
        The figure.
    known_bars_ : matplotlib StepPatch
        Histogram of the known pictures.
    unknown_bars_ : {name: matplotlib StepPatch}
        Histograms of the other sets.
    threshold_line_ : matplotlib LineCollection or None
        The threshold.

    See Also
    --------
    skclip.metrics.ood_auroc : The figure in the legend.
    skclip.metrics.fpr_at_tpr : The other, at 95 percent.

    Notes
    -----
    Every bar is a share of its own set, so that sets of different size compare. Of each set, half a percent on either
    side may lie beyond the axes; the outermost bars count these, too.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.plotting import OODHistogramDisplay
    >>> rng = np.random.default_rng(0)
    >>> known, unknown = rng.normal(2.0, size=300), {"digits": rng.normal(size=200)}
    >>> display = OODHistogramDisplay(known, unknown, threshold=np.quantile(known, 0.05)).plot()
    >>> [text.get_text() for text in display.ax_.get_legend().get_texts()]
    ['known', 'digits (AUROC 0.92, FPR95 0.31)', 'threshold (keeps 95 % of the known)']
    """

    def __init__(
        self,
        scores_in: ArrayLike,
        scores_out: ArrayLike | Mapping[str, ArrayLike],
        *,
        threshold: float | None = None,
        name: str | None = None,
    ) -> None:
        self.scores_in = scores_in
        self.scores_out = scores_out
        self.threshold = threshold
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        X_out: Any = None,
        *,
        y: ArrayLike | None = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> OODHistogramDisplay:
        """Draw the scores that a fitted detector gives, and its threshold.

        Parameters
        ----------
        estimator : detector or classifier
            Fitted: anything with ``score_samples``; other classifiers are scored by their largest probability, other
            detectors by ``decision_function``.
        X : object
            In-distribution pictures; without `X_out`, pictures of both kinds.
        X_out : object or {name: object}, default=None
            Other pictures, one set or several.
        y : array-like of shape (n,), default=None
            Without `X_out`: 1 for pictures of X that are in-distribution, -1 for others.
        name : str, default=None
            Below the scores; None is the name of the class.
        ax, **kwargs
            As in `plot`.

        Returns
        -------
        OODHistogramDisplay
        """
        scores = in_distribution_scores(estimator, X)
        scores_out: Any = None
        if isinstance(X_out, Mapping):
            scores_out = {of_set: in_distribution_scores(estimator, rows) for of_set, rows in X_out.items()}
        elif X_out is not None:
            scores_out = in_distribution_scores(estimator, X_out)
        return cls.from_predictions(
            scores,
            scores_out,
            y_true=y,
            threshold=accepting_threshold(estimator),
            name=type(innermost(estimator)).__name__ if name is None else name,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls,
        scores: ArrayLike,
        scores_out: Any = None,
        *,
        y_true: ArrayLike | None = None,
        threshold: float | None = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> OODHistogramDisplay:
        """Draw scores.

        Parameters
        ----------
        scores : array-like of shape (n,)
            Scores of in-distribution pictures, larger = more in-distribution; without `scores_out`, of pictures of
            both kinds.
        scores_out : array-like of shape (m,) or {name: array-like}, default=None
            Scores of other pictures, one set or several.
        y_true : array-like of shape (n,), default=None
            Without `scores_out`: 1 for pictures that are in-distribution, -1 for others.
        threshold : float, default=None
            Score from which a picture is accepted.
        name : str, default=None
            Name of the detector, below the scores.
        ax, **kwargs
            As in `plot`.

        Returns
        -------
        OODHistogramDisplay

        Raises
        ------
        ValueError
            If neither or both of `scores_out` and `y_true` are given, or scores are not finite.
        """
        if (scores_out is None) == (y_true is None):
            raise ValueError("Unknown pictures are either a set of their own or told by signs (1, -1): pass one.")
        if y_true is not None:
            scores, scores_out = split_by_sign(check_scores("scores", scores), y_true)
        return cls(scores, scores_out, threshold=threshold, name=name).plot(ax, **kwargs)

    def plot(self, ax: Any = None, *, bins: int = 50, name: str | None = None, **kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.
        bins : int, default=50
            Bars over the width of the axes.
        name : str, default=None
            Instead of that of the Display.
        **kwargs : dict
            Passed to matplotlib's ``stairs`` of every histogram.

        Returns
        -------
        self : OODHistogramDisplay
        """
        plt = import_pyplot("OODHistogramDisplay")
        inside = check_scores("scores_in", self.scores_in)
        given = self.scores_out if isinstance(self.scores_out, Mapping) else {_UNNAMED: self.scores_out}
        sets = {of_set: check_scores(f"scores_out[{of_set!r}]", scores) for of_set, scores in given.items()}
        if not sets:
            raise ValueError("scores_out holds no set.")
        beside = len(sets) > _MOST_NAMES_INSIDE
        if ax is None:
            _, ax = plt.subplots(figsize=(9.2 if beside else 6.4, 4.2), layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        threshold = self.threshold if self.threshold is not None and np.isfinite(self.threshold) else None
        if bins < 1:
            raise ValueError(f"bins must be at least 1, got {bins}.")
        edges = _edges([inside, *sets.values()], threshold, bins)
        self.known_bars_ = self._draw("known", inside, edges, {**_style(0, 0.35), **kwargs})
        opacity = 0.2 if len(sets) <= _MOST_FILLED else 0.0
        self.unknown_bars_ = {
            of_set: self._draw(_label(of_set, inside, scores), scores, edges, {**_style(i, opacity), **kwargs})
            for i, (of_set, scores) in enumerate(sets.items(), start=1)
        }
        highest = max(bar.get_data().values.max() for bar in (self.known_bars_, *self.unknown_bars_.values()))
        self.threshold_line_ = self._draw_threshold(threshold, inside, highest)
        name = self.name if name is None else name
        ax.set(
            xlim=(edges[0], edges[-1]),
            xlabel=f"score of {name} (larger: more in-distribution)"
            if name
            else "score (larger: more in-distribution)",
            ylabel="share of pictures",
        )
        spare_axes(ax)
        lines = 0 if beside else len(sets) + 1 + (threshold is not None)
        ax.set_ylim(0.0, highest / (0.95 - _LINE_HEIGHT * lines))  # the legend lies above the bars
        place: Any = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if beside else {"loc": "upper left"}
        ax.legend(frameon=False, **place)
        return self

    def _draw(self, label: str, scores: NDArray, edges: NDArray, style: dict[str, Any]) -> Any:
        counts = np.histogram(np.clip(scores, edges[0], edges[-1]), edges)[0]
        return self.ax_.stairs(counts / len(scores), edges, fill=True, label=label, **style)

    def _draw_threshold(self, threshold: float | None, inside: NDArray, highest: float) -> Any:
        if threshold is None:
            return None
        kept = 100.0 * np.mean(inside >= threshold)
        label = f"threshold (keeps {kept:.0f} % of the known)"
        return self.ax_.vlines(threshold, 0.0, highest, color=GRAY, linestyle="--", linewidth=1.5, label=label)


def _edges(sets: list[NDArray], threshold: float | None, bins: int) -> NDArray:
    """Edges of bars between the extremes of all sets, but for outliers."""
    low = min(float(np.quantile(scores, _BEYOND)) for scores in sets)
    high = max(float(np.quantile(scores, 1.0 - _BEYOND)) for scores in sets)
    if threshold is not None:
        low, high = min(low, threshold), max(high, threshold)
    if not high > low:
        low, high = low - 0.5, high + 0.5
    return np.linspace(low, high, bins + 1)


def _label(of_set: str, inside: NDArray, outside: NDArray) -> str:
    return f"{of_set} (AUROC {ood_auroc(inside, outside):.2f}, FPR95 {fpr_at_tpr(inside, outside):.2f})"


def _style(i: int, opacity: float) -> dict[str, Any]:
    """Of the known pictures (0) and of the i-th set, which never has their colour."""
    turn, place = divmod(max(i - 1, 0), len(COLORS) - 1)
    color = COLORS[0] if i == 0 else COLORS[1 + place]
    dashes = _DASHES[turn % len(_DASHES)]
    return {"facecolor": (color, opacity), "edgecolor": color, "linewidth": 1.3, "linestyle": dashes}
