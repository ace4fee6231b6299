from __future__ import annotations

import re

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import KFold, StratifiedKFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.ood import EnergyDetector, KLMatchingDetector, MSPDetector, ResidualDetector, ViMDetector
from skclip.ood._detector import FeatureDetectorMixin, check_known, folds, in_sample_positions
from skclip.utils._arrays import unit_rows
from skclip.utils._base import SkclipBase
from skclip.utils.estimator_checks import NearestMeanClassifier

RNG = np.random.default_rng(0)
Y = np.repeat(["cat", "dog", "owl"], 20)
X = np.repeat(np.eye(3, 8), 20, axis=0) + 0.3 * RNG.normal(size=(60, 8))
X_NEW = np.repeat(np.eye(3, 8), 30, axis=0) + 0.3 * RNG.normal(size=(90, 8))

DETECTORS = [
    MSPDetector(LogisticRegression()),
    EnergyDetector(LogisticRegression()),
    KLMatchingDetector(LogisticRegression()),
    ViMDetector(LogisticRegression()),
    ResidualDetector(),
]


class DirectionDetector(FeatureDetectorMixin, SkclipBase):
    """Cosine with the mean of all rows: the least that a detector on features can be."""

    _parameter_constraints = {**ResidualDetector._parameter_constraints}
    del _parameter_constraints["classifier"], _parameter_constraints["dim"]

    def __init__(self, contamination=0.05, *, calibration="in_sample"):
        self.contamination = contamination
        self.calibration = calibration

    def _learn_rows(self, known):
        self.n_rows_, self.n_views_ = len(known.X), known.n_views
        self.direction_ = unit_rows(unit_rows(known.X).mean(axis=0, keepdims=True))[0]

    def _score_rows(self, X):
        return (unit_rows(X) @ self.direction_).astype(np.float64)


def by_name(detector):
    return type(detector).__name__


@pytest.fixture(params=[*DETECTORS, DirectionDetector()], ids=by_name)
def detector(request):
    return clone(request.param)


def expected_failures(estimator):
    if isinstance(estimator, ResidualDetector):
        return {"check_fit2d_1feature": "dim=1 leaves no residual of one feature, and says so"}
    if estimator.calibration == "cv":
        reason = "the threshold refuses the share of held-out pictures"
        return dict.fromkeys(("check_outliers_fit_predict", "check_outliers_train"), reason)
    return {}


