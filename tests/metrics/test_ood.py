"""Out-of-distribution measures against counting, scikit-learn and the code that others publish with."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

from skclip.metrics import detection_error, fpr_at_tpr, near_far_average, ood_aupr, ood_auroc


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


def labels_and_scores(inside, outside):
    return np.r_[np.ones(len(inside)), np.zeros(len(outside))], np.r_[inside, outside]


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize(("n", "m"), [(200, 150), (100, 20), (7, 40), (1, 5)])
@pytest.mark.parametrize("level", [0.5, 0.9, 0.95, 1.0])
def test_first_is_the_first_point_of_the_curve(decimals, n, m, level):
    for seed in range(5):
        inside, outside = scores(n, m, decimals=decimals, seed=seed)
        for positive, curve in (
            ("in", labels_and_scores(inside, outside)),
            ("out", labels_and_scores(-outside, -inside)),
        ):
            fpr, tpr, _ = roc_curve(*curve, drop_intermediate=False)
            expected = fpr[np.flatnonzero(tpr >= level - 1e-9)[0]]
            assert fpr_at_tpr(inside, outside, tpr=level, rule="first", positive=positive) == pytest.approx(expected)


@pytest.mark.parametrize("rule", ["at_least", "first", "closest"])
def test_the_least_share_is_one_picture(rule):
    inside, outside = scores(n=5)
    assert fpr_at_tpr(inside, outside, tpr=1e-12, rule=rule) == np.mean(outside >= inside.max())


def test_first_and_at_least_differ_by_one_picture_at_most():
    # 95 of 100 are enough; the lower quantile lies between two scores and keeps 96
    inside = np.arange(100.0)
    assert fpr_at_tpr(inside, [4.5], rule="at_least") == 1.0
    assert fpr_at_tpr(inside, [4.5], rule="first") == 0.0
    for n in (10, 99, 100, 101, 1000):
        inside, outside = scores(n=n, seed=n)
        assert fpr_at_tpr(inside, inside, rule="at_least") - fpr_at_tpr(inside, inside, rule="first") <= 1.001 / n
        assert fpr_at_tpr(inside, outside, rule="at_least") >= fpr_at_tpr(inside, outside, rule="first")


@pytest.mark.parametrize("rule", ["at_least", "first", "closest"])
def test_positive_out_exchanges_the_roles(rule):
    inside, outside = scores(decimals=1)
    found = fpr_at_tpr(inside, outside, rule=rule, positive="out")
    assert found == fpr_at_tpr(-outside, -inside, rule=rule)
    assert found != fpr_at_tpr(inside, outside, rule=rule)


@pytest.mark.parametrize("decimals", [None, 1, 0])
@pytest.mark.parametrize("prior", [0.5, 0.2, 1.0])
def test_detection_error_is_the_least_of_all_thresholds(decimals, prior):
    for seed in range(5):
        inside, outside = scores(60, 40, decimals=decimals, seed=seed)
        expected = min(
            prior * np.mean(inside < t) + (1 - prior) * np.mean(outside >= t) for t in [*inside, *outside, np.inf]
        )
        assert detection_error(inside, outside, prior=prior) == pytest.approx(expected, abs=1e-14)


def test_detection_error_is_one_minus_detection_accuracy():
    """Lee et al. take the largest accuracy over the points of the ROC curve, both kinds counted alike."""
    inside, outside = scores()
    fpr, tpr, _ = roc_curve(*labels_and_scores(inside, outside))
    assert detection_error(inside, outside) == pytest.approx(1.0 - np.max(0.5 * (tpr + 1.0 - fpr)))


@pytest.mark.parametrize("rule", ["at_least", "first", "closest"])
def test_detection_error_at_tpr(rule):
    inside, outside = scores()
    fpr = fpr_at_tpr(inside, outside, rule=rule)
    kept = fpr_at_tpr(inside, inside, rule=rule)
    found = detection_error(inside, outside, tpr=0.95, rule=rule)
    assert found == pytest.approx(0.5 * (1 - kept) + 0.5 * fpr)
    # 190 of 200 are 0.95 exactly: then it is the formula of the paper
    if rule != "at_least":
        assert found == pytest.approx(0.5 * 0.05 + 0.5 * fpr)
    assert found >= detection_error(inside, outside)
    assert detection_error(inside, outside, tpr=0.95, rule=rule, prior=0.8) == pytest.approx(
        0.8 * (1 - kept) + 0.2 * fpr
    )


def test_limits_of_the_detection_error():
    inside, outside = scores()
    assert detection_error(inside + 100, outside) == 0.0
    assert detection_error(inside - 100, outside) == 0.5
    assert detection_error(np.ones(5), np.ones(3)) == 0.5
    assert detection_error(np.ones(5), np.ones(3), prior=0.9) == pytest.approx(0.1)
    assert detection_error(inside, outside, prior=0.0) == detection_error(inside, outside, prior=1.0) == 0.0
    assert detection_error(np.exp(inside), np.exp(outside)) == detection_error(inside, outside)
    with pytest.raises(ValueError, match=r"prior must be in \[0, 1\], got 2"):
        detection_error(inside, outside, prior=2)
    with pytest.raises(ValueError, match="rule must be one of 'at_least', 'first', 'closest'"):
        detection_error(inside, outside, rule="nearest")
    with pytest.raises(ValueError, match="tpr must be above 0"):
        detection_error(inside, outside, tpr=0.0)
    with pytest.raises(ValueError, match="scores_in is empty"):
        detection_error([], outside)


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_linear_interpolation_is_the_trapezoidal_rule(decimals):
    inside, outside = scores(decimals=decimals)
    for positive, curve in (("in", labels_and_scores(inside, outside)), ("out", labels_and_scores(-outside, -inside))):
        precision, recall, _ = precision_recall_curve(*curve)
        found = ood_aupr(inside, outside, positive=positive, interpolation="linear")
        assert found == pytest.approx(auc(recall, precision), abs=1e-12)
    with pytest.raises(ValueError, match="interpolation must be one of"):
        ood_aupr(inside, outside, interpolation="cubic")


def test_linear_interpolation_flatters():
    # one threshold, which finds as many of both: a straight line from precision 1
    assert ood_aupr(np.ones(4), np.ones(4)) == 0.5
    assert ood_aupr(np.ones(4), np.ones(4), interpolation="linear") == 0.75


@pytest.fixture(scope="module")
def published():
    """Figures of another package for scores in our sense, which it wants negated."""
    pytest.importorskip("torch")
    from skclip._backbones._open_clip import import_open_clip

    import_open_clip()
    theirs = pytest.importorskip("pytorch_ood.metrics")
    import torch

    def measure(inside, outside):
        metrics = theirs.OODMetrics()
        truth = torch.cat([torch.zeros(len(inside)), -torch.ones(len(outside))]).long()
        return metrics.update(-torch.tensor(np.r_[inside, outside]), truth).compute()

    return measure


@pytest.mark.parametrize("decimals", [None, 1, 0])
def test_figures_of_pytorch_ood(published, decimals):
    inside, outside = scores(decimals=decimals)
    theirs = published(inside, outside)
    assert ood_auroc(inside, outside) == pytest.approx(theirs["AUROC"], abs=1e-12)
    for positive in ("in", "out"):
        expected = theirs[f"AUPR-{positive.upper()}"]
        assert ood_aupr(inside, outside, positive=positive, interpolation="linear") == pytest.approx(
            expected, abs=1e-12
        )
    found = fpr_at_tpr(inside, outside, rule="first", positive="out")
    assert found == pytest.approx(theirs["FPR95TPR"], abs=1e-12)


def test_where_pytorch_ood_prints_something_else(published):
    """Its FPR finds 95 percent of the unknown, not of the known; its AUPR interpolates."""
    inside, outside = scores(decimals=0)
    theirs = published(inside, outside)
    assert abs(fpr_at_tpr(inside, outside, rule="first") - theirs["FPR95TPR"]) > 0.02
    assert abs(ood_aupr(inside, outside) - theirs["AUPR-IN"]) > 1e-3
    assert abs(ood_aupr(inside, outside, positive="out") - theirs["AUPR-OUT"]) > 1e-3


def test_near_and_far_count_alike():
    values = {"SSB-hard": 0.7, "iNaturalist": 0.9, "NINCO": 0.8, "Textures": 0.95, "OpenImage-O": 0.85}
    found = near_far_average(values, near=["SSB-hard", "NINCO"])
    assert found.near == pytest.approx(0.75)
    assert found.far == pytest.approx(0.9)
    assert found.mean == pytest.approx((0.75 + 0.9) / 2)
    assert found.mean != pytest.approx(np.mean(list(values.values())))
    assert near_far_average(values, near=["SSB-hard"], far=["Textures"]).mean == pytest.approx(0.825)


def test_a_single_group_is_the_mean():
    values = {"a": 0.2, "b": 0.6}
    only_far = near_far_average(values, near=[])
    assert np.isnan(only_far.near)
    assert only_far.far == only_far.mean == pytest.approx(0.4)
    only_near = near_far_average(values, near=["a", "b"])
    assert np.isnan(only_near.far)
    assert only_near.mean == pytest.approx(0.4)
    assert np.isnan(near_far_average({"a": np.nan, "b": 0.6}, near=["a"]).mean)


def test_bad_names_of_sets():
    values = {"a": 0.2, "b": 0.6}
    with pytest.raises(ValueError, match=r"near names 'c', which is none of the sets \['a', 'b'\]"):
        near_far_average(values, near=["c"])
    with pytest.raises(ValueError, match="far names 'c'"):
        near_far_average(values, near=["a"], far=["c"])
    with pytest.raises(ValueError, match="'a' is both near and far"):
        near_far_average(values, near=["a"], far=["a", "b"])
    with pytest.raises(ValueError, match="near must be a sequence of names, got the text 'ab'"):
        near_far_average(values, near="ab")
    with pytest.raises(ValueError, match="name no set"):
        near_far_average(values, near=[], far=[])
