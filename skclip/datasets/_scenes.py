"""The scene table of the picture world: what is in each picture, drawn from a seed.

Everything else - pixels, id maps, captions, labels - is a function of this table.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "moon", "heart")
UNSEEN_SHAPES = ("hexagon", "arrow", "diamond", "tee")
COLORS = ("red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink")
UNSEEN_COLORS = ("brown", "lime")
SIZES = ("tiny", "small", "medium", "large", "huge")
TEXTURES = ("plain", "striped", "dotted", "checkered")
BACKGROUNDS = ("gray", "black", "white", "sky", "grass", "brick")
STYLES = ("photo", "sketch", "dark", "blurry", "painting", "pixel")

ALL_SHAPES = SHAPES + UNSEEN_SHAPES
ALL_COLORS = COLORS + UNSEEN_COLORS

HELD_OUT_PAIRS = tuple((COLORS[i], SHAPES[(3 * i + 1) % 8]) for i in range(8))
"""The (colour, shape) pairs that no training picture or caption of the bundled models contains."""

# Radius bins as fractions of the picture side, one per size word.
RADII = np.array([(0.110, 0.140), (0.150, 0.190), (0.200, 0.250), (0.260, 0.320), (0.330, 0.400)])
# Largest size word a scene may use, by its number of objects (index 0 is never used).
_LARGEST_SIZE = np.array([4, 4, 3, 2, 1])
BLOCK = 256
MAX_OBJECTS = 4
_PROPOSALS = 24
_MAX_ANGLE = 0.35  # radians: a square never turns into a diamond


@dataclass(frozen=True)
class Scenes:
    """Facts about n pictures; object arrays are (n, max_objects) and valid where ``slot < n_objects``.

    Attributes
    ----------
    n_objects : ndarray of shape (n,), int
    shape, color, size, texture : ndarray of shape (n, max_objects), int
        Indices into `ALL_SHAPES`, `ALL_COLORS`, `SIZES`, `TEXTURES`.
    radius, cx, cy : ndarray of shape (n, max_objects), float
        As fractions of the picture's side; (0, 0) is the top left corner.
    angle : ndarray of shape (n, max_objects), float
        Radians.
    background, style : ndarray of shape (n,), int
        Indices into `BACKGROUNDS`, `STYLES`.
    index : ndarray of shape (n,), int
        Position of each picture in the endless sequence of its seed.
    seed : int
    """

    n_objects: NDArray
    shape: NDArray
    color: NDArray
    size: NDArray
    texture: NDArray
    radius: NDArray
    cx: NDArray
    cy: NDArray
    angle: NDArray
    background: NDArray
    style: NDArray
    index: NDArray
    seed: int

    def __len__(self) -> int:
        return len(self.n_objects)

    def __getitem__(self, rows: slice | NDArray) -> Scenes:
        """The scenes of a slice, mask or index array of pictures."""
        parts = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "seed"}
        return Scenes(**{name: part[rows] for name, part in parts.items()}, seed=self.seed)

    @property
    def pair(self) -> NDArray:
        """(n,) strings "colour shape" of each picture's first object."""
        colors, shapes = np.array(ALL_COLORS), np.array(ALL_SHAPES)
        return np.char.add(np.char.add(colors[self.color[:, 0]], " "), shapes[self.shape[:, 0]])


def block_generator(seed: int, block: int, stream: int, version: int = 0) -> np.random.Generator:
    """Random numbers of one block of pictures; `stream` separates layout (0), pixels (1) and words (2)."""
    return np.random.Generator(np.random.Philox(key=[seed, 4 * block + stream], counter=[0, 0, 0, version]))


def draw_scenes(
    n: int,
    *,
    seed: int,
    start: int,
    max_objects: int,
    min_objects: int,
    pairs: NDArray,
    sizes: NDArray,
    textures: NDArray,
    backgrounds: NDArray,
    styles: NDArray,
) -> Scenes:
    """Scenes ``start .. start + n - 1`` of the sequence that `seed` and the choices define.

    Scene i is the same whatever `n` and `start` are: random numbers belong to aligned blocks.

    Parameters
    ----------
    pairs : ndarray of shape (n_pairs, 2)
        Allowed (colour, shape) indices, drawn uniformly.
    sizes, textures, backgrounds, styles : ndarray of int
        Allowed indices, drawn uniformly.
    """
    first, last = start // BLOCK, (start + n - 1) // BLOCK
    blocks = [
        _draw_block(seed, b, min_objects, max_objects, pairs, sizes, textures, backgrounds, styles)
        for b in range(first, last + 1)
    ]
    joined = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    lo = start - first * BLOCK
    return Scenes(**{name: part[lo : lo + n] for name, part in joined.items()}, seed=seed)


def _draw_block(
    seed: int,
    block: int,
    min_objects: int,
    max_objects: int,
    pairs: NDArray,
    sizes: NDArray,
    textures: NDArray,
    backgrounds: NDArray,
    styles: NDArray,
) -> dict[str, NDArray]:
    rng = block_generator(seed, block, 0)
    b, k = BLOCK, max_objects
    wanted = rng.integers(min_objects, max_objects + 1, size=b)
    pair = pairs[rng.integers(len(pairs), size=(b, k))]

    # Sizes shrink with the number of objects, so that they fit without overlap.
    limit = np.maximum(_LARGEST_SIZE[wanted], sizes.min())
    n_allowed = np.array([(sizes <= top).sum() for top in limit])
    size = np.sort(sizes)[(rng.random((b, k)) * n_allowed[:, None]).astype(np.intp)]
    low, high = RADII[size, 0], RADII[size, 1]
    radius = low + (high - low) * rng.random((b, k))

    cx, cy, placed = _place(rng, radius, wanted)
    return {
        "n_objects": placed,
        "shape": pair[:, :, 1],
        "color": pair[:, :, 0],
        "size": size,
        "texture": textures[rng.integers(len(textures), size=(b, k))],
        "radius": radius,
        "cx": cx,
        "cy": cy,
        "angle": rng.uniform(-_MAX_ANGLE, _MAX_ANGLE, size=(b, k)),
        "background": backgrounds[rng.integers(len(backgrounds), size=b)],
        "style": styles[rng.integers(len(styles), size=b)],
        "index": np.arange(block * BLOCK, (block + 1) * BLOCK),
    }


def _place(rng: np.random.Generator, radius: NDArray, wanted: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Centres without overlap: the first of a few proposals that keeps its distance.

    An object that finds no room ends its scene, so `placed` may be smaller than `wanted`.
    """
    b, k = radius.shape
    margin = np.minimum(radius + 0.01, 0.5)[:, :, None]
    proposals = margin + (1.0 - 2.0 * margin) * rng.random((2, b, k, _PROPOSALS))
    cx, cy = np.zeros((b, k)), np.zeros((b, k))
    placed = np.zeros(b, dtype=np.intp)
    for slot in range(k):
        x, y = proposals[0, :, slot], proposals[1, :, slot]
        free = np.ones((b, _PROPOSALS), dtype=bool)
        for other in range(slot):
            gap = 0.95 * (radius[:, slot] + radius[:, other])
            free &= np.hypot(x - cx[:, other, None], y - cy[:, other, None]) > gap[:, None]
        choice = free.argmax(axis=1)
        cx[:, slot] = x[np.arange(b), choice]
        cy[:, slot] = y[np.arange(b), choice]
        placed += (placed == slot) & free.any(axis=1) & (slot < wanted)
    return cx, cy, placed
