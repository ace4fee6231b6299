from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skclip.metrics import ood_auroc
from skclip.ood import MCMDetector, VarianceDetector
from skclip.utils._arrays import unit_rows


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(50, 16)), rng.normal(size=(7, 16))


@pytest.mark.parametrize("temperature", [1.0, 0.01])
def test_is_the_variance_of_the_shares(data, temperature):
    X, text = data
    expected = []
    for x in X:
        cosines = [x @ t / np.sqrt((x @ x) * (t @ t)) for t in text]
        shares = np.exp(np.array(cosines) / temperature)
        shares /= shares.sum()
        expected.append(sum((share - 1 / 7) ** 2 for share in shares) / 7)
    assert_allclose(VarianceDetector(text, temperature=temperature).fit().score_samples(X), expected, atol=1e-6)


def test_limits(data):
    X, text = data
    assert_array_equal(VarianceDetector(text[:1]).fit().score_samples(X), 0.0)
    assert_allclose(VarianceDetector(np.eye(16)).fit().score_samples(np.ones((1, 16))), 0.0, atol=1e-16)
    certain = VarianceDetector(np.eye(16), temperature=1e-3).fit().score_samples(np.eye(16)[:1])
    assert_allclose(certain, (15 / 16) / 16)  # one share of 1


def test_hot_it_is_the_variance_of_the_cosines(data):
    X, text = data
    cosines = unit_rows(X) @ unit_rows(text).T
    hot = VarianceDetector(text, temperature=1e3).fit().score_samples(X)
    assert_allclose(hot * (7 * 1e3) ** 2, cosines.var(axis=1), rtol=5e-3)


def test_of_two_classes_it_ranks_as_the_best_share(data):
    X, text = data
    spread, best = (cls(text[:2]).fit().score_samples(X) for cls in (VarianceDetector, MCMDetector))
    assert_array_equal(np.argsort(spread), np.argsort(best))
    assert_allclose(spread, (best - 0.5) ** 2, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_pictures_of_several_classes_at_once_are_known_to_it(seed):
    """Known pictures show five classes each, the unknown none: all cosines tell, the best one less."""
    rng = np.random.default_rng(seed)
    text = unit_rows(rng.normal(size=(20, 64)))
    shown = np.stack([rng.choice(20, 5, replace=False) for _ in range(300)])
    known = text[shown].sum(axis=1) + 0.3 * rng.normal(size=(300, 64))
    unknown = rng.normal(size=(300, 64))
    spread, best = (
        ood_auroc(detector.score_samples(known), detector.score_samples(unknown))
        for detector in (VarianceDetector(text).fit(), MCMDetector(text).fit())
    )
    assert spread > best + 0.03
    assert spread > 0.95


@pytest.mark.parametrize("seed", range(5))
def test_worlds(isotropic, cluster_means, seed):
    for world, low, high in ((isotropic(seed), 0.6, 1.0), (cluster_means(seed), 0.0, 0.05)):
        detector = VarianceDetector(world.text).fit()
        auroc = ood_auroc(detector.score_samples(world.X_in), detector.score_samples(world.X_out))
        assert low < auroc + 1e-12
        assert auroc <= high
