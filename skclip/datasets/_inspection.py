"""`make_inspection_parts`: pictures of one product, some with a defect, and the exact mask of the defect."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from numbers import Integral, Real
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch, check_random_state

from skclip.datasets._scenes import BLOCK, block_generator

DEFECTS = ("scratch", "hole", "missing part", "stain")

# components of a layout: name, centre x and y and half width and height as fractions of the side, colour;
# a disc has its half width as radius
_Component = tuple[str, float, float, float, float, tuple[int, int, int]]
LAYOUTS: dict[str, tuple[_Component, ...]] = {
    "single": (("disc", 0.5, 0.5, 0.22, 0.22, (190, 150, 70)),),
    "multi": (
        ("disc", 0.18, 0.18, 0.06, 0.06, (205, 205, 210)),
        ("disc", 0.82, 0.18, 0.06, 0.06, (205, 205, 210)),
        ("disc", 0.18, 0.82, 0.06, 0.06, (205, 205, 210)),
        ("disc", 0.82, 0.82, 0.06, 0.06, (205, 205, 210)),
        ("box", 0.46, 0.46, 0.17, 0.15, (78, 82, 92)),
        ("disc", 0.74, 0.42, 0.075, 0.075, (60, 100, 190)),
        ("disc", 0.74, 0.60, 0.075, 0.075, (60, 100, 190)),
        ("box", 0.42, 0.76, 0.15, 0.055, (236, 232, 214)),
    ),
}
_TABLE, _BOARD = (34, 36, 40), (128, 158, 136)
_BOARD_HALF = 0.42
_TILES = 9  # periods of the surface pattern across the picture
_HOLE, _STAIN = (10, 10, 12), (104, 64, 24)
_DARK, _BRIGHT = 22.0, 246.0
_STAIN_OPACITY = 0.62
_SCRATCH_LENGTH, _SCRATCH_WIDTH, _STAIN_WIDTH = 3.0, 0.14, 1.4  # of the defect's size
_SHIFT, _TURN, _LIGHT = 0.02, 0.06, 0.12  # at variation 1: of the side, in radians, of the brightness
_N_WAVES = 3
_CHUNK = 32  # pictures drawn at once: their arrays stay in cache


@dataclass(frozen=True)
class PartFacts:
    """What is in each of n pictures. Lengths are fractions of the side; (0, 0) is the top left corner.

    Attributes
    ----------
    shift : ndarray of shape (n, 2)
        Of the whole part, to the right and down.
    turn : ndarray of shape (n,)
        Angle by which the part is turned about the centre of the picture before the shift, clockwise, in radians.
    light : ndarray of shape (n, 3)
        Brightness factor, and its change from left to right and from top to bottom.
    defect : ndarray of shape (n,), int
        Index into `DEFECTS`, -1 for none.
    missing : ndarray of shape (n,), int
        Component that is not there, -1 for none.
    size : ndarray of shape (n,)
        Diameter of a hole; scratches are 3 times as long and stains about 1.4 times as wide.
    centre : ndarray of shape (n, 2)
        Of a scratch, hole or stain, x and y.
    angle : ndarray of shape (n,)
        Direction of a scratch, in radians from the x axis towards the y axis.
    waves : ndarray of shape (n, 3, 2)
        Amplitude and phase of the waves (2, 3 and 4 around) on the outline of a stain.
    index : ndarray of shape (n,), int
        Position of each picture in the endless sequence of its seed.
    """

    shift: NDArray
    turn: NDArray
    light: NDArray
    defect: NDArray
    missing: NDArray
    size: NDArray
    centre: NDArray
    angle: NDArray
    waves: NDArray
    index: NDArray

    def __len__(self) -> int:
        return len(self.turn)

    def __getitem__(self, rows: slice | NDArray) -> PartFacts:
        return PartFacts(**{field.name: getattr(self, field.name)[rows] for field in fields(self)})


def make_inspection_parts(
    n_samples: int = 1000,
    *,
    image_size: int = 48,
    layout: Literal["single", "multi"] = "multi",
    defects: str | Sequence[str] = "all",
    defect_rate: float = 0.5,
    defect_size: tuple[float, float] = (0.08, 0.2),
    variation: float = 1.0,
    noise: float = 4.0,
    start: int = 0,
    random_state: int | np.random.RandomState | None = 0,
) -> Bunch:
    """Draw pictures of one product as a camera over a production line sees it, some of them with a defect.

    A board with a repeated surface pattern carries components at fixed places; position, angle and light vary a
    little from picture to picture. For inspection methods that have to be right on something that is known exactly.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of pictures.
    image_size : int, default=48
        Side of the square pictures in pixels, at least 16.
    layout : {"single", "multi"}, default="multi"
        One component in the middle, or eight of four kinds.
    defects : "all" or sequence of str, default="all"
        Kinds that occur, equally often: of "scratch", "hole", "missing part", "stain".
    defect_rate : float, default=0.5
        Probability of a defect. The pictures do not depend on it otherwise: with 0 every part is drawn as it would be
        without its defect, pixel for pixel.
    defect_size : (float, float), default=(0.08, 0.2)
        Smallest and largest size of a defect as fractions of the side, drawn uniformly: the diameter of holes;
        scratches are 3 times as long and stains about 1.4 times as wide. A missing part has the size of the part.
    variation : float, default=1.0
        How much position, angle and light vary; 0 for a perfect machine.
    noise : float, default=4.0
        Standard deviation of the pixel noise, of 255.
    start : int, default=0
        Position of the first picture in the endless sequence of `random_state`: picture i is the same whatever
        `n_samples` and `start` are.
    random_state : int, RandomState instance or None, default=0
        An int gives the same pictures on every call.

    Returns
    -------
    parts : :class:`~sklearn.utils.Bunch`
        images : ndarray of shape (n_samples, image_size, image_size, 3), uint8
            The pictures.
        target : ndarray of shape (n_samples,), str
            "good" or the kind of the defect.
        target_names : list of str
            The labels that can occur, sorted.
        masks : ndarray of shape (n_samples, image_size, image_size), bool
            Pixels whose centre the defect covers; of a missing part, those that it should cover.
        component_map : ndarray of shape (n_samples, image_size, image_size), int8
            k + 1 where component k is seen, 0 on board and table. Defects do not change it, but for missing parts.
        facts : object
            Arrays ``shift, turn, light, defect, missing, size, centre, angle, waves``, as drawn.

    Examples
    --------
    >>> from skclip.datasets import make_inspection_parts
    >>> parts = make_inspection_parts(4, random_state=0)
    >>> parts.images.shape, parts.masks.shape
    ((4, 48, 48, 3), (4, 48, 48))
    >>> parts.target_names
    ['good', 'hole', 'missing part', 'scratch', 'stain']
    """
    _check_whole("n_samples", n_samples, 1)
    _check_whole("image_size", image_size, 16)
    _check_whole("start", start, 0)
    _check_real("defect_rate", defect_rate, 1.0)
    _check_real("variation", variation, None)
    _check_real("noise", noise, None)
    if layout not in LAYOUTS:
        raise ValueError(f"layout must be one of {sorted(LAYOUTS)}, got {layout!r}.")
    kinds = _check_kinds(defects)
    sizes = _check_sizes(defect_size)
    if isinstance(random_state, Integral):
        seed = int(random_state)
        if seed < 0:
            raise ValueError(f"random_state must be >= 0, got {random_state!r}.")
    else:
        seed = int(check_random_state(random_state).randint(2**31))

    n_components = len(LAYOUTS[layout])
    n, first = int(n_samples), int(start) // BLOCK
    blocks = range(first, (int(start) + n - 1) // BLOCK + 1)
    images = np.empty((n, image_size, image_size, 3), dtype=np.uint8)
    masks = np.empty((n, image_size, image_size), dtype=bool)
    components = np.empty((n, image_size, image_size), dtype=np.int8)
    drawn = []
    for block in blocks:
        facts = draw_facts(seed, block, n_components, kinds, float(defect_rate), sizes, float(variation))
        low, high = max(int(start), block * BLOCK), min(int(start) + n, (block + 1) * BLOCK)
        own = slice(low - block * BLOCK, high - block * BLOCK)
        grain = block_generator(seed, block, 3, version=1).standard_normal(
            (BLOCK, image_size, image_size, 3), dtype=np.float32
        )[own]
        for lo in range(0, len(grain), _CHUNK):
            rows = slice(lo, lo + _CHUNK)
            place = slice(low - int(start) + lo, min(low - int(start) + lo + _CHUNK, high - int(start)))
            canvas, masks[place], components[place] = draw_parts(facts[own][rows], LAYOUTS[layout], image_size)
            canvas += float(noise) * grain[rows]
            images[place] = np.clip(canvas + 0.5, 0, 255).astype(np.uint8)
        drawn.append(facts[own])
    whole = PartFacts(
        **{field.name: np.concatenate([getattr(part, field.name) for part in drawn]) for field in fields(PartFacts)}
    )
    return Bunch(
        images=images,
        target=np.array([*DEFECTS, "good"])[whole.defect],
        target_names=sorted(["good", *(DEFECTS[kind] for kind in kinds)]),
        masks=masks,
        component_map=components,
        facts=whole,
    )


def draw_facts(
    seed: int,
    block: int,
    n_components: int,
    kinds: NDArray,
    defect_rate: float,
    sizes: tuple[float, float],
    variation: float,
) -> PartFacts:
    """Facts of one aligned block of pictures: the same random numbers are drawn whatever is asked for."""
    rng = block_generator(seed, block, 3)
    pose, light = rng.uniform(-1.0, 1.0, (BLOCK, 3)), rng.uniform(-1.0, 1.0, (BLOCK, 3))
    is_defective = rng.random(BLOCK) < defect_rate
    kind = kinds[(rng.random(BLOCK) * len(kinds)).astype(np.intp)]
    component = (rng.random(BLOCK) * n_components).astype(np.intp)
    size = sizes[0] + (sizes[1] - sizes[0]) * rng.random(BLOCK)
    defect = np.where(is_defective, kind, -1)
    return PartFacts(
        shift=variation * _SHIFT * pose[:, :2],
        turn=variation * _TURN * pose[:, 2],
        light=variation * _LIGHT * light + [1.0, 0.0, 0.0],
        defect=defect,
        missing=np.where(defect == DEFECTS.index("missing part"), component, -1),
        size=size,
        centre=rng.uniform(0.2, 0.8, (BLOCK, 2)),
        angle=rng.uniform(0.0, np.pi, BLOCK),
        waves=rng.random((BLOCK, _N_WAVES, 2)) * [0.16, 2.0 * np.pi],
        index=np.arange(block * BLOCK, (block + 1) * BLOCK),
    )


def draw_parts(facts: PartFacts, layout: Sequence[_Component], side: int) -> tuple[NDArray, NDArray, NDArray]:
    """Pictures without noise (n, side, side, 3), masks of the defects, component maps."""
    pixels = ((np.arange(side) + 0.5) / side).astype(np.float32)
    y, x = pixels[None, :, None], pixels[None, None, :]  # of the picture
    u, v = _part_coordinates(facts, x, y)
    n = len(facts)
    canvas = np.broadcast_to(_rgb(_TABLE), (n, side, side, 3)).copy()
    pattern = 1.0 + 0.1 * np.sin(2 * np.pi * _TILES * u) * np.sin(2 * np.pi * _TILES * v)
    board = _box(u - 0.5, v - 0.5, _BOARD_HALF, _BOARD_HALF) * side
    _paint(canvas, board, pattern[..., None] * _rgb(_BOARD), side)

    components = np.zeros((n, side, side), dtype=np.int8)
    masks = np.zeros((n, side, side), dtype=bool)
    for k, (shape, cx, cy, half_width, half_height, color) in enumerate(layout):
        if shape == "disc":
            distance = np.hypot(u - cx, v - cy) - half_width
        else:
            distance = _box(u - cx, v - cy, half_width, half_height)
        there = (facts.missing != k)[:, None, None]
        components[(distance < 0) & there] = k + 1
        masks |= (distance < 0) & ~there
        edge = 0.7 + 0.3 * np.clip(-distance / 0.02, 0.0, 1.0)  # darker towards the rim
        _paint(canvas, np.where(there, distance * side, 1.0), edge[..., None] * _rgb(color), side)

    for kind, signed_distance in ((0, _scratch), (1, _hole), (3, _stain)):
        rows = np.flatnonzero(facts.defect == kind)
        if len(rows) == 0:
            continue
        distance = signed_distance(facts[rows], x, y, side) * side
        under = canvas[rows]
        _paint(under, distance, _defect_color(kind, under), side)
        canvas[rows] = under
        masks[rows] = distance < 0
    factor, across, down = (facts.light[:, i, None, None].astype(np.float32) for i in range(3))
    canvas *= (factor + across * (x - 0.5) + down * (y - 0.5))[..., None]
    return canvas, masks, components


def _rgb(color: tuple[int, int, int]) -> NDArray:
    return np.array(color, dtype=np.float32)


def _part_coordinates(facts: PartFacts, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray]:
    """Where the pixels lie on the part, which is turned about its centre and then shifted."""
    dx = x - 0.5 - facts.shift[:, 0, None, None].astype(np.float32)
    dy = y - 0.5 - facts.shift[:, 1, None, None].astype(np.float32)
    cos = np.cos(facts.turn).astype(np.float32)[:, None, None]
    sin = np.sin(facts.turn).astype(np.float32)[:, None, None]
    return cos * dx + sin * dy + 0.5, cos * dy - sin * dx + 0.5


def _box(x: NDArray, y: NDArray, half_width: float, half_height: float) -> NDArray:
    return np.maximum(np.abs(x) - half_width, np.abs(y) - half_height)


def _paint(canvas: NDArray, distance: NDArray, color: NDArray, side: int) -> None:
    """Cover the canvas where the signed distance, in pixels, is negative; edges are smoothed over one pixel."""
    canvas += np.clip(0.5 - distance, 0.0, 1.0)[..., None] * (color - canvas)


def _from_centre(facts: PartFacts, x: NDArray, y: NDArray) -> tuple[NDArray, NDArray, NDArray]:
    """Pixels from the centre of the defect, and its size."""
    size = facts.size[:, None, None].astype(np.float32)
    centre = facts.centre.astype(np.float32)
    return x - centre[:, 0, None, None], y - centre[:, 1, None, None], size


def _scratch(facts: PartFacts, x: NDArray, y: NDArray, side: int) -> NDArray:
    """Distance to a line of round ends, at least one pixel wide."""
    dx, dy, size = _from_centre(facts, x, y)
    cos = np.cos(facts.angle).astype(np.float32)[:, None, None]
    sin = np.sin(facts.angle).astype(np.float32)[:, None, None]
    along, beside = cos * dx + sin * dy, cos * dy - sin * dx
    beyond = np.maximum(np.abs(along) - 0.5 * _SCRATCH_LENGTH * size, 0.0)
    return np.hypot(beyond, beside) - np.maximum(0.5 * _SCRATCH_WIDTH * size, 0.55 / side)


def _hole(facts: PartFacts, x: NDArray, y: NDArray, side: int) -> NDArray:
    dx, dy, size = _from_centre(facts, x, y)
    return np.hypot(dx, dy) - 0.5 * size


def _stain(facts: PartFacts, x: NDArray, y: NDArray, side: int) -> NDArray:
    """Radial distance to a wavy outline."""
    dx, dy, size = _from_centre(facts, x, y)
    direction = np.arctan2(dy, dx)
    radius = np.ones_like(direction)
    for wave in range(_N_WAVES):
        amplitude, phase = (facts.waves[:, wave, i, None, None].astype(np.float32) for i in range(2))
        radius += amplitude * np.sin((wave + 2) * direction + phase)
    return np.hypot(dx, dy) - 0.5 * _STAIN_WIDTH * size * radius


def _defect_color(kind: int, under: NDArray) -> NDArray:
    """What a defect makes of the surface below it."""
    if DEFECTS[kind] == "hole":
        return np.broadcast_to(_rgb(_HOLE), under.shape)
    if DEFECTS[kind] == "stain":
        return under + _STAIN_OPACITY * (_rgb(_STAIN) - under)
    bright = under.mean(axis=-1, keepdims=True) > 118.0
    return np.broadcast_to(np.where(bright, np.float32(_DARK), np.float32(_BRIGHT)), under.shape)


def _check_whole(name: str, value: object, low: int) -> None:
    if not isinstance(value, Integral) or int(value) < low:
        raise ValueError(f"{name} must be an integer >= {low}, got {value!r}.")


def _check_real(name: str, value: object, high: float | None) -> None:
    if not isinstance(value, Real) or not 0.0 <= float(value) <= (np.inf if high is None else high):
        raise ValueError(f"{name} must be a number {'>= 0' if high is None else f'in [0, {high:g}]'}, got {value!r}.")


def _check_kinds(defects: str | Sequence[str]) -> NDArray:
    names = DEFECTS if isinstance(defects, str) and defects == "all" else defects
    if isinstance(names, str) or not len(names) or any(name not in DEFECTS for name in names):
        raise ValueError(f'defects must be "all" or a list of some of {list(DEFECTS)}, got {defects!r}.')
    return np.array(sorted({DEFECTS.index(name) for name in names}))


def _check_sizes(defect_size: tuple[float, float]) -> tuple[float, float]:
    sizes = np.asarray(defect_size, dtype=np.float64) if np.size(defect_size) == 2 else np.array([1.0, 0.0])
    low, high = sizes.ravel()
    if not 0.0 < low <= high <= 0.5:
        raise ValueError(
            f"defect_size must be two numbers, the smallest and the largest, in (0, 0.5]; got {defect_size!r}."
        )
    return float(low), float(high)
