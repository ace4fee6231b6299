"""Concept association bias: closed forms and the miniature world in which it is known."""

from __future__ import annotations

import numpy as np
import pytest

from skclip.metrics import cab_score, swap_rate
from skclip.utils._arrays import unit_rows


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    attributes = np.array(["red", "green", "blue", "yellow"])
    own, other, pred = (attributes[rng.integers(0, 4, 400)] for _ in range(3))
    return own, other, pred


def test_literal_formula(rows):
    own, other, pred = rows
    seen = [(a, b, p) for a, b, p in zip(own, other, pred) if a != b]
    accuracy, swaps = np.mean([a == p for a, _, p in seen]), np.mean([b == p for _, b, p in seen])
    assert cab_score(own, other, pred) == pytest.approx((swaps - accuracy + 1) / 2, abs=1e-15)
    assert swap_rate(own, other, pred) == pytest.approx(swaps)


def test_limits(rows):
    own, other, pred = rows
    assert cab_score(own, other, own) == 0.0
    assert cab_score(own, other, other) == 1.0
    assert cab_score(own, other, pred) == pytest.approx(1.0 - cab_score(other, own, pred))
    assert cab_score(own, other, np.full(400, "purple")) == 0.5
    coin = np.random.default_rng(1).random(400) < 0.5
    assert cab_score(own, other, np.where(coin, own, other)) == pytest.approx(0.5, abs=0.1)


def test_names_order_and_repeats_are_nothing(rows):
    own, other, pred = rows
    expected = cab_score(own, other, pred)
    renamed = [np.char.add(values, "ish") for values in rows]
    assert cab_score(*renamed) == expected
    order = np.random.default_rng(2).permutation(400)
    assert cab_score(own[order], other[order], pred[order]) == pytest.approx(expected)
    weights = np.random.default_rng(3).integers(0, 3, 400)
    many = np.repeat(np.arange(400), weights)
    for measure in (cab_score, swap_rate):
        assert measure(own, other, pred, sample_weight=weights) == pytest.approx(
            measure(own[many], other[many], pred[many])
        )
    # rows whose attributes agree say nothing
    same = np.full(50, "red")
    assert cab_score(np.r_[own, same], np.r_[other, same], np.r_[pred, same]) == expected


def bag_of_concepts(association, bound=0.0, n_objects=6, recolored=False):
    """Predictions for pictures ``o_a + c_a + o_b + c_b`` from prompts ``o_a + s c_a + c_attr``, all orthonormal."""
    n = n_objects
    basis = np.eye(2 * n + n * n)
    objects, colors, pairs = basis[:n], basis[n : 2 * n], basis[2 * n :].reshape(n, n, -1)
    shown = np.roll(np.arange(n), 2) if recolored else np.arange(n)
    prompts = unit_rows(
        np.stack(
            [objects[a] + association * colors[a] + colors[k] + bound * pairs[a, k] for a in range(n) for k in range(n)]
        )
    ).reshape(n, n, -1)
    a, b = np.array([(a, b) for a in range(n) for b in range(n) if a != b]).T
    pictures = unit_rows(
        objects[a] + colors[shown[a]] + objects[b] + colors[shown[b]]
        + bound * (pairs[a, shown[a]] + pairs[b, shown[b]])
    )  # fmt: skip
    cosines = np.einsum("nd,nkd->nk", pictures, prompts[a])
    rng = np.random.default_rng(0)
    tied = cosines > cosines.max(axis=1, keepdims=True) - 1e-9
    pred = np.array([rng.choice(np.flatnonzero(row)) for row in tied])
    return shown[a], shown[b], pred


@pytest.mark.parametrize("association", [0.1, 0.5, 1.0])
def test_association_makes_the_bias(association):
    assert cab_score(*bag_of_concepts(association)) == 1.0


def test_no_association_no_bias():
    assert cab_score(*bag_of_concepts(0.0)) == pytest.approx(0.5, abs=0.25)


def test_binding_removes_the_bias():
    assert cab_score(*bag_of_concepts(0.5, bound=1.0)) == 0.0
    assert cab_score(*bag_of_concepts(0.0, bound=0.3)) == 0.0


def test_bad_input(rows):
    own, other, pred = rows
    for measure in (cab_score, swap_rate):
        with pytest.raises(ValueError, match="agree in every row that counts"):
            measure(own, own, pred)
        with pytest.raises(ValueError, match="Different lengths: y_true_attr 400, y_other_attr 399"):
            measure(own, other[:-1], pred)
        with pytest.raises(ValueError, match="y_pred_attr holds numbers"):
            measure(own, other, np.arange(400))
        with pytest.raises(ValueError, match="zero"):
            measure(own, other, pred, sample_weight=np.zeros(400))
