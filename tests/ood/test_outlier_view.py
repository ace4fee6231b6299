from __future__ import annotations

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from sklearn.utils import get_tags
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip import CLIPClassifier
from skclip.adapters import GDAClassifier
from skclip.datasets import make_picture_world
from skclip.ood import OutlierView


@parametrize_with_checks([OutlierView(GaussianMixture(), contamination=0.2)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def rows(seed=0, n=60, spread=0.1):
    rng = np.random.default_rng(seed)
    y = np.repeat(["cat", "dog"], n // 2)
    return np.repeat(np.eye(2, 4), n // 2, axis=0) + spread * rng.normal(size=(n, 4)), y


@pytest.fixture
def fitted():
    return GDAClassifier().fit(*rows())


def test_its_scores_are_those_of_the_estimator(fitted):
    X, _ = rows()
    view = OutlierView(FrozenEstimator(fitted), contamination=0.2).fit(X)
    scores = fitted.score_samples(X)
    np.testing.assert_array_equal(view.score_samples(X), scores)
    np.testing.assert_array_equal(view.decision_function(X), scores - view.offset_)
    assert view.offset_ == np.percentile(scores, 20.0)
    assert np.mean(view.predict(X) == -1) == pytest.approx(0.2, abs=0.02)
    np.testing.assert_array_equal(view.predict_class(X), fitted.predict(X))
    np.testing.assert_array_equal(view.classes_, fitted.classes_)
    assert view.n_features_in_ == 4


def test_it_refuses_what_lies_elsewhere(fitted):
    view = OutlierView(FrozenEstimator(fitted)).fit(rows()[0])
    assert view.predict([[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]]).tolist() == [1, -1]


def test_of_fitted_knows_its_threshold_and_holds_the_estimator(fitted):
    view = OutlierView.of_fitted(fitted, -3.0, 0.1)
    X, _ = rows(1)
    assert view.estimator_.estimator is fitted
    assert view.offset_ == -3.0
    assert view.contamination == 0.1
    np.testing.assert_array_equal(view.predict(X), np.where(fitted.score_samples(X) >= -3.0, 1, -1))
    assert np.mean(view.calibrate(X).predict(X) == -1) == pytest.approx(0.1, abs=0.02)


def test_an_estimator_that_is_not_frozen_is_cloned_and_fitted():
    X, y = rows()
    inner = GDAClassifier()
    view = OutlierView(inner).fit(X, y)
    assert not hasattr(inner, "classes_")
    np.testing.assert_array_equal(view.score_samples(X), GDAClassifier().fit(X, y).score_samples(X))
    np.testing.assert_array_equal(OutlierView().fit(X, y).score_samples(X), view.score_samples(X))


def test_cross_fitting_accepts_as_many_new_pictures_as_promised():
    """A density with a narrow kernel knows each of its training rows."""
    X, _ = rows(0, 200)
    new, _ = rows(1, 2000)
    narrow = KernelDensity(bandwidth=0.02)
    in_sample = OutlierView(narrow).fit(X).predict(new)
    cross_fitted = OutlierView(narrow, calibration="cv").fit(X).predict(new)
    assert np.mean(in_sample == 1) < 0.3
    assert np.mean(cross_fitted == 1) == pytest.approx(0.95, abs=0.04)


def test_no_classes_no_prediction_of_them():
    view = OutlierView(KernelDensity()).fit(rows()[0])
    assert not hasattr(view, "predict_class")
    assert not hasattr(view, "classes_")


def test_around_pictures():
    world = make_picture_world(24, shapes=["circle", "star"], colors=["red"], held_out="include")
    clf = CLIPClassifier("skclip-tiny", GDAClassifier()).fit(world.images, world.target)
    view = OutlierView(FrozenEstimator(clf), contamination=0.25).fit(world.images)
    assert np.mean(view.predict(world.images) == -1) == pytest.approx(0.25, abs=0.05)


def test_joblib_and_clone(fitted, tmp_path):
    X, _ = rows(1)
    view = OutlierView.of_fitted(fitted, -3.0, 0.1)
    joblib.dump(view, tmp_path / "view.joblib")
    again = joblib.load(tmp_path / "view.joblib")
    np.testing.assert_array_equal(again.decision_function(X), view.decision_function(X))
    with pytest.raises(NotFittedError):
        clone(view).predict(X)
    np.testing.assert_array_equal(clone(view).fit(X).score_samples(X), view.score_samples(X))


def test_bad_input():
    X, y = rows()
    with pytest.raises(ValueError, match="needs y, the labels"):
        OutlierView(GDAClassifier()).fit(X)
    with pytest.raises(ValueError, match="'estimator' parameter of OutlierView must be an object implementing"):
        OutlierView(LogisticRegression()).fit(X, y)
    with pytest.raises(NotFittedError):
        OutlierView(FrozenEstimator(GDAClassifier())).fit(X)


def test_it_needs_labels_where_its_estimator_does(fitted):
    for estimator, needed in [
        (None, True),
        (GDAClassifier(), True),
        (FrozenEstimator(fitted), False),
        (KernelDensity(), False),
    ]:
        view = OutlierView(estimator)
        assert get_tags(view).target_tags.required is needed
        if needed:
            with pytest.raises(ValueError, match="OutlierView needs y"):
                view.fit(rows()[0])
        else:
            view.fit(rows()[0])


def test_labels_of_another_length(fitted):
    X, y = rows()
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        OutlierView(FrozenEstimator(fitted)).fit(X, y[1:])
