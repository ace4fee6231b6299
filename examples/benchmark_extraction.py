"""
Extraction beside what everybody writes: the table of the user guide
====================================================================

How many pictures per second ``CLIPFeatures`` turns into features, beside the loops that people write, and beside the
ceilings that no loop can pass. One command writes the table that the documentation includes::

    python examples/benchmark_extraction.py --out docs/tables/extraction.rst --json extraction.json

Protocol. 2,000 JPEG files of 500 x 375 at quality 90, made here: crops and mirrorings of scikit-learn's two sample
pictures. They have just been written, so the page cache is warm. Each contestant first encodes a few of them, which
starts its workers; what that takes above the steady pace is its start-up. Then the contestants take turns, round by
round, each round in another order, and the medians of the rounds are compared. Everything runs on the CPU in float32 on
all cores:

- naive: one process, lists of 64, ``PIL.Image.open`` inside open_clip's transform, one float32 tensor, the tower,
  ``.cpu()``;
- torch's ``DataLoader`` with 0, 1, 2 and 4 persistent workers around the same transform and tower. After the first
  round the two best go on;
- transformers' and sentence-transformers' own pipelines, on a tower of the same width and depth with weights of its
  own, over an eighth of the pictures;
- ``CLIPFeatures(store=None)``, exact and fast, with threads and with processes;
- ceilings: the bare tower on float tensors that are ready (the best of batches of 8, 16, 32, 64), and decoding and
  resizing alone, with plain Pillow in as many threads or processes as there are cores.

The towers: ViT-B-32 with random weights (over fewer pictures), the bundled skclip-tiny of 48 pixels, and a tower of 224
pixels that costs next to nothing, so that reading is all there is to do. Exact features must equal the naive ones to a
cosine of 1 - 1e-5, or the script stops. Two cores take a quarter of an hour.

The other parts: ``store`` (a second run from a folder store, and a million rows read back) and ``accelerator``
(CUDA: the share of the measured matrix peak that towers reach, and the rate from JPEG files). On request alone, because
it takes as long as the rest and needs more packages (onnx, onnxscript, onnxruntime, openvino, nncf):
``--only engines``, other engines for the same towers on the CPU, with int8 calibrated on 64 other pictures.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import platform
import shlex
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import date
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import joblib
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_sample_images

from skclip import CLIPFeatures
from skclip._backbones import clear_backbones, get_card, load_backbone
from skclip._backbones._open_clip import import_open_clip
from skclip.datasets import make_picture_world
from skclip.features._store import open_store

PARTS = ("tiny", "light", "b32", "store", "accelerator", "engines")
BATCH = 64
TEXT = {"context_length": 8, "vocab_size": 64, "width": 32, "heads": 2, "layers": 1}  # never used
LIGHT = {"image_size": 224, "patch_size": 32, "width": 64, "head_width": 32, "layers": 1}
LEGEND = """\
"Of" is a ratio of rates. "Of both in turn" is to decoding all pictures at the rate of decoding alone and running the
bare tower afterwards, on the same cores: lanes can pass it, because a bare forward pass does not keep every core busy.
Cosines of fast are the lowest, the mean, and the mean after the mean row, which all pictures share, has been taken off;
for random weights they say little.
"""
TITLES = {
    "tiny": "skclip-tiny, 48 pixels",
    "light": "a tower of 224 pixels that costs next to nothing",
    "b32": "ViT-B-32, 224 pixels",
}


# Pictures and towers


def make_pictures(folder: Path, n: int, seed: int = 0) -> list[str]:
    """Write `n` JPEG files: crops and mirrorings of scikit-learn's sample pictures."""
    rng = np.random.default_rng(seed)
    samples = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    paths = []
    for k in range(n):
        sample = samples[k % len(samples)]
        width = int(560 * rng.uniform(0.6, 1))
        height = width * 3 // 4
        left, top = rng.integers(sample.width - width + 1), rng.integers(sample.height - height + 1)
        picture = sample.crop((left, top, left + width, top + height)).resize((500, 375), Image.Resampling.BICUBIC)
        if rng.random() < 0.5:
            picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        paths.append(str(folder / f"{k:05d}.jpg"))
        picture.save(paths[-1], quality=90)
    return paths


def random_model(folder: Path, vision: dict[str, Any], dim: int) -> str:
    """Save a model of random weights as a folder of open_clip's; its model string."""
    from safetensors.torch import save_file

    config = {"embed_dim": dim, "vision_cfg": vision, "text_cfg": TEXT}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = import_open_clip().CLIP(**copy.deepcopy(config))
    folder.mkdir()
    state = {name: weights.contiguous() for name, weights in module.state_dict().items()}
    save_file(state, folder / "open_clip_model.safetensors")
    content = json.dumps({"model_cfg": config, "preprocess_cfg": {}})
    (folder / "open_clip_config.json").write_text(content, encoding="utf-8")
    return f"local-dir:{folder}"


