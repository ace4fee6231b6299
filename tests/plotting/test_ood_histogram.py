from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_rgb
from sklearn.covariance import EllipticEnvelope
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skclip.metrics import fpr_at_tpr, ood_auroc
from skclip.ood import MSPDetector
from skclip.plotting import OODHistogramDisplay
from skclip.utils.estimator_checks import NearestMeanClassifier

RNG = np.random.default_rng(0)
KNOWN = RNG.normal(2.0, size=400)
SETS = {"near": RNG.normal(1.0, size=100), "far": RNG.normal(-1.0, size=300)}
X = RNG.normal(size=(120, 4)) + 3.0 * np.eye(4)[np.repeat([0, 1, 2], 40)]
Y = np.repeat(["ant", "bee", "cat"], 40)
X_OUT = {"noise": RNG.normal(size=(50, 4)), "shifted": X[:30] + 2.0}


def legend(display):
    return [text.get_text() for text in display.ax_.get_legend().get_texts()]


def test_draws_shares_of_each_set(overlaps):
    display = OODHistogramDisplay(KNOWN, SETS, threshold=0.5, name="energy").plot(bins=40)
    bars = [display.known_bars_, *display.unknown_bars_.values()]
    edges = bars[0].get_data().edges
    assert len(edges) == 41
    for bar, scores in zip(bars, [KNOWN, *SETS.values()], strict=True):
        values = bar.get_data().values
        np.testing.assert_array_equal(bar.get_data().edges, edges)
        assert values.sum() == pytest.approx(1.0)
        inner = np.histogram(scores, edges)[0][1:-1] / len(scores)
        np.testing.assert_allclose(values[1:-1], inner)
        # what lies beyond the axes counts in the outermost bars
        assert values[0] == pytest.approx(np.mean(scores < edges[1]))
        assert values[-1] == pytest.approx(np.mean(scores >= edges[-2]))
    assert legend(display) == [
        "known",
        *[
            f"{name} (AUROC {ood_auroc(KNOWN, scores):.2f}, FPR95 {fpr_at_tpr(KNOWN, scores):.2f})"
            for name, scores in SETS.items()
        ],
        f"threshold (keeps {100 * np.mean(KNOWN >= 0.5):.0f} % of the known)",
    ]
    (line,) = display.threshold_line_.get_segments()
    assert line[:, 0].tolist() == [0.5, 0.5]
    assert display.ax_.get_xlabel() == "score of energy (larger: more in-distribution)"
    assert overlaps(display.figure_) == []


def test_the_legend_lies_above_the_bars():
    for n in range(1, 6):
        display = OODHistogramDisplay(KNOWN, {f"{i}": KNOWN - i for i in range(n)}, threshold=0.0).plot()
        display.figure_.canvas.draw()
        box = display.ax_.get_legend().get_window_extent()
        bars = [display.known_bars_, *display.unknown_bars_.values()]
        tops = [display.ax_.transData.transform((0.0, bar.get_data().values.max()))[1] for bar in bars]
        assert box.y0 > max(tops)
        assert display.ax_.bbox.contains(box.x1, box.y1)


def test_many_sets_have_their_legend_beside(overlaps):
    display = OODHistogramDisplay(KNOWN, {f"set {i}": KNOWN - i for i in range(8)}).plot()
    display.figure_.canvas.draw()
    assert display.ax_.get_legend().get_window_extent().x0 > display.ax_.bbox.x1
    assert display.threshold_line_ is None
    looks = {(bar.get_edgecolor(), bar.get_linestyle()) for bar in display.unknown_bars_.values()}
    assert len(looks) == 8
    known = to_rgb(display.known_bars_.get_edgecolor())
    assert all(to_rgb(bar.get_edgecolor()) != known for bar in display.unknown_bars_.values())
    assert overlaps(display.figure_) == []


@pytest.mark.parametrize(
    ("detector", "threshold"),
    [
        (EllipticEnvelope(random_state=0), "offset_"),
        (MSPDetector(NearestMeanClassifier()), "offset_"),
        (GaussianMixture(random_state=0), None),
    ],
    ids=lambda value: type(value).__name__,
)
def test_from_estimator(detector, threshold):
    detector.fit(X, Y)
    for wrapped in (detector, FrozenEstimator(detector)):
        display = OODHistogramDisplay.from_estimator(wrapped, X, X_OUT)
        np.testing.assert_array_equal(display.scores_in, detector.score_samples(X))
        np.testing.assert_array_equal(display.scores_out["noise"], detector.score_samples(X_OUT["noise"]))
        assert display.threshold == (None if threshold is None else detector.offset_)
        assert display.name == type(detector).__name__
    one = OODHistogramDisplay.from_estimator(detector, X, X_OUT["noise"], name="mine")
    assert legend(one)[1].startswith("unknown (AUROC")
    assert one.ax_.get_xlabel().startswith("score of mine")


