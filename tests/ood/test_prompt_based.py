"""What the detectors on class text have in common."""

from __future__ import annotations

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.metrics import get_scorer
from skclip.ood import GLMCMDetector, MCMDetector, NegLabelDetector, VarianceDetector
from skclip.utils import SkclipWarning
from skclip.utils._arrays import unit_rows
from skclip.zero_shot import ZeroShotClassifier

K, D, T = 6, 8, 3
RNG = np.random.default_rng(0)
TEXT = unit_rows(RNG.normal(size=(K, D)))
CANDIDATES = unit_rows(RNG.normal(size=(40, D)))

DETECTORS = {
    "mcm": MCMDetector(TEXT),
    "variance": VarianceDetector(TEXT),
    "neg-label": NegLabelDetector(TEXT, candidates=CANDIDATES, fraction=0.5, logit_scale=5.0, n_groups=4),
    "gl-mcm": GLMCMDetector(TEXT),
}


@pytest.fixture(params=DETECTORS)
def detector(request):
    return clone(DETECTORS[request.param])


def pictures(detector, n=60, seed=1, dtype=np.float64):
    """Noisy copies of the text, with their classes; of GL-MCM's, tokens."""
    rng = np.random.default_rng(seed)
    y = np.arange(n) % K
    n_tokens = T if isinstance(detector, GLMCMDetector) else 1
    X = TEXT[y][:, None] + 0.25 * rng.normal(size=(n, n_tokens, D))
    return X.reshape(n, -1).astype(dtype), y


def test_fit_sets_the_threshold_that_refuses_the_share(detector):
    X, y = pictures(detector)
    detector.set_params(contamination=0.2).fit(X)
    scores = detector.score_samples(X)
    assert scores.dtype == np.float64
    assert detector.offset_ == np.percentile(scores, 20)
    assert_array_equal(detector.decision_function(X), scores - detector.offset_)
    assert (detector.predict(X) == -1).sum() == 12
    assert_array_equal(detector.fit_predict(X, y), detector.predict(X))
    assert_array_equal(detector.classes_, np.arange(K))


def test_without_pictures_there_is_a_score_but_no_verdict(detector):
    X, _ = pictures(detector)
    expected = clone(detector).fit(X)
    assert detector.fit() is detector
    assert detector.offset_ is None
    assert_array_equal(detector.score_samples(X), expected.score_samples(X))
    assert_array_equal(detector.predict_class(X), expected.predict_class(X))
    for method in (detector.decision_function, detector.predict):
        with pytest.raises(NotFittedError, match=r"has no threshold: call calibrate\(X\)"):
            method(X)
    detector.calibrate(X)
    assert detector.offset_ == expected.offset_
    assert_array_equal(detector.predict(X), expected.predict(X))


def test_calibration_pictures_set_the_threshold_with_and_without_pictures_at_fit(detector):
    X, _ = pictures(detector)
    own, _ = pictures(detector, 30, seed=2)
    by_itself = clone(detector).set_params(calibration=own).fit(None)
    assert by_itself.offset_ == np.percentile(by_itself.score_samples(own), 5)
    assert clone(detector).set_params(calibration=own).fit(X).offset_ == by_itself.offset_


def test_held_out_scores_are_those_of_the_sample(detector):
    X, y = pictures(detector)
    held_out = clone(detector).set_params(calibration="cv").fit(X, y)
    assert_allclose(held_out.offset_, detector.fit(X).offset_, rtol=1e-12)
    with pytest.raises(ValueError, match='calibration="cv" holds out pictures, but X is None'):
        clone(detector).set_params(calibration="cv").fit(None)


def test_the_class_is_that_of_the_zero_shot_classifier(detector):
    X, _ = pictures(detector)
    zero_shot = ZeroShotClassifier(prototypes=TEXT, classes=list("fedcba"))
    detector.set_params(zero_shot=zero_shot).fit(X)
    assert_array_equal(detector.classes_, list("abcdef"))
    assert_array_equal(detector.predict_class(X), clone(zero_shot).fit().predict(X[:, :D]))


