from __future__ import annotations

import copy
import threading

import pytest
import torch

from skclip._backbones._building import build_module
from skclip._backbones._opened import OpenedTowerError
from skclip._backbones._opened_vision import VisionTower, VisualPrompts

from .conftest import CONFIGS, TEXT, VISION

W, LAYERS, PATCHES = 64, 3, 16
OPEN = {
    "plain": {},
    "quick": {},
    "layer-scale": {"ls_init_value": 0.3},
    "average": {"pool_type": "avg"},
    "average-then-norm": {"pool_type": "avg", "final_ln_after_pool": True},
    "token-then-norm": {"final_ln_after_pool": True},
    "no-norm-before": {"no_ln_pre": True},
    "oblong": {"image_size": [32, 48]},
    "dropped-patches": {"patch_dropout": 0.5},
    "coca": {"attentional_pool": True, "attn_pooler_heads": 2, "output_tokens": True},
}
CLOSED = {
    "resnet": CONFIGS["resnet"]["vision_cfg"],
    "timm": {"timm_model_name": "vit_tiny_patch16_224", "image_size": 224, "timm_pool": "", "timm_proj": "linear"},
    "custom": {**VISION, "qk_norm": True},
}


def build(vision, **options):
    """A random model without a parameter at 0 or 1, as it comes from training."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_module({"embed_dim": 24, "vision_cfg": vision, "text_cfg": TEXT, **options})
        with torch.no_grad():
            for parameter in module.parameters():
                parameter += 0.1 * torch.randn_like(parameter) * (parameter.std() if parameter.numel() > 1 else 1) + (
                    0.05 * torch.randn_like(parameter) if parameter.ndim == 1 else 0
                )
    return module.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def model():
    made = {}

    def get(kind):
        if kind not in made:
            vision = CLOSED.get(kind) or {**VISION, "layers": LAYERS, **OPEN[kind]}
            options = {**CONFIGS["coca"], "vision_cfg": vision} if kind == "coca" else {}
            made[kind] = build(vision, **{"quick_gelu": kind == "quick", "custom_text": kind == "timm", **options})
        return made[kind]

    return get


def random(*shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def pictures(module, n=3):
    size = module.visual.image_size
    return random(n, 3, *([size, size] if isinstance(size, int) else size))


def close(found, expected, tolerance=1e-5):
    return (found - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("kind", [*OPEN, *CLOSED])
def test_without_prompts_it_is_the_tower_as_it_came(model, kind):
    module = model(kind)
    X = pictures(module)
    found = VisionTower(module)(X)
    assert found.shape == (3, 24)
    with torch.no_grad():
        assert close(found, module.encode_image(X, normalize=False))


def test_a_tower_without_projection_gives_the_pooled_tokens(model):
    module = copy.deepcopy(model("plain"))
    module.visual.proj = None
    assert close(VisionTower(module)(pictures(module)), module.visual(pictures(module)))


@pytest.mark.parametrize("kind", [*OPEN, *CLOSED])
def test_weights_of_ones_own_are_those_of_a_changed_model_and_have_gradients(model, kind):
    module = model(kind)
    X = pictures(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    names = [name for name, p in module.visual.named_parameters(prefix="visual") if p.ndim > 0]
    weights = {name: (0.9 * module.get_parameter(name) + 0.01).requires_grad_() for name in names}
    changed = copy.deepcopy(module)
    for name, value in weights.items():
        changed.get_parameter(name).copy_(value.detach())

    found = VisionTower(module)(X, weights=weights)
    with torch.no_grad():
        assert close(found, changed.encode_image(X, normalize=False))
    gradients = torch.autograd.grad(found.square().sum(), list(weights.values()), allow_unused=True)
    assert sum(g is not None and bool(g.abs().max() > 0) for g in gradients) > 0.9 * len(names)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert not any(p.requires_grad for p in module.parameters())


def test_an_unknown_weight_is_an_error(model):
    with pytest.raises(OpenedTowerError, match=r"no parameter 'visual\.nothing'"):
        VisionTower(model("plain"))(pictures(model("plain")), weights={"visual.nothing": torch.zeros(1)})


def transcribed(visual, X, prompts):
    """The forward with prompts, one picture, lists of tokens, and open_clip's own blocks."""
    tokens, outcome = list(prompts.tokens), []
    for picture in X:
        patches = visual.conv1(picture[None])[0].flatten(1).T
        own = list(torch.cat([visual.class_embedding[None], patches]) + visual.positional_embedding)
        learned = list(tokens[0])
        if prompts.place == "end":
            own, learned = [visual.ln_pre(t) for t in own], [visual.ln_pre(t) for t in learned]
        else:
            own = [visual.ln_pre(t) for t in own]
        before = learned
        for i, block in enumerate(visual.transformer.resblocks):
            if 0 < i < len(tokens):
                if prompts.mode == "replace":
                    learned = list(tokens[i])
                elif prompts.mode == "accumulate":
                    learned = learned + list(tokens[i])
                else:
                    learned = before + list(tokens[i])
            before = learned
            sequence = own + learned if prompts.place == "end" else own[:1] + learned + own[1:]
            sequence = list(block(torch.stack(sequence)[None])[0])
            if prompts.place == "end":
                own, learned = sequence[: len(own)], sequence[len(own) :]
            else:
                own = sequence[:1] + sequence[1 + len(learned) :]
                learned = sequence[1 : 1 + len(learned)]
        pooled, _ = visual._pool(torch.stack(own)[None])
        outcome.append(pooled[0] @ visual.proj)
    return torch.stack(outcome)


