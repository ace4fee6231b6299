from __future__ import annotations

import copy
import threading

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

from skclip._backbones import BackboneError, get_card, grid_shape, load_backbone
from skclip._backbones._towers import encode_places, value_path

from .conftest import CONFIGS, TEXT, VISION, save_folder

KINDS = {
    "vit": {},
    "quick": {},
    "custom": {},
    "resnet": None,
    "layer-scale": {"ls_init_value": 0.3},
    "average": {"pool_type": "avg"},
    "average-then-norm": {"pool_type": "avg", "final_ln_after_pool": True},
    "oblong": {"image_size": [32, 48], "patch_size": 16},
    "dropped-patches": {"patch_dropout": 0.5},
}


@pytest.fixture
def model(models, tmp_path):
    """Model string of a kind of tower that can be opened."""

    def get(kind):
        if kind in CONFIGS:
            return models(kind)
        vision = {**VISION, **KINDS[kind]}
        return save_folder(tmp_path / kind, {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT})

    return get


def pictures(card, n=5, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *card.image_size, 3), dtype=np.uint8)


def places(backbone, X, **options):
    return backbone.encode_places(X, **options).reshape(len(X), -1, backbone.card.dim)


def pixels(backbone, n=3):
    size = (n, 3, *backbone.card.image_size)
    return torch.from_numpy(np.random.default_rng(1).normal(size=size).astype(np.float32))


@pytest.mark.parametrize("kind", KINDS)
def test_the_first_token_is_the_picture_and_the_rest_fill_the_grid(model, kind):
    backbone = load_backbone(model(kind), device="cpu")
    X = pictures(backbone.card)
    tokens = places(backbone, X)
    assert tokens.dtype == np.float32
    height, width = grid_shape(backbone.card)
    assert tokens.shape == (5, 1 + height * width, 24)
    assert_allclose(tokens[:, 0], backbone.encode_images(X), atol=1e-6 * np.abs(tokens).max())


@pytest.mark.parametrize(
    ("kind", "shape"), [("vit", (4, 4)), ("resnet", (2, 2)), ("oblong", (2, 3)), ("dropped-patches", (4, 4))]
)
def test_grid(model, kind, shape):
    assert grid_shape(get_card(model(kind))) == shape


def test_grids_of_known_models():
    assert grid_shape(get_card("skclip-tiny")) == (6, 6)
    assert grid_shape(get_card("skclip-tiny-rn")) == (2, 2)
    assert grid_shape(get_card("ViT-B-32/openai")) == (7, 7)
    assert grid_shape(get_card("ViT-L-14-336/openai")) == (24, 24)
    assert grid_shape(get_card("RN50x4/openai")) == (9, 9)


@pytest.mark.parametrize("kind", ["vit", "quick", "layer-scale"])
def test_value_path_is_the_untouched_block_with_every_token_masked_from_all_others(model, kind):
    visual = load_backbone(model(kind), device="cpu").module.visual
    block = copy.deepcopy(visual.transformer.resblocks[-1]).double()
    hidden = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 17, 64)))
    alone = torch.full((17, 17), float("-inf")).fill_diagonal_(0.0)
    with torch.no_grad():
        expected = block(hidden, attn_mask=alone)
        found = value_path(block, hidden)
        plain = block(hidden)
    assert_allclose(found.numpy(), expected.numpy(), rtol=0, atol=1e-13)
    assert (plain - found).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["vit", "quick", "layer-scale", "average-then-norm", "oblong"])
def test_places_are_open_clips_own_tokens_under_the_mask(model, kind):
    backbone = load_backbone(model(kind), device="cpu")
    visual, X = backbone.module.visual, pixels(backbone)
    block = visual.transformer.resblocks[-1]

    def alone(module, args, kwargs):
        n = args[0].shape[1]
        return args, {**kwargs, "attn_mask": torch.full((n, n), float("-inf")).fill_diagonal_(0.0)}

    with torch.no_grad():
        found = encode_places(visual, X)[:, 1:]
        hook = block.register_forward_pre_hook(alone, with_kwargs=True)
        out = visual.forward_intermediates(X, indices=[-1], output_fmt="NLC", normalize_intermediates=True)
        hook.remove()
    assert_allclose(found, out["image_intermediates"][0] @ visual.proj, rtol=0, atol=1e-5)


def test_places_of_a_resnet_are_the_values_that_its_pool_averages(models):
    backbone = load_backbone(models("resnet"), device="cpu")
    visual, X = backbone.module.visual, pixels(backbone)
    with torch.no_grad():
        found = encode_places(visual, X)[:, 1:].reshape(3, 2, 2, 24).numpy()
        last = visual.layer4(visual.layer3(visual.layer2(visual.layer1(visual.stem(X)))))
    last = last.double().numpy()
    pool = {name: p.detach().double().numpy() for name, p in visual.attnpool.named_parameters()}
    for row in range(2):
        for column in range(2):
            values = last[:, :, row, column] @ pool["v_proj.weight"].T + pool["v_proj.bias"]
            expected = values @ pool["c_proj.weight"].T + pool["c_proj.bias"]
            assert_allclose(found[:, row, column], expected, atol=1e-5)