def named_model(folder: Path, name: str) -> str:
    """An architecture of open_clip with random weights."""
    config = import_open_clip().get_model_config(name)
    return random_model(folder / name, config["vision_cfg"], config["embed_dim"])


def model_of(part: str, folder: Path) -> str:
    if part == "tiny":
        return "skclip-tiny"
    if part == "light":
        return random_model(folder / "light", LIGHT, 64)
    return named_model(folder, "ViT-B-32")


# Contestants


class Contestant(NamedTuple):
    """Something that encodes the first n pictures, in order."""

    name: str
    run: Callable[[int], Any]
    n: int
    rival: str = ""  # after the first round the two fastest of a kind go on
    idles: bool = False  # workers end when they have waited for some time: they are woken before their turn


@dataclass
class Result:
    """What was measured of a contestant."""

    start_up: float = 0.0  # seconds
    rates: list[float] = field(default_factory=list)  # pictures per second
    rows: Any = None

    @property
    def rate(self) -> float:
        return float(np.median(self.rates))


def take_turns(contestants: Sequence[Contestant], rounds: int) -> dict[str, Result]:
    """Let contestants take turns: a first call of each that starts its workers, then rounds in changing order."""
    results = {contestant.name: Result() for contestant in contestants}
    first: dict[str, tuple[int, float]] = {}
    for contestant in contestants:
        n = min(contestant.n, BATCH)
        first[contestant.name] = n, seconds(lambda c=contestant, n=n: c.run(n))[0]
    going = list(contestants)
    for number in range(rounds):
        shift = number % len(going)
        for contestant in going[shift:] + going[:shift]:
            result = results[contestant.name]
            if contestant.idles:
                contestant.run(min(contestant.n, BATCH))
            elapsed, result.rows = seconds(lambda c=contestant: c.run(c.n))
            result.rates.append(contestant.n / elapsed)
        going = [c for c in going if not c.rival or c.name in fastest(results, going, c.rival, 2)]
        say(f"    round {number + 1}: " + ", ".join(f"{name} {r.rates[-1]:.4g}" for name, r in results.items()))
    for name, result in results.items():
        n, elapsed = first[name]
        result.start_up = max(0.0, elapsed - n / result.rate)
    return results


def fastest(results: dict[str, Result], contestants: Sequence[Contestant], rival: str, k: int = 1) -> list[str]:
    names = [c.name for c in contestants if c.rival == rival]
    return sorted(names, key=lambda name: -results[name].rate)[:k]


def seconds(call: Callable[[], Any]) -> tuple[float, Any]:
    gc.collect()
    start = time.perf_counter()
    answer = call()
    return time.perf_counter() - start, answer


def naive(tower: Any, transform: Any, paths: Sequence[str]) -> Callable[[int], NDArray]:
    def run(n: int) -> NDArray:
        rows = []
        with torch.inference_mode():
            for lo in range(0, n, BATCH):
                pictures = [transform(Image.open(path)) for path in paths[lo : min(lo + BATCH, n)]]
                rows.append(tower(torch.stack(pictures)).cpu().numpy())
        return np.concatenate(rows)

    return run


class Files:
    """The data set of a DataLoader."""

    def __init__(self, paths: Sequence[str], transform: Any) -> None:
        self.paths, self.transform = paths, transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> Any:
        return self.transform(Image.open(self.paths[i]))


def data_loader(tower: Any, transform: Any, paths: Sequence[str], n_workers: int) -> Callable[[int], NDArray]:
    order = list(range(len(paths)))
    warnings.filterwarnings("ignore", message="This DataLoader will create")  # more workers than cores: it is tried
    # A time limit, because workers are forked from a process that has threads.
    workers: dict[str, Any] = {"persistent_workers": True, "timeout": 120} if n_workers else {}
    loader = torch.utils.data.DataLoader(
        Files(paths, transform),  # type: ignore[arg-type]
        batch_size=BATCH,
        sampler=order,
        num_workers=n_workers,
        **workers,
    )

    def run(n: int) -> NDArray:
        order[:] = range(n)
        with torch.inference_mode():
            return np.concatenate([tower(batch).cpu().numpy() for batch in loader])

    return run