@parametrize_with_checks(
    [
        DirectionDetector(),
        DirectionDetector(calibration="cv"),
        ResidualDetector(NearestMeanClassifier(), dim=1),
    ],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("contamination", [0.1, 0.25, 0.5])
def test_the_share_of_training_pictures_that_is_refused(detector, contamination):
    verdicts = detector.set_params(contamination=contamination).fit_predict(X, Y)
    assert np.sum(verdicts == -1) == 60 * contamination
    assert detector.offset_ == np.percentile(detector.score_samples(X), 100 * contamination)


def test_verdicts_are_scores_against_the_threshold(detector):
    scores = detector.fit(X, Y).score_samples(X_NEW)
    np.testing.assert_array_equal(detector.decision_function(X_NEW), scores - detector.offset_)
    np.testing.assert_array_equal(detector.predict(X_NEW), np.where(scores >= detector.offset_, 1, -1))


def test_pictures_of_their_own_set_the_threshold(detector):
    detector.set_params(contamination=0.2)
    plain = clone(detector).fit(X, Y)
    given = clone(detector).set_params(calibration=X_NEW).fit(X, Y)
    np.testing.assert_array_equal(given.score_samples(X), plain.score_samples(X))
    assert given.offset_ == np.percentile(plain.score_samples(X_NEW), 20)
    assert np.mean(given.predict(X_NEW) == -1) == 0.2
    # as `calibrate` does afterwards
    assert plain.calibrate(X_NEW) is plain
    assert plain.offset_ == given.offset_
    plain.calibrate(X_NEW.tolist())
    assert plain.offset_ == given.offset_


def test_held_out_scores_set_the_threshold(detector):
    detector.set_params(calibration="cv", contamination=0.2).fit(X, Y)
    scores = np.empty(len(X))
    for train, test in StratifiedKFold(5, shuffle=True, random_state=0).split(X, Y):
        member = clone(detector).set_params(calibration="in_sample").fit(X[train], Y[train])
        scores[test] = member.score_samples(X[test])
    assert detector.offset_ == np.percentile(scores, 20)
    # the score itself knows all pictures
    plain = clone(detector).set_params(calibration="in_sample").fit(X, Y)
    np.testing.assert_array_equal(detector.score_samples(X_NEW), plain.score_samples(X_NEW))


def test_held_out_scores_are_honest():
    # few rows for many features: in-sample residuals are far too small
    rng = np.random.default_rng(3)
    rows, new = rng.normal(size=(40, 30)), rng.normal(size=(400, 30))
    refused = {
        calibration: np.mean(
            ResidualDetector(dim=25, contamination=0.1, calibration=calibration).fit(rows).predict(new) < 0
        )
        for calibration in ("in_sample", "cv")
    }
    assert refused["in_sample"] > 0.5
    assert refused["cv"] < 0.25


@pytest.mark.parametrize("calibrated", [DirectionDetector(), EnergyDetector(np.eye(3, 8))], ids=by_name)
def test_ten_thousand_pictures_set_the_threshold(calibrated):
    rng = np.random.default_rng(5)
    many = np.repeat(np.eye(3, 8), 10_000, axis=0) + 0.3 * rng.normal(size=(30_000, 8))
    few = many[::3]
    # all of 10,000, whatever their order
    fitted = clone(calibrated).fit(few)
    assert fitted.offset_ == np.percentile(fitted.score_samples(few), 5)
    assert clone(calibrated).fit(few[::-1].copy()).offset_ == pytest.approx(fitted.offset_, abs=1e-12)
    # a sample of more, the same in every fit
    fitted = clone(calibrated).fit(many)
    scores = fitted.score_samples(many)
    assert fitted.offset_ != np.percentile(scores, 5)
    assert clone(calibrated).fit(many).offset_ == fitted.offset_
    drawn = np.random.RandomState(0).choice(30_000, 10_000, replace=False)
    assert fitted.offset_ == pytest.approx(np.percentile(scores[drawn], 5), abs=1e-12)
    # four standard errors of the share that lies below the quantile of a third of all
    assert abs(np.mean(scores < fitted.offset_) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 10_000)


def test_positions_of_the_pictures_in_errors_are_those_of_fit():
    class Overflowing(DirectionDetector):
        def _score_rows(self, X):
            return np.where(X[:, 0] > 100.0, np.inf, 0.0)

    rows = np.ones((12_000, 2))
    drawn = in_sample_positions(len(rows))
    rows[drawn[7:9], 0] = 1000.0
    with pytest.raises(ValueError, match=rf"gives inf for X\[{drawn[7]}\] \(2 of 10000 scores"):
        Overflowing().fit(rows)


def test_positions_drawn():
    assert in_sample_positions(10_000) is None
    drawn = in_sample_positions(10_001)
    assert len(np.unique(drawn)) == 10_000
    assert (np.diff(drawn) > 0).all()
    assert drawn[-1] <= 10_000


def test_views_of_a_picture_share_a_fold():
    views = np.stack([X, X + 0.05 * RNG.normal(size=X.shape)], axis=1)
    detector = DirectionDetector(calibration="cv").fit(views, Y)
    assert (detector.n_rows_, detector.n_views_) == (120, 2)
    scores = np.empty(len(X))
    for train, test in folds(len(X), Y):
        scores[test] = DirectionDetector().fit(views[train], Y[train]).score_samples(views[test])
    assert detector.offset_ == np.percentile(scores, 5)


def test_a_data_frame_is_held_out_as_well():
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame(X, columns=list("abcdefgh"), index=np.arange(60)[::-1])
    labels = pandas.Series(Y, index=table.index)
    detector = MSPDetector(LogisticRegression(), calibration="cv").fit(table, labels)
    assert detector.offset_ == MSPDetector(LogisticRegression(), calibration="cv").fit(X, Y).offset_
    assert detector.feature_names_in_.tolist() == list("abcdefgh")


def test_a_class_with_one_picture_cannot_be_held_out(detector):
    kept = np.r_[0:20, 20:40, 40]
    detector.set_params(calibration="cv")
    with pytest.raises(ValueError, match=re.escape("holds out pictures, but class 'owl' has a single one. Pass")):
        detector.fit(X[kept], Y[kept])
    detector.set_params(calibration="in_sample").fit(X[kept], Y[kept])


def test_folds():
    assert len(folds(60, Y)) == 5
    assert len(folds(43, Y[:43])) == 3
    assert len(folds(2, None)) == 2
    for ours, theirs in zip(folds(7, None), KFold(5, shuffle=True, random_state=0).split(np.empty(7))):
        np.testing.assert_array_equal(ours[1], theirs[1])
    held_out = np.concatenate([test for _, test in folds(60, Y)])
    np.testing.assert_array_equal(np.sort(held_out), np.arange(60))
    for labels in (None, ["cat"]):
        with pytest.raises(ValueError, match=r"there is, with n_samples = 1, a single one"):
            folds(1, labels)


@pytest.mark.parametrize("bad", [{"contamination": 0.0}, {"contamination": 0.6}, {"calibration": "validation"}])
def test_bad_parameters(detector, bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(ValueError, match=rf"'{name}' parameter of {by_name(detector)} must be .* Got {value!r}"):
        detector.set_params(**bad).fit(X, Y)


def test_lengths_that_differ(detector):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        detector.fit(X, Y[:-1])


def test_a_failed_fit_leaves_nothing_behind(detector):
    detector.fit(X, Y)
    with pytest.raises(ValueError, match="NaN"):
        detector.fit(np.full_like(X, np.nan), Y)
    assert not [name for name in vars(detector) if name.endswith("_")]


def test_two_fits_are_one(detector):
    scores = detector.fit(X, Y).score_samples(X_NEW)
    detector.fit(X_NEW, np.repeat(["a", "b", "c"], 30))
    np.testing.assert_array_equal(detector.fit(X, Y).score_samples(X_NEW), scores)


def test_scores_that_are_not_finite():
    class Overflowing(DirectionDetector):
        def _score_rows(self, X):
            return np.where(X[:, 0] > 100.0, np.inf, 0.0)

    far = X.copy()
    far[[4, 9], 0] = 1000.0
    with pytest.raises(ValueError, match=r"Overflowing gives inf for X\[4\] \(2 of 60 scores are not finite\)"):
        Overflowing().fit(far)
    with pytest.raises(ValueError, match=r"gives inf for calibration\[4\]"):
        Overflowing(calibration=far).fit(X)
    with pytest.raises(ValueError, match=r"gives inf for X\[4\]"):
        Overflowing().fit(X).predict(far)


def test_known_rows():
    estimator = DirectionDetector()
    views = np.stack([X, X], axis=1)
    known = check_known(estimator, views, Y)
    np.testing.assert_array_equal(known.X[1::2], X)
    np.testing.assert_array_equal(estimator.classes_[known.codes], Y)
    assert known.n_views == 2
    unlabelled = check_known(estimator, X, None)
    assert estimator.classes_ is None
    assert not unlabelled.codes.any()
    with pytest.raises(ValueError, match="class 'dog' is all zeros"):
        check_known(estimator, X * (Y != "dog")[:, None], Y)
    with pytest.raises(ValueError, match="is all zeros"):
        check_known(estimator, np.zeros_like(X), None)
    with pytest.raises(ValueError, match="Unknown label type"):
        check_known(estimator, X, np.linspace(0.0, 1.0, 60))
