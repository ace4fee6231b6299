from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from scipy.special import softmax
from sklearn.datasets import make_blobs
from sklearn.ensemble import IsolationForest, RandomForestClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LinearRegression, LogisticRegression, Perceptron
from sklearn.model_selection import GridSearchCV
from sklearn.naive_bayes import GaussianNB
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

from skclip import ZeroShotClassifier
from skclip.utils import get_logits


@pytest.fixture(params=[2, 4], ids=["binary", "four classes"])
def blobs(request):
    return make_blobs(40, 3, centers=request.param, cluster_std=3.0, random_state=0)


def test_own_logits_come_first(blobs):
    X, y = blobs
    clf = ZeroShotClassifier(
        prototypes=np.eye(3)[: len(set(y))] if len(set(y)) < 4 else np.vstack([np.eye(3), [[1, 1, 1]]])
    )
    clf.fit(X)
    assert_allclose(get_logits(clf, X), clf.logits(X))
    assert get_logits(clf, X).shape == (40, len(set(y)))


def test_decision_function_in_both_shapes(blobs):
    X, y = blobs
    clf = LogisticRegression().fit(X, y)
    logits = get_logits(clf, X)
    assert logits.shape == (40, len(set(y)))
    assert_allclose(softmax(logits, axis=1), clf.predict_proba(X))
    if len(set(y)) == 2:
        assert_allclose(logits[:, 1], clf.decision_function(X) / 2)
        assert_allclose(logits.sum(axis=1), 0.0, atol=1e-12)


def test_wrappers_give_the_logits_of_what_they_hold(blobs):
    X, y = blobs
    pipeline = make_pipeline(StandardScaler(), LogisticRegression()).fit(X, y)
    expected = get_logits(pipeline[-1], pipeline[0].transform(X))
    assert_allclose(get_logits(pipeline, X), expected)
    assert_allclose(get_logits(FrozenEstimator(pipeline), X), expected)
    alone = make_pipeline(LogisticRegression()).fit(X, y)
    assert_allclose(get_logits(alone, X), get_logits(alone[-1], X))
    search = GridSearchCV(pipeline, {"logisticregression__C": [1.0]}, cv=2).fit(X, y)
    assert_allclose(get_logits(search, X), expected)


def test_probabilities_need_the_promise(blobs):
    X, y = blobs
    forest = RandomForestClassifier(5, random_state=0).fit(X, y)
    for clf in (forest, make_pipeline(StandardScaler(), GaussianNB()).fit(X, y)):
        with pytest.raises(TypeError, match="offers probabilities only"):
            get_logits(clf, X)
        logits = get_logits(clf, X, shift_invariant=True)
        assert np.isfinite(logits).all()
        assert_allclose(softmax(logits, axis=1), clf.predict_proba(X), atol=1e-12)


def test_energy_of_log_probabilities_is_constant(blobs):
    # the reason for the promise
    X, y = blobs
    logits = get_logits(GaussianNB().fit(X, y), X, shift_invariant=True)
    assert_allclose(np.log(np.exp(logits).sum(axis=1)), 0.0, atol=1e-9)


def test_one_against_one_votes_are_no_logits():
    X, y = make_blobs(40, 3, centers=4, random_state=0)
    with pytest.raises(ValueError, match=r"shape \(40, 6\) for 4 classes.*ovr"):
        get_logits(SVC(decision_function_shape="ovo").fit(X, y), X)
    assert get_logits(Perceptron().fit(X, y), X).shape == (40, 4)


@pytest.mark.parametrize("other", [IsolationForest(n_estimators=3, random_state=0), LinearRegression()])
def test_only_classifiers_have_logits(other, blobs):
    X, y = blobs
    with pytest.raises(TypeError, match="not a classifier"):
        get_logits(other.fit(X, y), X)