def test_the_threshold_of_a_pipeline_is_found():
    pipe = make_pipeline(StandardScaler(), EllipticEnvelope(random_state=0)).fit(X)
    display = OODHistogramDisplay.from_estimator(pipe, X, X_OUT)
    assert display.threshold == pipe[-1].offset_
    assert np.mean(display.scores_in >= display.threshold) == np.mean(pipe.predict(X) == 1)
    assert display.name == "EllipticEnvelope"


def test_a_classifier_without_score_has_no_threshold():
    clf = LogisticRegression().fit(X, Y)
    display = OODHistogramDisplay.from_estimator(clf, X, X_OUT)
    np.testing.assert_array_equal(display.scores_in, clf.predict_proba(X).max(axis=1))
    assert display.threshold is None


def test_signs_tell_the_known():
    scores, signs = np.r_[KNOWN, SETS["near"]], np.r_[np.ones(400, dtype=int), -np.ones(100, dtype=int)]
    mixed = np.random.default_rng(1).permutation(500)
    told = OODHistogramDisplay.from_predictions(scores[mixed], y_true=signs[mixed], threshold=1.0)
    apart = OODHistogramDisplay.from_predictions(KNOWN, SETS["near"], threshold=1.0)
    assert legend(told) == legend(apart)
    for one, other in zip(
        [told.known_bars_, *told.unknown_bars_.values()],
        [apart.known_bars_, *apart.unknown_bars_.values()],
        strict=True,
    ):
        np.testing.assert_allclose(one.get_data().values, other.get_data().values)
    detector = EllipticEnvelope(random_state=0).fit(X)
    both = np.r_[X, X_OUT["noise"]]
    y = np.r_[np.ones(len(X)), -np.ones(50)]
    display = OODHistogramDisplay.from_estimator(detector, both, y=y)
    np.testing.assert_allclose(display.scores_out, detector.score_samples(X_OUT["noise"]))


def test_on_given_axes_and_again():
    _, axes = plt.subplots(1, 2)
    display = OODHistogramDisplay.from_predictions(KNOWN, SETS, ax=axes[1], linewidth=3, bins=7)
    assert display.ax_ is axes[1]
    assert display.figure_ is axes[1].figure
    assert display.known_bars_.get_linewidth() == 3
    assert len(display.known_bars_.get_data().values) == 7
    assert display.plot(name="renamed") is display
    assert display.ax_ is not axes[1]
    assert display.ax_.get_xlabel().startswith("score of renamed")


def test_outliers_do_not_squeeze_the_rest():
    scores = np.r_[KNOWN, -1e9]
    display = OODHistogramDisplay(scores, SETS).plot()
    assert display.ax_.get_xlim()[0] > -10
    far_off = OODHistogramDisplay(KNOWN, SETS, threshold=-50.0).plot()
    assert far_off.ax_.get_xlim()[0] == -50.0
    refuses_nothing = OODHistogramDisplay(KNOWN, SETS, threshold=-np.inf).plot()
    assert refuses_nothing.threshold_line_ is None
    constant = OODHistogramDisplay(np.ones(5), np.ones(3)).plot()
    assert constant.ax_.get_xlim() == (0.5, 1.5)


def test_a_score_at_the_threshold_is_kept():
    display = OODHistogramDisplay([0.0, 1.0, 1.0, 2.0], [0.5], threshold=1.0).plot()
    assert legend(display)[-1] == "threshold (keeps 75 % of the known)"


def test_bad_input():
    with pytest.raises(ValueError, match="pass one"):
        OODHistogramDisplay.from_predictions(KNOWN)
    with pytest.raises(ValueError, match="pass one"):
        OODHistogramDisplay.from_predictions(KNOWN, KNOWN, y_true=np.ones(400))
    with pytest.raises(ValueError, match=r"y must hold 1 \(in distribution\) and -1"):
        OODHistogramDisplay.from_predictions(KNOWN, y_true=np.ones(400))
    with pytest.raises(ValueError, match="Different lengths: X 400, y 2"):
        OODHistogramDisplay.from_predictions(KNOWN, y_true=[1, -1])
    with pytest.raises(ValueError, match=r"scores_out\['near'\]\[0\] is nan"):
        OODHistogramDisplay(KNOWN, {"near": [np.nan]}).plot()
    with pytest.raises(ValueError, match="scores_out holds no set"):
        OODHistogramDisplay(KNOWN, {}).plot()
    with pytest.raises(ValueError, match="bins must be at least 1, got 0"):
        OODHistogramDisplay(KNOWN, KNOWN).plot(bins=0)
