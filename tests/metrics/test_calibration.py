"""Calibration measures against literal loops, scikit-learn, closed forms and limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import brier_score_loss, log_loss

from skclip.metrics import (
    adaptive_calibration_error,
    area_under_risk_coverage,
    brier_score_multiclass,
    confidence_correctness_correlation,
    expected_calibration_error,
    negative_log_likelihood,
    overconfidence_rate,
    reliability_curve,
    risk_coverage_curve,
)
from skclip.utils import SkclipWarning

OF_CONFIDENCE = [
    expected_calibration_error,
    lambda *args, **kwargs: expected_calibration_error(*args, strategy="quantile", **kwargs),
    lambda *args, **kwargs: expected_calibration_error(*args, norm="max", **kwargs),
    adaptive_calibration_error,
    overconfidence_rate,
    confidence_correctness_correlation,
    area_under_risk_coverage,
    lambda *args, **kwargs: risk_coverage_curve(*args, **kwargs).excess_area,
]
OF_PROBABILITIES = [*OF_CONFIDENCE, negative_log_likelihood, brier_score_multiclass]


def predictions(n=300, n_classes=4, seed=0, sharpness=1.5):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, n_classes))
    y = (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)
    return y, softmax(sharpness * logits, axis=1)


def loop_ece(y, prob, n_bins, norm="l1"):
    gaps, shares = [], []
    for b in range(n_bins):
        low, high = b / n_bins, (b + 1) / n_bins
        inside = [i for i in range(len(y)) if low < max(prob[i]) <= high or (b == 0 and max(prob[i]) == 0)]
        if inside:
            accuracy = np.mean([np.argmax(prob[i]) == y[i] for i in inside])
            gaps.append(abs(accuracy - np.mean([max(prob[i]) for i in inside])))
            shares.append(len(inside) / len(y))
    return max(gaps) if norm == "max" else float(np.dot(gaps, shares))


def loop_equal_mass(values, hits, n_bins):
    """Bins end where at least i / n_bins of the rows are reached; equal values stay together."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    bins, current, total = [], [], 0.0
    next_cut = 1
    for position, i in enumerate(order):
        current.append(i)
        is_last_of_value = position + 1 == len(order) or values[order[position + 1]] != values[i]
        if is_last_of_value and (position + 1) * n_bins >= next_cut * len(values):
            bins.append(current)
            current = []
            while (position + 1) * n_bins >= next_cut * len(values):
                next_cut += 1
    for members in bins:
        total += len(members) * abs(np.mean([hits[i] for i in members]) - np.mean([values[i] for i in members]))
    return total / len(values)


@pytest.mark.parametrize("n_bins", [1, 2, 10, 15])
@pytest.mark.parametrize("norm", ["l1", "max"])
def test_ece_is_the_literal_loop(n_bins, norm):
    y, prob = predictions()
    assert expected_calibration_error(y, prob, n_bins=n_bins, norm=norm) == pytest.approx(
        loop_ece(y, prob, n_bins, norm), abs=1e-12
    )


@pytest.mark.parametrize("n_bins", [1, 3, 15])
@pytest.mark.parametrize("digits", [1, 8])
def test_quantile_bins_are_the_literal_loop(n_bins, digits):
    y, prob = predictions()
    confidence, correct = prob.max(axis=1).round(digits), prob.argmax(axis=1) == y
    expected = loop_equal_mass(confidence, correct, n_bins)
    found = expected_calibration_error(correct, confidence, n_bins=n_bins, strategy="quantile")
    assert found == pytest.approx(expected, abs=1e-12)
    assert adaptive_calibration_error(correct, confidence, n_bins=n_bins) == found


def test_adaptive_error_is_the_mean_over_classes():
    y, prob = predictions()
    expected = np.mean([loop_equal_mass(prob[:, k], y == k, 15) for k in range(4)])
    assert adaptive_calibration_error(y, prob) == pytest.approx(expected, abs=1e-12)


