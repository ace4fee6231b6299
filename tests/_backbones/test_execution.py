from __future__ import annotations

import threading

import numpy as np
import open_clip
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from torchvision.transforms import Compose, Normalize, ToTensor

from skclip._backbones import BackboneError, clear_backbones, load_backbone
from skclip._backbones import _execution as execution
from skclip._backbones._execution import run_batched


def pictures(n, size=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


@pytest.mark.parametrize("kind", ["vit", "quick", "resnet", "custom", "coca"])
def test_equals_open_clip(models, kind):
    backbone = load_backbone(models(kind), device="cpu")
    X = pictures(5, backbone.card.image_size[0])
    model, _, preprocess = open_clip.create_model_and_transforms(models(kind))
    with torch.no_grad():
        batch = torch.stack([preprocess(Image.fromarray(x)) for x in X])
        expected = model.eval().encode_image(batch, normalize=False).numpy()
    found = backbone.encode_images(X)
    assert found.dtype == np.float32
    assert found.flags.c_contiguous
    assert_allclose(found, expected, atol=1e-5 * np.abs(expected).max())


@pytest.fixture
def one_lane(monkeypatch):
    """Forward passes one after the other, whatever the number of cores."""
    monkeypatch.setattr(execution, "n_lanes", lambda: 1)


def test_pixels_are_those_of_totensor_and_normalize_bit_for_bit(models, monkeypatch, one_lane):
    backbone = load_backbone(models("vit"), device="cpu")
    every_value = np.arange(256, dtype=np.uint8).repeat(12).reshape(1, 32, 32, 3)
    seen = []
    monkeypatch.setattr(backbone, "module", _Spy(seen))
    backbone.encode_images(np.concatenate([every_value, pictures(3)]))
    steps = Compose([ToTensor(), Normalize(backbone.card.mean, backbone.card.std)])
    assert torch.equal(seen[0], torch.stack([steps(x) for x in (every_value[0], *pictures(3))]))
    own = image_transform_v2(PreprocessCfg(size=32), is_train=False)
    assert torch.equal(seen[0][0], own(Image.fromarray(every_value[0])))


class _Spy:
    def __init__(self, seen):
        self.seen = seen

    def encode_image(self, x, normalize):
        assert normalize is False
        self.seen.append(x.clone())
        return torch.zeros(len(x), 24)


def test_rows_do_not_depend_on_their_batch(models):
    backbone = load_backbone(models("vit"), device="cpu")
    X = pictures(7)
    whole = backbone.encode_images(X)
    for batch_size in (1, 3, 7, 100):
        assert_allclose(backbone.encode_images(X, batch_size=batch_size), whole, atol=1e-6)
    assert_allclose(backbone.encode_images(X[::-1])[::-1], whole, atol=1e-6)


def test_empty_and_read_only_input(models, tmp_path):
    backbone = load_backbone(models("vit"), device="cpu")
    assert backbone.encode_images(pictures(0)).shape == (0, 24)
    X = pictures(3)
    np.save(tmp_path / "x.npy", X)
    on_disk = np.load(tmp_path / "x.npy", mmap_mode="r")
    before = X.copy()
    assert_array_equal(backbone.encode_images(on_disk), backbone.encode_images(X))
    assert_array_equal(X, before)


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (np.zeros((2, 32, 32, 3)), "float64"),
        (np.zeros((32, 32, 3), np.uint8), r"uint8 \(32, 32, 3\)"),
        (np.zeros((2, 64, 32, 3), np.uint8), r"\(2, 64, 32, 3\)"),
        (np.zeros((2, 3, 32, 32), np.uint8), r"\(n, 32, 32, 3\)"),
        ([1, 2], "got list"),
    ],
)
def test_wrong_pictures(models, batch, message):
    with pytest.raises(ValueError, match=message):
        load_backbone(models("vit"), device="cpu").encode_images(batch)


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "all", None, True])
def test_wrong_batch_size(models, batch_size):
    backbone = load_backbone(models("vit"), device="cpu")
    with pytest.raises(ValueError, match="batch_size="):
        backbone.encode_images(pictures(1), batch_size=batch_size)
    with pytest.raises(ValueError, match="batch_size="):
        backbone.encode_texts(["a"], batch_size=batch_size)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
