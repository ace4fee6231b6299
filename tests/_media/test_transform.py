"""Resizing and cropping: open_clip's own pixels."""

from __future__ import annotations

import dataclasses
import io
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skclip._backbones._open_clip import import_open_clip
from skclip._media import PictureTransform, augment, read_picture
from skclip._media._augment import _crop_box, _draws, augment_reduced
from skclip._media._reading import SizedPicture


@pytest.fixture(scope="module")
def open_clip_pixels():
    """open_clip's transform without its last two steps (tensor, normalisation), as an array."""
    image_transform = import_open_clip().transform.image_transform

    def pixels(picture, transform):
        height, width = transform.size
        steps = image_transform(
            height if height == width else (height, width),
            is_train=False,
            interpolation=transform.interpolation,
            resize_mode=transform.resize_mode,
            fill_color=transform.fill_color,
        ).transforms[:-2]
        for step in steps:
            picture = step(picture)
        return np.asarray(picture)

    return pixels


def picture(width, height, mode="RGB"):
    rng = np.random.default_rng(width * 10_007 + height)
    shape = (height, width) if mode == "L" else (height, width, 3)
    return Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8))


SOURCES = [
    (1, 1),
    (1, 2),
    (2, 1),
    (3, 5),
    (31, 32),
    (32, 32),
    (33, 32),
    (64, 48),
    (101, 37),
    (37, 101),
    (223, 225),
    (640, 427),
    (427, 640),
    (1000, 3),
    (3, 1000),
    (2000, 61),
]


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(32, 32), (35, 35), (224, 224), (24, 40), (41, 24)])
def test_equals_open_clip_bit_for_bit(open_clip_pixels, size, interpolation, resize_mode, mode):
    transform = PictureTransform(size, interpolation, resize_mode, fill_color=9)
    for width, height in SOURCES:
        if resize_mode == "longest" and round(max(size) * min(width, height) / max(width, height)) == 0:
            continue  # open_clip fails here, see below
        image = picture(width, height, mode)
        pixels = transform(image)
        assert pixels.shape == (*size, 3)
        assert pixels.dtype == np.uint8
        np.testing.assert_array_equal(pixels, open_clip_pixels(image, transform), err_msg=f"{width}x{height}")


def test_defaults_are_open_clips(open_clip_pixels):
    image = picture(97, 55)
    np.testing.assert_array_equal(
        PictureTransform((32, 32))(image),
        open_clip_pixels(image, PictureTransform((32, 32), "bicubic", "shortest", 0)),
    )


def test_a_strip_too_thin_for_open_clip_keeps_one_row():
    pixels = PictureTransform((32, 32), resize_mode="longest", fill_color=7)(picture(1000, 3))
    rows = (pixels != 7).any(axis=(1, 2))
    assert rows.sum() == 1


@pytest.mark.parametrize(("width", "height"), [(40_001, 2), (2, 40_001)])
def test_an_extreme_strip_equals_open_clip_up_to_rounding_without_its_memory(
    open_clip_pixels, monkeypatch, width, height
):
    image, transform = picture(width, height), PictureTransform((32, 32))
    exact = open_clip_pixels(image, transform)
    np.testing.assert_array_equal(transform(image), exact)
    monkeypatch.setattr("skclip._media._transform._MAX_RESIZED_PIXELS", 1000)
    assert np.abs(transform(image).astype(int) - exact).max() <= 1


def test_the_picture_is_not_modified():
    image = picture(50, 40)
    before = image.tobytes()
    for resize_mode in ("shortest", "longest", "squash"):
        PictureTransform((40, 40), resize_mode=resize_mode)(image)
    assert image.tobytes() == before


def test_the_key_tells_transforms_apart():
    base = PictureTransform((32, 48))
    others = [
        dataclasses.replace(base, size=(48, 32)),
        dataclasses.replace(base, interpolation="bilinear"),
        dataclasses.replace(base, resize_mode="squash"),
        dataclasses.replace(base, fill_color=1),
        dataclasses.replace(base, decode="fast"),
    ]
    assert len({transform.key() for transform in [base, *others]}) == 6
    assert base.key() == PictureTransform((32, 48)).key()


def test_the_key_of_exact_pixels_stays_what_stores_know():
    assert PictureTransform((32, 48)).key() == "rules=1 size=32x48 bicubic shortest fill=0"


# decode="fast"


def photograph(width, height, mode="RGB"):
    """Smooth, and sharp enough for a crop in the wrong place to show."""
    rng = np.random.default_rng(width + height)
    coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC).convert(mode)


