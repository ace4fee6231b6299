from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from skclip.datasets import few_shot_split
from skclip.plotting import FewShotCurveDisplay
from skclip.zero_shot import ZeroShotClassifier


def blobs(n=120, n_classes=4, d=8, seed=0):
    rng = np.random.default_rng(seed)
    means, y = 1.2 * rng.normal(size=(n_classes, d)), np.arange(n) % n_classes
    return means[y] + rng.normal(size=(n, d)), y, means


def test_fits_clones_on_nested_draws_and_tests_on_the_rest():
    seen = []

    class Recorder(LogisticRegression):
        def fit(self, X, y):
            seen.append(("fit", X, y))
            return super().fit(X, y)

        def score(self, X, y):
            seen.append(("score", X, y))
            return super().score(X, y)

    X, y, _ = blobs()
    method = Recorder()
    display = FewShotCurveDisplay.from_estimator(method, X, y, shots=(8, 2), n_draws=2, random_state=0)
    assert not hasattr(method, "coef_")
    assert [len(rows) for what, rows, _ in seen if what == "fit"] == [8, 32, 8, 32]
    for draw in (seen[:4], seen[4:]):
        (_, small, _), (_, test, _), (_, large, labels), (_, same_test, _) = draw
        assert np.bincount(labels).tolist() == [8] * 4
        assert {tuple(row) for row in small} <= {tuple(row) for row in large}
        assert not {tuple(row) for row in test} & {tuple(row) for row in large}
        assert len(test) == 120 - 32
        np.testing.assert_array_equal(test, same_test)
    assert list(display.results["Recorder"]) == [2, 8]
    np.testing.assert_allclose(
        display.lines_[0].get_ydata(), [np.mean(v) for v in display.results["Recorder"].values()]
    )


def test_several_methods_with_baselines(overlaps):
    X, y, means = blobs()
    methods = {"logistic": LogisticRegression(), "nearest": KNeighborsClassifier(1)}
    zero_shot = ZeroShotClassifier(prototypes=means)
    display = FewShotCurveDisplay.from_estimator(
        methods, X[:80], y[:80], X_test=X[80:], y_test=y[80:], shots=(1, 4), n_draws=3,
        baselines={"prototypes": zero_shot, "published": 0.5}, random_state=0,
    )  # fmt: skip
    assert display.baselines == {"prototypes": pytest.approx(zero_shot.score(X[80:], y[80:])), "published": 0.5}
    assert [line.get_ydata()[0] for line in display.baseline_lines_] == list(display.baselines.values())
    assert {line.get_color() for line in display.lines_} == {"#0072B2", "#D55E00"}
    assert display.ax_.get_xscale() == "log"
    assert [text.get_text() for text in display.ax_.get_xticklabels()] == ["1", "4"]
    seed = np.random.RandomState(0).randint(2**31 - 1, size=3)[0]
    train = few_shot_split(y[:80], 4, random_state=seed)[0]
    expected = LogisticRegression().fit(X[train], y[train]).score(X[80:], y[80:])
    assert display.results["logistic"][4][0] == pytest.approx(expected)
    assert overlaps(display.figure_) == []


def test_lists_and_data_frames_and_scorers():
    X, y, _ = blobs()
    plain, frame = [
        FewShotCurveDisplay.from_estimator(
            LogisticRegression(), data, list(y), shots=(2,), scoring="balanced_accuracy", random_state=0
        )
        for data in (X.tolist(), pd.DataFrame(X))
    ]
    assert plain.results == frame.results
    assert plain.ax_.get_ylabel() == "balanced accuracy"


def test_from_predictions():
    y = np.array(["a", "b", "a", "b"])
    display = FewShotCurveDisplay.from_predictions(
        y,
        {"one": {1: ["a", "a", "a", "a"], 4: [["a", "b", "a", "b"], ["a", "b", "a", "a"]]}},
        baselines={"zero-shot": ["b", "b", "b", "b"]},
    )
    np.testing.assert_allclose(display.lines_[0].get_ydata(), [0.5, 0.875])
    assert display.baselines == {"zero-shot": 0.5}
    band = display.bands_[0].get_paths()[0].vertices
    assert band[:, 1].max() == pytest.approx(0.875 + np.std([1, 0.75], ddof=1))
    with pytest.raises(ValueError, match=r"y_pred\['one'\]\[1\] has shape \(3,\); y_true has 4"):
        FewShotCurveDisplay.from_predictions(y, {"one": {1: ["a", "a", "a"]}})


def test_given_figures_many_methods_and_own_axes(overlaps):
    results = {f"method {i}": {s: [0.4 + 0.05 * i, 0.41 + 0.05 * i] for s in (1, 2, 16)} for i in range(9)}
    display = FewShotCurveDisplay(results, baselines={"zero-shot": 0.3}).plot()
    styles = {(line.get_color(), line.get_marker()) for line in display.lines_}
    assert len(styles) == 9
    assert overlaps(display.figure_) == []
    _, ax = plt.subplots()
    single = FewShotCurveDisplay({"one": {1: 0.5, 2: 0.6}}, score_name="AUC").plot(ax, linewidth=4)
    assert single.ax_ is ax
    assert single.bands_ == [None]
    assert single.lines_[0].get_linewidth() == 4
    assert ax.get_ylabel() == "AUC"


def test_what_cannot_be():
    X, y, _ = blobs()
    with pytest.raises(ValueError, match="Class 0 has 30 samples"):
        FewShotCurveDisplay.from_estimator(LogisticRegression(), X, y, shots=(31,))
    with pytest.raises(ValueError, match="30 shots leave no row"):
        FewShotCurveDisplay.from_estimator(LogisticRegression(), X, y, shots=(30,))
    with pytest.raises(ValueError, match="belong together"):
        FewShotCurveDisplay.from_estimator(LogisticRegression(), X, y, X_test=X)
    with pytest.raises(ValueError, match="inconsistent"):
        FewShotCurveDisplay.from_estimator(LogisticRegression(), X, y[:-1])
    with pytest.raises(ValueError, match="no method"):
        FewShotCurveDisplay({}).plot()