@pytest.mark.parametrize("kind", ["vit", "resnet", "custom"])
def test_half_precision_is_near(models, kind, precision):
    full = load_backbone(models(kind), device="cpu")
    half = load_backbone(models(kind), device="cpu", precision=precision)
    X = pictures(4, full.card.image_size[0])
    texts = ["a dog", "a photo of a cat on a mat"]
    tolerance = 0.05 if precision == "bf16" else 0.01
    for encode, data in (("encode_images", X), ("encode_texts", texts)):
        a, b = getattr(full, encode)(data), getattr(half, encode)(data)
        assert b.dtype == np.float32
        assert_allclose(b, a, atol=tolerance * np.abs(a).max())
    assert half.logit_scale == full.logit_scale


def test_overflow_is_reported_never_served(models):
    backbone = load_backbone(models("vit"), device="cpu", precision="fp16")
    with torch.no_grad():
        backbone.module.visual.ln_post.bias.fill_(1000)
        backbone.module.visual.proj.fill_(1000)
    with pytest.raises(BackboneError, match=r"NaN or infinity for 2 of 2 pictures.*use 'bf16' or 'float32'"):
        backbone.encode_images(pictures(2))


def test_damaged_weights_are_reported(models):
    backbone = load_backbone(models("vit"), device="cpu")
    with torch.no_grad():
        backbone.module.text_projection.fill_(float("nan"))
    with pytest.raises(BackboneError, match=r"3 of 3 texts \(first at position 0\): its weights are damaged"):
        backbone.encode_texts(["a", "b", "a"])


def test_two_threads_at_once(models):
    backbone = load_backbone(models("vit"), device="cpu")
    X, texts = pictures(20), [f"a photo of thing {i}" for i in range(20)]
    expected = backbone.encode_images(X), backbone.encode_texts(texts)
    found, threads_before = {}, torch.get_num_threads()

    def work(i):
        found[i] = backbone.encode_images(X), backbone.encode_texts(texts)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 4
    for images, words in found.values():
        assert_allclose(images, expected[0], atol=1e-6)
        assert_allclose(words, expected[1], atol=1e-6)
    assert torch.get_num_threads() == threads_before
    assert torch.is_grad_enabled()
    assert not torch.is_inference_mode_enabled()


class SmallDevice:
    """Rows out, but never more than `fits` of them."""

    def __init__(self, fits, error=None):
        self.fits, self.sizes = fits, []
        self.error = error or torch.OutOfMemoryError("CUDA out of memory")

    def __call__(self, lo, hi):
        self.sizes.append(hi - lo)
        if hi - lo > self.fits:
            raise self.error
        return torch.arange(lo, hi, dtype=torch.float16)[:, None]


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("x out of memory"), RuntimeError("MPS backend out of memory")]
)
def test_batches_halve_when_memory_runs_out(error):
    device, out = SmallDevice(3, error), np.full((21, 1), -1, np.float32)
    order = np.random.default_rng(0).permutation(21)
    shrink = run_batched(device, order, out, rows_at=lambda lo: 16)
    assert_array_equal(out[order, 0], np.arange(21))
    assert device.sizes == [16, 8, 4, *[2] * 10, 1]
    assert shrink == 8


def test_a_short_last_batch_halves_too():
    device, out = SmallDevice(2), np.empty((5, 1), np.float32)
    assert run_batched(device, np.arange(5), out, rows_at=lambda lo: 64) == 32
    assert device.sizes == [5, 4, 2, 2, 1]


def test_memory_for_not_even_one():
    with pytest.raises(BackboneError, match=r"batch_size=1 \(halved down from 256\): not one picture fits"):
        run_batched(SmallDevice(0), np.arange(9), np.empty((9, 1), np.float32), rows_at=lambda lo: 256)


