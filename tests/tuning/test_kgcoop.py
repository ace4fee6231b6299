"""KgCoOp: learned words that stay near the hand-written prompt."""

from __future__ import annotations

import numpy as np
import pytest

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip.datasets import make_picture_world
from skclip.tuning.prompts._coop import CoOpClassifier
from skclip.tuning.prompts._kgcoop import KgCoOpClassifier

MODEL = "skclip-tiny"
COMMON = {"model": MODEL, "batch_size": 16, "learning_rate": 0.02, "random_state": 0}


@pytest.fixture(scope="module")
def rows():
    """Features and labels of pictures in a style that the model has not seen."""
    world = make_picture_world(48, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    return CLIPFeatures(MODEL).fit_transform(world.images), world.target


def hand_written(names, templates="a photo of a {}."):
    text = ZeroShotClassifier(MODEL, class_names={name: name for name in names}, templates=templates).fit()
    return text.prototypes_


def test_without_training_it_is_the_hand_written_prompt(rows):
    X, y = rows
    clf = KgCoOpClassifier(**COMMON, max_iter=0).fit(X, y)
    np.testing.assert_allclose(clf.text_features_, hand_written(clf.classes_), atol=1e-5)
    assert clf.ctx_.shape == (4, 64)


def test_without_the_term_it_is_coop_to_the_last_bit(rows):
    coop = CoOpClassifier(**COMMON, ctx_init="a photo of a", max_iter=3).fit(*rows)
    clf = KgCoOpClassifier(**COMMON, kg_weight=0.0, max_iter=3).fit(*rows)
    np.testing.assert_array_equal(clf.ctx_, coop.ctx_)
    assert clf.loss_terms_["cross_entropy"] == coop.loss_curve_


def test_a_heavier_term_keeps_class_text_nearer(rows):
    X, y = rows
    distances = []
    for weight in (0.0, 8.0, 1000.0):
        clf = KgCoOpClassifier(**{**COMMON, "learning_rate": 0.002}, kg_weight=weight, max_iter=8).fit(X, y)
        distances.append(1.0 - np.mean(np.sum(clf.text_features_ * hand_written(clf.classes_), axis=1)))
    assert distances[0] > distances[1] > distances[2]
    assert distances[0] > 4e-3
    assert distances[2] < 2e-4


def test_the_term_is_measured_from_the_given_templates(rows):
    X, y = rows
    sentences = ["a photo of a {}.", "a picture of the {}."]
    clf = KgCoOpClassifier(**COMMON, templates=sentences, kg_weight=2.0, max_iter=1).fit(X, y)
    start = hand_written(clf.classes_)
    expected = 2.0 * (1.0 - np.mean(np.sum(start * hand_written(clf.classes_, sentences), axis=1)))
    assert expected > 1e-3
    # the learning rate of the first epoch is 1e-5: the text has hardly moved
    assert clf.loss_terms_["knowledge"][0] == pytest.approx(expected, rel=0.05)
    assert clf.loss_curve_[0] == pytest.approx(clf.loss_terms_["cross_entropy"][0] + clf.loss_terms_["knowledge"][0])


def test_errors_name_the_parameter(rows):
    with pytest.raises(ValueError, match="kg_weight"):
        KgCoOpClassifier(**COMMON, kg_weight=-1.0).fit(*rows)
    with pytest.raises(ValueError, match="templates"):
        KgCoOpClassifier(**COMMON, templates="a sentence without a place").fit(*rows)
