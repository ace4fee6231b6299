import numpy as np
import pytest

from skclip.utils import _moments
from skclip.utils._arrays import unit_rows
from skclip.utils._moments import ClassMoments, class_sums


def rows_and_codes(n=200, d=7, n_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(n, d)) + 3.0, rng.integers(0, n_classes, n)


def gathered(X, codes, n_classes=5, weights=None, **kwargs):
    moments = ClassMoments.empty(n_classes, X.shape[1])
    moments.add(X, codes, weights, **kwargs)
    return moments


def literal_scatters(X, codes):
    rows = X / np.linalg.norm(X, axis=1, keepdims=True)
    within = np.zeros((X.shape[1], X.shape[1]))
    for k in np.unique(codes):
        centred = rows[codes == k] - rows[codes == k].mean(axis=0)
        within += centred.T @ centred
    centred = rows - rows.mean(axis=0)
    return within, centred.T @ centred


def test_means_and_scatters_equal_the_literal_ones():
    X, codes = rows_and_codes()
    moments = gathered(X, codes)
    within, total = literal_scatters(X, codes)
    np.testing.assert_allclose(moments.within(), within, atol=1e-12)
    np.testing.assert_allclose(moments.total(), total, atol=1e-12)
    means = [unit_rows(X)[codes == k].mean(axis=0) for k in range(5)]
    np.testing.assert_allclose(moments.means(), means, atol=1e-14)


def test_float32_products_keep_the_small_scatter_of_rows_far_from_the_origin():
    rng = np.random.default_rng(0)
    X = np.array([30.0, 0, 0, 0]) + 0.1 * rng.normal(size=(5000, 4))
    codes = np.arange(5000) % 5
    exact, rough = gathered(X, codes), gathered(X.astype(np.float32), codes)
    np.testing.assert_allclose(rough.within(), exact.within(), atol=1e-4 * np.trace(exact.within()))


def test_blocks_and_chunks_add_up(monkeypatch):
    X, codes = rows_and_codes()
    whole = gathered(X, codes)
    monkeypatch.setattr(_moments, "BLOCK_ROWS", 13)
    chunks = ClassMoments.empty(5, 7)
    for part in (slice(0, 1), slice(1, 90), slice(90, 200)):
        chunks.add(X[part], codes[part])
    np.testing.assert_allclose(chunks.within(), whole.within(), atol=1e-12)
    np.testing.assert_allclose(chunks.means(), whole.means(), atol=1e-14)
    assert chunks.n_samples == whole.n_samples == 200


def test_whole_weights_are_repeats():
    X, codes = rows_and_codes()
    weights = np.random.default_rng(1).integers(1, 5, len(X))
    weighted = gathered(X, codes, weights=weights.astype(float))
    repeated = gathered(np.repeat(X, weights, axis=0), np.repeat(codes, weights))
    np.testing.assert_allclose(weighted.within(), repeated.within(), atol=1e-11)
    np.testing.assert_allclose(weighted.means(), repeated.means(), atol=1e-13)
    assert weighted.n_samples == repeated.n_samples


def test_weights_that_sum_to_one_count_as_rows():
    X, codes = rows_and_codes()
    plain, shares = gathered(X, codes), gathered(X, codes, weights=np.full(200, 1 / 200))
    assert shares.n_samples == pytest.approx(200)
    np.testing.assert_allclose(shares.within(), plain.within(), atol=1e-12)


def test_a_class_without_rows_has_the_mean_of_all():
    X, codes = rows_and_codes()
    moments = gathered(X, codes, n_classes=6)
    np.testing.assert_allclose(moments.means()[5], unit_rows(X).mean(axis=0), atol=1e-14)


def test_noise_is_the_total_scatter_where_every_class_has_one_row():
    X = rows_and_codes()[0][:5]
    scatter, centres, is_total = gathered(X.astype(np.float32), np.arange(5)).noise()
    assert is_total
    np.testing.assert_allclose(scatter, literal_scatters(X, np.arange(5))[1], atol=1e-6)
    np.testing.assert_allclose(centres[0], centres[1])


def test_class_sums():
    rows = np.arange(8.0).reshape(4, 2)
    sums = class_sums(rows, np.array([2, 0, 2, 0]), 3, np.array([1.0, 1.0, 2.0, 0.5]))
    np.testing.assert_allclose(sums, [[5.0, 6.5], [0.0, 0.0], [8.0, 11.0]])


def test_merged_moments_are_those_of_one_class():
    X, codes = rows_and_codes()
    merged, one = gathered(X, codes).merged(), gathered(X, np.zeros_like(codes), n_classes=1)
    np.testing.assert_allclose(merged.within(), one.within(), atol=1e-11)
    np.testing.assert_allclose(merged.means(), one.means(), atol=1e-14)
    assert merged.n_samples == one.n_samples
