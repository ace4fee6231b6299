"""The report: every figure is the measure it says, every picture is encoded once, and known facts show."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.datasets import make_blobs
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, log_loss
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skclip import CLIPFeatures, GDAClassifier, ZeroShotClassifier
from skclip.datasets import corrupt_images, make_picture_world
from skclip.evaluation import RobustnessLine, RobustnessReport, fit_temperature
from skclip.metrics import (
    expected_calibration_error,
    fpr_at_tpr,
    mean_corruption_error,
    ood_auroc,
    relative_mean_corruption_error,
)
from skclip.utils import SkclipWarning, get_logits

NAMES = np.array(["ant", "bee", "cat", "dog"])


def blobs(seed, spread=3.0, n=300):
    X, y = make_blobs(n, centers=[[0, 0, 3], [4, 0, 0], [0, 4, 0], [4, 4, 1]], cluster_std=spread, random_state=seed)
    return X, NAMES[y]


@pytest.fixture(scope="module")
def fitted():
    """Too sure of itself: fitted to few rows, then made four times as sure."""
    X, y = blobs(0, n=60)
    model = LogisticRegression().fit(X, y)
    model.coef_, model.intercept_ = 4 * model.coef_, 4 * model.intercept_
    return model


@pytest.fixture(scope="module")
def other():
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01)).fit(*blobs(0, n=60))


def of(report, **facts):
    rows = [row for row in report.rows_ if all(row.get(key) == value for key, value in facts.items())]
    assert rows
    return rows


def test_every_figure_is_its_measure(fitted):
    X, y = blobs(1)
    X_shift, y_shift = blobs(2, 5.0, n=200)
    X_out = np.random.default_rng(0).normal(2.0, 8.0, size=(80, 3))
    report = RobustnessReport(fitted, n_bins=10).evaluate(
        X, y, test_sets={"wide": (X_shift, y_shift)}, ood={"far": X_out}
    )
    assert [(row["model"], row["set"], row["kind"]) for row in report.rows_] == [
        ("LogisticRegression", "in-distribution", "id"),
        ("LogisticRegression", "wide", "shift"),
        ("LogisticRegression", "far", "ood"),
    ]
    row, pred, prob = of(report, set="wide")[0], fitted.predict(X_shift), fitted.predict_proba(X_shift)
    assert row["n"] == 200
    assert row["accuracy"] == accuracy_score(y_shift, pred)
    assert row["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(y_shift, pred))
    assert row["nll"] == pytest.approx(log_loss(y_shift, prob), rel=1e-9)
    assert row["ece"] == pytest.approx(expected_calibration_error(y_shift, prob, labels=NAMES, n_bins=10))
    quantile = expected_calibration_error(y_shift, prob, labels=NAMES, n_bins=10, strategy="quantile")
    assert row["ece_quantile"] == pytest.approx(quantile)
    temperature = report.summary_[0]["temperature"]
    assert temperature > 1.5
    scaled = softmax(get_logits(fitted, X_shift) / temperature, axis=1)
    assert row["ece_scaled"] == pytest.approx(expected_calibration_error(y_shift, scaled, labels=NAMES, n_bins=10))
    assert row["nll_scaled"] == pytest.approx(log_loss(y_shift, scaled), rel=1e-9)
    assert of(report, set="in-distribution")[0]["n"] == 150
    far = of(report, set="far")[0]
    assert 0 <= far["fpr95"] <= 1
    assert report.summary_[0]["ood_auroc"] == far["auroc"]
    assert report.summary_[0]["shift_accuracy"] == row["accuracy"]


def test_without_temperature_all_rows_count(fitted):
    X, y = blobs(1)
    X_out = np.random.default_rng(0).normal(2.0, 8.0, size=(80, 3))
    report = RobustnessReport(fitted, temperature_size=None).evaluate(X, y, ood={"far": X_out})
    row, far = report.rows_
    assert (row["n"], row["accuracy"]) == (300, fitted.score(X, y))
    assert not any(column.endswith("_scaled") for column in row)
    assert "temperature" not in report.summary_[0]
    inside, outside = (fitted.predict_proba(rows).max(axis=1) for rows in (X, X_out))
    assert far["auroc"] == pytest.approx(ood_auroc(inside, outside), abs=1e-9)
    assert far["fpr95"] == pytest.approx(fpr_at_tpr(inside, outside), abs=1e-9)
    with pytest.raises(ValueError, match="There is no temperature"):
        report.plot_reliability(scaled=True)


def test_the_temperature_sees_its_share_of_in_distribution_rows_alone(fitted):
    X, y = blobs(1)
    first = RobustnessReport(fitted, temperature_size=0.3).evaluate(X, y)
    second = RobustnessReport(fitted, temperature_size=0.3).evaluate(
        X, y, test_sets={"wide": blobs(2, 9.0), "narrow": blobs(3, 1.0)}
    )
    assert first.summary_[0]["temperature"] == second.summary_[0]["temperature"]
    assert first.rows_ == second.rows_[:1]
    assert first.rows_[0]["n"] == 210
    # other rows, another temperature
    moved = RobustnessReport(fitted, temperature_size=0.3, random_state=1).evaluate(X, y)
    assert moved.summary_[0]["temperature"] != first.summary_[0]["temperature"]
    whole = fit_temperature(get_logits(fitted, X), y, labels=NAMES)
    assert first.summary_[0]["temperature"] == pytest.approx(whole, rel=0.4)


@pytest.mark.parametrize("seed", range(4))
def test_the_temperature_helps_without_and_under_shift(fitted, seed):
    X, y = blobs(10 + seed, n=800)
    report = RobustnessReport(fitted, random_state=seed).evaluate(
        X, y, test_sets={"wide": blobs(50 + seed, 4.0, n=800)}
    )
    for row in report.rows_:
        assert row["ece_scaled"] < row["ece"] - 0.03
        assert row["nll_scaled"] < row["nll"]


def test_each_set_is_predicted_once(fitted):
    class Counting(LogisticRegression):
        def logits(self, X):
            calls.append(len(X))
            return get_logits(fitted, X)

        def predict(self, X):
            raise AssertionError("logits tell the labels")

        predict_proba = decision_function = predict

    calls: list[int] = []
    counting = Counting().fit(*blobs(0, n=60))
    RobustnessReport(counting).evaluate(*blobs(1), test_sets={"wide": blobs(2, n=200)}, ood={"far": blobs(3, n=80)[0]})
    assert calls == [300, 200, 80]


def test_several_classifiers_and_a_baseline(fitted, other):
    X, y = blobs(1)
    sets = {"wide": blobs(2, 5.0), "narrow": blobs(3, 1.0)}
    report = RobustnessReport({"sure": fitted, "modest": other}, baseline="sure").evaluate(X, y, test_sets=sets)
    for name, (X_set, y_set) in sets.items():
        gained = other.score(X_set, y_set) - fitted.score(X_set, y_set)
        assert of(report, model="modest", set=name)[0]["relative_robustness"] == pytest.approx(gained)
        assert of(report, model="sure", set=name)[0]["relative_robustness"] == 0.0
    assert [row["model"] for row in report.summary_] == ["sure", "modest"]
    assert "relative_robustness" not in of(report, model="modest", kind="id")[0]


def test_lines_give_effective_robustness(fitted):
    X, y = blobs(1)
    sets = {"wide": blobs(2, 5.0), "narrow": blobs(3, 1.0)}
    line = RobustnessLine("linear").fit([0.2, 0.9], [0.1, 0.6])
    for lines, known in ((line, ["wide", "narrow"]), ({"wide": line}, ["wide"])):
        report = RobustnessReport(fitted, lines=lines).evaluate(X, y, test_sets=sets)
        clean = of(report, kind="id")[0]["accuracy"]
        for name in sets:
            row = of(report, set=name)[0]
            if name in known:
                expected = row["accuracy"] - line.predict([clean])[0]
                assert row["effective_robustness"] == pytest.approx(expected)
            else:
                assert "effective_robustness" not in row


def test_sets_of_fewer_classes_leave_out_logits(fitted):
    X, y = blobs(1)
    X_few, y_few = blobs(2)
    rows = np.isin(y_few, ["dog", "bee"])
    X_few, y_few = X_few[rows], y_few[rows]
    line = RobustnessLine("linear").fit([0.0, 1.0], [0.0, 1.0])
    report = RobustnessReport(fitted, lines=line).evaluate(
        X, y, test_sets={"few": (X_few, y_few), "all": (X_few, y_few)}, labels={"few": ["dog", "bee"]}
    )
    few, everything = of(report, set="few")[0], of(report, set="all")[0]
    logits = get_logits(fitted, X_few)[:, [1, 3]]
    expected = np.mean(NAMES[[1, 3]][logits.argmax(axis=1)] == y_few)
    assert few["accuracy"] == expected > everything["accuracy"] == fitted.score(X_few, y_few)
    assert few["nll"] == pytest.approx(log_loss(y_few, softmax(logits, axis=1), labels=["bee", "dog"]), rel=1e-9)
    # accuracy without shift on the same two classes
    assert few["accuracy_id"] > everything["accuracy_id"] == of(report, kind="id")[0]["accuracy"]
    assert few["effective_robustness"] == pytest.approx(few["accuracy"] - few["accuracy_id"])


def test_factors(fitted):
    X, y = blobs(1)
    X_shift, y_shift = blobs(2)
    near = X_shift[:, 0] > 1
    first = np.arange(300) < 100
    report = RobustnessReport(fitted, temperature_size=None).evaluate(
        X,
        y,
        test_sets={"wide": (X_shift, y_shift)},
        factors={"wide": {"near": near, "far": ~near}, "in-distribution": {"first": first}},
    )
    row = of(report, set="wide")[0]
    right = fitted.predict(X_shift) == y_shift
    assert row["accuracy[near]"] == pytest.approx(right[near].mean())
    assert near.mean() * row["accuracy[near]"] + (1 - near.mean()) * row["accuracy[far]"] == pytest.approx(
        row["accuracy"]
    )
    assert of(report, kind="id")[0]["accuracy[first]"] == pytest.approx(fitted.score(X[:100], y[:100]))
    # of the rows that the temperature leaves
    halved = RobustnessReport(fitted).evaluate(X, y, factors={"in-distribution": {"all": np.ones(300, bool)}})
    assert halved.rows_[0]["accuracy[all]"] == halved.rows_[0]["accuracy"]


def test_frame_and_plots(fitted, other):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    line = RobustnessLine("linear").fit([0.2, 0.9], [0.1, 0.6])
    report = RobustnessReport({"sure": fitted, "modest": other}, lines=line)
    report.evaluate(*blobs(1), test_sets={"wide": blobs(2, 5.0), "narrow": blobs(3, 1.0)}, ood={"far": blobs(4)[0]})
    frame = report.to_frame()
    assert len(frame) == len(report.rows_) == 8
    assert frame.loc[frame["kind"] == "ood", "accuracy"].isna().all()
    ax = report.plot_accuracy()
    heights = sorted(bar.get_height() for bar in ax.patches)
    np.testing.assert_allclose(heights, sorted(frame.loc[frame["kind"] == "shift", "accuracy"]))
    dashed = sorted(drawn.get_ydata()[0] for drawn in ax.lines)
    np.testing.assert_allclose(dashed, sorted(frame.loc[frame["kind"] == "id", "accuracy"]))
    assert len(ax.collections) == 4
    own = pyplot.figure().subplots()
    assert report.plot_reliability(model="modest", scaled=True, ax=own) is own
    assert [text.get_text() for text in own.get_legend().get_texts()] == ["in-distribution", "wide", "narrow"]
    curve = report.reliability_["modest", "wide"]["after"]
    np.testing.assert_allclose(own.lines[2].get_ydata(), curve.accuracy[curve.count > 0])
    with pytest.raises(ValueError, match="no reliability curve of 'modest' on 'far'"):
        report.plot_reliability(model="modest", sets=["far"])
    with pytest.raises(ValueError, match="There is no corruption to draw"):
        report.plot_severity()
    pyplot.close("all")


def test_missing_extras_are_named(fitted, monkeypatch):
    report = RobustnessReport(fitted).evaluate(*blobs(1))
    monkeypatch.setitem(sys.modules, "pandas", None)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="needs pandas"):
        report.to_frame()
    with pytest.raises(ImportError, match=r"need matplotlib: pip install skclip\[plots\]"):
        report.plot_accuracy()


def test_an_evaluation_that_fails_leaves_no_mixture_of_two(fitted):
    X, y = blobs(1)
    report = RobustnessReport(fitted).evaluate(X, y, test_sets={"wide": blobs(2, 5.0)})
    with pytest.raises(ValueError, match="unknown to the classifier"):
        report.evaluate(X, y, test_sets={"other": (X, np.full(len(X), "zebra"))})
    with pytest.raises(ValueError, match="call evaluate"):
        report.to_frame()


def test_bad_input(fitted, other):
    X, y = blobs(1)
    wide = blobs(2)
    with pytest.raises(ValueError, match="call evaluate first"):
        RobustnessReport(fitted).to_frame()
    with pytest.raises(ValueError, match="baseline is 'none', but the classifiers are"):
        RobustnessReport({"a": fitted}, baseline="none").evaluate(X, y)
    with pytest.raises(ValueError, match="estimator is an empty dict"):
        RobustnessReport({}).evaluate(X, y)
    with pytest.raises(ValueError, match="Two test sets are named 'wide'"):
        RobustnessReport(fitted).evaluate(X, y, test_sets={"wide": wide}, ood={"wide": wide[0]})
    with pytest.raises(ValueError, match="labels tells of 'narrow', which is none of the sets"):
        RobustnessReport(fitted).evaluate(X, y, test_sets={"wide": wide}, labels={"narrow": ["ant"]})
    with pytest.raises(ValueError, match="lines tells of 'narrow'"):
        RobustnessReport(fitted, lines={"narrow": None}).evaluate(X, y, test_sets={"wide": wide})
    strange = wide[1].astype("<U9")
    strange[7] = "elephant"
    with pytest.raises(ValueError, match=r"y\[7\] of 'wide' is 'elephant', unknown to the classifier"):
        RobustnessReport(fitted).evaluate(X, y, test_sets={"wide": (wide[0], strange)})
    with pytest.raises(ValueError, match=r"unknown to labels\['wide'\]"):
        RobustnessReport(fitted).evaluate(X, y, test_sets={"wide": wide}, labels={"wide": ["ant", "bee"]})
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        RobustnessReport(fitted).evaluate(X, y, test_sets={"wide": (wide[0], wide[1][:-1])})
    with pytest.raises(ValueError, match="Factor 'near' of 'wide' tells of 5 pictures; the set has 300"):
        RobustnessReport(fitted).evaluate(
            X, y, test_sets={"wide": wide}, factors={"wide": {"near": np.ones(5, dtype=bool)}}
        )
    with pytest.raises(ValueError, match=r"temperature_size must be in \(0, 1\), got 1"):
        RobustnessReport(fitted, temperature_size=1).evaluate(X, y)
    with pytest.raises(ValueError, match="leaves one part empty"):
        RobustnessReport(fitted, temperature_size=0.001).evaluate(X, y)
    with pytest.raises(ValueError, match="n_bins must be a positive whole number"):
        RobustnessReport(fitted, n_bins=0).evaluate(X, y)
    with pytest.raises(ValueError, match="images must be a uint8 array"):
        RobustnessReport(fitted).evaluate(X, y, corruptions=["blur"])


# -- pictures ---------------------------------------------------------------------------------------------------------

CORRUPTIONS = ["gaussian_noise", "contrast", "jpeg"]
SHAPES = ["circle", "square", "star", "ring", "heart"]
COLORS = ["red", "green", "blue", "yellow"]


@pytest.fixture(scope="module", params=[10, 20], ids=["seed 10", "seed 20"])
def tiny(request):
    """Report of a zero-shot and a few-shot classifier of pictures; the latter; its test pictures; the text."""

    def world(n, seed, **kind):
        # noise enough that a temperature can be measured: without, every picture is recognised
        kind = {"held_out": "include", "shapes": SHAPES, "colors": COLORS, **kind}
        return make_picture_world(n, noise=45.0, random_state=request.param + seed, **kind)

    train, test = world(160, 1), world(200, 2)
    text = ZeroShotClassifier(
        "skclip-tiny", class_names={name: name for name in train.target_names}, templates="a photo of a {}"
    ).fit()
    features = CLIPFeatures("skclip-tiny")
    zero_shot = make_pipeline(features, text).fit(train.images[:2], train.target[:2])
    few_shot = make_pipeline(features, GDAClassifier(text, alpha=0.1)).fit(train.images, train.target)
    styles = {style: world(100, 3, styles=[style]) for style in ("sketch", "dark")}
    unseen = world(100, 4, shapes="unseen", colors="unseen", held_out="exclude")
    report = RobustnessReport({"zero-shot": zero_shot, "few-shot": few_shot}, baseline="zero-shot").evaluate(
        test.images,
        test.target,
        test_sets={style: (drawn.images, drawn.target) for style, drawn in styles.items()},
        ood={"unseen": unseen.images},
        corruptions=CORRUPTIONS,
        severities=(1, 5),
    )
    return report, few_shot, test, text


def test_accuracy_falls_with_severity(tiny):
    report = tiny[0]
    for model in ("zero-shot", "few-shot"):
        clean = of(report, model=model, kind="id")[0]["accuracy"]
        assert clean > 0.7
        for kind in CORRUPTIONS:
            mild, severe = (row["accuracy"] for row in of(report, model=model, corruption=kind))
            assert clean + 0.08 > mild > severe + 0.3


def test_corrupted_rows_are_those_of_the_table(tiny):
    report, few_shot, test, _ = tiny
    rows = of(report, model="few-shot", corruption="contrast")
    assert [row["n"] for row in rows] == [100] * 2
    # either half of the rows is about as hard
    whole = few_shot.score(corrupt_images(test.images, "contrast", severity=5), test.target)
    assert rows[1]["accuracy"] == pytest.approx(whole, abs=0.1)


def test_a_temperature_repairs_text_of_the_wrong_scale(tiny):
    _, few_shot, test, text = tiny
    encode = few_shot[0].transform
    models = {
        name: ZeroShotClassifier(
            prototypes=text.prototypes_, classes=text.classes_, logit_scale=factor * text.logit_scale_
        ).fit()
        for name, factor in (("right", 1.0), ("sure", 4.0))
    }
    clean, noisy = encode(test.images), encode(corrupt_images(test.images, "gaussian_noise", severity=1))
    gains = []
    for seed in range(5):
        # few rows, few bins: emptier bins make a calibrated classifier look worse
        report = RobustnessReport(models, n_bins=5, random_state=seed)
        report.evaluate(clean, test.target, test_sets={"noisy": (noisy, test.target)})
        temperatures = {row["model"]: row["temperature"] for row in report.summary_}
        # the scale is divided out exactly
        assert temperatures["sure"] == pytest.approx(4.0 * temperatures["right"], rel=1e-6)
        for row in of(report, model="sure"):
            assert row["nll_scaled"] < 0.6 * row["nll"]
            twin = of(report, model="right", set=row["set"])[0]
            assert row["accuracy"] == twin["accuracy"]
            assert row["ece_scaled"] == pytest.approx(twin["ece_scaled"], abs=1e-5)
        gains.append([row["ece"] - row["ece_scaled"] for row in of(report, model="sure")])
    # fitted without shift, it serves the noisier pictures as well
    assert (np.mean(gains, axis=0) > 0.03).all()


def test_corruption_errors_are_relative_to_the_baseline(tiny):
    report = tiny[0]
    summary = {row["model"]: row for row in report.summary_}
    assert summary["zero-shot"]["mean_corruption_error"] == pytest.approx(1.0)
    errors = {
        model: [[1 - row["accuracy"] for row in of(report, model=model, corruption=kind)] for kind in CORRUPTIONS]
        for model in summary
    }
    expected = mean_corruption_error(errors["few-shot"], errors["zero-shot"])
    assert summary["few-shot"]["mean_corruption_error"] == pytest.approx(expected)
    clean = {model: 1 - of(report, model=model, kind="id")[0]["accuracy"] for model in summary}
    expected = relative_mean_corruption_error(
        errors["few-shot"],
        errors["zero-shot"],
        clean_error=clean["few-shot"],
        baseline_clean_error=clean["zero-shot"],
    )
    assert summary["few-shot"]["relative_mean_corruption_error"] == pytest.approx(expected)


def test_known_facts_about_the_pictures(tiny):
    report = tiny[0]
    for model in ("zero-shot", "few-shot"):
        clean = of(report, model=model, kind="id")[0]["accuracy"]
        for row in of(report, model=model, kind="shift"):
            assert row["accuracy"] < clean - 0.3
            # confidence does not fall as accuracy does, and one temperature cannot help that
            assert min(row["ece"], row["ece_scaled"]) > 0.3
        assert of(report, model=model, kind="ood")[0]["auroc"] > 0.65


def test_plots_of_corruptions(tiny):
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    report = tiny[0]
    ax = report.plot_severity()
    assert [text.get_text() for text in ax.get_legend().get_texts()] == ["zero-shot", "few-shot"]
    np.testing.assert_array_equal(ax.lines[0].get_xdata(), [0, 1, 5])
    assert [tick.get_text() for tick in report.plot_accuracy().get_xticklabels()] == [
        "sketch", "dark", *CORRUPTIONS,
    ]  # fmt: skip
    pyplot.close("all")


def test_a_corruption_that_costs_nothing_is_told():
    class Blind(LogisticRegression):
        def logits(self, X):
            return np.tile([5.0, 0.0], (len(X), 1))

    model = Blind().fit(np.eye(2), [0, 1])
    pictures = make_picture_world(20).images
    report = RobustnessReport({"blind": model}, baseline="blind", temperature_size=None)
    with pytest.warns(SkclipWarning, match="mean_corruption_error of 'blind' is NaN"):
        report.evaluate(pictures, np.zeros(20, dtype=int), corruptions=["blur"], severities=[1])
    assert np.isnan(report.summary_[0]["mean_corruption_error"])
