"""`make_picture_world`: captioned pictures with exact ground truth."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from sklearn.utils import Bunch, check_random_state

from skclip.datasets import _scenes
from skclip.datasets._language import CAPTION_KINDS, SHAPE_DESCRIPTIONS, write_captions
from skclip.datasets._render import render
from skclip.datasets._scenes import ALL_COLORS, ALL_SHAPES, HELD_OUT_PAIRS, MAX_OBJECTS, draw_scenes


def make_picture_world(
    n_samples: int = 1000,
    *,
    image_size: int = 48,
    min_objects: int = 1,
    max_objects: int = 1,
    held_out: Literal["exclude", "only", "include"] = "exclude",
    shapes: str | Sequence[str] = "known",
    colors: str | Sequence[str] = "known",
    sizes: str | Sequence[str] = "all",
    textures: str | Sequence[str] = "all",
    backgrounds: str | Sequence[str] = "all",
    styles: str | Sequence[str] = ("photo",),
    captions: str = "short",
    paraphrase: bool = False,
    noise: float = 4.0,
    start: int = 0,
    random_state: int | np.random.RandomState | None = 0,
) -> Bunch:
    """Draw captioned pictures of coloured shapes in which everything is known exactly.

    A stand-in for photographs where a right answer is needed without a download. The bundled models
    ``"skclip-tiny"`` and ``"skclip-tiny-rn"`` see this world.

    Parameters
    ----------
    n_samples : int, default=1000
        Number of pictures.
    image_size : int, default=48
        Side of the square pictures in pixels, at least 16.
    min_objects, max_objects : int, default=1
        Number of objects in a picture, drawn uniformly; at most 4. An object that finds no room is left
        out of the picture and of its facts.
    held_out : {"exclude", "only", "include"}, default="exclude"
        Eight of the 64 known (colour, shape) pairs are kept out of the training of the bundled models:
        never drawn ("exclude"), nothing else drawn ("only"), or drawn like all others ("include").
    shapes : {"known", "unseen", "all"} or sequence of str, default="known"
        Known: circle, square, triangle, star, cross, ring, moon, heart. Unseen by the bundled models:
        hexagon, arrow, diamond, tee.
    colors : {"known", "unseen", "all"} or sequence of str, default="known"
        Known: red, green, blue, yellow, purple, orange, cyan, pink. Unseen: brown, lime.
    sizes : "all" or sequence of str, default="all"
        Of tiny, small, medium, large, huge. Pictures with several objects use the smaller ones.
    textures : "all" or sequence of str, default="all"
        Of plain, striped, dotted, checkered.
    backgrounds : "all" or sequence of str, default="all"
        Of gray, black, white, sky, grass, brick.
    styles : "all" or sequence of str, default=("photo",)
        Of photo, sketch, dark, blurry, painting, pixel. The bundled models were trained on photo alone.
    captions : str, default="short"
        Kind of caption: "short" ("a photo of a red circle"), "color", "shape" (one fact only),
        "description" (the shape in other words), "attr" (size, texture, background), "pos" (place in the
        picture), "rel" (two objects; falls back to "pos" for one), "count", "all" (every object),
        "long" (everything known), "negated" (what is there, and one shape that is not).
    paraphrase : bool, default=False
        Vary openings and words (disc for circle, crimson for red) without changing the meaning.
    noise : float, default=4.0
        Standard deviation of the pixel noise, of 255.
    start : int, default=0
        Position of the first picture in the endless sequence of `random_state`: picture i is the same
        whatever `n_samples` and `start` are, so train and test slices never overlap by accident.
    random_state : int, RandomState instance or None, default=0
        An int gives the same pictures on every call.

    Returns
    -------
    world : :class:`~sklearn.utils.Bunch`
        images : ndarray of shape (n_samples, image_size, image_size, 3), uint8
            The pictures.
        captions : list of str
            One per picture.
        target : ndarray of shape (n_samples,), str
            "colour shape" of the first object.
        target_names : list of str
            The pairs that can occur, sorted.
        id_map : ndarray of shape (n_samples, image_size, image_size), int8
            0 = background, k + 1 = object k where it covers more than half of the pixel.
        boxes : ndarray of shape (n_samples, max_objects, 4), int
            (left, top, right, bottom) in pixels, right and bottom exclusive, of what is visible of each
            object; zeros where there is none.
        scenes : object
            The scene table: arrays ``n_objects, shape, color, size, texture, radius, cx, cy, angle,
            background, style``.
        class_descriptions : dict of str to list of str
            Sentences true of each class of `target`, without its name.

    Examples
    --------
    >>> from skclip.datasets import make_picture_world
    >>> world = make_picture_world(3, random_state=0)
    >>> world.images.shape
    (3, 48, 48, 3)
    """
    _check_number("n_samples", n_samples, 1, None)
    _check_number("image_size", image_size, 16, None)
    _check_number("min_objects", min_objects, 1, MAX_OBJECTS)
    _check_number("max_objects", max_objects, min_objects, MAX_OBJECTS)
    _check_number("start", start, 0, None)
    if not isinstance(noise, Real) or noise < 0:
        raise ValueError(f"noise must be a number >= 0, got {noise!r}.")
    if captions not in CAPTION_KINDS:
        raise ValueError(f"captions must be one of {sorted(CAPTION_KINDS)}, got {captions!r}.")
    if isinstance(random_state, Integral):
        seed = int(random_state)
        if seed < 0:
            raise ValueError(f"random_state must be >= 0, got {random_state!r}.")
    else:
        seed = int(check_random_state(random_state).randint(2**31))

    shape_codes = _choose("shapes", shapes, ALL_SHAPES, known=_scenes.SHAPES, unseen=_scenes.UNSEEN_SHAPES)
    color_codes = _choose("colors", colors, ALL_COLORS, known=_scenes.COLORS, unseen=_scenes.UNSEEN_COLORS)
    pairs = _pairs(color_codes, shape_codes, held_out)
    scenes = draw_scenes(
        n_samples,
        seed=seed,
        start=start,
        min_objects=min_objects,
        max_objects=max_objects,
        pairs=pairs,
        sizes=_choose("sizes", sizes, _scenes.SIZES),
        textures=_choose("textures", textures, _scenes.TEXTURES),
        backgrounds=_choose("backgrounds", backgrounds, _scenes.BACKGROUNDS),
        styles=_choose("styles", styles, _scenes.STYLES),
    )
    images, id_map = render(scenes, image_size, float(noise))
    names = sorted(f"{ALL_COLORS[c]} {ALL_SHAPES[s]}" for c, s in pairs)
    return Bunch(
        images=images,
        captions=write_captions(scenes, [captions] * n_samples, paraphrase=paraphrase),
        target=scenes.pair,
        target_names=names,
        id_map=id_map,
        boxes=boxes_of(id_map, max_objects),
        scenes=scenes,
        class_descriptions={name: _describe(name) for name in names},
    )


def boxes_of(id_map: NDArray, n_slots: int) -> NDArray:
    """(n, n_slots, 4) boxes (left, top, right, bottom; end exclusive) of the ids 1 .. n_slots."""
    boxes = np.zeros((len(id_map), n_slots, 4), dtype=np.intp)
    for slot in range(n_slots):
        mask = id_map == slot + 1
        seen = mask.any(axis=(1, 2))
        for axis, (low, high) in ((1, (0, 2)), (2, (1, 3))):
            line = mask.any(axis=axis)
            boxes[seen, slot, low] = line.argmax(axis=1)[seen]
            boxes[seen, slot, high] = line.shape[1] - line[:, ::-1].argmax(axis=1)[seen]
    return boxes


def _describe(pair: str) -> list[str]:
    color, shape = pair.split()
    return [f"{phrase}, colored {color}" for phrase in SHAPE_DESCRIPTIONS[shape]]


def _pairs(colors: NDArray, shapes: NDArray, held_out: str) -> NDArray:
    pairs = np.array([(c, s) for c in colors for s in shapes])
    held = {(ALL_COLORS.index(c), ALL_SHAPES.index(s)) for c, s in HELD_OUT_PAIRS}
    is_held = np.array([tuple(pair) in held for pair in pairs.tolist()])
    if held_out == "exclude":
        pairs = pairs[~is_held]
    elif held_out == "only":
        pairs = pairs[is_held]
    elif held_out != "include":
        raise ValueError(f'held_out must be "exclude", "only" or "include", got {held_out!r}.')
    if len(pairs) == 0:
        raise ValueError(f"No (colour, shape) pair is left with held_out={held_out!r} and these shapes and colors.")
    return pairs


def _choose(name: str, value: str | Sequence[str], everything: tuple[str, ...], **groups: tuple[str, ...]) -> NDArray:
    """Indices into `everything` of the words that a parameter allows."""
    groups = {"all": everything, **groups}
    if isinstance(value, str):
        if value not in groups:
            raise ValueError(f"{name} must be one of {sorted(groups)} or a list of {list(everything)}, got {value!r}.")
        words: Sequence[str] = groups[value]
    else:
        words = list(value)
    unknown = [word for word in words if word not in everything]
    if unknown or not len(words):
        raise ValueError(f"{name} must name at least one of {list(everything)} and nothing else, got {value!r}.")
    return np.array(sorted({everything.index(word) for word in words}))


def _check_number(name: str, value: object, low: int, high: int | None) -> None:
    if not isinstance(value, Integral) or int(value) < low or (high is not None and int(value) > high):
        bounds = f">= {low}" if high is None else f"in [{low}, {high}]"
        raise ValueError(f"{name} must be an integer {bounds}, got {value!r}.")
