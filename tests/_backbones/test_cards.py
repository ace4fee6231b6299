from __future__ import annotations

import json
import pickle
from dataclasses import FrozenInstanceError

import open_clip
import pytest

from skclip._backbones import DEFAULT_MODEL, BackboneError, get_card, list_models
from skclip._backbones._cards import _tag_recipe, get_recipe


def test_default_model_needs_no_quick_gelu():
    card = get_card(DEFAULT_MODEL)
    assert card.name == DEFAULT_MODEL
    assert (card.dim, card.image_size, card.context_length) == (512, (224, 224), 77)
    assert (card.license, card.quick_gelu, card.causal_text) == ("MIT", False, True)
    assert (card.interpolation, card.resize_mode, card.fill_color) == ("bicubic", "shortest", 0)
    assert card.mean == open_clip.OPENAI_DATASET_MEAN
    assert card.std == open_clip.OPENAI_DATASET_STD
    assert card.logit_scale is None


def test_every_listed_model_has_a_card():
    for name in list_models("*/*"):
        architecture, tag = name.split("/")
        pretrained = open_clip.get_pretrained_cfg(architecture, tag)
        card = get_card(name)
        assert card.mean == tuple(pretrained["mean"])
        assert card.std == tuple(pretrained["std"])
        assert card.resize_mode == pretrained["resize_mode"]
        assert card.interpolation == pretrained["interpolation"]
        # Weights trained with QuickGELU are never served without it.
        assert card.quick_gelu or not pretrained.get("quick_gelu", False)
        assert card.dim == json.loads(card.config)["embed_dim"]
        assert hash(card) == hash(pickle.loads(pickle.dumps(card)))
        assert get_card(card.name) == card


@pytest.mark.parametrize("model", ["ViT-B-32/openai", "ViT-B-32-quickgelu/openai", "ViT-B-32/OpenAI"])
def test_openai_weights_get_quick_gelu(model):
    card = get_card(model)
    assert card.name == "ViT-B-32-quickgelu/openai"
    assert card.architecture == "ViT-B-32-quickgelu"
    assert card.tag == "openai"
    assert card.quick_gelu
    assert card.logit_scale == 100.0
    assert json.loads(card.config)["quick_gelu"] is True
    assert get_recipe(model) == get_recipe("ViT-B-32/openai")


def test_quick_gelu_without_an_architecture_of_that_name(monkeypatch):
    known = open_clip.get_model_config
    plain_only = lambda name: None if name.endswith("-quickgelu") else known(name)  # noqa: E731
    monkeypatch.setattr(open_clip, "get_model_config", plain_only)
    card = _tag_recipe.__wrapped__("ViT-B-16/dfn2b").card  # past its cache
    assert card.quick_gelu
    assert json.loads(card.config)["quick_gelu"] is True


def test_quick_gelu_architecture_refuses_other_weights():
    with pytest.raises(ValueError, match=r"without QuickGELU.*Use 'ViT-B-32/laion2b_s34b_b79k'"):
        get_card("ViT-B-32-quickgelu/laion2b_s34b_b79k")


def test_an_architecture_may_carry_quick_gelu_in_its_configuration():
    # open_clip's tag says nothing, its configuration does, and the weights were trained with it.
    assert get_card("roberta-ViT-B-32/laion2b_s12b_b32k").quick_gelu


@pytest.mark.parametrize(
    ("model", "causal", "context", "license"),
    [
        ("ViT-B-16-SigLIP2/webli", False, 64, "Apache-2.0"),
        ("MobileCLIP2-S4/dfndr2b", False, 77, "apple-amlr"),
        ("MobileCLIP-B/datacompdr", True, 77, "apple-amlr"),
        ("coca_ViT-B-32/laion2b_s13b_b90k", False, 76, "MIT"),
        ("xlm-roberta-base-ViT-B-32/laion5b_s13b_b90k", False, 77, "MIT"),
        ("ViT-H-14-worldwide/metaclip2_worldwide", True, 77, "CC-BY-NC-4.0"),
        ("PE-Core-B-16/meta", True, 32, "Apache-2.0"),
        ("ViT-B-16/metaclip_400m", True, 77, "CC-BY-NC-4.0"),
        ("ViT-B-16/dfn2b", True, 77, None),
        ("ViT-L-14-CLIPA/datacomp1b", False, 32, "Apache-2.0"),
    ],
)
def test_text_tower_and_license(model, causal, context, license):
    card = get_card(model)
    assert (card.causal_text, card.context_length, card.license) == (causal, context, license)


