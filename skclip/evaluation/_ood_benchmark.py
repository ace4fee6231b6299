"""`ood_benchmark`: many detectors on many sets of unknown pictures, in one table."""

from __future__ import annotations

import os
import re
import time
import uuid
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import joblib
import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.base import clone
from sklearn.utils.parallel import Parallel, delayed
from sklearn.utils.validation import _num_samples, check_consistent_length

from skclip.metrics import detection_error, fpr_at_tpr, near_far_average, ood_aupr, ood_auroc, oscr_score
from skclip.metrics._checks import check_choice, check_scores
from skclip.metrics._ood import FPR_RULES
from skclip.metrics._scorers import accepting_threshold, in_distribution_scores, innermost, predicted_classes
from skclip.utils import SkclipWarning
from skclip.utils._arrays import take_rows
from skclip.utils._names import check_labels

if TYPE_CHECKING:
    from pandas import DataFrame

NEAR_MEAN, FAR_MEAN, MEAN = "near mean", "far mean", "mean"

_FACTS = ("detector", "set", "kind", "fit_time", "score_time", "n_in", "n_out", "error")
_FPR = re.compile(r"fpr(\d{1,2}(?:\.\d+)?|100)")
_DEFAULT_CONTAMINATION = 0.05

# what a detector is asked about besides the sets
_IN, _CLASSES, _VALIDATION = "X_test", "classes of X_test", "X_val"

# of results kept from an earlier fit: how many pictures are scored again, and how far scores may lie off, as a share
# of their range, to be those of the same fit
_N_COMPARED, _SAME_FIT = 64, 1e-3
_PART_SECONDS = 3600  # an unfinished file older than this was left by a process that died


class _Known(NamedTuple):
    """In-distribution data."""

    X_train: Any
    y_train: Any
    X_test: Any
    y_test: Any = None
    X_val: Any = None


class _Question(NamedTuple):
    """Something asked of a fitted detector about n pictures."""

    X: Any
    ask: Callable[[Any, Any], NDArray]  # (detector, X) -> (n,)
    digest: str | None  # of what is asked about which pictures; None where nothing is kept


class _Answer(NamedTuple):
    """Scores or labels of n pictures, and what the fit behind them was like."""

    values: NDArray  # (n,)
    seconds: float
    fit_seconds: float
    threshold: float  # NaN where the detector has none
    contamination: float


class _Outcome(NamedTuple):
    """What became of one detector."""

    answers: dict[str, _Answer]
    failures: dict[str, str]


class _Case(NamedTuple):
    """One detector on one set: what the measures are taken of."""

    scores_in: NDArray
    scores_out: NDArray
    threshold: float
    y_true: NDArray | None
    y_pred: NDArray | None
    fpr_options: dict[str, Any]


