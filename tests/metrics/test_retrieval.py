"""Retrieval measures against literal loops, scikit-learn and the figures of real pairs."""

from __future__ import annotations

from math import comb

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from skclip.metrics import retrieval_average_precision, retrieval_recall


def world(n_queries=40, n_items=60, decimals=None, seed=0):
    rng = np.random.default_rng(seed)
    relevant = rng.random((n_queries, n_items)) < 0.05
    relevant[np.arange(n_queries), rng.integers(0, n_items, n_queries)] = True
    similarity = rng.normal(size=(n_queries, n_items)) + relevant
    return (similarity if decimals is None else similarity.round(decimals)), relevant


def loop_recall(similarity, relevant, k, ties):
    found = []
    for row, mine in zip(similarity, relevant):
        best = max(row[mine])
        ahead = sum(row > best)
        own, other = sum((row == best) & mine), sum((row == best) & ~mine)
        free = k - ahead
        if free <= 0:
            found.append(0.0)
        elif ties == "worst":
            found.append(float(free > other))
        else:
            found.append(1 - comb(other, min(free, own + other)) / comb(own + other, min(free, own + other)))
    return np.mean(found)


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("ties", ["expected", "worst"])
def test_recall_is_the_literal_loop(decimals, ties):
    similarity, relevant = world(decimals=decimals)
    depths = [1, 2, 5, 10, 60]
    expected = [loop_recall(similarity, relevant, k, ties) for k in depths]
    np.testing.assert_allclose(retrieval_recall(similarity, relevant, k=depths, ties=ties), expected, atol=1e-10)


def test_expected_ties_are_the_mean_over_orders():
    similarity, relevant = world(decimals=0)
    rng = np.random.default_rng(5)
    drawn = [retrieval_recall(similarity + 1e-6 * rng.random(similarity.shape), relevant, k=(1, 5)) for _ in range(400)]
    np.testing.assert_allclose(retrieval_recall(similarity, relevant, k=(1, 5)), np.mean(drawn, axis=0), atol=0.02)


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_average_precision_is_that_of_scikit_learn(decimals):
    similarity, relevant = world(decimals=decimals)
    each = [average_precision_score(mine, row) for row, mine in zip(similarity, relevant)]
    assert retrieval_average_precision(similarity, relevant) == pytest.approx(np.mean(each), abs=1e-12)
    weights = np.arange(40)
    found = retrieval_average_precision(similarity, relevant, sample_weight=weights)
    assert found == pytest.approx(np.average(each, weights=weights), abs=1e-12)


def test_blocks_change_nothing():
    from sklearn import config_context

    similarity, relevant = world(decimals=1)
    expected = retrieval_average_precision(similarity, relevant), retrieval_recall(similarity, relevant)
    with config_context(working_memory=0.004):
        assert (retrieval_average_precision(similarity, relevant), retrieval_recall(similarity, relevant)) == expected


def test_the_ways_to_say_what_is_relevant():
    similarity, relevant = world()
    lists = [np.flatnonzero(mine) for mine in relevant]
    for told in (lists, [mine.tolist() for mine in lists], relevant.tolist(), [mine[::-1] for mine in lists]):
        assert retrieval_recall(similarity, told) == retrieval_recall(similarity, relevant)
        assert retrieval_average_precision(similarity, told) == retrieval_average_precision(similarity, relevant)
    one = np.random.default_rng(0).integers(0, 60, 40)
    expected = retrieval_recall(similarity, one[:, None] == np.arange(60), k=(1, 5))
    for told in (one, one.tolist(), one[:, None]):
        np.testing.assert_array_equal(retrieval_recall(similarity, told, k=(1, 5)), expected)
    assert retrieval_recall(similarity.tolist(), one) == expected[0]


def test_limits():
    similarity, relevant = world()
    recalls = retrieval_recall(similarity, relevant, k=range(1, 61))
    assert (np.diff(recalls) >= -1e-12).all()
    assert recalls[-1] == 1.0
    own = np.arange(30)
    assert retrieval_recall(np.eye(30), own) == 1.0
    assert retrieval_average_precision(np.eye(30), own) == 1.0
    # a constant similarity gets what guessing gets
    flat = np.zeros((30, 30))
    np.testing.assert_allclose(retrieval_recall(flat, own, k=(1, 6, 30)), [1 / 30, 6 / 30, 1.0])
    np.testing.assert_allclose(retrieval_recall(flat, own, k=(1, 6, 30), ties="worst"), [0.0, 0.0, 1.0])
    assert retrieval_recall(flat, own, k=100) == 1.0


