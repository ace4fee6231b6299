from __future__ import annotations

import copy
import threading
from itertools import chain

import pytest
import torch
from torch.nn import LayerNorm
from torch.nn.functional import linear

from skclip._backbones._building import build_module
from skclip._backbones._open_clip import import_open_clip
from skclip._backbones._opened import (
    Opened,
    OpenedTowerError,
    attend,
    is_plain,
    project,
    renew,
    skeleton,
)

from .conftest import CONFIGS, TEXT

import_open_clip()
from open_clip.transformer import CustomResidualAttentionBlock, QuickGELU, ResidualAttentionBlock  # noqa: E402

WEIGHT = "visual.transformer.resblocks.1.attn.in_proj_weight"
KINDS = {"plain": {}, "quick": {"act_layer": QuickGELU}, "layer-scale": {"ls_init_value": 0.3}}


def make_block(kind="plain", dtype=torch.float64):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        block = ResidualAttentionBlock(32, 4, **KINDS[kind])
        for parameter in block.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return block.to(dtype).eval().requires_grad_(False)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def weight_of(module):
    return module.visual.transformer.resblocks[1].attn.in_proj_weight


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_module({**copy.deepcopy(CONFIGS["vit"]), "text_cfg": {**TEXT, "vocab_size": 60}}).eval()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("masked", [False, True])
def test_an_opened_block_is_the_block(kind, masked):
    x = random(3, 7, 32)
    mask = torch.full((7, 7), float("-inf"), dtype=torch.float64).triu_(1) if masked else None
    block = make_block(kind)
    expected = block(x, attn_mask=mask)
    torch.testing.assert_close(attend(block, x, mask=mask), expected, rtol=0, atol=1e-13)
    if masked:
        torch.testing.assert_close(attend(block, x, mask=mask == 0), expected, rtol=0, atol=1e-13)
    narrow = attend(block.float(), x.float(), mask=None if mask is None else mask.float())
    torch.testing.assert_close(narrow, expected.float(), rtol=0, atol=3e-6)


def test_a_branch_adds_to_its_projection_alone():
    """The same as a change of the weights that it stands for."""
    x, block = random(2, 5, 32), make_block()
    deltas = {kind: 0.1 * random(32, 32, seed=i) for i, kind in enumerate("qkvo")}
    branches = {f"tower.0.attn.{kind}": lambda z, d=delta: linear(z, d) for kind, delta in deltas.items()}
    found = attend(block, x, branches=branches, path="tower.0")
    changed = copy.deepcopy(block)
    changed.attn.in_proj_weight.data += torch.cat([deltas[kind] for kind in "qkv"])
    changed.attn.out_proj.weight.data += deltas["o"]
    torch.testing.assert_close(found, changed(x), rtol=0, atol=1e-13)
    torch.testing.assert_close(attend(block, x, branches=branches, path="tower.1"), block(x), rtol=0, atol=1e-13)


def test_parts_of_the_joint_projection():
    x, block = random(2, 5, 32), make_block()
    queries, keys, values = project(block, x)
    for kinds, expected in (("q", [queries]), ("kv", [keys, values]), ("v", [values])):
        for part, wanted in zip(project(block, x, kinds=kinds), expected, strict=True):
            torch.testing.assert_close(part, wanted, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("mode", "expected", "held"),
    [
        ("replace", [20, 90, 91, 23, 24], 2),
        ("accumulate", [20, 21, 22, 90, 91, 23, 24], 4),
        ("accumulate_same", [20, 11, 12, 90, 91, 23, 24], 4),
    ],
)
def test_prompts_that_enter_between_blocks(mode, expected, held):
    before, after = (torch.arange(float(k), k + 5).reshape(1, 5, 1) for k in (10, 20))
    found, count = renew(before, after, torch.tensor([[90.0], [91.0]]), 1, 2, mode)
    assert found.flatten().tolist() == expected
    assert count == held


def test_a_skeleton_is_made_of_the_same_tensors(model):
    bones = skeleton(model)
    pairs = [*zip(model.parameters(), bones.parameters()), *zip(model.buffers(), bones.buffers())]
    assert all(own is other for own, other in pairs)
    assert len(pairs) == len([*chain(model.parameters(), model.buffers())])
    assert not set(map(id, model.modules())) & set(map(id, bones.modules()))


def test_weights_stand_in_for_one_call(model):
    opened, pictures = Opened(model, "tiny"), random(2, 3, 32, 32, dtype=torch.float32)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    plain = model.encode_image(pictures)
    own = (1.5 * model.get_parameter(WEIGHT).detach()).requires_grad_()

    found = opened.run(lambda module: module.encode_image(pictures), {WEIGHT: own})
    changed = copy.deepcopy(model)
    changed.get_parameter(WEIGHT).data.copy_(own.detach())
    torch.testing.assert_close(found, changed.encode_image(pictures), rtol=0, atol=1e-6)
    assert (found - plain).abs().max() > 1e-3
    found.sum().backward()
    assert own.grad.abs().max() > 0

    assert opened.run(lambda module: module) is model
    torch.testing.assert_close(opened.run(lambda module: module.encode_image(pictures)), plain, rtol=0, atol=0)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_fails_leaves_no_weights_behind(model):
    opened, other = Opened(model), torch.zeros_like(model.get_parameter(WEIGHT))

    def fail(module):
        assert weight_of(module) is other
        raise RuntimeError("midway")

    with pytest.raises(RuntimeError, match="midway"):
        opened.run(fail, {WEIGHT: other})
    bias = WEIGHT.replace("weight", "bias")
    seen = opened.run(weight_of, {bias: model.get_parameter(bias).detach()})
    assert seen is model.get_parameter(WEIGHT)


def test_names_that_are_no_parameters(model):
    with pytest.raises(OpenedTowerError, match=r"model='tiny' has no parameter 'visual.nothing'; .*such as 'ln_final"):
        Opened(model, "tiny").run(lambda module: None, {"visual.nothing": torch.zeros(1)})


def test_threads_see_their_own_weights(model):
    opened, shape = Opened(model), model.get_parameter(WEIGHT).shape
    barrier, seen = threading.Barrier(4, timeout=30), {}

    def work(i):
        def read(module):
            barrier.wait()  # all are inside at once
            return float(weight_of(module).mean())

        seen[i] = [opened.run(read, {WEIGHT: torch.full(shape, float(i))}) for _ in range(5)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == {i: [float(i)] * 5 for i in range(4)}


def test_blocks_of_another_kind():
    custom = CustomResidualAttentionBlock(32, 4, norm_layer=LayerNorm)
    assert is_plain(make_block())
    assert not is_plain(custom)
