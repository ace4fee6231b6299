"""How much do more labelled pictures help? Accuracy against shots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.metrics import check_scoring
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_consistent_length

from skclip.datasets import few_shot_split
from skclip.plotting._figures import COLORS, GRAY, MARKERS, import_pyplot, spare_axes
from skclip.utils._names import check_labels

_DASHES = ("--", ":", "-.")
_MOST_NAMES_INSIDE = 4


class FewShotCurveDisplay:
    """Accuracy against labelled pictures per class, of one or several methods, with the spread over draws.

    What needs no labelled picture, such as zero-shot classification, is a horizontal line. Use `from_estimator`,
    `from_predictions`, or pass figures that you have and call `plot`.

    Parameters
    ----------
    results : {method: {shots: score or sequence of scores}}
        Scores of each method for each number of shots, one per draw of the labelled pictures.
    baselines : {name: float}, default=None
        Scores that do not depend on the shots.
    score_name : str, default="accuracy"
        What the scores are.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The plot.
    figure_ : matplotlib Figure
        The figure.
    lines_ : list of matplotlib Line2D
        Mean over the draws, one of each method.
    bands_ : list
        Mean plus and minus one standard deviation; None for a method with a single draw.
    baseline_lines_ : list of matplotlib Line2D
        One of each baseline.

    See Also
    --------
    skclip.datasets.few_shot_split : Draws of equally many pictures per class.
    sklearn.model_selection.LearningCurveDisplay : Scores against the number of rows.

    Examples
    --------
    >>> from skclip.plotting import FewShotCurveDisplay
    >>> results = {"GDA": {1: [0.5, 0.75], 4: [0.75, 1.0]}}
    >>> display = FewShotCurveDisplay(results, baselines={"zero-shot": 0.7}).plot()
    >>> display.lines_[0].get_ydata()
    array([0.625, 0.875])
    """

    def __init__(
        self,
        results: Mapping[str, Mapping[int, Any]],
        *,
        baselines: Mapping[str, float] | None = None,
        score_name: str = "accuracy",
    ) -> None:
        self.results = results
        self.baselines = baselines
        self.score_name = score_name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: ArrayLike,
        *,
        X_test: Any = None,
        y_test: ArrayLike | None = None,
        shots: Sequence[int] = (1, 2, 4, 8, 16),
        n_draws: int = 3,
        baselines: Mapping[str, Any] | None = None,
        scoring: Any = None,
        random_state: int | np.random.RandomState | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> FewShotCurveDisplay:
        """Fit clones on draws of k pictures per class and draw their scores.

        Parameters
        ----------
        estimator : classifier or {name: classifier}
            Cloned for every draw.
        X : array-like or list
            What the classifiers take: features, or pictures.
        y : array-like of shape (n,)
            Labels; every class has at least ``max(shots)`` rows, more where there is no `X_test`.
        X_test, y_test : default=None
            Test data. Without them, each draw is tested on the rows that its largest training set leaves, the same
            for all shots.
        shots : sequence of int, default=(1, 2, 4, 8, 16)
            Pictures per class. Smaller draws are contained in larger ones.
        n_draws : int, default=3
            Draws for each number of shots.
        baselines : {name: classifier or float}, default=None
            Horizontal lines: scores, or classifiers that predict without labelled pictures, scored on the same test
            data.
        scoring : str, callable or None, default=None
            As in `sklearn.model_selection.cross_val_score`; None is ``score`` of the classifiers.
        random_state : int, RandomState instance or None, default=None
            Of the draws.
        ax, **kwargs
            As in `plot`.

        Returns
        -------
        FewShotCurveDisplay

        Raises
        ------
        ValueError
            If a class has too few rows, naming it, or no row is left to test on.
        """
        import_pyplot("FewShotCurveDisplay")
        methods = dict(estimator) if isinstance(estimator, Mapping) else {type(estimator).__name__: estimator}
        labels, sizes = check_labels(y), sorted(set(shots))
        check_consistent_length(X, labels)
        if (X_test is None) != (y_test is None):
            raise ValueError("X_test and y_test belong together; one of them is missing.")
        results: dict[str, dict[int, list[float]]] = {name: {size: [] for size in sizes} for name in methods}
        levels: dict[str, list[float]] = {name: [] for name in baselines or {}}
        for seed in check_random_state(random_state).randint(2**31 - 1, size=n_draws).tolist():
            rest = few_shot_split(labels, sizes[-1], random_state=seed)[1]
            if X_test is None and len(rest) == 0:
                raise ValueError(f"{sizes[-1]} shots leave no row to test on; pass X_test and y_test, or fewer shots.")
            test = (_take(X, rest), labels[rest]) if X_test is None else (X_test, y_test)
            for size in sizes:
                train = few_shot_split(labels, size, random_state=seed)[0]
                rows, targets = _take(X, train), labels[train]
                for name, method in methods.items():
                    results[name][size].append(_score(clone(method).fit(rows, targets), test, scoring))
            for name, baseline in (baselines or {}).items():
                known = isinstance(baseline, int | float | np.number)
                levels[name].append(float(baseline) if known else _score(baseline, test, scoring))
        means = {name: float(np.mean(values)) for name, values in levels.items()}
        return cls(results, baselines=means, score_name=_score_name(scoring)).plot(ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        y_true: ArrayLike,
        y_pred: Mapping[str, Mapping[int, Any]],
        *,
        baselines: Mapping[str, ArrayLike] | None = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> FewShotCurveDisplay:
        """Draw the accuracy of predictions on one test set.

        Parameters
        ----------
        y_true : array-like of shape (n,)
            Labels of the test set.
        y_pred : {method: {shots: array-like of shape (n,) or (n_draws, n)}}
            Predicted labels.
        baselines : {name: array-like of shape (n,)}, default=None
            Predicted labels of what needs no labelled pictures.
        ax, **kwargs
            As in `plot`.

        Returns
        -------
        FewShotCurveDisplay
        """
        labels = check_labels(y_true, name="y_true")
        results = {
            name: {
                shots: _accuracies(labels, predicted, f"y_pred[{name!r}][{shots}]")
                for shots, predicted in of_method.items()
            }
            for name, of_method in y_pred.items()
        }
        levels = {
            name: float(_accuracies(labels, predicted, f"baselines[{name!r}]").mean())
            for name, predicted in (baselines or {}).items()
        }
        return cls(results, baselines=levels).plot(ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> Self:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            None makes a figure.
        **kwargs : dict
            Passed to matplotlib's ``plot`` of every method.

        Returns
        -------
        self : FewShotCurveDisplay
        """
        plt = import_pyplot("FewShotCurveDisplay")
        if not self.results:
            raise ValueError("results holds no method.")
        n_names = len(self.results) + len(self.baselines or {})
        outside = n_names > _MOST_NAMES_INSIDE
        if ax is None:
            _, ax = plt.subplots(figsize=(8.4 if outside else 6.4, 4.2), layout="constrained")
        self.ax_, self.figure_ = ax, ax.figure
        self.lines_: list[Any] = []
        self.bands_: list[Any] = []
        self.baseline_lines_: list[Any] = []
        for i, (name, level) in enumerate((self.baselines or {}).items()):
            style = _DASHES[i % len(_DASHES)]
            self.baseline_lines_.append(ax.axhline(level, color=GRAY, linestyle=style, linewidth=1.3, label=name))
        for i, (name, scores) in enumerate(self.results.items()):
            self._draw_method(i, name, scores, kwargs)
        ticks = sorted({size for scores in self.results.values() for size in scores})
        ax.set_xscale("log", base=2)
        ax.set_xticks(ticks, labels=[str(tick) for tick in ticks])
        ax.minorticks_off()
        ax.set(xlabel="labelled pictures of each class", ylabel=self.score_name)
        ax.grid(alpha=0.25)
        spare_axes(ax)
        place: Any = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5)} if outside else {"loc": "best"}
        ax.legend(frameon=False, **place)
        return self

    def _draw_method(self, i: int, name: str, scores: Mapping[int, Any], kwargs: dict[str, Any]) -> None:
        sizes = sorted(scores)
        draws = [np.atleast_1d(np.asarray(scores[size], dtype=float)) for size in sizes]
        mean = np.array([values.mean() for values in draws])
        turn, color = divmod(i, len(COLORS))
        style = {"color": COLORS[color], "marker": MARKERS[(color + turn) % len(MARKERS)], "markersize": 5, **kwargs}
        (line,) = self.ax_.plot(sizes, mean, label=name, **style)
        band = None
        if max(map(len, draws)) > 1:
            spread = np.array([values.std(ddof=1) if len(values) > 1 else 0.0 for values in draws])
            limits = mean - spread, mean + spread
            band = self.ax_.fill_between(sizes, *limits, color=line.get_color(), alpha=0.15, linewidth=0)
        self.lines_.append(line)
        self.bands_.append(band)


def _take(X: Any, rows: NDArray) -> Any:
    if hasattr(X, "iloc"):
        return X.iloc[rows]
    return X[rows] if isinstance(X, np.ndarray) else [X[row] for row in rows]


def _score(fitted: Any, test: tuple[Any, Any], scoring: Any) -> float:
    return float(check_scoring(fitted, scoring)(fitted, *test))


def _score_name(scoring: Any) -> str:
    if scoring is None:
        return "accuracy"
    return scoring.replace("_", " ") if isinstance(scoring, str) else "score"


def _accuracies(labels: NDArray, predicted: Any, what: str) -> NDArray:
    """Accuracy of each draw of predicted labels, (n,) or (n_draws, n)."""
    draws = np.atleast_2d(np.asarray(predicted))
    if draws.ndim != 2 or draws.shape[1] != len(labels):
        raise ValueError(f"{what} has shape {np.shape(predicted)}; y_true has {len(labels)} labels.")
    return np.mean(draws == labels, axis=1)
