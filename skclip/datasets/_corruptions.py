"""`corrupt_images`: pictures made worse by known amounts."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from numbers import Integral

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from scipy.fft import dctn, idctn
from sklearn.utils import check_random_state

_MAX_SEVERITY = 5

# quantisation tables of the JPEG standard (ITU-T T.81, tables K.1 and K.2)
_LUMINANCE = np.array(
    [
        [16, 11, 10, 16, 24, 40, 51, 61], [12, 12, 14, 19, 26, 58, 60, 55],
        [14, 13, 16, 24, 40, 57, 69, 56], [14, 17, 22, 29, 51, 87, 80, 62],
        [18, 22, 37, 56, 68, 109, 103, 77], [24, 35, 55, 64, 81, 104, 113, 92],
        [49, 64, 78, 87, 103, 121, 120, 101], [72, 92, 95, 98, 112, 100, 103, 99],
    ],
    dtype=np.float64,
)  # fmt: skip
_CHROMINANCE = np.full((8, 8), 99.0)
_CHROMINANCE[:4, :4] = [[17, 18, 24, 47], [18, 21, 26, 66], [24, 26, 56, 99], [47, 66, 99, 99]]
_TO_YCBCR = np.array([[0.299, 0.587, 0.114], [-0.168736, -0.331264, 0.5], [0.5, -0.418688, -0.081312]])
_TO_RGB = np.linalg.inv(_TO_YCBCR)


def corrupt_images(
    images: ArrayLike,
    kind: str,
    *,
    severity: int = 1,
    random_state: int | np.random.RandomState | None = 0,
) -> NDArray:
    """Make pictures worse, in one of eight ways and five degrees.

    For tests of robustness where no corrupted set exists: what is done to a picture is a function of the picture, the
    severity and the seed alone, whatever else is in the batch, and the same random choice is made at every severity.

    Parameters
    ----------
    images : array-like of shape (n, height, width, 3), uint8
        Pictures of one size.
    kind : {"gaussian_noise", "blur", "brightness", "contrast", "pixelate", "jpeg", "occlusion", "rotation"}
        - "gaussian_noise": independent noise on every pixel and channel.
        - "blur": a Gaussian, its width a share of the picture's side.
        - "brightness": a constant added to every pixel.
        - "contrast": pixels drawn towards the picture's mean.
        - "pixelate": fewer, larger pixels.
        - "jpeg": coarse quantisation of 8 x 8 block cosines, as JPEG does, without its subsampling.
        - "occlusion": a gray bar across the picture, in a random place and direction.
        - "rotation": by a fixed angle to a random side, the corners filled by reflection.
    severity : int, default=1
        From 1 to 5. Blur, pixel size and bars scale with the picture.
    random_state : int, RandomState instance or None, default=0
        Noise, sides and places of the random kinds. An int gives the same pictures on every call.

    Returns
    -------
    ndarray of shape (n, height, width, 3), uint8
        New pictures.

    Raises
    ------
    ValueError
        If `images` are not uint8 pictures of one size, or `kind` or `severity` is unknown.

    See Also
    --------
    make_picture_world : Pictures in other styles ("sketch", "dark", ...), another kind of shift.

    Notes
    -----
    Kinds and quantities follow the idea of [1]_; its pictures cannot be compared with these.

    References
    ----------
    .. [1] D. Hendrycks and T. Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and
       Perturbations", ICLR 2019, arXiv:1903.12261.

    Examples
    --------
    >>> from skclip.datasets import corrupt_images, make_picture_world
    >>> images = make_picture_world(4).images
    >>> noisy = corrupt_images(images, "gaussian_noise", severity=3)
    >>> noisy.shape, noisy.dtype
    ((4, 48, 48, 3), dtype('uint8'))
    """
    pictures = _check_pictures(images)
    if kind not in _CORRUPTIONS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, _CORRUPTIONS))}, got {kind!r}.")
    if isinstance(severity, bool) or not isinstance(severity, Integral) or not 1 <= severity <= _MAX_SEVERITY:
        raise ValueError(f"severity must be a whole number from 1 to {_MAX_SEVERITY}, got {severity!r}.")
    if isinstance(random_state, Integral):
        seed = int(random_state)
    else:
        seed = int(check_random_state(random_state).randint(2**31))
    if len(pictures) == 0:
        return pictures.copy()
    corrupted = _CORRUPTIONS[kind](pictures, int(severity) - 1, seed)
    return np.clip(np.round(corrupted), 0.0, 255.0).astype(np.uint8)


def _check_pictures(images: ArrayLike) -> NDArray:
    pictures = np.asarray(images)
    if pictures.dtype != np.uint8 or pictures.ndim != 4 or pictures.shape[-1] != 3 or 0 in pictures.shape[1:3]:
        raise ValueError(
            "images must be a uint8 array of shape (n, height, width, 3), RGB pictures of one size; got shape "
            f"{pictures.shape} of dtype {pictures.dtype}."
        )
    return pictures


def _generators(pictures: NDArray, kind: str, seed: int) -> list[np.random.Generator]:
    """One per picture: equal pictures get equal draws, wherever they stand."""
    size = np.array(pictures.shape[1:], dtype=np.int64).tobytes()
    start = hashlib.blake2b(f"{kind} {seed}".encode() + size, digest_size=16)
    generators = []
    for picture in pictures:
        digest = start.copy()
        digest.update(picture.tobytes())
        generators.append(np.random.default_rng(int.from_bytes(digest.digest(), "little")))
    return generators


def _gaussian_noise(pictures: NDArray, level: int, seed: int) -> NDArray:
    deviation = 255.0 * (0.06, 0.12, 0.20, 0.30, 0.45)[level]
    noise = [generator.standard_normal(pictures.shape[1:]) for generator in _generators(pictures, "noise", seed)]
    return pictures + deviation * np.stack(noise)


def _blur(pictures: NDArray, level: int, seed: int) -> NDArray:
    width = min(pictures.shape[1:3]) * (0.012, 0.022, 0.035, 0.055, 0.08)[level]
    return ndimage.gaussian_filter(pictures.astype(np.float32), (0, width, width, 0), mode="nearest")


def _brightness(pictures: NDArray, level: int, seed: int) -> NDArray:
    return pictures + 255.0 * (0.1, 0.2, 0.32, 0.45, 0.6)[level]


def _contrast(pictures: NDArray, level: int, seed: int) -> NDArray:
    kept = (0.6, 0.4, 0.25, 0.15, 0.08)[level]
    mean = pictures.mean(axis=(1, 2), keepdims=True)
    return mean + kept * (pictures - mean)


def _pixelate(pictures: NDArray, level: int, seed: int) -> NDArray:
    share = (0.55, 0.4, 0.3, 0.22, 0.15)[level]
    coarse = pictures.astype(np.float64)
    for axis in (1, 2):
        side = pictures.shape[axis]
        n_cells = max(1, round(share * side))
        cells = np.arange(side) * n_cells // side
        starts = np.searchsorted(cells, np.arange(n_cells))
        sizes = np.diff(starts, append=side).reshape([-1 if a == axis else 1 for a in range(4)])
        coarse = (np.add.reduceat(coarse, starts, axis=axis) / sizes).take(cells, axis=axis)
    return coarse


def _jpeg(pictures: NDArray, level: int, seed: int) -> NDArray:
    quality = (25, 15, 9, 5, 2)[level]
    height, width = pictures.shape[1:3]
    padding = ((0, 0), (0, -height % 8), (0, -width % 8), (0, 0))
    padded = np.pad(pictures.astype(np.float64) - 128.0, padding, mode="edge") @ _TO_YCBCR.T
    n, rows, columns = padded.shape[:3]
    blocks = padded.reshape(n, rows // 8, 8, columns // 8, 8, 3).transpose(0, 1, 3, 5, 2, 4)
    scale = 50.0 / quality
    tables = np.stack([np.maximum(1.0, np.round(scale * t)) for t in (_LUMINANCE, _CHROMINANCE, _CHROMINANCE)])
    kept = np.round(dctn(blocks, axes=(-2, -1), norm="ortho") / tables) * tables
    blocks = idctn(kept, axes=(-2, -1), norm="ortho")
    padded = blocks.transpose(0, 1, 4, 2, 5, 3).reshape(n, rows, columns, 3)
    return (padded @ _TO_RGB.T + 128.0)[:, :height, :width]


def _occlusion(pictures: NDArray, level: int, seed: int) -> NDArray:
    share = (0.06, 0.12, 0.2, 0.3, 0.42)[level]
    draws = np.stack([generator.random(2) for generator in _generators(pictures, "bar", seed)])
    angle, offset = np.pi * draws[:, 0], 0.5 * (draws[:, 1] - 0.5)
    height, width = pictures.shape[1:3]
    y = ((np.arange(height) + 0.5) / height - 0.5)[None, :, None]
    x = ((np.arange(width) + 0.5) / width - 0.5)[None, None, :]
    across = x * np.cos(angle)[:, None, None] + y * np.sin(angle)[:, None, None] - offset[:, None, None]
    return np.where((np.abs(across) < share / 2)[..., None], 128.0, pictures)


def _rotation(pictures: NDArray, level: int, seed: int) -> NDArray:
    degrees = (8.0, 16.0, 24.0, 34.0, 45.0)[level]
    to_left = np.array([generator.random() < 0.5 for generator in _generators(pictures, "turn", seed)])
    turned = np.empty(pictures.shape, dtype=np.float32)
    for side, sign in ((to_left, 1.0), (~to_left, -1.0)):
        if side.any():
            rows = pictures[side].astype(np.float32)
            turned[side] = ndimage.rotate(
                rows, sign * degrees, axes=(2, 1), reshape=False, order=1, mode="reflect", output=np.float32
            )
    return turned


_CORRUPTIONS: dict[str, Callable[[NDArray, int, int], NDArray]] = {
    "gaussian_noise": _gaussian_noise,
    "blur": _blur,
    "brightness": _brightness,
    "contrast": _contrast,
    "pixelate": _pixelate,
    "jpeg": _jpeg,
    "occlusion": _occlusion,
    "rotation": _rotation,
}