def ood_benchmark(
    detectors: Mapping[str, Any] | Iterable[tuple[str, Any]],
    id_data: Any,
    ood_sets: Mapping[str, Any],
    *,
    near: Sequence[str] | None = None,
    metrics: Sequence[str] | Mapping[str, Any] = ("auroc", "aupr_in", "aupr_out", "fpr95"),
    fpr_rule: Literal["at_least", "first", "closest"] = "at_least",
    fpr_positive: Literal["in", "out"] = "in",
    on_error: Literal["raise", "nan"] = "raise",
    resume: str | os.PathLike[str] | None = None,
    n_jobs: int | None = None,
    verbose: int = 0,
) -> DataFrame:
    """Fit detectors on known pictures, score known and unknown ones, and tabulate how well they are told apart.

    Every detector is fitted once and scores every set once. `ood_table` makes the result a table for a paper.

    Parameters
    ----------
    detectors : {name: estimator} or iterable of (name, estimator)
        Anything with ``score_samples``, larger = more in-distribution: detectors of `skclip.ood`, scikit-learn's
        outlier detectors and mixtures, classifiers that score, pipelines and searches of these. Other classifiers are
        scored by their largest probability, other detectors by ``decision_function``. Cloned and fitted; wrap in
        `FrozenEstimator` to keep a fit.
    id_data : tuple or mapping
        In-distribution data: ``(X_train, y_train, X_test)`` or ``(X_train, y_train, X_test, y_test)``, or a mapping
        (a `Bunch`) with these names and, if there is, ``X_val``. `y_train` may be None where no detector needs labels.
        X are features or pictures, whatever the detectors take.
    ood_sets : {name: X}
        Sets of unknown pictures.
    near : sequence of str, default=None
        Names of the sets that resemble the known classes; the others are far. None: there is no such difference.
    metrics : sequence of str or {name: callable}, default=("auroc", "aupr_in", "aupr_out", "fpr95")
        Columns, see Notes; of a mapping, a value that is no name is called as ``value(scores_in, scores_out)``.
    fpr_rule, fpr_positive : str, default="at_least", "in"
        `rule` and `positive` of `skclip.metrics.fpr_at_tpr`. OpenOOD's are "first" and "out".
    on_error : {"raise", "nan"}, default="raise"
        What happens where a detector fails: the error, with the name of the detector, or NaN, the reason in the column
        ``error``, and a warning.
    resume : str or Path, default=None
        Folder in which scores are kept as soon as a detector has given those of a set. Another call with it computes
        what is missing; see Notes.
    n_jobs : int, default=None
        Detectors at work at a time, as in scikit-learn. The order of rows does not depend on it.
    verbose : int, default=0
        1 shows a progress bar of detectors.

    Returns
    -------
    pandas.DataFrame
        One row per detector and set, then rows of means: "near mean" after the near sets, "far mean" after the far
        ones, and "mean", which with `near` is the mean of these two (as OpenOOD and COOkeD average,
        `skclip.metrics.near_far_average`), else the mean over all sets. Columns: ``detector``; ``set``; ``kind``
        ("near", "far", "ood" without `near`, "mean"); the metrics; ``fit_time`` and ``score_time``, seconds for
        fitting and for scoring the pictures of the set; ``n_in`` and ``n_out``, numbers of known and unknown test
        pictures; ``error``. In rows of means, ``score_time`` and ``n_out`` are sums.

    Raises
    ------
    ValueError
        If a name is unknown or used twice, data are missing, or scores are not finite.
    TypeError
        If a detector does not score.
    ImportError
        If pandas is not installed.

    Warns
    -----
    SkclipWarning
        If a detector fails and `on_error` is "nan".

    See Also
    --------
    ood_table : The frame as Markdown or LaTeX.
    skclip.metrics.get_scorer : The measures in cross-validation and searches.

    Notes
    -----
    Metrics are "auroc", "aupr_in", "aupr_out", "fpr95" (or any other percentage), "detection_error" (of the best
    threshold); with `y_test`, "oscr" and "accuracy" of detectors that predict classes, NaN for others; and
    "accepted_in" and "accepted_out", the shares of known and unknown pictures that pass the detector's own threshold,
    NaN where it has none. With `X_val`, that threshold is the `contamination` quantile (0.05 for detectors without
    this parameter) of the scores of `X_val`.

    Kept scores are found again by content: parameters of the detector (of frozen ones the whole), training data,
    pictures, and versions of skclip and scikit-learn. Of picture files, path, size and time of the last change count,
    and what parameters name but do not hold, such as weights in a folder or the body of a function, does not. Change
    of metrics computes no score anew. A file that is damaged is replaced. Where some sets are missing, the detector is
    fitted again and 64 known pictures tell whether that gave the scores of before: of a detector without
    `random_state` it may not, and then all of it is computed anew.

    References
    ----------
    J. Zhang et al., "OpenOOD v1.5: Enhanced Benchmark for Out-of-Distribution Detection", 2023, arXiv:2306.09301.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.covariance import EllipticEnvelope
    >>> from sklearn.neighbors import LocalOutlierFactor
    >>> from skclip.evaluation import ood_benchmark
    >>> rng = np.random.default_rng(0)
    >>> known = rng.normal(size=(200, 4))
    >>> unknown = {"beside": rng.normal(1.0, size=(50, 4)), "away": rng.normal(9.0, size=(50, 4))}
    >>> detectors = {"envelope": EllipticEnvelope(random_state=0), "LOF": LocalOutlierFactor(novelty=True)}
    >>> frame = ood_benchmark(detectors, (known[:100], None, known[100:]), unknown, near=["beside"])
    >>> frame[["detector", "set", "kind"]].head(5)
       detector        set  kind
    0  envelope     beside  near
    1  envelope  near mean  mean
    2  envelope       away   far
    3  envelope   far mean  mean
    4  envelope       mean  mean
    """
    pandas = _import_pandas()
    check_choice("on_error", on_error, ("raise", "nan"))
    fpr_options = {
        "rule": check_choice("fpr_rule", fpr_rule, FPR_RULES),
        "positive": check_choice("fpr_positive", fpr_positive, ("in", "out")),
    }
    named = _check_detectors(detectors)
    known = _check_known(id_data)
    measures = _check_metrics(metrics, known)
    kinds = _check_sets(ood_sets, near)
    sizes = {name: _num_samples(X) for name, X in ood_sets.items()}
    folder = None if resume is None else _prepare_folder(resume)
    questions = _questions(known, ood_sets, measures, kept=folder is not None)
    train = known.X_train, known.y_train
    of_training = None if folder is None else (*_versions(), _digest(train))
    keys = [None if folder is None else _digest((detector, of_training)) for detector in named.values()]
    jobs = Parallel(n_jobs=n_jobs, return_as="generator")(
        delayed(_run)(name, detector, train, questions, folder, key, on_error)
        for (name, detector), key in zip(named.items(), keys, strict=True)
    )
    rows = []
    for name, outcome in zip(named, _progress(jobs, len(named), verbose), strict=True):
        if outcome.failures:
            place, reason = next(iter(outcome.failures.items()))
            warnings.warn(f"The detector {name!r} failed ({place}): {reason}", SkclipWarning, stacklevel=2)
        rows += _rows(name, outcome, known, kinds, sizes, measures, fpr_options)
    return pandas.DataFrame(rows, columns=[*_FACTS[:3], *measures, *_FACTS[3:]])


