from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch.func import functional_call
from torch.nn.functional import linear

from skclip._backbones._building import build_module
from skclip._backbones._open_clip import import_open_clip
from skclip._backbones._opened import OpenedTowerError
from skclip._backbones._opened_text import PromptTokens, TextTower
from skclip._backbones._text import text_tower

from .conftest import CONFIGS, VISION

import_open_clip()

WIDTH, LAYERS, CONTEXT, END, PAD = 32, 3, 20, 59, 1
TEXT = {"context_length": CONTEXT, "vocab_size": 60, "width": WIDTH, "heads": 2, "layers": LAYERS}
CAUSAL = {
    "clip": {},
    "quick": {},
    "custom": {},
    "layer-scale": {"ls_init_value": 0.3},
    "eos": {"pool_type": "eos", "eos_id": END, "proj_bias": True},
    "unprojected": {"proj_type": "none"},
    "one-layer": {"layers": 1},
}
TWO_WAY = {
    "last": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
    "first": {"no_causal_mask": True, "pool_type": "first"},
    "two-way": {"no_causal_mask": True},
}
BERTS = ["cls_pooler", "mean_pooler"]
CUSTOM = ["custom", "eos", *TWO_WAY, *BERTS, "coca"]
LENGTHS = torch.tensor([3, 2, 5, 3, 1])
SHARED = 4


@pytest.fixture(params=["in one", "by length"], autouse=True)
def reading(request, monkeypatch):
    """Both ways of attention."""
    monkeypatch.setattr("skclip._backbones._opened_text._MOST_IN_ONE", {"in one": 256, "by length": 0}[request.param])


