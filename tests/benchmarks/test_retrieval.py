"""Time of an exact search, beside scikit-learn's and, where it is installed, faiss'."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from skclip.retrieval import CLIPRetriever

N_ROWS, N_FEATURES, N_QUERIES, K = 200_000, 512, 1000, 10


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.fixture(scope="module")
def arrays():
    rng = np.random.default_rng(0)
    bank = rng.standard_normal((N_ROWS, N_FEATURES), dtype=np.float32)
    queries = bank[:N_QUERIES] + rng.standard_normal((N_QUERIES, N_FEATURES), dtype=np.float32)
    return bank, queries


@pytest.mark.slow
def test_search_200000x512_for_1000_queries(benchmark, arrays):
    bank, queries = arrays
    exact = CLIPRetriever().fit(bank)
    calls = {
        "product": lambda: max(float((exact.X_fit_[i : i + 8192] @ queries.T)[0, 0]) for i in range(0, N_ROWS, 8192)),
        "skclip": lambda: exact.kneighbors(queries, K),
    }
    try:
        import faiss  # noqa: F401

        flat = CLIPRetriever(backend="faiss").fit(bank)
        calls["faiss"] = lambda: flat.kneighbors(queries, K)
    except ImportError:
        print("\nfaiss is not installed")
    times = {name: [] for name in [*calls, "sklearn"]}
    for _ in range(3):
        for name, call in calls.items():
            times[name].append(seconds(call))
    nearest = NearestNeighbors(metric="cosine", algorithm="brute").fit(exact.X_fit_)
    times["sklearn"].append(seconds(lambda: nearest.kneighbors(queries, K)))
    times["skclip"].append(benchmark.pedantic(lambda: seconds(calls["skclip"]), rounds=1))
    median = {name: float(np.median(values)) for name, values in times.items()}
    ratios = {f"{name} over skclip": value / median["skclip"] for name, value in median.items() if name != "skclip"}
    benchmark.extra_info.update(ratios)
    print(f"\nsearch {N_ROWS}x{N_FEATURES}, {N_QUERIES} queries, k={K}: " + ", ".join(
        f"{name} {value:.2f} s" for name, value in median.items()
    ))  # fmt: skip
    assert median["sklearn"] > median["skclip"]
    assert median["skclip"] < 1.5 * median["product"]
    if "faiss" in median:
        assert median["skclip"] < 1.5 * median["faiss"]


def test_memory_of_a_search(arrays):
    bank, queries = arrays
    retriever = CLIPRetriever().fit(bank[:50_000])
    tracemalloc.start()
    try:
        retriever.kneighbors(queries, K)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 60e6  # the whole matrix of similarities: 200 MB


@pytest.mark.slow
def test_opening_a_saved_collection_reads_little_of_it(arrays, tmp_path):
    CLIPRetriever().fit(arrays[0]).save(tmp_path)
    (rows,) = tmp_path.glob("skclip-rows-*.npy")
    pairs = [(seconds(lambda: CLIPRetriever.load(tmp_path)), seconds(lambda: np.load(rows))) for _ in range(5)]
    opening, reading = np.median(pairs, axis=0)
    print(f"\nopening 400 MB: {1000 * opening:.1f} ms, reading them: {1000 * reading:.0f} ms")
    assert opening < 0.5 * reading