def test_labels_are_checked_and_tell_how_to_read_names(detector):
    X, y = pictures(detector)
    detector.fit(X, y)
    with pytest.raises(ValueError, match="y holds 6, 7, unknown to"):
        detector.fit(X, y + 2)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        detector.fit(X, y[:-1])
    fewer = y < 3
    detector.fit(X[fewer], y[fewer])
    assert_array_equal(detector.classes_, np.arange(K))  # of the text, not of y


def test_text_of_another_model_is_noticed_where_there_are_labels(detector):
    X, y = pictures(detector, 120)
    other = unit_rows(np.random.default_rng(8).normal(size=(K, D)))
    detector.set_params(zero_shot=other[np.roll(np.argmax(TEXT @ other.T, axis=1), 1)] - 5 * TEXT)
    with pytest.warns(SkclipWarning, match="no better than chance.*zero_shot") as record:
        detector.fit(X, y)
    assert record[0].filename == __file__
    detector.fit(X)


def test_order_of_classes_length_of_rows_type_and_rotation_change_nothing(detector):
    X, _ = pictures(detector)
    detector.fit(X)
    expected = detector.score_samples(X)
    order = np.random.default_rng(3).permutation(K)
    assert_allclose(clone(detector).set_params(zero_shot=TEXT[order]).fit().score_samples(X), expected, atol=1e-9)
    lengths = np.random.default_rng(4).uniform(0.1, 9.0, (len(X), 1))
    assert_allclose(detector.score_samples(X * lengths), expected, atol=1e-12)
    assert_allclose(clone(detector).set_params(zero_shot=7.0 * TEXT).fit().score_samples(X), expected, atol=1e-6)
    assert_allclose(detector.score_samples(X.astype(np.float32)), expected, atol=1e-6)
    turn = np.linalg.qr(np.random.default_rng(5).normal(size=(D, D)))[0]
    turned = clone(detector).set_params(zero_shot=TEXT @ turn)
    if isinstance(detector, NegLabelDetector):
        turned.set_params(candidates=CANDIDATES @ turn)
    X_turned = (X.reshape(len(X), -1, D) @ turn).reshape(X.shape)
    assert_allclose(turned.fit().score_samples(X_turned), expected, atol=1e-6)


def test_rows_do_not_depend_on_their_blocks(detector):
    X, _ = pictures(detector, 500)
    detector.fit(X)
    expected, classes = detector.score_samples(X), detector.predict_class(X)
    with config_context(working_memory=0.01):
        assert_allclose(detector.score_samples(X), expected, rtol=1e-12)
        assert_array_equal(detector.predict_class(X), classes)
    assert_allclose(np.concatenate([detector.score_samples(x[None]) for x in X[:20]]), expected[:20], rtol=1e-12)


def test_of_views_the_first_is_scored_and_input_is_left_alone(detector):
    X, _ = pictures(detector)
    views = np.stack([X, np.flip(X, axis=1)], axis=1)
    before = views.copy()
    assert detector.fit(views).offset_ == clone(detector).fit(X).offset_
    assert_array_equal(detector.score_samples(views), detector.score_samples(X))
    assert_array_equal(views, before)


def test_frozen_text_is_kept(detector):
    X, _ = pictures(detector)
    zero_shot = FrozenEstimator(ZeroShotClassifier(prototypes=TEXT).fit())
    frozen = clone(detector).set_params(zero_shot=zero_shot).fit(X)
    assert_array_equal(frozen.score_samples(X), detector.fit(X).score_samples(X))
    unfitted = FrozenEstimator(ZeroShotClassifier(prototypes=TEXT))
    with pytest.raises(ValueError, match="holds no prototypes after fit"):
        detector.set_params(zero_shot=unfitted).fit(X)


def test_data_frames_keep_their_names(detector):
    X, _ = pictures(detector)
    table = pd.DataFrame(X, columns=[f"f{i}" for i in range(X.shape[1])])
    assert_array_equal(detector.fit(table).feature_names_in_, table.columns)
    with pytest.raises(ValueError, match="feature names should match"):
        detector.score_samples(table.rename(columns={"f0": "other"}))


