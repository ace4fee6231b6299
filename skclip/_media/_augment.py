"""Random views that depend on the picture, the seed and the view, and on nothing else."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.random import Philox
from numpy.typing import NDArray
from PIL import Image

from skclip._media._colour import Change, augmix, strong, strong_and_tilted
from skclip._media._reading import SizedPicture
from skclip._media._transform import RESAMPLING, pixels_of, reduction_to, resize_part, within

_RATIO = (3 / 4, 4 / 3)
_ATTEMPTS = 10


class _Kind(NamedTuple):
    scale: tuple[float, float]
    change: Change | None


_KINDS = {
    "crop_flip": _Kind((0.5, 1.0), None),
    "strong": _Kind((0.08, 1.0), strong),
    "augmix": _Kind((0.08, 1.0), augmix),
    "nola": _Kind((0.2, 1.0), strong_and_tilted),
}
AUGMENTATIONS = tuple(_KINDS)


@dataclass(frozen=True)
class Augmentation:
    """How random views of pictures are made.

    Every kind begins with a random crop that is resized to the wanted size and mirrored half of the time (`augment`).

    Parameters
    ----------
    kind : str, default="crop_flip"
        "crop_flip": nothing besides. "strong": colours shift, a fifth of the views turn grey, and all are blurred [1]_.
        "augmix": a mixture of the crop with three chains of mild operations [2]_. "nola": colours shift, half of the
        views are tilted, all are blurred [3]_. Several, joined by "+", take turns: of "strong+augmix" view 1 is
        "strong", view 2 "augmix", view 3 "strong".
    scale : (float, float) or None, default=None
        Limits of the crop's share of the picture's area. None is the kind's own: 0.5 to 1 of "crop_flip", 0.2 to 1 of
        "nola", 0.08 to 1 of the others.

    References
    ----------
    .. [1] X. Chen, S. Xie and K. He, "An Empirical Study of Training Self-Supervised Vision Transformers" (MoCo v3),
       ICCV 2021, the first of its two views.
    .. [2] D. Hendrycks et al., "AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty",
       ICLR 2020, severity 1.
    .. [3] M. A. Imam et al., "CLIP meets DINO for Tuning Zero-Shot Classifier using Unlabeled Image Collections",
       2024, arXiv:2411.19346.
    """

    kind: str = "crop_flip"
    scale: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for kind in self.kind.split("+"):
            if kind not in _KINDS:
                raise ValueError(
                    f"augmentation kind={self.kind!r} must be one of {list(_KINDS)}, or several joined by '+'."
                )
        if self.scale is not None and not (len(self.scale) == 2 and 0.0 < self.scale[0] <= self.scale[1] <= 1.0):
            raise ValueError(f"scale={self.scale!r} must be two shares of the area, such as (0.08, 1.0).")

    def key(self) -> str:
        """Text that differs whenever the pixels could."""
        if self.scale is None or all(self.scale == _KINDS[kind].scale for kind in self.kind.split("+")):
            return self.kind
        low, high = map(float, self.scale)
        return f"{self.kind} {low!r}-{high!r}"

    def __call__(
        self,
        picture: Any,
        *,
        cut: Callable[..., NDArray[np.uint8]],
        seed: int,
        key: bytes,
        view: int,
        size: tuple[int, int],
        interpolation: str = "bicubic",
    ) -> NDArray[np.uint8]:
        """Make view `view` of a picture, which is what `cut` (`augment` or `augment_reduced`) takes."""
        kinds = self.kind.split("+")
        own = _KINDS[kinds[(view - 1) % len(kinds)]]
        pixels = cut(
            picture,
            seed=seed,
            key=key,
            view=view,
            size=size,
            interpolation=interpolation,
            scale=self.scale or own.scale,
        )
        if own.change is None:
            return pixels
        return pixels_of(own.change(Image.fromarray(np.ascontiguousarray(pixels)), _more_draws(seed, key, view)))


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
    bits = _stream(seed, key, view, b"augment").random_raw(1 + 4 * _ATTEMPTS)
    return iter(((bits >> np.uint64(11)) * 2.0**-53).tolist())


def _more_draws(seed: int, key: bytes, view: int) -> Iterator[float]:
    """As `_draws`, without end and from a stream of their own."""
    stream = _stream(seed, key, view, b"change")
    while True:
        yield (int(stream.random_raw()) >> 11) * 2.0**-53


def _stream(seed: int, key: bytes, view: int, purpose: bytes) -> Philox:
    digest = hashlib.blake2b(f"{seed} {view} ".encode() + key, digest_size=16, person=purpose).digest()
    return Philox(key=int.from_bytes(digest, "little"))


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
