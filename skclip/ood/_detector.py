"""What every detector does around its score: check, threshold, verdict."""

from __future__ import annotations

from numbers import Real
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import OutlierMixin, clone
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.utils.validation import _check_method_params, _num_samples, check_consistent_length, check_is_fitted

from skclip.utils._arrays import check_features, first_view, take_rows
from skclip.utils._base import forget_fit
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval, StrOptions, check_parameters
from skclip.utils._training import check_directions, check_target

CALIBRATION_CONSTRAINTS: dict[str, list[Any]] = {
    "contamination": [Interval(Real, 0, 0.5, closed="right")],
    "calibration": [StrOptions({"in_sample", "cv"}), "array-like"],
}

_N_FOLDS = 5
# more make the threshold hardly steadier, and scoring them would be most of the time of `fit`
_MOST_IN_SAMPLE = 10_000


class KnownRows(NamedTuple):
    """A checked in-distribution training set of n pictures with V views each."""

    X: NDArray  # (n * V, d) as given, of any length; row i * V + v is view v of picture i
    codes: NDArray  # (n,) class of each picture, 0..K-1; all 0 without labels
    n_views: int


@fill_doc
class DetectorMixin(OutlierMixin):
    """Adds the methods of an outlier detector to a class with a score.

    Stands left of `SkclipBase`. The class has the parameters `contamination` and `calibration`
    (`CALIBRATION_CONSTRAINTS`), and defines ``_learn(X, y)``, which validates and sets all that the score needs, and
    ``_scores(X)``, (n,), larger for what is more in-distribution.
    """

    _set_last: str | None = "offset_"
    _learn: Any
    _scores: Any
    contamination: float
    calibration: Any

    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:
        """Learn from in-distribution pictures what the score needs, and set the threshold.

        Parameters
        ----------
        %(X_y_detector)s

        %(fitted_detector)s
        """
        return self._fit(X, y, {})

    def calibrate(self, X: Any) -> Self:
        """Set the threshold anew, so that `contamination` of these pictures are refused.

        Parameters
        ----------
        X : object
            In-distribution pictures, as `fit` takes them; better ones that `fit` has not seen.

        %(self)s
        """
        check_is_fitted(self)
        self.offset_ = self._offset(self._finite_scores(X))
        return self

    def score_samples(self, X: Any) -> NDArray:
        """How much each picture looks in-distribution.

        Parameters
        ----------
        X : object
            Pictures, as `fit` takes them.

        Returns
        -------
        ndarray of shape (n,), float64
            Larger = more in-distribution.
        """
        check_is_fitted(self)
        return self._finite_scores(X)

    def decision_function(self, X: Any) -> NDArray:
        """Distance of the score from the threshold, ``score_samples(X) - offset_``.

        Parameters
        ----------
        X : object
            Pictures, as `fit` takes them.

        Returns
        -------
        ndarray of shape (n,), float64
            Negative for pictures to be refused.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> NDArray:
        """Verdict on each picture.

        Parameters
        ----------
        X : object
            Pictures, as `fit` takes them.

        Returns
        -------
        ndarray of shape (n,), int
            1 for in-distribution, -1 for out-of-distribution.
        """
        return np.where(self.decision_function(X) >= 0.0, 1, -1)

    def fit_predict(self, X: Any, y: ArrayLike | None = None, **params: Any) -> NDArray:
        """`fit`, then `predict` of the same pictures.

        Parameters
        ----------
        X : object
            As in `fit`.
        y : array-like of shape (n,), default=None
            As in `fit`.
        **params : dict
            What else `fit` takes.

        Returns
        -------
        ndarray of shape (n,), int
        """
        return self.fit(X, y, **params).predict(X)

    def _fit(self, X: Any, y: ArrayLike | None, params: dict[str, Any]) -> Self:
        check_parameters(self)
        forget_fit(self)
        self._learn(X, y, **params)
        self.offset_ = self._offset(self._calibration_scores(X, y, params))
        return self

    def _offset(self, scores: NDArray) -> float:
        return float(np.percentile(scores, 100.0 * self.contamination))

    def _calibration_scores(self, X: Any, y: ArrayLike | None, params: dict[str, Any]) -> NDArray:
        """Scores whose quantile is the threshold."""
        if not isinstance(self.calibration, str):
            return self._finite_scores(self.calibration, "calibration")
        if self.calibration == "cv":
            return self._held_out_scores(X, y, params)
        positions = in_sample_positions(_num_samples(X))
        return self._finite_scores(X if positions is None else take_rows(X, positions), positions=positions)

    def _held_out_scores(self, X: Any, y: ArrayLike | None, params: dict[str, Any]) -> NDArray:
        """Score of each picture by a detector fitted without its fold."""
        n = _num_samples(X)
        scores = np.empty(n)
        plain = clone(self).set_params(calibration="in_sample")
        for train, test in folds(n, y):
            labels = None if y is None else take_rows(np.asarray(y), train)
            member = clone(plain).fit(take_rows(X, train), labels, **_check_method_params(X, params, train))
            scores[test] = member.score_samples(take_rows(X, test))
        return scores

    def _finite_scores(self, X: Any, name: str = "X", positions: NDArray | None = None) -> NDArray:
        """Scores of X, which are those at `positions` of what errors call `name`; None is all of them."""
        scores = np.asarray(self._scores(X), dtype=np.float64)
        bad = np.flatnonzero(~np.isfinite(scores))
        if bad.size:
            place = bad[0] if positions is None else positions[bad[0]]
            raise ValueError(
                f"{type(self).__name__} gives {scores[bad[0]]} for {name}[{place}] ({bad.size} of {len(scores)} "
                "scores are not finite); a threshold needs numbers."
            )
        return scores


class FeatureDetectorMixin(DetectorMixin):
    """`DetectorMixin` for scores of feature X, (n, d) or (n, V, d).

    The class defines ``_learn_rows(known)`` and ``_score_rows(X)``, the latter for rows (n, d) of any length.
    """

    _learn_rows: Any
    _score_rows: Any

    def _learn(self, X: Any, y: ArrayLike | None) -> None:
        self._learn_rows(check_known(self, X, y))

    def _scores(self, X: Any) -> NDArray:
        return self._score_rows(first_view(*check_features(self, X)))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.three_d_array = True
        return tags


def check_known(estimator: Any, X: Any, y: ArrayLike | None) -> KnownRows:
    """Validate X and y of `fit`, and set ``classes_`` (and ``n_features_in_``) of `estimator`; None without labels.

    Raises
    ------
    ValueError
        If X and y differ in length, y fits no classification, or every row of a class is all zeros.
    """
    X, n_views = check_features(estimator, X, reset=True)
    n_pictures = len(X) // n_views
    if y is None:
        estimator.classes_, codes = None, np.zeros(n_pictures, dtype=np.intp)
        check_directions(X, codes, np.array(["in-distribution"]), n_views)
        return KnownRows(X, codes, n_views)
    y = check_target(estimator, y)
    check_consistent_length(X[::n_views], y)
    estimator.classes_, codes = np.unique(y, return_inverse=True)
    check_directions(X, codes, estimator.classes_, n_views)
    return KnownRows(X, codes, n_views)


def in_sample_positions(n: int) -> NDArray | None:
    """Of n pictures of `fit` those whose scores set the threshold, ascending: 10,000 drawn at random, always the same.

    None, where there are no more, is all of them.
    """
    if n <= _MOST_IN_SAMPLE:
        return None
    return np.sort(np.random.RandomState(0).choice(n, _MOST_IN_SAMPLE, replace=False))


def folds(n: int, y: ArrayLike | None) -> list[tuple[NDArray, NDArray]]:
    """Training and held-out positions: at most five folds, as many as the smallest class has pictures, stratified.

    Raises
    ------
    ValueError
        If a class has a single picture, or there is one picture in all.
    """
    labels, codes = (None, np.zeros(n)) if y is None else np.unique(np.asarray(y), return_inverse=True)
    counts = np.unique(codes, return_counts=True)[1]
    if counts.min() < 2:
        what = f"there is, with n_samples = {n},"
        if labels is not None and n > 1:
            what = f"class {labels.tolist()[counts.argmin()]!r} has"
        raise ValueError(
            f'calibration="cv" holds out pictures, but {what} a single one. Pass calibration="in_sample", or '
            "in-distribution pictures of their own."
        )
    n_folds = int(min(_N_FOLDS, counts.min()))
    splitter = KFold if labels is None else StratifiedKFold
    return list(splitter(n_folds, shuffle=True, random_state=0).split(codes, codes))
