"""Pixels and id maps of a scene table, by signed distance functions in NumPy."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from skclip.datasets._scenes import ALL_SHAPES, BACKGROUNDS, BLOCK, RADII, STYLES, Scenes, block_generator

_RGB = np.array(
    [
        (220, 40, 40), (40, 160, 60), (45, 80, 220), (240, 215, 50), (135, 55, 175),
        (245, 135, 30), (60, 205, 220), (245, 140, 185), (130, 80, 45), (170, 235, 60),
    ],
    dtype=np.float32,
)  # fmt: skip
_COLOR_JITTER = 12.0
_BACKGROUND_JITTER = 10.0
_CHUNK = 4 * BLOCK


# -- shapes: signed distance on the unit disc, negative inside, y pointing down ---------------------------


def _star(x: NDArray, y: NDArray, points: int, inner: float) -> NDArray:
    """Star with `points` tips on the unit circle; ``inner = cos(pi / points)`` gives the regular polygon."""
    sector = 2.0 * np.pi / points
    angle = np.arctan2(x, -y)
    angle = np.abs(angle - sector * np.round(angle / sector))  # fold: a tip lies at angle 0
    r = np.hypot(x, y)
    u, v = r * np.cos(angle), r * np.sin(angle)
    edge_u = inner * np.cos(sector / 2) - 1.0
    edge_v = inner * np.sin(sector / 2)
    return ((u - 1.0) * edge_v - v * edge_u) / np.hypot(edge_u, edge_v)


def _polygon(x: NDArray, y: NDArray, sides: int) -> NDArray:
    return _star(x, y, sides, np.cos(np.pi / sides))


def _box(x: NDArray, y: NDArray, half_width: float, half_height: float) -> NDArray:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _square(x: NDArray, y: NDArray) -> NDArray:
    return _box(x, y, 0.76, 0.76)


def _triangle(x: NDArray, y: NDArray) -> NDArray:
    return _polygon(x, y - 0.15, 3)


def _cross(x: NDArray, y: NDArray) -> NDArray:
    return np.minimum(_box(x, y, 0.95, 0.3), _box(x, y, 0.3, 0.95))


def _circle(x: NDArray, y: NDArray) -> NDArray:
    return np.hypot(x, y) - 0.92


def _ring(x: NDArray, y: NDArray) -> NDArray:
    return np.abs(np.hypot(x, y) - 0.72) - 0.22


def _moon(x: NDArray, y: NDArray) -> NDArray:
    return np.maximum(np.hypot(x, y) - 0.95, 0.8 - np.hypot(x - 0.5, y))


def _heart(x: NDArray, y: NDArray) -> NDArray:
    # Two discs over a wedge; the wedge's sides touch the discs.
    lobes = np.hypot(np.abs(x) - 0.44, y + 0.38) - 0.5
    wedge = np.maximum((np.abs(x) * 0.767 + y * 0.642) - 0.598, -0.38 - y)
    return np.minimum(lobes, wedge)


def _hexagon(x: NDArray, y: NDArray) -> NDArray:
    return _polygon(x, y, 6)


def _arrow(x: NDArray, y: NDArray) -> NDArray:
    head = np.maximum(x * 0.8 + np.abs(y) * 0.6 - 0.76, 0.05 - x)
    return np.minimum(head, _box(x + 0.4, y, 0.5, 0.25))


def _diamond(x: NDArray, y: NDArray) -> NDArray:
    return (np.abs(x) / 0.6 + np.abs(y) - 1.0) * 0.5145


def _tee(x: NDArray, y: NDArray) -> NDArray:
    return np.minimum(_box(x, y + 0.62, 0.85, 0.28), _box(x, y, 0.28, 0.9))


def _five_star(x: NDArray, y: NDArray) -> NDArray:
    return _star(x, y, 5, 0.42)


SIGNED_DISTANCE: dict[str, Callable[[NDArray, NDArray], NDArray]] = {
    "circle": _circle, "square": _square, "triangle": _triangle, "star": _five_star,
    "cross": _cross, "ring": _ring, "moon": _moon, "heart": _heart,
    "hexagon": _hexagon, "arrow": _arrow, "diamond": _diamond, "tee": _tee,
}  # fmt: skip


# -- surfaces ---------------------------------------------------------------------------------------------


def _shade(texture: int, x: NDArray, y: NDArray) -> NDArray | float:
    """Brightness factor of a texture at local coordinates in pixels of a 48-pixel picture."""
    if texture == 0:
        return 1.0
    if texture == 1:  # striped
        wave = np.sin(y * (2 * np.pi / 4.6))
    elif texture == 2:  # dotted
        wave = 1.1 - 2.2 * (np.cos(x * (2 * np.pi / 4.6)) + np.cos(y * (2 * np.pi / 4.6)) > 0.7)
    else:  # checkered
        wave = np.sin(x * (np.pi / 4.0)) * np.sin(y * (np.pi / 4.0)) * 3.0
    return 0.72 + 0.28 * np.clip(wave * 2.0, -1.0, 1.0)


def _rgb(*channels: float) -> NDArray:
    return np.array(channels, dtype=np.float32)


def _background(kind: int, side: int, phase: NDArray) -> NDArray:
    """(m, side, side, 3) low-saturation backgrounds; `phase` (m, 2) in [0, 1) shifts patterns."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float32) / side
    ones = np.ones((len(phase), side, side, 1), dtype=np.float32)
    name = BACKGROUNDS[kind]
    if name == "gray":
        return ones * _rgb(128, 128, 128)
    if name == "black":
        return ones * _rgb(18, 18, 20)
    if name == "white":
        return ones * _rgb(236, 236, 234)
    py, px = phase[:, 0, None, None], phase[:, 1, None, None]
    if name == "sky":
        fade = np.broadcast_to(y, (len(phase), side, side))[..., None]
        clouds = np.sin(9 * x + 6.28 * px) * np.sin(14 * y + 6.28 * py)
        return _rgb(150, 178, 205) * (1 - fade) + _rgb(205, 214, 222) * fade + 9 * clouds[..., None]
    if name == "grass":
        blades = np.sin(80 * x + 9 * np.sin(19 * y + 6.28 * py) + 6.28 * px)
        return _rgb(98, 118, 84) + 13 * blades[..., None]
    rows = y * 8 + py
    bricks = (rows % 1 < 0.16) | ((x * 4 + px + 0.5 * (np.floor(rows) % 2)) % 1 < 0.08)
    return np.where(bricks[..., None], _rgb(168, 160, 152), _rgb(138, 104, 92))


