"""What does it help to answer only where the classifier is sure? Error rate against share answered."""

from __future__ import annotations

from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skclip.metrics import risk_coverage_curve
from skclip.plotting._figures import COLORS, MARKERS, import_pyplot, spare_axes

_GROUP = "risk-coverage"


class RiskCoverageDisplay:
    """Error rate among the pictures answered, the most confident first, against their share.

    The mark at the right end is the error rate without refusal. A confidence that tells right from wrong makes the
    curve fall to the left. Use `from_estimator` or `from_predictions`; several curves share axes through
    ``ax=display.ax_``.

    Parameters
    ----------
    coverage : ndarray of shape (m,)
        Shares of rows answered, ascending.
    risk : ndarray of shape (m,)
        Error rates among them.
    area : float, default=None
        Area under the curve (AURC), shown in the legend.
    name : str, default=None
        Name of the classifier in the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The plot.
    figure_ : matplotlib Figure
        The figure.
    line_ : matplotlib Line2D
        The curve.

    See Also
    --------
    skclip.metrics.risk_coverage_curve : The numbers.
    ReliabilityDisplay : Whether the confidence is honest, too.

    Examples
    --------
    >>> from skclip.plotting import RiskCoverageDisplay
    >>> display = RiskCoverageDisplay.from_predictions([True, True, False, True], [0.9, 0.8, 0.3, 0.6])
    >>> display.line_.get_ydata()
    array([0.  , 0.  , 0.  , 0.25])
    """

    def __init__(self, coverage: NDArray, risk: NDArray, *, area: float | None = None, name: str | None = None) -> None:
        self.coverage = coverage
        self.risk = risk
        self.area = area
        self.name = name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        sample_weight: ArrayLike | None = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> RiskCoverageDisplay:
        """Draw the curve of a fitted classifier on test data; its confidence is the largest probability.

        Parameters
        ----------
        estimator : classifier
            Fitted, with ``predict_proba``.
        X : object
            What `estimator` takes.
        y : array-like of shape (n,)
            True labels.
        sample_weight : array-like of shape (n,), default=None
            Weights of the rows.
        name : str, default=None
            In the legend; None is the name of the class.
        ax, **kwargs
            As in `plot`.

        Returns
        -------
        RiskCoverageDisplay
        """
        return cls.from_predictions(
            y,
            estimator.predict_proba(X),
            labels=estimator.classes_,
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
        sample_weight: ArrayLike | None = None,
        name: str | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> RiskCoverageDisplay:
        """Draw the curve of predictions.

        Parameters
        ----------
        y_true : array-like of shape (n,)
            Labels; with scores (n,), whether each prediction was right.
        y_prob : array-like of shape (n, K) or (n,)
            Probabilities, or scores on any scale whose order is that of confidence: those of a detector show what
            refusing by it is worth.
        labels, sample_weight
            As in `skclip.metrics.risk_coverage_curve`.
        name : str, default=None
            In the legend.
        ax, **kwargs
            As in `plot`.

        Returns
        -------
        RiskCoverageDisplay
        """
        curve = risk_coverage_curve(y_true, y_prob, labels=labels, sample_weight=sample_weight)
        return cls(curve.coverage, curve.risk, area=curve.area, name=name).plot(ax, **kwargs)

    def plot(self, ax: Any = None, *, name: str | None = None, **kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.
        name : str, default=None
            In the legend, instead of that of the Display.
        **kwargs : dict
            Passed to matplotlib's ``plot``.

        Returns
        -------
        self : RiskCoverageDisplay
        """
        plt = import_pyplot("RiskCoverageDisplay")
        if ax is None:
            _, ax = plt.subplots(figsize=(5.6, 4.2), layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        earlier = [line for line in ax.lines if line.get_gid() == _GROUP]
        turn, color = divmod(len(earlier), len(COLORS))
        marker = MARKERS[(color + turn) % len(MARKERS)]
        style = {"color": COLORS[color], "marker": marker, "markevery": [-1], "clip_on": False, **kwargs}
        (self.line_,) = ax.plot(self.coverage, self.risk, label=self._label(name), gid=_GROUP, **style)
        highest = max(float(np.max(line.get_ydata())) for line in (*earlier, self.line_))
        ax.set(
            xlim=(0.0, 1.0),
            ylim=(0.0, 1.08 * highest if highest > 0.0 else 1.0),
            xlabel="coverage: share of pictures answered",
            ylabel="risk: error rate among them",
        )
        ax.grid(alpha=0.25)
        spare_axes(ax)
        if self.line_.get_label() and not self.line_.get_label().startswith("_"):
            ax.legend(loc="best", frameon=False)
        return self

    def _label(self, name: str | None) -> str | None:
        name = self.name if name is None else name
        score = None if self.area is None else f"AURC {self.area:.3f}"
        return f"{name} ({score})" if name and score else name or score