# -- what is given ------------------------------------------------------------------------------------------------


def _import_pandas() -> Any:
    try:
        import pandas
    except ImportError as error:
        raise ImportError('ood_benchmark needs pandas: pip install "skclip[tables]".') from error
    return pandas


def _check_detectors(detectors: Any) -> dict[str, Any]:
    """Unfitted clones by name; frozen estimators stay as they are."""
    pairs = list(detectors.items() if isinstance(detectors, Mapping) else detectors)
    if not pairs:
        raise ValueError("detectors is empty; at least one is needed.")
    named: dict[str, Any] = {}
    for i, pair in enumerate(pairs):
        if not (isinstance(pair, tuple | list) and len(pair) == 2):
            raise ValueError(f"detectors[{i}] must be a pair (name, estimator), got {type(pair).__name__}.")
        name, detector = str(pair[0]), pair[1]
        if name in named:
            raise ValueError(f"Two detectors are named {name!r}; every one needs its own name.")
        if not hasattr(detector, "fit"):
            raise TypeError(f"The detector {name!r} is no estimator: {type(detector).__name__} has no fit.")
        named[name] = clone(detector)
    return named


def _check_known(id_data: Any) -> _Known:
    if isinstance(id_data, Mapping):
        missing = [name for name in ("X_train", "X_test") if id_data.get(name) is None]
        if missing:
            raise ValueError(f"id_data has no {missing[0]}; it has {sorted(map(str, id_data))}.")
        known = _Known(**{name: id_data.get(name) for name in _Known._fields})
    elif isinstance(id_data, tuple | list) and len(id_data) in (3, 4):
        known = _Known(*id_data)
    else:
        raise ValueError(
            "id_data must be (X_train, y_train, X_test), (X_train, y_train, X_test, y_test), or a mapping with these "
            "names."
        )
    check_consistent_length(known.X_train, known.y_train)
    check_consistent_length(known.X_test, known.y_test)
    return known if known.y_test is None else known._replace(y_test=check_labels(known.y_test, name="y_test"))


