"""From a read picture to the pixels a backbone takes: open_clip's resize and crop, with Pillow alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZE_MODES = ("shortest", "longest", "squash")
DECODE_MODES = ("exact", "fast")

# Raised when a rule of reading or resizing changes, so that features stored under the old one are not served.
_RULES = 1
# A strip resized by its short side can grow to any size, although a crop is all that remains of it.
_MAX_RESIZED_PIXELS = 2**26


@dataclass(frozen=True)
class PictureTransform:
    """Resize and crop as ``open_clip.image_transform(..., is_train=False)`` does before its ``ToTensor``.

    Parameters
    ----------
    size : (int, int)
        Height and width of the result.
    interpolation : {"bicubic", "bilinear"}, default="bicubic"
    resize_mode : {"shortest", "longest", "squash"}, default="shortest"
        The short side is fitted and the centre cut out; or the long side is fitted and the rest filled; or
        both sides are fitted, whatever becomes of the proportions.
    fill_color : int, default=0
        Grey value of the border, for "longest".

    Notes
    -----
    The pixels are open_clip's own, bit for bit, for pictures of mode "RGB" and "L". One exception: where
    fitting the short side would make more than 67 million pixels (side ratios above 1300 for a size of 224),
    only the part that is kept is resized, equal up to rounding.
    """

    size: tuple[int, int]
    interpolation: str = "bicubic"
    resize_mode: str = "shortest"
    fill_color: int = 0
    decode: str = "exact"

    def __post_init__(self) -> None:
        if self.interpolation not in RESAMPLING:
            raise ValueError(f"interpolation={self.interpolation!r} must be one of {sorted(RESAMPLING)}.")
        if self.resize_mode not in RESIZE_MODES:
            raise ValueError(f"resize_mode={self.resize_mode!r} must be one of {list(RESIZE_MODES)}.")
        if self.decode not in DECODE_MODES:
            raise ValueError(f"decode={self.decode!r} must be one of {list(DECODE_MODES)}.")

    def __call__(self, picture: Image.Image) -> NDArray[np.uint8]:
        """Make a read-only uint8 array (height, width, 3) of a picture of mode "RGB" or "L"."""
        resample = RESAMPLING[self.interpolation]
        if self.resize_mode == "squash":
            picture = _resize(picture, self.size, resample)
        elif self.resize_mode == "longest":
            picture = _resize(picture, _shrink(picture, max(self._ratios(picture))), resample)
            picture = _centre(picture, self.size, self.fill_color)
        else:
            picture = self._shortest(picture, resample)
        return np.asarray(picture.convert("RGB") if picture.mode != "RGB" else picture)

    def key(self) -> str:
        """Text that differs whenever the pixels could."""
        height, width = self.size
        key = f"rules={_RULES} size={height}x{width} {self.interpolation} {self.resize_mode} fill={self.fill_color}"
        return key if self.decode == "exact" else f"{key} {self.decode}"

    def _ratios(self, picture: Image.Image) -> tuple[float, float]:
        return picture.height / self.size[0], picture.width / self.size[1]

    def _shortest(self, picture: Image.Image, resample: Image.Resampling) -> Image.Image:
        height, width = self.size
        if height == width:
            resized = _fit_short_side(picture, height)
        else:
            # open_clip does not hand its interpolation on here.
            resized, resample = _shrink(picture, min(self._ratios(picture))), Image.Resampling.BICUBIC
        if resized[0] * resized[1] > _MAX_RESIZED_PIXELS:
            return _resize_centre(picture, resized, self.size, resample)
        return _centre(_resize(picture, resized, resample), self.size, 0)


def _fit_short_side(picture: Image.Image, side: int) -> tuple[int, int]:
    """(height, width) with the shorter at `side`, the longer cut to an integer: torchvision's ``Resize``."""
    width, height = picture.size
    long_side = int(side * max(height, width) / min(height, width))
    return (long_side, side) if width <= height else (side, long_side)


def _shrink(picture: Image.Image, ratio: float) -> tuple[int, int]:
    """(height, width) divided by `ratio` and rounded: open_clip's ``ResizeKeepRatio``."""
    # open_clip fails where a side rounds to nothing.
    return max(1, round(picture.height / ratio)), max(1, round(picture.width / ratio))


def _resize(picture: Image.Image, size: tuple[int, int], resample: Image.Resampling) -> Image.Image:
    height, width = size
    return picture if picture.size == (width, height) else picture.resize((width, height), resample)


def _centre(picture: Image.Image, size: tuple[int, int], fill: int) -> Image.Image:
    """Cut or pad `picture` around its centre to (height, width)."""
    height, width = size
    lack_y, lack_x = max(0, height - picture.height), max(0, width - picture.width)
    if lack_x or lack_y:
        border = (lack_x // 2, lack_y // 2, (lack_x + 1) // 2, (lack_y + 1) // 2)
        colour = fill if picture.mode == "L" else (fill, fill, fill)
        picture = ImageOps.expand(picture, border=border, fill=colour)
    if picture.size == (width, height):
        return picture
    top, left = round((picture.height - height) / 2), round((picture.width - width) / 2)
    return picture.crop((left, top, left + width, top + height))


def _resize_centre(
    picture: Image.Image, resized: tuple[int, int], size: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    """The centre of `picture` resized to `resized`, without making the rest of it."""
    top, bottom, first_row, last_row = _kept(picture.height, resized[0], size[0])
    left, right, first_column, last_column = _kept(picture.width, resized[1], size[1])
    picture = picture.crop((first_column, first_row, last_column, last_row))
    # Across, then down, as Pillow resizes a whole picture: values are clipped to 0..255 in between.
    picture = picture.resize((size[1], picture.height), resample, box=(left, 0, right, picture.height))
    return picture.resize(size[::-1], resample, box=(0, top, size[1], bottom))


def _kept(side: int, resized: int, kept: int) -> tuple[float, float, int, int]:
    """What the `kept` central pixels of a side resized to `resized` come from.

    Returns
    -------
    start, stop : float
        Limits of the pixels' source, counted from `first`.
    first, last : int
        Limits of all source pixels that the interpolation reads for them.
    """
    scale = side / resized
    offset = round((resized - kept) / 2)
    start, stop = offset * scale, min((offset + kept) * scale, side)
    margin = 2 * max(scale, 1.0) + 1
    first, last = max(0, int(start - margin)), min(side, int(stop + margin) + 1)
    return start - first, stop - first, first, last
