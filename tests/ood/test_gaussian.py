"""Gaussians of one covariance: what is learned, distances on every way, and the threshold without scoring all rows."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import torch
from sklearn import config_context

from skclip.ood import MahalanobisDetector, RelativeMahalanobisDetector, _gaussian
from skclip.ood._detector import in_sample_positions
from skclip.ood._gaussian import (
    Gaussians,
    Learned,
    distances_on,
    exact_tail,
    learn_background,
    learn_gaussians,
    nearest_distances,
    own_class_bounds,
)
from skclip.utils._arrays import unit_rows
from skclip.utils._shared_gaussian import Rows, class_moments


def known_rows(n=240, d=12, n_classes=6, seed=0, spread=1.0):
    """Rows of any length, with anisotropic noise about classes that overlap the more, the smaller `spread` is."""
    rng = np.random.default_rng(seed)
    centres = spread * rng.normal(size=(n_classes, d)) + 3.0 * rng.normal(size=d)
    codes = rng.permutation(np.arange(n) % n_classes)
    noise = rng.normal(size=(n, d)) * np.geomspace(1.0, 0.1, d)
    return (centres[codes] + noise) * rng.uniform(0.5, 2.0, (n, 1)), codes


def learn(X, codes, covariance="empirical"):
    rows = Rows(X, codes, None)
    moments = class_moments(covariance, rows, codes.max() + 1)
    return learn_gaussians(covariance, moments, rows), learn_background(covariance, moments, rows)


def literal_within(X, codes):
    rows = unit_rows(X)
    centred = np.concatenate([rows[codes == k] - rows[codes == k].mean(axis=0) for k in np.unique(codes)])
    return centred.T @ centred / len(X)


def literal_distances(rows, means, covariance):
    precision = np.linalg.pinv(covariance)
    return np.array([min((x - mean) @ precision @ (x - mean) for mean in means) for x in rows])


def test_covariances_have_the_divisor_n():
    X, codes = known_rows()
    known, background = learn(X, codes)
    np.testing.assert_allclose(known.covariance, literal_within(X, codes), atol=1e-13)
    np.testing.assert_allclose(background.covariance, np.cov(unit_rows(X).T, bias=True), atol=1e-13)
    np.testing.assert_allclose(known.means, [unit_rows(X)[codes == k].mean(axis=0) for k in range(6)], atol=1e-13)
    np.testing.assert_allclose(background.means, [unit_rows(X).mean(axis=0)], atol=1e-13)


@pytest.mark.parametrize("covariance", ["empirical", "ks", "ledoit_wolf", "oas", "pooled"])
def test_the_background_of_one_class_is_the_class(covariance):
    X, codes = known_rows(n_classes=1)
    known, background = learn(X, codes, covariance)
    for ours, theirs in zip(known.gaussians, background.gaussians):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("n", [8, 240])
def test_distances_equal_the_literal_ones(n):
    X, codes = known_rows(n, n_classes=2)
    known, background = learn(X, codes)
    queries = np.random.default_rng(1).normal(size=(20, 12))
    found = nearest_distances(queries, [known.gaussians, background.gaussians])
    expected = [literal_distances(unit_rows(queries), g.means, g.covariance) for g in (known, background)]
    np.testing.assert_allclose(found.T, expected, rtol=1e-7)


def test_blocks_change_no_distance():
    X, codes = known_rows()
    gaussians = [learned.gaussians for learned in learn(X, codes)]
    whole = nearest_distances(X, gaussians)
    with config_context(working_memory=0.001):
        np.testing.assert_allclose(nearest_distances(X, gaussians), whole, rtol=1e-10)
    np.testing.assert_allclose(nearest_distances(X[[7]], gaussians)[0], whole[7], rtol=1e-10)


def test_torch_gives_the_same_distances():
    X, codes = known_rows()
    gaussians = [learned.gaussians for learned in learn(X, codes)]
    X = X.astype(np.float32)
    X.flags.writeable = False
    expected = nearest_distances(X, gaussians)
    cpu = torch.device("cpu")
    np.testing.assert_allclose(nearest_distances(X, gaussians, cpu), expected, rtol=1e-10)
    with config_context(working_memory=0.001):
        np.testing.assert_allclose(nearest_distances(X, gaussians, cpu), expected, rtol=1e-10)
    # what has no float64
    np.testing.assert_allclose(distances_on(cpu, torch.float32, X, gaussians), expected, rtol=1e-3, atol=1e-3)


def test_mps_computes_in_float32(monkeypatch):
    asked = []
    monkeypatch.setattr(_gaussian, "distances_on", lambda device, dtype, *rest: asked.append(dtype))
    for device in ("mps", "cuda:0", "cpu"):
        nearest_distances(np.eye(2), [], torch.device(device))
    assert asked == [torch.float32, torch.float64, torch.float64]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(("n_classes", "d", "spread"), [(6, 12, 1.0), (40, 12, 1.0), (6, 64, 0.3), (1, 12, 1.0)])
@pytest.mark.parametrize("relative", [False, True])
def test_the_bound_is_below_every_score_and_close_to_that_of_the_own_class(dtype, n_classes, d, spread, relative):
    X, codes = known_rows(1000, d, n_classes, spread=spread)
    X = X.astype(dtype)
    known, background = learn(X, codes)
    bounds = own_class_bounds(X, codes, known, background if relative else None)
    assert bounds is not None
    precisions = [np.linalg.inv(known.covariance), np.linalg.inv(background.covariance)]
    own, centred = unit_rows(X.astype(float)) - known.means[codes], unit_rows(X.astype(float)) - background.means
    exact = -np.einsum("nd,de,ne->n", own, precisions[0], own)
    if relative:
        exact += np.einsum("nd,de,ne->n", centred, precisions[1], centred)
    assert (bounds <= exact + 1e-9).all()
    distances = np.einsum("nd,de,ne->n", own, precisions[0], own)
    assert (exact - bounds).max() < 0.02 * distances.std()


def test_no_bound_where_the_score_is_not_concave():
    X, codes = known_rows()
    known, background = learn(X, codes)
    location, root, means = background.gaussians
    narrow = Learned(background.means, background.covariance / 1e4, Gaussians(location, 100.0 * root, means))
    assert own_class_bounds(X, codes, known, narrow) is None


@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 1.0])
def test_the_tail_has_the_quantile_of_all_scores(share):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=1001)
    bounds = scores - rng.exponential(0.3, size=1001)
    asked = []

    def score(positions):
        asked.extend(positions)
        return scores[positions]

    tail = exact_tail(bounds.copy(), share, score)
    assert np.percentile(tail, 100 * share) == np.percentile(scores, 100 * share)
    needed = np.sum(bounds <= np.percentile(scores, 100 * share))
    assert len(asked) == len(set(asked)) <= needed + 500 * share + 2
    np.testing.assert_array_equal(tail[asked], scores[asked])


@pytest.mark.parametrize("spread", [1.0, 0.05])
@pytest.mark.parametrize("covariance", ["empirical", "ks", "ledoit_wolf"])
@pytest.mark.parametrize("detector", [MahalanobisDetector, RelativeMahalanobisDetector])
def test_the_threshold_is_the_quantile_of_all_training_scores(detector, covariance, spread, monkeypatch):
    X, y = known_rows(1000, spread=spread)
    scored = []
    whole = detector._score_rows
    monkeypatch.setattr(detector, "_score_rows", lambda self, rows: scored.append(len(rows)) or whole(self, rows))
    fitted = detector(covariance, contamination=0.037).fit(X, y)
    n_scored = sum(scored)
    assert fitted.offset_ == pytest.approx(np.percentile(fitted.score_samples(X), 3.7), rel=1e-9, abs=1e-9)
    assert np.sum(fitted.predict(X) == -1) == 37
    if spread == 1.0:  # classes that are told apart: few rows are scored at all
        assert n_scored < 100


@pytest.mark.parametrize("detector", [MahalanobisDetector, RelativeMahalanobisDetector])
def test_the_threshold_of_many_rows_is_that_of_ten_thousand(detector):
    X, y = known_rows(25_000)
    fitted = detector().fit(X, y)
    scores = fitted.score_samples(X)
    assert fitted.offset_ == pytest.approx(np.percentile(scores[in_sample_positions(len(X))], 5), rel=1e-9)
    assert abs(np.mean(scores < fitted.offset_) - 0.05) < 4 * np.sqrt(0.05 * 0.95 / 10_000)
    few, codes = X[:10_000], y[:10_000]
    fitted = detector().fit(few, codes)
    assert fitted.offset_ == pytest.approx(np.percentile(fitted.score_samples(few), 5), rel=1e-9)
    assert np.sum(fitted.predict(few) == -1) == 500


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("covariance", ["empirical", "ks"])
@pytest.mark.parametrize("detector", [MahalanobisDetector, RelativeMahalanobisDetector])
@pytest.mark.parametrize("scale", [1e-200, 1e-45, 1e60, "each its own"])
def test_the_threshold_does_not_depend_on_lengths_that_float32_cannot_hold(detector, covariance, scale):
    X, y = known_rows()
    lengths = 10.0 ** np.random.default_rng(0).uniform(-60, 60, (len(X), 1)) if isinstance(scale, str) else scale
    expected = detector(covariance).fit(X, y).offset_
    assert detector(covariance).fit(X * lengths, y).offset_ == pytest.approx(expected, rel=1e-9)


def test_memory_is_bounded():
    rng = np.random.default_rng(0)
    X, codes = rng.normal(size=(20_000, 32)).astype(np.float32), np.arange(20_000) % 1000
    known, background = learn(X, codes)
    gaussians = [known.gaussians, background.gaussians]
    nearest_distances(X[:10], gaussians)
    with config_context(working_memory=4):
        tracemalloc.start()
        try:
            nearest_distances(X, gaussians)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    # all scores of all classes would be 160 MB
    assert peak < 6 * 2**20


@pytest.mark.parametrize("detector", [MahalanobisDetector, RelativeMahalanobisDetector])
def test_float32_rows_lose_nothing_where_rounding_would_be_inverted(detector):
    X, y = known_rows()
    X = X.astype(np.float32)
    ours, exact = detector().fit(X, y), detector().fit(X.astype(np.float64), y)
    np.testing.assert_allclose(ours.covariance_, exact.covariance_, rtol=1e-11, atol=1e-16)
    np.testing.assert_allclose(ours.score_samples(X), exact.score_samples(X), rtol=1e-9, atol=1e-9)
