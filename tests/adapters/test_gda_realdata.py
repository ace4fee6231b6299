"""Reference figures of a real CLIP on real data sets."""

from __future__ import annotations

import warnings

import numpy as np
import pytest

from skclip.adapters import GDAClassifier
from skclip.utils import SkclipWarning

pytestmark = pytest.mark.realdata

MEASURED = {
    "caltech101": {2: 84.1, 4: 90.7, 8: 91.6, 16: 93.9},
    "oxford_flowers": {2: 79.4, 4: 90.9, 8: 94.6, 16: 96.2},
}


@pytest.fixture(scope="module")
def imagenet(real_features):
    return real_features("imagenet")


def accuracy(clf, data, test):
    return 100 * clf.score(data[f"X_train_{test}"], data[f"y_train_{test}"])


@pytest.mark.parametrize("name", MEASURED)
def test_gda_without_text(real_features, name):
    data = real_features(name)
    for shots, expected in MEASURED[name].items():
        clf = GDAClassifier().fit(data[f"X_train_{shots}"], data[f"y_train_{shots}"])
        assert 100 * clf.score(data["X_test"], data["y_test"]) == pytest.approx(expected, abs=0.1)


def test_alphas_on_imagenet(imagenet):
    X, y = imagenet["X_train_4"], imagenet["y_train_4"]
    assert accuracy(GDAClassifier().fit(X, y), imagenet, 2) == pytest.approx(53.9, abs=0.1)
    alphas = {0: 61.05, 0.001: 61.2, 0.01: 62.0, 0.03: 63.3, 0.1: 64.45, 0.3: 63.9, 1: 60.6}
    clf = GDAClassifier(imagenet["text"]).fit(X, y)
    for alpha, expected in alphas.items():
        clf.alpha_ = alpha
        assert accuracy(clf, imagenet, 2) == pytest.approx(expected, abs=0.1)


@pytest.mark.parametrize(("train", "test", "at_least"), [(4, 2, 63.95), (2, 4, 62.0), (1, 2, 61.5), (1, 4, 60.8)])
def test_alpha_cv_on_imagenet(imagenet, train, test, at_least):
    X, y = imagenet[f"X_train_{train}"], imagenet[f"y_train_{train}"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkclipWarning)  # of single pictures
        both = GDAClassifier(imagenet["text"], alpha="cv").fit(X, y)
    text = GDAClassifier(imagenet["text"], alpha=0).fit(X, y)
    alone = GDAClassifier().fit(X, y)
    reached = accuracy(both, imagenet, test)
    assert reached >= at_least
    assert reached >= max(accuracy(text, imagenet, test), accuracy(alone, imagenet, test))


def test_text_of_another_tower_warns(imagenet):
    rng = np.random.default_rng(0)
    rotation = np.linalg.qr(rng.normal(size=(512, 512)))[0].astype(np.float32)
    with pytest.warns(SkclipWarning, match=r"Zero-shot accuracy on 2000 training rows is 0\.00"):
        GDAClassifier(imagenet["text"] @ rotation).fit(imagenet["X_train_2"], imagenet["y_train_2"])