def _check_metrics(metrics: Any, known: _Known) -> dict[str, Callable[[_Case], float]]:
    if isinstance(metrics, str):
        raise ValueError(f"metrics must be a sequence of names or a mapping, got the text {metrics!r}.")
    given = dict(metrics) if isinstance(metrics, Mapping) else {name: name for name in metrics}
    measures = {}
    for column, metric in given.items():
        if column in _FACTS:
            raise ValueError(f"No metric can be named {column!r}, which is another column.")
        measures[column] = partial(_of_scores, metric) if callable(metric) else _measure(metric)
        if metric in _NEEDS_LABELS and known.y_test is None:
            raise ValueError(f"The metric {metric!r} needs y_test, the labels of X_test, in id_data.")
    if not measures:
        raise ValueError("metrics is empty; at least one is needed.")
    return measures


def _check_sets(ood_sets: Mapping[str, Any], near: Sequence[str] | None) -> dict[str, str]:
    """Kind of each set, in the order of the rows."""
    if not isinstance(ood_sets, Mapping) or not ood_sets:
        raise ValueError("ood_sets must be {name: X} with at least one set.")
    reserved = [name for name in ood_sets if name in (NEAR_MEAN, FAR_MEAN, MEAN)]
    if reserved:
        raise ValueError(f"No set can be named {reserved[0]!r}, which is a row of means.")
    if near is None:
        return dict.fromkeys(ood_sets, "ood")
    near_far_average(dict.fromkeys(ood_sets, 0.0), near=near)  # says which name is wrong
    return {name: "near" for name in ood_sets if name in near} | {name: "far" for name in ood_sets if name not in near}


# -- the measures -------------------------------------------------------------------------------------------------


def _of_scores(metric: Callable[[NDArray, NDArray], float], case: _Case) -> float:
    return float(metric(case.scores_in, case.scores_out))


def _fpr(tpr: float, case: _Case) -> float:
    return fpr_at_tpr(case.scores_in, case.scores_out, tpr=tpr, **case.fpr_options)


def _oscr(case: _Case) -> float:
    if case.y_pred is None:
        return float("nan")
    return oscr_score(case.y_true, case.y_pred, case.scores_in, case.scores_out)  # type: ignore[arg-type]


def _accuracy(case: _Case) -> float:
    return float("nan") if case.y_pred is None else float(np.mean(case.y_true == case.y_pred))


def _accepted(which: str, case: _Case) -> float:
    scores = getattr(case, which)
    return float("nan") if np.isnan(case.threshold) else float(np.mean(scores >= case.threshold))


_MEASURES: dict[str, Callable[[_Case], float]] = {
    "auroc": partial(_of_scores, ood_auroc),
    "aupr_in": partial(_of_scores, ood_aupr),
    "aupr_out": partial(_of_scores, partial(ood_aupr, positive="out")),
    "detection_error": partial(_of_scores, detection_error),
    "oscr": _oscr,
    "accuracy": _accuracy,
    "accepted_in": partial(_accepted, "scores_in"),
    "accepted_out": partial(_accepted, "scores_out"),
}
_NEEDS_LABELS = ("oscr", "accuracy")
_NEEDS_THRESHOLD = ("accepted_in", "accepted_out")


