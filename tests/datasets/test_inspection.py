from __future__ import annotations

import hashlib
import math

import numpy as np
import pytest

from skclip.datasets import make_inspection_parts
from skclip.datasets._inspection import DEFECTS, LAYOUTS

KINDS = sorted(DEFECTS)
SIDE = 32


@pytest.fixture(scope="module", params=["single", "multi"])
def parts(request):
    world = make_inspection_parts(100, layout=request.param, image_size=SIDE, random_state=3)
    world.layout = request.param
    return world


def pixel_centres(side):
    return [(i, j, (j + 0.5) / side, (i + 0.5) / side) for i in range(side) for j in range(side)]


def on_part(facts, n, x, y):
    """Undo shift and turn, point by point."""
    dx, dy = x - 0.5 - facts.shift[n][0], y - 0.5 - facts.shift[n][1]
    c, s = math.cos(-facts.turn[n]), math.sin(-facts.turn[n])
    return c * dx - s * dy + 0.5, s * dx + c * dy + 0.5


def inside_component(component, u, v):
    shape, cx, cy, half_width, half_height, _ = component
    if shape == "disc":
        return math.hypot(u - cx, v - cy) < half_width
    return abs(u - cx) < half_width and abs(v - cy) < half_height


def near_polyline(points, x, y, width):
    return min(math.hypot(x - px, y - py) for px, py in points) < width


def in_polygon(corners, x, y):
    """Ray casting."""
    inside = False
    for (x0, y0), (x1, y1) in zip(corners, corners[1:] + corners[:1]):
        if (y0 > y) != (y1 > y) and x < x0 + (y - y0) / (y1 - y0) * (x1 - x0):
            inside = not inside
    return inside


def brute_force_mask(world, n, side):
    """A second opinion: from the facts by other means than the renderer's signed distances."""
    facts, kind = world.facts, world.target[n]
    mask = np.zeros((side, side), dtype=bool)
    if kind == "good":
        return mask
    (cx, cy), size = facts.centre[n], facts.size[n]
    if kind == "scratch":
        steps = np.linspace(-1.5 * size, 1.5 * size, 300)
        line = [(cx + t * math.cos(facts.angle[n]), cy + t * math.sin(facts.angle[n])) for t in steps]
        width = max(0.07 * size, 0.55 / side)
    if kind == "stain":
        outline = []
        for a in np.linspace(0, 2 * np.pi, 360, endpoint=False):
            wave = sum(facts.waves[n, k, 0] * math.sin((k + 2) * a + facts.waves[n, k, 1]) for k in range(3))
            radius = 0.7 * size * (1 + wave)
            outline.append((cx + radius * math.cos(a), cy + radius * math.sin(a)))
    for i, j, x, y in pixel_centres(side):
        if kind == "hole":
            mask[i, j] = (x - cx) ** 2 + (y - cy) ** 2 < (size / 2) ** 2
        elif kind == "scratch":
            mask[i, j] = near_polyline(line, x, y, width)
        elif kind == "stain":
            mask[i, j] = in_polygon(outline, x, y)
        else:
            component = LAYOUTS[world.layout][facts.missing[n]]
            mask[i, j] = inside_component(component, *on_part(facts, n, x, y))
    return mask


@pytest.mark.parametrize("kind", ["good", *KINDS])
def test_masks_are_the_defects(kind, parts):
    chosen = np.flatnonzero(parts.target == kind)[:2]
    assert len(chosen) == 2
    for n in chosen:
        expected = brute_force_mask(parts, n, SIDE)
        assert np.sum(expected != parts.masks[n]) <= 1  # a pixel centre on the edge
        assert expected.any() == (kind != "good")


def test_component_map_is_the_layout(parts):
    for n in np.flatnonzero(parts.target != "stain")[:6]:
        expected = np.zeros((SIDE, SIDE), dtype=int)
        for i, j, x, y in pixel_centres(SIDE):
            u, v = on_part(parts.facts, n, x, y)
            for k, component in enumerate(LAYOUTS[parts.layout]):
                if k != parts.facts.missing[n] and inside_component(component, u, v):
                    expected[i, j] = k + 1
        assert np.sum(expected != parts.component_map[n]) <= 2


