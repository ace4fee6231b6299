"""Pictures read per second, exact and fast, by threads and processes, beside a loop over open_clip's transform."""

from __future__ import annotations

import io
import time
from concurrent.futures import ThreadPoolExecutor

import joblib
import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_images

from skclip._backbones._open_clip import import_open_clip
from skclip._media import PictureReader, PictureTransform, Wanted, content_key, load_item, read_picture
from skclip.features import CLIPFeatures

N = 256
WIDTH, HEIGHT = 500, 375
ROUNDS = 5


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """JPEGs of 500 x 375 pixels, quality 90: crops of scikit-learn's two photographs."""
    folder = tmp_path_factory.mktemp("pictures")
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    rng = np.random.default_rng(0)
    paths = []
    for i in range(N):
        whole = photographs[i % len(photographs)]
        left, top = int(rng.integers(whole.width - WIDTH + 1)), int(rng.integers(whole.height - HEIGHT + 1))
        paths.append(folder / f"{i}.jpg")
        whole.crop((left, top, left + WIDTH, top + HEIGHT)).save(paths[-1], quality=90)
    return paths


def naive(files, side):
    """What everybody writes: open, transform to float32, stack."""
    import torch

    transform = import_open_clip().transform.image_transform(side, is_train=False)
    for lo in range(0, len(files), 64):
        torch.stack([transform(Image.open(path)) for path in files[lo : lo + 64]])


def through(reader, files, out):
    """Read files, hash them, decode and resize."""
    loaded = reader.load(files)
    reader.read([Wanted(data, key, ((i, 0),)) for i, (data, key) in enumerate(loaded)], out)


def ceiling(files, side):
    """Nothing but Pillow's decoding and resizing on all cores."""
    width = int(side * WIDTH / HEIGHT)

    def work(part):
        for path in part:
            Image.open(path).resize((width, side), Image.Resampling.BICUBIC)

    n_cores = min(8, joblib.cpu_count())
    with ThreadPoolExecutor(n_cores) as pool:
        list(pool.map(work, [files[i::n_cores] for i in range(n_cores)]))


@pytest.mark.parametrize("side", [48, 224])
def test_256_jpegs_of_500x375(benchmark, files, side):
    exact, fast = PictureTransform((side, side)), PictureTransform((side, side), decode="fast")
    out, ways = np.empty((N, side, side, 3), np.uint8), {}
    readers = {
        "exact, one thread": PictureReader(exact, n_workers=1),
        "exact, threads": PictureReader(exact),
        "exact, processes": PictureReader(exact, workers="processes"),
        "fast, one thread": PictureReader(fast, n_workers=1),
        "fast, threads": PictureReader(fast),
        "fast, processes": PictureReader(fast, workers="processes"),
    }
    try:
        start = time.perf_counter()
        through(readers["exact, processes"], files[:16], out)
        start_up = time.perf_counter() - start
        for name, reader in readers.items():
            through(reader, files, out)
            ways[name] = lambda reader=reader: through(reader, files, out)
        ways["naive loop"] = lambda: naive(files, side)
        ways["ceiling"] = lambda: ceiling(files, side)
        times = {name: [] for name in ways}
        for _ in range(ROUNDS):
            for name, call in ways.items():
                start = time.perf_counter()
                call()
                times[name].append(time.perf_counter() - start)
        benchmark.pedantic(ways["exact, threads"], rounds=1)
        through(readers["exact, threads"], files, out)
        np.testing.assert_array_equal(out[7], exact(read_picture(files[7])))
    finally:
        for reader in readers.values():
            reader.close()

    alone = np.array(times["naive loop"])
    ratios = {name: float(np.median(alone / taken)) for name, taken in times.items()}
    benchmark.extra_info.update(ratios)
    print(f"\n{side} pixels, {joblib.cpu_count()} cores; processes started in {start_up:.1f} s")
    for name, ratio in ratios.items():
        print(f"  {name:18s} {N / np.median(times[name]):6.0f} pictures/s, {ratio:.2f} naive loops")
    serial = float(np.median(np.array(times["exact, one thread"]) / times["fast, one thread"]))
    print(f"  fast over exact, one thread each: {serial:.2f}")
    assert ratios["exact, one thread"] >= 0.8  # hashing included, the loop does not do it
    assert serial >= {48: 2.4, 224: 1.1}[side]


def resaved(files, factor):
    """The pictures in another size, as encoded JPEGs."""
    for path in files:
        buffer = io.BytesIO()
        image = Image.open(path)
        image.resize((round(image.width * factor), round(image.height * factor))).save(buffer, "JPEG", quality=90)
        yield buffer.getvalue()


@pytest.mark.parametrize("factor", [0.5, 0.78, 1.0, 1.55, 2.0])
def test_cosine_of_fast_features(files, factor):
    """48 pixels. What is decoded has 2 times the sides of the result, at 0.78 and 1.55 only 1.5 times."""
    data = list(resaved(files[:64], factor))
    rows = {}
    for decode in ("exact", "fast"):
        transform, out = PictureTransform((48, 48), decode=decode), np.empty((len(data), 48, 48, 3), np.uint8)
        with PictureReader(transform) as reader:
            reader.read([Wanted(load_item(one), content_key(one), ((i, 0),)) for i, one in enumerate(data)], out)
        rows[decode] = CLIPFeatures("skclip-tiny", store=None).fit_transform(out)
    cosine = (rows["exact"] * rows["fast"]).sum(axis=1)
    print(f"\n{factor} times 500x375 to 48 pixels: cosine {cosine.mean():.5f} on average, {cosine.min():.5f} at least")
    assert cosine.mean() >= 0.998
    assert cosine.min() >= 0.98
