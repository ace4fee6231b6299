"""ProGrad: learned words that take no step against the hand-written prompt."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip.datasets import make_picture_world
from skclip.tuning.prompts._coop import CoOpClassifier
from skclip.tuning.prompts._prograd import ProGradClassifier

MODEL = "skclip-tiny"
COMMON = {"model": MODEL, "batch_size": 16, "learning_rate": 0.02, "random_state": 0}


@pytest.fixture(scope="module")
def rows():
    world = make_picture_world(48, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    return CLIPFeatures(MODEL).fit_transform(world.images), world.target


class Watched(ProGradClassifier):
    """Keeps the gradients of each step: of the labels, of what is known, and the one that is followed."""

    def _gradients(self, losses, learned):
        tensor = learned["ctx"]
        self.watched_ = getattr(self, "watched_", [])
        both = [torch.autograd.grad(losses[name], tensor, retain_graph=True)[0] for name in losses]
        super()._gradients(losses, learned)
        self.watched_.append((*both, tensor.grad.clone()))


def test_words_stand_at_the_end_and_zeros_before(rows):
    X, y = rows
    clf = ProGradClassifier(**COMMON, n_ctx=6, max_iter=0).fit(X, y)
    words = CoOpClassifier(**COMMON, ctx_init="a photo of a", max_iter=0).fit(X, y)
    assert clf.ctx_.shape == (6, 64)
    np.testing.assert_array_equal(clf.ctx_[:2], 0.0)
    np.testing.assert_array_equal(clf.ctx_[2:], words.ctx_)


def test_with_as_many_vectors_as_words_it_starts_at_the_hand_written_prompt(rows):
    X, y = rows
    clf = ProGradClassifier(**COMMON, n_ctx=4, max_iter=0).fit(X, y)
    text = ZeroShotClassifier(MODEL, class_names={name: name for name in clf.classes_}, templates="a photo of a {}.")
    np.testing.assert_allclose(clf.text_features_, text.fit().prototypes_, atol=1e-5)


def test_without_projection_it_is_coop_to_the_last_bit(rows):
    coop = CoOpClassifier(**COMMON, ctx_init="a photo of a", max_iter=3).fit(*rows)
    clf = ProGradClassifier(**COMMON, n_ctx=4, projection_weight=0.0, max_iter=3).fit(*rows)
    np.testing.assert_array_equal(clf.ctx_, coop.ctx_)
    assert clf.loss_terms_["cross_entropy"] == coop.loss_curve_


def test_no_step_goes_against_what_is_known(rows):
    clf = Watched(**COMMON, ctx_init=None, max_iter=8).fit(*rows)
    opposed = 0
    for of_labels, of_knowledge, followed in clf.watched_:
        size = float(of_labels.norm() * of_knowledge.norm())
        assert float((followed * of_knowledge).sum()) >= -1e-5 * size
        if float((of_labels * of_knowledge).sum()) < 0:
            opposed += 1
            assert float((followed * of_knowledge).sum()) == pytest.approx(0.0, abs=1e-5 * size)
        else:
            torch.testing.assert_close(followed, of_labels)
    assert 0 < opposed < len(clf.watched_) == 24


def test_the_first_step_from_the_hand_written_prompt_is_that_of_the_labels(rows):
    """There the divergence is zero, and its gradient what rounding leaves."""
    clf = Watched(**{**COMMON, "batch_size": 48}, n_ctx=4, max_iter=3).fit(*rows)
    (of_labels, of_knowledge, followed), *_, last = clf.watched_
    assert 0 < float(of_knowledge.norm()) < 1e-5 * float(of_labels.norm())
    assert torch.equal(followed, of_labels)
    assert not torch.equal(last[0], last[2])


def test_weights_of_whole_numbers_are_repeated_pictures(rows):
    X, y = rows
    counts = np.random.default_rng(0).integers(0, 4, size=len(y))
    repeated = np.repeat(np.arange(len(y)), counts)
    clf = ProGradClassifier(**{**COMMON, "batch_size": 200}, n_ctx=4, max_iter=8)
    weighted = clf.fit(X, y, sample_weight=counts).ctx_
    plain = clf.fit(X[repeated], y[repeated]).ctx_
    start = clf.set_params(max_iter=0).fit(X, y).ctx_
    assert np.abs(weighted - plain).max() < 0.01 * np.abs(weighted - start).max()


def test_the_divergence_is_that_from_zero_shot_probabilities(rows):
    X, y = rows
    text = ZeroShotClassifier(MODEL, class_names={name: name for name in np.unique(y)}, templates="a photo of a {}.")
    taught = text.fit().predict_proba(X)
    start = ProGradClassifier(**COMMON, n_ctx=6, max_iter=0).fit(X, y).predict_proba(X)
    expected = np.mean(np.sum(taught * np.log(taught / start), axis=1))
    clf = ProGradClassifier(**COMMON, n_ctx=6, max_iter=1).fit(X, y)
    assert expected > 1e-4
    assert clf.loss_terms_["general"][0] == pytest.approx(expected, rel=0.05)


def test_temperature_acts_on_the_projection_alone(rows):
    first, second = (
        ProGradClassifier(**COMMON, n_ctx=4, temperature=t, max_iter=3).fit(*rows).ctx_ for t in (1.0, 5.0)
    )
    assert not np.array_equal(first, second)
    same = [
        ProGradClassifier(**COMMON, n_ctx=4, temperature=t, projection_weight=0.0, max_iter=3).fit(*rows).ctx_
        for t in (1.0, 5.0)
    ]
    np.testing.assert_array_equal(*same)


def test_stays_nearer_to_zero_shot_than_coop(rows):
    X, y = rows
    text = ZeroShotClassifier(MODEL, class_names={name: name for name in np.unique(y)}, templates="a photo of a {}.")
    taught = text.fit().predict_proba(X)

    def divergence(clf):
        return np.mean(np.sum(taught * np.log(taught / clf.fit(X, y).predict_proba(X)), axis=1))

    projected = divergence(ProGradClassifier(**COMMON, n_ctx=4, max_iter=15))
    assert projected < 0.5 * divergence(CoOpClassifier(**COMMON, ctx_init="a photo of a", max_iter=15))


def test_errors_name_the_parameter(rows):
    with pytest.raises(ValueError, match="temperature"):
        ProGradClassifier(**COMMON, temperature=0.0).fit(*rows)
