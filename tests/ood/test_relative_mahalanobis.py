from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.metrics import ood_auroc
from skclip.ood import MahalanobisDetector, RelativeMahalanobisDetector
from skclip.utils import SkclipWarning
from skclip.utils._arrays import unit_rows


def known_rows(n=200, d=8, n_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, d)) + 2.0
    codes = rng.permutation(np.arange(n) % n_classes)
    return centres[codes] + 0.4 * rng.normal(size=(n, d)) * np.geomspace(1.0, 0.1, d), codes


def squared_distances(queries, mean, precision):
    return np.einsum("nd,de,ne->n", queries - mean, precision, queries - mean)


def literal_scores(X, y, queries, *, background_divisor=None):
    """Equations (3) and (4) of the paper, on unit rows; both covariances with the divisor N, but where told."""
    rows, queries = unit_rows(X), unit_rows(queries)
    means = [rows[y == label].mean(axis=0) for label in np.unique(y)]
    within = sum((rows[y == k] - means[k]).T @ (rows[y == k] - means[k]) for k in range(len(means))) / len(rows)
    centred = rows - rows.mean(axis=0)
    total = centred.T @ centred / (background_divisor or len(rows))
    background = squared_distances(queries, rows.mean(axis=0), np.linalg.inv(total))
    precision = np.linalg.inv(within)
    return np.max([background - squared_distances(queries, mean, precision) for mean in means], axis=0)


def test_scores_equal_the_literal_formula():
    X, y = known_rows()
    queries = np.random.default_rng(1).normal(size=(30, 8))
    detector = RelativeMahalanobisDetector().fit(X, y)
    np.testing.assert_allclose(detector.score_samples(queries), literal_scores(X, y, queries), rtol=1e-8)
    np.testing.assert_allclose(detector.background_covariance_, np.cov(unit_rows(X).T, bias=True), atol=1e-13)


@pytest.mark.parametrize("covariance", ["empirical", "ks", "ledoit_wolf", "oas", "pooled"])
@pytest.mark.parametrize("labels", [None, np.full(200, "all")])
def test_one_class_is_its_own_background(covariance, labels):
    X = known_rows()[0]
    detector = RelativeMahalanobisDetector(covariance).fit(X, labels)
    queries = np.random.default_rng(1).normal(size=(30, 8))
    assert not detector.score_samples(queries).any()
    assert detector.offset_ == 0.0
    assert (detector.predict(queries) == 1).all()
    np.testing.assert_array_equal(detector.background_covariance_, detector.covariance_)


def test_scores_of_one_row_per_class_are_linear():
    X = np.random.default_rng(0).normal(size=(60, 6)) + 1.0
    detector = RelativeMahalanobisDetector().fit(X, np.arange(60))
    rows = unit_rows(np.random.default_rng(1).normal(size=(20, 6)))
    precision = np.linalg.inv(detector.covariance_)
    shifts = detector.means_ - detector.location_
    linear = 2.0 * (rows - detector.location_) @ precision @ shifts.T - np.einsum(
        "kd,de,ke->k", shifts, precision, shifts
    )
    np.testing.assert_allclose(detector.score_samples(rows), linear.max(axis=1), rtol=1e-8, atol=1e-8)


def test_what_is_unusual_for_every_class_cancels():
    # far along a direction of pure noise, which says nothing about classes: only the plain distance minds
    rng = np.random.default_rng(0)
    d, y = 30, np.repeat(np.arange(10), 100)
    centres = np.zeros((10, d))
    centres[:, :10] = np.eye(10)
    X = centres[y] + 0.05 * rng.normal(size=(1000, d)) + 3.0 * np.eye(d)[-1]
    odd = centres[y] + 0.05 * rng.normal(size=(1000, d)) * np.where(np.arange(d) >= 10, 3.0, 1.0) + 3.0 * np.eye(d)[-1]
    kept = {}
    for detector in (MahalanobisDetector(), RelativeMahalanobisDetector()):
        kept[type(detector).__name__] = np.mean(detector.fit(X, y).predict(odd) == 1)
    assert kept["MahalanobisDetector"] < 0.05
    assert kept["RelativeMahalanobisDetector"] > 0.8


@pytest.fixture
def double():
    """Torch in float64 throughout, which pytorch-ood does not choose by itself."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_pytorch_ood_has_the_same_scores_times_n(pytorch_ood, double):
    # both of its covariances are sums that are not divided by N
    X, y = known_rows(2000)
    queries = unit_rows(np.random.default_rng(1).normal(size=(50, 8)))
    theirs = pytorch_ood.RMD(None)
    theirs.fit_features(torch.tensor(unit_rows(X)), torch.tensor(y))
    if torch.linalg.matrix_norm(theirs.cov) < 0.5 * torch.linalg.matrix_norm(theirs.background_cov) / len(X):
        pytest.skip("a version that divides one covariance alone")
    expected = -theirs.predict_features(torch.tensor(queries)).numpy() * len(X)
    np.testing.assert_allclose(RelativeMahalanobisDetector().fit(X, y).score_samples(queries), expected, rtol=1e-5)


def test_a_background_that_is_not_divided_by_n_leaves_the_plain_distance():
    X, y = known_rows(2000)
    queries = np.random.default_rng(1).normal(size=(50, 8))
    slipped = literal_scores(X, y, queries, background_divisor=1)
    plain = MahalanobisDetector().fit(X, y).score_samples(queries)
    ours = RelativeMahalanobisDetector().fit(X, y).score_samples(queries)
    np.testing.assert_allclose(slipped, plain, rtol=2e-3)
    assert np.median(np.abs(ours - plain) / np.abs(plain)) > 0.02
    np.testing.assert_allclose(ours, literal_scores(X, y, queries), rtol=1e-8)


def test_on_average_better_than_the_plain_distance(anisotropic, isotropic):
    gains = []
    for world in [make(seed) for make in (anisotropic, isotropic) for seed in range(4)]:
        found = []
        for detector in (MahalanobisDetector(), RelativeMahalanobisDetector()):
            detector.fit(world.X, world.y)
            found.append(ood_auroc(detector.score_samples(world.X_in), detector.score_samples(world.X_out)))
        gains.append(found[1] - found[0])
    assert np.mean(gains[:4]) > 0.0
    assert np.mean(gains[4:]) > 0.003


def test_singular_covariances_warn():
    X, y = known_rows(9, d=12, n_classes=3)
    with pytest.warns(SkclipWarning, match="RelativeMahalanobisDetector measures distances in these 6 directions"):
        detector = RelativeMahalanobisDetector().fit(X, y)
    assert detector.background_whitening_.shape == (12, 8)
    assert np.isfinite(detector.score_samples(np.random.default_rng(0).normal(size=(5, 12)))).all()


class WithLabels(RelativeMahalanobisDetector):
    """scikit-learn's checks give outlier detectors no labels, without which this score is 0: these are halves."""

    def fit(self, X, y=None):
        if y is None and getattr(X, "ndim", 2) == 2 and len(X) > 1:
            column = np.asarray(X)[:, 0]
            y = column > np.median(column)
        return super().fit(X, y)


@parametrize_with_checks([WithLabels(), WithLabels("ks", device="auto"), WithLabels("ledoit_wolf")])
def test_scikit_learn_contract(estimator, check):
    check(estimator)