@pytest.mark.parametrize(("kind", "depth"), [*((kind, LAYERS) for kind in OPEN), ("plain", 1), ("average", 2)])
@pytest.mark.parametrize("mode", ["replace", "accumulate", "accumulate_same"])
@pytest.mark.parametrize("place", ["end", "after_cls"])
def test_prompts_equal_a_slow_transcription(model, kind, mode, place, depth):
    visual = model(kind).visual
    X = pictures(model(kind), 2)
    prompts = VisualPrompts([random(2, W, seed=i) for i in range(depth)], place, mode)
    with torch.no_grad():
        expected = transcribed(visual, X, prompts)
        found = VisionTower(model(kind))(X, prompts=prompts)
        plain = VisionTower(model(kind))(X)
    assert close(found, expected)
    assert (found - plain).abs().max() > 0.01


@pytest.mark.parametrize("kind", ["plain", "quick", "layer-scale"])
def test_prompts_in_deeper_layers_are_those_that_hooks_put_in(model, kind):
    """Against open_clip's own pass, whose first norm and blocks are given other tokens."""
    module = copy.deepcopy(model(kind)).double()
    X = pictures(module).double()
    layers = [random(2, W, seed=i).double() for i in range(LAYERS)]
    found = VisionTower(module)(X, prompts=VisualPrompts(layers))

    def put_in(x, tokens):
        return torch.cat([x[:, : 1 + PATCHES], tokens.expand(len(x), -1, -1)], dim=1)

    for part, tokens in zip([module.visual.ln_pre, *module.visual.transformer.resblocks[1:]], layers):
        part.register_forward_pre_hook(lambda _, given, tokens=tokens: (put_in(given[0], tokens), *given[1:]))
    assert close(found, module.encode_image(X, normalize=False), 1e-10)


@pytest.mark.parametrize("place", ["end", "after_cls"])
@pytest.mark.parametrize(
    ("mode", "counts"), [("replace", [2, 2, 2]), ("accumulate", [2, 4, 6]), ("accumulate_same", [2, 4, 6])]
)
def test_tokens_per_layer(model, mode, counts, place):
    seen = []

    def look(tokens):
        seen.append(tokens.shape[1] - 1 - PATCHES)
        return torch.zeros(())

    branches = {f"visual.transformer.resblocks.{i}.attn.q": look for i in range(LAYERS)}
    prompts = VisualPrompts([random(2, W)] * LAYERS, place, mode)
    VisionTower(model("plain"))(pictures(model("plain")), prompts=prompts, branches=branches)
    assert seen == counts


@pytest.mark.parametrize("kind", ["average", "average-then-norm"])
def test_prompts_are_kept_out_of_averages(model, kind):
    """A prompt that no token attends to changes nothing, though an average over all tokens would move."""
    module = copy.deepcopy(model(kind))
    for block in module.visual.transformer.resblocks:
        block.attn.out_proj.weight.zero_()
    X = pictures(module)
    tower = VisionTower(module)
    prompts = VisualPrompts([10 * random(4, W, seed=i) for i in range(LAYERS)])
    assert close(tower(X, prompts=prompts), tower(X))