@pytest.mark.parametrize("transform", [np.exp, np.arctan, lambda s: 5 * s - 2])
def test_increasing_maps_change_nothing(transform):
    similarity, relevant = world(decimals=1)
    for ties in ("expected", "worst"):
        assert retrieval_recall(transform(similarity), relevant, k=3, ties=ties) == retrieval_recall(
            similarity, relevant, k=3, ties=ties
        )
    found = retrieval_average_precision(transform(similarity), relevant)
    assert found == retrieval_average_precision(similarity, relevant)


def test_both_directions_of_pairs_are_transposes():
    rng = np.random.default_rng(0)
    similarity = rng.normal(size=(25, 25)) + 2 * np.eye(25)
    symmetric = similarity + similarity.T
    own = np.arange(25)
    assert retrieval_recall(symmetric, own) == retrieval_recall(symmetric.T, own)
    hits = [np.argmax(similarity[:, j]) == j for j in range(25)]
    assert retrieval_recall(similarity.T, own) == pytest.approx(np.mean(hits))


def test_weights_are_repeats():
    similarity, relevant = world(decimals=1)
    weights = np.random.default_rng(1).integers(0, 3, 40)
    many = np.repeat(np.arange(40), weights)
    for measure in (retrieval_recall, retrieval_average_precision):
        assert measure(similarity, relevant, sample_weight=weights) == pytest.approx(
            measure(similarity[many], relevant[many])
        )


def test_bad_input():
    similarity, relevant = world()
    none = relevant.copy()
    none[7] = False
    for measure in (retrieval_recall, retrieval_average_precision):
        with pytest.raises(ValueError, match="Nothing is relevant to query 7"):
            measure(similarity, none)
        with pytest.raises(ValueError, match="Nothing is relevant to query 1"):
            measure(similarity[:2], [[3], []])
        with pytest.raises(ValueError, match="names item 60 for query 3, but similarity has 60 columns"):
            measure(similarity, np.where(np.arange(40) == 3, 60, 0))
        with pytest.raises(ValueError, match="names item -1 for query 0"):
            measure(similarity, np.full(40, -1))
        with pytest.raises(ValueError, match="relevant tells of 39 queries, but similarity has 40 rows"):
            measure(similarity, relevant[:-1])
        with pytest.raises(ValueError, match=r"relevant has shape \(40, 59\)"):
            measure(similarity, relevant[:, :-1])
        with pytest.raises(ValueError, match="positions of items, whole numbers"):
            measure(similarity, np.full(40, 0.5))
        broken = similarity.copy()
        broken[2, 5] = np.nan
        with pytest.raises(ValueError, match=r"similarity\[2, 5\] is nan"):
            measure(broken, relevant)
    with pytest.raises(ValueError, match="k must be a positive whole number, got 0"):
        retrieval_recall(similarity, relevant, k=[1, 0])
    with pytest.raises(ValueError, match="ties must be one of"):
        retrieval_recall(similarity, relevant, ties="best")


@pytest.mark.realdata
def test_captions_of_real_photographs(realdata):
    path = realdata / "clip-vit-b-32-openai" / "flickr8k_pairs.npz"
    if not path.is_file():
        pytest.skip("no flickr8k_pairs.npz")
    with np.load(path) as pairs:
        images, texts = pairs["images"].astype(np.float32), pairs["texts"].astype(np.float32)
    similarity = images @ texts.T
    of_text = np.arange(len(texts)) // 5
    of_image = np.arange(len(texts)).reshape(-1, 5)
    assert 100 * retrieval_recall(similarity.T, of_text) == pytest.approx(83.2, abs=0.05)
    assert 100 * retrieval_recall(similarity, of_image) == pytest.approx(93.0, abs=0.05)
    for part, relevant in ((similarity.T, of_text), (similarity, of_image)):
        assert retrieval_recall(part, relevant, k=5) > 0.95
        assert 0.8 < retrieval_average_precision(part, relevant) < 1.0