def test_pictures_differ_from_flawless_ones_exactly_where_the_mask_says():
    for layout in LAYOUTS:
        choices = {"layout": layout, "noise": 0.0, "random_state": 4, "image_size": 64}
        damaged = make_inspection_parts(100, defect_rate=1.0, **choices)
        flawless = make_inspection_parts(100, defect_rate=0.0, **choices)
        assert set(flawless.target) == {"good"}
        assert not flawless.masks.any()
        change = np.abs(damaged.images.astype(int) - flawless.images).max(axis=-1)
        # one pixel of smoothed edge belongs to both sides
        near = damaged.masks.copy()
        for axis in (1, 2):
            near |= np.roll(near, 1, axis) | np.roll(near, -1, axis)
        assert change[~near].max() == 0
        assert np.mean(change[damaged.masks] > 15) > 0.97
        assert change.max(axis=(1, 2)).min() > 30
        assert damaged.masks.any(axis=(1, 2)).all()


@pytest.mark.parametrize("start", [0, 1, 255, 256, 300])
def test_picture_does_not_depend_on_n_or_start(start):
    whole = make_inspection_parts(620, image_size=24, random_state=5)
    part = make_inspection_parts(290, image_size=24, start=start, random_state=5)
    rows = slice(start, start + 290)
    np.testing.assert_array_equal(part.images, whole.images[rows])
    np.testing.assert_array_equal(part.masks, whole.masks[rows])
    np.testing.assert_array_equal(part.component_map, whole.component_map[rows])
    assert part.target.tolist() == whole.target[rows].tolist()
    np.testing.assert_array_equal(part.facts.index, whole.facts.index[rows])


def test_same_seed_same_pictures_other_seed_other_pictures():
    a, b, c = (make_inspection_parts(40, random_state=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(a.images, b.images)
    assert (a.images != c.images).any(axis=(1, 2, 3)).all()


def test_golden_facts_and_checksums():
    world = make_inspection_parts(64, random_state=0)
    facts = np.concatenate([world.facts.defect, world.facts.missing]).astype(np.int16)
    assert hashlib.sha256(facts.tobytes()).hexdigest()[:16] == "613c1fc415ace496"
    # pixels pass through floating-point functions of the C library: a rounding may differ, a picture may not
    weights = np.random.RandomState(0).rand(48, 48, 3)
    checksums = (world.images * weights).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(checksums[[0, 21, 42, 63]], [57.257, 48.551, 53.025, 51.955], atol=0.01)


def test_shares_of_defects():
    target = make_inspection_parts(4000, image_size=16, defect_rate=0.3, random_state=1).target
    assert abs(np.mean(target == "good") - 0.7) < 4 * math.sqrt(0.21 / 4000)
    for kind in KINDS:
        assert abs(np.mean(target == kind) - 0.075) < 4 * math.sqrt(0.07 / 4000)
    few = make_inspection_parts(300, image_size=16, defects=["hole", "stain"], defect_rate=1.0)
    assert set(few.target) == {"hole", "stain"}
    assert few.target_names == ["good", "hole", "stain"]


def test_sizes_and_variation():
    world = make_inspection_parts(300, defect_size=(0.2, 0.3), defects=["hole"], defect_rate=1.0, image_size=64)
    diameter = np.sqrt(world.masks.sum(axis=(1, 2)) * 4 / np.pi) / 64
    np.testing.assert_allclose(diameter, world.facts.size, atol=0.012)
    assert world.facts.size.min() > 0.2
    assert world.facts.size.max() < 0.3
    still = make_inspection_parts(20, variation=0.0, noise=0.0, defect_rate=0.0)
    assert (still.images == still.images[0]).all()
    moved = make_inspection_parts(20, noise=0.0, defect_rate=0.0)
    assert (moved.images != moved.images[0]).any(axis=(1, 2, 3))[1:].all()


def test_each_component_goes_missing():
    missing = make_inspection_parts(300, image_size=16, defects=["missing part"], defect_rate=1.0).facts.missing
    assert set(missing) == set(range(8))


def test_bad_input():
    for params, message in [
        ({"n_samples": 0}, "n_samples must be an integer >= 1, got 0"),
        ({"image_size": 8}, "image_size must be an integer >= 16"),
        ({"layout": "grid"}, r"layout must be one of \['multi', 'single'\], got 'grid'"),
        ({"defects": "holes"}, "defects must be"),
        ({"defects": ["dent"]}, r"defects must be.*got \['dent'\]"),
        ({"defects": []}, "defects must be"),
        ({"defect_rate": 1.5}, r"defect_rate must be a number in \[0, 1\], got 1.5"),
        ({"defect_size": (0.3, 0.2)}, r"defect_size must be two numbers.*got \(0.3, 0.2\)"),
        ({"defect_size": 0.2}, "defect_size must be two numbers"),
        ({"noise": -1}, "noise must be a number >= 0"),
        ({"variation": float("nan")}, "variation must be a number >= 0"),
        ({"start": -1}, "start must be an integer >= 0"),
        ({"random_state": -1}, "random_state must be >= 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            make_inspection_parts(**{"n_samples": 4, **params})
