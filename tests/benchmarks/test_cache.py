"""Time and memory of cache votes, beside the formula with a one-hot matrix that a user would write."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from sklearn import config_context

from skclip.adapters import TipAdapterClassifier

N_KEYS, N_FEATURES, N_CLASSES, N_QUERIES = 64_000, 512, 1000, 1000


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def pictures(n, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((n, N_FEATURES), dtype=np.float32)
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return X, rng.permutation(np.arange(n) % N_CLASSES)


def test_predict_1000_of_64000x512_keys(benchmark):
    X, y = pictures(N_KEYS)
    queries = pictures(N_QUERIES, seed=1)[0]
    clf = TipAdapterClassifier(beta=5.5).fit(X, y)
    one_hot = np.eye(N_CLASSES, dtype=np.float32)[y]

    def plain():
        return np.exp(-5.5 * (1 - queries @ X.T)) @ one_hot

    np.testing.assert_allclose(clf.logits(queries), plain(), rtol=1e-3)
    times = {"product": [], "tip-adapter": [], "plain": []}
    for _ in range(5):
        times["product"].append(seconds(lambda: queries @ X.T))
        times["tip-adapter"].append(seconds(lambda: clf.logits(queries)))
        times["plain"].append(seconds(plain))
    benchmark.pedantic(lambda: clf.logits(queries), rounds=1)
    median = {name: float(np.median(values)) for name, values in times.items()}
    over_product, under_plain = median["tip-adapter"] / median["product"], median["plain"] / median["tip-adapter"]
    benchmark.extra_info.update({"over the product": over_product, "plain over": under_plain})
    print(
        f"\n1000 queries, 64000x512 keys, 1000 classes: product {median['product']:.3f} s, votes "
        f"{median['tip-adapter']:.3f} s ({over_product:.2f} products), one-hot formula {median['plain']:.3f} s "
        f"({under_plain:.1f} times the votes)"
    )
    assert under_plain >= 1.5


@pytest.mark.slow
def test_memory_of_a_million_keys():
    """The affinities of 2000 queries would take 8 GB, a one-hot matrix 4 GB."""
    rng = np.random.default_rng(0)
    X = np.empty((1_000_000, N_FEATURES), dtype=np.float32)
    for part in np.split(X, 20):
        part[:] = rng.standard_normal(part.shape, dtype=np.float32)
    clf = TipAdapterClassifier().fit(X, rng.integers(0, N_CLASSES, len(X)))
    queries = X[:2000].copy()
    del X
    with config_context(working_memory=256):
        tracemalloc.start()
        try:
            clf.predict(queries)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak <= 256 * 2**20
