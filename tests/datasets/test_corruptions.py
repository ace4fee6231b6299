"""Corrupted pictures: exact functions of picture, severity and seed."""

from __future__ import annotations

import io
import itertools

import numpy as np
import pytest
from PIL import Image

from skclip.datasets import corrupt_images, make_picture_world

KINDS = ["gaussian_noise", "blur", "brightness", "contrast", "pixelate", "jpeg", "occlusion", "rotation"]
RANDOM = ["gaussian_noise", "occlusion", "rotation"]


@pytest.fixture(scope="module")
def pictures():
    return make_picture_world(12, random_state=5).images


def distance(pictures, kind, severity, **options):
    return np.abs(corrupt_images(pictures, kind, severity=severity, **options).astype(float) - pictures).mean()


@pytest.mark.parametrize("kind", KINDS)
def test_worse_with_severity(pictures, kind):
    before = pictures.copy()
    distances = [distance(pictures, kind, severity) for severity in range(1, 6)]
    assert distances[0] > 0
    assert (np.diff(distances) > 0).all()
    np.testing.assert_array_equal(pictures, before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_function_of_the_picture_alone(pictures, kind):
    whole = corrupt_images(pictures, kind, severity=3)
    assert whole.dtype == np.uint8
    assert whole.shape == pictures.shape
    order = np.random.default_rng(0).permutation(12)
    np.testing.assert_array_equal(corrupt_images(pictures[order], kind, severity=3), whole[order])
    np.testing.assert_array_equal(corrupt_images(pictures[4:5], kind, severity=3), whole[4:5])
    np.testing.assert_array_equal(corrupt_images(np.asfortranarray(pictures), kind, severity=3), whole)
    read_only = pictures.copy()
    read_only.flags.writeable = False
    np.testing.assert_array_equal(corrupt_images(read_only, kind, severity=3), whole)


@pytest.mark.parametrize("kind", KINDS)
def test_the_seed_matters_where_there_is_chance(pictures, kind):
    first = corrupt_images(pictures, kind, severity=2, random_state=0)
    second = corrupt_images(pictures, kind, severity=2, random_state=1)
    assert np.array_equal(first, second) == (kind not in RANDOM)
    state = np.random.RandomState(3)
    seed = np.random.RandomState(3).randint(2**31)
    np.testing.assert_array_equal(
        corrupt_images(pictures, kind, random_state=state), corrupt_images(pictures, kind, random_state=seed)
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(17, 30), (8, 8), (1, 1), (64, 48)])
def test_any_size(kind, size):
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (3, *size, 3), dtype=np.uint8)
    for severity in (1, 5):
        assert corrupt_images(pictures, kind, severity=severity).shape == pictures.shape
    assert corrupt_images(pictures[:0], kind).shape == (0, *size, 3)


@pytest.mark.parametrize("kind", ["blur", "contrast", "pixelate", "rotation"])
def test_a_plain_picture_stays(kind):
    plain = np.full((2, 20, 20, 3), (10, 120, 250), dtype=np.uint8)
    for severity in range(1, 6):
        np.testing.assert_array_equal(corrupt_images(plain, kind, severity=severity), plain)


def test_brightness_and_contrast_by_hand(pictures):
    brighter = np.clip(np.round(pictures + 255 * 0.32), 0, 255)
    np.testing.assert_array_equal(corrupt_images(pictures, "brightness", severity=3), brighter)
    for picture, flat in zip(pictures, corrupt_images(pictures, "contrast", severity=3)):
        mean = picture.mean(axis=(0, 1))
        np.testing.assert_allclose(flat, mean + 0.25 * (picture - mean), atol=0.5 + 1e-9)


def test_noise_has_its_deviation_and_one_pattern():
    gray = np.full((1, 100, 100, 3), 128, dtype=np.uint8)
    one = corrupt_images(gray, "gaussian_noise", severity=1).astype(float) - 128
    two = corrupt_images(gray, "gaussian_noise", severity=2).astype(float) - 128
    assert one.std() == pytest.approx(255 * 0.06, rel=0.02)
    assert one.mean() == pytest.approx(0.0, abs=0.5)
    # twice the deviation, the same pattern
    assert np.abs(two - 2 * one)[np.abs(two) < 100].max() <= 1.5


def test_pixelate_is_the_mean_of_cells():
    rng = np.random.default_rng(0)
    picture = rng.integers(0, 256, (1, 20, 20, 3), dtype=np.uint8)
    coarse = corrupt_images(picture, "pixelate", severity=2)[0]
    n_cells = 8  # 0.4 of the side
    cells = [i * n_cells // 20 for i in range(20)]
    for i in range(20):
        for j in range(20):
            own = [
                picture[0, a, b] for a in range(20) for b in range(20) if cells[a] == cells[i] and cells[b] == cells[j]
            ]
            np.testing.assert_allclose(coarse[i, j], np.mean(own, axis=0), atol=0.5 + 1e-9)


def test_jpeg_is_that_of_an_encoder(pictures):
    ours = corrupt_images(pictures, "jpeg", severity=1).astype(float)
    encoded = []
    for picture in pictures:
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "JPEG", quality=25, subsampling=0)
        encoded.append(np.asarray(Image.open(buffer)))
    assert np.abs(ours - np.stack(encoded)).mean() < 1.0
    assert np.abs(pictures.astype(float) - np.stack(encoded)).mean() > 2.0


def test_bars_grow_in_place(pictures):
    covered = [(corrupt_images(pictures, "occlusion", severity=s) == 128).all(axis=-1) for s in range(1, 6)]
    for narrow, wide in itertools.pairwise(covered):
        assert (narrow <= wide).all()
    assert 0.03 < covered[0].mean() < covered[4].mean() < 0.6
    # no two pictures have the same bar
    assert len({bar.tobytes() for bar in covered[2]}) == 12


def test_rotation_turns_about_the_centre():
    picture = np.zeros((1, 41, 41, 3), dtype=np.uint8)
    picture[0, 19:22, 27:30] = 255  # right of the centre by 8
    turned = corrupt_images(picture, "rotation", severity=5)[0, :, :, 0].astype(float)
    y, x = (np.indices(turned.shape) - 20) * turned / turned.sum()
    assert np.hypot(y.sum(), x.sum()) == pytest.approx(8, abs=0.5)
    assert abs(np.degrees(np.arctan2(y.sum(), x.sum()))) == pytest.approx(45, abs=2)


def test_bad_input(pictures):
    with pytest.raises(ValueError, match=r"kind must be one of 'gaussian_noise'.*got 'fog'"):
        corrupt_images(pictures, "fog")
    for severity in (0, 6, 2.5, True, "3"):
        with pytest.raises(ValueError, match="severity must be a whole number from 1 to 5"):
            corrupt_images(pictures, "blur", severity=severity)
    for bad in (pictures / 255.0, pictures[0], pictures[..., :1], pictures.astype(int)):
        with pytest.raises(ValueError, match="images must be a uint8 array of shape"):
            corrupt_images(bad, "blur")
