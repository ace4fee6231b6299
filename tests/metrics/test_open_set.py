"""Open-set classification against loops, its paper and the code of others."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score

from skclip.metrics import ood_auroc, oscr_curve, oscr_score


def draw(n=80, m=60, decimals=None, seed=0):
    """Labels, labels predicted (the sure ones more often right), scores of the known, scores of the unknown."""
    rng = np.random.default_rng(seed)
    truth = rng.choice(["cat", "dog", "owl"], n)
    inside, outside = rng.normal(1.0, 1.0, n), rng.normal(0.0, 1.0, m)
    right = rng.random(n) < 1.0 / (1.0 + np.exp(-inside - 0.5))
    predicted = np.where(right, truth, np.where(truth == "cat", "dog", "cat"))
    return (
        truth,
        predicted,
        *((inside, outside) if decimals is None else (inside.round(decimals), outside.round(decimals))),
    )


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_curve_is_counting(decimals):
    truth, predicted, inside, outside = draw(decimals=decimals)
    curve = oscr_curve(truth, predicted, inside, outside)
    np.testing.assert_array_equal(curve.threshold, [np.inf, *sorted({*inside, *outside}, reverse=True)])
    for threshold, ccr, fpr in zip(curve.threshold, curve.ccr, curve.fpr, strict=True):
        kept = sum(s >= threshold and t == p for s, t, p in zip(inside, truth, predicted, strict=True))
        assert ccr == kept / len(inside)
        assert fpr == sum(s >= threshold for s in outside) / len(outside)
    assert curve.ccr[0] == curve.fpr[0] == 0.0
    assert curve.ccr[-1] == accuracy_score(truth, predicted)
    assert curve.fpr[-1] == 1.0


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_area_is_counting_pairs(decimals):
    for seed in range(5):
        truth, predicted, inside, outside = draw(decimals=decimals, seed=seed)
        area = np.mean(
            [
                [(t == p) * ((s > o) + 0.5 * (s == o)) for o in outside]
                for s, t, p in zip(inside, truth, predicted, strict=True)
            ]
        )
        assert oscr_score(truth, predicted, inside, outside) == pytest.approx(area, abs=1e-14)
        assert oscr_curve(truth, predicted, inside, outside).area == oscr_score(truth, predicted, inside, outside)


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_area_is_auroc_where_every_prediction_is_right(decimals):
    truth, predicted, inside, outside = draw(decimals=decimals)
    assert oscr_score(truth, truth, inside, outside) == pytest.approx(ood_auroc(inside, outside), abs=1e-14)
    found = oscr_score(truth, predicted, inside, outside)
    assert found < min(ood_auroc(inside, outside), accuracy_score(truth, predicted))


def test_limits():
    truth, predicted, inside, outside = draw()
    accuracy = accuracy_score(truth, predicted)
    assert oscr_score(truth, predicted, inside + 100, outside) == pytest.approx(accuracy)
    assert oscr_score(truth, predicted, inside - 100, outside) == 0.0
    assert oscr_score(truth, predicted, np.ones(80), np.ones(60)) == pytest.approx(accuracy / 2)
    assert oscr_score(truth, np.full(80, "elk"), inside, outside) == 0.0
    assert oscr_score(truth, predicted, np.exp(inside), np.exp(outside)) == pytest.approx(
        oscr_score(truth, predicted, inside, outside), abs=1e-14
    )
    # scores that know what is wrong cost the detector nothing
    wise = np.where(truth == predicted, inside + 100, inside - 100)
    assert oscr_score(truth, predicted, wise, outside) == pytest.approx(accuracy)


def test_the_paper_counts_ties_against_the_detector():
    """Dhamija et al. count the known strictly above the threshold, the unknown at or above it."""

    def of_the_paper(truth, predicted, inside, outside):
        return np.mean([np.mean((inside > threshold) & (truth == predicted)) for threshold in outside])

    truth, predicted, inside, outside = draw()
    ours = oscr_score(truth, predicted, inside, outside)
    assert of_the_paper(truth, predicted, inside, outside) == pytest.approx(ours, abs=1e-12)
    rounded = truth, predicted, inside.round(), outside.round()
    assert of_the_paper(*rounded) < oscr_score(*rounded) - 0.05


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_area_of_pytorch_ood(decimals):
    torch = pytest.importorskip("torch")
    from skclip._backbones._open_clip import import_open_clip

    import_open_clip()
    theirs = pytest.importorskip("pytorch_ood.metrics")
    truth, predicted, inside, outside = draw(decimals=decimals)
    codes, guesses = (np.searchsorted(["cat", "dog", "owl"], labels) for labels in (truth, predicted))
    expected = theirs.oscr_score(
        -torch.tensor(np.r_[inside, outside]),
        torch.tensor(np.r_[guesses, np.zeros(60, dtype=int)]),
        torch.tensor(np.r_[codes, np.full(60, -1)]),
    )
    assert oscr_score(truth, predicted, inside, outside) == pytest.approx(expected, abs=1e-12)


def test_bad_input():
    truth, predicted, inside, outside = draw()
    with pytest.raises(ValueError, match="Different lengths: y_true 80, y_pred 79"):
        oscr_score(truth, predicted[1:], inside, outside)
    with pytest.raises(ValueError, match="Different lengths: y_true 80, scores_in 79"):
        oscr_score(truth, predicted, inside[1:], outside)
    with pytest.raises(ValueError, match="scores_out is empty"):
        oscr_curve(truth, predicted, inside, [])
    with pytest.raises(ValueError, match="Labels of one kind are needed"):
        oscr_curve(truth, np.zeros(80, dtype=int), inside, outside)
    with pytest.raises(ValueError, match=r"scores_in\[0\] is nan"):
        oscr_curve(truth, predicted, np.full(80, np.nan), outside)
