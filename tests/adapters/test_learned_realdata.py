"""Adapters that learn by gradient, against what they claim to beat: drawn worlds, drawn pictures, real features."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from skclip.adapters import CLAPClassifier, CLIPAdapterClassifier, LPPlusPlusClassifier
from skclip.utils._arrays import unit_rows

LEARNED = [LPPlusPlusClassifier, CLAPClassifier, CLIPAdapterClassifier]


def nearest_mean(X, y, X_test, y_test):
    means = unit_rows(np.stack([unit_rows(X)[y == k].mean(axis=0) for k in np.unique(y)]))
    return float(np.mean(np.argmax(unit_rows(X_test) @ means.T, axis=1) == y_test))


def plain_world(shots, seed, n_classes=10, d=32):
    """Noisy classes around directions that the text knows roughly: zero-shot accuracy about 0.55."""
    rng = np.random.default_rng(seed)
    common, signal = 2 * rng.normal(size=d), rng.normal(size=(n_classes, d))
    text = common + 0.5 * rng.normal(size=d) + signal + 0.8 * rng.normal(size=signal.shape)
    y, y_test = np.repeat(np.arange(n_classes), shots), rng.integers(0, n_classes, 1000)

    def draw(labels):
        return common + signal[labels] + 2.5 * rng.normal(size=(len(labels), d))

    return draw(y), y, draw(y_test), y_test, text


def test_text_matters_at_one_shot_and_not_at_many():
    """A probe without text loses to those that start at the text while pictures are few, and catches up."""
    makers = {
        "probe": lambda text: LogisticRegression(max_iter=2000),
        "ZS-LP": lambda text: CLAPClassifier(text, penalty=0, logit_scale=15.0, max_iter=40, random_state=0),
        "CLAP": lambda text: CLAPClassifier(text, logit_scale=15.0, max_iter=40, random_state=0),
        "LP++": lambda text: LPPlusPlusClassifier(text, max_iter=100, random_state=0),
    }
    reached = {}
    for shots in (1, 60):
        scores = []
        for seed in range(3):
            X, y, X_test, y_test, text = plain_world(shots, seed)
            fitted = [make(text).fit(unit_rows(X), y) for make in makers.values()]
            scores.append([clf.score(unit_rows(X_test), y_test) for clf in fitted])
        reached[shots] = dict(zip(makers, np.mean(scores, axis=0)))
    probe = reached[1].pop("probe")
    assert min(reached[1].values()) > probe + 0.2
    probe = reached[60].pop("probe")
    assert probe > max(reached[60].values())


@pytest.mark.parametrize("adapter", LEARNED)
@pytest.mark.parametrize("shots", [4, 8, 16])
def test_drawn_pictures_add_to_their_names(adapter, shots, sketches):
    text, rng = sketches.text, np.random.default_rng(shots)
    zero_shot = text.score(sketches.X_test, sketches.y_test)
    reached = []
    for _ in range(3):
        chosen = np.concatenate(
            [rng.choice(np.flatnonzero(sketches.y == k), shots, replace=False) for k in np.unique(sketches.y)]
        )
        clf = adapter(text, random_state=0, max_iter=50).fit(sketches.X[chosen], sketches.y[chosen])
        reached.append(clf.score(sketches.X_test, sketches.y_test))
    assert min(reached) > zero_shot
    assert np.mean(reached) > zero_shot + 0.03


MARGINS = {LPPlusPlusClassifier: 0.008, CLAPClassifier: 0.002, CLIPAdapterClassifier: 0.002}


@pytest.mark.realdata
@pytest.mark.parametrize("adapter", LEARNED)
@pytest.mark.parametrize("name", ["caltech101", "oxford_flowers"])
@pytest.mark.parametrize(
    "shots", [4, pytest.param(8, marks=pytest.mark.slow), pytest.param(16, marks=pytest.mark.slow)]
)
def test_without_text_above_the_nearest_class_mean(adapter, name, shots, real_features):
    data = real_features(name)
    X, y, test = data[f"X_train_{shots}"], data[f"y_train_{shots}"], (data["X_test"], data["y_test"])
    reached = adapter(random_state=0).fit(X, y).score(*test)
    assert reached > nearest_mean(X, y, *test) + MARGINS[adapter]


@pytest.mark.realdata
@pytest.mark.slow
@pytest.mark.parametrize(
    ("adapter", "at_least"), [(LPPlusPlusClassifier, 65.5), (CLAPClassifier, 65.5), (CLIPAdapterClassifier, 61.3)]
)
def test_with_text_above_zero_shot_on_imagenet(adapter, at_least, real_features):
    data = real_features("imagenet")
    clf = adapter(data["text"], random_state=0).fit(data["X_train_4"], data["y_train_4"])
    X_test, y_test = data["X_train_2"], data["y_train_2"]
    zero_shot = np.mean(np.argmax(X_test @ data["text"].T, axis=1) == y_test)
    reached = clf.score(X_test, y_test)
    assert reached > zero_shot
    assert 100 * reached >= at_least
