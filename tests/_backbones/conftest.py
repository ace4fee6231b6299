"""Small random open_clip models as folders, as open_clip itself saves them."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from skclip._backbones import clear_backbones
from skclip._backbones._open_clip import import_open_clip

import_open_clip()  # the test files below import open_clip itself

TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 2, "width": 64, "head_width": 32, "patch_size": 8}
CONFIGS = {
    "vit": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT},
    "quick": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "quick_gelu": True},
    "resnet": {
        "embed_dim": 24,
        "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32},
        "text_cfg": TEXT,
    },
    "custom": {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT, "custom_text": True},
    "eos": {
        "embed_dim": 24,
        "vision_cfg": VISION,
        "text_cfg": {**TEXT, "pool_type": "eos", "eos_id": 49407, "proj_bias": True},
        "custom_text": True,
    },
    "two-way": {
        "embed_dim": 24,
        "vision_cfg": VISION,
        "text_cfg": {**TEXT, "no_causal_mask": True},
        "custom_text": True,
    },
    "last": {
        "embed_dim": 24,
        "vision_cfg": VISION,
        "text_cfg": {**TEXT, "no_causal_mask": True, "pool_type": "last"},
    },
    "coca": {
        "embed_dim": 24,
        "vision_cfg": {**VISION, "attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
        "text_cfg": {**TEXT, "context_length": 76, "embed_cls": True, "output_tokens": True},
        "multimodal_cfg": {**TEXT, "context_length": 76, "attn_pooler_heads": 2},
        "custom_text": True,
    },
}


def save_folder(folder: Path, model_cfg: dict, preprocess_cfg: dict | None = None, *, seed: int = 0) -> str:
    """Save a random model of this configuration; return its model string."""
    import torch
    from safetensors.torch import save_file

    from skclip._backbones._building import build_module

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = build_module(model_cfg)
    folder.mkdir(parents=True, exist_ok=True)
    state = {key: value.contiguous() for key, value in module.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    config = {"model_cfg": model_cfg, "preprocess_cfg": preprocess_cfg or {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    return f"local-dir:{folder}"


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Model string of each kind, saved when first asked for: read only."""
    root = tmp_path_factory.mktemp("models")
    made: dict[str, str] = {}

    def get(kind: str) -> str:
        if kind not in made:
            made[kind] = save_folder(root / kind, copy.deepcopy(CONFIGS[kind]))
        return made[kind]

    return get


@pytest.fixture
def own_folder(tmp_path):
    """A ViT folder of this test alone, to be damaged."""
    save_folder(tmp_path / "own", copy.deepcopy(CONFIGS["vit"]))
    return tmp_path / "own"


@pytest.fixture(autouse=True)
def _empty_cache():
    clear_backbones()
    yield
    clear_backbones()
