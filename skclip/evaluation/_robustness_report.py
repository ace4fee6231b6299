"""`RobustnessReport`: one table of what a classifier does where pictures change."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.model_selection import train_test_split
from sklearn.pipeline import Pipeline
from sklearn.utils import Bunch
from sklearn.utils.validation import check_consistent_length

from skclip.datasets import corrupt_images
from skclip.evaluation._temperature import fit_temperature
from skclip.metrics import (
    brier_score_multiclass,
    confidence_correctness_correlation,
    effective_robustness,
    expected_calibration_error,
    factor_accuracy,
    fpr_at_tpr,
    group_accuracy,
    mean_corruption_error,
    negative_log_likelihood,
    ood_aupr,
    ood_auroc,
    overconfidence_rate,
    relative_mean_corruption_error,
    relative_robustness,
    reliability_curve,
)
from skclip.metrics._checks import check_count, check_share
from skclip.utils import SkclipWarning, get_logits
from skclip.utils._base import forget_fit
from skclip.utils._names import check_labels, rows_of_labels

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from pandas import DataFrame

ID_NAME = "in-distribution"

Row = dict[str, Any]


class _Answers(NamedTuple):
    """What one classifier says of one test set, over the classes that the set is about."""

    logits: NDArray  # (n, K)
    y: NDArray  # (n,)
    classes: NDArray  # (K,)

    def accuracy(self) -> float:
        return float(np.mean(self.predictions() == self.y))

    def predictions(self) -> NDArray:
        return self.classes[self.logits.argmax(axis=1)]

    def among(self, labels: NDArray, *, own_rows: bool) -> _Answers:
        """With the columns of `labels` alone and, with `own_rows`, the rows of these labels alone."""
        columns = rows_of_labels(self.classes, labels, what="labels", source="the classifier")
        rows = np.isin(self.y, labels) if own_rows else np.ones(len(self.y), dtype=bool)
        return _Answers(self.logits[rows][:, columns], self.y[rows], self.classes[columns])


class RobustnessReport:
    """Runs fitted classifiers over named test sets: accuracy under shift, calibration, unknown pictures.

    More than an accuracy: what is lost under natural shift and corruption and whether that is more than accuracy
    predicts, whether confidence stays honest before and after one temperature that was fitted without shift, and
    whether the confidence tells unknown pictures [1]_. Every picture is encoded once per classifier. Not for choosing
    hyper-parameters: for that, use the same measures through `skclip.metrics.get_scorer`.

    Parameters
    ----------
    estimator : classifier or {name: classifier}
        Fitted, on pictures or features: whatever `skclip.utils.get_logits` takes. Several are compared on the same
        rows: models, or one model with several sets of templates.
    baseline : str, default=None
        Which of several classifiers relative robustness and corruption errors are relative to.
    lines : RobustnessLine or {name: RobustnessLine}, default=None
        Fitted lines of standard models, one for every shift or by name of the test set, for effective robustness.
    temperature_size : float or None, default=0.5
        Share of the in-distribution rows that one temperature is fitted to. These do not count in the table. None
        leaves temperatures out.
    n_bins : int, default=15
        Bins of the calibration errors.
    random_state : int, RandomState instance or None, default=0
        Which rows the temperature is fitted to, and the noise of corruptions.

    Attributes
    ----------
    rows_ : list of dict
        The table, one row per classifier and test set; see Notes.
    summary_ : list of dict
        One row per classifier: its temperature, and means over the sets of each kind.
    reliability_ : {(model, set): Bunch}
        Reliability curves ``before`` and ``after`` the temperature (see `skclip.metrics.reliability_curve`).

    See Also
    --------
    RobustnessLine : Fits the line of standard models.
    fit_temperature : The temperature.
    skclip.metrics.get_scorer : The measures in cross-validation.

    Notes
    -----
    Columns of `rows_`: ``model``, ``set``, ``kind`` ("id", "shift", "corruption" or "ood"), ``n``; for labelled sets
    ``accuracy``, ``balanced_accuracy`` (mean over the classes present), ``ece`` (equal widths), ``ece_quantile`` (equal
    weights), ``nll``, ``brier``, ``overconfidence_rate``, ``confidence_correctness_correlation``; the calibration
    columns again after the temperature, ending in ``_scaled``; ``effective_robustness`` and ``relative_robustness``
    where lines or a baseline are known; ``accuracy[...]`` of visual factors; ``corruption`` and ``severity``. For
    unknown pictures ``auroc``, ``aupr`` and ``fpr95`` of the largest probability, without temperature, against the
    in-distribution rows.

    Probabilities are the softmax of the logits. Where a classifier's own ``predict_proba`` is something else (support
    vector machines), calibration is that of the softmax.

    Cost: one prediction per picture and classifier; corrupted pictures are made set by set.

    References
    ----------
    .. [1] W. Tu, W. Deng and T. Gedeon, "Toward a Holistic Evaluation of Robustness in CLIP Models", IEEE TPAMI, 2025,
       arXiv:2410.01534. The number of bins is this package's choice.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.linear_model import LogisticRegression
    >>> from skclip.evaluation import RobustnessReport
    >>> rng = np.random.default_rng(0)
    >>> y = np.repeat(["cat", "dog"], 100)
    >>> X = rng.normal(size=(200, 4)) + 2.0 * (y == "cat")[:, None]
    >>> report = RobustnessReport(LogisticRegression().fit(X[::2], y[::2]))
    >>> shifted = X[1::2] + rng.normal(scale=3.0, size=(100, 4))
    >>> rows = report.evaluate(X[1::2], y[1::2], test_sets={"noise": (shifted, y[1::2])}).rows_
    >>> [(row["set"], row["n"]) for row in rows]
    [('in-distribution', 50), ('noise', 100)]
    >>> rows[0]["accuracy"] > rows[1]["accuracy"]
    True
    """

    def __init__(
        self,
        estimator: Any,
        *,
        baseline: str | None = None,
        lines: Any = None,
        temperature_size: float | None = 0.5,
        n_bins: int = 15,
        random_state: int | np.random.RandomState | None = 0,
    ):
        self.estimator = estimator
        self.baseline = baseline
        self.lines = lines
        self.temperature_size = temperature_size
        self.n_bins = n_bins
        self.random_state = random_state

    def evaluate(
        self,
        X: Any,
        y: ArrayLike,
        *,
        test_sets: Mapping[str, tuple[Any, ArrayLike]] | None = None,
        ood: Mapping[str, Any] | None = None,
        corruptions: Sequence[str] = (),
        severities: Sequence[int] = (1, 2, 3, 4, 5),
        labels: Mapping[str, ArrayLike] | None = None,
        factors: Mapping[str, Mapping[str, ArrayLike]] | None = None,
    ) -> Self:
        """Fill the table.

        Parameters
        ----------
        X : object
            In-distribution pictures or features that the classifiers were not fitted to, as their ``predict`` takes
            them.
        y : array-like of shape (n,)
            Their labels.
        test_sets : {name: (X, y)}, default=None
            Shifted sets.
        ood : {name: X}, default=None
            Pictures of no known class.
        corruptions : sequence of str, default=()
            Kinds of `skclip.datasets.corrupt_images` to apply to X, which must then be a uint8 array of pictures. The
            sets are named after kind and severity, such as "blur 3".
        severities : sequence of int, default=(1, 2, 3, 4, 5)
            Degrees of the corruptions.
        labels : {name: array-like}, default=None
            Classes that a test set is about where these are fewer than the classifier's: the other logits are left out,
            the classifier stays as it is. For effective robustness the in-distribution accuracy is then that on the
            same classes; fit the line likewise.
        factors : {name: {factor: array-like of bool}}, default=None
            For a test set, which of its pictures each visual factor applies to. "in-distribution" is the set of X.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If a name is unknown or used twice, a label is unknown to a classifier, or lengths differ.
        """
        models = self._models()
        test_sets, ood = dict(test_sets or {}), dict(ood or {})
        labels, factors = dict(labels or {}), {name: dict(tags) for name, tags in (factors or {}).items()}
        corrupted = {f"{kind} {severity}": (kind, severity) for kind in corruptions for severity in severities}
        _check_names(test_sets, ood, corrupted, labels, factors, self.lines)
        n_bins = check_count("n_bins", self.n_bins)
        y = check_labels(y)
        calibration, kept = self._split(y)
        forget_fit(self)
        self.rows_: list[Row] = []
        self.reliability_: dict[tuple[str, str], Bunch] = {}
        temperatures: dict[str, float] = {}
        id_answers: dict[str, _Answers] = {}
        for model, estimator in models.items():
            answers = _answers(model, estimator, ID_NAME, X, y)
            if calibration is not None:
                temperatures[model] = fit_temperature(
                    answers.logits[calibration], y[calibration], labels=answers.classes
                )
            id_answers[model] = _Answers(answers.logits[kept], y[kept], answers.classes)
        if ID_NAME in factors:
            factors[ID_NAME] = {name: np.asarray(tags)[kept] for name, tags in factors[ID_NAME].items()}

        def sets() -> Iterator[tuple[str, Row, Any, NDArray]]:
            for name, (X_set, y_set) in test_sets.items():
                yield name, {"kind": "shift"}, X_set, check_labels(y_set, name=f"y of test set {name!r}")
            for name, (kind, severity) in corrupted.items():
                pictures = corrupt_images(np.asarray(X)[kept], kind, severity=severity, random_state=self.random_state)
                yield name, {"kind": "corruption", "corruption": kind, "severity": severity}, pictures, y[kept]

        for model in models:
            self._add_row(model, ID_NAME, {"kind": "id"}, id_answers[model], temperatures.get(model), n_bins, factors)
        for name, facts, X_set, y_set in sets():
            for model, estimator in models.items():
                answers, same_id = _answers(model, estimator, name, X_set, y_set), id_answers[model]
                if name in labels:
                    about = check_labels(labels[name], name=f"labels[{name!r}]")
                    _check_known(name, y_set, about)
                    answers, same_id = answers.among(about, own_rows=False), same_id.among(about, own_rows=True)
                row = self._add_row(model, name, facts, answers, temperatures.get(model), n_bins, factors)
                line = self.lines.get(name) if isinstance(self.lines, Mapping) else self.lines
                if line is not None:
                    row["accuracy_id"] = same_id.accuracy()
                    row["effective_robustness"] = effective_robustness(row["accuracy_id"], row["accuracy"], line)
        for name, X_set in ood.items():
            for model, estimator in models.items():
                inside = softmax(id_answers[model].logits, axis=1).max(axis=1)
                outside = softmax(get_logits(estimator, X_set, shift_invariant=True), axis=1).max(axis=1)
                self.rows_.append(
                    {
                        "model": model,
                        "set": name,
                        "kind": "ood",
                        "n": len(outside),
                        "auroc": ood_auroc(inside, outside),
                        "aupr": ood_aupr(inside, outside),
                        "fpr95": fpr_at_tpr(inside, outside),
                    }
                )
        self._compare_with_baseline()
        self.summary_ = [self._summary(model, temperatures.get(model)) for model in models]
        return self

    def to_frame(self) -> DataFrame:
        """The table as a data frame.

        Returns
        -------
        pandas.DataFrame
            NaN where a column says nothing of a set.

        Raises
        ------
        ImportError
            If pandas is not installed.
        """
        self._check_evaluated()
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ImportError(
                "RobustnessReport.to_frame needs pandas: pip install pandas. rows_ needs nothing."
            ) from error
        return DataFrame(self.rows_)

    def plot_accuracy(self, *, ax: Axes | None = None) -> Axes:
        """Accuracy on every labelled set as bars, each classifier's in-distribution accuracy as a dashed line.

        A black mark is the accuracy that the line of standard models predicts, where lines are known. Corruptions are
        averaged over severities.

        Parameters
        ----------
        ax : matplotlib axes, default=None
            None makes a figure.

        Returns
        -------
        matplotlib.axes.Axes
        """
        self._check_evaluated()
        ax = _axes(ax)
        models = [row["model"] for row in self.summary_]
        shown = [row for row in self.rows_ if row["kind"] in ("shift", "corruption")]
        names = list(dict.fromkeys(str(row.get("corruption", row["set"])) for row in shown))
        width = 0.8 / len(models)
        for m, model in enumerate(models):
            places = np.arange(len(names)) + (m - (len(models) - 1) / 2) * width
            of_name = [
                [row for row in shown if row["model"] == model and row.get("corruption", row["set"]) == name]
                for name in names
            ]
            bars = ax.bar(places, [np.mean([row["accuracy"] for row in rows]) for rows in of_name], width, label=model)
            color = bars[0].get_facecolor() if names else None
            ax.axhline(self._of(model, "id")[0]["accuracy"], color=color, linestyle="--", linewidth=1.0)
            for place, rows in zip(places, of_name, strict=True):
                expected = [row["accuracy"] - row["effective_robustness"] for row in rows if "accuracy_id" in row]
                if expected:
                    ax.hlines(np.mean(expected), place - 0.4 * width, place + 0.4 * width, color="black")
        ax.set(xticks=range(len(names)), ylabel="accuracy", ylim=(0, 1))
        ax.set_xticklabels(names, rotation=30, ha="right")
        ax.legend()
        return ax

    def plot_severity(self, *, ax: Axes | None = None) -> Axes:
        """Accuracy over the severity of corruptions: one line per kind, or per classifier where there are several.

        Parameters
        ----------
        ax : matplotlib axes, default=None
            None makes a figure.

        Returns
        -------
        matplotlib.axes.Axes

        Raises
        ------
        ValueError
            If no corruption was evaluated.
        """
        self._check_evaluated()
        rows = [row for row in self.rows_ if row["kind"] == "corruption"]
        if not rows:
            raise ValueError("There is no corruption to draw; pass corruptions=[...] to evaluate.")
        ax = _axes(ax)
        models = [row["model"] for row in self.summary_]
        key = "corruption" if len(models) == 1 else "model"
        severities = sorted({row["severity"] for row in rows})
        for name in dict.fromkeys(row[key] for row in rows):
            own = [row for row in rows if row[key] == name]
            means = [np.mean([row["accuracy"] for row in own if row["severity"] == s]) for s in severities]
            clean = self._of(own[0]["model"], "id")[0]["accuracy"]
            ax.plot([0, *severities], [clean, *means], marker="o", label=name)
        ax.set(xlabel="severity (0 = clean)", ylabel="accuracy", ylim=(0, 1), xticks=[0, *severities])
        ax.legend()
        return ax

    def plot_reliability(
        self,
        *,
        model: str | None = None,
        sets: Sequence[str] | None = None,
        scaled: bool = False,
        ax: Axes | None = None,
    ) -> Axes:
        """Accuracy over confidence on each set: calibrated confidence lies on the diagonal.

        Parameters
        ----------
        model : str, default=None
            Which classifier; None is the first.
        sets : sequence of str, default=None
            Test sets to draw; None draws the in-distribution set and all shifts.
        scaled : bool, default=False
            After the temperature.
        ax : matplotlib axes, default=None
            None makes a figure.

        Returns
        -------
        matplotlib.axes.Axes
        """
        self._check_evaluated()
        model = self.summary_[0]["model"] if model is None else model
        if sets is None:
            sets = [row["set"] for row in self.rows_ if row["model"] == model and row["kind"] in ("id", "shift")]
        unknown = [name for name in sets if (model, name) not in self.reliability_]
        if unknown:
            raise ValueError(f"There is no reliability curve of {model!r} on {unknown[0]!r}.")
        if scaled and self.temperature_size is None:
            raise ValueError("There is no temperature: temperature_size is None.")
        ax = _axes(ax)
        ax.plot([0, 1], [0, 1], color="gray", linestyle=":")
        for name in sets:
            curve = self.reliability_[model, name]["after" if scaled else "before"]
            filled = curve.count > 0
            ax.plot(curve.confidence[filled], curve.accuracy[filled], marker="o", label=name)
        ax.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1), title=model)
        ax.legend()
        return ax

    # -- how the table is made ------------------------------------------------------------------------------------

    def _models(self) -> dict[str, Any]:
        """The classifiers by name."""
        if isinstance(self.estimator, Mapping):
            models = dict(self.estimator)
        else:
            last = self.estimator[-1] if isinstance(self.estimator, Pipeline) else self.estimator
            models = {type(last).__name__: self.estimator}
        if not models:
            raise ValueError("estimator is an empty dict; at least one classifier is needed.")
        if self.baseline is not None and self.baseline not in models:
            raise ValueError(f"baseline is {self.baseline!r}, but the classifiers are {list(models)}.")
        return models

    def _split(self, y: NDArray) -> tuple[NDArray | None, NDArray]:
        """Rows for the temperature, and rows for the table."""
        everything = np.arange(len(y))
        if self.temperature_size is None:
            return None, everything
        size = round(check_share("temperature_size", self.temperature_size, closed=False) * len(y))
        if not 0 < size < len(y):
            raise ValueError(f"temperature_size={self.temperature_size} of {len(y)} rows leaves one part empty.")
        counts = np.unique(y, return_counts=True)[1]
        by_class = counts.min() > 1 and min(size, len(y) - size) >= len(counts)
        calibration, kept = train_test_split(
            everything, train_size=size, stratify=y if by_class else None, random_state=self.random_state
        )
        return np.sort(calibration), np.sort(kept)

    def _add_row(
        self,
        model: str,
        name: str,
        facts: Row,
        answers: _Answers,
        temperature: float | None,
        n_bins: int,
        factors: Mapping[str, Mapping[str, ArrayLike]],
    ) -> Row:
        """One row of the table, and its reliability curves."""
        pred = answers.predictions()
        row: Row = {"model": model, "set": name, **facts, "n": len(answers.y), "accuracy": answers.accuracy()}
        row["balanced_accuracy"] = float(np.mean(list(group_accuracy(answers.y, pred, answers.y).values())))
        prob = softmax(answers.logits.astype(np.float64), axis=1)
        row.update(_calibration(answers.y, prob, answers.classes, n_bins))
        curves = Bunch(before=reliability_curve(answers.y, prob, labels=answers.classes, n_bins=n_bins))
        if temperature is not None:
            prob = softmax(answers.logits.astype(np.float64) / temperature, axis=1)
            scaled = _calibration(answers.y, prob, answers.classes, n_bins)
            row.update({f"{column}_scaled": value for column, value in scaled.items()})
            curves["after"] = reliability_curve(answers.y, prob, labels=answers.classes, n_bins=n_bins)
        for factor, tags in factors.get(name, {}).items():
            if len(np.asarray(tags)) != len(answers.y):
                raise ValueError(
                    f"Factor {factor!r} of {name!r} tells of {len(np.asarray(tags))} pictures; the set has "
                    f"{len(answers.y)}."
                )
            row[f"accuracy[{factor}]"] = float(factor_accuracy(answers.y, pred, np.asarray(tags))[0])
        self.rows_.append(row)
        self.reliability_[model, name] = curves
        return row

    def _of(self, model: str, kind: str) -> list[Row]:
        return [row for row in self.rows_ if row["model"] == model and row["kind"] == kind]

    def _compare_with_baseline(self) -> None:
        if self.baseline is None:
            return
        base = {row["set"]: row for row in self.rows_ if row["model"] == self.baseline}
        for row in self.rows_:
            if row["kind"] in ("shift", "corruption"):
                row["relative_robustness"] = relative_robustness(row["accuracy"], base[row["set"]]["accuracy"])

    def _summary(self, model: str, temperature: float | None) -> Row:
        """What the table says of one classifier as a whole."""
        row: Row = {"model": model, "accuracy": self._of(model, "id")[0]["accuracy"]}
        if temperature is not None:
            row["temperature"] = temperature
        for kind, column in (("shift", "accuracy"), ("corruption", "accuracy"), ("ood", "auroc")):
            values = [other[column] for other in self._of(model, kind)]
            if values:
                row[f"{kind}_{column}"] = float(np.mean(values))
        if self.baseline is not None and self._of(model, "corruption"):
            row.update(self._corruption_errors(model, self.baseline))
        return row

    def _corruption_errors(self, model: str, baseline: str) -> Row:
        """Corruption errors relative to the baseline; NaN where some corruption costs the baseline nothing."""
        errors, base = (_errors(self._of(name, "corruption")) for name in (model, baseline))
        clean, base_clean = (1.0 - self._of(name, "id")[0]["accuracy"] for name in (model, baseline))
        found: Row = {}
        for name, measure in (
            ("mean_corruption_error", lambda: mean_corruption_error(errors, base)),
            (
                "relative_mean_corruption_error",
                lambda: relative_mean_corruption_error(
                    errors, base, clean_error=clean, baseline_clean_error=base_clean
                ),
            ),
        ):
            try:
                found[name] = measure()
            except ValueError as error:
                warnings.warn(f"{name} of {model!r} is NaN: {error}", SkclipWarning, stacklevel=5)
                found[name] = float("nan")
        return found

    def _check_evaluated(self) -> None:
        if not hasattr(self, "summary_"):
            raise ValueError("This RobustnessReport is empty: call evaluate first.")


def _answers(model: str, estimator: Any, name: str, X: Any, y: NDArray) -> _Answers:
    """Logits of one classifier on one set, with labels that it knows."""
    classes = np.asarray(estimator.classes_)
    _check_known(name, y, classes, model)
    logits = get_logits(estimator, X, shift_invariant=True)
    check_consistent_length(logits, y)
    return _Answers(logits, y, classes)


def _check_known(name: str, y: NDArray, classes: NDArray, model: str | None = None) -> None:
    unknown = np.flatnonzero(~np.isin(y, classes))
    if unknown.size:
        knower = f"the classifier {model!r}" if model else f"labels[{name!r}]"
        raise ValueError(f"y[{unknown[0]}] of {name!r} is {y[unknown[0]].item()!r}, unknown to {knower}.")


def _check_names(
    test_sets: Mapping[str, Any],
    ood: Mapping[str, Any],
    corrupted: Mapping[str, Any],
    labels: Mapping[str, Any],
    factors: Mapping[str, Any],
    lines: Any,
) -> None:
    names = [ID_NAME, *test_sets, *corrupted, *ood]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"Two test sets are named {twice[0]!r}; every set needs its own name.")
    shifts = [*test_sets, *corrupted]
    spoken_of = {"labels": (labels, shifts), "factors": (factors, [ID_NAME, *shifts])}
    if isinstance(lines, Mapping):
        spoken_of["lines"] = (lines, shifts)
    for parameter, (given, known) in spoken_of.items():
        unknown = [name for name in given if name not in known]
        if unknown:
            raise ValueError(f"{parameter} tells of {unknown[0]!r}, which is none of the sets {known}.")


def _calibration(y: NDArray, prob: NDArray, classes: NDArray, n_bins: int) -> Row:
    with warnings.catch_warnings():
        # 0 for a set where every answer is right says enough in a table
        warnings.simplefilter("ignore", SkclipWarning)
        correlation = confidence_correctness_correlation(y, prob, labels=classes)
    return {
        "ece": expected_calibration_error(y, prob, labels=classes, n_bins=n_bins),
        "ece_quantile": expected_calibration_error(y, prob, labels=classes, n_bins=n_bins, strategy="quantile"),
        "nll": negative_log_likelihood(y, prob, labels=classes),
        "brier": brier_score_multiclass(y, prob, labels=classes),
        "overconfidence_rate": overconfidence_rate(y, prob, labels=classes),
        "confidence_correctness_correlation": correlation,
    }


def _errors(rows: list[Row]) -> NDArray:
    """Error rates, (corruptions, severities)."""
    kinds = list(dict.fromkeys(row["corruption"] for row in rows))
    return np.array([[1.0 - row["accuracy"] for row in rows if row["corruption"] == kind] for kind in kinds])


def _axes(ax: Axes | None) -> Axes:
    if ax is not None:
        return ax
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ImportError("The plots of RobustnessReport need matplotlib: pip install skclip[plots].") from error
    return pyplot.subplots()[1]
