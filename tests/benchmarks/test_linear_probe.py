"""Time of the linear probe beside scikit-learn's logistic regression, at equal accuracy of the probabilities."""

from __future__ import annotations

import time
import warnings

import numpy as np
import pytest
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression

from skclip.adapters import LinearProbeClassifier

N_ROWS, N_NEW, N_FEATURES, N_CLASSES = 20_000, 2000, 512, 100
CLOSE = 1e-4


def clip_like_rows(n_rows, n_features=N_FEATURES, n_classes=N_CLASSES, *, n_groups=20, seed=0):
    """Unit rows like those of a real ViT-B/32: a common direction of length 0.73, as much variance between the classes
    as within, spectra that fall as measured, classes in groups, rows of different noise."""
    rng = np.random.default_rng(seed)
    place = np.arange(n_features)
    noise = (place + 6.0) ** -0.9 * np.exp(-place / 250.0)
    noise = np.sqrt(0.25 * noise / noise.sum())
    groups = rng.normal(size=(n_groups, n_features)) * noise**1.3
    classes = rng.normal(size=(n_classes, n_features)) * noise**1.3
    groups *= np.sqrt(0.2 / (groups**2).sum(axis=1).mean())
    classes *= np.sqrt(0.01 / (classes**2).sum(axis=1).mean())
    basis = np.linalg.qr(rng.normal(size=(n_features, n_features)))[0]
    gap = rng.normal(size=n_features)
    gap *= 0.73 / np.linalg.norm(gap)
    y = rng.permutation(np.arange(n_rows) % n_classes)
    X = rng.standard_normal((n_rows, n_features)) * noise * rng.gamma(4.0, 0.25, size=(n_rows, 1))
    X = (X + groups[y % n_groups] + classes[y]) @ basis.T + gap
    return (X / np.linalg.norm(X, axis=1, keepdims=True)).astype(np.float32), y


@pytest.fixture(scope="module")
def rows():
    return clip_like_rows(N_ROWS + N_NEW)


def fit_seconds(make, X, y):
    start = time.perf_counter(), time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        clf = make().fit(X[:N_ROWS], y[:N_ROWS])
    return clf, time.perf_counter() - start[0], time.process_time() - start[1]


def loosest(make, tolerances, candidates, y, expected):
    """The first kind of rows and the loosest tolerance whose probabilities are close enough."""
    for X in candidates:
        for tol in tolerances:
            clf = fit_seconds(lambda tol=tol: make(tol), X, y)[0]
            if np.abs(clf.predict_proba(X) - expected).max() < CLOSE:
                return X, tol
    pytest.fail(f"no tolerance of {tolerances} brings the probabilities within {CLOSE}")


@pytest.mark.slow
@pytest.mark.parametrize("C", [1.0, 100.0])
def test_fit_20000x512_of_100_classes(benchmark, rows, C):
    X, y = rows
    double = X.astype(np.float64)

    def ours(tol):
        return LinearProbeClassifier(C, tol=tol)

    def theirs(tol):
        return LogisticRegression(C=C, tol=tol, max_iter=10_000)

    expected = fit_seconds(lambda: theirs(1e-9), double, y)[0].predict_proba(double)
    X_ours, tol_ours = loosest(ours, [3e-4, 1e-4, 3e-5, 1e-5, 5e-6, 3e-6], [X, double], y, expected)
    # in float32 scipy's L-BFGS may stop before it is close
    X_theirs, tol_theirs = loosest(theirs, [1e-4, 1e-5, 3e-6, 1e-6, 3e-7, 1e-7, 3e-8], [X, double], y, expected)

    times = {"ours": [], "theirs": []}
    for _ in range(3):
        times["theirs"].append(fit_seconds(lambda: theirs(tol_theirs), X_theirs, y))
        for _ in range(2):
            times["ours"].append(fit_seconds(lambda: ours(tol_ours), X_ours, y))
    benchmark.pedantic(lambda: ours(tol_ours).fit(X_ours[:N_ROWS], y[:N_ROWS]), rounds=1)
    wall, cpu = ({k: float(np.median([t[i] for t in v])) for k, v in times.items()} for i in (1, 2))
    benchmark.extra_info.update({"wall": wall["theirs"] / wall["ours"], "cpu": cpu["theirs"] / cpu["ours"]})
    print(
        f"\nC={C:g}: ours tol={tol_ours:g} {X_ours.dtype} {times['ours'][0][0].n_iter_} iterations "
        f"{wall['ours']:.2f} s, "
        f"scikit-learn tol={tol_theirs:g} {X_theirs.dtype} {times['theirs'][0][0].n_iter_[0]} iterations "
        f"{wall['theirs']:.2f} s: {wall['theirs'] / wall['ours']:.1f} times (CPU {cpu['theirs'] / cpu['ours']:.1f})"
    )
    assert wall["theirs"] > wall["ours"]