# -- pictures ---------------------------------------------------------------------------------------------


def render(scenes: Scenes, side: int, noise: float) -> tuple[NDArray, NDArray]:
    """Draw scenes; `noise` is the standard deviation of the pixel noise, of 255.

    Returns
    -------
    images : ndarray of shape (n, side, side, 3), uint8
    id_map : ndarray of shape (n, side, side), int8
        0 = background, k + 1 = object k where it covers more than half of the pixel.
    """
    images = np.empty((len(scenes), side, side, 3), dtype=np.uint8)
    id_map = np.empty((len(scenes), side, side), dtype=np.int8)
    for lo in range(0, len(scenes), _CHUNK):
        rows = slice(lo, lo + _CHUNK)
        images[rows], id_map[rows] = _render_chunk(scenes[rows], side, noise)
    return images, id_map


def _render_chunk(scenes: Scenes, side: int, noise: float) -> tuple[NDArray, NDArray]:
    n = len(scenes)
    phase, object_jitter, background_jitter, grain = _pixel_randomness(scenes, side)
    # A frame around the canvas lets every object be drawn in a window that never leaves it.
    pad = int(np.ceil(RADII.max() * side)) + 2
    canvas = np.zeros((n, side + 2 * pad, side + 2 * pad, 3), dtype=np.float32)
    inner = np.s_[:, pad : pad + side, pad : pad + side]
    for kind in np.unique(scenes.background):
        rows = np.flatnonzero(scenes.background == kind)
        canvas[rows, pad : pad + side, pad : pad + side] = _background(kind, side, phase[rows])
    canvas[inner] += background_jitter[:, None, None, :]
    sketch = scenes.style == STYLES.index("sketch")
    canvas[sketch] = 0.15 * canvas[sketch] + 205.0

    ids = np.zeros(canvas.shape[:3], dtype=np.int8)
    colors = np.clip(_RGB[scenes.color] + object_jitter[:, : scenes.color.shape[1]], 0, 255)
    for slot in range(scenes.shape.shape[1]):
        present = scenes.n_objects > slot
        for shape in np.unique(scenes.shape[present, slot]):
            for size in np.unique(scenes.size[present, slot]):
                rows = np.flatnonzero(present & (scenes.shape[:, slot] == shape) & (scenes.size[:, slot] == size))
                if len(rows):
                    _draw_objects(canvas, ids, scenes, colors, rows, slot, ALL_SHAPES[shape], size, side, pad)

    picture = canvas[inner]
    _apply_styles(picture, scenes.style)
    picture += noise * grain
    return np.clip(picture + 0.5, 0, 255).astype(np.uint8), ids[inner]


