from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.dummy import DummyClassifier
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.neighbors import NearestCentroid
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.metrics import ood_auroc
from skclip.ood import SHEDetector
from skclip.ood._she import recognised_means
from skclip.utils import SkclipWarning
from skclip.utils._arrays import unit_rows
from skclip.utils.estimator_checks import NearestMeanClassifier

LABELS = np.array(["cat", "dog", "hen"])


def known_rows(n=120, d=6, seed=0):
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.arange(n) % 3)
    return 2.0 * np.eye(d)[codes] + 1.0 * rng.normal(size=(n, d)), LABELS[codes]


def literal_scores(X, y, queries, classifier):
    """x . S_k of the class predicted, S_k the mean of the rows of k that are predicted as k; unit rows."""
    rows, right = unit_rows(X), classifier.predict(X) == y
    patterns = {label: rows[right & (y == label)].mean(axis=0) for label in np.unique(y)}
    return np.array([x @ patterns[label] for x, label in zip(unit_rows(queries), classifier.predict(queries))])


@pytest.mark.parametrize("head", [LogisticRegression(), RidgeClassifier(), NearestCentroid()])
def test_scores_equal_the_literal_formula(head):
    X, y = known_rows()
    queries = np.random.default_rng(1).normal(size=(40, 6))
    detector = SHEDetector(head).fit(X, y)
    assert np.mean(detector.classifier_.predict(X) == y) < 1.0  # else nothing is left out
    expected = literal_scores(X, y, queries, detector.classifier_)
    np.testing.assert_allclose(detector.score_samples(queries), expected, rtol=1e-10)


def test_metrics_by_hand():
    X, y = np.array([[3.0, 0.0], [0.0, 2.0]]), np.array([0, 1])
    query, expected = [[1.0, 0.2]], {"inner_product": 0.980581, "cosine": 0.980581, "euclidean": -0.197076}
    for metric, value in expected.items():
        detector = SHEDetector(np.eye(2), metric=metric).fit(X, y)
        np.testing.assert_array_equal(detector.patterns_, np.eye(2))
        assert detector.score_samples(query)[0] == pytest.approx(value, abs=1e-5)


def test_cosine_forgets_the_spread_that_the_inner_product_sees():
    X = np.array([[1.0, 0.0, 0.0], [1.0, 0.0, 0.0], [0.0, 1.0, 1.0], [0.0, 1.0, -1.0]])
    detector = SHEDetector(np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])).fit(X, [0, 0, 1, 1])
    queries = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
    np.testing.assert_allclose(detector.score_samples(queries), [1.0, np.sqrt(0.5)])
    np.testing.assert_allclose(detector.set_params(metric="cosine").score_samples(queries), 1.0)


def test_pytorch_ood_has_the_same_scores(pytorch_ood):
    X, y = known_rows()
    X, codes = unit_rows(X), np.searchsorted(LABELS, y)
    detector = SHEDetector(LogisticRegression()).fit(X, codes)
    head = torch.nn.Linear(6, 3)
    head.weight.data = torch.tensor(detector.classifier_.coef_, dtype=torch.float32)
    head.bias.data = torch.tensor(detector.classifier_.intercept_, dtype=torch.float32)
    theirs = pytorch_ood.SHE(None, head)
    theirs.fit_features(torch.tensor(X, dtype=torch.float32), torch.tensor(codes))
    queries = unit_rows(np.random.default_rng(1).normal(size=(40, 6)))
    found = -theirs.predict_features(torch.tensor(queries, dtype=torch.float32)).detach().numpy()
    np.testing.assert_allclose(detector.score_samples(queries), found, rtol=1e-5, atol=1e-6)


def test_rotations_and_permutations_change_nothing(clusters):
    world, rng = clusters(0), np.random.default_rng(0)
    expected = SHEDetector(world.text).fit(world.X, world.y).score_samples(world.X_in)
    turn = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    turned = SHEDetector(world.text @ turn).fit(world.X @ turn, world.y).score_samples(world.X_in @ turn)
    np.testing.assert_allclose(turned, expected, rtol=1e-8)
    order = rng.permutation(len(world.X))
    shuffled = SHEDetector(world.text).fit(world.X[order], world.y[order])
    np.testing.assert_allclose(shuffled.score_samples(world.X_in), expected, rtol=1e-10)


