from __future__ import annotations

import numpy as np
import pytest
from sklearn.frozen import FrozenEstimator

from skclip.datasets import make_picture_world
from skclip.features import CLIPFeatures
from skclip.retrieval import CLIPRetriever, retrieve_support
from skclip.utils._arrays import unit_rows
from skclip.zero_shot import ZeroShotClassifier

TINY = "skclip-tiny"


def test_takes_the_nearest_rows_of_each_class():
    rng = np.random.default_rng(0)
    X, prototypes = rng.normal(size=(200, 8)), rng.normal(size=(5, 8))
    retriever = CLIPRetriever().fit(X)
    rows, y, indices = retrieve_support(retriever, prototypes, 6, return_indices=True)
    cosines = unit_rows(prototypes) @ unit_rows(X).T
    np.testing.assert_array_equal(indices.reshape(5, 6), np.argsort(-cosines, axis=1)[:, :6])
    np.testing.assert_array_equal(rows, unit_rows(X)[indices])
    np.testing.assert_array_equal(y, np.repeat(np.arange(5), 6))


def test_copies_count_once_within_a_class():
    rng = np.random.default_rng(0)
    X, prototypes = rng.normal(size=(30, 8)).astype(np.float32), rng.normal(size=(3, 8))
    many = np.repeat(X, 50, axis=0) * rng.uniform(0.5, 2, size=(1500, 1)).astype(np.float32)
    once, _ = retrieve_support(CLIPRetriever().fit(X), prototypes, 7)
    copied, _ = retrieve_support(CLIPRetriever().fit(many), prototypes, 7)
    np.testing.assert_allclose(copied, once, atol=1e-6)
    with pytest.raises(ValueError, match="n_per_class=31, but the retriever was fitted on 30 different"):
        retrieve_support(CLIPRetriever().fit(many), prototypes, 31)


def test_names_find_their_pictures():
    world = make_picture_world(800)
    retriever = CLIPRetriever(TINY).fit(world.images)
    names = ZeroShotClassifier(class_names=world.target_names, templates="a photo of a {}")
    X, y, indices = retrieve_support(retriever, names, 4, return_indices=True)
    assert X.shape == (4 * len(world.target_names), 128)
    assert np.mean(world.target[indices] == y) > 0.9  # chance: 1/56
    assert names.model is None
    frozen = FrozenEstimator(
        ZeroShotClassifier(TINY, class_names=world.target_names, templates="a photo of a {}").fit()
    )
    np.testing.assert_array_equal(retrieve_support(retriever, frozen, 4)[0], X)
    means = np.stack([X[y == name].mean(axis=0) for name in world.target_names])
    test = make_picture_world(300, start=800)
    guesses = np.argmax(CLIPFeatures(TINY).transform(test.images) @ means.T, axis=1)
    assert np.mean(np.array(world.target_names)[guesses] == test.target) > 0.65


def test_what_cannot_be():
    retriever = CLIPRetriever().fit(np.eye(4))
    with pytest.raises(ValueError, match="n_per_class must be an integer"):
        retrieve_support(retriever, np.eye(4), 0)
    with pytest.raises(ValueError, match="4 features"):
        retrieve_support(retriever, np.eye(3), 1)
    with pytest.raises(ValueError, match="nothing tells which model"):
        retrieve_support(retriever, ZeroShotClassifier(class_names=["a", "b"]), 1)
    world = make_picture_world(10)
    other = ZeroShotClassifier("skclip-tiny-rn", class_names=world.target_names, templates="a photo of a {}")
    with pytest.raises(ValueError, match="two models do not compare"):
        retrieve_support(CLIPRetriever(TINY).fit(world.images), other, 1)
