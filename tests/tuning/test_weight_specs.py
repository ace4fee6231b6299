from __future__ import annotations

import copy
import gc
import threading

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose

from skclip._backbones import load_backbone
from skclip._backbones._building import build_module
from skclip._backbones._matrices import KINDS, block_matrices, side_parameters
from skclip._backbones._open_clip import import_open_clip
from skclip._backbones._opened import Opened, OpenedTowerError, attend
from skclip.tuning import _weight_specs
from skclip.tuning._weight_specs import (
    Biases,
    Full,
    LayerNorms,
    LowRank,
    SingularValues,
    chosen_matrices,
    decompose,
    layer_numbers,
    merge,
)

import_open_clip()

TEXT = {"context_length": 16, "vocab_size": 60, "width": 32, "heads": 2, "layers": 2}
VISION = {"image_size": 32, "layers": 3, "width": 64, "head_width": 32, "patch_size": 16}
VIT = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": TEXT}
RESNET = {"image_size": 64, "layers": [1, 1, 1, 1], "width": 8, "head_width": 32}
B16 = {
    "embed_dim": 512,
    "vision_cfg": {"image_size": 224, "layers": 12, "width": 768, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12},
}


def random_module(seed=0, **changes):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_module(copy.deepcopy(VIT | changes)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def module():
    return random_module()


@pytest.fixture(scope="module")
def base_16():
    """Shapes of ViT-B/16."""
    with torch.device("meta"):
        return build_module(copy.deepcopy(B16))


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A tower of transformers and one of timm."""
    from transformers import BertConfig

    folder = tmp_path_factory.mktemp("bert")
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    BertConfig(vocab_size=60, **sizes).save_pretrained(folder)
    text = {"hf_model_name": str(folder), "hf_proj_type": "linear", "hf_pooler_type": "cls_last_hidden_state_pooler"}
    vision = {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224, "timm_proj": "linear"}
    return random_module(text_cfg=text, vision_cfg=vision)


def embed(module, weights=None):
    """Embeddings of two pictures and three texts, one below the other."""
    draw = torch.Generator().manual_seed(0)
    size = module.visual.image_size
    height, width = size if isinstance(size, tuple) else (size, size)
    pictures = torch.randn((2, 3, height, width), generator=draw)
    ids = torch.randint(1, 60, (3, 16), generator=draw)
    both = Opened(module).run(lambda part: torch.cat([part.encode_image(pictures), part.encode_text(ids)]), weights)
    return both


def started(spec, module, seed=0):
    return spec.start(module, torch.Generator().manual_seed(seed))


def moved(learned, by=0.1, seed=1):
    draw = torch.Generator().manual_seed(seed)
    return {name: value + by * torch.randn(value.shape, generator=draw) for name, value in learned.items()}


SPECS = [LowRank(), LowRank(targets=KINDS), SingularValues(), LayerNorms(), Biases(), Full()]
ids = [type(spec).__name__ + ("-all" if i == 1 else "") for i, spec in enumerate(SPECS)]


@pytest.mark.parametrize("spec", SPECS, ids=ids)
@pytest.mark.parametrize("which", ["module", "bert"])
def test_the_start_is_neutral(spec, which, request):
    module = request.getfixturevalue(which)
    learned = started(spec, module)
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in learned.values())
    assert torch.equal(embed(module, spec.overrides(module, learned)), embed(module))
    assert (embed(module, spec.overrides(module, moved(learned))) - embed(module)).abs().max() > 1e-3


@pytest.mark.parametrize("spec", SPECS, ids=ids)
def test_the_start_is_a_copy(spec):
    module = random_module()
    before = embed(module)
    for value in started(spec, module).values():
        value.add_(1.0)
    for value in merge(spec, module, started(spec, module)).values():
        value.add_(1.0)
    assert torch.equal(embed(module), before)


@pytest.mark.parametrize("spec", SPECS, ids=ids)
def test_gradients_reach_all_that_is_trained_and_nothing_else(spec, module):
    learned = {name: value.requires_grad_() for name, value in moved(started(spec, module)).items()}
    embed(module, spec.overrides(module, learned)).square().sum().backward()
    # what no token of this forward reads has a gradient of 0
    assert all(value.grad is not None for value in learned.values())
    dead = [name for name, value in learned.items() if not value.grad.any()]
    assert dead == []
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("spec", SPECS, ids=ids)
def test_merged_weights_are_the_overrides_without_gradient(spec, module):
    learned = {name: value.requires_grad_() for name, value in moved(started(spec, module)).items()}
    overrides, merged = spec.overrides(module, learned), merge(spec, module, learned)
    assert set(overrides) == set(merged)
    for name, value in merged.items():
        assert torch.equal(value, overrides[name])
        assert not value.requires_grad
    assert set(merged) <= set(module.state_dict())
    copied = copy.deepcopy(module)
    copied.load_state_dict(merged, strict=False)
    # two kernels: attention has another one where a gradient is asked for
    assert_allclose(embed(copied), embed(module, overrides).detach(), atol=1e-5)


@pytest.mark.parametrize("spec", SPECS, ids=ids)
def test_the_same_generator_starts_alike(spec, module):
    first, second = started(spec, module, seed=3), started(spec, module, seed=3)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("sides", [("vision",), ("text",)])
@pytest.mark.parametrize("kind", [LowRank, SingularValues, LayerNorms, Biases, Full])
def test_one_tower_alone(kind, sides, module):
    spec = kind(sides=sides)
    learned = moved(started(spec, module))
    change = (embed(module, spec.overrides(module, learned)) - embed(module)).abs().amax(dim=1)
    pictures, texts = change[:2], change[2:]
    tuned, other = (pictures, texts) if sides == ("vision",) else (texts, pictures)
    assert tuned.min() > 1e-4
    assert other.max() == 0
    assert set(spec.overrides(module, learned)) <= set(side_parameters(module, sides[0]))


def count(learned):
    return sum(value.numel() for value in learned.values())


def test_numbers_of_a_vit_b_16(base_16):
    assert count(started(LowRank(r=2), base_16)) == 184_320
    ranks = [min(matrix.of(base_16).shape) for side in ("vision", "text") for matrix in block_matrices(base_16, side)]
    assert sum(ranks) == 92_160 == 12 * 6 * (768 + 512)
    norms = sum(base_16.get_parameter(name).numel() for name in LayerNorms().names(base_16))
    assert norms == 2 * (768 * 26 + 512 * 25)
    everything = {name for name, _ in base_16.named_parameters()} - {"logit_scale"}
    assert set(Full().names(base_16)) == everything


def test_numbers_of_singular_values(module):
    assert count(started(SingularValues(), module)) == 3 * 6 * 64 + 2 * 6 * 32


# --- low rank


def test_low_rank_update(module):
    spec = LowRank(r=4, alpha=3.0, targets=("k",), layers=(1,), sides=("vision",))
    learned = moved(started(spec, module))
    key = "visual.transformer.resblocks.1.attn.k"
    assert set(learned) == {f"{key}.A", f"{key}.B"}
    ((name, found),) = spec.overrides(module, learned).items()
    expected = module.get_parameter(name).double().numpy().copy()
    expected[64:128] += 1.5 * learned[f"{key}.B"].double().numpy() @ learned[f"{key}.A"].double().numpy()
    assert_allclose(found.numpy(), expected, atol=1e-6)


def test_low_rank_starts_uniform(module):
    learned = started(LowRank(r=64, targets=("q",), layers=(0,), sides=("vision",)), module)
    down = learned["visual.transformer.resblocks.0.attn.q.A"]
    assert down.abs().max() <= 1 / 8
    assert_allclose(float(down.std()), 1 / 8 / np.sqrt(3), rtol=0.05)
    assert not learned["visual.transformer.resblocks.0.attn.q.B"].any()


@pytest.mark.parametrize("targets", [("q",), ("o",), ("q", "k", "v", "o")])
def test_branches_without_dropout_are_the_overrides(module, targets):
    spec = LowRank(targets=targets, dropout=0.0, sides=("vision",), layers=(0,))
    learned = moved(started(spec, module))
    block = module.visual.transformer.resblocks[0]
    tokens = torch.randn((2, 5, 64), generator=torch.Generator().manual_seed(0))
    branches = spec.branches(module, learned, None)
    assert set(branches) == {f"visual.transformer.resblocks.0.attn.{kind}" for kind in targets}
    found = attend(block, tokens, branches=branches, path="visual.transformer.resblocks.0")
    tuned = copy.deepcopy(module)
    tuned.load_state_dict(merge(spec, module, learned), strict=False)
    assert_allclose(found.numpy(), tuned.visual.transformer.resblocks[0](tokens).numpy(), atol=1e-5)
    assert (found - block(tokens)).abs().max() > 1e-2


def test_dropout_keeps_the_mean_and_is_drawn_from_the_generator(module):
    spec = LowRank(targets=("q",), layers=(0,), sides=("vision",), dropout=0.25)
    learned = moved(started(spec, module))
    tokens = torch.ones((4000, 1, 64))

    def branch(seed):
        branches = spec.branches(module, learned, torch.Generator().manual_seed(seed))
        return branches["visual.transformer.resblocks.0.attn.q"](tokens)

    without = LowRank(targets=("q",), layers=(0,), sides=("vision",), dropout=0.0).branches(module, learned, None)
    plain = without["visual.transformer.resblocks.0.attn.q"](tokens)
    first, again, other = branch(0), branch(0), branch(1)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.std(dim=0).min() > 0
    standard_error = first.std(dim=0) / np.sqrt(4000)
    assert ((first.mean(dim=0) - plain[0]).abs() < 5 * standard_error).all()


# --- singular values


def test_tuned_matrices_have_the_trained_singular_values(module):
    spec = SingularValues(sides=("text",))
    learned = started(spec, module)
    scaled = {key: value * torch.linspace(1.5, 0.5, len(value)) for key, value in learned.items()}
    tuned = copy.deepcopy(module)
    tuned.load_state_dict(merge(spec, module, scaled), strict=False)
    for matrix in spec.matrices(module):
        found = np.linalg.svd(matrix.of(tuned).double().numpy(), compute_uv=False)
        assert_allclose(found, np.sort(scaled[matrix.key].numpy())[::-1], rtol=1e-4, atol=1e-5)


def test_all_values_times_a_scale_the_output_of_one_projection(module):
    spec = SingularValues(targets=("o",), layers=(2,), sides=("vision",))
    (matrix,) = spec.matrices(module)
    (merged,) = merge(spec, module, {matrix.key: 1.7 * started(spec, module)[matrix.key]}).values()
    tokens = torch.randn((5, 64), generator=torch.Generator().manual_seed(0))
    assert_allclose((tokens @ merged.T).numpy(), 1.7 * (tokens @ matrix.of(module).T).numpy(), atol=1e-5)


@pytest.mark.parametrize("ratio", [0.75, 0.4])
def test_the_error_of_a_truncation_is_the_tail_of_the_singular_values(module, ratio):
    """Eckart and Young, 1936."""
    spec = SingularValues(rank_ratio=ratio, sides=("vision",), layers=(0,))
    learned = started(spec, module)
    merged = copy.deepcopy(module)
    merged.load_state_dict(merge(spec, module, learned), strict=False)
    kept = {0.75: 48, 0.4: 24}[ratio]
    for matrix in spec.matrices(module):
        whole, cut = matrix.of(module).double(), matrix.of(merged).double()
        values = torch.linalg.svdvals(whole)
        assert len(learned[matrix.key]) == kept
        assert_allclose(float(torch.linalg.norm(whole - cut)), float(values[kept:].square().sum().sqrt()), rtol=1e-4)
        assert_allclose(float(torch.linalg.matrix_norm(whole - cut, 2)), float(values[kept]), rtol=1e-4)


def test_a_tiny_rank_ratio_keeps_four():
    assert SingularValues(rank_ratio=0.01)._rank(64) == 4
    assert SingularValues(rank_ratio=0.01)._rank(3) == 3
    assert SingularValues(rank_ratio=1.0)._rank(27) == 27


def test_values_that_must_stay_positive_are_turned_back(module):
    options = {"targets": ("q",), "layers": (0,), "sides": ("vision",)}
    free, positive = SingularValues(**options), SingularValues(**options, positive=True)
    learned = {key: -value for key, value in started(free, module).items()}
    (matrix,) = free.matrices(module)
    (flipped,), (kept,) = merge(free, module, learned).values(), merge(positive, module, learned).values()
    assert_allclose(flipped[:64].numpy(), -matrix.of(module).numpy(), atol=1e-6)
    assert torch.equal(kept[:64], matrix.of(module))


def test_matrices_are_taken_apart_once_and_forgotten_with_the_module(monkeypatch):
    calls = []
    plain = torch.linalg.svd

    def counted(*args, **kwargs):
        calls.append(args[0].shape)
        return plain(*args, **kwargs)

    monkeypatch.setattr(torch.linalg, "svd", counted)
    module, n_before = random_module(1), len(_weight_specs._decomposed)
    specs = [SingularValues(sides=("vision",)), SingularValues(rank_ratio=0.5), SingularValues()]
    threads = [threading.Thread(target=spec.start, args=(module,)) for spec in specs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    SingularValues().overrides(module, SingularValues().start(module))
    assert len(calls) == 6 * (3 + 2)
    matrix = SingularValues().matrices(module)[0]
    first, second = decompose(module, [matrix]), decompose(module, [matrix])
    assert first[0].left.data_ptr() == second[0].left.data_ptr()
    assert len(_weight_specs._decomposed) == n_before + 1
    del module
    gc.collect()
    assert len(_weight_specs._decomposed) == n_before


def test_the_shared_backbone_is_taken_apart_once_per_process(monkeypatch):
    first = SingularValues().start(load_backbone("skclip-tiny", device="cpu").module)
    monkeypatch.setattr(torch.linalg, "svd", None)
    again = SingularValues().start(load_backbone("skclip-tiny", device="cpu").module)
    assert all(torch.equal(value, again[key]) for key, value in first.items())


# --- layers, targets and towers


def test_layers():
    assert layer_numbers("all", 12) == set(range(12))
    assert [sorted(layer_numbers(name, 12)) for name in ("bottom", "middle", "top")] == [
        [0, 1, 2, 3],
        [4, 5, 6, 7],
        [8, 9, 10, 11],
    ]
    assert layer_numbers(("bottom", "top"), 12) == {0, 1, 2, 3, 8, 9, 10, 11}
    assert layer_numbers("lower_half", 12) == set(range(6))
    assert layer_numbers("upper_half", 24) == set(range(12, 24))
    assert layer_numbers((-3, -2, -1), 12) == {9, 10, 11}
    assert layer_numbers(("top", 0), 24) == {0, *range(16, 24)}
    for n_layers in (2, 4, 5, 7, 8, 11, 12, 24, 32):
        thirds = [layer_numbers(name, n_layers) for name in ("bottom", "top")]
        thirds += [layer_numbers("middle", n_layers)] if n_layers > 2 else []
        assert sorted(i for third in thirds for i in third) == list(range(n_layers))


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("up", "'up'; names are 'all', 'bottom'"),
        (("top", "up"), "'up'"),
        ((12,), "holds 12, but a tower has 12 blocks"),
        ((), "leaves none"),
    ],
)
def test_layers_that_are_none(layers, message):
    with pytest.raises(ValueError, match=message):
        layer_numbers(layers, 12)


def test_layers_count_in_each_tower(module):
    chosen = chosen_matrices(module, ("vision", "text"), ("q",), "top")
    assert [(matrix.side, matrix.layer) for matrix in chosen] == [("vision", 2), ("text", 1)]


def test_towers_that_have_none_of_it():
    resnet = random_module(vision_cfg=RESNET)
    with pytest.raises(OpenedTowerError, match=r"image tower \(ModifiedResNet\) has no attention blocks.*text tower"):
        LowRank().start(resnet, None)
    with pytest.raises(OpenedTowerError, match=r"no LayerNorm to tune; tune the text tower alone"):
        LayerNorms().start(resnet)
    assert count(LowRank(sides=("text",)).start(resnet, None)) == 2 * 3 * 2 * 2 * 32
    assert set(Biases(sides=("vision",)).names(resnet)) < set(Full(sides=("vision",)).names(resnet))


def test_targets_that_the_blocks_lack(module):
    with pytest.raises(OpenedTowerError, match=r"targets holds 'fc3'.*they have 'q', 'k', 'v', 'o', 'fc1', 'fc2'"):
        chosen_matrices(module, ("vision",), ("q", "fc3"), "all")
