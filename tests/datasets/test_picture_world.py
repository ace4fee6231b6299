import hashlib
import math

import numpy as np
import pytest

from skclip.datasets import make_picture_world
from skclip.datasets._language import (
    CAPTION_KINDS,
    NUMBERS,
    SHAPE_DESCRIPTIONS,
    SYNONYMS,
    position_word,
    relation_word,
    vocabulary,
    write_captions,
)
from skclip.datasets._render import SIGNED_DISTANCE
from skclip.datasets._scenes import (
    ALL_COLORS,
    ALL_SHAPES,
    BACKGROUNDS,
    HELD_OUT_PAIRS,
    RADII,
    SHAPES,
    SIZES,
    STYLES,
    TEXTURES,
    draw_scenes,
)

CANONICAL = {other: word for word, other in SYNONYMS.items()}


@pytest.fixture(scope="module")
def crowded():
    return make_picture_world(600, max_objects=4, held_out="include", styles="all", random_state=3)


def test_golden_hash_of_64_pictures():
    world = make_picture_world(64, max_objects=3, styles="all", random_state=0)
    facts = np.concatenate([world.scenes.shape.ravel(), world.scenes.color.ravel(), world.scenes.n_objects])
    assert hashlib.sha256(facts.astype(np.int16).tobytes()).hexdigest()[:16] == "693206b6f9439397"
    assert hashlib.sha256("".join(world.captions).encode()).hexdigest()[:16] == "27744bff1b7f088e"
    # Pixels pass through floating-point functions of the C library: a rounding may differ, a picture may not.
    weights = np.random.RandomState(0).rand(48, 48, 3)
    checksums = (world.images * weights).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(checksums[[0, 21, 42, 63]], [46.342, 57.971, 60.851, 109.391], atol=0.01)


