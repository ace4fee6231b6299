"""KgCoOp: learned words that stay near the hand-written prompt."""

from __future__ import annotations

import numpy as np
import pytest

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip.datasets import few_shot_split, make_picture_world
from skclip.tuning.prompts._coop import CoOpClassifier
from skclip.tuning.prompts._kgcoop import KgCoOpClassifier
from skclip.tuning.prompts._prograd import ProGradClassifier

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


def test_what_was_learned_is_read_as_long_as_it_is(rows):
    clf = KgCoOpClassifier(**COMMON, ctx_init=None, n_ctx=3, max_iter=1).fit(*rows)
    names = ["green ring", *clf.classes_]
    expected = clf.with_classes(names).text_features_
    np.testing.assert_array_equal(clf.set_params(n_ctx=5).with_classes(names).text_features_, expected)


@pytest.fixture(scope="module")
def base_and_new():
    """Features of coarse noisy pixels: 5 pairs of which the colour alone tells, to learn from; 20 others by name."""
    shapes, colors = ["circle", "square", "triangle", "star", "cross"], ["red", "green", "blue", "yellow", "purple"]
    base = [f"{color} {shape}" for color, shape in zip(colors, shapes)]

    def draw(n, seed):
        options = {"styles": ["pixel"], "noise": 60.0, "held_out": "include", "random_state": seed}
        world = make_picture_world(n, shapes=shapes, colors=colors, **options)
        y = np.array(world.target)
        return CLIPFeatures(MODEL, store=None).fit_transform(world.images), y, np.isin(y, base)

    (X, y, known), test = draw(600, 7), draw(800, 8)
    return (X[known], y[known]), test


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_what_stays_near_the_hand_written_prompt_serves_new_classes_and_coop_its_own(base_and_new, seed):
    (X, y), (X_test, y_test, known) = base_and_new
    train, _ = few_shot_split(y, 16, random_state=seed)
    new = np.unique(y_test[~known]).tolist()

    def accuracies(cls, **params):
        clf = cls(MODEL, max_iter=50, batch_size=32, learning_rate=0.02, random_state=seed, **params)
        clf.fit(X[train], y[train])
        others = clf.with_classes(new)
        return clf.score(X_test[known], y_test[known]), others.score(X_test[~known], y_test[~known])

    coop = accuracies(CoOpClassifier, ctx_init="a photo of a")
    for cls, params in ((KgCoOpClassifier, {}), (ProGradClassifier, {"n_ctx": 4})):
        base, others = accuracies(cls, **params)
        assert others > coop[1] + 0.05, cls.__name__
        assert base < coop[0] - 0.01, cls.__name__
