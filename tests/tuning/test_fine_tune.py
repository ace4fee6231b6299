from __future__ import annotations

import copy

import numpy as np
import pytest

from skclip import CLIPFeatures, CLIPTextFeatures
from skclip._backbones import load_backbone
from skclip.datasets import make_picture_world
from skclip.tuning.weights._fine_tune import CLIPFineTuneClassifier

torch = pytest.importorskip("torch")

MODEL = "skclip-tiny"
COMMON = {"batch_size": 16, "max_iter": 2, "learning_rate": 1e-4, "random_state": 0}


@pytest.fixture(scope="module")
def world():
    made = make_picture_world(48, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"], random_state=3)
    return made.images, made.target


@pytest.fixture(scope="module")
def fitted(world):
    return CLIPFineTuneClassifier(MODEL, **COMMON).fit(*world)


def parameters(model=MODEL):
    return {
        name: value.numpy() for name, value in load_backbone(model, precision="float32").module.state_dict().items()
    }


@pytest.mark.parametrize("params", [{"max_iter": 0}, {"wise_alpha": 0.0}])
def test_without_training_or_all_the_way_back_it_is_the_model(params, world):
    X, y = world
    clf = CLIPFineTuneClassifier(MODEL, **COMMON | params).fit(X, y)
    sentences = [f"a photo of a {name}." for name in clf.classes_]
    np.testing.assert_allclose(clf.text_features_, CLIPTextFeatures(MODEL).transform(sentences), atol=1e-6)
    np.testing.assert_allclose(clf.encode_image(X), CLIPFeatures(MODEL).transform(X), atol=1e-6)


def test_half_way_is_the_mean_of_the_weights_before_and_after(world, fitted):
    half = CLIPFineTuneClassifier(MODEL, wise_alpha=0.5, **COMMON).fit(*world)
    before = parameters()
    for name, value in fitted.state_delta_.items():
        np.testing.assert_allclose(half.state_delta_[name], (before[name] + value) / 2, atol=1e-7, err_msg=name)
    assert half.loss_curve_ == fitted.loss_curve_


def test_all_weights_of_both_towers_are_trained(fitted):
    before = parameters()
    assert set(fitted.state_delta_) == set(before) - {"logit_scale", "attn_mask"}
    # the bias of keys shifts all scores of a query alike: no gradient but noise
    for name, value in fitted.state_delta_.items():
        assert np.abs(value - before[name]).max() > 1e-6, name


@pytest.mark.parametrize(
    ("trainable", "ends"), [("layer_norms", ("weight", "bias")), ("biases", ("bias",)), ("all", ("",))]
)
@pytest.mark.parametrize("encoder", ["vision", "text"])
def test_the_chosen_weights_of_the_chosen_tower_alone(trainable, ends, encoder, world):
    params = COMMON | {"max_iter": 1, "learning_rate": None}
    clf = CLIPFineTuneClassifier(MODEL, trainable=trainable, encoder=encoder, **params).fit(*world)
    assert clf.state_delta_
    for name, value in clf.state_delta_.items():
        assert name.startswith("visual.") == (encoder == "vision")
        assert name.endswith(ends)
        assert trainable != "layer_norms" or "ln" in name
        assert not np.array_equal(value, parameters()[name]), name


def test_the_merged_weights_are_the_tuned_model(fitted):
    backbone = load_backbone(MODEL, precision="float32")
    module = copy.deepcopy(backbone.module)
    merged = fitted.merge()
    assert set(merged) == set(fitted.state_delta_)
    module.load_state_dict({name: torch.from_numpy(value) for name, value in merged.items()}, strict=False)
    ids = backbone.text_ids([f"a photo of a {name}." for name in fitted.classes_])
    with torch.no_grad():
        text = module.encode_text(ids, normalize=True).numpy()
    np.testing.assert_allclose(fitted.text_features_, text, atol=1e-5)


def test_towers_of_convolutions_are_tuned_as_well(world):
    clf = CLIPFineTuneClassifier("skclip-tiny-rn", augmentation=None, **COMMON | {"max_iter": 4}).fit(*world)
    assert clf.loss_curve_[-1] < clf.loss_curve_[0]
    assert any("conv" in name for name in clf.state_delta_)


def test_learning_rates_are_those_of_what_is_trained():
    assert CLIPFineTuneClassifier()._recipe(64, 4).learning_rate == 1e-5
    assert CLIPFineTuneClassifier(trainable="biases")._recipe(64, 4).learning_rate == 1e-3
    # a tenth of 20 epochs of 2 steps
    assert CLIPFineTuneClassifier()._recipe(64, 4).warmup == 4
