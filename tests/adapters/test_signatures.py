from __future__ import annotations

import numpy as np
import pytest
import sklearn
from scipy.special import softmax

from skclip.adapters._signatures import (
    Apart,
    Ranges,
    affinity_range,
    divergence_logits,
    divergence_range,
    divergence_sums,
    divergences,
    feature_signature,
    signature_sums,
    spread_out,
    text_signature,
)
from skclip.utils._arrays import unit_rows


def unit(n, d, seed):
    return unit_rows(np.random.default_rng(seed).normal(size=(n, d)))


QUERIES, KEYS, TEXT = unit(7, 10, 0), unit(9, 10, 1), unit(4, 10, 2)
CODES = np.array([0, 0, 1, 1, 1, 2, 3, 3, 3])
WEIGHTS = np.array([1.0, 2.0, 1.0, 0.5, 3.0, 1.0, 1.0, 1.0, 2.0])


def triple_loop(q, s):
    out = np.zeros((len(q), len(s)))
    for i in range(len(q)):
        for j in range(len(s)):
            for k in range(q.shape[1]):
                out[i, j] += q[i, k] * (np.log(q[i, k]) - np.log(s[j, k]))
    return out


@pytest.mark.parametrize("signature", [text_signature(TEXT, 0.5), feature_signature(0.5), text_signature(TEXT, 0.01)])
def test_one_product_is_the_triple_loop(signature):
    q, s = signature(QUERIES), signature(KEYS)
    np.testing.assert_allclose(divergences(q, s), triple_loop(np.exp(q), np.exp(s)), atol=1e-6)
    assert divergences(q, s).min() >= 0.0
    np.testing.assert_allclose(np.diag(divergences(q, q)), 0.0, atol=1e-12)


def test_signatures_are_class_distributions():
    np.testing.assert_allclose(np.exp(text_signature(TEXT, 0.5)(KEYS)), softmax(KEYS @ TEXT.T / 0.5, axis=1))
    np.testing.assert_allclose(np.exp(feature_signature(0.2)(KEYS)), softmax(KEYS / 0.2, axis=1))
    assert text_signature(TEXT, 0.5)(KEYS.astype(np.float32)).dtype == np.float64


def test_the_divergence_is_that_of_query_from_support():
    signature = text_signature(TEXT, 0.1)
    forward = divergences(signature(QUERIES), signature(KEYS))
    assert np.abs(forward - divergences(signature(KEYS), signature(QUERIES)).T).max() > 0.01


def test_text_signatures_ignore_what_no_class_name_describes():
    basis = np.linalg.svd(TEXT, full_matrices=True)[2][4:]  # orthogonal to every prototype
    moved = KEYS + np.random.default_rng(3).normal(size=(9, 6)) @ basis
    signature = text_signature(TEXT, 0.5)
    np.testing.assert_allclose(signature(moved), signature(KEYS), atol=1e-12)
    lengths = np.linalg.norm(moved, axis=1)[:, None]
    np.testing.assert_allclose(signature(unit_rows(moved)), signature(KEYS / lengths), atol=1e-12)


def test_sums_by_class_equal_sums_of_pairs():
    signature = text_signature(TEXT, 0.3)
    counts = np.bincount(CODES, weights=WEIGHTS)
    sums = signature_sums(KEYS, signature, CODES, WEIGHTS, 4)
    pairs = divergences(signature(QUERIES), signature(KEYS)) * WEIGHTS
    expected = pairs @ np.eye(4)[CODES]
    np.testing.assert_allclose(divergence_sums(signature(QUERIES), sums, counts), expected, atol=1e-10)


def test_logits_are_the_moved_divergences_summed_with_a_minus():
    signature = text_signature(TEXT, 0.3)
    M, A = divergences(signature(QUERIES), signature(KEYS)), QUERIES @ KEYS.T
    moved = A.min() + (M - M.min()) / (M.max() - M.min()) * (A.max() - A.min())
    ranges = Ranges(affinity_range(QUERIES, KEYS), divergence_range(QUERIES, KEYS, signature))
    counts = np.bincount(CODES, weights=WEIGHTS)
    sums = signature_sums(KEYS, signature, CODES, WEIGHTS, 4)
    logits = divergence_logits(divergence_sums(signature(QUERIES), sums, counts), counts, ranges)
    np.testing.assert_allclose(logits, -(moved * WEIGHTS) @ np.eye(4)[CODES], atol=1e-9)
    assert moved.min() == pytest.approx(A.min())
    assert moved.max() == pytest.approx(A.max())


def test_equal_divergences_tell_nothing():
    ranges = Ranges((0.1, 0.9), (0.3, 0.3))
    np.testing.assert_array_equal(
        divergence_logits(np.ones((2, 3)), np.array([1.0, 1.0, 2.0]), ranges)[0], [-0.1, -0.1, -0.2]
    )


@pytest.mark.parametrize("megabytes", [1024, 0.0001])
def test_ranges_leave_out_what_is_the_same_picture(megabytes):
    signature = text_signature(TEXT, 0.3)
    rows = KEYS[[0, 1, 0, 2, 3]]
    names = np.array([0, 1, 0, 2, 3])
    apart = Apart(names, names)
    different = names[:, None] != names
    with sklearn.config_context(working_memory=megabytes):
        low, high = affinity_range(rows, rows, apart)
        below, above = divergence_range(rows, rows, signature, apart)
    A, M = rows @ rows.T, divergences(signature(rows), signature(rows))
    np.testing.assert_allclose([low, high], [A[different].min(), A[different].max()])
    np.testing.assert_allclose([below, above], [M[different].min(), M[different].max()])
    assert high < 0.99
    assert below > 0.0


def test_no_pair_at_all():
    name = np.zeros(2, dtype=int)
    assert affinity_range(KEYS[:2], KEYS[:2], Apart(name, name)) == (0.0, 0.0)


def test_spread_out():
    assert spread_out(3, 5).tolist() == [0, 1, 2]
    chosen = spread_out(1000, 10)
    assert len(set(chosen.tolist())) == 10
    assert (chosen[0], chosen[-1]) == (0, 999)
