"""CoOp on a ViT-B text tower, one step and a whole fit, beside all 77 positions of every prompt through open_clip."""

from __future__ import annotations

import time

import numpy as np
import pytest

from skclip._backbones import Backbone, PromptTokens, TextTower, get_card
from skclip._backbones._building import build_module
from skclip._backbones._open_clip import import_open_clip
from skclip._backbones._text import make_tokenizer
from skclip.tuning.prompts._coop import CoOpClassifier

N_CTX, N_PICTURES, ROUNDS = 16, 32, 3
SMALL = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 3}


def make_backbone(**text):
    """A text tower with random weights, under a picture tower that is not used."""
    import torch

    cfg = import_open_clip().get_model_config("ViT-B-32")
    cfg["vision_cfg"].update(layers=1, width=64)
    cfg["text_cfg"].update(text)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_module(cfg)
    return Backbone(
        get_card("ViT-B-32/openai"),
        digest="random",
        module=module,
        make_tokenizer=lambda: make_tokenizer(cfg["text_cfg"]),
        device=torch.device("cpu"),
        precision="float32",
    )


@pytest.fixture(scope="module")
def backbone():
    return make_backbone()


class PromptStep:
    """Forward and backward of the cross entropy of cached features with learned prompts, in two ways."""

    def __init__(self, backbone, n_classes):
        import torch
        from torch.nn.functional import normalize

        self.module, dtype = backbone.module, backbone.module.token_embedding.weight.dtype
        names = import_open_clip().IMAGENET_CLASSNAMES
        names = names[:: len(names) // n_classes]
        self.ids = backbone.tokenizer([f"{'X ' * N_CTX}{name}." for name in names])
        self.ends = self.ids.argmax(dim=1)
        self.tokens = self.module.token_embedding(self.ids)
        self.tower = TextTower(self.module)
        random = torch.Generator().manual_seed(0)
        width, dim = self.tower.width, self.tower.dim
        self.ctx = (0.02 * torch.randn((N_CTX, width), generator=random, dtype=dtype)).requires_grad_()
        self.features = normalize(torch.randn((N_PICTURES, dim), generator=random, dtype=dtype), dim=1)
        self.codes = torch.randint(n_classes, (N_PICTURES,), generator=random)

    def ours(self):
        import torch

        prefix = torch.cat([self.tokens[:1, :1], self.ctx[None]], dim=1)
        own, lengths = self.tokens[None, :, 1 + N_CTX :], self.ends - N_CTX
        return self.tower(PromptTokens(prefix, own, lengths))[0]

    def plain(self):
        import torch

        ctx = self.ctx.expand(len(self.ids), -1, -1)
        tokens = torch.cat([self.tokens[:, :1], ctx, self.tokens[:, 1 + N_CTX :]], dim=1)
        return all_positions(self.module, tokens, self.ends)

    def gradient(self, way):
        from torch.nn.functional import cross_entropy, normalize

        self.ctx.grad = None
        start = time.perf_counter()
        cross_entropy(100 * self.features @ normalize(way(), dim=1).T, self.codes).backward()
        return self.ctx.grad, time.perf_counter() - start


def all_positions(module, tokens, ends):
    """Features of prompts (C, 77, w) as open_clip computes them."""
    import torch

    hidden = module.transformer(tokens + module.positional_embedding, attn_mask=module.attn_mask)
    return module.ln_final(hidden)[torch.arange(len(tokens)), ends] @ module.text_projection


def median_seconds(ways, rounds):
    """Of each way, in turns."""
    times = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(values)) for name, values in times.items()}


def test_gradient_of_a_step_in_double_precision():
    backbone = make_backbone(**SMALL)
    backbone.module.double()
    step = PromptStep(backbone, 10)
    (ours, _), (plain, _) = step.gradient(step.ours), step.gradient(step.plain)
    assert (ours - plain).norm() <= 1e-10 * plain.norm()


def test_prompt_step_100_classes_16_tokens_32_features(benchmark, backbone):
    step = PromptStep(backbone, 100)
    (ours, _), (plain, _) = step.gradient(step.ours), step.gradient(step.plain)
    seconds = median_seconds(
        {"ours": lambda: step.gradient(step.ours), "plain": lambda: step.gradient(step.plain)}, ROUNDS
    )
    benchmark.pedantic(step.gradient, args=(step.ours,), rounds=ROUNDS)
    ratio = seconds["plain"] / seconds["ours"]
    benchmark.extra_info.update(plain_seconds=seconds["plain"], ratio=ratio)
    print(
        f"\nprompt step, 100 classes: ours {seconds['ours']:.2f} s, all positions {seconds['plain']:.2f} s, "
        f"{ratio:.1f} times faster"
    )
    assert (ours - plain).norm() <= 1e-5 * plain.norm()
    assert ratio >= 10


def test_prompt_step_1000_classes(benchmark, backbone):
    step = PromptStep(backbone, 1000)
    step.gradient(step.ours)
    benchmark.pedantic(step.gradient, args=(step.ours,), rounds=ROUNDS)
    print(f"\nprompt step, 1000 classes: ours {benchmark.stats.stats.median:.2f} s")


def test_training_10_classes_16_shots(benchmark, backbone, monkeypatch):
    """Over 4 of the 50 epochs that CoOp would train: what is done once before and after them weighs more here."""
    import torch

    names = import_open_clip().IMAGENET_CLASSNAMES[::100]
    rows = backbone.encode_texts([f"a photo of a {name}." for name in names])
    X = np.repeat(rows, 16, axis=0)
    X = X + 0.1 * X.std() * np.random.default_rng(0).normal(size=X.shape)
    y = np.repeat(names, 16)
    monkeypatch.setattr("skclip.tuning._tuned.load_backbone", lambda *_, **__: backbone)
    opened = TextTower.__call__

    def plain(self, prompts, **_):
        """The same prompts with all positions, those behind the end token filled with zeros."""
        tokens = torch.cat([prompts.prefix.expand(len(prompts.lengths), -1, -1), prompts.own[0]], dim=1)
        ends = prompts.prefix.shape[1] + prompts.lengths - 1
        room = self.context_length - tokens.shape[1]
        return all_positions(backbone.module, torch.nn.functional.pad(tokens, (0, 0, 0, room)), ends)[None]

    classifiers = {}

    def fit(name, way):
        monkeypatch.setattr(TextTower, "__call__", way)
        classifiers[name] = CoOpClassifier(max_iter=4, random_state=0).fit(X, y)

    seconds = median_seconds({"ours": lambda: fit("ours", opened), "plain": lambda: fit("plain", plain)}, 2)
    benchmark.pedantic(fit, args=("ours", opened), rounds=2)
    ratio = seconds["plain"] / seconds["ours"]
    benchmark.extra_info.update(plain_seconds=seconds["plain"], ratio=ratio)
    print(
        f"\ntraining, 10 classes, 16 shots, 4 epochs: ours {seconds['ours']:.2f} s, all positions "
        f"{seconds['plain']:.2f} s, {ratio:.1f} times faster"
    )
    np.testing.assert_allclose(classifiers["ours"].ctx_, classifiers["plain"].ctx_, atol=1e-4)
    assert ratio >= 8