@pytest.mark.parametrize("fitted_on", ["pictures", "nothing"])
def test_round_trips_within_the_arrays(detector, fitted_on, tmp_path):
    X, _ = pictures(detector)
    assert len(pickle.dumps(type(detector)())) < 2_000
    detector.fit(X if fitted_on == "pictures" else None)
    arrays = sum(value.nbytes for value in vars(detector).values() if isinstance(value, np.ndarray))
    assert len(pickle.dumps(detector)) < arrays + 10_000
    expected = detector.score_samples(X)
    assert_array_equal(pickle.loads(pickle.dumps(detector)).score_samples(X), expected)
    joblib.dump(detector, tmp_path / "detector.joblib")
    loaded = joblib.load(tmp_path / "detector.joblib", mmap_mode="r")
    assert_array_equal(loaded.score_samples(X), expected)
    skops = pytest.importorskip("skops.io")
    saved = skops.dumps(detector)
    types = skops.get_untrusted_types(data=saved)
    assert all(name.startswith("skclip.") for name in types)
    assert_array_equal(skops.loads(saved, trusted=types).score_samples(X), expected)


def test_grid_search(detector):
    X, y = pictures(detector)
    X_out = np.random.default_rng(6).normal(size=(40, X.shape[1]))
    name = "logit_scale" if isinstance(detector, NegLabelDetector) else "temperature"
    scorer = get_scorer("ood_auroc", X_out=X_out)
    search = GridSearchCV(detector, {name: [0.01, 1.0, 10.0]}, scoring=scorer, cv=3, error_score="raise").fit(X, y)
    scores = search.cv_results_["mean_test_score"]
    assert np.ptp(scores) > 0.001
    assert scores.max() == search.best_score_ > 0.85
    assert set(search.predict(X)) <= {-1, 1}


def test_bad_input_is_named(detector):
    X, _ = pictures(detector)
    with pytest.raises(ValueError, match="compares pictures with class text, but zero_shot is None"):
        clone(detector).set_params(zero_shot=None).fit(X)
    with pytest.raises(ValueError, match=r"zero_shot\[0\] is all zeros"):
        clone(detector).set_params(zero_shot=np.zeros((2, D))).fit(X)
    with pytest.raises(ValueError, match="needs classes"):
        clone(detector).set_params(zero_shot=ZeroShotClassifier()).fit(X)
    with pytest.raises(ValueError, match=r"width 8, but X has \d+ features"):
        clone(detector).fit(X[:, :-1])
    with pytest.raises(ValueError, match="NaN"):
        clone(detector).fit(np.where(np.arange(X.shape[1]) == 3, np.nan, X))
    detector.fit()
    with pytest.raises(ValueError, match=r"features"):
        detector.score_samples(X[:, :-1])
    with pytest.raises(NotFittedError):
        clone(detector).score_samples(X)
    with pytest.raises(NotFittedError):
        clone(detector).predict_class(X)


def test_a_fit_that_fails_leaves_nothing_of_the_one_before(detector):
    X, _ = pictures(detector)
    detector.fit(X)
    with pytest.raises(ValueError, match="zero_shot is None"):
        detector.set_params(zero_shot=None).fit()
    with pytest.raises(NotFittedError):
        detector.score_samples(X)


# scikit-learn's checks give matrices of many widths: the text is the identity of each
class _IdentityText:
    def _class_text(self, y):
        return np.arange(self.n_features_in_), np.eye(self.n_features_in_)


class MCMOfAnyWidth(_IdentityText, MCMDetector):
    pass


class VarianceOfAnyWidth(_IdentityText, VarianceDetector):
    pass


class NegLabelOfAnyWidth(_IdentityText, NegLabelDetector):
    def _candidate_text(self):
        return np.arange(self.n_features_in_), [-np.eye(self.n_features_in_)]


class GLMCMOfAnyWidth(_IdentityText, GLMCMDetector):
    """Reads each row as two tokens, itself and its mirror image."""

    def _count_tokens(self, n_features):
        return 2

    def _tokens(self, rows):
        return np.stack([rows, np.roll(rows, 1, axis=1)], axis=1)


@pytest.mark.filterwarnings("ignore:Zero-shot accuracy")  # their labels have nothing to do with the identity
@parametrize_with_checks([cls() for cls in (MCMOfAnyWidth, VarianceOfAnyWidth, GLMCMOfAnyWidth, NegLabelOfAnyWidth)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)