def test_two_bins_by_hand():
    # (0, 0.5]: confidence 0.4, right half of the time; (0.5, 1]: confidence 0.9, right always
    correct, confidence = [True, False, True, True], [0.4, 0.4, 0.9, 0.9]
    assert expected_calibration_error(correct, confidence, n_bins=2) == pytest.approx(0.1)
    assert expected_calibration_error(correct, confidence, n_bins=2, norm="max") == pytest.approx(0.1)
    curve = reliability_curve(correct, confidence, n_bins=2)
    np.testing.assert_allclose(curve.confidence, [0.4, 0.9])
    np.testing.assert_allclose(curve.accuracy, [0.5, 1.0])
    np.testing.assert_allclose(curve.edges, [0.0, 0.5, 1.0])


def test_bins_are_closed_above_and_zero_is_in_the_first():
    curve = reliability_curve([False, True, True], [0.0, 0.5, 1.0], n_bins=2)
    np.testing.assert_array_equal(curve.count, [2.0, 1.0])
    # every edge of every bin belongs to the bin that it ends
    edges = np.linspace(0.0, 1.0, 16)[1:]
    np.testing.assert_array_equal(reliability_curve(np.ones(15, bool), edges).count, np.ones(15))


def test_empty_bins_are_nan_and_do_not_count():
    curve = reliability_curve([True, False], [0.9, 0.9], n_bins=10)
    assert np.isnan(curve.accuracy[:8]).all()
    assert curve.count.sum() == 2
    assert expected_calibration_error([True, False], [0.9, 0.9], n_bins=10) == pytest.approx(0.4)


@pytest.mark.parametrize("n_bins", [1, 5, 10, 15])
def test_constant_confidence(n_bins):
    correct = np.arange(100) % 2 == 0
    for strategy in ("uniform", "quantile"):
        error = expected_calibration_error(correct, np.full(100, 0.9), n_bins=n_bins, strategy=strategy)
        assert error == pytest.approx(0.4)


def test_calibration_limits():
    y, prob = predictions()
    right = np.eye(4)[y]
    assert expected_calibration_error(y, right) == 0.0
    assert adaptive_calibration_error(y, right) == 0.0
    assert brier_score_multiclass(y, right) == 0.0
    assert negative_log_likelihood(y, right) < 1e-15
    correct = prob.argmax(axis=1) == y
    one_bin = abs(correct.mean() - prob.max(axis=1).mean())
    assert expected_calibration_error(y, prob, n_bins=1) == pytest.approx(one_bin)
    for n_bins in (2, 10, 30):
        assert expected_calibration_error(y, prob, n_bins=n_bins) >= one_bin - 1e-12
        largest = expected_calibration_error(y, prob, n_bins=n_bins, norm="max")
        assert expected_calibration_error(y, prob, n_bins=n_bins) <= largest


def test_probabilities_that_the_labels_were_drawn_from_are_calibrated():
    y, prob = predictions(n=40_000, sharpness=1.0)
    y_sharp, sharp = predictions(n=40_000, sharpness=4.0)
    for error in (expected_calibration_error, adaptive_calibration_error):
        assert error(y, prob) < 0.015
        assert error(y_sharp, sharp) > 0.08


def test_same_as_scikit_learn():
    y, prob = predictions()
    assert negative_log_likelihood(y, prob) == pytest.approx(log_loss(y, prob), rel=1e-12)
    wrong = np.eye(4)[(y + 1) % 4]
    assert negative_log_likelihood(y, wrong) == pytest.approx(log_loss(y, wrong), rel=1e-12)
    y, prob = predictions(n_classes=2)
    assert brier_score_multiclass(y, prob) == pytest.approx(2 * brier_score_loss(y, prob[:, 1]), rel=1e-12)


def test_brier_is_the_literal_sum():
    y, prob = predictions()
    expected = np.mean([sum((prob[i, k] - (y[i] == k)) ** 2 for k in range(4)) for i in range(len(y))])
    assert brier_score_multiclass(y, prob) == pytest.approx(expected, rel=1e-12)


def test_overconfidence_rate():
    y, prob = predictions()
    wrong = prob.argmax(axis=1) != y
    rates = [overconfidence_rate(y, prob, threshold=t) for t in np.linspace(0, 1, 21)]
    assert rates[0] == wrong.mean()
    assert (np.diff(rates) <= 0).all()
    assert overconfidence_rate(y, prob) == np.mean([w and c >= 0.8 for w, c in zip(wrong, prob.max(axis=1))])