def _pixel_randomness(scenes: Scenes, side: int) -> tuple[NDArray, NDArray, NDArray, NDArray]:
    """Random numbers that belong to the pictures themselves, wherever the chunk begins or ends."""
    parts = []
    blocks = scenes.index // BLOCK
    for block in np.unique(blocks):
        rng = block_generator(scenes.seed, int(block), 1)
        drawn = (
            rng.random((BLOCK, 2)).astype(np.float32),
            rng.uniform(-_COLOR_JITTER, _COLOR_JITTER, (BLOCK, 4, 3)).astype(np.float32),
            rng.uniform(-_BACKGROUND_JITTER, _BACKGROUND_JITTER, (BLOCK, 3)).astype(np.float32),
            rng.standard_normal((BLOCK, side, side, 3), dtype=np.float32),
        )
        rows = scenes.index[blocks == block] - block * BLOCK
        parts.append(tuple(part[rows] for part in drawn))
    order = np.argsort(np.concatenate([np.flatnonzero(blocks == b) for b in np.unique(blocks)]))
    phase, objects, background, grain = (np.concatenate(column)[order] for column in zip(*parts))
    return phase, objects, background, grain


def _draw_objects(
    canvas: NDArray,
    ids: NDArray,
    scenes: Scenes,
    colors: NDArray,
    rows: NDArray,
    slot: int,
    shape: str,
    size: int,
    side: int,
    pad: int,
) -> None:
    """Composite object `slot` of the pictures `rows`, all of one shape and size word, into the canvas."""
    window = 2 * int(np.ceil(RADII[size, 1] * side * 1.06)) + 2
    cx = scenes.cx[rows, slot] * side + pad
    cy = scenes.cy[rows, slot] * side + pad
    left = np.floor(cx - window / 2 + 0.5).astype(np.intp)
    top = np.floor(cy - window / 2 + 0.5).astype(np.intp)
    steps = np.arange(window)
    px = (left[:, None] + steps + 0.5 - cx[:, None])[:, None, :].astype(np.float32)
    py = (top[:, None] + steps + 0.5 - cy[:, None])[:, :, None].astype(np.float32)
    cos = np.cos(scenes.angle[rows, slot]).astype(np.float32)[:, None, None]
    sin = np.sin(scenes.angle[rows, slot]).astype(np.float32)[:, None, None]
    x, y = cos * px + sin * py, cos * py - sin * px
    reach = (scenes.radius[rows, slot] * side).astype(np.float32)[:, None, None]
    distance = SIGNED_DISTANCE[shape](x / reach, y / reach) * reach  # pixels
    filled = np.clip(0.5 - distance, 0.0, 1.0)

    outline = scenes.style[rows] == STYLES.index("sketch")
    alpha = filled
    if outline.any():
        alpha = filled.copy()
        alpha[outline] = np.clip(1.2 - np.abs(distance[outline] + 0.7), 0.0, 1.0)
    shade = np.ones_like(filled)
    for texture in np.unique(scenes.texture[rows, slot]):
        same = scenes.texture[rows, slot] == texture
        scale = 48.0 / side
        shade[same] = _shade(texture, x[same] * scale, y[same] * scale)
    paint = colors[rows, slot][:, None, None, :] * shade[..., None]

    where = (rows[:, None, None], top[:, None, None] + steps[:, None], left[:, None, None] + steps)
    under = canvas[where]
    canvas[where] = under + alpha[..., None] * (paint - under)
    ids[where] = np.where(filled > 0.5, np.int8(slot + 1), ids[where])


def _apply_styles(picture: NDArray, style: NDArray) -> None:
    """Change whole pictures in place, by the style of each."""
    dark = style == STYLES.index("dark")
    picture[dark] *= 0.35
    blurry = style == STYLES.index("blurry")
    if blurry.any():
        picture[blurry] = _three_tap(_three_tap(picture[blurry]))
    painting = style == STYLES.index("painting")
    if painting.any():
        picture[painting] = np.round(_three_tap(picture[painting]) / 64.0) * 64.0
    pixel = style == STYLES.index("pixel")
    if pixel.any():
        picture[pixel] = _mosaic(picture[pixel], 4)


def _three_tap(images: NDArray) -> NDArray:
    """(1, 2, 1) / 4 along both axes, edges repeated."""
    for axis in (1, 2):
        padded = np.pad(images, [(1, 1) if a == axis else (0, 0) for a in range(4)], mode="edge")
        before, after = np.roll(padded, 1, axis), np.roll(padded, -1, axis)
        keep = np.s_[:, 1:-1] if axis == 1 else np.s_[:, :, 1:-1]
        images = (0.25 * before + 0.5 * padded + 0.25 * after)[keep]
    return images


def _mosaic(images: NDArray, block: int) -> NDArray:
    """Mean of square blocks, painted over the block; a remainder at the edge forms smaller blocks."""
    cuts = np.arange(0, images.shape[1], block)
    counts = np.diff(np.append(cuts, images.shape[1]))
    means = np.add.reduceat(np.add.reduceat(images, cuts, axis=1), cuts, axis=2)
    means /= (counts[:, None] * counts)[None, :, :, None]
    return means.repeat(counts, axis=1).repeat(counts, axis=2)
