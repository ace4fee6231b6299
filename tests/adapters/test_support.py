from __future__ import annotations

import numpy as np
import pytest

from skclip.adapters._signatures import divergences, text_signature
from skclip.adapters._support import Support, _Evidence, best_mixture, blended_keys
from skclip.utils._arrays import unit_rows
from skclip.utils._class_text import ClassText
from skclip.utils._training import Training


def training(n=24, d=6, n_classes=4, seed=0, weights=None, n_views=1):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n * n_views, d))
    return Training(X, rng.permutation(np.arange(n) % n_classes), weights, n_views, np.arange(n))


def noisy_terms(n=300, n_classes=5, seed=0):
    """A base and a term of which each tells something of the class that the other does not."""
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, n_classes, n)
    own = np.eye(n_classes)[codes]
    return own + rng.normal(size=(n, n_classes)), own + 0.5 * rng.normal(size=(n, n_classes)), codes


def test_the_mixture_weighs_terms_by_what_they_know():
    base, term, codes = noisy_terms(n=20_000)
    weights = np.ones(len(codes))
    _, factors = best_mixture(base, [term], codes, weights)
    # the log-odds of a Gaussian: the signal by the variance of the noise
    assert factors[0] == pytest.approx(4.0, rel=0.1)
    _, sharper = best_mixture(100 * base, [3 * term], codes, weights)
    assert sharper[0] == pytest.approx(factors[0] * 100 / 3, rel=0.01)
    _, alone = best_mixture(None, [base, term], codes, weights)
    np.testing.assert_allclose(alone, [1.0, 4.0], rtol=0.1)


def test_the_mixture_ignores_noise_and_survives_constants():
    base, term, codes = noisy_terms()
    noise = np.random.default_rng(1).normal(size=term.shape)
    loss, factors = best_mixture(base, [term, -term, noise], codes, np.ones(300))
    assert factors[1] == 0.0
    assert factors[2] < 0.2 * factors[0]
    assert loss < best_mixture(base, [], codes, np.ones(300))[0]
    _, constant = best_mixture(base, [np.ones_like(term)], codes, np.ones(300))
    assert constant.tolist() == [0.0]
    assert np.isfinite(best_mixture(np.zeros_like(base), [term], codes, np.ones(300))[1]).all()
    # nothing but the term knows anything, and it knows everything
    assert np.isfinite(best_mixture(-term, [np.eye(5)[codes]], codes, np.ones(300))[1]).all()


def test_weights_of_the_mixture_are_repeats():
    base, term, codes = noisy_terms()
    weights = np.random.default_rng(2).integers(1, 4, 300)
    _, weighted = best_mixture(base, [term], codes, weights.astype(float))
    repeat = np.repeat(np.arange(300), weights)
    _, repeated = best_mixture(base[repeat], [term[repeat]], codes[repeat], np.ones(len(repeat)))
    np.testing.assert_allclose(weighted, repeated, rtol=0.02)  # the penalty is that of the heaviest picture


def test_blended_keys_give_blended_similarities():
    rng = np.random.default_rng(0)
    images, captions, rows = rng.normal(size=(3, 5, 8)).astype(np.float32)
    expected = 0.3 * rows @ images.T + 0.7 * rows @ captions.T
    np.testing.assert_allclose(rows @ blended_keys(images, captions, np.float64(0.7)).T, expected, rtol=1e-4)
    assert blended_keys(images, captions, np.float64(0.7)).dtype == np.float32


@pytest.mark.parametrize("n_views", [1, 3])
def test_leaving_out_equals_a_support_without_the_picture(n_views):
    weights = np.random.default_rng(1).integers(1, 4, 24).astype(float)
    rows = training(n_views=n_views, weights=weights)
    text = ClassText(unit_rows(np.random.default_rng(2).normal(size=(4, 6))), 10.0, None)
    signature = text_signature(text.prototypes, 0.5)
    support = Support.of(rows, 4)
    cache = support.cache
    sums = np.stack([cache.weights[cache.codes == k] @ signature(cache.keys[cache.codes == k]) for k in range(4)])
    evidence = _Evidence.of(support, signature, sums, text)
    votes, totals = evidence.votes(0.0, 3.0), evidence.totals
    for i, query in enumerate(evidence.left.queries):
        kept = support.groups != evidence.left.groups[i]
        assert kept.sum() == 23
        heavy = cache.weights[kept] * np.eye(4)[cache.codes[kept]].T
        lift = np.ones(4)
        own = evidence.left.codes[i]
        lift[own] = cache.weights[cache.codes == own].sum() / heavy[own].sum()
        expected = heavy @ np.exp(-3.0 * (1.0 - cache.keys[kept] @ query)) * lift
        np.testing.assert_allclose(votes[i], expected)
        divergence = divergences(signature(query[None]), signature(cache.keys[kept]))[0]
        np.testing.assert_allclose(totals[i], heavy @ divergence * lift, atol=1e-10)


def test_repeats_of_a_picture_are_left_out_together_whatever_their_captions():
    rows = training()
    twice = Training(np.vstack([rows.X, rows.X]), np.tile(rows.codes, 2), None, 1, np.arange(48))
    captions = unit_rows(np.random.default_rng(1).normal(size=(48, 6)))
    evidence = _Evidence.of(Support.of(twice, 4, captions), None, None, None)
    assert len(evidence.left.codes) == 24
    np.testing.assert_array_equal(evidence.left.weights, 2.0)
    once = _Evidence.of(Support.of(rows, 4), None, None, None)
    np.testing.assert_allclose(evidence.votes(0.0, 2.0), 2.0 * once.votes(0.0, 2.0))
