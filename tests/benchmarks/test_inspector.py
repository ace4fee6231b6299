"""One picture and a thousand against 10,000 exemplars, beside scikit-learn's nearest neighbour in cosine distance."""

from __future__ import annotations

import time

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from skclip.adapters import FewShotInspector

N_EXEMPLARS, N_FEATURES = 10_000, 512


def seconds(call):
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N_EXEMPLARS, N_FEATURES), dtype=np.float32) + 1
    X /= np.linalg.norm(X, axis=1, keepdims=True)
    y = np.where(np.arange(N_EXEMPLARS) % 10 == 0, "bad", "good")
    queries = rng.standard_normal((1000, N_FEATURES), dtype=np.float32) + 1
    classifiers = {
        "inspector": FewShotInspector().fit(X, y),
        "inspector, 5 neighbours": FewShotInspector(5).fit(X, y),
        "inspector, balanced": FewShotInspector(balanced=True).fit(X, y),
        "scikit-learn": KNeighborsClassifier(1, metric="cosine").fit(X, y),
    }
    return classifiers, queries


@pytest.mark.parametrize(("n_queries", "rounds"), [(1, 31), (1000, 5)])
def test_predict_against_10000x512(n_queries, rounds, benchmark, fitted):
    classifiers, queries = fitted
    rows = queries[:n_queries]
    times = {name: [] for name in classifiers}
    for _ in range(rounds):
        for name, clf in classifiers.items():
            times[name].append(seconds(lambda clf=clf: clf.predict(rows)))
    benchmark.pedantic(lambda: classifiers["inspector"].predict(rows), rounds=1)
    median = {name: float(np.median(values)) for name, values in times.items()}
    ratio = median["scikit-learn"] / median["inspector"]
    benchmark.extra_info.update({"scikit-learn over inspector": ratio})
    print(f"\n{n_queries} of 10000x512: " + ", ".join(f"{name} {1e3 * t:.1f} ms" for name, t in median.items()))
    np.testing.assert_array_equal(classifiers["inspector"].predict(rows), classifiers["scikit-learn"].predict(rows))
    assert ratio > (3.0 if n_queries == 1 else 1.0)


def test_explain_one_picture_of_10000x512(benchmark, fitted):
    classifiers, queries = fitted
    clf = classifiers["inspector"]
    clf.explain(queries[:1])
    median = float(np.median([seconds(lambda: clf.explain(queries[:1])) for _ in range(21)]))
    benchmark.pedantic(lambda: clf.explain(queries[:1]), rounds=1)
    print(f"\nexplain 1 of 10000x512: {1e3 * median:.1f} ms")
    assert median < 10 * min(seconds(lambda: queries[:1] @ clf.X_fit_.T) for _ in range(21)) + 0.02
