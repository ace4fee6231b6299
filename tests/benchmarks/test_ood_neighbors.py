"""Time and memory of scoring by the k-th nearest row, beside scikit-learn and, where it is installed, faiss."""

from __future__ import annotations

import os
import time
import tracemalloc

import numpy as np
import pytest
from sklearn import config_context
from sklearn.neighbors import NearestNeighbors

from skclip.ood import KNNDetector, NNGuideDetector
from skclip.utils._arrays import unit_rows

N_ROWS, N_FEATURES, N_QUERIES, K = 100_000, 512, 2000, 50


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def ratios_of_medians(calls):
    """Time of every other call over that of "skclip", each the median of six interleaved."""
    scores = calls["skclip"]()
    for call in calls.values():
        np.testing.assert_allclose(call(), scores, atol=1e-5)
    times = {name: [] for name in calls}
    for _ in range(6):
        for name, call in calls.items():
            times[name].append(seconds(call))
    median = {name: float(np.median(values)) for name, values in times.items()}
    ratios = {name: value / median["skclip"] for name, value in median.items() if name != "skclip"}
    print(
        f"\nk-th nearest, {N_QUERIES} queries x {N_ROWS} rows x {N_FEATURES}, k={K}, "
        f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores: skclip {median['skclip']:.2f} s, "
        + ", ".join(f"{name} {median[name]:.2f} s ({ratio:.2f} times)" for name, ratio in ratios.items())
    )
    return ratios


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    bank = unit_rows(rng.standard_normal((N_ROWS, N_FEATURES), dtype=np.float32))
    queries = unit_rows(bank[:N_QUERIES] + 0.05 * rng.standard_normal((N_QUERIES, N_FEATURES), dtype=np.float32))
    return bank, queries


@pytest.mark.slow
def test_scores_of_2000_pictures_in_100000x512(benchmark, arrays):
    bank, queries = arrays
    knn = KNNDetector(K, calibration=queries[:100]).fit(bank)
    euclidean = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="euclidean").fit(bank)
    cosine = NearestNeighbors(n_neighbors=K, algorithm="brute", metric="cosine").fit(bank)
    calls = {
        "skclip": lambda: knn.score_samples(queries),
        "sklearn euclidean": lambda: -np.square(euclidean.kneighbors(queries)[0][:, -1]),
        "sklearn cosine": lambda: -2.0 * cosine.kneighbors(queries)[0][:, -1],
    }
    ratios = ratios_of_medians(calls)
    try:
        import faiss  # not before: with it loaded, scikit-learn has been seen to use one thread instead of two

        index = faiss.IndexFlatIP(N_FEATURES)
        index.add(bank)
        ratios |= ratios_of_medians(
            {"skclip": calls["skclip"], "faiss": lambda: 2.0 * index.search(queries, K)[0][:, -1] - 2.0}
        )
    except ImportError:
        print("faiss is not installed")
    benchmark.extra_info.update(ratios)
    benchmark.pedantic(calls["skclip"], rounds=1)
    assert ratios["sklearn euclidean"] > 1.8
    assert ratios["sklearn cosine"] > 1.8
    assert ratios.get("faiss", 1.0) > 0.95


@pytest.mark.slow
def test_guidance_costs_little_more_than_distance(arrays):
    bank, queries = arrays
    knn = KNNDetector(10, calibration=queries[:100]).fit(bank)
    guide = NNGuideDetector(bank[:100], calibration=queries[:100]).fit(bank)
    pairs = [
        (seconds(lambda: guide.score_samples(queries)), seconds(lambda: knn.score_samples(queries))) for _ in range(5)
    ]
    guided, plain = np.median(pairs, axis=0)
    print(f"\nNNGuide {guided:.2f} s, kNN {plain:.2f} s")
    assert guided < 1.5 * plain


def test_memory_of_scores(arrays):
    bank, queries = arrays
    detector = KNNDetector(K, calibration=queries[:10]).fit(bank[:20_000])
    with config_context(working_memory=16):
        tracemalloc.start()
        try:
            detector.score_samples(queries)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    print(f"\npeak {peak / 2**20:.0f} MiB")
    assert peak < 20 * 2**20  # the whole matrix of similarities: 153 MiB
