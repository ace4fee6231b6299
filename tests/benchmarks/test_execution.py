"""Pictures through a tower with random weights: lanes beside the best plain forward pass, and compiled.

``pytest tests/benchmarks/test_execution.py --benchmark-only -s`` on a machine that does nothing else.
"""

from __future__ import annotations

import json
import time

import numpy as np
import pytest

from skclip._backbones import Backbone, get_card, load_backbone
from skclip._backbones._building import build_module
from skclip._backbones._open_clip import import_open_clip

ROUNDS = 5
PLAIN_SIZES = (8, 16, 32, 64)


def random_backbone(name, **options):
    import torch

    import_open_clip()
    card = get_card(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = build_module(json.loads(card.config))
    return Backbone(
        card,
        digest="random",
        module=module,
        make_tokenizer=lambda: None,
        device=torch.device("cpu"),
        precision="float32",
        **options,
    )


def plain_forward(backbone, X, size):
    """What a user would write: batches one after the other, each on all cores."""
    import torch

    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (backbone.card.mean, backbone.card.std))
    parts = []
    with torch.inference_mode():
        for lo in range(0, len(X), size):
            pixels = torch.from_numpy(X[lo : lo + size]).permute(0, 3, 1, 2).float().contiguous()
            parts.append(backbone.module.encode_image(pixels.div_(255).sub_(mean).div_(std)).numpy())
    return np.concatenate(parts)


def interleaved(ways):
    """Median seconds of each way; every round runs all of them."""
    times = {name: [] for name in ways}
    for way in ways.values():
        way()
    for _ in range(ROUNDS):
        for name, way in ways.items():
            start = time.perf_counter()
            way()
            times[name].append(time.perf_counter() - start)
    return {name: float(np.median(found)) for name, found in times.items()}


def settle(backbone, X):
    for _ in range(20):
        if backbone._search.trial is None:
            return
        backbone.encode_images(X)


@pytest.mark.parametrize(("name", "n"), [("ViT-B-32/openai", 128), ("RN50/openai", 128), ("skclip-tiny", 512)])
def test_lanes_beside_plain_forward_passes(benchmark, name, n):
    backbone = load_backbone(name, device="cpu") if name == "skclip-tiny" else random_backbone(name)
    X = np.random.default_rng(0).integers(0, 256, (n, *backbone.card.image_size, 3), dtype=np.uint8)
    settle(backbone, X)
    ways = {size: lambda size=size: plain_forward(backbone, X, size) for size in PLAIN_SIZES}
    ways["lanes"] = lambda: backbone.encode_images(X)
    medians = interleaved(ways)
    best = min(medians[size] for size in PLAIN_SIZES)
    found = benchmark.pedantic(backbone.encode_images, args=(X,), rounds=1)
    benchmark.extra_info["ratio"] = best / medians["lanes"]
    rates = ", ".join(f"{way}: {n / seconds:.1f}" for way, seconds in medians.items())
    print(
        f"\n{name}, batches of {backbone.picture_batch_size}, pictures/s: {rates}; {best / medians['lanes']:.2f} times"
    )
    expected = plain_forward(backbone, X, 32)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


def test_compiled_beside_uncompiled(benchmark):
    plain, compiled = (random_backbone("ViT-B-32/openai", compile=flag) for flag in (False, True))
    X = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3), dtype=np.uint8)
    medians = interleaved(
        {"uncompiled": lambda: plain.encode_images(X, batch_size=16), "compiled": lambda: compiled.encode_images(X)}
    )
    found = benchmark.pedantic(compiled.encode_images, args=(X,), rounds=1)
    ratio = medians["uncompiled"] / medians["compiled"]
    benchmark.extra_info["ratio"] = ratio
    print(f"\nViT-B-32 compiled: {ratio:.2f} times the rate")
    expected = plain.encode_images(X)
    np.testing.assert_allclose(found, expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("n", [2, 4, 8, 16])
def test_few_pictures_on_lanes_beside_one_forward_pass(benchmark, n):
    backbone = random_backbone("ViT-B-32/openai")
    X = np.random.default_rng(0).integers(0, 256, (n, 224, 224, 3), dtype=np.uint8)
    medians = interleaved({"lanes": lambda: backbone.encode_images(X), "plain": lambda: plain_forward(backbone, X, n)})
    benchmark.pedantic(backbone.encode_images, args=(X,), rounds=1)
    benchmark.extra_info["ratio"] = medians["plain"] / medians["lanes"]
    print(f"\n{n} pictures: {medians['plain'] / medians['lanes']:.2f} times the rate")
