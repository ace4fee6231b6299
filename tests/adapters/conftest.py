"""Worlds that several adapters are tried in."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.base import BaseEstimator
from sklearn.utils import Bunch

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip.datasets import make_picture_world
from skclip.utils._arrays import unit_rows


class Text(BaseEstimator):
    """What adapters read of a text-side estimator."""

    def __init__(self, prototypes=None, classes=None, logit_scale=None, new=None):
        self.prototypes = prototypes
        self.classes = classes
        self.logit_scale = logit_scale
        self.new = new

    def fit(self, X=None, y=None):
        self.classes_, order = np.unique(self.classes, return_index=True)
        self.prototypes_ = unit_rows(np.asarray(self.prototypes))[order].astype(np.float32)
        self.logit_scale_ = 100.0 if self.logit_scale is None else self.logit_scale
        return self

    def with_classes(self, class_names):
        labels = list(class_names)
        return Text([self.new[label] for label in labels], labels, new=self.new).fit()


@pytest.fixture(scope="session")
def text_estimator():
    """The class `Text`: a text-side estimator of given prototypes."""
    return Text


def _anisotropic_world(shots=16, n_classes=20, d=64, n_test=2000, seed=0):
    rng = np.random.default_rng(seed)
    common, gap = rng.normal(size=d), rng.normal(size=d)
    signal = rng.normal(size=(n_classes, d))
    noise = np.linalg.qr(rng.normal(size=(d, d)))[0] * np.geomspace(5.0, 0.2, d)
    text = unit_rows(common + gap + 0.35 * (signal + 0.8 * rng.normal(size=signal.shape)))

    def draw(y):
        return 2 * common + 0.8 * signal[y] + rng.normal(size=(len(y), d)) @ noise.T

    y, y_test = np.repeat(np.arange(n_classes), shots), rng.integers(0, n_classes, n_test)
    return draw(y), y, draw(y_test), y_test, text


@pytest.fixture(scope="session")
def anisotropic_world():
    """``anisotropic_world(shots, n_classes, d, n_test, seed) -> X, y, X_test, y_test, text``: classes that differ
    least where the noise is largest, and noisy text beyond a modality gap. Zero-shot accuracy about 0.5, nearest class
    mean 0.4."""
    return _anisotropic_world


@pytest.fixture(scope="session")
def sketches():
    """Features of outline drawings by ``skclip-tiny``, which has seen none: X, y, X_test, y_test and class text.

    64 classes, at least 16 training rows each; zero-shot accuracy about 0.3, so that labels help."""
    model = "skclip-tiny"
    pool = make_picture_world(1800, held_out="include", styles=["sketch"], random_state=101)
    test = make_picture_world(1000, held_out="include", styles=["sketch"], random_state=102)
    features = CLIPFeatures(model)
    text = ZeroShotClassifier(
        model, class_names={name: name for name in pool.target_names}, templates="a photo of a {}"
    )
    return Bunch(
        X=features.transform(pool.images),
        y=pool.target,
        X_test=features.transform(test.images),
        y_test=test.target,
        text=text.fit(),
    )