@pytest.mark.parametrize("seed", range(3))
def test_worlds(seed, isotropic, clusters, cluster_means):
    found = []
    for world in (isotropic(seed), clusters(seed), cluster_means(seed)):
        detector = SHEDetector(world.text).fit(world.X, world.y)
        found.append(ood_auroc(detector.score_samples(world.X_in), detector.score_samples(world.X_out)))
    # what it knows of a class is its mean: nothing is more typical than that
    assert found[0] > 0.7
    assert found[1] > 0.8
    assert found[2] < 0.1


def test_without_labels_every_prediction_counts():
    X, y = known_rows()
    frozen = FrozenEstimator(LogisticRegression().fit(X, y))
    detector = SHEDetector(frozen).fit(X)
    predicted, rows = frozen.predict(X), unit_rows(X)
    expected = [rows[predicted == label].mean(axis=0) for label in LABELS]
    np.testing.assert_allclose(detector.patterns_, expected, rtol=1e-10)
    assert detector.predict_class(X[:3]).tolist() == predicted[:3].tolist()
    with pytest.raises(ValueError, match="SHEDetector needs y"):
        SHEDetector().fit(X)


def test_a_class_that_is_never_recognised_stores_the_mean_of_all_its_rows():
    X, y = known_rows()
    with pytest.warns(SkclipWarning, match=r"DummyClassifier recognises no picture of class 'dog' \(2 of 3 classes\)"):
        detector = SHEDetector(DummyClassifier(strategy="constant", constant="cat")).fit(X, y)
    for k, label in enumerate(LABELS):
        np.testing.assert_allclose(detector.patterns_[k], unit_rows(X)[y == label].mean(axis=0), rtol=1e-10)


def test_a_class_without_rows_is_like_nothing():
    detector = SHEDetector(np.eye(4)).fit(np.eye(4)[:2], [0, 1])
    np.testing.assert_array_equal(detector.patterns_[2:], 0.0)
    np.testing.assert_array_equal(detector.score_samples(np.eye(4)), [1.0, 1.0, 0.0, 0.0])


def test_recognised_means_leave_out_labels_that_the_classifier_does_not_know():
    X = np.array([[1.0, 0.0], [0.0, 1.0], [0.6, 0.8]])
    means, lost = recognised_means(X, np.array([0, 1, 1]), np.array(["a", "b", "z"]), np.array(["a", "b"]))
    np.testing.assert_allclose(means, np.eye(2))
    assert lost.size == 0


def test_views_are_rows_of_the_fit_and_the_first_is_scored():
    X, y = known_rows()
    X = unit_rows(X)
    views, labels = X.reshape(60, 2, 6), y[::2]
    codes, text = np.searchsorted(LABELS, labels), np.eye(6)[:3]
    flat = SHEDetector(text).fit(X, np.repeat(codes, 2))
    with_views = SHEDetector(text).fit(views, codes)
    np.testing.assert_allclose(with_views.patterns_, flat.patterns_, rtol=1e-12)
    np.testing.assert_allclose(with_views.score_samples(views), flat.score_samples(views[:, 0]), rtol=1e-12)


def test_bad_input():
    X, y = known_rows()
    with pytest.raises(ValueError, match="'metric' parameter"):
        SHEDetector(np.eye(6), metric="manhattan").fit(X, y)
    with pytest.raises(ValueError, match="NaN"):
        SHEDetector(LogisticRegression()).fit(np.where(np.arange(720).reshape(120, 6) == 9, np.nan, X), y)
    with pytest.raises(ValueError, match="5 features, but"):
        SHEDetector(LogisticRegression()).fit(X, y).score_samples(X[:, :5])
    with pytest.raises(TypeError, match="is not a classifier"):
        SHEDetector(KMeans(3)).fit(X, y)


@parametrize_with_checks([SHEDetector(NearestMeanClassifier(), metric="euclidean")])
def test_scikit_learn_contract_of_another_metric(estimator, check):
    check(estimator)