def _measure(name: Any) -> Callable[[_Case], float]:
    if name in _MEASURES:
        return _MEASURES[name]
    percent = _FPR.fullmatch(str(name))
    if percent and float(percent[1]) > 0.0:
        return partial(_fpr, float(percent[1]) / 100.0)
    raise ValueError(f"Unknown metric {name!r}; there are {', '.join(_MEASURES)}, fpr95 and other percentages of fpr.")


# -- one detector -------------------------------------------------------------------------------------------------


def _questions(
    known: _Known, ood_sets: Mapping[str, Any], measures: Mapping[str, Callable], *, kept: bool
) -> dict[str, _Question]:
    """What every detector is asked, by how a failure is told; the known test pictures come first."""

    def question(X: Any, ask: Callable[[Any, Any], NDArray]) -> _Question:
        return _Question(X, ask, f"{ask.__name__.strip('_')}-{_digest(X)}" if kept else None)

    asked = {_IN: question(known.X_test, _scores)}
    if any(_MEASURES[name] in measures.values() for name in _NEEDS_LABELS):
        asked[_CLASSES] = question(known.X_test, _classes)
    if known.X_val is not None and any(_MEASURES[name] in measures.values() for name in _NEEDS_THRESHOLD):
        asked[_VALIDATION] = question(known.X_val, _scores)
    return asked | {_of_set(name): question(X, _scores) for name, X in ood_sets.items()}


def _of_set(name: str) -> str:
    return f"set {name!r}"


def _scores(detector: Any, X: Any) -> NDArray:
    scores = check_scores("scores", in_distribution_scores(detector, X))
    if len(scores) != _num_samples(X):
        raise ValueError(f"There are {len(scores)} scores of {_num_samples(X)} pictures.")
    return scores


def _classes(detector: Any, X: Any) -> NDArray:
    """Labels predicted; none of a detector that knows no classes."""
    classes = predicted_classes(detector, X)
    return np.empty(0) if classes is None else check_labels(classes, name="predicted classes")


def _run(
    name: str,
    detector: Any,
    train: tuple[Any, Any],
    questions: dict[str, _Question],
    folder: Path | None,
    key: str | None,
    on_error: str,
) -> _Outcome:
    """Answers of one detector: those kept, and the others from one fit."""
    paths = {
        place: None if folder is None else folder / f"ood-{key}-{question.digest}.npz"
        for place, question in questions.items()
    }
    answers = {place: answer for place, path in paths.items() if path and (answer := _load(path)) is not None}
    if len(answers) == len(questions):
        return _Outcome(answers, {})
    try:
        fitted, facts = _fit(detector, train)
        if not _is_same_fit(fitted, questions[_IN], answers.get(_IN)):
            answers = {}
    except Exception as error:
        return _Outcome({}, {"fit": _failed(error, name, "in fit", on_error)})
    failures: dict[str, str] = {}
    for place in [place for place in questions if place not in answers]:
        try:
            answers[place] = _answer(fitted, questions[place], facts)
        except Exception as error:
            failures[place] = _failed(error, name, f"on {place}", on_error)
            continue
        path = paths[place]
        if path is not None:
            _save(path, answers[place])
    return _Outcome(answers, failures)


def _fit(detector: Any, train: tuple[Any, Any]) -> tuple[Any, tuple[float, float, float]]:
    """A fitted clone, and what `_Answer` says of a fit."""
    start = time.perf_counter()
    fitted = clone(detector).fit(*train)
    seconds = time.perf_counter() - start
    threshold, contamination = accepting_threshold(fitted), getattr(innermost(fitted), "contamination", None)
    return fitted, (
        seconds,
        float("nan") if threshold is None else threshold,
        contamination if isinstance(contamination, float) else _DEFAULT_CONTAMINATION,
    )


def _answer(fitted: Any, question: _Question, facts: tuple[float, float, float]) -> _Answer:
    start = time.perf_counter()
    values = question.ask(fitted, question.X)
    return _Answer(values, time.perf_counter() - start, *facts)


