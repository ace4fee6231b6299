"""Random crops and flips that depend on the picture, the seed and the view, and on nothing else."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray
from PIL import Image

from skclip._media._reading import SizedPicture
from skclip._media._transform import RESAMPLING, pixels_of, reduction_to, resize_part, within

_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10


def augment(
    picture: Image.Image,
    *,
    seed: int,
    key: bytes,
    view: int,
    size: tuple[int, int],
    interpolation: str = "bicubic",
    scale: tuple[float, float] = (0.5, 1.0),
) -> NDArray[np.uint8]:
    """Cut a random region out of a picture, resize it and mirror it half of the time.

    The laws are those of torchvision's ``RandomResizedCrop`` (side ratio between 3/4 and 4/3, ten attempts,
    then the centre) and ``RandomHorizontalFlip``, applied in this order.

    Parameters
    ----------
    picture : PIL.Image.Image
        Of mode "RGB" or "L", as `read_picture` returns it.
    seed : int
    key : bytes
        The picture's `content_key`: equal pictures get equal views wherever they stand.
    view : int
        At least 1; view 0 is the plain picture and not made here.
    size : (int, int)
        Height and width of the result.
    interpolation : {"bicubic", "bilinear"}, default="bicubic"
    scale : (float, float), default=(0.5, 1.0)
        Limits of the region's share of the picture's area.

    Returns
    -------
    pixels : uint8 ndarray of shape (height, width, 3), maybe read-only
    """
    box, mirrored = _region(picture.size, seed, key, view, scale)
    height, width = size
    region = picture.crop(box)
    if region.size != (width, height):
        region = region.resize((width, height), RESAMPLING[interpolation])
    return _facing(pixels_of(region), mirrored)


def augment_reduced(
    picture: SizedPicture,
    *,
    seed: int,
    key: bytes,
    view: int,
    size: tuple[int, int],
    interpolation: str = "bicubic",
    scale: tuple[float, float] = (0.5, 1.0),
) -> NDArray[np.uint8]:
    """As `augment`, from a picture that need not be decoded in its full size: the same regions, other pixels."""
    box, mirrored = _region(picture.size, seed, key, view, scale)
    height, width = size
    small, frame = picture.at(reduction_to(min((box[3] - box[1]) / height, (box[2] - box[0]) / width)))
    region = resize_part(small, within(frame, picture.size, box), size, RESAMPLING[interpolation])
    return _facing(pixels_of(region), mirrored)


def _region(
    source: tuple[int, int], seed: int, key: bytes, view: int, scale: tuple[float, float]
) -> tuple[tuple[int, int, int, int], bool]:
    """(left, top, right, bottom) of what a view shows of a picture of size (width, height), and if it is mirrored."""
    if view < 1:
        raise ValueError(f"view={view} must be at least 1; view 0 is the picture without augmentation.")
    draws = _draws(seed, key, view)
    mirrored = next(draws) < 0.5
    return _crop_box(*source, draws, scale), mirrored


def _facing(pixels: NDArray[np.uint8], mirrored: bool) -> NDArray[np.uint8]:
    return pixels[:, ::-1] if mirrored else pixels


def _draws(seed: int, key: bytes, view: int) -> Iterator[float]:
    """Uniform numbers in [0, 1). Taken from the raw bits, whose stream NumPy keeps across versions."""
    digest = hashlib.blake2b(f"{seed} {view} ".encode() + key, digest_size=16, person=b"augment").digest()
    bits = Philox(key=int.from_bytes(digest, "little")).random_raw(1 + 4 * _ATTEMPTS)
    return iter(((bits >> np.uint64(11)) * 2.0**-53).tolist())


def _crop_box(width: int, height: int, draws: Iterator[float], scale: tuple[float, float]) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the region; at most four draws per attempt."""
    low, high = math.log(_RATIO[0]), math.log(_RATIO[1])
    for _ in range(_ATTEMPTS):
        area = width * height * (scale[0] + (scale[1] - scale[0]) * next(draws))
        ratio = math.exp(low + (high - low) * next(draws))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        left, top = next(draws), next(draws)
        if 0 < w <= width and 0 < h <= height:
            return _box(int(left * (width - w + 1)), int(top * (height - h + 1)), w, h)
    w, h = width, height
    if width / height < _RATIO[0]:
        h = round(w / _RATIO[0])
    elif width / height > _RATIO[1]:
        w = round(h * _RATIO[1])
    return _box((width - w) // 2, (height - h) // 2, w, h)


def _box(left: int, top: int, width: int, height: int) -> tuple[int, int, int, int]:
    return left, top, left + width, top + height