def test_the_gradient_reaches_every_prompt_and_nothing_else(model):
    tokens = [random(2, W, seed=i).requires_grad_() for i in range(LAYERS)]
    module = model("plain")
    VisionTower(module)(pictures(module), prompts=VisualPrompts(tokens)).square().sum().backward()
    assert all(t.grad is not None and t.grad.abs().max() > 0 for t in tokens)
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("kind", ["plain", "average"])
def test_branches_are_low_rank_changes_of_the_weights(model, kind):
    module = model(kind)
    X = pictures(module)
    down, up = 0.1 * random(2, W), random(W, 2)
    branches, weights = {}, {}
    for i, block in enumerate(module.visual.transformer.resblocks):
        path = f"visual.transformer.resblocks.{i}.attn"
        joint = block.attn.in_proj_weight.clone()
        for row, kind_ in enumerate("qkv"):
            joint[row * W : (row + 1) * W] += (row + 1) * up @ down
            branches[f"{path}.{kind_}"] = lambda x, row=row: (row + 1) * x @ down.T @ up.T
        branches[f"{path}.o"] = lambda x: x @ down.T @ up.T
        weights[f"{path}.in_proj_weight"] = joint
        weights[f"{path}.out_proj.weight"] = block.attn.out_proj.weight + up @ down
    tower = VisionTower(module)
    found = tower(X, branches={**branches, "transformer.resblocks.0.attn.q": None})
    assert close(found, tower(X, weights=weights))
    assert not close(found, tower(X), 1e-2)


@pytest.mark.parametrize("kind", ["plain", "average", "layer-scale"])
def test_layer_statistics_are_those_that_hooks_see(model, kind):
    module = model(kind)
    X, seen = pictures(module), []
    hooks = [
        block.register_forward_hook(lambda *call: seen.append(call[2])) for block in module.visual.transformer.resblocks
    ]
    try:
        features = module.encode_image(X)
    finally:
        for hook in hooks:
            hook.remove()
    raw, statistics = VisionTower(module).layer_statistics(X)
    assert statistics.shape == (3, LAYERS, 2, W)
    for i, tokens in enumerate(seen):
        assert close(statistics[:, i, 0], tokens.mean(dim=1))
        assert close(statistics[:, i, 1], tokens.var(dim=1, unbiased=False).sqrt())
    assert close(raw, features)


@pytest.mark.parametrize("kind", [kind for kind in OPEN if kind != "coca"])
def test_contributions_sum_to_the_embedding(model, kind):
    module = model(kind)
    X = pictures(module)
    found = VisionTower(module).head_contributions(X)
    assert found.heads.shape == (3, LAYERS, 2, 24)
    assert found.mlps.shape == (3, LAYERS, 24)
    assert found.rest.shape == (3, 24)
    total = found.heads.sum(dim=(1, 2)) + found.mlps.sum(dim=1) + found.rest
    assert close(total, module.encode_image(X), 1e-4)


@pytest.mark.parametrize("kind", ["plain", "average", "average-then-norm", "layer-scale"])
def test_the_contribution_of_a_head_is_what_the_last_norm_lets_through_of_it(model, kind):
    """Against the plain definition in float64: the head alone through the output projection, the norm as it stood."""
    module = copy.deepcopy(model(kind)).double()
    visual, X = module.visual, pictures(module).double()
    layer, head, size = 1, 1, W // 2
    states = {}
    hooks = [
        visual.transformer.resblocks[-1].register_forward_hook(lambda *call: states.update(last=call[2])),
        visual.transformer.resblocks[layer].register_forward_pre_hook(lambda _, inputs: states.update(input=inputs[0])),
    ]
    module.encode_image(X)
    for hook in hooks:
        hook.remove()
    block = visual.transformer.resblocks[layer]
    weight, bias = block.attn.in_proj_weight, block.attn.in_proj_bias
    q, k, v = (
        block.ln_1(states["input"]) @ weight[i * W : (i + 1) * W].T + bias[i * W : (i + 1) * W] for i in range(3)
    )
    own = slice(head * size, (head + 1) * size)
    attention = (q[..., own] @ k[..., own].transpose(1, 2) / size**0.5).softmax(dim=-1)
    written = attention @ v[..., own] @ block.attn.out_proj.weight[:, own].T + block.attn.out_proj.bias / 2
    written = block.ls_1(written)

    last = states["last"]
    if kind == "average-then-norm":
        last, written = last[:, 1:].mean(dim=1, keepdim=True), written[:, 1:].mean(dim=1, keepdim=True)
    elif kind == "average":
        last, written = last[:, 1:], written[:, 1:]
    else:
        last, written = last[:, :1], written[:, :1]
    deviation = (last.var(dim=-1, keepdim=True, unbiased=False) + visual.ln_post.eps).sqrt()
    passed = (written - written.mean(dim=-1, keepdim=True)) / deviation * visual.ln_post.weight
    expected = passed.mean(dim=1) @ visual.proj
    assert close(VisionTower(module).head_contributions(X).heads[:, layer, head], expected, 1e-9)