def _failed(error: Exception, name: str, where: str, on_error: str) -> str:
    """The reason in words, unless the error is to be raised."""
    if on_error == "raise":
        error.add_note(f"The detector {name!r} of ood_benchmark failed {where}.")
        raise error
    return f"{type(error).__name__}: {error}"


def _is_same_fit(fitted: Any, question: _Question, kept: _Answer | None) -> bool:
    """Whether a new fit gives the scores that an earlier one gave."""
    if kept is None:
        return False
    rows = np.arange(min(_N_COMPARED, len(kept.values)))
    again = question.ask(fitted, take_rows(question.X, rows))
    return bool(np.abs(again - kept.values[rows]).max() <= _SAME_FIT * np.ptp(kept.values))


# -- the table ----------------------------------------------------------------------------------------------------


def _rows(
    name: str,
    outcome: _Outcome,
    known: _Known,
    kinds: Mapping[str, str],
    sizes: Mapping[str, int],
    measures: Mapping[str, Callable[[_Case], float]],
    fpr_options: dict[str, Any],
) -> list[dict[str, Any]]:
    """Rows of one detector: of its sets, each group followed by its mean, and the mean of all."""
    inside = outcome.answers.get(_IN)
    common = {
        "detector": name,
        "fit_time": float("nan") if inside is None else inside.fit_seconds,
        "n_in": _num_samples(known.X_test),
    }
    of_sets: dict[str, dict[str, Any]] = {}
    for set_name, kind in kinds.items():
        case = _case(outcome, set_name, known, fpr_options)
        outside = outcome.answers.get(_of_set(set_name))
        of_sets[set_name] = {
            **common,
            "set": set_name,
            "kind": kind,
            **{column: float("nan") if case is None else measure(case) for column, measure in measures.items()},
            "score_time": float("nan") if outside is None else outside.seconds,
            "n_out": sizes[set_name],
            "error": _failure(outcome, set_name),
        }
    near = [set_name for set_name, kind in kinds.items() if kind == "near"]
    means = {
        column: near_far_average({set_name: row[column] for set_name, row in of_sets.items()}, near=near)
        for column in measures
    }

    def mean_of(kind: str, rows: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            **common,
            "set": MEAN if kind == "mean" else f"{kind} mean",
            "kind": "mean",
            **{column: average[kind] for column, average in means.items()},
            "score_time": sum(row["score_time"] for row in rows),
            "n_out": sum(row["n_out"] for row in rows),
            "error": None,
        }

    rows = []
    for kind in dict.fromkeys(kinds.values()):
        group = [row for row in of_sets.values() if row["kind"] == kind]
        rows += group if kind == "ood" else [*group, mean_of(kind, group)]
    return [*rows, mean_of("mean", list(of_sets.values()))]


def _case(outcome: _Outcome, set_name: str, known: _Known, fpr_options: dict[str, Any]) -> _Case | None:
    """Scores of one set beside those of known pictures; None where either is missing."""
    answers = outcome.answers
    if _IN not in answers or _of_set(set_name) not in answers:
        return None
    inside, validation = answers[_IN], answers.get(_VALIDATION)
    threshold = float("nan") if _VALIDATION in outcome.failures else inside.threshold
    if validation is not None:
        threshold = float(np.percentile(validation.values, 100.0 * validation.contamination))
    predicted = answers[_CLASSES].values if _CLASSES in answers else np.empty(0)
    return _Case(
        inside.values,
        answers[_of_set(set_name)].values,
        threshold,
        known.y_test,
        predicted if len(predicted) else None,
        fpr_options,
    )


def _failure(outcome: _Outcome, set_name: str) -> str | None:
    """Why there are no figures, or not all, of a set."""
    places = ("fit", _IN, _CLASSES, _VALIDATION, _of_set(set_name))
    return next((outcome.failures[place] for place in places if place in outcome.failures), None)


