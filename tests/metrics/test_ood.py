"""Out-of-distribution measures against counting, scikit-learn and the code that others publish with."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from skclip.metrics import fpr_at_tpr, ood_aupr, ood_auroc


def scores(n=200, m=150, decimals=None, shift=1.0, seed=0):
    rng = np.random.default_rng(seed)
    inside, outside = rng.normal(shift, 1.0, n), rng.normal(0.0, 1.0, m)
    return (inside, outside) if decimals is None else (inside.round(decimals), outside.round(decimals))


def fpr_at_closest_recall(inside, outside, level):
    """Transcription of the function handed on from outlier exposure."""
    labels = np.concatenate([np.ones(len(inside)), np.zeros(len(outside))])
    values = np.concatenate([inside, outside])
    order = np.argsort(values, kind="mergesort")[::-1]
    values, labels = values[order], labels[order]
    ends = np.r_[np.where(np.diff(values))[0], len(labels) - 1]
    tps = np.cumsum(labels)[ends]
    fps = 1 + ends - tps
    recall = tps / tps[-1]
    last = tps.searchsorted(tps[-1])
    backwards = slice(last, None, -1)
    recall, fps = recall[backwards], fps[backwards]
    return fps[np.argmin(np.abs(recall - level))] / len(outside)


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_auroc_is_counting_pairs(decimals):
    inside, outside = scores(decimals=decimals)
    wins = (inside[:, None] > outside).mean() + 0.5 * (inside[:, None] == outside).mean()
    assert ood_auroc(inside, outside) == pytest.approx(wins, abs=1e-14)
    truth = np.r_[np.ones(len(inside)), np.zeros(len(outside))]
    assert ood_auroc(inside, outside) == pytest.approx(roc_auc_score(truth, np.r_[inside, outside]), abs=1e-12)


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_aupr_is_average_precision(decimals):
    inside, outside = scores(decimals=decimals)
    truth, both = np.r_[np.ones(len(inside)), np.zeros(len(outside))], np.r_[inside, outside]
    assert ood_aupr(inside, outside) == pytest.approx(average_precision_score(truth, both), abs=1e-12)
    expected = average_precision_score(1 - truth, -both)
    assert ood_aupr(inside, outside, positive="out") == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("n", [1, 7, 20, 21, 100, 101, 999])
@pytest.mark.parametrize("tpr", [0.5, 0.9, 0.95, 1.0])
def test_at_least_keeps_at_least(n, tpr):
    inside, outside = scores(n=n, seed=n)
    found = fpr_at_tpr(inside, outside, tpr=tpr)
    threshold = np.quantile(inside, round(1 - tpr, 12), method="lower")
    assert np.mean(inside >= threshold) >= tpr
    assert found == np.mean([score >= threshold for score in outside])
    # no more than one picture beyond what is needed
    assert np.mean(inside > threshold) < tpr + 1 / n


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize(("n", "m"), [(200, 150), (13, 40), (1, 5)])
@pytest.mark.parametrize("level", [0.5, 0.95])
def test_closest_is_the_published_code(decimals, n, m, level):
    for seed in range(5):
        inside, outside = scores(n, m, decimals=decimals, seed=seed)
        expected = fpr_at_closest_recall(inside, outside, level)
        assert fpr_at_tpr(inside, outside, tpr=level, rule="closest") == pytest.approx(expected)


def test_the_rules_can_differ():
    # 12 of 13 are closer to 0.95 than 13 of 13 are, but too few
    inside, outside = np.arange(1.0, 14.0), [1.0, 0.5]
    assert fpr_at_tpr(inside, outside, rule="at_least") == 0.5
    assert fpr_at_tpr(inside, outside, rule="closest") == 0.0


def test_limits():
    inside, outside = scores()
    assert ood_auroc(inside, outside) + ood_auroc(-inside, -outside) == pytest.approx(1.0)
    assert ood_auroc(inside, outside) + ood_auroc(outside, inside) == pytest.approx(1.0)
    assert ood_auroc(inside, inside) == 0.5
    assert ood_auroc(np.ones(5), np.ones(3)) == 0.5
    assert ood_aupr(np.ones(5), np.ones(3)) == 5 / 8
    for rule in ("at_least", "closest"):
        assert fpr_at_tpr(np.ones(5), np.ones(3), rule=rule) == 1.0
        assert fpr_at_tpr(inside + 100, outside, rule=rule) == 0.0
        assert fpr_at_tpr(inside, outside + 100, rule=rule) == 1.0
    assert ood_auroc(inside + 100, outside) == ood_aupr(inside + 100, outside) == 1.0


@pytest.mark.parametrize("transform", [np.exp, lambda s: 3 * s - 7, np.arctan, lambda s: s.astype(np.float32)])
def test_increasing_maps_change_nothing(transform):
    inside, outside = scores()
    for measure in (
        ood_auroc,
        ood_aupr,
        fpr_at_tpr,
        lambda *s: fpr_at_tpr(*s, rule="closest"),
        lambda *s: ood_aupr(*s, positive="out"),
    ):
        assert measure(transform(inside), transform(outside)) == pytest.approx(measure(inside, outside), abs=1e-12)


def test_bad_input():
    inside, outside = scores()
    for measure in (ood_auroc, ood_aupr, fpr_at_tpr):
        with pytest.raises(ValueError, match="scores_out is empty"):
            measure(inside, [])
        with pytest.raises(ValueError, match="scores_in must have 1 dimension; got shape"):
            measure(inside[:, None], outside)
        broken = outside.copy()
        broken[3] = np.inf
        with pytest.raises(ValueError, match=r"scores_out\[3\] is inf"):
            measure(inside, broken)
        with pytest.raises(ValueError, match="scores_in must hold numbers"):
            measure(["high", "low"], outside)
    with pytest.raises(ValueError, match=r"tpr must be in \[0, 1\], got 95"):
        fpr_at_tpr(inside, outside, tpr=95)
    with pytest.raises(ValueError, match="tpr must be above 0"):
        fpr_at_tpr(inside, outside, tpr=0)
    with pytest.raises(ValueError, match="rule must be one of"):
        fpr_at_tpr(inside, outside, rule="nearest")
    with pytest.raises(ValueError, match="positive must be one of"):
        ood_aupr(inside, outside, positive="known")


def test_a_share_that_is_a_whole_number_of_pictures_is_kept_exactly():
    # of 101 scores the 0.1 quantile is the eleventh, although 100 * (1 - 0.9) is a little less than 10
    inside = np.arange(101.0)
    assert fpr_at_tpr(inside, [9.5, 10.5], tpr=0.9) == 0.5
