from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy.special import log_softmax
from scipy.stats import norm

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip.datasets import make_picture_world
from skclip.tuning._averaging import Gaussian
from skclip.tuning._engine import Batch
from skclip.tuning._setting import Step
from skclip.tuning.prompts._ivlp import IVLPClassifier
from skclip.tuning.prompts._promptsrc import PromptSRCClassifier, frozen_logits

MODEL = "skclip-tiny"
NAMES = ["blue circle", "blue star", "red circle", "red star"]
TEMPLATES = ["a photo of a {}.", "a {}", "a photo of a blurry {}"]
FAST = {"max_iter": 3, "batch_size": 8, "random_state": 0}
FREE = {"text_weight": 0.0, "image_weight": 0.0, "logit_weight": 0.0}


@pytest.fixture(scope="module")
def world():
    made = make_picture_world(24, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"], random_state=3)
    return made.images, np.array(made.target)


def make(**params):
    return PromptSRCClassifier(MODEL, **{"templates": TEMPLATES, **FAST, **params})


@pytest.fixture
def step(world):
    """One batch of plain pictures, with tokens that have moved."""
    estimator = make()
    setting = estimator._setting(np.array(NAMES), NAMES, "cpu")
    estimator._prepare(setting, None)
    learned = {name: (10 * value).requires_grad_() for name, value in estimator._start(setting).items()}
    pixels = setting.backbone.pixel_scale(torch.from_numpy(world[0][:5]))
    weights = torch.tensor([1.0, 2.0, 0.0, 0.5, 1.5])
    codes = torch.tensor([0, 1, 2, 3, 0])
    return Step(estimator, setting, learned, Batch(np.arange(5), pixels, codes, weights, 0, 0, torch.Generator()))


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def test_without_ties_and_average_it_is_ivlp(world):
    free = make(averaging_width=None, **FREE).fit(*world)
    plain = IVLPClassifier(MODEL, n_ctx=4, n_visual_ctx=4, learning_rate=0.0025, **FAST).fit(*world)
    assert list(free.loss_terms_) == ["cross_entropy"]
    for name, value in plain.state_delta_.items():
        assert_array_equal(free.state_delta_[name], value, err_msg=name)
    tied = make(averaging_width=None).fit(*world)
    assert any((tied.state_delta_[name] != value).any() for name, value in plain.state_delta_.items())


def test_the_frozen_logits_are_zero_shot_of_the_ensemble(world, step):
    zero_shot = ZeroShotClassifier(MODEL, class_names=NAMES, templates=TEMPLATES).fit(None, np.array(NAMES))
    cosines = zero_shot.logits(CLIPFeatures(MODEL).fit_transform(world[0][:5])) / zero_shot.logit_scale_
    assert_allclose(frozen_logits(step).numpy(), step.setting.logit_scale * cosines, atol=1e-3)
    assert not frozen_logits(step).requires_grad


def test_the_terms_are_those_of_the_paper(world, step):
    terms = {name: term(step) for name, term in step._method._terms(step.setting).items()}
    assert list(terms) == ["cross_entropy", "text", "image", "logits"]
    text, image, logits = (value.detach().numpy() for value in (step.text, step.image, step.logits))
    weights, codes = step.batch.weights.numpy(), step.batch.codes.numpy()
    frozen_text = step.setting.constants["frozen_text"].numpy()
    frozen_image = unit(CLIPFeatures(MODEL).fit_transform(world[0][:5]))
    teacher = log_softmax(step.setting.logit_scale * frozen_image @ frozen_text.T, axis=1)
    student = log_softmax(logits, axis=1)
    by_picture = (np.exp(teacher) * (teacher - student)).sum(axis=1) / 4
    expected = {
        "cross_entropy": (weights * -student[np.arange(5), codes]).mean(),
        "text": 25 * np.abs(text - frozen_text).mean(),
        "image": 10 * (weights * np.abs(image - frozen_image).mean(axis=1)).mean(),
        "logits": (weights * by_picture).mean(),
    }
    for name, value in expected.items():
        assert terms[name].item() == pytest.approx(value, rel=1e-3), name


def test_gradients_go_to_tokens_alone(step):
    sum(term(step) for term in step._method._terms(step.setting).values()).backward()
    assert all(value.grad.abs().max() > 0 for value in step.learned.values())
    assert all(p.grad is None for p in step.setting.backbone.module.parameters())


def test_no_second_copy_of_the_weights(step):
    """What the frozen and the tuned side read are the tensors of the shared backbone."""
    kept = {id(p) for p in step.setting.backbone.module.parameters()}
    _ = step.logits, frozen_logits(step)
    modules = [step.setting.vision._opened, step.setting.text._opened]
    assert all(id(p) in kept for opened in modules for p in opened.module.parameters())
    assert not any(opened._idle for opened in modules)


@pytest.fixture
def epochs(monkeypatch):
    """What was learned after each epoch of the last fit."""
    seen = []
    plain = Gaussian.update

    def update(self, average, learned, count):
        if count == 1:
            seen.clear()
        seen.append({name: value.detach().numpy().copy() for name, value in learned.items()})
        plain(self, average, learned, count)

    monkeypatch.setattr(Gaussian, "update", update)
    return seen


@pytest.mark.parametrize(
    ("center", "width", "weights"),
    [
        (2, 1e-3, [0, 1, 0]),
        (3, 1e-3, [0, 0, 1]),
        (2, float("inf"), [1, 1, 1]),
        (None, 1.0, norm.pdf([1, 2, 3], 2.25, 1.0)),
        (1, 2.0, norm.pdf([1, 2, 3], 1, 2.0)),
    ],
)
def test_the_average_over_epochs(world, epochs, center, width, weights):
    estimator = make(averaging_center=center, averaging_width=width, **FREE).fit(*world)
    assert len(epochs) == 3
    for name, value in estimator.state_delta_.items():
        expected = np.average([learned[name] for learned in epochs], axis=0, weights=weights)
        assert_allclose(value, expected, rtol=0, atol=1e-6, err_msg=name)
    assert (epochs[1]["ctx"] != epochs[2]["ctx"]).any()


def test_a_narrow_average_at_the_end_is_no_average(world):
    last = make(averaging_center=3, averaging_width=1e-3).fit(*world)
    none = make(averaging_width=None).fit(*world)
    for name, value in none.state_delta_.items():
        assert_allclose(last.state_delta_[name], value, rtol=0, atol=1e-7, err_msg=name)


def test_a_heavy_tie_to_the_frozen_text_keeps_the_text(world):
    params = {"max_iter": 6, "averaging_width": None, "image_weight": 0.0, "logit_weight": 0.0}
    drift = []
    for weight in (0.0, 200.0):
        estimator = make(text_weight=weight, **params).fit(*world)
        setting = estimator._restored()
        drift.append(np.abs(estimator.text_features_ - setting.class_text(TEMPLATES).numpy()).mean())
    assert drift[1] < 0.8 * drift[0]


def test_weights_of_pictures_are_repeats(world):
    """A picture of weight 2 is as if it were there twice, also in the ties."""
    images, y = world
    counts = np.where(y == "red star", 2, 1)
    params = {"augmentation": None, "learning_rate": 0.02}
    start = make(max_iter=0).fit(images, y).state_delta_
    plain = make(batch_size=24, **params).fit(images, y)
    weighted = make(batch_size=24, **params).fit(images, y, sample_weight=counts)
    repeated = make(batch_size=int(counts.sum()), **params).fit(np.repeat(images, counts, axis=0), np.repeat(y, counts))
    for name, value in repeated.state_delta_.items():
        moved = np.linalg.norm(value - start[name])
        assert np.linalg.norm(weighted.state_delta_[name] - value) < 1e-3 * moved, name
        assert np.linalg.norm(plain.state_delta_[name] - value) > 0.03 * moved, name
    for name, curve in repeated.loss_terms_.items():
        assert_allclose(weighted.loss_terms_[name], curve, rtol=1e-3, err_msg=name)


@pytest.mark.parametrize(("name", "value"), [("text_weight", -1.0), ("averaging_width", 0.0), ("depth", 0)])
def test_parameters_out_of_range(world, name, value):
    with pytest.raises(ValueError, match=f"'{name}' parameter of PromptSRCClassifier"):
        make(**{name: value}).fit(*world)