def _progress(jobs: Iterable[_Outcome], n_detectors: int, verbose: int) -> Iterable[_Outcome]:
    from tqdm.auto import tqdm

    return tqdm(jobs, total=n_detectors, desc="ood_benchmark", unit="detector", disable=not verbose)


# -- what is kept -------------------------------------------------------------------------------------------------


def _prepare_folder(resume: str | os.PathLike[str]) -> Path:
    folder = Path(resume).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    for part in folder.glob("ood-*.part"):
        if time.time() - part.stat().st_mtime > _PART_SECONDS:
            part.unlink(missing_ok=True)
    return folder


def _versions() -> tuple[str, str]:
    from skclip import __version__

    return __version__, sklearn.__version__


def _digest(content: Any) -> str:
    """Hash of content; of files, of their size and time of change as well as the path."""
    return str(joblib.hash((content, _file_states(content)), coerce_mmap=True))


def _file_states(content: Any) -> Any:
    if isinstance(content, str | os.PathLike):
        try:
            status = os.stat(content)
        except (OSError, ValueError):
            return None  # a caption, or any other text
        return status.st_size, status.st_mtime_ns
    if getattr(content, "ndim", None) == 1 and np.asarray(content).dtype.kind in "OU":
        content = np.asarray(content).tolist()
    return [_file_states(item) for item in content] if isinstance(content, list | tuple) else None


