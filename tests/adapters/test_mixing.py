import numpy as np
import pytest

from skclip.adapters._mixing import HeldOut, best_alpha, most_accurate_alpha

BOUNDS = (1e-4, 1e4)


def test_best_alpha_ignores_how_sharp_the_text_is():
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 5, 2000)
    one_hot = np.eye(5)[codes]
    text, few = one_hot + rng.normal(size=(2000, 5)), one_hot + rng.normal(size=(2000, 5))
    found = [best_alpha([HeldOut(scale * text, few, codes, np.ones(2000))], (1e-4, 1e2)) for scale in (1.0, 10.0)]
    assert found[0] == pytest.approx(1.0, abs=0.15)  # both know equally much
    assert found[1] == pytest.approx(10 * found[0], rel=1e-2)
    useless = HeldOut(rng.normal(size=(2000, 5)), few, codes, np.ones(2000))
    assert best_alpha([useless], (1e-4, 1e2)) > 5
    assert best_alpha([HeldOut(text, useless.zero_shot, codes, np.ones(2000))], (1e-4, 1e2)) < 0.1


def _held_out(n=3000, classes=5, seed=0):
    """Two noisy views of the labels: the second is better, and four times as sharp."""
    rng = np.random.RandomState(seed)
    codes = rng.randint(classes, size=n)
    truth = np.eye(classes)[codes]
    text = truth + rng.normal(scale=0.9, size=truth.shape)
    few = 4 * (truth + rng.normal(scale=0.5, size=truth.shape))
    return text, few, codes


def _accuracy(text, few, codes, alpha):
    return np.mean((text + alpha * few).argmax(1) == codes)


def test_most_accurate_alpha_is_as_accurate_as_any():
    text, few, codes = _held_out()
    blocks = [HeldOut(text[part], few[part], codes[part], np.ones(1000)) for part in np.split(np.arange(3000), 3)]
    found = most_accurate_alpha(blocks, BOUNDS, tie_break=1.0)
    best = max(_accuracy(text, few, codes, alpha) for alpha in np.geomspace(*BOUNDS, 200))
    assert _accuracy(text, few, codes, found) >= best - 0.005
    assert best > max(_accuracy(text, few, codes, 0.0), _accuracy(np.zeros_like(text), few, codes, 1.0)) + 0.01


def test_most_accurate_alpha_leaves_out_what_is_useless():
    text, few, codes = _held_out()
    noise = np.random.RandomState(1).normal(size=few.shape)
    weights = np.ones(len(codes))
    assert most_accurate_alpha([HeldOut(text, noise, codes, weights)], BOUNDS, 1.0) < 0.3
    assert most_accurate_alpha([HeldOut(3 * noise, few, codes, weights)], BOUNDS, 1.0) > 2


@pytest.mark.parametrize("tie_break", [1e-3, 1.0, 1e3])
def test_ties_go_to_the_nearest(tie_break):
    codes = np.arange(4)
    certain = 10 * np.eye(4)
    found = most_accurate_alpha([HeldOut(certain, certain, codes, np.ones(4))], BOUNDS, tie_break)
    assert found == pytest.approx(tie_break)


def test_weights_are_repeats():
    text, few, codes = _held_out(60)
    counts = np.random.RandomState(2).randint(1, 4, size=60)
    rows = np.repeat(np.arange(60), counts)
    weighted = most_accurate_alpha([HeldOut(text, few, codes, counts.astype(float))], BOUNDS, 1.0)
    repeated = most_accurate_alpha([HeldOut(text[rows], few[rows], codes[rows], np.ones(len(rows)))], BOUNDS, 1.0)
    assert weighted == repeated


def test_terms_that_both_mislead_leave_the_text_alone():
    codes = np.arange(4)
    wrong = np.roll(np.eye(4), 1, axis=1)
    assert best_alpha([HeldOut(wrong, wrong, codes, np.ones(4))], BOUNDS) == BOUNDS[0]
