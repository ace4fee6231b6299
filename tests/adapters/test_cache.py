from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn import config_context

from skclip.adapters._cache import Cache, affinity_votes, cache_logits, left_out_logits, sum_votes
from skclip.utils._arrays import unit_rows
from skclip.utils._training import Training


def rows_of(n, d=8, seed=0, dtype=np.float64):
    return unit_rows(np.random.default_rng(seed).normal(size=(n, d))).astype(dtype)


def cache_of(sizes, d=8, weights=None, seed=0, dtype=np.float64):
    """Pictures of classes with these many keys, shuffled."""
    rng = np.random.default_rng(seed)
    codes = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    X = 3.0 * rows_of(len(codes), d, seed, dtype)
    return X, codes, Cache.of(Training(X, codes, weights, 1, np.arange(len(codes))), len(sizes))


def literal(rows, keys, codes, weights, n_classes, beta):
    values = weights[:, None] * np.eye(n_classes)[codes]
    return np.exp(-beta * (1.0 - rows @ keys.T)) @ values


def test_keys_are_sorted_by_class_and_know_their_place():
    X, codes, cache = cache_of([3, 1, 4])
    assert cache.codes.tolist() == sorted(codes.tolist())
    np.testing.assert_array_equal(cache.codes, codes[cache.order])
    np.testing.assert_allclose(cache.keys, unit_rows(X)[cache.order])
    np.testing.assert_array_equal(cache.starts(), [0, 3, 4, 8])
    for k in range(3):  # as they came within a class
        assert (np.diff(cache.order[cache.codes == k]) > 0).all()


def test_views_are_averaged_then_normalised():
    views = np.random.default_rng(0).normal(size=(5, 3, 6))
    cache = Cache.of(Training(views.reshape(-1, 6), np.arange(5) % 2, None, 3, np.arange(5)), 2)
    expected = unit_rows(views.mean(axis=1))
    np.testing.assert_allclose(cache.keys, expected[cache.order])
    assert not np.allclose(expected, unit_rows(unit_rows(views.reshape(-1, 6)).reshape(views.shape).mean(axis=1)))


def test_blocks_of_pictures_give_the_keys_of_one():
    rng = np.random.default_rng(0)
    training = Training(rng.normal(size=(3000, 64)), rng.integers(0, 7, 1500), None, 2, np.arange(1500))
    whole = Cache.of(training, 7)
    with config_context(working_memory=1):
        np.testing.assert_array_equal(Cache.of(training, 7).keys, whole.keys)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("working_memory", [1, 1024])
@pytest.mark.parametrize("beta", [0.5, 30.0])
def test_cache_logits_are_the_formula(dtype, working_memory, beta):
    weights = np.random.default_rng(1).uniform(0.5, 2.0, 4000)
    _, _, cache = cache_of([1000, 0, 1, 2500, 499], weights=weights, dtype=dtype)
    rows = rows_of(300, seed=2, dtype=dtype)
    expected = literal(rows.astype(float), cache.keys.astype(float), cache.codes, cache.weights, 5, beta)
    with config_context(working_memory=working_memory):
        logits = cache_logits(rows, cache, beta)
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, expected, rtol=1e-10 if dtype == np.float64 else 1e-4)
    assert (logits[:, 1] == 0.0).all()


def test_rows_and_keys_of_different_types():
    _, _, cache = cache_of([40, 60])
    rows = rows_of(9, seed=1)
    expected = cache_logits(rows, cache, 2.0)
    single = cache._replace(keys=cache.keys.astype(np.float32))
    np.testing.assert_allclose(cache_logits(rows, single, 2.0), expected, rtol=1e-5)
    np.testing.assert_allclose(cache_logits(rows.astype(np.float32), cache, 2.0), expected, rtol=1e-5)


@pytest.mark.parametrize("order", ["C", "F"])
def test_votes_of_any_memory_order_and_any_kind(order):
    rng = np.random.default_rng(0)
    matrix, codes = rng.normal(size=(50, 700)), np.sort(rng.integers(0, 9, 700))
    weights = rng.uniform(size=700)

    def votes(rows, columns):
        return np.array(matrix[rows, columns], order=order)

    with config_context(working_memory=1):
        totals = sum_votes(votes, 50, codes, weights, 9)
    np.testing.assert_allclose(totals, (matrix * weights) @ np.eye(9)[codes], rtol=1e-9, atol=1e-9)


def test_affinity_votes_are_in_place():
    affinities = np.array([[1.0, 0.5]])
    votes = affinity_votes(affinities, 2.0)
    assert votes is affinities
    np.testing.assert_allclose(votes, [[1.0, np.exp(-1.0)]])


def test_normalised_values_are_means():
    weights = np.random.default_rng(0).uniform(0.5, 2.0, 10)
    _, _, cache = cache_of([3, 7], weights=weights)
    rows = rows_of(4, seed=1)
    np.testing.assert_allclose(
        cache_logits(rows, cache.normalized(), 3.0), cache_logits(rows, cache, 3.0) / cache.counts()
    )


def test_joined_caches_are_the_cache_of_all():
    X, codes, whole = cache_of([5, 6, 7], weights=np.arange(1.0, 19.0))
    weights = np.arange(1.0, 19.0)
    parts = [
        Cache.of(Training(X[part], codes[part], weights[part], 1, np.arange(18)[part]), 3)
        for part in (slice(0, 4), slice(4, 18))
    ]
    joined = parts[0].joined(parts[1])
    for name in ("keys", "codes", "weights"):
        np.testing.assert_array_equal(getattr(joined, name), getattr(whole, name))


@pytest.mark.parametrize("working_memory", [1, 1024])
def test_left_out_logits_are_those_of_smaller_caches(working_memory):
    """Against a cache built again without the keys."""
    weights = np.random.default_rng(5).integers(1, 4, 900).astype(float)
    _, _, cache = cache_of([400, 500], weights=weights)
    chosen = np.array([3, 250, 399, 400, 899])
    betas = np.array([0.5, 20.0])

    def left_out(part):
        return np.arange(len(chosen[part])), chosen[part]

    reached = np.zeros((2, 5, 2))
    with config_context(working_memory=working_memory):
        for part, blocks in left_out_logits(cache.keys[chosen], left_out, cache, betas):
            for b, logits in enumerate(blocks):
                reached[b, part] = logits
    for b, beta in enumerate(betas):
        for i, key in enumerate(chosen):
            kept = np.arange(900) != key
            small = cache._replace(keys=cache.keys[kept], codes=cache.codes[kept], weights=cache.weights[kept])
            expected = cache_logits(cache.keys[[key]], small, beta)[0] * cache.counts() / small.counts()
            np.testing.assert_allclose(reached[b, i], expected, rtol=1e-9)


def test_memory_of_a_cache_of_60000_keys():
    """The matrix of affinities would take 240 MB, a one-hot matrix 240 MB, a copy of the keys in float64 31 MB."""
    rng = np.random.default_rng(0)
    keys = unit_rows(rng.standard_normal((60_000, 64), dtype=np.float32))
    codes = np.sort(rng.integers(0, 500, 60_000))
    cache = Cache(keys, codes, np.ones(60_000), np.arange(60_000), 500)
    rows = keys[:1000].copy()
    with config_context(working_memory=16):
        tracemalloc.start()
        try:
            cache_logits(rows, cache, 5.5)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 16 * 2**20 + 1000 * 500 * 8