def transformers_pipelines(
    folder: Path, vision: dict[str, Any], dim: int, paths: Sequence[str]
) -> Iterator[tuple[str, Callable[[int], NDArray]]]:
    """transformers with its two kinds of processors, and sentence-transformers, where they are installed."""
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
    from transformers.models.clip import CLIPImageProcessor, CLIPImageProcessorPil
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()

    size = vision["image_size"]
    config = CLIPConfig(
        projection_dim=dim,
        vision_config={
            "image_size": size,
            "patch_size": vision["patch_size"],
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // vision.get("head_width", 64),
            "hidden_act": "gelu",
        },
        text_config={
            "vocab_size": 4,
            "max_position_embeddings": 8,
            "hidden_size": 32,
            "intermediate_size": 32,
            "num_hidden_layers": 1,
            "num_attention_heads": 2,
            "bos_token_id": 0,
            "eos_token_id": 1,
            "pad_token_id": 1,
        },
    )
    model = CLIPModel(config).eval()
    sides: dict[str, Any] = {"size": {"shortest_edge": size}, "crop_size": {"height": size, "width": size}}

    def pipeline(processor: Any) -> Callable[[int], NDArray]:
        def run(n: int) -> NDArray:
            rows = []
            with torch.inference_mode():
                for lo in range(0, n, BATCH):
                    pictures = [Image.open(path) for path in paths[lo : min(lo + BATCH, n)]]
                    answer = model.get_image_features(**processor(pictures, return_tensors="pt"))
                    rows.append(getattr(answer, "pooler_output", answer).cpu().numpy())
            return np.concatenate(rows)

        return run

    yield "transformers, Pillow", pipeline(CLIPImageProcessorPil(**sides))
    processor = CLIPImageProcessor(**sides)
    yield "transformers, torchvision", pipeline(processor)

    from sentence_transformers import SentenceTransformer

    folder.mkdir()
    model.save_pretrained(folder)
    words = {"<|startoftext|>": 0, "<|endoftext|>": 1, "a</w>": 2, "a": 3}
    (folder / "vocab.json").write_text(json.dumps(words), encoding="utf-8")
    (folder / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"))
    CLIPProcessor(processor, tokenizer).save_pretrained(folder)
    sentences = SentenceTransformer(str(folder), device="cpu")

    def encode(n: int) -> NDArray:
        rows = []
        for lo in range(0, n, BATCH):  # all at once would keep every file open
            pictures = [Image.open(path) for path in paths[lo : min(lo + BATCH, n)]]
            rows.append(sentences.encode(pictures, batch_size=BATCH, show_progress_bar=False))
        return np.concatenate(rows)

    yield "sentence-transformers", encode


def pixels_of(path: str, size: int, fast: bool) -> NDArray[np.uint8]:
    """Decode and resize with Pillow and nothing around it."""
    with Image.open(path) as picture:
        width, height = picture.size
        if fast:
            reduction = next((k for k in (8, 4, 2) if min(width, height) / size / k >= 1.5), 1)
            picture.draft(None, (width // reduction, height // reduction))
            width, height = picture.size
            side = min(width, height)
            left, top = (width - side) / 2, (height - side) / 2
            box = (left, top, left + side, top + side)
            return np.asarray(picture.resize((size, size), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0))
        scale = size / min(width, height)
        resized = picture.resize((int(width * scale), int(height * scale)), Image.Resampling.BICUBIC)
        left, top = round((resized.width - size) / 2), round((resized.height - size) / 2)
        return np.asarray(resized.crop((left, top, left + size, top + size)))


def decode_all(paths: Sequence[str], size: int, fast: bool) -> None:
    pixels = np.empty((BATCH, size, size, 3), dtype=np.uint8)
    for i, path in enumerate(paths):
        pixels[i % BATCH] = pixels_of(path, size, fast)


def decoding_alone(pool: Any, n_workers: int, paths: Sequence[str], size: int, fast: bool) -> Callable[[int], None]:
    def run(n: int) -> None:
        parts = [paths[k:n:n_workers] for k in range(n_workers)]
        for task in [pool.submit(decode_all, part, size, fast) for part in parts]:
            task.result()

    return run


def bare_forward(tower: Any, batch: torch.Tensor, batch_size: int) -> Callable[[int], None]:
    def run(n: int) -> None:
        with torch.inference_mode():
            for lo in range(0, n, batch_size):
                start = lo % len(batch)
                tower(batch[start : start + min(batch_size, n - lo)])

    return run


# The parts


def compare_loops(part: str, paths: Sequence[str], folder: Path, rounds: int) -> dict[str, Any]:
    """All contestants on one tower."""
    model = model_of(part, folder)
    card = get_card(model)
    size, n = card.image_size[0], len(paths)
    module = copy.deepcopy(load_backbone(model, device="cpu", precision="float32").module)
    tower = module.visual
    transform = import_open_clip().image_transform(size, is_train=False, mean=card.mean, std=card.std)
    ready = torch.stack([transform(Image.open(path)) for path in paths[:BATCH]])
    n_workers = joblib.cpu_count()
    notes = []
    with ExitStack() as stack:
        contestants = [
            Contestant(f"DataLoader, {k} workers", data_loader(tower, transform, paths, k), n, "loader")
            for k in (0, 1, 2, 4)
        ]
        contestants.append(Contestant("naive", naive(tower, transform, paths), n))
        vision = json.loads(card.config)["vision_cfg"]
        n_theirs = min(n, max(BATCH, n // 8))
        try:
            for name, run in transformers_pipelines(folder / f"{part}-transformers", vision, card.dim, paths):
                contestants.append(Contestant(name, run, n_theirs))
        except Exception as error:  # absent, or another version: the others are still worth measuring
            notes.append(f"Not measured: transformers, sentence-transformers ({type(error).__name__}: {error}).")
        for decode in ("exact", "fast"):
            for workers in ("threads", "processes"):
                features = CLIPFeatures(
                    model, normalize=False, device="cpu", store=None, decode=decode, workers=workers
                )
                run = lambda n, features=features: features.transform(paths[:n])  # noqa: E731
                idles = workers == "processes"
                contestants.append(Contestant(f"skclip {decode}, {workers}", run, n, idles=idles))
        pools = {
            "threads": stack.enter_context(ThreadPoolExecutor(n_workers)),
            "processes": stack.enter_context(ProcessPoolExecutor(n_workers, mp_context=get_context("spawn"))),
        }
        for decode in ("exact", "fast"):
            for kind, pool in pools.items():
                run = decoding_alone(pool, n_workers, paths, size, decode == "fast")
                contestants.append(Contestant(f"decode and resize alone, {decode}, {kind}", run, n, decode))
        for batch_size in (8, 16, 32, 64):
            name = f"bare tower, batches of {batch_size}"
            contestants.append(Contestant(name, bare_forward(tower, ready, batch_size), n, "tower"))
        results = take_turns(contestants, rounds)
    return table_of_loops(contestants, results, notes)


def table_of_loops(contestants: Sequence[Contestant], results: dict[str, Result], notes: list[str]) -> dict[str, Any]:
    """Ratios to the naive loop, the best DataLoader and the ceilings; features beside the naive ones."""
    best = {kind: fastest(results, contestants, kind)[0] for kind in ("loader", "tower", "exact", "fast")}
    bare = results[best["tower"]].rate
    expected = results["naive"].rows
    rows = []
    for contestant in contestants:
        name, result = contestant.name, results[contestant.name]
        if contestant.rival and name != best[contestant.rival]:
            continue
        kind = "fast" if "fast" in name else "exact"
        decoding = results[best[kind]].rate
        row: dict[str, Any] = {
            "contestant": name,
            "pictures/s": result.rate,
            "lowest": min(result.rates),
            "highest": max(result.rates),
            "naive": result.rate / results["naive"].rate,
            "loader": result.rate / results[best["loader"]].rate,
            "start-up": result.start_up,
        }
        if contestant.rival not in ("tower", "exact", "fast"):
            row["decoding"] = result.rate / decoding
            row["tower"] = result.rate / bare
            row["both"] = result.rate * (1 / decoding + 1 / bare)
            row["pictures"] = contestant.n
        if name.startswith(("skclip", "DataLoader")):
            row |= cosines(result.rows, expected[: len(result.rows)])
            if kind == "exact" and row["lowest cosine"] <= 1 - 1e-5:
                raise SystemExit(f"{name} differs from the naive loop: cosine {row['lowest cosine']:.7f}.")
        rows.append(row)
    rows.sort(key=lambda row: row["contestant"] != "naive")
    rates = [f"{c.name}: {results[c.name].rates[0]:.4g}" for c in contestants if c.rival in ("loader", "tower")]
    notes.append(f"Pictures/s in the first round: {'; '.join(rates)}.")
    return {"rows": rows, "notes": notes}


def cosines(rows: NDArray, expected: NDArray) -> dict[str, float]:
    """Lowest and mean cosine, as they are and after the mean row, which all pictures share, has been taken off."""

    def cosine(a: NDArray, b: NDArray) -> NDArray:
        a, b = a.astype(np.float64), b.astype(np.float64)
        return (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)

    plain, mean = cosine(rows, expected), expected.mean(axis=0)
    centred = cosine(rows - mean, expected - mean)
    return {
        "lowest cosine": float(plain.min()),
        "mean cosine": float(plain.mean()),
        "mean centred cosine": float(centred.mean()),
    }


def measure_store(paths: Sequence[str], folder: Path, rounds: int, n_rows: int) -> dict[str, Any]:
    """A first and a second run with a folder store; many rows read by known keys."""
    model = model_of("b32", folder)
    load_backbone(model, device="cpu", precision="float32")
    first, second = [], []
    for number in range(rounds):
        features = CLIPFeatures(model, device="cpu", store=folder / f"store-{number}")
        elapsed, rows = seconds(lambda f=features: f.transform(paths))
        first.append(elapsed)
        elapsed, again = seconds(lambda f=features: f.transform(paths))
        second.append(elapsed)
        np.testing.assert_array_equal(again, rows)
    say(f"    second run {np.median(first) / np.median(second):.0f} times faster than the first")

    store = open_store(folder / "rows")
    rng = np.random.default_rng(0)
    keys = [rng.bytes(16) for _ in range(n_rows)]
    block = 8192
    start = time.perf_counter()
    for lo in range(0, n_rows, block):
        part = keys[lo : lo + block]
        store.put(part, rng.standard_normal((len(part), 512), dtype=np.float32))
    written = time.perf_counter() - start

    def read(wanted: list[bytes]) -> int:
        return sum(int(store.get(wanted[lo : lo + block], 512)[1].sum()) for lo in range(0, n_rows, block))

    shuffled = [keys[i] for i in rng.permutation(n_rows)]
    times: dict[str, list[float]] = {"in the order of writing": [], "in random order": []}
    read(keys)  # warms the page cache
    for _ in range(rounds):
        for order, wanted in zip(times, (keys, shuffled)):
            elapsed, n_found = seconds(lambda wanted=wanted: read(wanted))
            assert n_found == n_rows
            times[order].append(elapsed)
    return {
        "pictures": len(paths),
        "first run": float(np.median(first)),
        "second run": float(np.median(second)),
        "rows": n_rows,
        "written": written,
        "read": {order: float(np.median(values)) for order, values in times.items()},
    }


def measure_engines(
    model: str, paths: Sequence[str], n: int, folder: Path, rounds: int, batch_sizes: Sequence[int] = (1, 8, 16, 32)
) -> dict[str, Any]:
    """Engines that could stand in for torch on the CPU: pictures per second by batch size, and their features.

    The last 64 of `n` pictures calibrate. skclip-tiny gets drawn pictures, which are what it was trained on.
    """
    backbone = load_backbone(model, device="cpu", precision="float32")
    size = backbone.card.image_size[0]
    if model == "skclip-tiny":
        pixels = make_picture_world(n, random_state=0).images
    else:
        pixels = np.stack([pixels_of(path, size, fast=False) for path in paths[:n]])
    scale = [np.float32(values) for values in (backbone.card.mean, backbone.card.std)]
    ready = ((np.float32(pixels) / np.float32(255) - scale[0]) / scale[1]).transpose(0, 3, 1, 2).copy()
    calibration, ready, pixels = ready[-64:], ready[:-64], pixels[:-64]
    tower = copy.deepcopy(backbone.module.visual)
    expected = backbone.encode_images(pixels)

    table: dict[str, dict[str, Any]] = {}
    with ThreadPoolExecutor(joblib.cpu_count()) as pool:
        makers = {"skclip": lambda batch_size: partial(backbone.encode_images, batch_size=batch_size)}
        makers |= engine_makers(tower, calibration, folder, pool)
        for batch_size in batch_sizes:
            contestants = []
            for name, make in makers.items():
                encode = make(batch_size)
                given = pixels if name == "skclip" else ready
                run = lambda n, encode=encode, given=given: encode(given[:n])  # noqa: E731
                contestants.append(Contestant(name, run, len(pixels)))
            for name, result in take_turns(contestants, rounds).items():
                row = table.setdefault(name, {"rates": {}, **cosines(result.rows, expected)})
                row["rates"][str(batch_size)] = result.rate
    return {"model": f"{model.rpartition('/')[2]}, {len(pixels)} pictures", "rows": table}


def engine_makers(
    tower: Any, calibration: NDArray[np.float32], folder: Path, pool: ThreadPoolExecutor
) -> dict[str, Callable[[int], Callable[[NDArray], NDArray]]]:
    """For each engine a function of the batch size that gives a function from float pictures to features.

    Lanes are threads that run whole batches side by side, each on one core.
    """
    import nncf
    import onnxruntime
    import openvino
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    n_lanes = joblib.cpu_count()
    folder = Path(tempfile.mkdtemp(dir=folder))
    file = {name: str(folder / f"{name}.onnx") for name in ("plain", "float32", "dynamic int8", "static int8")}
    torch.onnx.export(
        tower,
        (torch.from_numpy(calibration[:2]),),
        file["plain"],
        dynamo=True,
        external_data=False,
        input_names=["pictures"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
    )
    quant_pre_process(file["plain"], file["float32"], skip_symbolic_shape=True)
    quantize_dynamic(file["float32"], file["dynamic int8"], weight_type=QuantType.QInt8, per_channel=True)

    class Calibration(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(np.split(calibration, 8))

        def get_next(self) -> dict[str, NDArray] | None:
            batch = next(self.batches, None)
            return None if batch is None else {"pictures": batch}

    quantize_static(
        file["float32"],
        file["static int8"],
        Calibration(),
        op_types_to_quantize=["MatMul", "Gemm"],
        weight_type=QuantType.QInt8,
        per_channel=True,
        reduce_range=True,  # 8 bits overflow on processors without VNNI
    )

    def in_turn(encode: Callable[[NDArray], NDArray], batch_size: int) -> Callable[[NDArray], NDArray]:
        return lambda x: np.concatenate([encode(part) for part in cut(x, batch_size)])

    def in_lanes(encode: Callable[[NDArray], NDArray], batch_size: int) -> Callable[[NDArray], NDArray]:
        return lambda x: np.concatenate(list(pool.map(encode, cut(x, batch_size))))

    def with_torch(module: Any) -> Callable[[int], Callable[[NDArray], NDArray]]:
        def encode(x: NDArray) -> NDArray:
            with torch.inference_mode():
                return module(torch.from_numpy(x)).numpy()

        return partial(in_turn, encode)

    def with_onnx(name: str, lanes: bool) -> Callable[[int], Callable[[NDArray], NDArray]]:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1 if lanes else n_lanes
        session = onnxruntime.InferenceSession(file[name], options, providers=["CPUExecutionProvider"])
        return partial(in_lanes if lanes else in_turn, lambda x: session.run(None, {"pictures": x})[0])

    def with_openvino(plan: Any) -> Callable[[int], Callable[[NDArray], NDArray]]:
        def make(batch_size: int) -> Callable[[NDArray], NDArray]:
            fixed = plan.clone()
            fixed.reshape([batch_size, *calibration.shape[1:]])
            hints = {
                "PERFORMANCE_HINT": "THROUGHPUT",
                "NUM_STREAMS": n_lanes,
                "INFERENCE_NUM_THREADS": n_lanes,
                "INFERENCE_PRECISION_HINT": "f32",
            }
            compiled = core.compile_model(fixed, "CPU", hints)
            return in_lanes(lambda x: np.array(compiled.create_infer_request().infer([x])[0]), batch_size)

        return make

    core = openvino.Core()
    plan = core.read_model(file["float32"])
    examples = nncf.Dataset(np.split(calibration, len(calibration)))
    quantized = nncf.quantize(plan, examples, model_type=nncf.ModelType.TRANSFORMER, subset_size=len(calibration))
    makers = {
        "torch, plain": with_torch(tower),
        "torch.compile": with_torch(torch.compile(tower, dynamic=True)),
        "OpenVINO float32, lanes": with_openvino(plan),
        "OpenVINO int8 (NNCF), lanes": with_openvino(quantized),
    }
    makers["ONNX Runtime float32, plain"] = with_onnx("float32", lanes=False)
    for name in ("float32", "dynamic int8", "static int8"):
        makers[f"ONNX Runtime {name}, lanes"] = with_onnx(name, lanes=True)
    return makers


def cut(x: NDArray, batch_size: int) -> list[NDArray]:
    return [x[lo : lo + batch_size] for lo in range(0, len(x), batch_size)]


def measure_accelerator(paths: Sequence[str], folder: Path, rounds: int) -> dict[str, Any]:
    """Towers in bf16 on pictures that lie on the device, beside the matrix peak; and from JPEG files."""
    if not torch.cuda.is_available():
        return {"missing": "not measured: no accelerator"}
    peak = matrix_peak()
    rows = []
    for name in ("ViT-B-32", "ViT-B-16", "ViT-L-14"):
        model = named_model(folder, name)
        backbone = load_backbone(model, device="cuda", precision="bf16")
        gflops = get_card(model).gflops_image
        assert gflops is not None
        n = 4096
        pixels = torch.randint(0, 256, (n, 224, 224, 3), dtype=torch.uint8, device="cuda")
        contestants = [Contestant("tower", lambda n, b=backbone, p=pixels: b.encode_images(p[:n]), n)]
        for decode in ("exact", "fast"):
            features = CLIPFeatures(model, device="cuda", precision="bf16", store=None, decode=decode)
            run = lambda n, features=features: features.transform(paths[:n])  # noqa: E731
            contestants.append(Contestant(decode, run, len(paths)))
        with ThreadPoolExecutor(joblib.cpu_count()) as pool:
            run = decoding_alone(pool, joblib.cpu_count(), paths, 224, False)
            contestants.append(Contestant("decoding", run, len(paths)))
            for _ in range(3):  # batch size "auto" settles on the first calls
                backbone.encode_images(pixels)
            results = take_turns(contestants, rounds)
        rate = results["tower"].rate
        rows.append(
            {
                "model": name,
                "pictures/s": rate,
                "batch size": backbone.picture_batch_size,
                "TFLOP/s": rate * gflops / 1e3,
                "share of peak": rate * gflops / 1e3 / peak,
                "from JPEG, exact": results["exact"].rate,
                "from JPEG, fast": results["fast"].rate,
                "decode and resize alone, exact": results["decoding"].rate,
            }
        )
        del pixels
        clear_backbones()
    return {"device": torch.cuda.get_device_name(), "peak": peak, "rows": rows}


def matrix_peak() -> float:
    """TFLOP/s of a large bf16 matrix product, the best of three sizes."""
    found = []
    for side in (4096, 8192, 16384):
        a, b = (torch.randn(side, side, device="cuda", dtype=torch.bfloat16) for _ in range(2))
        times = []
        for repeat in range(30):
            torch.cuda.synchronize()
            start = time.perf_counter()
            torch.mm(a, b)
            torch.cuda.synchronize()
            if repeat >= 10:
                times.append(time.perf_counter() - start)
        found.append(2 * side**3 / float(np.median(times)) / 1e12)
    return max(found)


# The table


def machine() -> str:
    names = ("torch", "open_clip_torch", "Pillow", "numpy", "transformers", "sentence-transformers")
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            found.append(f"no {name}")
    return f"{cpu_name()}, {joblib.cpu_count()} cores, Python {platform.python_version()}, {', '.join(found)}"


def cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def stamp() -> dict[str, str]:
    """Where, when and how a part was measured."""
    load = f", load {os.getloadavg()[0]:.1f} before" if hasattr(os, "getloadavg") else ""
    command = shlex.join(["python", "examples/benchmark_extraction.py", *sys.argv[1:]])
    return {"machine": machine(), "command": command, "date": f"{date.today()}{load}"}


def list_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [f".. list-table:: {title}", "   :header-rows: 1", ""]
    for row in [columns, *rows]:
        lines += [f"   {'*' if i == 0 else ' '} - {cell}".rstrip() for i, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def render(parts: dict[str, Any]) -> str:
    """The table of all parts in reStructuredText."""
    texts = [RENDER[part](parts[part]) for part in PARTS if part in parts]
    return "\n".join([".. Written by examples/benchmark_extraction.py.\n", LEGEND, *texts])


def footnote(found: dict[str, Any], more: Sequence[str] = ()) -> str:
    made = found["stamp"]
    return " ".join([*more, f"{made['machine']}; {made['date']}; ``{made['command']}``."]) + "\n"


def render_loops(part: str) -> Callable[[dict[str, Any]], str]:
    columns = (
        "contestant",
        "pictures/s",
        "of naive",
        "of the best DataLoader",
        "of the bare tower",
        "of decoding alone",
        "of both in turn",
        "start-up, s",
        "cosine to naive",
    )

    def cells(row: dict[str, Any]) -> list[str]:
        ceilings = [f"{row[key]:.2f}" if key in row else "" for key in ("tower", "decoding", "both")]
        cosine = ""
        if "lowest cosine" in row:
            found = [row[key] for key in ("lowest cosine", "mean cosine", "mean centred cosine")]
            cosine = "1" if found[0] > 1 - 1e-5 else " / ".join(f"{value:.4f}" for value in found)
        start_up = f"{row['start-up']:.1f}" if row["start-up"] >= 0.05 else "0"
        ratios = [f"{row['naive']:.2f}", f"{row['loader']:.2f}"]
        return [row["contestant"], f"{row['pictures/s']:.4g}", *ratios, *ceilings, start_up, cosine]

    def write(found: dict[str, Any]) -> str:
        title = f"{TITLES[part]}: {found['pictures']} pictures, {found['rounds']} rounds, CPU, float32"
        table = list_table(title, columns, [cells(row) for row in found["rows"]])
        return f"{table}\n{footnote(found, found['notes'])}"

    return write


def render_store(found: dict[str, Any]) -> str:
    faster = f"{found['first run'] / found['second run']:.0f} times faster than the first, {found['first run']:.1f} s"
    rows = [[f"second run of {found['pictures']} pictures, ViT-B-32", f"{found['second run']:.3f}", faster]]
    written = f"written in {found['written']:.0f} s"
    for order, elapsed in found["read"].items():
        rows.append([f"{found['rows']:,} rows of 512, {order}", f"{elapsed:.2f}", written])
    return list_table("The folder store", ("read", "seconds", ""), rows) + "\n" + footnote(found)


def render_engines(found: dict[str, Any]) -> str:
    tables = []
    for study in found["models"]:
        best = max(study["rows"]["skclip"]["rates"].values())
        sizes = list(study["rows"]["skclip"]["rates"])
        rows = []
        for name, row in study["rows"].items():
            rates = [f"{row['rates'][size]:.4g}" for size in sizes]
            found_cosines = [f"{row[key]:.5f}" for key in ("lowest cosine", "mean cosine", "mean centred cosine")]
            rows.append([name, *rates, f"{max(row['rates'].values()) / best:.2f}", *found_cosines])
        columns = (
            "pictures/s",
            *(f"batches of {size}" for size in sizes),
            "best, of skclip's best",
            "lowest cosine",
            "mean cosine",
            "mean centred cosine",
        )
        tables.append(list_table(f"Engines on the CPU, {study['model']}", columns, rows))
    return "\n".join([*tables, footnote(found)])


def render_accelerator(found: dict[str, Any]) -> str:
    if "missing" in found:
        return f"Accelerator: {found['missing']}.\n"
    columns = list(found["rows"][0])
    rows = [[f"{v:.4g}" if isinstance(v, float) else str(v) for v in row.values()] for row in found["rows"]]
    title = f"{found['device']}, bf16, measured matrix peak {found['peak']:.0f} TFLOP/s"
    return list_table(title, columns, rows) + "\n" + footnote(found)


RENDER: dict[str, Callable[[dict[str, Any]], str]] = {
    "tiny": render_loops("tiny"),
    "light": render_loops("light"),
    "b32": render_loops("b32"),
    "store": render_store,
    "accelerator": render_accelerator,
    "engines": render_engines,
}


def say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def measure(part: str, paths: Sequence[str], folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    if part == "store":
        return measure_store(paths, folder, options.repeats, options.rows)
    if part == "accelerator":
        return measure_accelerator(paths, folder, options.repeats)
    if part == "engines":
        models = (named_model(folder, "ViT-B-32"), "skclip-tiny")  # the bundled weights are the only trained ones
        # whole batches of 32 after the 64 of the calibration, and many more of the small pictures
        counts = (64 + max(32, (len(paths) - 64) // 32 * 32), 2112)
        return {"models": [measure_engines(m, paths, n, folder, options.repeats) for m, n in zip(models, counts)]}
    return compare_loops(part, paths, folder, options.repeats)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS[:-1]), help="parts to measure")
    parser.add_argument("--pictures", type=int, default=2000, help="for the small towers")
    parser.add_argument("--b32-pictures", type=int, default=128, help="for ViT-B-32 on the CPU")
    parser.add_argument("--rows", type=int, default=1_000_000, help="rows in the store")
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--threads", type=int, help="threads of torch; default: its own")
    parser.add_argument("--out", type=Path, help="reStructuredText file to write")
    parser.add_argument("--json", type=Path, help="file of all figures; parts in it that are not measured now are kept")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    parts: dict[str, Any] = {}
    if options.json and options.json.exists():
        parts = json.loads(options.json.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as name:
        (Path(name) / "pictures").mkdir()
        pictures = make_pictures(Path(name) / "pictures", max(options.pictures, options.b32_pictures))
        for part in [part for part in PARTS if part in options.only]:
            say(part)
            made = stamp()
            folder = Path(name) / part
            folder.mkdir()
            n = options.b32_pictures if part in ("b32", "store", "engines") else options.pictures
            found = measure(part, pictures[:n], folder, options)
            parts[part] = {**found, "stamp": made, "pictures": n, "rounds": options.repeats}
            clear_backbones()
            if options.json:
                options.json.write_text(json.dumps(parts, indent=1), encoding="utf-8")
    text = render(parts)
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
