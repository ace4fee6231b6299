from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest

from skclip.adapters import GDAClassifier
from skclip.metrics import expected_calibration_error, reliability_curve
from skclip.plotting import ReliabilityDisplay


def predictions(n=400, n_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, n_classes, n), rng.dirichlet(np.full(n_classes, 0.4), size=n)


def test_draws_the_curve_of_the_metrics(overlaps):
    y, prob = predictions()
    display = ReliabilityDisplay.from_predictions(y, prob, n_bins=10, name="guessing")
    curve = reliability_curve(y, prob, n_bins=10)
    filled = curve.count > 0
    np.testing.assert_array_equal(display.line_.get_xdata(), curve.confidence[filled])
    np.testing.assert_array_equal(display.line_.get_ydata(), curve.accuracy[filled])
    np.testing.assert_allclose(display.bars_.get_data().values, curve.count / 400)
    np.testing.assert_array_equal(display.bars_.get_data().edges, curve.edges)
    ece = expected_calibration_error(y, prob, n_bins=10)
    assert display.ece == ece
    assert display.line_.get_label() == f"guessing (ECE {ece:.3f})"
    gaps = display.gaps_.get_segments()
    np.testing.assert_allclose([g[1][1] - g[0][1] for g in gaps], (curve.accuracy - curve.confidence)[filled])
    assert display.ax_.figure is display.histogram_ax_.figure is display.figure_
    assert overlaps(display.figure_) == []


def test_from_estimator_equals_from_predictions():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(90, 6)), np.repeat(["c", "a", "b"], 30)
    clf = GDAClassifier().fit(X, y)
    ours = ReliabilityDisplay.from_estimator(clf, X, y, strategy="quantile", n_bins=4)
    same = ReliabilityDisplay.from_predictions(y, clf.predict_proba(X), strategy="quantile", n_bins=4)
    np.testing.assert_array_equal(ours.line_.get_ydata(), same.line_.get_ydata())
    assert ours.line_.get_label().startswith("GDAClassifier (ECE")
    assert same.line_.get_label().startswith("ECE")
    lost = ReliabilityDisplay.from_estimator(clf, X[:60], y[:60])  # a test set without one class
    assert lost.ece == pytest.approx(expected_calibration_error(y[:60], clf.predict_proba(X[:60]), labels=clf.classes_))


def test_several_share_a_figure(overlaps):
    first = ReliabilityDisplay.from_predictions(*predictions(seed=1), name="one")
    second = ReliabilityDisplay.from_predictions(
        *predictions(seed=2), name="two", ax=(first.ax_, first.histogram_ax_), linestyle=":"
    )
    assert second.figure_ is first.figure_
    assert first.line_.get_color() != second.line_.get_color()
    assert second.line_.get_linestyle() == ":"
    assert len(first.ax_.get_legend().get_texts()) == 3  # the diagonal once
    assert first.histogram_ax_.get_ylim()[1] >= max(d.bars_.get_data().values.max() for d in (first, second))
    assert overlaps(first.figure_) == []


def test_on_one_axes_without_histogram():
    _, ax = plt.subplots()
    display = ReliabilityDisplay.from_predictions([True, False, True], [0.9, 0.6, 0.3], n_bins=5, ax=ax)
    assert display.ax_ is ax
    assert display.histogram_ax_ is display.bars_ is None
    assert ax.get_xlabel() == "confidence"
    again = display.plot(name="renamed")
    assert again is display
    assert again.ax_ is not ax
    assert again.line_.get_label().startswith("renamed")


def test_weights_and_bare_numbers():
    y, prob = predictions()
    weights = np.r_[np.ones(200), np.zeros(200)]
    weighted = ReliabilityDisplay.from_predictions(y, prob, sample_weight=weights)
    half = ReliabilityDisplay.from_predictions(y[:200], prob[:200])
    np.testing.assert_allclose(weighted.line_.get_ydata(), half.line_.get_ydata())
    assert weighted.ece == pytest.approx(half.ece)
    bare = ReliabilityDisplay(half.confidence, half.accuracy, half.count, half.edges).plot()
    np.testing.assert_array_equal(bare.line_.get_ydata(), half.line_.get_ydata())
