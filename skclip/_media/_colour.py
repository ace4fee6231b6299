"""Changes of colour, sharpness and perspective, each drawn from a stream of uniform numbers.

Published with 224 pixels in mind; strengths count pixels of the result where they count pixels at all.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

# From a picture of mode "RGB" and numbers in [0, 1) to a picture of the same size.
Change = Callable[[Image.Image, Iterator[float]], Image.Image]

_CHAINS, _MOST_STEPS = 3, 3
_SEVERITY = 1.0
_BLUR = (0.1, 2.0)


def strong(picture: Image.Image, draws: Iterator[float]) -> Image.Image:
    """MoCo v3: jitter of 0.4, 0.4, 0.2 and 0.1 with p = 0.8, grey with p = 0.2, a blur of 0.1 to 2 pixels."""
    if next(draws) < 0.8:
        picture = jitter(picture, draws, (0.4, 0.4, 0.2, 0.1))
    if next(draws) < 0.2:
        picture = picture.convert("L").convert("RGB")
    return blur(picture, draws)


def strong_and_tilted(picture: Image.Image, draws: Iterator[float]) -> Image.Image:
    """NoLA: jitter of 0.4, 0.4, 0.4 and 0.1 with p = 0.8 before and after a perspective of 0.2 with p = 0.5, a blur."""
    strengths = (0.4, 0.4, 0.4, 0.1)
    if next(draws) < 0.8:
        picture = jitter(picture, draws, strengths)
    if next(draws) < 0.5:
        picture = tilt(picture, draws, 0.2)
    if next(draws) < 0.8:
        picture = jitter(picture, draws, strengths)
    return blur(picture, draws)


def augmix(picture: Image.Image, draws: Iterator[float]) -> Image.Image:
    """AugMix: ``(1 - m) x + m sum_i w_i chain_i(x)``, m from Beta(1, 1), w from Dirichlet(1, 1, 1).

    A chain is one to three operations of severity 1, each drawn from nine with replacement.
    """
    weights = np.array([-math.log1p(-next(draws)) for _ in range(_CHAINS)])
    weights /= weights.sum() or 1.0
    share = next(draws)
    mixed = (1.0 - share) * np.asarray(picture, dtype=np.float64)
    for weight in weights:
        chained = picture
        for _ in range(1 + int(_MOST_STEPS * next(draws))):
            operation = _OPERATIONS[int(len(_OPERATIONS) * next(draws))]
            chained = operation(chained, draws)
        mixed += share * weight * np.asarray(chained, dtype=np.float64)
    return Image.fromarray(np.rint(mixed).clip(0, 255).astype(np.uint8))


def jitter(picture: Image.Image, draws: Iterator[float], strengths: tuple[float, float, float, float]) -> Image.Image:
    """Brightness, contrast, saturation and hue by random amounts, one after another in random order.

    The laws are those of torchvision's ``ColorJitter``: factors between 1 - s and 1 + s, a turn of the hue of at most
    s of the circle.
    """
    order = np.argsort([next(draws) for _ in strengths], kind="stable")
    amounts = [strength * (2.0 * next(draws) - 1.0) for strength in strengths]
    for which in order.tolist():
        if which == 3:
            picture = turn_hue(picture, amounts[3])
        else:
            enhance = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)[which]
            picture = enhance(picture).enhance(1.0 + amounts[which])
    return picture


def turn_hue(picture: Image.Image, amount: float) -> Image.Image:
    """Turn the hue by a part of the circle, -0.5 to 0.5."""
    shift = int(amount * 255)
    if shift == 0:  # the way to hues and back would round
        return picture
    hue, saturation, value = picture.convert("HSV").split()
    return Image.merge("HSV", (hue.point([(i + shift) % 256 for i in range(256)]), saturation, value)).convert("RGB")


def blur(picture: Image.Image, draws: Iterator[float]) -> Image.Image:
    """Gaussian blur of a random width."""
    low, high = _BLUR
    return picture.filter(ImageFilter.GaussianBlur(low + (high - low) * next(draws)))


def tilt(picture: Image.Image, draws: Iterator[float], strength: float) -> Image.Image:
    """Move each corner inwards by up to half of `strength` of the sides; black remains.

    The law is that of torchvision's ``RandomPerspective``.
    """
    width, height = picture.size
    corners = [(0, 0), (width, 0), (width, height), (0, height)]
    moved = []
    for x, y in corners:
        across, down = (int(next(draws) * (int(strength * (side // 2)) + 1)) for side in (width, height))
        moved.append((x + across if x == 0 else x - across, y + down if y == 0 else y - down))
    return picture.transform(
        picture.size, Image.Transform.PERSPECTIVE, perspective(moved, corners), Image.Resampling.BILINEAR
    )


def perspective(start: list[tuple[int, int]], end: list[tuple[int, int]]) -> list[float]:
    """The eight coefficients with which Pillow takes four points to four others."""
    equations, values = [], []
    for (x, y), (u, v) in zip(start, end):
        equations += [[x, y, 1, 0, 0, 0, -u * x, -u * y], [0, 0, 0, x, y, 1, -v * x, -v * y]]
        values += [u, v]
    return np.linalg.solve(np.array(equations, dtype=float), np.array(values, dtype=float)).tolist()


def _level(draws: Iterator[float]) -> float:
    """From 0.1 to the severity, of 10."""
    return (0.1 + (_SEVERITY - 0.1) * next(draws)) / 10.0


def _signed(amount: float, draws: Iterator[float]) -> float:
    return -amount if next(draws) < 0.5 else amount


def _affine(picture: Image.Image, *coefficients: float) -> Image.Image:
    return picture.transform(picture.size, Image.Transform.AFFINE, coefficients, Image.Resampling.BILINEAR)


def _autocontrast(picture: Image.Image, draws: Iterator[float]) -> Image.Image:
    return ImageOps.autocontrast(picture)


def _equalize(picture: Image.Image, draws: Iterator[float]) -> Image.Image:
    return ImageOps.equalize(picture)


def _posterize(picture: Image.Image, draws: Iterator[float]) -> Image.Image:
    return ImageOps.posterize(picture, 4 - int(4 * _level(draws)))


def _solarize(picture: Image.Image, draws: Iterator[float]) -> Image.Image:
    return ImageOps.solarize(picture, 256 - int(256 * _level(draws)))


def _rotate(picture: Image.Image, draws: Iterator[float]) -> Image.Image:
    return picture.rotate(_signed(int(30 * _level(draws)), draws), Image.Resampling.BILINEAR)


def _shear_x(picture: Image.Image, draws: Iterator[float]) -> Image.Image:
    return _affine(picture, 1, _signed(0.3 * _level(draws), draws), 0, 0, 1, 0)


def _shear_y(picture: Image.Image, draws: Iterator[float]) -> Image.Image:
    return _affine(picture, 1, 0, 0, _signed(0.3 * _level(draws), draws), 1, 0)


def _translate_x(picture: Image.Image, draws: Iterator[float]) -> Image.Image:
    return _affine(picture, 1, 0, _signed(int(picture.width / 3 * _level(draws)), draws), 0, 1, 0)


def _translate_y(picture: Image.Image, draws: Iterator[float]) -> Image.Image:
    return _affine(picture, 1, 0, 0, 0, 1, _signed(int(picture.height / 3 * _level(draws)), draws))


_OPERATIONS: tuple[Change, ...] = (
    _autocontrast,
    _equalize,
    _posterize,
    _rotate,
    _solarize,
    _shear_x,
    _shear_y,
    _translate_x,
    _translate_y,
)