def test_equal_places_of_a_resnet_without_positions_pool_to_themselves(models):
    """All places alike and no position embedding: attention averages equal values."""
    backbone = load_backbone(models("resnet"), device="cpu")
    pool = copy.deepcopy(backbone.module.visual.attnpool)
    with torch.no_grad():
        pool.positional_embedding.zero_()
        last = torch.from_numpy(np.random.default_rng(0).normal(size=(3, 256, 1, 1)).astype(np.float32))
        whole = pool(last.expand(-1, -1, 2, 2))
        place = pool.c_proj(pool.v_proj(last[:, :, 0, 0]))
    assert_allclose(whole, place, atol=1e-5)


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_a_place_far_away_reaches_the_tokens_of_a_picture_through_the_trunk_alone(model, kind):
    """The last block mixes nothing: a change of what it reads at one place changes that place alone."""
    backbone = load_backbone(model(kind), device="cpu")
    visual = backbone.module.visual
    if kind == "vit":
        hidden = torch.from_numpy(np.random.default_rng(0).normal(size=(1, 16, 64)).astype(np.float32))
        changed = hidden.clone()
        changed[0, 5] += 1.0
        with torch.no_grad():
            difference = value_path(visual.transformer.resblocks[-1], changed)
            difference -= value_path(visual.transformer.resblocks[-1], hidden)
        assert_array_equal(np.flatnonzero(difference[0].abs().amax(dim=1) > 1e-6), [5])
    else:
        X = pixels(backbone, 1)
        with torch.no_grad():
            before, after = encode_places(visual, X), encode_places(visual, X.flip(3))
        assert (before - after).abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_rows_do_not_depend_on_their_batch(model, kind):
    backbone = load_backbone(model(kind), device="cpu")
    X = pictures(backbone.card, 7)
    whole = backbone.encode_places(X)
    for batch_size in (1, 3, 100):
        assert_allclose(backbone.encode_places(X, batch_size=batch_size), whole, atol=1e-5 * np.abs(whole).max())
    assert_allclose(backbone.encode_places(X[::-1])[::-1], whole, atol=1e-5 * np.abs(whole).max())
    assert backbone.encode_places(X[:0]).shape == (0, whole.shape[1])


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_half_precision_is_near(model, kind, precision):
    full = load_backbone(model(kind), device="cpu")
    half = load_backbone(model(kind), device="cpu", precision=precision)
    X = pictures(full.card)
    a, b = full.encode_places(X), half.encode_places(X)
    assert b.dtype == np.float32
    assert_allclose(b, a, atol=(0.05 if precision == "bf16" else 0.01) * np.abs(a).max())


@pytest.mark.parametrize("kind", ["vit", "resnet"])
def test_the_tower_is_left_as_it_was(model, kind):
    backbone = load_backbone(model(kind), device="cpu")
    X = pictures(backbone.card)
    before = backbone.encode_images(X)
    state = {name: value.clone() for name, value in backbone.module.state_dict().items()}
    backbone.encode_places(X)
    assert all(torch.equal(state[name], value) for name, value in backbone.module.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in backbone.module.modules())
    assert_array_equal(backbone.encode_images(X), before)


def test_threads_may_read_pictures_and_places_at_once(models):
    backbone = load_backbone(models("vit"), device="cpu")
    X = pictures(backbone.card, 20)
    expected = backbone.encode_places(X), backbone.encode_images(X)
    found = {}

    def work(i):
        found[i] = backbone.encode_places(X), backbone.encode_images(X)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    for tokens, whole in found.values():
        assert_allclose(tokens, expected[0], atol=1e-6)
        assert_allclose(whole, expected[1], atol=1e-6)


@pytest.mark.parametrize(
    ("vision", "message"),
    [
        ({**VISION, "qk_norm": True}, "has custom attention blocks"),
        ({**VISION, "block_type": "custom"}, "has custom attention blocks"),
        ({**VISION, "layers": 1}, "has a single block"),
        (CONFIGS["coca"]["vision_cfg"], "pools its places by attention"),
        ({"timm_model_name": "vit_tiny_patch16_224", "image_size": 32}, "is timm's vit_tiny_patch16_224"),
    ],
)
def test_towers_that_cannot_be_opened_are_named(tmp_path, vision, message):
    import json

    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT}, "preprocess_cfg": {}}
    (tmp_path / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=rf"model=.*{tmp_path.name}.*{message}.*VisionTransformer and ResNet"):
        grid_shape(get_card(f"local-dir:{tmp_path}"))


@pytest.mark.parametrize(
    "name", ["coca_ViT-B-32/laion2b_s13b_b90k", "ViT-B-16-SigLIP/webli", "convnext_base/laion400m_s13b_b51k"]
)
def test_of_the_known_models_those_that_cannot_be_opened_are_named(name):
    with pytest.raises(ValueError, match=f"model='{name}'"):
        grid_shape(get_card(name))


def test_a_refused_tower_is_refused_at_encoding_too(models):
    backbone = load_backbone(models("coca"), device="cpu")
    with pytest.raises(ValueError, match="pools its places by attention"):
        backbone.encode_places(pictures(backbone.card))


def test_overflow_is_reported(models):
    backbone = load_backbone(models("vit"), device="cpu", precision="fp16")
    with torch.no_grad():
        backbone.module.visual.ln_post.bias.fill_(1000)
        backbone.module.visual.proj.fill_(1000)
    with pytest.raises(BackboneError, match="NaN or infinity for 2 of 2 pictures"):
        backbone.encode_places(pictures(backbone.card, 2))
