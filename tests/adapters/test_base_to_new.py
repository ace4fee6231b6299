"""New classes known by their names alone, beside base classes with labelled pictures."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import pytest

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip.adapters import GDAClassifier
from skclip.datasets import few_shot_split, make_picture_world
from skclip.utils._arrays import unit_rows


def literal_new_logits(X, prototypes, queries, alpha, logit_scale=100.0):
    """The base-to-new script of the paper's authors, written out; 512 there is d here."""
    d = X.shape[1]
    means, precisions = [], []
    for w in prototypes:
        nearest = X[np.argsort(-(X @ w))[:64]]
        vectors = np.concatenate([nearest, np.tile(w, (16, 1))])
        assert len(vectors) == 80
        means.append(vectors.mean(axis=0))
        C = sum(np.outer(x - w, x - w) for x in nearest) / 63
        precisions.append(d * np.linalg.pinv(63 * C + np.trace(C) * np.eye(d)))
    means, P = np.stack(means), np.mean(precisions, axis=0)
    W = means @ P
    b = np.log(1 / len(means)) - 0.5 * np.sum(W * means, axis=1)
    return logit_scale * queries @ prototypes.T + alpha * (queries @ W.T + b)


def literal_base_logits(X, y, prototypes, queries, alpha, logit_scale=100.0):
    classes = np.unique(y)
    means = np.stack([X[y == k].mean(axis=0) for k in classes])
    P = np.linalg.pinv(np.mean([np.cov(X[y == k].T) for k in classes], axis=0))
    W = means @ P
    b = np.log(1 / len(classes)) - 0.5 * np.sum(W * means, axis=1)
    return logit_scale * queries @ prototypes.T + alpha * (queries @ W.T + b)


def test_both_sides_are_the_script(text_estimator):
    rng = np.random.default_rng(0)
    d, y = 24, np.arange(300) % 5
    directions = rng.normal(size=(8, d))
    X = unit_rows(directions[y] + rng.normal(size=(300, d)))
    queries = unit_rows(directions[rng.integers(8, size=50)] + rng.normal(size=(50, d)))
    text = unit_rows(directions + 0.5 * rng.normal(size=(8, d)))
    zero_shot = text_estimator(text[:5], [0, 1, 2, 3, 4], new={5: text[5], 6: text[6], 7: text[7]})
    base = GDAClassifier(zero_shot, alpha=0.1, covariance="pooled").fit(X, y)
    new = base.with_classes({5: "five", 6: "six", 7: "seven"})
    np.testing.assert_allclose(base.logits(queries), literal_base_logits(X, y, text[:5], queries, 0.1), rtol=1e-4)
    np.testing.assert_allclose(new.logits(queries), literal_new_logits(X, text[5:], queries, 0.1), rtol=1e-4)
    assert new.classes_.tolist() == [5, 6, 7]
    assert new.alpha_ == base.alpha_ == 0.1
    np.testing.assert_array_equal(new.priors_, 1 / 3)


def test_no_new_prototype_is_needed_twice(text_estimator):
    """Fewer rows than neighbours: all of them stand for every new class."""
    rng = np.random.default_rng(1)
    X, y = rng.normal(size=(20, 6)) + 1, np.arange(20) % 2
    text = text_estimator(np.eye(2, 6), [0, 1], new={2: np.ones(6), 3: np.arange(6.0)})
    new = GDAClassifier(text, covariance="pooled").fit(X, y).with_classes({2: "two", 3: "three"})
    prototypes = unit_rows(np.stack([np.ones(6), np.arange(6.0)]))
    expected = (unit_rows(X).sum(axis=0) + 16 * prototypes) / 36
    np.testing.assert_allclose(new.means_, expected, rtol=1e-5)
    assert np.isfinite(new.logits(X)).all()


@pytest.fixture(scope="module")
def pairs():
    """``pairs(style)``: pictures of the 56 pairs that the bundled model knows and of the 8 it has never seen."""
    features = CLIPFeatures("skclip-tiny")

    @lru_cache
    def draw(style):
        base = make_picture_world(1500, styles=[style], random_state=11)
        new = make_picture_world(250, styles=[style], held_out="only", random_state=12)
        names = {name: name for name in base.target_names}
        text = ZeroShotClassifier("skclip-tiny", class_names=names, templates="a photo of a {}").fit()
        return features.transform(base.images), base.target, features.transform(new.images), new.target, text

    return draw


def harmonic_mean(a, b):
    return 2 * a * b / (a + b)


# accuracy by names alone is 0.31 of base and 0.57 of new pairs on sketches, 0.92 and 0.97 on dark pictures
@pytest.mark.parametrize(("style", "shots", "gain"), [("sketch", 4, 0.2), ("sketch", 8, 0.25), ("dark", 8, 0.01)])
@pytest.mark.parametrize("covariance", ["ks", "pooled"])
def test_held_out_pairs(style, shots, gain, covariance, pairs):
    X, y, X_new, y_new, text = pairs(style)
    train, _ = few_shot_split(y[:1150], shots, random_state=0)
    new_names = {name: name for name in np.unique(y_new).tolist()}
    base = GDAClassifier(text, alpha="cv", covariance=covariance).fit(X[train], y[train])
    new = base.with_classes(new_names)
    zero_shot = text.score(X[1150:], y[1150:]), text.with_classes(new_names).score(X_new, y_new)
    if covariance == "pooled":  # without shrinkage, from four to eight pictures of each class
        gain /= 2
    reached = base.score(X[1150:], y[1150:]), new.score(X_new, y_new)
    assert reached[0] >= zero_shot[0] + gain
    assert reached[1] >= zero_shot[1] - 0.01
    assert harmonic_mean(*reached) >= harmonic_mean(*zero_shot) + gain