def test_confidence_correctness_correlation():
    y, prob = predictions()
    correct, confidence = prob.argmax(axis=1) == y, prob.max(axis=1)
    found = confidence_correctness_correlation(y, prob)
    assert found == pytest.approx(np.corrcoef(confidence, correct)[0, 1], rel=1e-10)
    assert confidence_correctness_correlation(correct, 1e-200 * confidence) == pytest.approx(found, rel=1e-10)
    assert confidence_correctness_correlation(correct, 3e200 * confidence - 1e200) == pytest.approx(found, rel=1e-10)
    assert confidence_correctness_correlation(correct, -confidence) == pytest.approx(-found, rel=1e-10)
    assert confidence_correctness_correlation(correct, correct.astype(float)) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("correct", "confidence", "constant"),
    [([True, False], [0.5, 0.5], "confidence"), ([True, True], [0.5, 0.6], "correctness")],
)
def test_no_correlation_with_a_constant(correct, confidence, constant):
    with pytest.warns(SkclipWarning, match=f"The {constant} is"):
        assert confidence_correctness_correlation(correct, confidence) == 0.0


def test_risk_coverage_is_the_literal_loop():
    y, prob = predictions()
    correct, confidence = prob.argmax(axis=1) == y, prob.max(axis=1)
    curve = risk_coverage_curve(y, prob)
    order = np.argsort(-confidence)
    risks = [np.mean(~correct[order[: k + 1]]) for k in range(len(y))]
    np.testing.assert_allclose(curve.risk, risks, atol=1e-12)
    np.testing.assert_allclose(curve.coverage, np.arange(1, 301) / 300)
    assert curve.area == pytest.approx(np.mean(risks)) == area_under_risk_coverage(y, prob)
    assert curve.risk[-1] == np.mean(~correct)


def test_risk_coverage_limits():
    correct = np.arange(4000) % 4 > 0
    assert area_under_risk_coverage(correct, np.full(4000, 0.7)) == pytest.approx(0.25)
    best = risk_coverage_curve(correct, correct + np.linspace(0, 0.5, 4000))
    worst = risk_coverage_curve(correct, ~correct + np.linspace(0, 0.5, 4000))
    assert best.excess_area == pytest.approx(0.0, abs=1e-3)
    assert worst.area > 0.25 > best.area
    assert risk_coverage_curve([False, False], [0.1, 0.9]).area == 1.0
    assert risk_coverage_curve([False, False], [0.1, 0.9]).excess_area == pytest.approx(0.0)
    assert risk_coverage_curve([True, True], [0.1, 0.9]).excess_area == 0.0


@pytest.mark.parametrize("measure", OF_PROBABILITIES)
def test_weights_are_repeats_and_order_is_nothing(measure):
    y, prob = predictions()
    prob = prob.round(1)
    prob /= prob.sum(axis=1, keepdims=True)
    rng = np.random.default_rng(1)
    weights = rng.integers(0, 4, len(y))
    repeated = np.repeat(np.arange(len(y)), weights)
    expected = measure(y[repeated], prob[repeated])
    assert measure(y, prob, sample_weight=weights) == pytest.approx(expected, abs=1e-12)
    assert measure(y, prob, sample_weight=weights / 8) == pytest.approx(expected, abs=1e-12)
    order = rng.permutation(len(y))
    assert measure(y[order], prob[order]) == pytest.approx(measure(y, prob), abs=1e-12)


@pytest.mark.parametrize("measure", OF_PROBABILITIES)
def test_labels_of_any_kind(measure):
    y, prob = predictions()
    names = np.array(["hen", "cat", "dog", "ant"])
    expected = measure(y, prob)
    assert measure(names[y], prob, labels=names) == expected
    assert measure(names[y].tolist(), prob.tolist(), labels=names.tolist()) == expected
    assert measure(10 * y + 5, prob) == expected
    columns = np.argsort(names)
    assert measure(names[y], prob[:, columns]) == pytest.approx(expected, rel=1e-12)
    # a fold that lost classes
    few = y < 2
    assert measure(y[few], prob[few]) == measure(names[y[few]], prob[few], labels=names)


