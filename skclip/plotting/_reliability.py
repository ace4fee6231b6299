"""Is a classifier as often right as it says? The reliability diagram of many classes."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skclip.metrics import expected_calibration_error, reliability_curve
from skclip.plotting._figures import COLORS, GRAY, import_pyplot, spare_axes

_PERFECT = "as sure as right"


class ReliabilityDisplay:
    """Accuracy against confidence, with how often each confidence occurs.

    A point below the diagonal is a bin of predictions that are less often right than they claim. Use `from_estimator`
    or `from_predictions`. Several classifiers share a figure through ``ax=(display.ax_, display.histogram_ax_)``.

    Parameters
    ----------
    confidence, accuracy : ndarray of shape (B,)
        Means of the bins; NaN where a bin is empty.
    count : ndarray of shape (B,)
        Rows of each bin.
    edges : ndarray of shape (B + 1,)
        Limits of the bins.
    ece : float, default=None
        Expected calibration error, shown in the legend.
    name : str, default=None
        Name of the classifier in the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The curve.
    histogram_ax_ : matplotlib Axes or None
        The histogram of confidences.
    figure_ : matplotlib Figure
        The figure.
    line_ : matplotlib Line2D
        Accuracy against confidence.
    gaps_ : matplotlib LineCollection
        From each point to the diagonal.
    bars_ : matplotlib StepPatch or None
        The histogram.

    See Also
    --------
    skclip.metrics.reliability_curve : The numbers.
    sklearn.calibration.CalibrationDisplay : The curve of one of two classes.

    Examples
    --------
    >>> from skclip.plotting import ReliabilityDisplay
    >>> display = ReliabilityDisplay.from_predictions([0, 1, 1], [[0.9, 0.1], [0.3, 0.7], [0.9, 0.1]], n_bins=5)
    >>> display.accuracy[-2:]
    array([1. , 0.5])
    """

    def __init__(
        self,
        confidence: NDArray,
        accuracy: NDArray,
        count: NDArray,
        edges: NDArray,
        *,
        ece: float | None = None,
        name: str | None = None,
    ) -> None:
        self.confidence = confidence
        self.accuracy = accuracy
        self.count = count
        self.edges = edges
        self.ece = ece
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        n_bins: int = 15,
        strategy: Any = "uniform",
        sample_weight: ArrayLike | None = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> ReliabilityDisplay:
        """Draw the reliability of a fitted classifier on test data.

        Parameters
        ----------
        estimator : classifier
            Fitted, with ``predict_proba``.
        X : object
            What `estimator` takes.
        y : array-like of shape (n,)
            True labels.
        n_bins, strategy, sample_weight
            As in `skclip.metrics.reliability_curve`.
        name : str, default=None
            In the legend; None is the name of the class.
        ax, **kwargs
            As in `plot`.

        Returns
        -------
        ReliabilityDisplay
        """
        return cls.from_predictions(
            y,
            estimator.predict_proba(X),
            labels=estimator.classes_,
            n_bins=n_bins,
            strategy=strategy,
            sample_weight=sample_weight,
            name=type(estimator).__name__ if name is None else name,
            ax=ax,
            **kwargs,
        )

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_prob: ArrayLike,
        *,
        labels: ArrayLike | None = None,
        n_bins: int = 15,
        strategy: Any = "uniform",
        sample_weight: ArrayLike | None = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> ReliabilityDisplay:
        """Draw the reliability of predicted probabilities.

        Parameters
        ----------
        y_true : array-like of shape (n,)
            Labels; with confidences (n,), whether each prediction was right.
        y_prob : array-like of shape (n, K) or (n,)
            Probabilities, or confidences.
        labels, n_bins, strategy, sample_weight
            As in `skclip.metrics.reliability_curve`.
        name : str, default=None
            In the legend.
        ax, **kwargs
            As in `plot`.

        Returns
        -------
        ReliabilityDisplay
        """
        options: Any = {"labels": labels, "n_bins": n_bins, "strategy": strategy, "sample_weight": sample_weight}
        curve = reliability_curve(y_true, y_prob, **options)
        ece = expected_calibration_error(y_true, y_prob, **options)
        return cls(**curve, ece=ece, name=name).plot(ax, **kwargs)

    def plot(self, ax: Any = None, *, name: str | None = None, **kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, or pair of Axes, default=None
            For the curve alone, or for curve and histogram. None makes a figure of both.
        name : str, default=None
            In the legend, instead of that of the Display.
        **kwargs : dict
            Passed to matplotlib's ``plot`` of the curve.

        Returns
        -------
        self : ReliabilityDisplay
        """
        plt = import_pyplot("ReliabilityDisplay")
        if ax is None:
            _, ax = plt.subplots(2, 1, figsize=(5, 6), sharex=True, height_ratios=(3, 1), layout="constrained")
        self.ax_, self.histogram_ax_ = ax if isinstance(ax, tuple | list | np.ndarray) else (ax, None)
        self.figure_ = self.ax_.figure
        self._draw_curve(self.name if name is None else name, kwargs)
        self.bars_ = None if self.histogram_ax_ is None else self._draw_histogram()
        return self

    def _draw_curve(self, name: str | None, kwargs: dict[str, Any]) -> None:
        ax = self.ax_
        if _PERFECT not in ax.get_legend_handles_labels()[1]:
            ax.plot([0, 1], [0, 1], color=GRAY, linestyle="--", linewidth=1, label=_PERFECT)
        n_before = sum(line.get_gid() == "reliability" for line in ax.lines)
        style = {"color": COLORS[n_before % len(COLORS)], "marker": "o", "markersize": 5, **kwargs}
        score = None if self.ece is None else f"ECE {self.ece:.3f}"
        label = f"{name} ({score})" if name and score else name or score
        filled = self.count > 0
        x, height = self.confidence[filled], self.accuracy[filled]
        (self.line_,) = ax.plot(x, height, label=label, gid="reliability", **style)
        self.gaps_ = ax.vlines(x, x, height, color=self.line_.get_color(), alpha=0.35, linewidth=3)
        ax.set(xlim=(0, 1.02), ylim=(0, 1.03), ylabel="accuracy")
        if self.histogram_ax_ is None:
            ax.set_xlabel("confidence")
        ax.grid(alpha=0.25)
        spare_axes(ax)
        ax.legend(loc="best", frameon=False)

    def _draw_histogram(self) -> Any:
        ax = self.histogram_ax_
        share = self.count / self.count.sum()
        color = self.line_.get_color()
        highest = max(1.08 * share.max(), ax.get_ylim()[1] if ax.patches else 0.0)
        bars = ax.stairs(share, self.edges, fill=True, facecolor=(color, 0.25), edgecolor=color, linewidth=1.2)
        ax.set(xlabel="confidence", ylabel="share of rows", ylim=(0, highest))
        ax.locator_params(axis="y", nbins=3, prune="upper")  # the topmost would touch the curve's
        spare_axes(ax)
        return bars
