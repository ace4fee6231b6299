from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB

from skclip.metrics import area_under_risk_coverage, risk_coverage_curve
from skclip.plotting import RiskCoverageDisplay


def data(n=300, seed=0):
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 6))
    return X, np.array(["ant", "bee", "cat"])[(X[:, 0] + 0.8 * rng.normal(size=n) > 0).astype(int) + (X[:, 1] > 1)]


def test_draws_the_curve_of_the_metrics(overlaps):
    X, y = data()
    clf = LogisticRegression().fit(X[:150], y[:150])
    display = RiskCoverageDisplay.from_estimator(clf, X[150:], y[150:])
    curve = risk_coverage_curve(y[150:], clf.predict_proba(X[150:]), labels=clf.classes_)
    np.testing.assert_array_equal(display.line_.get_xdata(), curve.coverage)
    np.testing.assert_array_equal(display.line_.get_ydata(), curve.risk)
    assert display.line_.get_label() == f"LogisticRegression (AURC {curve.area:.3f})"
    assert display.area == area_under_risk_coverage(y[150:], clf.predict_proba(X[150:]), labels=clf.classes_)
    # the mark is the error rate of all pictures
    assert display.line_.get_markevery() == [-1]
    assert display.line_.get_ydata()[-1] == pytest.approx(1.0 - clf.score(X[150:], y[150:]))
    assert display.ax_.figure is display.figure_
    assert overlaps(display.figure_) == []


def test_a_test_set_without_some_class():
    X, y = data()
    clf = LogisticRegression().fit(X, y)
    some = y != "cat"
    display = RiskCoverageDisplay.from_estimator(clf, X[some], y[some])
    expected = risk_coverage_curve(y[some], clf.predict_proba(X[some]), labels=clf.classes_)
    np.testing.assert_array_equal(display.risk, expected.risk)


def test_several_share_axes(overlaps):
    X, y = data()
    first = RiskCoverageDisplay.from_estimator(LogisticRegression().fit(X, y), X, y)
    second = RiskCoverageDisplay.from_estimator(GaussianNB().fit(X, y), X, y, ax=first.ax_, name="Bayes")
    right = LogisticRegression().fit(X, y).predict(X) == y
    third = RiskCoverageDisplay.from_predictions(right, -np.arange(300.0), ax=first.ax_, name="worst", linestyle=":")
    lines = first.line_, second.line_, third.line_
    assert len({line.get_color() for line in lines}) == len({line.get_marker() for line in lines}) == 3
    assert third.line_.get_linestyle() == ":"
    assert [text.get_text().split(" (")[0] for text in first.ax_.get_legend().get_texts()] == [
        "LogisticRegression",
        "Bayes",
        "worst",
    ]
    assert first.ax_.get_ylim()[1] >= max(line.get_ydata().max() for line in lines)
    assert overlaps(first.figure_) == []


def test_more_curves_than_colours_differ():
    rng = np.random.default_rng(0)
    _, ax = plt.subplots()
    for i in range(9):
        RiskCoverageDisplay.from_predictions(rng.random(50) < 0.5, rng.random(50), ax=ax, name=f"{i}")
    assert len({(line.get_color(), line.get_marker()) for line in ax.lines}) == 9


def test_weights_and_bare_numbers():
    X, y = data()
    prob = GaussianNB().fit(X, y).predict_proba(X)
    labels = ["ant", "bee", "cat"]
    weights = np.r_[np.ones(150), np.zeros(150)]
    weighted = RiskCoverageDisplay.from_predictions(y, prob, labels=labels, sample_weight=weights)
    half = RiskCoverageDisplay.from_predictions(y[:150], prob[:150], labels=labels)
    np.testing.assert_allclose(weighted.risk, half.risk)
    assert half.line_.get_label() == f"AURC {half.area:.3f}"
    bare = RiskCoverageDisplay(half.coverage, half.risk).plot()
    np.testing.assert_array_equal(bare.line_.get_ydata(), half.line_.get_ydata())
    assert bare.ax_.get_legend() is None
    assert bare.plot(name="named") is bare
    assert bare.line_.get_label() == "named"


def test_a_classifier_that_is_always_right():
    display = RiskCoverageDisplay.from_predictions([True, True], [0.9, 0.8], name="perfect")
    assert display.line_.get_ydata().tolist() == [0.0, 0.0]
    assert display.ax_.get_ylim() == (0.0, 1.0)
