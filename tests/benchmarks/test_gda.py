"""Time and memory of the shared-covariance classifier, beside a matrix product and scikit-learn's own."""

from __future__ import annotations

import time
import tracemalloc

import numpy as np
import pytest
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from skclip.adapters import GDAClassifier

N_ROWS, N_FEATURES, N_CLASSES = 60_000, 512, 1000


def gaussian_classes(n_rows, n_features, n_classes, *, spread, seed=0):
    """Unit rows of classes with one anisotropic noise, and balanced labels."""
    rng = np.random.default_rng(seed)
    scales = np.geomspace(1.0, 0.1, n_features).astype(np.float32)
    means = rng.standard_normal((n_classes, n_features), dtype=np.float32) * (spread * scales)
    y = rng.permutation(np.arange(n_rows) % n_classes)
    X = rng.standard_normal((n_rows, n_features), dtype=np.float32)
    X *= scales
    X += means[y]
    X[:, 0] += 8.0  # features of one model share a direction
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    return X, y


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.fixture(scope="module")
def rows():
    return gaussian_classes(N_ROWS, N_FEATURES, N_CLASSES, spread=0.14)


def test_fit_60000x512_of_1000_classes(benchmark, rows):
    X, y = rows
    rho = N_FEATURES / (N_ROWS - 1 + N_FEATURES)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=rho, priors=np.full(N_CLASSES, 1.0 / N_CLASSES))
    times = {"product": [], "gda": [], "lda": []}
    X.T @ X  # the first product starts the threads
    for _ in range(3):
        times["lda"].append(seconds(lambda: lda.fit(X, y)))
        for _ in range(5):
            times["product"].append(seconds(lambda: X.T @ X))
            times["gda"].append(seconds(lambda: GDAClassifier().fit(X, y)))
    benchmark.pedantic(lambda: GDAClassifier().fit(X, y), rounds=1)
    median = {name: float(np.median(values)) for name, values in times.items()}
    over_product, under_lda = median["gda"] / median["product"], median["lda"] / median["gda"]
    benchmark.extra_info.update({"gda over X.T @ X": over_product, "lda over gda": under_lda})
    print(
        f"\nfit 60000x512, 1000 classes: X.T @ X {median['product']:.3f} s, GDA {median['gda']:.3f} s "
        f"({over_product:.2f} products), LDA {median['lda']:.2f} s ({under_lda:.1f} times GDA)"
    )
    assert over_product <= 2.5
    assert under_lda >= 12.0


@pytest.mark.slow
def test_probabilities_equal_those_of_float64_lda(rows):
    X, y = rows
    rho = N_FEATURES / (N_ROWS - 1 + N_FEATURES)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=rho, priors=np.full(N_CLASSES, 1.0 / N_CLASSES))
    expected = lda.fit(X.astype(np.float64), y).predict_proba(X[:2000].astype(np.float64))
    assert 0.5 <= expected.max(axis=1).mean() <= 0.95
    clf = GDAClassifier(precision_scale="unit").fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X[:2000]), expected, atol=1e-4)


def test_memory_beyond_X(rows):
    X, y = rows
    tracemalloc.start()
    try:
        GDAClassifier().fit(X, y)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak <= 200e6