def test_other_errors_pass():
    device = SmallDevice(0, RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run_batched(device, np.arange(9), np.empty((9, 1), np.float32), rows_at=lambda lo: 256)


@pytest.mark.parametrize("lanes", [1, 2, 3])
@pytest.mark.parametrize("n", [1, 2, 3, 5, 40])
def test_lanes_give_the_rows_in_order_and_the_same_bytes_each_time(models, monkeypatch, lanes, n):
    backbone = load_backbone(models("vit"), device="cpu")
    X = pictures(n)
    monkeypatch.setattr(execution, "n_lanes", lambda: 1)
    expected = backbone.encode_images(X, batch_size=1)
    monkeypatch.setattr(execution, "n_lanes", lambda: lanes)
    found = backbone.encode_images(X, batch_size=4)
    assert_allclose(found, expected, atol=1e-6)
    for _ in range(3):
        assert_array_equal(backbone.encode_images(X, batch_size=4), found)


@pytest.mark.parametrize(
    ("n", "size", "lanes", "parts"),
    [
        (0, 16, 2, []),
        (1, 16, 2, [1]),
        (10, 16, 2, [5, 5]),
        (40, 16, 2, [10] * 4),
        (256, 16, 2, [16] * 16),
        (256, 16, 12, [10, 11, 11] * 8),
        (7, 100, 1, [7]),
        (7, 3, 1, [2, 2, 3]),
    ],
)
def test_every_lane_has_as_much_to_do(n, size, lanes, parts):
    assert np.diff(execution._cut(n, size, lanes)).tolist() == parts


def test_lanes_do_not_split_what_is_too_little_for_all(models, monkeypatch):
    backbone = load_backbone(models("vit"), device="cpu")
    encode, seen = backbone.module.encode_image, []
    monkeypatch.setattr(
        backbone.module,
        "encode_image",
        lambda x, normalize: seen.append((len(x), threading.get_ident())) or encode(x, normalize=normalize),
    )
    monkeypatch.setattr(execution, "n_lanes", lambda: 4)
    backbone.encode_images(pictures(3))
    assert seen == [(3, threading.get_ident())]
    seen.clear()
    backbone.encode_images(pictures(4))
    assert [size for size, _ in seen] == [1] * 4
    assert threading.get_ident() not in {thread for _, thread in seen}


@pytest.mark.parametrize("lanes", [1, 2])
def test_damage_is_found_on_lanes_too(models, monkeypatch, lanes):
    backbone = load_backbone(models("vit"), device="cpu")
    encode = backbone.module.encode_image

    def spoil(x, normalize):
        rows = encode(x, normalize=normalize)
        rows[(x > 1.9).all(dim=(1, 2, 3))] = float("nan")  # white pictures
        return rows

    monkeypatch.setattr(backbone.module, "encode_image", spoil)
    monkeypatch.setattr(execution, "n_lanes", lambda: lanes)
    X = pictures(20)
    X[[11, 13]] = 255
    with pytest.raises(BackboneError, match=r"NaN or infinity for 2 of 20 pictures \(first at position 11\)"):
        backbone.encode_images(X, batch_size=3)


@pytest.mark.parametrize("lanes", [1, 2])
def test_memory_runs_out_on_lanes_too(models, monkeypatch, lanes):
    monkeypatch.setattr(execution, "n_lanes", lambda: lanes)
    backbone = load_backbone(models("vit"), device="cpu")
    X = pictures(40)
    expected = backbone.encode_images(X)
    clear_backbones()
    backbone = load_backbone(models("vit"), device="cpu")
    encode, sizes = backbone.module.encode_image, []

    def small(x, normalize):
        sizes.append(len(x))
        if len(x) > 5:
            raise torch.OutOfMemoryError("out of memory")
        return encode(x, normalize=normalize)

    monkeypatch.setattr(backbone.module, "encode_image", small)
    assert_allclose(backbone.encode_images(X), expected, atol=1e-6)
    assert 2 < backbone.picture_batch_size <= 5
    sizes.clear()
    backbone.encode_images(X)
    assert max(sizes) <= 5


def test_memory_for_not_even_one_on_lanes(models, monkeypatch):
    backbone = load_backbone(models("vit"), device="cpu")

    def never(x, normalize):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(backbone.module, "encode_image", never)
    monkeypatch.setattr(execution, "n_lanes", lambda: 2)
    with pytest.raises(BackboneError, match="not one picture fits"):
        backbone.encode_images(pictures(9))


class FakeTower:
    """A module whose pictures take `seconds[len(batch)]` each on a clock of its own; rows are means of pictures."""

    def __init__(self, seconds):
        self.seconds, self.now, self.sizes = seconds, 0.0, []

    def clock(self):
        return self.now

    def encode_image(self, x, normalize):
        self.sizes.append(len(x))
        self.now += len(x) * self.seconds[len(x)]
        return x.mean(dim=(1, 2, 3))[:, None].expand(-1, 24).contiguous()


@pytest.fixture
def timed(models, monkeypatch, one_lane):
    """``timed(seconds)``: a backbone with a `FakeTower`, and the tower."""

    def make(seconds):
        backbone = load_backbone(models("vit"), device="cpu")
        tower = FakeTower(seconds)
        monkeypatch.setattr(backbone, "module", tower)
        monkeypatch.setattr(execution, "perf_counter", tower.clock)
        return backbone, tower

    return make


def _means(backbone, X):
    mean, std = np.array(backbone.card.mean), np.array(backbone.card.std)
    return ((X / 255 - mean) / std).mean(axis=(1, 2, 3))


@pytest.mark.parametrize(
    ("seconds", "begin", "size"),
    [
        ({8: 2, 16: 2, 32: 2}, [16, 16, 32, 32, 8, 8], 16),
        ({16: 4, 32: 3, 64: 2}, [16, 16, 32, 32, 64, 64], 64),
        ({8: 1, 16: 2, 32: 3}, [16, 16, 32, 32, 8, 8], 8),
    ],
)
def test_auto_is_measured_on_the_first_pictures(timed, seconds, begin, size):
    backbone, tower = timed(seconds)
    X = pictures(256 + sum(begin))
    rows = backbone.encode_images(X)
    assert tower.sizes == [*begin, *[size] * (256 // size)]  # no picture twice
    assert_allclose(rows[:, 0], _means(backbone, X), atol=1e-5)
    assert backbone.picture_batch_size == size
    tower.seconds = {size: 1000}  # what comes later changes nothing
    tower.sizes.clear()
    backbone.encode_images(X[:256])
    assert tower.sizes == [size] * (256 // size)


def test_auto_goes_on_measuring_in_the_next_call(timed):
    backbone, tower = timed({10: 2, 16: 2, 4: 2, 32: 1, 64: 0.5})
    backbone.encode_images(pictures(10))  # too few for one batch
    backbone.encode_images(pictures(36))
    assert tower.sizes == [10, 16, 16, 4]
    assert backbone.picture_batch_size == 16
    for _ in range(2):
        backbone.encode_images(pictures(32))
    assert backbone.picture_batch_size == 32
    for _ in range(3):
        backbone.encode_images(pictures(64))
    assert tower.sizes[4:] == [32, 32, 64, 64, 64]
    assert backbone.picture_batch_size == 64


def test_auto_is_settled_on_blank_pictures(timed):
    backbone, tower = timed({1: 0.02, 16: 0.01, 32: 0.02, 8: 0.02})
    assert backbone.settle_batch_size() == 16
    assert tower.sizes == [1, 1, 16, 16, 32, 32, 8, 8]
    assert backbone.settle_batch_size() == 16
    assert len(tower.sizes) == 8


@pytest.mark.parametrize(
    ("seconds", "sizes", "size"),
    [
        ({1: 1}, [], 16),  # one picture a second: nothing is found out about larger batches in 10 s
        ({1: 0.3, 16: 0.1, 32: 0.05, 64: 0.04}, [16, 16, 32, 32], 32),
    ],
)
def test_settling_takes_seconds_whatever_the_model(timed, seconds, sizes, size):
    backbone, tower = timed(seconds)
    assert backbone.settle_batch_size() == size
    assert tower.sizes == [1, 1, *sizes]
    assert tower.now < 11


@pytest.mark.parametrize(("lanes", "tried"), [(8, {1, 16, 32}), (17, set())])
def test_settling_takes_no_more_memory_on_many_cores(models, monkeypatch, lanes, tried):
    backbone = load_backbone(models("vit"), device="cpu")
    sizes, slower = [], iter(range(1, 100))
    monkeypatch.setattr(execution, "n_lanes", lambda: lanes)
    monkeypatch.setattr(
        backbone, "_fill_on_cpu", lambda out, batch, project, size: out.fill(0) or sizes.append(size) or size
    )
    monkeypatch.setattr(execution, "perf_counter", lambda: 1e-6 * next(slower))
    backbone.settle_batch_size()
    assert {*sizes} == tried


def test_a_given_batch_size_is_not_measured(timed):
    backbone, tower = timed({4: 1})
    backbone.encode_images(pictures(100), batch_size=4)
    assert tower.sizes == [4] * 25
    assert backbone.picture_batch_size == execution._PICTURES["cpu"][0]


def test_one_thread_measures_at_a_time(timed):
    backbone, tower = timed({16: 2})
    with backbone._search.measuring:
        backbone.encode_images(pictures(64))
    assert tower.sizes == [16] * 4
    assert backbone._search.trial == 16


@pytest.mark.parametrize("gathered", [1, 5 * 24 * 4, 2**28])
@pytest.mark.parametrize("as_tensor", [False, True])
def test_the_way_of_accelerators_gives_the_same_rows(models, monkeypatch, gathered, as_tensor):
    """On the CPU, but gathered on the device and copied back together."""
    backbone = load_backbone(models("vit"), device="cpu")
    X = pictures(14)
    expected = backbone.encode_images(X)
    monkeypatch.setattr(backbone, "_fill_on_cpu", backbone._fill_from_device)
    monkeypatch.setattr(execution, "_GATHERED_BYTES", gathered)
    encode, sizes = backbone.module.encode_image, []

    def small(x, normalize):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return encode(x, normalize=normalize)

    monkeypatch.setattr(backbone.module, "encode_image", small)
    found = backbone.encode_images(torch.from_numpy(X) if as_tensor else X, batch_size=4)
    assert_allclose(found, expected, atol=1e-6)
    assert sizes[:3] == [4, 2, 2]
    assert 4 not in sizes[1:]
    assert backbone.encode_images(X[:0]).shape == (0, 24)


def test_tensors_are_pictures_too(models):
    backbone = load_backbone(models("vit"), device="cpu")
    X = pictures(5)
    assert_array_equal(backbone.encode_images(torch.from_numpy(X)), backbone.encode_images(X))
    strided = torch.from_numpy(X.transpose(0, 3, 1, 2).copy()).permute(0, 2, 3, 1)
    assert_array_equal(backbone.encode_images(strided), backbone.encode_images(X))
    with pytest.raises(ValueError, match=r"got torch.float32 \(5, 32, 32, 3\)"):
        backbone.encode_images(torch.from_numpy(X).float())


def test_memory_for_pictures(models, monkeypatch):
    backbone = load_backbone(models("vit"), device="cpu")
    made = backbone.empty_pictures(3)
    assert (made.shape, made.dtype, made.flags.c_contiguous) == ((3, 32, 32, 3), np.uint8, True)
    asked, empty = [], torch.empty

    def fake(*shape, pin_memory=False, **options):
        asked.append(pin_memory)
        return empty(*shape, **options)

    monkeypatch.setattr(torch, "empty", fake)
    monkeypatch.setattr(backbone, "device", torch.device("cuda"))
    made = backbone.empty_pictures(1000)
    assert asked == [True]
    made[:] = 7  # the memory lives as long as the array
    assert (made.shape, made.dtype, made.sum()) == ((1000, 32, 32, 3), np.uint8, 7 * made.size)


def test_towers_of_convolutions_alone_lie_channels_last(models, monkeypatch):
    assert not load_backbone(models("vit"), device="cpu")._channels_last()
    backbone = load_backbone(models("resnet"), device="cpu")
    kernel = next(p for p in backbone.module.visual.parameters() if p.ndim == 4 and p.shape[2] > 1)
    assert kernel.is_contiguous(memory_format=torch.channels_last)
    assert backbone._channels_last()
    monkeypatch.setattr(backbone, "device", torch.device("cuda"))
    assert not backbone._channels_last()  # float32
    monkeypatch.setattr(backbone, "precision", "fp16")
    assert backbone._channels_last()
    monkeypatch.setattr(backbone, "device", torch.device("mps"))
    assert not backbone._channels_last()


def test_auto_remembers_what_fits(models, monkeypatch, one_lane):
    monkeypatch.setitem(execution._PICTURES, "cpu", (8, 8, 8))
    backbone = load_backbone(models("vit"), device="cpu")
    encode, sizes = backbone.module.encode_image, []

    def small(x, normalize):
        sizes.append(len(x))
        if len(x) > 3:
            raise torch.OutOfMemoryError("out of memory")
        return encode(x, normalize=normalize)

    monkeypatch.setattr(backbone.module, "encode_image", small)
    X = pictures(6)
    first = backbone.encode_images(X)
    assert sizes == [6, 3, 3]
    assert backbone.picture_batch_size == 3
    sizes.clear()
    assert_array_equal(backbone.encode_images(X), first)
    assert sizes == [3, 3]
    sizes.clear()
    backbone.encode_images(X, batch_size=2)
    assert sizes == [2, 2, 2]
    assert backbone.picture_batch_size == 3
