"""Changes of colour and shape against the laws that are published for them."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from skclip._media import _colour as colour


def picture(width=23, height=17):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(image):
    return np.asarray(image, dtype=float)


class Draws:
    """Numbers from a list, and then from a generator; it counts them."""

    def __init__(self, *first, seed=0):
        rng = np.random.default_rng(seed)
        self.n = 0
        self._numbers = itertools.chain(first, iter(rng.random, None))

    def __iter__(self):
        return self

    def __next__(self):
        self.n += 1
        return next(self._numbers)


def jittered(image, **amounts):
    """One of the four changes alone, by a part of the strength between -1 and 1."""
    names = ("brightness", "contrast", "saturation", "hue")
    strengths = [amounts.get(name, (0.0, 0.0))[0] for name in names]
    parts = [(amounts.get(name, (0.0, 0.0))[1] + 1) / 2 for name in names]
    return pixels(colour.jitter(image, Draws(0.1, 0.2, 0.3, 0.4, *parts), strengths))


@pytest.mark.parametrize("part", [-1.0, -0.5, 0.0, 0.5, 1.0])
def test_brightness_contrast_and_saturation_blend_with_black_the_mean_and_grey(part):
    image = picture()
    x, factor = pixels(image), 1 + 0.4 * part
    grey = np.floor(x @ [0.299, 0.587, 0.114] + 0.5)
    np.testing.assert_allclose(jittered(image, brightness=(0.4, part)), (factor * x).clip(0, 255), atol=1.01)
    mean = round(grey.mean())
    np.testing.assert_allclose(
        jittered(image, contrast=(0.4, part)), (mean + factor * (x - mean)).clip(0, 255), atol=2.01
    )
    expected = (grey[..., None] + factor * (x - grey[..., None])).clip(0, 255)
    np.testing.assert_allclose(jittered(image, saturation=(0.4, part)), expected, atol=2.01)


def test_a_third_of_the_circle_turns_red_to_green_to_blue():
    red, green, blue = (Image.new("RGB", (2, 2), colour_name) for colour_name in ("red", "lime", "blue"))
    np.testing.assert_allclose(pixels(colour.turn_hue(red, 1 / 3)), pixels(green), atol=7)
    np.testing.assert_allclose(pixels(colour.turn_hue(green, 1 / 3)), pixels(blue), atol=7)
    np.testing.assert_allclose(pixels(colour.turn_hue(red, -1 / 3)), pixels(blue), atol=7)
    grey = Image.new("RGB", (2, 2), (90, 90, 90))
    np.testing.assert_array_equal(pixels(colour.turn_hue(grey, 0.3)), pixels(grey))


def test_jitter_follows_the_order_that_was_drawn():
    image, strengths = picture(), (0.4, 0.4, 0.4, 0.0)
    amounts = (1.0, 0.0, 0.9, 0.5)
    one, other = (
        pixels(colour.jitter(image, Draws(*order, *amounts), strengths))
        for order in [(0.1, 0.2, 0.3, 0.4), (0.3, 0.2, 0.1, 0.4)]
    )
    step = pixels(
        colour.jitter(
            Image.fromarray(jittered(image, brightness=(0.4, 1.0)).astype(np.uint8)),
            Draws(0.1, 0.2, 0.3, 0.4, 0.5, 0.0, 0.9, 0.5),
            strengths,
        )
    )
    np.testing.assert_array_equal(one, step)
    assert (one != other).any()


def test_strong_views_are_jittered_greyed_and_blurred_as_often_as_published():
    flat = Image.new("RGB", (4, 4), (200, 120, 40))  # a blur leaves it
    seen = [pixels(colour.strong(flat, Draws(seed=i)))[0, 0] for i in range(2000)]
    is_grey = [len(set(value)) == 1 for value in seen]
    is_old = [(value == (200, 120, 40)).all() for value in seen]
    assert abs(np.mean(is_grey) - 0.2) < 0.03
    assert abs(np.mean(is_old) - 0.16) < 0.03  # neither jittered nor grey


def test_blur_is_pillows_gaussian_of_the_drawn_width():
    image = picture()
    for share in (0.0, 0.5, 0.999):
        expected = image.filter(ImageFilter.GaussianBlur(0.1 + 1.9 * share))
        np.testing.assert_array_equal(pixels(colour.blur(image, Draws(share))), pixels(expected))


def test_coefficients_take_the_corners_to_the_corners():
    start, end = [(3, 1), (20, 2), (21, 15), (0, 16)], [(0, 0), (22, 0), (22, 16), (0, 16)]
    a, b, c, d, e, f, g, h = colour.perspective(start, end)
    for (x, y), goal in zip(start, end):
        below = g * x + h * y + 1
        np.testing.assert_allclose([(a * x + b * y + c) / below, (d * x + e * y + f) / below], goal, atol=1e-9)


def test_a_tilt_without_strength_changes_nothing_and_one_with_it_moves_corners_inwards():
    image = picture(40, 40)
    np.testing.assert_array_equal(pixels(colour.tilt(image, Draws(), 0.0)), pixels(image))
    white = Image.new("RGB", (40, 40), "white")
    tilted = pixels(colour.tilt(white, Draws(*[0.999] * 8), 0.2))
    assert (tilted[10:30, 10:30] == 255).all()
    assert (tilted[0] == 0).all()
    assert (tilted[:, 0] == 0).all()
    assert (pixels(colour.tilt(white, Draws(*[0.0] * 8), 0.2)) == 255).all()


def test_augmix_is_the_published_mixture():
    image = picture()
    weights = -np.log1p(-np.array([0.2, 0.5, 0.7]))
    weights /= weights.sum()
    # chains: equalize; autocontrast, then posterize; solarize
    draws = Draws(0.2, 0.5, 0.7, 0.6, 0.0, 1.5 / 9, 0.4, 0.5 / 9, 2.5 / 9, 0.3, 0.0, 4.5 / 9, 0.999)
    chains = [
        ImageOps.equalize(image),
        ImageOps.posterize(ImageOps.autocontrast(image), 4),
        ImageOps.solarize(image, 256 - 25),
    ]
    expected = 0.4 * pixels(image) + 0.6 * sum(w * pixels(chain) for w, chain in zip(weights, chains))
    np.testing.assert_array_equal(pixels(colour.augmix(image, draws)), np.rint(expected))
    assert draws.n == 13


def test_augmix_of_chains_that_change_nothing_is_the_picture():
    image = picture()
    # rotation by int(30 * 0.01) degrees
    draws = Draws(0.3, 0.4, 0.5, 0.9, *[0.0, 3.5 / 9, 0.0, 0.9] * 3)
    np.testing.assert_array_equal(pixels(colour.augmix(image, draws)), pixels(image))


@pytest.mark.parametrize("operation", colour._OPERATIONS, ids=lambda f: f.__name__.strip("_"))
def test_operations_of_augmix_are_mild_and_keep_the_size(operation):
    ramp = np.linspace(0, 255, 60)[None, :, None] * np.ones((50, 1, 3))
    image = Image.fromarray(ramp.astype(np.uint8))
    for seed in range(5):
        changed = operation(image, Draws(seed=seed))
        assert changed.size == image.size
        assert changed.mode == "RGB"
        assert np.abs(pixels(changed) - pixels(image))[5:-5, 5:-5].mean() < 20


@pytest.mark.parametrize("change", [colour.strong, colour.augmix, colour.strong_and_tilted])
def test_pictures_of_one_pixel_are_changed_too(change):
    for seed in range(20):
        assert change(Image.new("RGB", (1, 1), "red"), Draws(seed=seed)).size == (1, 1)
