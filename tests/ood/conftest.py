"""Worlds that the detectors are tried in."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.utils import Bunch

from skclip._backbones._open_clip import import_open_clip
from skclip.utils._arrays import unit_rows


def _noise_world(seed=0, *, anisotropic, n_known=20, n_unknown=10, d=64, shots=16, n_test=100):
    """Directions of 30 classes, of which 20 are known; noise that all share, and a modality gap to the text."""
    rng = np.random.default_rng(seed)
    n_classes = n_known + n_unknown
    if anisotropic:
        common, gap, signal = rng.normal(size=d), rng.normal(size=d), rng.normal(size=(n_classes, d))
        noise = np.linalg.qr(rng.normal(size=(d, d)))[0] * np.geomspace(5.0, 0.2, d)
        centres = 2.0 * common + 0.8 * signal
        text = unit_rows(common + gap + 0.35 * (signal + 0.8 * rng.normal(size=signal.shape)))
    else:
        centres = unit_rows(0.5 * rng.normal(size=(n_classes, d)) + rng.normal(size=d))
        noise = 0.08 * np.eye(d)
        text = unit_rows(centres + 0.06 * rng.normal(size=centres.shape))

    def draw(labels):
        return unit_rows(centres[labels] + rng.normal(size=(len(labels), d)) @ noise.T)

    y = np.repeat(np.arange(n_known), shots)
    return Bunch(
        X=draw(y),
        y=y,
        X_in=draw(np.repeat(np.arange(n_known), n_test // 5)),
        X_out=draw(np.repeat(np.arange(n_known, n_classes), n_test // 2)),
        text=text[:n_known],
    )


def _cluster_world(seed=0, *, n_classes=5, n_clusters=6, d=64, noise=0.05, shots=60, unknown="clusters"):
    """Classes of several tight clusters each. The unknown are 20 clusters of their own (`unknown` "clusters"), or lie
    at the re-normalised means of the classes ("means"), where no picture of a class is."""
    rng = np.random.default_rng(seed)
    clusters = unit_rows(rng.normal(size=(n_classes * n_clusters + 20, d)))
    known = clusters[: n_classes * n_clusters].reshape(n_classes, n_clusters, d)

    def around(centres):
        return unit_rows(centres + noise * rng.normal(size=centres.shape))

    def draw(labels):
        return around(known[labels, rng.integers(0, n_clusters, len(labels))])

    y = np.repeat(np.arange(n_classes), shots)
    X = draw(y)
    text = unit_rows(np.stack([X[y == k].mean(axis=0) for k in range(n_classes)]))
    others = clusters[n_classes * n_clusters :] if unknown == "clusters" else unit_rows(known.mean(axis=1))
    X_out = around(np.repeat(others, 1000 // len(others) // 2, axis=0))
    return Bunch(X=X, y=y, X_in=draw(np.repeat(np.arange(n_classes), 80)), X_out=X_out, text=text)


@pytest.fixture(scope="session")
def anisotropic():
    """``anisotropic(seed)``: shared anisotropic noise and noisy text; covariances tell the unknown, logits hardly."""
    return lambda seed=0: _noise_world(seed, anisotropic=True)


@pytest.fixture(scope="session")
def isotropic():
    """``isotropic(seed)``: noise 0.08 and good text; every score is clearly above chance."""
    return lambda seed=0: _noise_world(seed, anisotropic=False)


@pytest.fixture(scope="session")
def cluster_means():
    """``cluster_means(seed)``: unknown pictures at the class means of multi-cluster classes; logits fail."""
    return lambda seed=0: _cluster_world(seed, unknown="means")


@pytest.fixture(scope="session")
def clusters():
    """``clusters(seed)``: multi-cluster classes and unknown clusters of their own."""
    return lambda seed=0: _cluster_world(seed)


@pytest.fixture(scope="session")
def pytorch_ood():
    """Its detectors, which give outliers the larger score; declared first is what torchvision lacks."""
    import_open_clip()
    return pytest.importorskip("pytorch_ood.detector")