def jpeg(image, **options):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=95, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (41, 24)])
@pytest.mark.parametrize("source", [(20, 15), (64, 48), (131, 97), (397, 500), (641, 427), (100, 900)])
def test_fast_shows_what_exact_shows(size, resize_mode, source):
    exact = PictureTransform(size, resize_mode=resize_mode, fill_color=9)
    fast = dataclasses.replace(exact, decode="fast")
    for orientation in (1, 3, 6):
        exif = Image.Exif()
        exif[0x0112] = orientation
        for mode in ("RGB", "L", "CMYK"):
            data = jpeg(photograph(*source, mode), exif=exif)
            expected = exact(read_picture(data)).astype(int)
            for pixels in (fast.reduced(SizedPicture(data)), fast(read_picture(data))):
                assert pixels.shape == (*size, 3)
                assert pixels.dtype == np.uint8
                assert np.abs(pixels - expected).mean() < 4, (orientation, mode)


def test_fast_without_reduction_differs_by_rounding_alone():
    for source in [(101, 37), (223, 225), (224, 224), (640, 427), (427, 640), (880, 895)]:
        image, exact = photograph(*source), PictureTransform((224, 224))
        difference = dataclasses.replace(exact, decode="fast")(image) - exact(image).astype(int)
        assert np.abs(difference).max() <= 2, source


def test_a_jpeg_is_decoded_in_the_smallest_size_that_suffices(monkeypatch):
    asked = []
    original = SizedPicture.at
    monkeypatch.setattr(SizedPicture, "at", lambda self, k: asked.append(k) or original(self, k))
    transform = PictureTransform((50, 50), decode="fast")
    for side in (50, 149, 150, 299, 300, 599, 600, 5000):
        transform.reduced(SizedPicture(jpeg(Image.new("RGB", (side, side + 20)))))
    assert asked == [1, 1, 2, 2, 4, 4, 8, 8]
    small, frame = SizedPicture(jpeg(Image.new("L", (333, 201)))).at(4)
    assert (small.size, small.mode, frame) == ((84, 51), "L", (0, 0, 83.25, 50.25))
    assert SizedPicture(Image.new("L", (333, 201))).at(4)[0].size == (333, 201)


def test_fast_views_show_what_exact_views_show():
    image = photograph(640, 500)
    for data in (jpeg(image), image):
        for view in range(1, 7):
            options = {"seed": 3, "key": b"k", "view": view, "size": (40, 32)}
            exact, fast = augment(image, **options), augment_reduced(SizedPicture(data), **options)
            assert np.abs(fast - exact.astype(int)).mean() < 4


@pytest.mark.parametrize("wrong", [{"interpolation": "nearest"}, {"resize_mode": "crop"}, {"decode": "draft"}])
def test_unknown_options(wrong):
    name = next(iter(wrong))
    with pytest.raises(ValueError, match=f"{name}='{wrong[name]}' must be one of"):
        PictureTransform((32, 32), **wrong)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_a_random_crop_equals_torchvisions(open_clip_pixels, interpolation):
    from torchvision.transforms import InterpolationMode, functional

    key, image = b"0123456789abcdef", picture(61, 43)
    for view in range(1, 9):
        draws = _draws(0, key, view)
        mirrored = next(draws) < 0.5
        left, top, right, bottom = _crop_box(61, 43, draws, (0.2, 1.0))
        mode = InterpolationMode(interpolation)
        expected = functional.resized_crop(image, top, left, bottom - top, right - left, [32, 24], mode)
        expected = functional.hflip(expected) if mirrored else expected
        pixels = augment(
            image, seed=0, key=key, view=view, size=(32, 24), interpolation=interpolation, scale=(0.2, 1.0)
        )
        np.testing.assert_array_equal(pixels, np.asarray(expected))


@pytest.mark.realdata
def test_web_photographs(open_clip_pixels):
    default = Path(__file__).parents[3] / "shared" / "data"
    folder = Path(os.environ.get("SKCLIP_REALDATA", default)) / "photos"
    if not folder.is_dir():
        pytest.skip(f"no real pictures at {folder}; set SKCLIP_REALDATA")
    transform, kinds = PictureTransform((224, 224)), Counter()
    for path in sorted(folder.iterdir()):
        image = Image.open(path)
        orientation = image.getexif().get(0x0112, 1)
        upright = orientation not in range(2, 9) and image.mode in ("RGB", "L")
        kinds[image.format, image.mode, orientation] += 1
        pixels = transform(read_picture(path))
        reference = image if upright else read_picture(path)
        np.testing.assert_array_equal(pixels, open_clip_pixels(reference, transform), err_msg=path.name)
    # All of these are plain JPEG: 199 upright (one with an orientation of 0), of them 7 grey; one turned.
    assert kinds == {
        ("JPEG", "RGB", 1): 191,
        ("JPEG", "RGB", 0): 1,
        ("JPEG", "L", 1): 7,
        ("JPEG", "RGB", 6): 1,
    }