def build(kind):
    text = {**TEXT, **CAUSAL.get(kind, {}), **TWO_WAY.get(kind, {}), **({"qk_norm": True} if kind == "normed" else {})}
    config = {"embed_dim": 24, "vision_cfg": VISION, "text_cfg": text}
    if kind == "coca":
        config = copy.deepcopy(CONFIGS["coca"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_module({**config, "quick_gelu": kind == "quick", "custom_text": kind in CUSTOM})
        if kind in BERTS:
            module = with_bert(module, kind)
        for parameter in text_tower(module).parameters():  # none at 0 or 1, as it comes from training
            parameter.data += 0.05 * torch.randn_like(parameter)
    return module.eval().requires_grad_(False)


def with_bert(module, pooler):
    from open_clip.hf_model import HFTextEncoder
    from transformers import BertConfig

    config = BertConfig(
        vocab_size=60,
        hidden_size=WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=CONTEXT,
        pad_token_id=PAD,
    )
    module.text = HFTextEncoder("", 24, config=config, pooler_type=pooler, proj_type="mlp")
    return module


@pytest.fixture(scope="module")
def model():
    made = {}

    def get(kind, dtype=torch.float32):
        if (kind, dtype) not in made:
            made[kind, dtype] = copy.deepcopy(build(kind)).to(dtype)
        return made[kind, dtype]

    return get


def tower(module):
    return TextTower(module, "tiny", pad_id=PAD)


def random(*shape, seed, dtype=torch.float32):
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (0.3 * values).to(dtype).requires_grad_()


def make_prompts(dtype=torch.float32, variants=1, own_variants=1, n_shared=SHARED, n_deep=0, mode="replace"):
    return PromptTokens(
        random(variants, n_shared, WIDTH, seed=0, dtype=dtype),
        random(own_variants, len(LENGTHS), int(LENGTHS.max()) + 1, WIDTH, seed=1, dtype=dtype),
        LENGTHS,
        [random(2, WIDTH, seed=2 + i, dtype=dtype) for i in range(n_deep)],
        mode,
    )


def make_ids(kind, n=6, seed=0):
    """Texts of two to CONTEXT tokens that begin alike, each with its end token."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.full((n, CONTEXT), PAD)
    for row, length in enumerate([5, 9, 4, CONTEXT, 5, 7][:n]):
        ids[row, :length] = torch.randint(2, END, (length,), generator=generator)
        ids[row, :3] = torch.tensor([57, 8, 30])
        ids[row, length - 1] = END
    return ids


def leaves(prompts):
    return [prompts.prefix, prompts.own, *prompts.deep]


def literal(module, prompts):
    """One text after the other through open_clip's own blocks, prompts put in by hand."""
    parts = text_tower(module)
    two_way = parts.attn_mask is None
    pool = getattr(parts, "text_pool_type", None) or parts.pool_type
    rows = []
    for r, shared in enumerate(prompts.prefix):
        for c, own in enumerate(prompts.own[r if len(prompts.own) > 1 else 0]):
            x = torch.cat([shared, own[: prompts.lengths[c]]])
            end = len(x) - 1
            if two_way:
                x = torch.cat([x, parts.token_embedding.weight[PAD].expand(CONTEXT - len(x), -1)])
                end = {"first": 0, "last": CONTEXT - 1}.get(pool, end)
            x = x + parts.positional_embedding[: len(x)]
            held, before = 2, x
            for i, block in enumerate(parts.transformer.resblocks):
                if 0 < i <= len(prompts.deep):
                    kept = {"replace": x[:0], "accumulate": x[1 : 1 + held], "accumulate_same": before[1 : 1 + held]}
                    kept, size = kept[prompts.deep_mode], len(x)
                    x = torch.cat([x[:1], kept, prompts.deep[i - 1], x[1 + held :]])
                    held = len(kept) + 2
                    end += (len(x) - size) * (end > 0)
                before = x
                mask = None if two_way else x.new_full((len(x), len(x)), float("-inf")).triu_(1)
                x = block(x[None], attn_mask=mask)[0]
            pooled, projection = parts.ln_final(x[end]), parts.text_projection
            if isinstance(projection, torch.nn.Linear):
                pooled = projection(pooled)
            elif projection is not None:
                pooled = pooled @ projection
            rows.append(pooled)
    return torch.stack(rows).unflatten(0, (len(prompts.prefix), -1))


def gradients(out, inputs):
    cotangent = random(*out.shape, seed=99, dtype=out.dtype).detach()
    return torch.autograd.grad((out * cotangent).sum(), inputs)


def assert_same(found, expected, tolerance):
    for one, other in zip(found, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() <= tolerance * other.norm()


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
@pytest.mark.parametrize("kind", [*CAUSAL, *TWO_WAY])
def test_features_and_gradients_are_those_of_the_plain_way(model, kind, dtype, tolerance):
    module = model(kind, dtype)
    prompts = make_prompts(dtype)
    found, expected = tower(module)(prompts), literal(module, prompts)
    assert found.shape == (1, len(LENGTHS), WIDTH if kind == "unprojected" else 24)
    assert_same([found], [expected], tolerance)
    assert_same(gradients(found, leaves(prompts)), gradients(expected, leaves(prompts)), tolerance)


@pytest.mark.parametrize("kind", ["clip", "last"])
@pytest.mark.parametrize(("variants", "own_variants"), [(3, 1), (3, 3)])
@pytest.mark.parametrize("n_shared", [1, SHARED])
def test_variants(model, kind, variants, own_variants, n_shared):
    module = model(kind, torch.float64)
    prompts = make_prompts(torch.float64, variants, own_variants, n_shared)
    found, expected = tower(module)(prompts), literal(module, prompts)
    assert found.shape == (3, len(LENGTHS), 24)
    assert_same([found], [expected], 1e-10)
    assert_same(gradients(found, leaves(prompts)), gradients(expected, leaves(prompts)), 1e-10)


@pytest.mark.parametrize("kind", ["clip", "two-way", "last", "first"])
@pytest.mark.parametrize("mode", ["replace", "accumulate", "accumulate_same"])
@pytest.mark.parametrize("n_deep", [1, 2])
def test_prompts_in_deeper_layers(model, kind, mode, n_deep):
    module = model(kind, torch.float64)
    prompts = make_prompts(torch.float64, variants=2, n_deep=n_deep, mode=mode)
    found, expected = tower(module)(prompts), literal(module, prompts)
    assert_same([found], [expected], 1e-10)
    assert_same(gradients(found, leaves(prompts)), gradients(expected, leaves(prompts)), 1e-10)
    plain = tower(module)(PromptTokens(prompts.prefix, prompts.own, LENGTHS))
    assert (plain - found).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["clip", "eos", "two-way"])
def test_prompts_in_deeper_layers_are_those_that_hooks_put_in(model, kind):
    """Against open_clip's own pass of whole texts, whose embeddings and blocks are given other tokens."""
    module, ids = copy.deepcopy(model(kind, torch.float64)), make_ids(kind)
    layers = [random(2, WIDTH, seed=i, dtype=torch.float64).detach() for i in range(LAYERS)]
    opened = tower(module)
    prefix = torch.cat([opened.embed(ids[:1, :1]), layers[0][None]], dim=1)
    prompts = PromptTokens(prefix, opened.embed(ids[None, :, 3:]), (ids != PAD).sum(dim=1) - 3, layers[1:])
    found = opened(prompts)[0]

    def put_in(x, tokens):
        return torch.cat([x[:, :1], tokens.expand(len(x), -1, -1), x[:, 3:]], dim=1)

    parts = text_tower(module)
    parts.token_embedding.register_forward_hook(lambda _, __, x: put_in(x, layers[0]))
    for block, tokens in zip(parts.transformer.resblocks[1:], layers[1:]):
        block.register_forward_pre_hook(lambda _, given, tokens=tokens: (put_in(given[0], tokens), *given[1:]))
    assert_same([found], [module.encode_text(ids, normalize=False)], 1e-10)


@pytest.mark.parametrize("kind", [*CAUSAL, *TWO_WAY, *BERTS])
def test_words_as_prompts_are_the_words(model, kind):
    module, ids = model(kind), make_ids(kind)
    opened = tower(module)
    lengths = (ids != PAD).sum(dim=1)
    prompts = PromptTokens(opened.embed(ids[:1, :3]), opened.embed(ids[None, :, 3:]), lengths - 3)
    assert_same(opened(prompts), module.encode_text(ids, normalize=False)[None], 1e-5)


@pytest.mark.parametrize("kind", [*CAUSAL, *TWO_WAY, *BERTS, "normed", "coca"])
def test_plain_texts(model, kind):
    module, ids = model(kind), make_ids(kind)
    expected = module.encode_text(ids, normalize=False)
    assert_same([tower(module).encode_ids(ids)], [expected], 1e-5)
    assert_same([tower(module).encode_ids(ids[:1])], [expected[:1]], 1e-5)
    twice = tower(module).encode_ids(ids[[2, 2, 0]])
    assert_same([twice], [expected[[2, 2, 0]]], 1e-5)


class Stock(torch.nn.Module):
    def __init__(self, module):
        super().__init__()
        self.module = copy.deepcopy(module)

    def forward(self, ids):
        return self.module.encode_text(ids, normalize=False)


@pytest.mark.parametrize("kind", ["clip", "custom", "last", "cls_pooler", "normed"])
def test_gradients_of_weights(model, kind):
    module, ids = model(kind, torch.float64), make_ids(kind)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    names = [name for name, _ in module.named_parameters() if not name.startswith(("visual", "logit"))]
    weights = {name: (1.1 * module.get_parameter(name)).requires_grad_() for name in names}
    found = tower(module).encode_ids(ids, weights=weights)
    expected = functional_call(Stock(module), {f"module.{name}": value for name, value in weights.items()}, ids)
    assert_same([found], [expected], 1e-10)
    ours, theirs = (
        torch.autograd.grad(out.square().sum(), weights.values(), allow_unused=True) for out in (found, expected)
    )
    read = [i for i, gradient in enumerate(theirs) if gradient is not None]
    assert len(read) > 10
    assert_same([ours[i] for i in read], [theirs[i] for i in read], 1e-10)
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())
    assert all(value.grad is None and not value.requires_grad for value in module.parameters())


@pytest.mark.parametrize("kind", ["clip", "custom", "last"])
def test_weights_and_branches_under_prompts(model, kind):
    """A branch on each projection of one block is a change of that block's weights."""
    module = model(kind, torch.float64)
    prompts, path = make_prompts(torch.float64, variants=2), "transformer.resblocks.{}.attn"
    path = path if kind == "clip" else f"text.{path}"
    for layer in (0, LAYERS - 1):
        block = path.format(layer)
        deltas = {k: 0.2 * random(WIDTH, WIDTH, seed=i, dtype=torch.float64) for i, k in enumerate("qkvo")}
        branches = {f"{block}.{k}": lambda z, d=delta: linear(z, d) for k, delta in deltas.items()}
        joint = module.get_parameter(f"{block}.in_proj_weight") + torch.cat([deltas[k] for k in "qkv"])
        out = module.get_parameter(f"{block}.out_proj.weight") + deltas["o"]
        weights = {f"{block}.in_proj_weight": joint, f"{block}.out_proj.weight": out}
        opened = tower(module)
        assert_same([opened(prompts, branches=branches)], [opened(prompts, weights=weights)], 1e-10)
        assert (opened(prompts, weights=weights) - opened(prompts)).abs().max() > 1e-3
        ids = make_ids(kind)
        found = opened.encode_ids(ids, branches=branches)
        assert_same([found], [opened.encode_ids(ids, weights=weights)], 1e-10)


def test_gradients_where_declared_alone(model):
    module, opened = model("clip"), tower(model("clip"))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    prompts = make_prompts()
    prompts.own = prompts.own.detach()
    opened(prompts).sum().backward()
    assert prompts.prefix.grad.abs().max() > 0
    assert prompts.own.grad is None
    assert all(value.grad is None for value in module.parameters())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


def test_what_fills_texts_up_is_not_read(model):
    for kind in ("clip", "last", "cls_pooler"):
        prompts = make_prompts()
        expected = tower(model(kind))(prompts)
        filled = torch.arange(prompts.own.shape[2]) >= LENGTHS[:, None]
        prompts.own = prompts.own.masked_fill(filled[..., None], 1e6)
        torch.testing.assert_close(tower(model(kind))(prompts), expected, rtol=0, atol=1e-5)


def test_the_order_of_texts_permutes_features_alone(model):
    prompts, order = make_prompts(torch.float64), [3, 0, 4, 1, 2]
    opened = tower(model("clip", torch.float64))
    moved = PromptTokens(prompts.prefix, prompts.own[:, order], LENGTHS[order])
    assert_same([opened(moved)], [opened(prompts)[:, order]], 1e-12)


@pytest.mark.parametrize("pooler", BERTS)
def test_towers_of_transformers(model, pooler):
    """Prompts of variants through a two-way tower that masks padding, against one text at a time."""
    module, prompts = model(pooler, torch.float64), make_prompts(torch.float64, variants=2, own_variants=2)
    found = tower(module)(prompts)
    rows = []
    for r in range(2):
        for c, length in enumerate(LENGTHS):
            x = torch.cat([prompts.prefix[r], prompts.own[r, c, :length]])[None]
            mask = torch.ones(x.shape[:2], dtype=torch.long)
            out = module.text.transformer(inputs_embeds=x, attention_mask=mask)
            rows.append(module.text.proj(module.text.pooler(out, mask))[0])
    expected = torch.stack(rows).unflatten(0, (2, -1))
    assert_same([found], [expected], 1e-10)
    assert_same(gradients(found, leaves(prompts)), gradients(expected, leaves(prompts)), 1e-10)


def test_threads_with_weights_of_their_own(model):
    module, prompts = model("clip"), make_prompts()
    opened, name = tower(module), "transformer.resblocks.1.mlp.c_fc.weight"
    weights = [{name: (1 + 0.3 * i) * module.get_parameter(name)} for i in range(4)]
    expected = [opened(prompts, weights=each) for each in weights]
    found = {}

    def work(i):
        found[i] = [opened(prompts, weights=weights[i]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert (expected[0] - expected[1]).abs().max() > 1e-4
    for i, each in found.items():
        for one in each:
            torch.testing.assert_close(one, expected[i], rtol=0, atol=1e-6)
    assert len(found) == 4


@pytest.mark.parametrize("kind", ["clip", "custom", "last", "cls_pooler"])
def test_attributes(model, kind):
    opened = tower(model(kind))
    assert (opened.width, opened.dim, opened.n_layers, opened.context_length) == (WIDTH, 24, LAYERS, CONTEXT)
    assert opened.causal == (kind in CAUSAL)
    assert opened.device == torch.device("cpu")
    assert opened.embed(torch.tensor([[3, 4, 5]])).shape == (1, 3, WIDTH)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (
            "coca",
            "model='tiny': its text tower answers at a class token of its own, as CoCa's does, and learned prompts",
        ),
        ("normed", "has custom attention blocks, and learned prompts need .* as those of ViT-B-32"),
    ],
)
def test_towers_that_cannot_be_opened(model, kind, message):
    with pytest.raises(OpenedTowerError, match=message):
        tower(model(kind))(make_prompts())
    branches = {"transformer.resblocks.0.attn.q": lambda x: x}
    with pytest.raises(OpenedTowerError, match=r"and branches beside projections need .* with dropout=0 need none"):
        tower(model(kind)).encode_ids(make_ids(kind), branches=branches)


def test_towers_of_transformers_take_prompts_at_their_input_alone(model):
    opened = tower(model("cls_pooler"))
    with pytest.raises(OpenedTowerError, match="is one of transformers, and prompts in deeper layers and branches"):
        opened(make_prompts(n_deep=1))
    with pytest.raises(OpenedTowerError, match="is one of transformers, and branches beside projections need"):
        opened.encode_ids(make_ids("cls_pooler"), branches={"text.transformer.q": lambda x: x})


@pytest.mark.parametrize("kind", ["clip", "last", "cls_pooler"])
def test_texts_that_do_not_fit(model, kind):
    opened = tower(model(kind))
    fitting = make_prompts(n_shared=CONTEXT - int(LENGTHS.max()))
    assert torch.isfinite(opened(fitting)).all()
    with pytest.raises(OpenedTowerError, match=r"at most 20 tokens, and that at position 2 has 21; use fewer"):
        opened(make_prompts(n_shared=CONTEXT - int(LENGTHS.max()) + 1))


def test_deep_prompts_that_have_no_place(model):
    opened = tower(model("clip"))
    with pytest.raises(OpenedTowerError, match="has 3 text layers: prompts enter before 2 of them at most, got 3"):
        opened(make_prompts(n_deep=3))
    with pytest.raises(OpenedTowerError, match="where 2 learned vectors stand that all texts share, and these share 1"):
        opened(make_prompts(n_shared=2, n_deep=1))


@pytest.mark.parametrize("kind", ["clip", "last", "cls_pooler"])
def test_half_precision_is_near(model, kind):
    prompts = make_prompts(n_deep=0 if kind in BERTS else 1)
    expected = tower(model(kind))(prompts)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = tower(model(kind))(prompts)
        gradient = gradients(mixed.float(), leaves(prompts))
    assert_same([mixed], [expected], 0.05)
    assert_same(gradient, gradients(expected, leaves(prompts)), 0.1)
    half = tower(model(kind, torch.bfloat16))(prompts)
    assert half.dtype == torch.bfloat16
    assert_same([half], [expected], 0.05)