def _load(path: Path) -> _Answer | None:
    """What `_save` wrote, or None."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return _Answer(file["values"], *(float(file[name]) for name in _Answer._fields[1:]))
    except Exception:
        # missing, or damaged in one of the many ways a file can be: it is computed anew
        return None


def _save(path: Path, answer: _Answer) -> None:
    """Written as a whole or not at all, whoever else writes the same."""
    part = path.with_name(f"{path.stem}-{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            np.savez(file, **answer._asdict())
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


# -- for a paper --------------------------------------------------------------------------------------------------

_NAMES = {"auroc": "AUROC", "aupr_in": "AUPR-in", "aupr_out": "AUPR-out", "oscr": "OSCR"}
_LATEX_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def ood_table(
    frame: DataFrame,
    metric: str | Sequence[str] = "auroc",
    *,
    format: Literal["markdown", "latex"] = "markdown",
    best: Literal["bold"] | None = "bold",
    digits: int = 1,
    smaller_is_better: Sequence[str] = (),
) -> str:
    """A benchmark as papers print it: a row per detector, a column per set and mean, in percent.

    Parameters
    ----------
    frame : pandas.DataFrame
        From `ood_benchmark`.
    metric : str or sequence of str, default="auroc"
        Which of its columns. Several stand side by side under each set.
    format : {"markdown", "latex"}, default="markdown"
        "latex" is a ``tabular`` for the package booktabs.
    best : {"bold"} or None, default="bold"
        How the best of each column is marked, all of them where several print alike. "accepted_in" has no best.
    digits : int, default=1
        Decimals.
    smaller_is_better : sequence of str, default=()
        Metrics of your own of which the smallest is the best. Of rates of false alarms and errors that is known.

    Returns
    -------
    str

    Raises
    ------
    ValueError
        If there is no such column of figures.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.neighbors import KernelDensity
    >>> from skclip.evaluation import ood_benchmark, ood_table
    >>> rng = np.random.default_rng(0)
    >>> known = rng.normal(size=(200, 4))
    >>> unknown = {"beside": rng.normal(1.0, size=(50, 4)), "away": rng.normal(3.0, size=(50, 4))}
    >>> detectors = {"narrow": KernelDensity(bandwidth=0.1), "wide": KernelDensity(bandwidth=1.0)}
    >>> print(ood_table(ood_benchmark(detectors, (known[:100], None, known[100:]), unknown), "fpr95"))
    | FPR95 ↓ |   beside |    away |     mean |
    | ------- | -------: | ------: | -------: |
    | narrow  |     90.0 | **0.0** |     45.0 |
    | wide    | **82.0** | **0.0** | **41.0** |
    """
    columns = [metric] if isinstance(metric, str) else list(metric)
    check_choice("format", format, ("markdown", "latex"))
    if best not in ("bold", None):
        raise ValueError(f"best must be 'bold' or None, got {best!r}.")
    figures = [column for column in frame.columns if column not in _FACTS]
    unknown = [column for column in columns if column not in figures]
    if unknown or not columns:
        raise ValueError(f"metric must be among {figures}, got {metric!r}.")
    sets, detectors = list(dict.fromkeys(frame["set"])), list(dict.fromkeys(frame["detector"]))
    found = frame.set_index(["detector", "set"])
    better = {column: _direction(column, smaller_is_better) for column in columns}
    cells = []  # by column
    for name in sets:
        for column in columns:
            values = 100.0 * np.array([found.loc[(detector, name), column] for detector in detectors], dtype=float)
            cells.append(_cells(values.round(digits), better[column] if best else 0, digits, format))
    texts = (
        [_escaped(str(name), format) for name in sets],
        [_heading(column, better[column], format) for column in columns],
    )
    body = [[_escaped(str(detector), format), *row] for detector, row in zip(detectors, zip(*cells), strict=True)]
    return (_latex if format == "latex" else _markdown)(*texts, body)


def _direction(column: str, smaller_is_better: Sequence[str]) -> int:
    """1 where larger is better, -1 where smaller is, 0 where neither."""
    if column == "accepted_in":
        return 0
    known = column in ("detection_error", "accepted_out") or _FPR.fullmatch(column)
    return -1 if known or column in smaller_is_better else 1


def _cells(values: NDArray, direction: int, digits: int, format: str) -> list[str]:
    """Figures as text, the best in bold, a dash for NaN."""
    mark, dash = (r"\textbf{{{}}}", "--") if format == "latex" else ("**{}**", "–")
    top = np.nanmax(direction * values) if direction and not np.isnan(values).all() else np.inf
    texts = [dash if np.isnan(value) else f"{value:.{digits}f}" for value in values]
    return [mark.format(text) if direction * value == top else text for text, value in zip(texts, values, strict=True)]


def _heading(column: str, direction: int, format: str) -> str:
    name = _NAMES.get(column) or (column.upper() if _FPR.fullmatch(column) else column.replace("_", " "))
    up, down = (r" $\uparrow$", r" $\downarrow$") if format == "latex" else (" ↑", " ↓")
    return _escaped(name, format) + ("", up, down)[direction]


def _escaped(text: str, format: str) -> str:
    if format == "latex":
        return "".join(_LATEX_SPECIAL.get(character, character) for character in text)
    return text.replace("\\", "\\\\").replace("|", "\\|")


def _markdown(sets: list[str], metrics: list[str], body: list[list[str]]) -> str:
    if len(metrics) == 1:
        head = [metrics[0], *sets]
    else:
        head = ["", *(f"{name} {metric}" for name in sets for metric in metrics)]
    widths = [max(4, *(len(row[i]) for row in (head, *body))) for i in range(len(head))]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines = [[row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])] for row in (head, *body)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def _latex(sets: list[str], metrics: list[str], body: list[list[str]]) -> str:
    span = len(metrics)
    if span == 1:
        heads = [" & ".join([metrics[0], *sets]) + r" \\"]
    else:
        rules = [rf"\cmidrule(lr){{{2 + i * span}-{1 + (i + 1) * span}}}" for i in range(len(sets))]
        heads = [
            " & ".join(["", *(rf"\multicolumn{{{span}}}{{c}}{{{name}}}" for name in sets)]) + r" \\",
            " ".join(rules),
            " & ".join(["", *(metrics * len(sets))]) + r" \\",
        ]
    lines = [
        rf"\begin{{tabular}}{{l{'r' * (span * len(sets))}}}",
        r"\toprule",
        *heads,
        r"\midrule",
        *(" & ".join(row) + r" \\" for row in body),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)
