from __future__ import annotations

import copy
import re

import pytest
import torch

from skclip._backbones._building import build_module
from skclip._backbones._matrices import (
    KINDS,
    block_matrices,
    side_parameters,
    tower_name,
    with_matrices,
)
from skclip._backbones._opened import Opened

from .conftest import CONFIGS, TEXT, VISION


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """A random open_clip module of a kind of tower, built once."""
    made = {}

    def config(kind):
        if kind in CONFIGS:
            return copy.deepcopy(CONFIGS[kind])
        base = {"embed_dim": 24, "vision_cfg": dict(VISION), "text_cfg": dict(TEXT)}
        if kind == "timm":
            base["vision_cfg"] = {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224, "timm_proj": "linear"}
        elif kind == "convolutions":
            base["vision_cfg"] = {"timm_model_name": "convnext_atto", "image_size": 32, "timm_proj": "linear"}
        elif kind == "qk-norm":
            base["vision_cfg"]["qk_norm"] = True
        elif kind == "bert":
            from transformers import BertConfig

            folder = tmp_path_factory.mktemp("bert")
            sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
            BertConfig(vocab_size=100, **sizes).save_pretrained(folder)
            base["text_cfg"] = {"hf_model_name": str(folder), "hf_proj_type": "linear"}
            base["text_cfg"]["hf_pooler_type"] = "cls_last_hidden_state_pooler"
        return base

    def get(kind):
        if kind not in made:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                made[kind] = build_module(config(kind)).eval().requires_grad_(False)
        return made[kind]

    return get


def embed(module, side, weights):
    """What a tower computes with other weights."""
    draw = torch.Generator().manual_seed(0)
    if side == "vision":
        size = module.visual.image_size
        height, width = size if isinstance(size, tuple) else (size, size)
        pictures = torch.randn((2, 3, height, width), generator=draw)
        return Opened(module).run(lambda part: part.encode_image(pictures), weights)
    vocabulary = 100 if hasattr(module, "text") and hasattr(module.text, "config") else 49408
    ids = torch.randint(1, vocabulary, (2, 77), generator=draw)
    return Opened(module).run(lambda part: part.encode_text(ids), weights)


TOWERS = [("vit", "vision", 2), ("vit", "text", 2), ("custom", "text", 2), ("qk-norm", "vision", 2)]
TOWERS += [("timm", "vision", 12), ("bert", "text", 2)]


@pytest.mark.parametrize(("kind", "side", "n_layers"), TOWERS)
def test_every_block_has_six_matrices_and_no_row_is_in_two(build, kind, side, n_layers):
    module = build(kind)
    matrices = block_matrices(module, side)
    assert [(matrix.layer, matrix.kind) for matrix in matrices] == [(i, k) for i in range(n_layers) for k in KINDS]
    assert len({matrix.key for matrix in matrices}) == 6 * n_layers
    width = len(matrices[0].of(module))
    for matrix in matrices:
        height, depth = matrix.of(module).shape
        assert (height > width, depth > width) == (matrix.kind == "fc1", matrix.kind == "fc2")
    covered = sum(matrix.of(module).numel() for matrix in matrices)
    within = re.compile(r"(resblocks|blocks|layer)\.\d+\.")
    flat = [p.numel() for n, p in side_parameters(module, side).items() if within.search(n) and p.ndim == 2]
    assert covered == sum(flat)


def test_names():
    with torch.device("meta"):
        module = build_module(copy.deepcopy(CONFIGS["vit"]))
    queries, keys = block_matrices(module, "vision")[:2]
    assert queries.key == "visual.transformer.resblocks.0.attn.q"
    assert (queries.name, queries.rows) == ("visual.transformer.resblocks.0.attn.in_proj_weight", slice(0, 64))
    assert (keys.name, keys.rows) == (queries.name, slice(64, 128))
    assert block_matrices(module, "text")[-1].key == "transformer.resblocks.1.mlp.fc2"


@pytest.mark.parametrize(("kind", "side", "n_layers"), TOWERS)
def test_matrices_are_what_they_are_called(build, kind, side, n_layers):
    """Without biases, queries times 2 and keys by 2 cancel, and so do values and outputs; of other pairs none does."""
    module = build(kind)
    without = {n: torch.zeros_like(p) for n, p in side_parameters(module, side).items() if n.endswith("bias")}
    matrices = block_matrices(module, side)
    if kind == "qk-norm":
        matrices = [matrix for matrix in matrices if matrix.kind in "vo"]

    def scaled(first, second):
        factors = {first: 2.0, second: 0.5}
        chosen = [matrix for matrix in matrices if matrix.kind in factors]
        values = {matrix.key: matrix.of(module) * factors[matrix.kind] for matrix in chosen}
        return embed(module, side, without | with_matrices(module, chosen, values))

    plain = embed(module, side, without)
    size = plain.abs().max()
    for pair in [("v", "o")] if kind == "qk-norm" else [("q", "k"), ("v", "o")]:
        assert (scaled(*pair) - plain).abs().max() < 1e-5 * size
    for pair in [("v", "fc1"), ("fc1", "o"), ("o", "fc2")]:
        assert (scaled(*pair) - plain).abs().max() > 1e-4 * size


@pytest.mark.parametrize(("kind", "side"), [("vit", "vision"), ("timm", "vision"), ("bert", "text")])
def test_other_rows_of_a_parameter_stay(build, kind, side):
    module = build(kind)
    chosen = [matrix for matrix in block_matrices(module, side) if matrix.kind in ("k", "fc1") and matrix.layer == 1]
    values = {matrix.key: torch.full(matrix.of(module).shape, 7.0) for matrix in chosen}
    whole = with_matrices(module, chosen, values)
    assert set(whole) == {matrix.name for matrix in chosen}
    for matrix in chosen:
        expected = module.get_parameter(matrix.name).clone()
        expected[matrix.rows] = 7.0
        assert torch.equal(whole[matrix.name], expected)


@pytest.mark.parametrize(("kind", "side"), [("resnet", "vision"), ("convolutions", "vision")])
def test_towers_of_convolutions_have_none(build, kind, side):
    assert block_matrices(build(kind), side) == []


def test_the_decoder_of_coca_is_neither_tower(build):
    module = build("coca")
    named = {name for side in ("vision", "text") for name in side_parameters(module, side)}
    rest = {name for name, _ in module.named_parameters()} - named
    assert {name.partition(".")[0] for name in rest} == {"text_decoder", "logit_scale"}
    # nor is the pool by attention a block
    assert {matrix.path.rsplit(".", 2)[0] for matrix in block_matrices(module, "vision")} == {
        "visual.transformer.resblocks"
    }


@pytest.mark.parametrize("kind", ["vit", "custom", "timm", "bert", "resnet"])
def test_the_two_towers_share_nothing(build, kind):
    module = build(kind)
    vision, text = side_parameters(module, "vision"), side_parameters(module, "text")
    assert not set(vision) & set(text)
    assert {name for name, _ in module.named_parameters()} - set(vision) - set(text) == {"logit_scale"}


def test_towers_are_called_by_their_class(build):
    assert tower_name(build("resnet"), "vision") == "image tower (ModifiedResNet)"
    assert tower_name(build("convolutions"), "vision") == "image tower (ConvNeXt)"
    assert tower_name(build("custom"), "text") == "text tower (TextTransformer)"
