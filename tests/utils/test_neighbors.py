from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn import config_context
from sklearn.neighbors import NearestNeighbors

from skclip.utils._arrays import unit_rows
from skclip.utils._neighbors import largest_products, most_similar, tiles


def by_sorting(queries, bank, k):
    products = queries @ bank.T
    order = np.argsort(-products, axis=1, kind="stable")[:, :k]
    return np.take_along_axis(products, order, axis=1), order


def whole_numbers(n, m, d=6, seed=0):
    """Products are exact whatever their order, and many are equal."""
    rng = np.random.default_rng(seed)
    return rng.integers(-2, 3, (n, d)).astype(np.float32), rng.integers(-2, 3, (m, d)).astype(np.float32)


@pytest.mark.parametrize("working_memory", [1024, 1, 0.05])
@pytest.mark.parametrize(
    ("n", "m", "k"),
    [(7, 30, 30), (7, 30, 5), (5, 9000, 1), (5, 20_000, 9000), (20, 20_000, 200), (1, 1, 1)],
)
def test_equals_a_stable_sort_with_ties_and_in_blocks(working_memory, n, m, k):
    queries, bank = whole_numbers(n, m)
    with config_context(working_memory=working_memory):
        found = most_similar(queries, bank, k)
        values = largest_products(queries, bank, k)
    np.testing.assert_array_equal(np.sort(values)[:, ::-1], found[0])
    for ours, expected in zip(found, by_sorting(queries, bank, k)):
        np.testing.assert_array_equal(ours, expected)


@pytest.mark.parametrize("order", ["ascending", "descending", "constant"])
def test_banks_in_the_worst_order(order):
    line = {"ascending": np.arange(30_000), "descending": -np.arange(30_000), "constant": np.ones(30_000)}[order]
    queries, bank = np.array([[1.0], [2.0]]), line[:, None].astype(float)
    found = by_sorting(queries, bank, 7)
    for ours, expected in zip(most_similar(queries, bank, 7), found):
        np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(np.sort(largest_products(queries, bank, 7))[:, ::-1], found[0])


def test_one_query_with_many_candidates_among_many_with_few():
    rng = np.random.default_rng(0)
    bank = np.eye(3)[rng.integers(0, 2, 20_000)] * rng.permutation(20_000)[:, None]
    bank[:, 2] = np.arange(20_000)
    queries = np.vstack([np.eye(3)[rng.integers(0, 2, 99)], [[0.0, 0.0, 1.0]]])
    found = by_sorting(queries, bank, 40)
    for ours, expected in zip(most_similar(queries, bank, 40), found):
        np.testing.assert_array_equal(ours, expected)
    np.testing.assert_array_equal(np.sort(largest_products(queries, bank, 40))[:, ::-1], found[0])


def test_equals_scikit_learn():
    rng = np.random.default_rng(0)
    queries, bank = unit_rows(rng.normal(size=(40, 16))), unit_rows(rng.normal(size=(9000, 16)))
    distances, expected = NearestNeighbors(metric="cosine", algorithm="brute").fit(bank).kneighbors(queries, 12)
    similarities, indices = most_similar(queries, bank, 12)
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, 1.0 - distances, atol=1e-12)


def test_types_follow_the_queries():
    queries, bank = whole_numbers(3, 50)
    for dtype in (np.float32, np.float64):
        similarities, indices = most_similar(queries.astype(dtype), bank, 4)
        assert similarities.dtype == dtype
        assert indices.dtype == np.intp
        assert largest_products(queries.astype(dtype), bank, 4).dtype == dtype


def test_no_queries():
    similarities, indices = most_similar(np.empty((0, 3)), np.eye(3), 2)
    assert similarities.shape == indices.shape == (0, 2)
    assert largest_products(np.empty((0, 3)), np.eye(3), 2).shape == (0, 2)


@pytest.mark.parametrize("search", [most_similar, largest_products])
@pytest.mark.parametrize("order", ["random", "ascending"])
def test_memory_stays_within_its_limit(search, order):
    rng = np.random.default_rng(0)
    queries, bank = np.abs(rng.normal(size=(1000, 4))), rng.normal(size=(40_000, 4))
    if order == "ascending":  # every tile is better than all before
        bank = np.linspace(0.0, 1.0, 40_000)[:, None] * np.ones(4)
    with config_context(working_memory=4):
        tracemalloc.start()
        try:
            search(queries, bank, 5)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 5 * 2**20  # the whole matrix: 305 MiB


@pytest.mark.parametrize("working_memory", [1024, 1, 0.0001])
@pytest.mark.parametrize(("n_rows", "n_columns"), [(1, 1), (1000, 20_000), (3, 8193), (5000, 3)])
def test_tiles_cover_the_matrix_once(working_memory, n_rows, n_columns):
    seen = 0
    with config_context(working_memory=working_memory):
        for i, (rows, columns) in enumerate(tiles(n_rows, n_columns, 12)):
            size = (rows.stop - rows.start) * (columns.stop - columns.start)
            assert size * 12 <= max(12, working_memory * 2**20)
            seen += size
            if i > 20_000:  # a tile of 8 entries each
                return
    assert seen == n_rows * n_columns
