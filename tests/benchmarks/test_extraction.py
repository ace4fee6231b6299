"""Features of JPEG files, beside the loop that everybody writes and a DataLoader.

The whole table is that of `examples/benchmark_extraction.py`.
"""

from __future__ import annotations

import json
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_sample_images

from skclip import CLIPFeatures
from skclip._backbones import get_card, load_backbone
from skclip._backbones._open_clip import import_open_clip

N_PICTURES, BATCH = 128, 64
CHEAP = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 224, "patch_size": 32, "width": 64, "head_width": 32, "layers": 1},
    "text_cfg": {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1},
}


class Files:
    def __init__(self, paths, transform):
        self.paths, self.transform = paths, transform

    def __len__(self):
        return len(self.paths)

    def __getitem__(self, i):
        return self.transform(Image.open(self.paths[i]))


def seconds(call):
    start = time.perf_counter()
    answer = call()
    return time.perf_counter() - start, answer


def cosines(rows, expected):
    rows, expected = rows.astype(np.float64), expected.astype(np.float64)
    return (rows * expected).sum(axis=1) / np.linalg.norm(rows, axis=1) / np.linalg.norm(expected, axis=1)


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    """Crops of 500 x 375 pixels at quality 90."""
    rng = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("pictures")
    samples = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for k in range(N_PICTURES):
        left, top = rng.integers(640 - 500), rng.integers(427 - 375)
        picture = samples[k % 2].crop((left, top, left + 500, top + 375))
        picture.save(folder / f"{k:03d}.jpg", quality=90)
    return sorted(map(str, folder.iterdir()))


@pytest.fixture(scope="module")
def cheap_model(tmp_path_factory):
    """A tower of 224 pixels that costs next to nothing, so that reading is all there is to do."""
    folder = tmp_path_factory.mktemp("cheap")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = import_open_clip().CLIP(**CHEAP)
    state = {name: weights.contiguous() for name, weights in module.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    config = json.dumps({"model_cfg": CHEAP, "preprocess_cfg": {}})
    (folder / "open_clip_config.json").write_text(config, encoding="utf-8")
    return f"local-dir:{folder}"


@pytest.mark.parametrize("size", [48, 224])
def test_extraction_of_128_jpegs(size, benchmark, paths, cheap_model):
    model = "skclip-tiny" if size == 48 else cheap_model
    card = get_card(model)
    tower = load_backbone(model, device="cpu", precision="float32").module.visual
    transform = import_open_clip().image_transform(size, is_train=False, mean=card.mean, std=card.std)
    loader = torch.utils.data.DataLoader(
        Files(paths, transform), batch_size=BATCH, num_workers=2, persistent_workers=True, timeout=120
    )

    def naive():
        rows = []
        for lo in range(0, len(paths), BATCH):
            pictures = [transform(Image.open(path)) for path in paths[lo : lo + BATCH]]
            rows.append(tower(torch.stack(pictures)).cpu().numpy())
        return np.concatenate(rows)

    def features(decode):
        transformer = CLIPFeatures(model, normalize=False, device="cpu", store=None, decode=decode)
        return lambda: transformer.transform(paths)

    ways = {
        "DataLoader": lambda: np.concatenate([tower(batch).cpu().numpy() for batch in loader]),
        "naive": naive,
        "exact": features("exact"),
        "fast": features("fast"),
    }
    times = {name: [] for name in ways}
    rows = {}
    with torch.inference_mode():
        for way in ways.values():
            way()  # starts workers, settles batch sizes
        for _ in range(3):
            for name, way in ways.items():
                elapsed, rows[name] = seconds(way)
                times[name].append(elapsed)
        benchmark.pedantic(ways["exact"], rounds=1)
    median = {name: float(np.median(values)) for name, values in times.items()}
    ratios = {name: median["naive"] / elapsed for name, elapsed in median.items()}
    fast = cosines(rows["fast"], rows["naive"])
    benchmark.extra_info.update({f"{name} over naive": ratio for name, ratio in ratios.items()})
    benchmark.extra_info["lowest cosine of fast"] = float(fast.min())
    print(
        f"\n{size} pixels: naive {N_PICTURES / median['naive']:.0f} pictures/s, "
        + ", ".join(f"{name} {ratio:.2f}" for name, ratio in ratios.items() if name != "naive")
        + f" times that; cosine of fast {fast.min():.4f} at least, {fast.mean():.4f} in the mean"
    )
    for name in ("DataLoader", "exact"):
        assert cosines(rows[name], rows["naive"]).min() > 1 - 1e-5
    assert fast.min() > 0.95
