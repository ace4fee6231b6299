from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip._backbones import load_backbone
from skclip._backbones._opened import OpenedTowerError
from skclip.datasets import few_shot_split, make_picture_world
from skclip.tuning.prompts._coop import CoOpClassifier
from skclip.tuning.prompts._ivlp import IVLPClassifier
from skclip.tuning.prompts._maple import MaPLeClassifier, visual_tokens

MODEL = "skclip-tiny"
NAMES = ["blue circle", "blue star", "red circle", "red star"]
TEMPLATE = "a photo of a {}."
FAST = {"max_iter": 2, "batch_size": 8, "random_state": 0}

both = pytest.mark.parametrize("cls", [MaPLeClassifier, IVLPClassifier], ids=lambda cls: cls.__name__)


@pytest.fixture(scope="module")
def world():
    made = make_picture_world(24, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"], random_state=3)
    return made.images, np.array(made.target)


def setting_of(estimator, names=NAMES):
    return estimator._setting(np.array(names), list(names), "cpu")


def learnable(estimator, setting):
    return {name: value.requires_grad_() for name, value in estimator._start(setting).items()}


def pixels(n=3):
    return torch.randn((n, 3, 48, 48), generator=torch.Generator().manual_seed(0))


def moves(function, learned, name, layer=None):
    """Whether a change of a learned tensor, or of a layer of it, changes what a function of all of them gives."""
    changed = {key: value.detach().clone() for key, value in learned.items()}
    part = changed[name] if layer is None else changed[name][layer]
    part += torch.randn(part.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return float((function(changed) - function(learned)).abs().max()) > 1e-4


@both
def test_untrained_and_shallow_the_text_is_zero_shot(cls, world):
    estimator = cls(MODEL, depth=1, max_iter=0, random_state=0).fit(*world)
    zero_shot = ZeroShotClassifier(MODEL, class_names=NAMES, templates=TEMPLATE).fit(None, np.array(NAMES))
    assert_allclose(estimator.text_features_, zero_shot.prototypes_, atol=1e-5)
    assert_array_equal(estimator.classes_, NAMES)


def test_without_tokens_pictures_are_those_of_the_model():
    estimator = IVLPClassifier(MODEL, n_visual_ctx=0)
    setting = setting_of(estimator)
    module = load_backbone(MODEL, device="cpu", precision="float32").module
    with torch.no_grad():
        found = estimator._image(estimator._start(setting), setting, pixels())
        assert_allclose(found, module.encode_image(pixels()), atol=1e-5)
    # and with tokens they are not
    tuned = MaPLeClassifier(MODEL)
    assert (tuned._image(tuned._start(setting), setting, pixels()) - found).abs().max() > 0.01


def test_without_tokens_the_text_is_that_of_the_model():
    estimator = IVLPClassifier(MODEL, n_ctx=0)
    setting = setting_of(estimator)
    learned = estimator._start(setting)
    assert list(learned) == ["visual_ctx"]
    expected = setting.class_text(TEMPLATE)
    found = estimator._text(learned, setting)
    assert_allclose(found / found.norm(dim=1, keepdim=True), expected, atol=1e-5)


@pytest.mark.parametrize("n_ctx", [0, 2])
@pytest.mark.parametrize("n_visual_ctx", [0, 3])
def test_tokens_of_one_tower_alone(world, n_ctx, n_visual_ctx):
    estimator = IVLPClassifier(MODEL, n_ctx=n_ctx, n_visual_ctx=n_visual_ctx, **FAST)
    if n_ctx == n_visual_ctx == 0:
        with pytest.raises(ValueError, match="nothing to learn; use ZeroShotClassifier"):
            estimator.fit(*world)
        return
    estimator.fit(*world)
    text = {"ctx", "deep_ctx"} if n_ctx else set()
    assert set(estimator.state_delta_) == text | ({"visual_ctx"} if n_visual_ctx else set())
    assert (estimator.ctx_ is None) == (estimator.deep_ctx_ is None) == (n_ctx == 0)
    assert (estimator.visual_ctx_ is None) == (n_visual_ctx == 0)


@pytest.mark.parametrize("depth", [1, 2, 3, 4])
@both
def test_the_gradient_reaches_all_that_is_learned_and_nothing_else(cls, depth):
    estimator = cls(MODEL, depth=depth, random_state=0)
    setting = setting_of(estimator)
    learned = learnable(estimator, setting)
    assert learned["ctx"].shape == (2, 64)
    assert ("deep_ctx" in learned) == (depth > 1)
    if depth > 1:
        assert learned["deep_ctx"].shape == (depth - 1, 2, 64)
    if cls is MaPLeClassifier:
        assert learned["projection_weight"].shape == (depth, 96, 64)
        assert learned["projection_bias"].shape == (depth, 96)
    else:
        assert learned["visual_ctx"].shape == (depth, 2, 96)
    logits = estimator._image(learned, setting, pixels()) @ estimator._text(learned, setting).T
    logits.square().sum().backward()
    for name, value in learned.items():
        each_layer = value.grad[None] if name == "ctx" else value.grad
        assert (each_layer.abs().flatten(1).amax(dim=1) > 0).all(), name
    assert all(p.grad is None and not p.requires_grad for p in setting.backbone.module.parameters())


@both
def test_the_depth_is_published_or_all_there_is_and_more_is_refused(cls):
    estimator = cls(MODEL)
    setting = setting_of(estimator)
    assert len(estimator._start(setting)["deep_ctx"]) == 3  # blocks of skclip-tiny: 4
    with pytest.raises(ValueError, match=r"depth=5 is more than the 4 blocks of the text tower of 'skclip-tiny'"):
        cls(MODEL, depth=5)._start(setting)


def test_maps_begin_as_linear_layers_and_all_but_the_first_alike():
    estimator = MaPLeClassifier(MODEL)
    start = estimator._start(setting_of(estimator))
    weight, bias = start["projection_weight"], start["projection_bias"]
    assert (weight[1:] == weight[1]).all()
    assert (bias[1:] == bias[1]).all()
    assert (weight[0] != weight[1]).any()
    for values in (weight, bias):
        assert values.abs().max() <= 1 / 8  # 1 / sqrt(64)
    assert_allclose(weight[0].std(), 1 / 8 / 3**0.5, rtol=0.05)


@pytest.mark.parametrize(
    ("params", "words", "fixed"),
    [
        ({"n_ctx": 2}, "a photo", True),
        ({"n_ctx": 4}, "a photo of a", True),
        ({"n_ctx": 1, "ctx_init": "sketch of"}, "sketch", True),
        ({"n_ctx": 5}, None, False),
        ({"ctx_init": None}, None, False),
    ],
)
@both
def test_where_the_first_tokens_begin(cls, params, words, fixed):
    """As the first words, the others of which stay; or random with nothing else before the name."""
    estimator = cls(MODEL, random_state=0, **params)
    setting = setting_of(estimator)
    ctx = estimator._start(setting)["ctx"]
    assert ctx.shape == (params.get("n_ctx", 2), 64)
    if words is None:
        assert 0.01 < ctx.std() < 0.03
        estimator._text(estimator._start(setting), setting)
        prefix = setting.constants["layout"](ctx).prefix
        assert prefix.shape[1] == 1 + len(ctx)
    else:
        ids = setting.backbone.token_ids([words])[0][1:-1]
        assert_array_equal(ctx, setting.text.embed(torch.tensor(ids)))


def test_tokens_of_pictures_are_linear_images_of_those_of_text():
    estimator = MaPLeClassifier(MODEL)
    learned = estimator._start(setting_of(estimator))
    every = [learned["ctx"], *learned["deep_ctx"]]
    found = visual_tokens(learned)
    assert found.shape == (4, 2, 96)
    for i, tokens in enumerate(every):
        layer = torch.nn.Linear(64, 96)
        layer.weight.data, layer.bias.data = learned["projection_weight"][i], learned["projection_bias"][i]
        assert_allclose(found[i], layer(tokens).detach(), atol=1e-6)


def test_with_maps_of_zero_all_that_tokens_learn_comes_through_the_text():
    estimator = MaPLeClassifier(MODEL)
    setting = setting_of(estimator)
    learned = learnable(estimator, setting)
    for name in ("projection_weight", "projection_bias"):
        learned[name] = torch.zeros_like(learned[name])
    assert not visual_tokens(learned).any()
    tokens = [learned["ctx"], learned["deep_ctx"]]
    for gradient in torch.autograd.grad(estimator._image(learned, setting, pixels()).square().sum(), tokens):
        assert not gradient.any()
    for gradient in torch.autograd.grad(estimator._text(learned, setting).square().sum(), tokens):
        assert gradient.any()


@pytest.mark.parametrize("layer", [None, 0, 1, 2])
@both
def test_tokens_of_text_move_pictures_where_they_are_tied_and_only_there(cls, layer):
    estimator = cls(MODEL)
    setting = setting_of(estimator)
    learned = estimator._start(setting)
    name = "ctx" if layer is None else "deep_ctx"

    def image(given):
        return estimator._image(given, setting, pixels())

    def text(given):
        return estimator._text(given, setting)

    assert moves(text, learned, name, layer)
    assert moves(image, learned, name, layer) == (cls is MaPLeClassifier)
    if cls is IVLPClassifier:
        assert moves(image, learned, "visual_ctx", 0 if layer is None else layer + 1)
        assert not moves(text, learned, "visual_ctx")


@both
def test_the_order_of_the_classes_does_not_matter(cls, world):
    images, y = world
    order = [2, 0, 3, 1]
    codes = np.array([NAMES.index(label) for label in y])
    straight = cls(MODEL, class_names=dict(enumerate(NAMES)), **FAST).fit(images, codes)
    names = {place: NAMES[k] for place, k in enumerate(order)}
    turned = cls(MODEL, class_names=names, **FAST).fit(images, np.argsort(order)[codes])
    assert_allclose(turned.text_features_, straight.text_features_[order], atol=1e-3)
    assert_allclose(turned.logits(images), straight.logits(images)[:, order], atol=0.05)


@both
def test_what_is_published_is_what_was_learned(cls, world):
    estimator = cls(MODEL, depth=3, **FAST).fit(*world)
    assert estimator.ctx_.shape == (2, 64)
    assert estimator.deep_ctx_.shape == (2, 2, 64)
    assert estimator.visual_ctx_.shape == (3, 2, 96)
    shallow = cls(MODEL, depth=1, **FAST).fit(*world)
    assert shallow.deep_ctx_.shape == (0, 2, 64)
    assert shallow.visual_ctx_.shape == (1, 2, 96)


def test_pictures_by_the_tuned_tower_are_those_of_its_tokens(world):
    images, y = world
    estimator = MaPLeClassifier(MODEL, **FAST).fit(images, y)
    plain = CLIPFeatures(MODEL).fit_transform(images)
    tuned = estimator.encode_image(images)
    assert_allclose(np.linalg.norm(tuned, axis=1), 1.0, rtol=1e-5)
    assert np.abs(tuned - plain).max() > 0.01
    assert_allclose(estimator.as_features().transform(images), tuned, atol=1e-6)


@both
def test_new_classes_by_the_same_tokens(cls, world):
    images, y = world
    estimator = cls(MODEL, **FAST).fit(images, y)
    back = estimator.with_classes(["green ring", *NAMES]).with_classes(NAMES)
    assert_allclose(back.logits(images), estimator.logits(images), atol=1e-3)


@both
def test_what_was_learned_is_read_as_long_as_it_is(cls, world):
    images, y = world
    estimator = cls(MODEL, n_ctx=2, depth=3, **{**FAST, "max_iter": 1}).fit(images, y)
    text, pictures = estimator.text_features_, estimator.encode_image(images[:4])
    more = {"n_visual_ctx": 5} if cls is IVLPClassifier else {}
    estimator.set_params(n_ctx=5, depth=2, **more)
    assert_array_equal(estimator.with_classes(NAMES).text_features_, text)
    assert_array_equal(estimator.encode_image(images[:4]), pictures)


@pytest.mark.parametrize("n_ctx", [0, 2])
def test_words_hold_no_place_for_the_name(world, n_ctx):
    with pytest.raises(ValueError, match=r"ctx_init='a photo of a \{\}\.' holds words only"):
        IVLPClassifier(MODEL, n_ctx=n_ctx, ctx_init=TEMPLATE, **FAST).fit(*world)


@both
def test_features_are_refused(cls):
    with pytest.raises(ValueError, match=rf"{cls.__name__} .*pictures.*\(8, 128\).*CoOpClassifier"):
        cls(MODEL).fit(np.zeros((8, 128), dtype=np.float32), NAMES * 2)


@both
def test_a_tower_without_tokens_is_refused_and_the_alternative_named(cls, world):
    with pytest.raises(OpenedTowerError, match=r"'skclip-tiny-rn'.*visual prompts.*CoOpClassifier"):
        cls("skclip-tiny-rn", **FAST).fit(*world)


def test_prompts_of_text_alone_work_with_a_resnet(world):
    estimator = IVLPClassifier("skclip-tiny-rn", n_visual_ctx=0, **FAST).fit(*world)
    assert estimator.predict(world[0]).shape == (24,)


@both
def test_it_recognises_more_than_zero_shot_on_pictures_that_it_has_not_seen(cls):
    """Sketches of four classes, of which the model saw photographs alone."""
    params = {"shapes": ["circle", "star"], "colors": ["red", "blue"], "styles": ["sketch"], "random_state": 5}
    train, test = make_picture_world(48, **params), make_picture_world(120, start=64, **params)
    zero_shot = ZeroShotClassifier(MODEL, class_names=NAMES, templates=TEMPLATE).fit(None, np.array(NAMES))
    before = zero_shot.score(CLIPFeatures(MODEL).fit_transform(test.images), test.target)
    estimator = cls(MODEL, max_iter=5, batch_size=8, augmentation=None, random_state=0).fit(train.images, train.target)
    assert estimator.score(test.images, test.target) > before + 0.03


@pytest.mark.slow
def test_new_classes_lose_less_than_by_coop():
    """Coarse noisy pixels: 5 pairs of which the colour alone tells, to learn from; 20 others by name.

    On the 5 pairs CoOp is better here, other than in the paper.
    """
    shapes, colors = ["circle", "square", "triangle", "star", "cross"], ["red", "green", "blue", "yellow", "purple"]
    base = [f"{color} {shape}" for color, shape in zip(colors, shapes)]
    draws = []
    for n, seed in ((600, 7), (800, 8)):
        options = {"styles": ["pixel"], "noise": 60.0, "held_out": "include", "random_state": seed}
        drawn = make_picture_world(n, shapes=shapes, colors=colors, **options)
        draws.append((drawn.images, np.array(drawn.target), np.isin(drawn.target, base)))
    (images, y, of_base), (test, y_test, known) = draws
    images, y, features = images[of_base], y[of_base], CLIPFeatures(MODEL, store=None)
    X, X_test = features.fit_transform(images), features.fit_transform(test)
    new = np.unique(y_test[~known]).tolist()
    zero_shot = ZeroShotClassifier(MODEL, class_names=base, templates=TEMPLATE).fit(None, np.array(base))
    for seed in range(3):
        train, _ = few_shot_split(y, 16, random_state=seed)
        maple = MaPLeClassifier(MODEL, augmentation=None, store=None, random_state=seed).fit(images[train], y[train])
        params = {"ctx_init": "a photo of a", "max_iter": 50, "learning_rate": 0.02, "random_state": seed}
        coop = CoOpClassifier(MODEL, **params).fit(X[train], y[train])
        before = zero_shot.score(X_test[known], y_test[known])
        assert maple.score(test[known], y_test[known]) > before + 0.05
        others = coop.with_classes(new).score(X_test[~known], y_test[~known])
        assert maple.with_classes(new).score(test[~known], y_test[~known]) > others + 0.05
