"""What a training loop reads, epoch by epoch."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from PIL import Image

from skclip._backbones import PixelScale, load_backbone
from skclip._media import (
    Augmentation,
    PictureError,
    PictureReader,
    PictureTransform,
    augment,
    content_key,
    read_picture,
)
from skclip.tuning._batches import FeatureInputs, PictureInputs

CPU = torch.device("cpu")
TRANSFORM = PictureTransform((20, 24))
SCALE = PixelScale((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), CPU, torch.float32, False)
ROWS = [np.array([3, 0, 4]), np.array([1, 2]), np.array([4])]


def batches(inputs, epoch=0, rows=ROWS, seed=0):
    return list(inputs.batches(rows, epoch, torch.Generator().manual_seed(seed)))


# -- features


def test_one_view_is_the_feature_itself_and_draws_nothing():
    features = torch.randn(5, 1, 6)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    for rows, batch in zip(ROWS, FeatureInputs(features).batches(ROWS, 0, generator)):
        assert torch.equal(batch, features[rows, 0])
    assert torch.equal(generator.get_state(), before)


def test_an_epoch_shows_one_view_of_each_picture_and_others_in_time():
    views = torch.arange(5 * 3).reshape(5, 3, 1)
    inputs = FeatureInputs(views)
    generator = torch.Generator().manual_seed(0)
    seen = np.zeros((5, 3), dtype=int)
    for epoch in range(60):
        for rows, batch in zip(ROWS[:2], inputs.batches(ROWS[:2], epoch, generator)):
            assert (batch[:, 0] // 3 == torch.from_numpy(rows)).all()
            seen[rows, batch[:, 0].numpy() % 3] += 1
    assert (seen.sum(axis=1) == 60).all()
    assert seen.min() >= 8


def test_views_do_not_depend_on_how_pictures_are_batched():
    inputs = FeatureInputs(torch.randn(5, 4, 2, 3))
    whole = batches(inputs, rows=[np.arange(5)], seed=3)[0]
    parts = torch.cat(batches(inputs, rows=[np.array([0, 1]), np.array([2, 3, 4])], seed=3))
    assert torch.equal(whole, parts)
    assert not torch.equal(whole, batches(inputs, rows=[np.arange(5)], seed=4)[0])


# -- pictures


def drawn(i=0, mode="RGB"):
    coarse = np.random.default_rng(i).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((40 + i, 30), Image.Resampling.BICUBIC).convert(mode)


@pytest.fixture
def pictures(tmp_path):
    """A file, encoded bytes, an image and arrays."""
    drawn(0).save(tmp_path / "0.png")
    drawn(1).save(tmp_path / "1.jpg")
    return [tmp_path / "0.png", (tmp_path / "1.jpg").read_bytes(), drawn(2), np.asarray(drawn(3)), drawn(4, "L")]


def inputs_of(pictures, augmentation=None, **options):
    return PictureInputs(
        pictures, TRANSFORM, SCALE, **{"augmentation": augmentation, "seed": 0, "device": CPU, "n_workers": 2} | options
    )


def expected(picture, view=0, augmentation=None, seed=0):
    image = read_picture(picture)
    if view:
        options = {"cut": augment, "seed": seed, "key": content_key(picture), "size": TRANSFORM.size}
        pixels = augmentation(image, view=view, **options)
    else:
        pixels = TRANSFORM(image)
    return SCALE(torch.from_numpy(pixels.copy())[None])[0]


def test_without_augmentation_every_epoch_shows_the_plain_pictures(pictures):
    inputs = inputs_of(pictures)
    assert len(inputs) == 5
    for epoch in (0, 7):
        for rows, batch in zip(ROWS, batches(inputs, epoch), strict=True):
            assert batch.shape == (len(rows), 3, 20, 24)
            assert batch.dtype == torch.float32
            for i, row in zip(rows, batch):
                assert torch.equal(row, expected(pictures[i]))


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation("strong", (0.3, 1.0)), Augmentation("augmix")])
@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_each_epoch_shows_a_view_of_its_own(pictures, augmentation, workers):
    inputs = inputs_of(pictures, augmentation, seed=5, workers=workers)
    for epoch in (0, 1, 6):
        for rows, batch in zip(ROWS, batches(inputs, epoch), strict=True):
            for i, row in zip(rows, batch):
                assert torch.equal(row, expected(pictures[i], epoch + 1, augmentation, seed=5))


def test_a_later_run_sees_what_this_one_sees(pictures):
    """Neither batches nor the generator nor the place among the pictures count."""
    first = torch.cat(batches(inputs_of(pictures, Augmentation()), 3, [np.arange(5)]))
    again = torch.cat(
        batches(inputs_of(pictures[::-1], Augmentation()), 3, [np.array([4]), np.array([3, 2, 1, 0])], seed=9)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, torch.cat(batches(inputs_of(pictures, Augmentation(), seed=1), 3, [np.arange(5)])))


def test_pixels_are_those_of_the_backbone(pictures):
    backbone = load_backbone("skclip-tiny", device="cpu")
    card = backbone.card
    transform = PictureTransform(card.image_size, card.interpolation, card.resize_mode, card.fill_color)
    scale = PixelScale(card.mean, card.std, CPU, torch.float32, False)
    inputs = PictureInputs(pictures, transform, scale, augmentation=None, seed=0, device=CPU)
    (batch,) = batches(inputs, rows=[np.arange(5)])
    with torch.no_grad():
        features = backbone.module.encode_image(batch).numpy()
    stored = backbone.encode_images(np.stack([transform(read_picture(picture)) for picture in pictures]))
    np.testing.assert_allclose(features, stored, atol=2e-6)


def counting(monkeypatch):
    """How often `read` is asked for pictures, and for how many."""
    calls = []
    read = PictureReader.read

    def counted(self, wanted, out):
        calls.append(len(wanted))
        return read(self, wanted, out)

    monkeypatch.setattr(PictureReader, "read", counted)
    return calls


def test_plain_pictures_are_decoded_once(pictures, monkeypatch):
    calls = counting(monkeypatch)
    inputs = inputs_of(pictures)
    first = batches(inputs, 0)
    assert sum(calls) == 5
    assert all(map(torch.equal, first, batches(inputs, 1)))
    assert sum(calls) == 5


def test_plain_pictures_beyond_the_memory_for_them_are_read_again(pictures, monkeypatch):
    monkeypatch.setattr("skclip.tuning._batches._KEPT_BYTES", 5 * 20 * 24 * 3 - 1)
    calls = counting(monkeypatch)
    inputs = inputs_of(pictures)
    assert all(map(torch.equal, batches(inputs, 0), batches(inputs, 1)))
    assert sum(calls) == 12


def test_the_next_batch_is_read_while_one_is_trained_on(pictures, monkeypatch):
    is_read = threading.Semaphore(0)
    read = PictureReader.read

    def told(self, wanted, out):
        answer = read(self, wanted, out)
        is_read.release()
        return answer

    monkeypatch.setattr(PictureReader, "read", told)
    coming = inputs_of(pictures, Augmentation()).batches(ROWS, 0)
    next(coming)
    for _ in ROWS:  # all three, although one was asked for
        assert is_read.acquire(timeout=10)
    coming.close()


def test_whoever_stops_early_leaves_no_thread(pictures):
    before = set(threading.enumerate())
    coming = inputs_of(pictures * 20, Augmentation()).batches([np.arange(50)] * 20, 0)
    next(coming)
    coming.close()
    assert set(threading.enumerate()) <= before


def test_a_picture_that_is_not_there_is_named_before_anything_is_trained(pictures, tmp_path):
    with pytest.raises(PictureError, match=r"X\[5\], .*gone.png.*: no such file"):
        inputs_of([*pictures, tmp_path / "gone.png"])


@pytest.mark.parametrize("augmentation", [None, Augmentation("strong")])
def test_a_damaged_picture_is_named_when_it_is_decoded(pictures, tmp_path, augmentation):
    (tmp_path / "cut.jpg").write_bytes(pictures[1][:300])
    inputs = inputs_of([*pictures, tmp_path / "cut.jpg"], augmentation)
    coming = inputs.batches([np.array([0, 2]), np.array([1, 5])], 0)
    next(coming)
    with pytest.raises(PictureError, match=r"X\[5\], .*cut.jpg"):
        next(coming)
