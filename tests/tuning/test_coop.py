"""CoOp: words around the class names, learned."""

from __future__ import annotations

import numpy as np
import pytest

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip.datasets import make_picture_world
from skclip.tuning.prompts._coop import CoOpClassifier, epochs_by_shots, prompt_template

MODEL = "skclip-tiny"
COMMON = {"model": MODEL, "batch_size": 16, "learning_rate": 0.02, "random_state": 0}


@pytest.fixture(scope="module")
def rows():
    """Features and labels, 16 per class, of pictures in a style that the model has not seen."""
    world = make_picture_world(64, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    return CLIPFeatures(MODEL).fit_transform(world.images), np.array(world.target)


def test_without_words_the_vectors_are_drawn(rows):
    ctx = CoOpClassifier(**COMMON, n_ctx=16, max_iter=0).fit(*rows).ctx_
    assert ctx.shape == (16, 64)
    assert ctx.std() == pytest.approx(0.02, rel=0.1)
    assert abs(ctx.mean()) < 0.002


def test_tokens_of_the_words_are_counted(rows):
    words = "a photo of a"
    assert CoOpClassifier(**COMMON, n_ctx=9, ctx_init=words, max_iter=0).fit(*rows).ctx_.shape == (4, 64)


def test_words_hold_no_place_for_the_name(rows):
    assert prompt_template(" a photo of a ") == "a photo of a {}."
    message = r"ctx_init='a photo of a \{\}\.' holds words only, and the name of each class is put behind them"
    with pytest.raises(ValueError, match=message):
        CoOpClassifier(**COMMON, ctx_init="a photo of a {}.", max_iter=0).fit(*rows)


@pytest.mark.parametrize(("ctx_init", "position"), [(None, "end"), (None, "middle"), ("a photo of a", "end")])
def test_what_was_learned_is_read_as_long_as_it_is(rows, ctx_init, position):
    """Parameters that are set after `fit` wait for the next."""
    clf = CoOpClassifier(**COMMON, n_ctx=4, ctx_init=ctx_init, class_position=position, max_iter=2).fit(*rows)
    names = ["green ring", *clf.classes_]
    expected = clf.with_classes(names).text_features_
    longer = None if ctx_init is None else "a photo of a big red"
    clf.set_params(n_ctx=7, ctx_init=longer, class_specific=True)
    np.testing.assert_array_equal(clf.with_classes(names).text_features_, expected)


def test_it_beats_zero_shot_on_what_it_has_learned(rows):
    X, y = rows
    text = ZeroShotClassifier(MODEL, class_names={name: name for name in np.unique(y)}, templates="a photo of a {}.")
    clf = CoOpClassifier(**COMMON, ctx_init="a photo of a", max_iter=15).fit(X, y)
    assert clf.score(X, y) > text.fit().score(X, y) + 0.05
    assert clf.loss_curve_[-1] < 0.5 * clf.loss_curve_[0]


def test_the_order_of_the_pictures_plays_no_part_within_a_batch(rows):
    X, y = rows
    turned = np.random.default_rng(0).permutation(len(y))
    once, other = (
        CoOpClassifier(**{**COMMON, "batch_size": 64}, n_ctx=4, max_iter=3).fit(X[order], y[order]).ctx_
        for order in (slice(None), turned)
    )
    np.testing.assert_allclose(once, other, atol=1e-5)


def test_views_take_turns(rows):
    X, y = rows
    # of a second view that says nothing every picture is shown in some epoch
    views = np.stack([X, np.roll(X, 1, axis=1)], axis=1)
    plain, two = (CoOpClassifier(**COMMON, n_ctx=4, max_iter=3).fit(given, y) for given in (X, views))
    assert two.loss_curve_[0] > plain.loss_curve_[0]
    np.testing.assert_array_equal(two.predict(views), two.predict(X))


def test_classes_with_vectors_of_their_own(rows):
    X, y = rows
    clf = CoOpClassifier(**COMMON, n_ctx=3, class_specific=True, max_iter=3).fit(X, y)
    start = CoOpClassifier(**COMMON, n_ctx=3, class_specific=True, max_iter=0).fit(X, y)
    assert clf.ctx_.shape == (4, 3, 64)
    moved = clf.ctx_ - start.ctx_
    assert (np.abs(moved).max(axis=(1, 2)) > 0).all()
    assert not np.allclose(moved[0], moved[1])
    with pytest.raises(ValueError, match="class_specific=True"):
        clf.with_classes(["green circle", "green star"])
    with pytest.raises(ValueError, match="class_specific=True"):
        clf.set_params(class_specific=False).with_classes(["green circle", "green star"])


@pytest.mark.parametrize(("shots", "epochs"), [(1, 50), (2, 100), (4, 100), (7, 100), (8, 200), (16, 200)])
def test_epochs_follow_from_the_pictures_per_class(shots, epochs):
    assert epochs_by_shots(None, 5 * shots, 5) == epochs
    assert epochs_by_shots(7, 5 * shots, 5) == 7