def test_what_the_tower_consists_of(model):
    tower = VisionTower(model("plain"))
    assert (tower.width, tower.n_layers, tower.n_heads) == (W, LAYERS, 2)


@pytest.mark.parametrize(
    ("kind", "trouble"),
    [("resnet", "is a ModifiedResNet"), ("timm", "is a TimmModel"), ("custom", "attention blocks of another kind")],
)
def test_what_needs_an_open_tower_names_the_alternative_elsewhere(model, kind, trouble):
    module = model(kind)
    tower, X = VisionTower(module, "my/model"), pictures(module, 1)
    start = rf"model='my/model': its image tower .*{trouble}"
    with pytest.raises(OpenedTowerError, match=rf"{start}.*visual prompts.*ViT-B-32.*CoOpClassifier"):
        tower(X, prompts=VisualPrompts([random(2, W)]))
    with pytest.raises(OpenedTowerError, match=rf"{start}.*branches.*dropout=0"):
        tower(X, branches={"visual.transformer.resblocks.0.attn.q": torch.zeros_like})
    with pytest.raises(OpenedTowerError, match=rf"{start}.*statistics of layers.*CoCoOpClassifier"):
        tower.layer_statistics(X)
    with pytest.raises(OpenedTowerError, match=rf"{start}.*contributions of heads"):
        tower.head_contributions(X)
    with pytest.raises(OpenedTowerError, match=start):
        _ = tower.width
    assert tower(X, branches={"transformer.resblocks.0.attn.q": torch.zeros_like}).shape == (1, 24)


def test_contributions_under_a_pool_of_attention_are_refused(model):
    with pytest.raises(OpenedTowerError, match="pools its tokens by attention"):
        VisionTower(model("coca")).head_contributions(pictures(model("coca")))


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (VisualPrompts([]), "0 layers do not fit the 3 blocks"),
        (VisualPrompts([torch.zeros(2, W)] * 4), "4 layers do not fit the 3 blocks"),
        (VisualPrompts([torch.zeros(2, W), torch.zeros(2, 5)]), r"tokens\[1\] has shape \(2, 5\); expected \(n, 64\)"),
        (VisualPrompts([torch.zeros(2, W)], place="front"), "place='front' is not one of end, after_cls"),
        (VisualPrompts([torch.zeros(2, W)], mode="add"), "mode='add' is not one of replace, "),
    ],
)
def test_prompts_that_do_not_fit(model, prompts, message):
    with pytest.raises(ValueError, match=message):
        VisionTower(model("plain"))(pictures(model("plain")), prompts=prompts)


def test_a_branch_of_no_projection_is_an_error(model):
    branches = {"visual.transformer.resblocks.7.attn.q": torch.zeros_like}
    with pytest.raises(OpenedTowerError, match=r"no projection 'visual\.transformer\.resblocks\.7\.attn\.q'"):
        VisionTower(model("plain"))(pictures(model("plain")), branches=branches)


def test_threads_with_weights_of_their_own_do_not_meet(model):
    module = model("plain")
    tower, X = VisionTower(module), pictures(module)
    name = "visual.transformer.resblocks.0.mlp.c_fc.weight"
    scaled = [{name: factor * module.get_parameter(name)} for factor in range(4)]
    expected = [tower(X, weights=weights) for weights in scaled]
    found: dict = {}

    def work(i):
        found[i] = [tower(X, weights=scaled[i]) for _ in range(20)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all(torch.equal(one, expected[i]) for i in range(4) for one in found[i])
    assert close(tower(X), module.encode_image(X))