@pytest.mark.parametrize(
    ("model", "gflops"),
    # open_clip's own table of profiles says 8.82, 12.22 (RN50: 18.18 with text 5.96), 30.7.
    [(DEFAULT_MODEL, 8.82), ("RN50/openai", 12.22), ("convnext_base/laion400m_s13b_b51k", 30.71)],
)
def test_gflops_are_counted(model, gflops):
    assert get_card(model).gflops_image == pytest.approx(gflops, rel=2e-3)


def test_list_models():
    everything = list_models()
    assert everything[:2] == ["skclip-tiny", "skclip-tiny-rn"]
    assert DEFAULT_MODEL in everything
    assert len(set(everything)) == len(everything) > 150
    base = list_models("ViT-B*")
    assert base
    assert all(name.startswith("ViT-B") for name in base)
    assert "ViT-B-32-quickgelu/openai" in list_models("*/openai")
    assert list_models("no such model") == []


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ViT-B-33/openai", r"Unknown model.*Did you mean 'ViT-B-32/openai'"),
        ("ViT-B/32/openai", r"Did you mean 'ViT-B-32/openai'"),
        ("vit-b-32/openai", r"Did you mean 'ViT-B-32/openai'"),
        ("ViT-B-32/datacomp", r"ViT-B-32 has no weights 'datacomp'.*'ViT-B-32/datacomp_xl_s13b_b90k'"),
        ("ViT-B-32", r"needs a tag that names its weights.*'ViT-B-32/openai'"),
        ("skclip-tinny", r"Did you mean 'skclip-tiny'"),
        ("", r"Unknown model ''.*skclip\.list_models\(\)"),
        (None, r"model=None is not a string"),
        (7, r"model=7 is not a string"),
    ],
)
def test_unknown_models(model, message):
    with pytest.raises(ValueError, match=message):
        get_card(model)


def test_folder_card_is_the_folders_own(models, own_folder):
    config = json.loads((own_folder / "open_clip_config.json").read_text())
    config["preprocess_cfg"] = {
        "mean": [0.5, 0.5, 0.5],
        "std": 0.25,
        "resize_mode": "squash",
        "fill_color": 7,
    }
    config["model_cfg"]["vision_cfg"]["image_size"] = [32, 48]
    (own_folder / "open_clip_config.json").write_text(json.dumps(config))
    card = get_card(f"local-dir:{own_folder}")
    assert (card.architecture, card.tag, card.dim) == ("own", None, 24)
    assert (card.image_size, card.mean, card.std) == ((32, 48), (0.5,) * 3, (0.25,) * 3)
    assert (card.resize_mode, card.fill_color, card.interpolation) == ("squash", 7, "bicubic")
    assert get_card(models("quick")).quick_gelu
    assert get_card(models("vit")).config != get_card(models("quick")).config


def test_folder_without_configuration(own_folder, tmp_path):
    model = f"local-dir:{own_folder}"
    path = own_folder / "open_clip_config.json"
    path.write_text('{"embed_dim": 3}')
    with pytest.raises(BackboneError, match="lacks 'model_cfg' with embed_dim, vision_cfg, text_cfg"):
        get_card(model)
    path.write_text("{")
    with pytest.raises(BackboneError, match="cannot be read as JSON"):
        get_card(model)
    path.unlink()
    with pytest.raises(BackboneError, match=r"holds no open_clip_config\.json"):
        get_card(model)
    with pytest.raises(BackboneError, match="there is no folder"):
        get_card(f"local-dir:{tmp_path / 'nowhere'}")


def test_cards_are_frozen():
    card = get_card(DEFAULT_MODEL)
    with pytest.raises(FrozenInstanceError):
        card.dim = 3