def test_same_seed_same_pictures_other_seed_other_pictures():
    a, b, c = (make_picture_world(40, max_objects=3, random_state=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.images, b.images)
    assert a.captions == b.captions
    assert (a.images != c.images).any(axis=(1, 2, 3)).all()


@pytest.mark.parametrize("start", [0, 1, 255, 256, 300])
def test_picture_does_not_depend_on_n_or_start(start):
    choices = {"max_objects": 3, "styles": "all", "captions": "long", "paraphrase": True, "random_state": 5}
    whole = make_picture_world(700, **choices)
    part = make_picture_world(290, start=start, **choices)
    rows = slice(start, start + 290)
    np.testing.assert_array_equal(part.images, whole.images[rows])
    np.testing.assert_array_equal(part.id_map, whole.id_map[rows])
    assert part.captions == whole.captions[rows]
    assert part.target.tolist() == whole.target[rows].tolist()


def test_held_out_pairs_never_occur_and_can_be_asked_for():
    held = {" ".join(pair) for pair in HELD_OUT_PAIRS}
    assert len(held) == 8
    assert len({c for c, _ in HELD_OUT_PAIRS}) == len({s for _, s in HELD_OUT_PAIRS}) == 8
    world = make_picture_world(3000, max_objects=3, captions="all", random_state=1)
    assert held.isdisjoint(world.target)
    assert not any(pair in caption for caption in world.captions for pair in held)
    assert len(world.target_names) == 56
    only = make_picture_world(500, held_out="only", random_state=1)
    assert set(only.target) == held
    include = make_picture_world(3000, held_out="include", random_state=1)
    assert len(set(include.target)) == 64


def test_classes_are_balanced_within_binomial_bounds():
    n = 6400
    target = make_picture_world(n, image_size=16, held_out="include", random_state=2).target
    counts = np.unique(target, return_counts=True)[1]
    sigma = math.sqrt(n * (1 / 64) * (63 / 64))
    assert np.abs(counts - n / 64).max() < 4.5 * sigma


def test_id_map_agrees_with_boxes_and_scenes(crowded):
    scenes, side = crowded.scenes, 48
    assert (scenes.n_objects >= 1).all()
    for i in range(len(scenes)):
        for k in range(4):
            mask = crowded.id_map[i] == k + 1
            left, top, right, bottom = crowded.boxes[i, k]
            assert mask.any() == (k < scenes.n_objects[i])
            if mask.any():
                assert mask[top:bottom, left:right].sum() == mask.sum()
                assert mask[top].any()
                assert mask[bottom - 1].any()
                assert mask[:, left].any()
                assert mask[:, right - 1].any()
                reach = scenes.radius[i, k] * side * 1.15 + 1.5
                assert abs((left + right) / 2 - scenes.cx[i, k] * side) < reach
                assert right - left <= 2 * reach
                assert bottom - top <= 2 * reach


def test_objects_keep_their_distance_and_their_size_word(crowded):
    scenes = crowded.scenes
    assert (scenes.radius >= RADII[scenes.size, 0]).all()
    assert (scenes.radius <= RADII[scenes.size, 1]).all()
    for a in range(4):
        for b in range(a):
            both = scenes.n_objects > a
            gap = np.hypot(scenes.cx[:, a] - scenes.cx[:, b], scenes.cy[:, a] - scenes.cy[:, b])
            assert (gap > 0.95 * (scenes.radius[:, a] + scenes.radius[:, b]) - 1e-12)[both].all()


def _inside_star(x, y, points, inner):
    """Even-odd rule on the polygon's corners: an independent second opinion."""
    steps = np.arange(2 * points)
    radius = np.where(steps % 2 == 0, 1.0, inner)
    px, py = radius * np.sin(np.pi * steps / points), -radius * np.cos(np.pi * steps / points)
    inside = np.zeros(x.shape, dtype=bool)
    for i in range(len(px)):
        ax, ay, bx, by = px[i - 1], py[i - 1], px[i], py[i]
        crosses = (ay > y) != (by > y)
        with np.errstate(divide="ignore", invalid="ignore"):
            inside ^= crosses & (x < (bx - ax) * (y - ay) / (by - ay) + ax)
    return inside


@pytest.mark.parametrize(
    ("shape", "points", "inner", "dy"),
    [("star", 5, 0.42, 0.0), ("hexagon", 6, math.cos(math.pi / 6), 0.0), ("triangle", 3, 0.5, 0.15)],
)
def test_star_distance_against_point_in_polygon(shape, points, inner, dy):
    y, x = np.mgrid[-1.3:1.3:201j, -1.3:1.3:201j]
    distance = SIGNED_DISTANCE[shape](x, y)
    sure = np.abs(distance) > 1e-6
    np.testing.assert_array_equal((distance < 0)[sure], _inside_star(x, y - dy, points, inner)[sure])


def test_every_shape_is_its_own():
    y, x = np.mgrid[-1.1:1.1:101j, -1.1:1.1:101j]
    masks = {name: distance(x, y) < 0 for name, distance in SIGNED_DISTANCE.items()}
    assert set(masks) == set(ALL_SHAPES)
    for a in masks:
        assert 0.1 < masks[a].mean() < 0.75
        for b in masks:
            if a < b:
                overlap = (masks[a] & masks[b]).sum() / (masks[a] | masks[b]).sum()
                # hexagon and circle are near by intention
                assert overlap < (0.95 if {a, b} == {"circle", "hexagon"} else 0.82), (a, b)


def _scenes(n=400, seed=11, max_objects=3):
    pairs = np.array([(c, s) for c in range(8) for s in range(8)])
    return draw_scenes(
        n, seed=seed, start=0, min_objects=1, max_objects=max_objects, pairs=pairs, sizes=np.arange(5),
        textures=np.arange(4), backgrounds=np.arange(6), styles=np.arange(6),
    )  # fmt: skip


def _words(caption):
    return [CANONICAL.get(word, word) for word in caption.replace(",", " ").split()]


def _objects(words):
    """(colour, shape) pairs in reading order."""
    return [
        (words[i], words[i + 1]) for i in range(len(words) - 1) if words[i] in ALL_COLORS and words[i + 1] in ALL_SHAPES
    ]


@pytest.mark.parametrize("paraphrase", [False, True])
@pytest.mark.parametrize("kind", sorted(CAPTION_KINDS))
def test_captions_parse_back_to_the_facts(kind, paraphrase):
    scenes = _scenes()
    slot = (np.random.RandomState(0).rand(len(scenes)) * scenes.n_objects).astype(int)
    captions = write_captions(scenes, [kind] * len(scenes), slot=slot, paraphrase=paraphrase)
    known = set(vocabulary())
    for i, (caption, k) in enumerate(zip(captions, slot)):
        raw = caption.replace(",", " ").split()
        assert set(raw) <= known, caption
        words = _words(caption)
        n = scenes.n_objects[i]
        things = [(ALL_COLORS[scenes.color[i, j]], ALL_SHAPES[scenes.shape[i, j]]) for j in range(n)]
        spoken = _objects(words)
        if kind in ("short", "attr", "pos", "negated"):
            assert spoken == [things[k]], caption
        if kind == "color":
            assert things[k][0] in words
            assert not set(words) & set(ALL_SHAPES)
        if kind == "shape":
            assert things[k][1] in words
            assert not set(words) & set(ALL_COLORS)
        if kind == "description":
            assert any(phrase in caption for phrase in SHAPE_DESCRIPTIONS[things[k][1]])
            assert set(words) & set(ALL_COLORS) <= {things[k][0]}
        if kind == "attr":
            assert {SIZES[scenes.size[i, k]], TEXTURES[scenes.texture[i, k]]} <= set(words)
            assert BACKGROUNDS[scenes.background[i]] in words
        if kind == "pos":
            assert position_word(scenes.cx[i, k], scenes.cy[i, k]) in caption
        if kind == "rel" and n > 1:
            first, second = spoken
            assert first == things[k]
            others = [j for j in range(n) if j != k and things[j] == second]
            said = " ".join(words)
            assert any(
                relation_word(scenes.cx[i, k] - scenes.cx[i, j], scenes.cy[i, k] - scenes.cy[i, j]) in said
                for j in others
            ), caption
        if kind == "count":
            number = NUMBERS.index(next(word for word in words if word in NUMBERS))
            same = sum(shape == things[k][1] for _, shape in things)
            assert number == (n if "object" in caption else same), caption
        if kind == "all":
            assert spoken == things
        if kind == "long":
            assert spoken[:n] == things
            assert len(raw) <= 62
            for j in range(n):
                assert position_word(scenes.cx[i, j], scenes.cy[i, j]) in caption
                assert SIZES[scenes.size[i, j]] in words
        if kind == "negated":
            missing = words[words.index("no") + 1]
            assert missing in SHAPES
            assert missing not in [shape for _, shape in things]


def test_without_paraphrase_words_are_canonical_and_style_is_named():
    scenes = _scenes()
    captions = write_captions(scenes, ["short"] * len(scenes))
    assert not any(set(caption.split()) & set(CANONICAL) for caption in captions)
    for caption, style in zip(captions, scenes.style):
        word = STYLES[style]
        assert (word in caption) == (word in ("photo", "sketch", "dark", "blurry", "painting", "pixel"))


def test_another_version_rewrites_the_same_facts():
    scenes = _scenes(100)
    first, second = (write_captions(scenes, ["all"] * 100, paraphrase=True, version=v) for v in (0, 1))
    assert sum(a != b for a, b in zip(first, second)) > 60
    assert [_objects(_words(a)) for a in first] == [_objects(_words(b)) for b in second]


def test_styles_change_pixels_not_facts():
    photo = make_picture_world(50, styles=["photo"], random_state=4)
    for style in ("sketch", "dark", "blurry", "painting", "pixel"):
        other = make_picture_world(50, styles=[style], random_state=4)
        assert other.target.tolist() == photo.target.tolist()
        np.testing.assert_array_equal(other.id_map, photo.id_map)
        assert (other.images != photo.images).any(axis=(1, 2, 3)).all()


def test_noise_is_on_demand():
    clean = make_picture_world(20, noise=0, random_state=4).images.astype(int)
    noisy = make_picture_world(20, noise=30, random_state=4).images.astype(int)
    assert 15 < np.abs(clean - noisy).mean() < 30


def test_class_descriptions_name_the_colour_and_not_the_shape():
    world = make_picture_world(2, held_out="include")
    assert set(world.class_descriptions) == set(world.target_names)
    for name, sentences in world.class_descriptions.items():
        color, shape = name.split()
        assert len(sentences) >= 2
        assert all(color in sentence and shape not in sentence.split() for sentence in sentences)


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"n_samples": 0}, "n_samples"),
        ({"image_size": 8}, "image_size"),
        ({"max_objects": 5}, "max_objects"),
        ({"min_objects": 3, "max_objects": 2}, "max_objects"),
        ({"held_out": "maybe"}, "held_out"),
        ({"shapes": "round"}, "shapes"),
        ({"colors": ["red", "mauve"]}, "mauve"),
        ({"captions": "poem"}, "captions"),
        ({"noise": -1}, "noise"),
        ({"random_state": -3}, "random_state"),
        ({"colors": ["red"], "shapes": ["circle"], "held_out": "only"}, "pair"),
    ],
)
def test_bad_parameters_are_named(choice, message):
    with pytest.raises(ValueError, match=message):
        make_picture_world(**{"n_samples": 2, **choice})
