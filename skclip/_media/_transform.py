"""From a read picture to the pixels a backbone takes: open_clip's resize and crop, with Pillow alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from skclip._media._reading import SizedPicture

RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
RESIZE_MODES = ("shortest", "longest", "squash")
DECODE_MODES = ("exact", "fast")

# Raised when a rule of reading or resizing changes, so that features stored under the old one are not served.
_RULES = 1
# A strip resized by its short side can grow to any size, although a crop is all that remains of it.
_MAX_RESIZED_PIXELS = 2**26

# Of "fast", chosen by the features' cosine (`tests/benchmarks/test_reading.py`; a margin of 1 lets its mean fall to
# 0.996): a JPEG is decoded smaller as long as its sides stay this many times those of the result, and pixels are
# averaged to twice those before they are resized.
_MARGIN = 1.5
_GAP = 2.0


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
    decode : {"exact", "fast"}, default="exact"
        "fast" decodes a JPEG in a half, a quarter or an eighth of its size where 1.5 times the resized size is left,
        resizes only the part that is kept, and averages pixels before it resizes to less than a quarter.

    Notes
    -----
    The pixels are open_clip's own, bit for bit, for pictures of mode "RGB" and "L". One exception: where
    fitting the short side would make more than 67 million pixels (side ratios above 1300 for a size of 224),
    only the part that is kept is resized, equal up to rounding. The pixels of "fast" are others; geometry, orientation,
    colours, limits and reasons for refusal are the same. Features of "skclip-tiny" (48 pixels) of JPEGs of 250 x 188 to
    1000 x 750 pixels had a cosine of 0.9996 or more with the exact ones on average and 0.996 at least; where nothing
    is decoded smaller, as from 500 x 375 to 224, pixels differ by rounding alone.
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
        if self.decode == "fast":
            return self._fast(picture, picture.size, (0, 0, *picture.size))
        resized, resample = self._resized(picture.size), self._filter()
        if self.resize_mode == "shortest" and resized[0] * resized[1] > _MAX_RESIZED_PIXELS:
            return pixels_of(_resize_centre(picture, resized, self.size, resample))
        return pixels_of(_centre(_resize(picture, resized, resample), self.size, self._fill()))

    def reduced(self, picture: SizedPicture) -> NDArray[np.uint8]:
        """What "fast" makes of a picture that need not be decoded in its full size."""
        (width, height), resized = picture.size, self._resized(picture.size)
        small, frame = picture.at(reduction_to(min(height / resized[0], width / resized[1])))
        return self._fast(small, picture.size, frame)

    def key(self) -> str:
        """Text that differs whenever the pixels could."""
        height, width = self.size
        key = f"rules={_RULES} size={height}x{width} {self.interpolation} {self.resize_mode} fill={self.fill_color}"
        return key if self.decode == "exact" else f"{key} {self.decode}"

    def _resized(self, source: tuple[int, int]) -> tuple[int, int]:
        """(height, width) to which a picture of size (width, height) is resized before it is cut or padded."""
        height, width = self.size
        ratios = source[1] / height, source[0] / width
        if self.resize_mode == "squash":
            return self.size
        if self.resize_mode == "longest":
            return _shrink(source, max(ratios))
        return _fit_short_side(source, height) if height == width else _shrink(source, min(ratios))

    def _filter(self) -> Image.Resampling:
        if self.resize_mode == "shortest" and self.size[0] != self.size[1]:
            return Image.Resampling.BICUBIC  # open_clip does not hand its interpolation on here
        return RESAMPLING[self.interpolation]

    def _fill(self) -> int:
        return self.fill_color if self.resize_mode == "longest" else 0

    def _fast(
        self, picture: Image.Image, source: tuple[int, int], frame: tuple[float, float, float, float]
    ) -> NDArray[np.uint8]:
        """Pixels of a picture of size `source` = (width, height), of which `picture` holds a smaller one in `frame`."""
        resized = self._resized(source)
        top, bottom, kept_height = _kept_part(source[1], resized[0], self.size[0])
        left, right, kept_width = _kept_part(source[0], resized[1], self.size[1])
        box = within(frame, source, (left, top, right, bottom))
        part = resize_part(picture, box, (kept_height, kept_width), self._filter())
        return pixels_of(_centre(part, self.size, self._fill()))


def reduction_to(ratio: float) -> int:
    """By how much the sides of a JPEG may be divided as it is decoded, if they are then divided by `ratio` in all."""
    return next((reduction for reduction in (8, 4, 2) if ratio / reduction >= _MARGIN), 1)


def within(
    frame: tuple[float, float, float, float], source: tuple[int, int], box: tuple[float, float, float, float]
) -> tuple[float, float, float, float]:
    """(left, top, right, bottom) in a picture of size `source`, moved to where `frame` holds it in another size."""
    across, down = (frame[2] - frame[0]) / source[0], (frame[3] - frame[1]) / source[1]
    left, top, right, bottom = box
    return frame[0] + left * across, frame[1] + top * down, frame[0] + right * across, frame[1] + bottom * down


def resize_part(
    picture: Image.Image, box: tuple[float, float, float, float], size: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    """The part of `picture` within (left, top, right, bottom), resized to (height, width) and nothing besides."""
    left, top, right, bottom = box
    box = left, top, min(right, picture.width), min(bottom, picture.height)
    return picture.resize(size[::-1], resample, box=box, reducing_gap=_GAP)


def pixels_of(picture: Image.Image) -> NDArray[np.uint8]:
    """A read-only array (height, width, 3) of a picture of mode "RGB" or "L"."""
    return np.asarray(picture if picture.mode == "RGB" else picture.convert("RGB"))


def _fit_short_side(source: tuple[int, int], side: int) -> tuple[int, int]:
    """(height, width) with the shorter at `side`, the longer cut to an integer: torchvision's ``Resize``."""
    width, height = source
    long_side = int(side * max(height, width) / min(height, width))
    return (long_side, side) if width <= height else (side, long_side)


def _shrink(source: tuple[int, int], ratio: float) -> tuple[int, int]:
    """(height, width) of a picture of size (width, height) divided by `ratio` and rounded: open_clip's
    ``ResizeKeepRatio``."""
    # open_clip fails where a side rounds to nothing.
    return max(1, round(source[1] / ratio)), max(1, round(source[0] / ratio))


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


def _kept_part(side: float, resized: int, target: int) -> tuple[float, float, int]:
    """Limits, in a side that is resized to `resized`, of what `_centre` keeps, and how many pixels that is."""
    scale, kept = side / resized, min(resized, target)
    start = round((resized - kept) / 2)
    return start * scale, (start + kept) * scale, kept