@pytest.mark.parametrize("measure", [m for m in OF_CONFIDENCE if m is not adaptive_calibration_error])
def test_confidences_stand_for_probabilities(measure):
    y, prob = predictions()
    assert measure(prob.argmax(axis=1) == y, prob.max(axis=1)) == measure(y, prob)


@pytest.mark.parametrize("measure", OF_PROBABILITIES)
def test_float32_and_half_precision_are_taken(measure):
    y, prob = predictions(n_classes=50)
    assert measure(y, prob.astype(np.float32)) == pytest.approx(measure(y, prob), abs=1e-4)
    assert measure(y, prob.astype(np.float16)) == pytest.approx(measure(y, prob), abs=2e-2)


@pytest.mark.parametrize("measure", OF_PROBABILITIES)
def test_bad_input(measure):
    y, prob = predictions(n=6)
    names = np.array(["ant", "cat", "dog", "hen"])
    with pytest.raises(ValueError, match=r"Row 2 of y_prob sums to 2"):
        measure(y, np.where(np.arange(6)[:, None] == 2, 0.5, prob))
    negative = prob.copy()
    negative[3, 1] = -0.25
    with pytest.raises(ValueError, match=r"y_prob\[3, 1\] is -0.25; probabilities lie between 0 and 1"):
        measure(y, negative)
    broken = prob.copy()
    broken[4, 0] = np.nan
    with pytest.raises(ValueError, match=r"y_prob\[4, 0\] is nan"):
        measure(y, broken)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        measure(y[:-1], prob)
    with pytest.raises(ValueError, match="4 columns but y_true holds 2 different labels"):
        measure(["ant", "cat"] * 3, prob)
    with pytest.raises(ValueError, match="y_true holds 'eel', unknown to labels"):
        measure(["ant", "eel"] * 3, prob, labels=names)
    with pytest.raises(ValueError, match="labels holds 3 labels, but y_prob has 4 columns"):
        measure(names[y], prob, labels=names[:3])
    with pytest.raises(ValueError, match="labels repeats a label"):
        measure(names[y], prob, labels=["ant", "ant", "cat", "dog"])
    with pytest.raises(ValueError, match=r"sample_weight\[1\] is -1"):
        measure(y, prob, sample_weight=[1, -1, 1, 1, 1, 1])
    with pytest.raises(ValueError, match="zero"):
        measure(y, prob, sample_weight=np.zeros(6))
    with pytest.raises(ValueError, match="y_prob is empty"):
        measure([], np.empty((0, 4)))


@pytest.mark.parametrize("measure", OF_CONFIDENCE)
def test_bad_confidences(measure):
    with pytest.raises(ValueError, match="tells which predictions were right"):
        measure([0, 2], [0.5, 0.6])
    with pytest.raises(ValueError, match="labels belong to the columns"):
        measure([True, False], [0.5, 0.6], labels=["cat", "dog"])


@pytest.mark.parametrize("measure", [expected_calibration_error, adaptive_calibration_error, overconfidence_rate])
def test_confidence_is_a_share(measure):
    with pytest.raises(ValueError, match=r"y_prob\[1\] is 90"):
        measure([True, False], [0.5, 90.0])


def test_bad_options():
    y, prob = predictions(n=6)
    with pytest.raises(ValueError, match="n_bins must be a positive whole number, got 0"):
        expected_calibration_error(y, prob, n_bins=0)
    with pytest.raises(ValueError, match=r"n_bins must be a positive whole number, got 2\.5"):
        adaptive_calibration_error(y, prob, n_bins=2.5)
    with pytest.raises(ValueError, match="strategy must be one of 'uniform', 'quantile', got 'kmeans'"):
        expected_calibration_error(y, prob, strategy="kmeans")
    with pytest.raises(ValueError, match="norm must be one of 'l1', 'max', got 'l2'"):
        expected_calibration_error(y, prob, norm="l2")
    with pytest.raises(ValueError, match=r"threshold must be in \[0, 1\], got 80"):
        overconfidence_rate(y, prob, threshold=80)
