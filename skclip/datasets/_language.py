"""Captions of a scene table: every sentence is true of its picture, and every fact can be read back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from skclip.datasets._scenes import (
    ALL_COLORS,
    ALL_SHAPES,
    BACKGROUNDS,
    BLOCK,
    COLORS,
    SHAPES,
    SIZES,
    STYLES,
    TEXTURES,
    Scenes,
    block_generator,
)

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

SYNONYMS = {
    "circle": "disc", "cross": "plus", "ring": "hoop", "moon": "crescent",
    "red": "crimson", "green": "emerald", "blue": "azure", "purple": "violet", "cyan": "turquoise", "pink": "rose",
    "small": "little", "large": "big", "huge": "giant", "above": "over", "below": "under",
    "gray": "grey", "plain": "solid",
}  # fmt: skip

SHAPE_DESCRIPTIONS = {
    "circle": ("a round filled shape", "a shape without corners", "a round shape with no hole"),
    "square": ("a shape with four equal sides", "a straight shape with four corners", "a block with four corners"),
    "triangle": ("a shape with three corners", "a pointed shape with three sides", "a shape with three straight sides"),
    "star": ("a shape with five points", "a pointed shape with five tips", "a shape with five sharp tips"),
    "cross": ("a shape with four arms", "two bars that meet in the middle", "a straight shape with four arms"),
    "ring": ("a round shape with a hole", "a round band that is empty inside", "a shape with a hole in the middle"),
    "moon": ("a curved shape with two tips", "a round shape with a bite", "a curved shape open on one side"),
    "heart": ("a shape with two lobes and one tip", "a round shape with a tip below", "a shape with two round lobes"),
    "hexagon": ("a shape with six corners", "a shape with six equal sides"),
    "arrow": ("a pointed head on a bar", "a shape that points to one side"),
    "diamond": ("a tall shape with four corners", "a narrow shape standing on a tip"),
    "tee": ("one bar on top of another", "a bar with a long top"),
}

_OPENINGS = ("a photo of {}", "a picture of {}", "an image of {}", "{}", "there is {}", "this is {}")
_STYLE_OPENINGS = {
    "photo": ("a photo of {}",),
    "sketch": ("a sketch of {}", "a line drawing of {}"),
    "dark": ("a dark photo of {}",),
    "blurry": ("a blurry photo of {}",),
    "painting": ("a painting of {}",),
    "pixel": ("a pixel picture of {}",),
}
_DIGIT_CAPTIONS = ("a photo of the digit {}", "the digit {}", "a handwritten {}", "a scanned digit {}",
                   "a handwritten digit {}", "a picture of the number {}", "the number {}")  # fmt: skip
_N_DRAWS = 48


class _Words:
    """Word choices of one caption: a row of uniform numbers, spent from left to right.

    Without `paraphrase` the first wording is always taken.
    """

    def __init__(self, draws: NDArray, paraphrase: bool) -> None:
        self._draws = iter(draws)
        self._paraphrase = paraphrase

    def pick(self, options: Sequence[str]) -> str:
        return options[int(next(self._draws) * len(options))] if self._paraphrase else options[0]

    def chance(self, probability: float) -> bool:
        return self._paraphrase and next(self._draws) < probability

    def any(self, n: int) -> int:
        """A number below n that is a matter of content, not of wording."""
        return int(next(self._draws) * n)

    def say(self, word: str) -> str:
        other = SYNONYMS.get(word)
        return other if other is not None and self.chance(0.25) else word


def position_word(x: float, y: float) -> str:
    """Where in the 3 x 3 grid a point of the unit square lies."""
    row = ("top", "", "bottom")[min(int(y * 3), 2)]
    column = ("left", "", "right")[min(int(x * 3), 2)]
    return f"{row} {column}".strip() or "center"


def relation_word(dx: float, dy: float) -> str:
    """Where the first object lies relative to the second, given ``first - second``; y points down."""
    if abs(dx) > abs(dy):
        return "left of" if dx < 0 else "right of"
    return "above" if dy < 0 else "below"


def write_captions(
    scenes: Scenes, kinds: Sequence[str], *, slot: NDArray | None = None, paraphrase: bool = False, version: int = 0
) -> list[str]:
    """One caption per picture.

    Parameters
    ----------
    kinds : sequence of str, of length n
        Keys of `CAPTION_KINDS`.
    slot : ndarray of shape (n,), int, optional
        The object that captions about one object speak of; the first by default.
    paraphrase : bool, default=False
        Vary openings and words, meaning unchanged.
    version : int, default=0
        Another version draws other words.
    """
    if slot is None:
        slot = np.zeros(len(scenes), dtype=np.intp)
    blocks = scenes.index // BLOCK
    draws = np.empty((len(scenes), _N_DRAWS))
    for block in np.unique(blocks):
        rows = blocks == block
        rng = block_generator(scenes.seed, int(block), 2, version)
        draws[rows] = rng.random((BLOCK, _N_DRAWS))[scenes.index[rows] - block * BLOCK]
    return [CAPTION_KINDS[kind](scenes, i, int(slot[i]), _Words(draws[i], paraphrase)) for i, kind in enumerate(kinds)]


def digit_caption(digit: int, choice: int = 0) -> str:
    """Caption of a picture of a scanned digit; `choice` selects the wording."""
    return _DIGIT_CAPTIONS[choice % len(_DIGIT_CAPTIONS)].format(NUMBERS[digit])


def _a(phrase: str) -> str:
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def _color(scenes: Scenes, i: int, k: int) -> str:
    return ALL_COLORS[scenes.color[i, k]]


def _shape(scenes: Scenes, i: int, k: int) -> str:
    return ALL_SHAPES[scenes.shape[i, k]]


def _thing(scenes: Scenes, i: int, k: int, words: _Words) -> str:
    return f"{words.say(_color(scenes, i, k))} {words.say(_shape(scenes, i, k))}"


def _full_thing(scenes: Scenes, i: int, k: int, words: _Words) -> str:
    size, texture = SIZES[scenes.size[i, k]], TEXTURES[scenes.texture[i, k]]
    return f"{words.say(size)} {words.say(texture)} {_thing(scenes, i, k, words)}"


def _place(scenes: Scenes, i: int, k: int) -> str:
    word = position_word(scenes.cx[i, k], scenes.cy[i, k])
    return f"in the {word}" if word == "center" else f"at the {word}"


def _ground(scenes: Scenes, i: int, words: _Words) -> str:
    return f"on {_a(words.say(BACKGROUNDS[scenes.background[i]]))} background"


def _open(scenes: Scenes, i: int, phrase: str, words: _Words) -> str:
    style = STYLES[scenes.style[i]]
    openings = _OPENINGS if style == "photo" else _STYLE_OPENINGS[style]
    return words.pick(openings).format(phrase)


def _short(scenes: Scenes, i: int, k: int, words: _Words) -> str:
    return _open(scenes, i, _a(_thing(scenes, i, k, words)), words)


def _color_only(scenes: Scenes, i: int, k: int, words: _Words) -> str:
    color = words.say(_color(scenes, i, k))
    return _open(scenes, i, words.pick((f"{_a(color)} object", f"{_a(color)} shape", f"something {color}")), words)


def _shape_only(scenes: Scenes, i: int, k: int, words: _Words) -> str:
    return _open(scenes, i, _a(words.say(_shape(scenes, i, k))), words)


def _description(scenes: Scenes, i: int, k: int, words: _Words) -> str:
    phrase = words.pick(SHAPE_DESCRIPTIONS[_shape(scenes, i, k)])
    if words.chance(0.3):
        color = words.say(_color(scenes, i, k))
        return words.pick((f"{_a(color)} object , {phrase}", f"{phrase} , colored {color}"))
    return phrase


def _attributes(scenes: Scenes, i: int, k: int, words: _Words) -> str:
    phrase = _a(_full_thing(scenes, i, k, words))
    ground = _ground(scenes, i, words)
    if words.chance(0.3):
        return f"{ground} , {phrase}"
    return _open(scenes, i, f"{phrase} {ground}", words)


def _positions(scenes: Scenes, i: int, k: int, words: _Words) -> str:
    where = _place(scenes, i, k)
    if words.chance(0.3):
        return f"{where} , {_a(_thing(scenes, i, k, words))}"
    verb = words.pick(("", " shown"))
    return _open(scenes, i, f"{_a(_thing(scenes, i, k, words))}{verb} {where}", words)


def _relation(scenes: Scenes, i: int, k: int, words: _Words) -> str:
    if scenes.n_objects[i] < 2:
        return _positions(scenes, i, k, words)
    other = (k + 1 + words.any(int(scenes.n_objects[i]) - 1)) % int(scenes.n_objects[i])
    return _open(scenes, i, _a(_relation_phrase(scenes, i, k, other, words)), words)


def _relation_phrase(scenes: Scenes, i: int, k: int, other: int, words: _Words) -> str:
    word = relation_word(scenes.cx[i, k] - scenes.cx[i, other], scenes.cy[i, k] - scenes.cy[i, other])
    return f"{_thing(scenes, i, k, words)} {words.say(word)} {_a(_thing(scenes, i, other, words))}"


def _count(scenes: Scenes, i: int, k: int, words: _Words) -> str:
    n = int(scenes.n_objects[i])
    same = int((scenes.shape[i, :n] == scenes.shape[i, k]).sum())
    if words.chance(0.4):
        noun = words.say(_shape(scenes, i, k))
        plural = {"cross": "crosses", "plus": "pluses"}.get(noun, noun + "s")
        return _open(scenes, i, f"{NUMBERS[same]} {noun if same == 1 else plural}", words)
    return _open(scenes, i, f"{NUMBERS[n]} {'object' if n == 1 else 'objects'}", words)


def _everything(scenes: Scenes, i: int, k: int, words: _Words) -> str:
    """Background first, then every object with its place, then how each lies to the next."""
    n = int(scenes.n_objects[i])
    parts = [_ground(scenes, i, words)]
    parts += [f"{_a(_full_thing(scenes, i, j, words))} {_place(scenes, i, j)}" for j in range(n)]
    if n == 2:
        parts.append("the " + _relation_phrase(scenes, i, 0, 1, words))
    elif n == 3:
        parts.append("the " + _relation_phrase(scenes, i, 0, 2, words))
    return " , ".join(parts)


def _all_things(scenes: Scenes, i: int, k: int, words: _Words) -> str:
    n = int(scenes.n_objects[i])
    return _open(scenes, i, " and ".join(_a(_thing(scenes, i, j, words)) for j in range(n)), words)


def _negated(scenes: Scenes, i: int, k: int, words: _Words) -> str:
    present = {_shape(scenes, i, j) for j in range(int(scenes.n_objects[i]))}
    absent = [shape for shape in SHAPES if shape not in present]
    missing = absent[words.any(len(absent))]
    return _open(scenes, i, f"{_a(_thing(scenes, i, k, words))} and no {words.say(missing)}", words)


CAPTION_KINDS: dict[str, Callable[[Scenes, int, int, _Words], str]] = {
    "short": _short,
    "color": _color_only,
    "shape": _shape_only,
    "description": _description,
    "attr": _attributes,
    "pos": _positions,
    "rel": _relation,
    "count": _count,
    "all": _all_things,
    "long": _everything,
    "negated": _negated,
}


def vocabulary() -> tuple[str, ...]:
    """Every word that captions can contain, sorted."""
    words: set[str] = {
        "object",
        "objects",
        "shape",
        "something",
        "colored",
        "shown",
        "and",
        "no",
        "the",
        "on",
        "in",
        "at",
    }
    words |= {
        "background",
        "left",
        "right",
        "of",
        "above",
        "below",
        "top",
        "bottom",
        "center",
        "a",
        "an",
        "crosses",
        "pluses",
    }
    for group in (ALL_SHAPES, COLORS, ALL_COLORS, SIZES, TEXTURES, BACKGROUNDS, STYLES, NUMBERS):
        words |= set(group)
    words |= set(SYNONYMS.values())
    words |= {word + "s" for word in ALL_SHAPES + tuple(SYNONYMS[s] for s in SHAPES if s in SYNONYMS)}
    sentences = (
        [s for phrases in SHAPE_DESCRIPTIONS.values() for s in phrases] + list(_OPENINGS) + list(_DIGIT_CAPTIONS)
    )
    sentences += [s for openings in _STYLE_OPENINGS.values() for s in openings]
    for sentence in sentences:
        words |= set(sentence.replace("{}", " ").split())
    return tuple(sorted(words))
