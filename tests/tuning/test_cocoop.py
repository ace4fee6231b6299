"""CoCoOp: learned words that are moved by each picture."""

from __future__ import annotations

import threading
from copy import copy

import numpy as np
import pytest
import torch
from sklearn import config_context

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip._backbones import TextTower, load_backbone
from skclip.datasets import make_picture_world
from skclip.tuning.prompts._cocoop import CoCoOpClassifier, shifts
from skclip.tuning.prompts._coop import CoOpClassifier

MODEL = "skclip-tiny"
COMMON = {"model": MODEL, "batch_size": 16, "max_iter": 4, "learning_rate": 0.02, "random_state": 0}
META = ["meta.1.bias", "meta.1.weight", "meta.2.bias", "meta.2.weight"]


@pytest.fixture(scope="module")
def rows():
    """Features and labels of pictures in a style that the model has not seen."""
    world = make_picture_world(48, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    return CLIPFeatures(MODEL).fit_transform(world.images), world.target


@pytest.fixture(scope="module")
def fitted(rows):
    return CoCoOpClassifier(**COMMON).fit(*rows)


def without_shift(clf):
    still = copy(clf)
    last = {name: np.zeros_like(clf.state_delta_[name]) for name in META[2:]}
    still.state_delta_ = {**clf.state_delta_, **last}
    return still


def test_what_is_learned(fitted):
    assert sorted(fitted.state_delta_) == ["ctx", *META]
    shapes = {name: fitted.state_delta_[name].shape for name in META}
    assert list(shapes.values()) == [(8,), (8, 128), (64,), (64, 8)]
    assert fitted.ctx_.shape == (4, 64)
    assert fitted.loss_curve_[-1] < fitted.loss_curve_[0]


def test_without_training_or_shift_it_is_the_hand_written_prompt(rows):
    X, y = rows
    clf = without_shift(CoCoOpClassifier(**{**COMMON, "max_iter": 0}).fit(X, y))
    names = {name: name for name in clf.classes_}
    zero_shot = ZeroShotClassifier(MODEL, class_names=names, templates="a photo of a {}.").fit()
    cosines = clf.logits(X) / clf.logit_scale_
    np.testing.assert_allclose(cosines, zero_shot.logits(X) / zero_shot.logit_scale_, atol=1e-5)
    np.testing.assert_allclose(clf.text_features_, zero_shot.prototypes_, atol=1e-5)


def test_every_picture_has_prompts_of_its_own(rows, fitted):
    """Against one picture and one class at a time, through open_clip's own tower."""
    X, module = rows[0][:3], load_backbone(MODEL, precision="float32").module
    tokenizer = load_backbone(MODEL, precision="float32").tokenizer
    learned = {name: torch.tensor(value) for name, value in fitted.state_delta_.items()}
    expected = np.zeros((3, 4))
    for i, row in enumerate(torch.tensor(X)):
        hidden = (learned["meta.1.weight"] @ row + learned["meta.1.bias"]).clamp(min=0)
        shift = learned["meta.2.weight"] @ hidden + learned["meta.2.bias"]
        for k, name in enumerate(fitted.classes_):
            ids = tokenizer([f"a photo of a {name}."])
            tokens = module.token_embedding(ids)[0].clone()
            tokens[1:5] = learned["ctx"] + shift
            hidden = module.transformer((tokens + module.positional_embedding)[None], attn_mask=module.attn_mask)
            text = module.ln_final(hidden[0, ids[0].argmax()]) @ module.text_projection
            expected[i, k] = fitted.logit_scale_ * torch.cosine_similarity(row, text, dim=0)
    np.testing.assert_allclose(fitted.logits(X), expected, rtol=1e-4, atol=1e-3)
    still = without_shift(fitted).logits(X)
    assert np.abs(still - expected).max() > 0.05


def test_the_shift_is_the_network_of_the_paper():
    random = np.random.default_rng(0)
    learned = {name: random.normal(size=shape) for name, shape in zip(META, [(2,), (2, 5), (3,), (3, 2)])}
    image = random.normal(size=(4, 5))
    hidden = np.maximum(image @ learned["meta.1.weight"].T + learned["meta.1.bias"], 0.0)
    expected = hidden @ learned["meta.2.weight"].T + learned["meta.2.bias"]
    found = shifts(torch.tensor(image), {name: torch.tensor(value) for name, value in learned.items()})
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_memory_bounds_how_many_pictures_run_at_once(rows, fitted, monkeypatch):
    X, _ = rows
    whole, sizes, call = fitted.logits(X), [], TextTower.__call__

    def watched(self, prompts, **options):
        sizes.append(len(prompts.prefix))
        return call(self, prompts, **options)

    monkeypatch.setattr(TextTower, "__call__", watched)
    with config_context(working_memory=1):
        chunked = fitted.logits(X)
    assert sum(sizes) == len(X)
    assert 1 < max(sizes) < 20
    np.testing.assert_allclose(chunked, whole, rtol=1e-4, atol=1e-4)
    with config_context(working_memory=0):
        np.testing.assert_allclose(fitted.logits(X[:2]), whole[:2], rtol=1e-4, atol=1e-4)


def test_rows_do_not_depend_on_their_company(rows, fitted):
    X, _ = rows
    whole = fitted.logits(X)
    np.testing.assert_allclose(fitted.logits(X[5:7]), whole[5:7], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fitted.logits(X[::-1])[::-1], whole, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(fitted.logits(3.0 * X), whole, rtol=1e-4, atol=1e-4)
    assert fitted.logits(X.astype(np.float64)).dtype == np.float64


def test_it_learns_what_zero_shot_does_not_see(rows, fitted):
    X, y = rows
    names = {name: name for name in fitted.classes_}
    zero_shot = ZeroShotClassifier(MODEL, class_names=names, templates="a photo of a {}.").fit()
    before = zero_shot.score(X, y)
    for seed in (1, 2):
        assert CoCoOpClassifier(**{**COMMON, "random_state": seed}).fit(X, y).score(X, y) > before + 0.1
    assert fitted.score(X, y) > before + 0.1
    coop = CoOpClassifier(**COMMON, ctx_init="a photo of a").fit(X, y)
    assert not np.array_equal(coop.ctx_, fitted.ctx_)


def test_new_classes_have_prompts_of_their_own(rows, fitted):
    X, _ = rows
    new = fitted.with_classes(["green star", "red circle"])
    assert new.text_features_.shape == (2, 128)
    known = list(fitted.classes_).index("red circle")
    np.testing.assert_allclose(new.logits(X)[:, 1], fitted.logits(X)[:, known], rtol=1e-4, atol=1e-3)
    assert fitted.classes_.tolist() == sorted(set(rows[1]))


@pytest.mark.parametrize("position", ["middle", "front"])
def test_positions_of_the_name(rows, position):
    X, y = rows
    clf = CoCoOpClassifier(**{**COMMON, "max_iter": 1}, class_position=position, ctx_init=None, n_ctx=2).fit(X, y)
    assert clf.ctx_.shape == (2, 64)
    assert np.isfinite(clf.logits(X)).all()


def test_a_larger_batch_is_the_sum_of_its_pictures(rows):
    """Steps whose pictures run a few at a time, as memory allows, go where those of the whole batch go."""
    X, y = rows
    params = {"model": MODEL, "batch_size": 48, "learning_rate": 0.02, "random_state": 0}
    start = CoCoOpClassifier(**params, max_iter=0).fit(X, y).state_delta_
    clf = CoCoOpClassifier(**params, max_iter=3)
    with config_context(working_memory=1):
        chunked = clf.fit(X, y).state_delta_
    whole = clf.fit(X, y).state_delta_
    for name, value in whole.items():
        moved = np.linalg.norm(value - start[name])
        assert moved > 1e-4, name
        assert np.linalg.norm(chunked[name] - value) < 0.01 * moved, name


def test_what_was_learned_is_read_as_long_as_it_is(rows):
    X, y = rows
    clf = CoCoOpClassifier(**{**COMMON, "max_iter": 1}, ctx_init=None, n_ctx=3).fit(X, y)
    expected = clf.logits(X[:4])
    np.testing.assert_array_equal(clf.set_params(n_ctx=5).logits(X[:4]), expected)


def test_two_threads_may_predict(rows, fitted):
    X, _ = rows
    expected, found = fitted.logits(X), {}

    def work(i):
        found[i] = fitted.logits(X)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 2
    for logits in found.values():
        np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)


def test_early_stopping(rows):
    clf = CoCoOpClassifier(**{**COMMON, "max_iter": 3}, early_stopping=True, validation_fraction=0.25).fit(*rows)
    assert len(clf.validation_scores_) == clf.n_iter_
