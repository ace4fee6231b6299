"""Matching with class means."""

from __future__ import annotations

import numpy as np
from sklearn import config_context

from skclip.metrics import ood_auroc
from skclip.ood import MCMDetector
from skclip.ood._mean_matching import _MeanMatchingDetector
from skclip.utils._arrays import unit_rows


def test_it_is_concept_matching_with_the_class_means(isotropic):
    world = isotropic(0)
    means = np.stack([unit_rows(world.X[world.y == k]).mean(axis=0) for k in range(20)])
    scores = _MeanMatchingDetector().fit(world.X, world.y).score_samples(world.X_in)
    np.testing.assert_allclose(scores, MCMDetector(means).fit(world.X).score_samples(world.X_in), rtol=1e-6)
    assert ood_auroc(scores, _MeanMatchingDetector().fit(world.X, world.y).score_samples(world.X_out)) > 0.85


def test_views_and_blocks(isotropic):
    world = isotropic(0)
    views = np.stack([world.X, world.X], axis=1)
    detector = _MeanMatchingDetector().fit(views, world.y)
    expected = _MeanMatchingDetector().fit(world.X, world.y).score_samples(world.X_in)
    with config_context(working_memory=0.01):
        np.testing.assert_allclose(detector.score_samples(world.X_in), expected, rtol=1e-12)


def test_without_labels_it_says_nothing():
    X = np.random.default_rng(0).normal(size=(20, 4))
    np.testing.assert_array_equal(_MeanMatchingDetector().fit(X).score_samples(X), 1.0)
