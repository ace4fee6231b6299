"""The benchmark of detectors: the same figures as by hand, kept and found again, printed as papers do."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.covariance import EllipticEnvelope
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from sklearn.utils import Bunch

from skclip.adapters import GDAClassifier
from skclip.evaluation import ood_benchmark, ood_table
from skclip.features import CLIPFeatures
from skclip.metrics import detection_error, fpr_at_tpr, ood_aupr, ood_auroc, oscr_score
from skclip.ood import (
    EnergyDetector,
    KNNDetector,
    MahalanobisDetector,
    MaxLogitDetector,
    MCMDetector,
    MSPDetector,
    OpenSetClassifier,
    RelativeMahalanobisDetector,
)
from skclip.utils import SkclipWarning
from skclip.utils.estimator_checks import NearestMeanClassifier

RNG = np.random.default_rng(0)
CENTRES = RNG.normal(size=(3, 5)) * 3.0
Y = np.repeat(["ant", "bee", "cat"], 40)
X = CENTRES[np.repeat([0, 1, 2], 40)] + RNG.normal(size=(120, 5))
TRAIN, TEST = slice(0, None, 2), slice(1, None, 2)
KNOWN = (X[TRAIN], Y[TRAIN], X[TEST])
LABELLED = (*KNOWN, Y[TEST])
SETS = {
    "far off": RNG.normal(size=(25, 5)) * 9.0,
    "beside": X[:30] + RNG.normal(size=(30, 5)) * 1.5,
    "between": (X[:40] + X[-40:]) / 2.0,
}
ORDER = ["beside", "near mean", "far off", "between", "far mean", "mean"]
TIMES = ["fit_time", "score_time"]


class Away(OutlierMixin, BaseEstimator):
    """Minus the distance from the mean; tells what it was asked."""

    asked: list[int] = []
    fits: list[int] = []

    def __init__(self, power=1.0, *, fails_on=None, error=ValueError, noise=None):
        self.power = power
        self.fails_on = fails_on
        self.error = error
        self.noise = noise

    def fit(self, X, y=None):
        if self.fails_on == "fit":
            raise self.error("cannot learn")
        Away.fits.append(len(X))
        self.location_ = X.mean(axis=0)
        self.offset_ = -3.0
        self.shift_ = 0.0 if self.noise is None else float(np.random.default_rng().normal())
        return self

    def score_samples(self, X):
        if self.fails_on == len(X):
            raise self.error("cannot score")
        Away.asked.append(len(X))
        return -(np.linalg.norm(X - self.location_, axis=1) ** self.power) + self.shift_ * X[:, 0]


class NotFinite(Away):
    def score_samples(self, X):
        scores = super().score_samples(X)
        scores[3] = np.inf
        return scores


class OnlyADecision(OutlierMixin, BaseEstimator):
    def fit(self, X, y=None):
        self.location_ = X.mean(axis=0)
        return self

    def decision_function(self, X):
        return 4.0 - np.linalg.norm(X - self.location_, axis=1)


@pytest.fixture(autouse=True)
def nothing_asked():
    Away.asked.clear()
    Away.fits.clear()


def without_times(frame):
    return frame.drop(columns=TIMES)


def test_figures_are_those_of_the_metrics():
    detectors = {"GDA": GDAClassifier(), "LOF": LocalOutlierFactor(novelty=True)}
    frame = ood_benchmark(detectors, KNOWN, SETS)
    assert list(frame.columns) == [
        *["detector", "set", "kind", "auroc", "aupr_in", "aupr_out", "fpr95"],
        *["fit_time", "score_time", "n_in", "n_out", "error"],
    ]
    assert frame["set"].tolist() == [*SETS, "mean"] * 2
    assert frame["detector"].tolist() == ["GDA"] * 4 + ["LOF"] * 4
    assert frame["kind"].tolist() == ["ood", "ood", "ood", "mean"] * 2
    for name, detector in detectors.items():
        fitted = detector.fit(X[TRAIN], Y[TRAIN])
        rows = frame[frame["detector"] == name].set_index("set")
        for of_set, X_out in SETS.items():
            pair = fitted.score_samples(X[TEST]), fitted.score_samples(X_out)
            found = rows.loc[of_set, ["auroc", "aupr_in", "aupr_out", "fpr95"]].tolist()
            assert found == [ood_auroc(*pair), ood_aupr(*pair), ood_aupr(*pair, positive="out"), fpr_at_tpr(*pair)]
            assert rows.loc[of_set, "n_out"] == len(X_out)
        assert rows.loc["mean", "auroc"] == pytest.approx(rows.loc[list(SETS), "auroc"].mean())
        assert rows.loc["mean", "n_out"] == 95
        assert rows.loc["mean", "score_time"] == pytest.approx(rows.loc[list(SETS), "score_time"].sum())
    assert (frame["n_in"] == 60).all()
    assert (frame[TIMES] > 0).all(axis=None)
    assert frame["error"].isna().all()


def test_near_and_far_are_averaged_as_openood_does():
    frame = ood_benchmark({"away": Away()}, KNOWN, SETS, near=["beside"])
    assert frame["set"].tolist() == ORDER
    assert frame["kind"].tolist() == ["near", "mean", "far", "far", "mean", "mean"]
    auroc = frame.set_index("set")["auroc"]
    assert auroc["near mean"] == auroc["beside"]
    assert auroc["far mean"] == pytest.approx((auroc["far off"] + auroc["between"]) / 2)
    assert auroc["mean"] == pytest.approx((auroc["near mean"] + auroc["far mean"]) / 2)
    assert auroc["mean"] != pytest.approx(auroc[list(SETS)].mean())
    only_near = ood_benchmark({"away": Away()}, KNOWN, SETS, near=list(SETS))
    assert only_near["set"].tolist() == [*SETS, "near mean", "mean"]
    assert only_near["auroc"].iloc[-1] == only_near["auroc"].iloc[-2] == pytest.approx(auroc[list(SETS)].mean())


def test_each_is_fitted_once_and_scores_each_set_once():
    given = Away()
    ood_benchmark([("one", given), ("two", Away(2.0))], KNOWN, SETS)
    assert Away.fits == [60, 60]
    assert Away.asked == [60, 25, 30, 40] * 2
    assert not hasattr(given, "location_")


@pytest.mark.parametrize(
    ("detector", "score"),
    [
        (IsolationForest(n_estimators=5, random_state=0), "score_samples"),
        (EllipticEnvelope(random_state=0), "score_samples"),
        (OneClassSVM(), "score_samples"),
        (GaussianMixture(2, random_state=0), "score_samples"),
        (KernelDensity(), "score_samples"),
        (GDAClassifier(), "score_samples"),
        (MSPDetector(), "score_samples"),
        (make_pipeline(StandardScaler(), LocalOutlierFactor(novelty=True)), "score_samples"),
        (FrozenEstimator(EllipticEnvelope(random_state=0).fit(X[:50])), "score_samples"),
        (OnlyADecision(), "decision_function"),
    ],
    ids=lambda value: value if isinstance(value, str) else type(value).__name__,
)
def test_what_can_be_compared(detector, score):
    frame = ood_benchmark({"it": detector}, KNOWN, SETS, metrics=["auroc", "accepted_in", "accepted_out"])
    detector.fit(X[TRAIN], Y[TRAIN])
    inside, outside = (getattr(detector, score)(rows) for rows in (X[TEST], SETS["beside"]))
    row = frame.set_index("set").loc["beside"]
    assert row["auroc"] == ood_auroc(inside, outside)
    if hasattr(detector, "decision_function") and not isinstance(detector, GDAClassifier):
        assert row["accepted_in"] == np.mean(detector.decision_function(X[TEST]) >= 0)
        assert row["accepted_out"] == np.mean(detector.decision_function(SETS["beside"]) >= 0)
    else:
        assert np.isnan(row["accepted_in"])
        assert np.isnan(row["accepted_out"])


def test_other_classifiers_are_scored_by_their_largest_probability():
    frame = ood_benchmark({"lr": LogisticRegression()}, KNOWN, SETS).set_index("set")
    prob = LogisticRegression().fit(X[TRAIN], Y[TRAIN]).predict_proba
    assert frame.loc["beside", "auroc"] == ood_auroc(prob(X[TEST]).max(axis=1), prob(SETS["beside"]).max(axis=1))
    with pytest.raises(TypeError, match="RidgeClassifier has no predict_proba"):
        ood_benchmark({"ridge": RidgeClassifier()}, KNOWN, SETS)


def test_open_set_figures():
    detectors = {"msp": MSPDetector(NearestMeanClassifier()), "lr": LogisticRegression(), "away": Away()}
    frame = ood_benchmark(detectors, LABELLED, SETS, metrics=["oscr", "accuracy", "detection_error"])
    frame = frame.set_index(["detector", "set"])
    fitted = detectors["msp"].fit(X[TRAIN], Y[TRAIN])
    predicted, pair = fitted.predict_class(X[TEST]), [fitted.score_samples(rows) for rows in (X[TEST], SETS["beside"])]
    assert frame.loc[("msp", "beside"), "oscr"] == oscr_score(Y[TEST], predicted, *pair)
    assert frame.loc[("msp", "beside"), "accuracy"] == np.mean(Y[TEST] == predicted)
    assert frame.loc[("msp", "beside"), "detection_error"] == detection_error(*pair)
    assert frame.loc[("lr", "mean"), "accuracy"] == LogisticRegression().fit(X[TRAIN], Y[TRAIN]).score(X[TEST], Y[TEST])
    # an open-set classifier answers with a label of its own; what it would have said counts
    open_set = OpenSetClassifier(NearestMeanClassifier(), MSPDetector(), tpr=0.5)
    metrics = ["oscr", "accuracy", "accepted_in", "accepted_out"]
    row = ood_benchmark({"it": open_set}, LABELLED, SETS, metrics=metrics).set_index("set").loc["beside"]
    refusing = open_set.fit(X[TRAIN], Y[TRAIN])
    assert row["oscr"] == frame.loc[("msp", "beside"), "oscr"]
    assert row["accuracy"] == frame.loc[("msp", "beside"), "accuracy"] > refusing.score(X[TEST], Y[TEST])
    assert row["accepted_in"] == np.mean(refusing.is_known(X[TEST])) < 0.8
    assert row["accepted_out"] == np.mean(refusing.predict(SETS["beside"]) != refusing.reject_label_)
    assert np.isnan(frame.loc["away", ["oscr", "accuracy"]].to_numpy(dtype=float)).all()
    assert not np.isnan(frame.loc["away", "detection_error"]).any()
    with pytest.raises(ValueError, match="The metric 'oscr' needs y_test"):
        ood_benchmark({"lr": LogisticRegression()}, KNOWN, SETS, metrics=["oscr"])


def test_a_score_at_the_threshold_is_accepted():
    detector = RelativeMahalanobisDetector()  # of one class: 0 everywhere, the threshold as well
    frame = ood_benchmark({"flat": detector}, (X[TRAIN], None, X[TEST]), SETS, metrics=["accepted_in", "accepted_out"])
    assert (frame[["accepted_in", "accepted_out"]] == 1.0).all(axis=None)


def test_validation_pictures_set_the_threshold():
    known = Bunch(X_train=X[TRAIN], y_train=Y[TRAIN], X_test=X[TEST], X_val=X[::3])
    metrics = ["accepted_in", "accepted_out"]
    detectors = {"away": Away(), "msp": MSPDetector(contamination=0.3), "forest": IsolationForest(random_state=0)}
    frame = ood_benchmark(detectors, known, SETS, metrics=metrics).set_index(["detector", "set"])
    for name, contamination in [("away", 0.05), ("msp", 0.3), ("forest", 0.05)]:
        fitted = detectors[name].fit(X[TRAIN], Y[TRAIN])
        threshold = np.percentile(fitted.score_samples(X[::3]), 100 * contamination)
        for of_set, X_out in SETS.items():
            expected = [np.mean(fitted.score_samples(rows) >= threshold) for rows in (X[TEST], X_out)]
            assert frame.loc[(name, of_set), metrics].tolist() == expected
    # `calibrate` of our detectors is the same
    fitted = MSPDetector(contamination=0.3).fit(X[TRAIN], Y[TRAIN]).calibrate(X[::3])
    assert frame.loc[("msp", "beside"), "accepted_out"] == np.mean(fitted.predict(SETS["beside"]) == 1)


def test_other_metrics_and_rules():
    def gap(scores_in, scores_out):
        return scores_in.mean() - scores_out.mean()

    pair = [Away().fit(X[TRAIN]).score_samples(rows) for rows in (X[TEST], SETS["beside"])]
    metrics = {"AUROC": "auroc", "gap": gap, "low": "fpr80", "fine": "fpr97.5"}
    options = {"fpr_rule": "first", "fpr_positive": "out"}
    row = ood_benchmark({"away": Away()}, KNOWN, SETS, metrics=metrics, **options).set_index("set").loc["beside"]
    assert row["AUROC"] == ood_auroc(*pair)
    assert row["gap"] == gap(*pair)
    assert row["low"] == fpr_at_tpr(*pair, tpr=0.8, rule="first", positive="out")
    assert row["fine"] == fpr_at_tpr(*pair, tpr=0.975, rule="first", positive="out")


def test_pictures_through_a_pipeline(empty_stores, tmp_path):
    def pictures(seed, low, high, n=12):
        return np.random.default_rng(seed).integers(low, high, size=(n, 32, 32, 3), dtype=np.uint8)

    paths = []
    for i, picture in enumerate(pictures(3, 0, 256)):
        paths.append(tmp_path / f"{i}.png")
        Image.fromarray(picture).save(paths[-1])
    known = pictures(0, 90, 110), None, list(pictures(1, 90, 110))
    detectors = {"distance": make_pipeline(CLIPFeatures("skclip-tiny"), Away())}
    sets = {"array": pictures(2, 0, 256), "files": paths, "pictures": [Image.open(path) for path in paths]}
    folder = tmp_path / "kept"
    frame = ood_benchmark(detectors, known, sets, resume=folder)
    assert frame["auroc"].iloc[0] > 0.9
    assert frame["auroc"].iloc[1] == frame["auroc"].iloc[2]
    n_asked = len(Away.asked)
    pd.testing.assert_frame_equal(ood_benchmark(detectors, known, sets, resume=folder), frame)
    assert len(Away.asked) == n_asked
    # another picture in the place of one of the files
    Image.fromarray(pictures(9, 100, 101, n=1)[0]).save(paths[0])
    ood_benchmark(detectors, known, {"files": paths}, resume=folder)
    assert Away.asked[n_asked:] == [12, 12]


# -- what fails ---------------------------------------------------------------------------------------------------


def test_an_error_names_the_detector():
    with pytest.raises(ValueError, match="cannot learn") as caught:
        ood_benchmark({"good": Away(), "bad": Away(fails_on="fit")}, KNOWN, SETS)
    assert caught.value.__notes__ == ["The detector 'bad' of ood_benchmark failed in fit."]
    with pytest.raises(ValueError, match="cannot score") as caught:
        ood_benchmark({"bad": Away(fails_on=30)}, KNOWN, SETS)
    assert caught.value.__notes__ == ["The detector 'bad' of ood_benchmark failed on set 'beside'."]


def test_what_fails_is_nan_and_says_why():
    detectors = {
        "unfit": Away(fails_on="fit"),
        "blind": Away(fails_on=60),
        "picky": Away(fails_on=30),
        "infinite": NotFinite(),
        "needs labels": MSPDetector(),
        "good": Away(),
    }
    known = X[TRAIN], None, X[TEST]
    with pytest.warns(SkclipWarning) as caught:
        frame = ood_benchmark(detectors, known, SETS, near=["beside"], on_error="nan").set_index(["detector", "set"])
    messages = [str(warning.message) for warning in caught]
    assert messages[:3] == [
        "The detector 'unfit' failed (fit): ValueError: cannot learn",
        "The detector 'blind' failed (X_test): ValueError: cannot score",
        "The detector 'picky' failed (set 'beside'): ValueError: cannot score",
    ]
    assert len(messages) == 5
    for name, reason in [
        ("unfit", "ValueError: cannot learn"),
        ("blind", "ValueError: cannot score"),
        ("infinite", "ValueError: scores[3] is inf; every entry must be finite."),
    ]:
        assert frame.loc[name, "auroc"].isna().all()
        assert (frame.loc[name, "error"].dropna() == reason).all()
        assert frame.loc[name, "error"].notna().tolist() == [of_set in SETS for of_set in ORDER]
    assert "needs y" in frame.loc[("needs labels", "beside"), "error"]
    picky, good = frame.loc["picky", "auroc"], frame.loc["good", "auroc"]
    lost = ["beside", "near mean", "mean"]
    assert picky[lost].isna().all()
    assert picky.drop(lost).equals(good.drop(lost))
    assert frame.loc["good", "error"].isna().all()
    assert frame.loc[("unfit", "beside"), "n_out"] == 30


# -- what is kept -------------------------------------------------------------------------------------------------


def kept(folder):
    return sorted(path.name for path in folder.iterdir())


def test_nothing_is_computed_twice(tmp_path):
    detectors = {"one": Away(), "two": Away(2.0)}
    frame = ood_benchmark(detectors, LABELLED, SETS, resume=tmp_path)
    assert len(kept(tmp_path)) == 8
    assert all(name.endswith(".npz") for name in kept(tmp_path))
    Away.asked.clear()
    Away.fits.clear()
    pd.testing.assert_frame_equal(ood_benchmark(detectors, LABELLED, SETS, resume=tmp_path), frame)
    # other names, order, metrics and kinds of sets ask nothing new
    other = ood_benchmark(
        {"2": Away(2.0), "1": Away()}, LABELLED, SETS, near=["between"], metrics=["fpr80"], resume=str(tmp_path)
    )
    assert other["detector"].tolist() == ["2"] * 6 + ["1"] * 6
    assert Away.asked == Away.fits == []
    # what was not asked before is asked of a new fit
    ood_benchmark(detectors, LABELLED, {**SETS, "more": X[:7]}, metrics=["auroc", "accuracy"], resume=tmp_path)
    assert Away.fits == [60, 60]
    assert Away.asked == [60, 7] * 2  # 60 known pictures tell that the fit is the same


def test_a_killed_run_goes_on(tmp_path):
    killed = Away(fails_on=30, error=KeyboardInterrupt)
    with pytest.raises(KeyboardInterrupt):
        ood_benchmark({"first": Away(2.0), "killed": killed}, KNOWN, SETS, resume=tmp_path)
    assert len(kept(tmp_path)) == 6
    Away.asked.clear()
    detectors = {"first": Away(2.0), "second": Away()}
    done = ood_benchmark(detectors, KNOWN, SETS, resume=tmp_path)
    assert Away.asked == [60, 25, 30, 40]
    pd.testing.assert_frame_equal(without_times(done), without_times(ood_benchmark(detectors, KNOWN, SETS)))


def test_the_same_detector_goes_on_after_a_kill(tmp_path, monkeypatch):
    score = Away.score_samples

    def power_cut(self, X):
        if len(X) == 40:
            raise KeyboardInterrupt
        return score(self, X)

    monkeypatch.setattr(Away, "score_samples", power_cut)
    with pytest.raises(KeyboardInterrupt):
        ood_benchmark({"it": Away()}, KNOWN, SETS, resume=tmp_path)
    assert len(kept(tmp_path)) == 3
    monkeypatch.setattr(Away, "score_samples", score)
    Away.asked.clear()
    frame = ood_benchmark({"it": Away()}, KNOWN, SETS, resume=tmp_path)
    assert Away.asked == [60, 40]  # is it the same fit, and what was missing
    pd.testing.assert_frame_equal(without_times(frame), without_times(ood_benchmark({"it": Away()}, KNOWN, SETS)))


def test_another_process_finds_what_is_kept(tmp_path):
    code = """
import sys
import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skclip.adapters import GDAClassifier
from skclip.evaluation import ood_benchmark
from skclip.ood import (
    EnergyDetector,
    KNNDetector,
    MahalanobisDetector,
    MaxLogitDetector,
    MCMDetector,
    MSPDetector,
    OpenSetClassifier,
    RelativeMahalanobisDetector,
)
X, y = np.random.default_rng(0).normal(size=(40, 3)), np.repeat(["ant", "bee"], 20)
detectors = {
    "forest": IsolationForest(n_estimators=3, random_state=np.random.RandomState(0)),
    "msp": MSPDetector(GDAClassifier(), calibration=X[:9]),
    "text": MSPDetector(np.eye(3)[:2]),
    "frozen": FrozenEstimator(make_pipeline(StandardScaler(), GDAClassifier()).fit(X, y)),
}
ood_benchmark(detectors, (X, (y == "bee").astype(int), X), {"out": X + 1.0}, resume=sys.argv[1])
"""
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, env=environment)
        assert len(kept(tmp_path)) == 8


@pytest.mark.parametrize("change", ["parameter", "training", "labels", "test", "set", "frozen"])
def test_other_content_is_computed_anew(tmp_path, change):
    first = {"it": FrozenEstimator(Away().fit(X[:20]))} if change == "frozen" else {"it": Away()}
    ood_benchmark(first, KNOWN, SETS, resume=tmp_path)
    detectors, known, sets = first, list(KNOWN), dict(SETS)
    if change == "parameter":
        detectors = {"it": Away(1.5)}
    elif change == "frozen":
        detectors = {"it": FrozenEstimator(Away().fit(X[:21]))}
    elif change == "set":
        sets["beside"] = SETS["beside"] + 1e-3
    elif change == "labels":
        known[1] = Y[TRAIN][::-1]
    else:
        place = {"training": 0, "test": 2}[change]
        known[place] = known[place] + 1e-3
    Away.asked.clear()
    frame = ood_benchmark(detectors, tuple(known), sets, resume=tmp_path)
    expected = {"set": [60, 30], "test": [60]}.get(change, [60, 25, 30, 40])
    # other known test pictures: nothing tells whether what is kept of the sets is of the same fit
    assert Away.asked == ([60, 25, 30, 40] if change == "test" else expected)
    pd.testing.assert_frame_equal(without_times(frame), without_times(ood_benchmark(detectors, tuple(known), sets)))


@pytest.mark.parametrize("damage", ["cut", "empty", "garbage", "flipped", "another"])
@pytest.mark.parametrize("of", [0, -1])
def test_a_damaged_file_is_replaced(tmp_path, damage, of):
    frame = ood_benchmark({"it": Away()}, KNOWN, SETS, resume=tmp_path)
    path = sorted(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)[of]
    content = path.read_bytes()
    middle = content.index(b"\x93NUMPY") + 140
    path.write_bytes(
        {
            "cut": content[: len(content) // 2],
            "empty": b"",
            "garbage": bytes(range(256)) * 4,
            "flipped": content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :],
            "another": b"\x93NUMPY",
        }[damage]
    )
    Away.asked.clear()
    again = ood_benchmark({"it": Away()}, KNOWN, SETS, resume=tmp_path)
    assert Away.asked
    pd.testing.assert_frame_equal(without_times(again), without_times(frame))
    Away.asked.clear()
    ood_benchmark({"it": Away()}, KNOWN, SETS, resume=tmp_path)
    assert Away.asked == []


def test_scores_of_two_fits_are_not_mixed(tmp_path):
    """A detector that learns at random gives other scores after a break; all of them are then of the new fit."""
    some = {"far off": SETS["far off"], "beside": SETS["beside"]}
    ood_benchmark({"it": Away(noise=1.0)}, KNOWN, some, resume=tmp_path)
    Away.asked.clear()
    ood_benchmark({"it": Away(noise=1.0)}, KNOWN, SETS, resume=tmp_path)
    assert Away.asked == [60, 60, 25, 30, 40]


def test_unfinished_files_do_not_stay(tmp_path, monkeypatch):
    old, young = tmp_path / "ood-old.part", tmp_path / "ood-young.part"
    for path in (old, young):
        path.write_bytes(b"half")
    hours_ago = time.time() - 7200
    os.utime(old, (hours_ago, hours_ago))

    def no_space(file, **arrays):
        file.write(b"half")
        raise OSError("no space left")

    monkeypatch.setattr(np, "savez", no_space)
    with pytest.raises(OSError, match="no space left"):
        ood_benchmark({"it": Away()}, KNOWN, SETS, resume=tmp_path)
    assert kept(tmp_path) == ["ood-young.part"]


# -- how it runs --------------------------------------------------------------------------------------------------


def test_jobs_change_nothing_but_time():
    detectors = {f"{i}": IsolationForest(n_estimators=3, random_state=i) for i in range(4)}
    alone = ood_benchmark(detectors, KNOWN, SETS, near=["beside"])
    together = ood_benchmark(detectors, KNOWN, SETS, near=["beside"], n_jobs=2)
    pd.testing.assert_frame_equal(without_times(alone), without_times(together))


def test_progress_is_shown_when_asked_for(capsys):
    ood_benchmark({"it": Away()}, KNOWN, SETS)
    assert capsys.readouterr() == ("", "")
    ood_benchmark({"it": Away()}, KNOWN, SETS, verbose=1)
    assert "ood_benchmark: 100%" in capsys.readouterr().err


def test_without_pandas(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r'ood_benchmark needs pandas: pip install "skclip\[tables\]"'):
        ood_benchmark({"it": Away()}, KNOWN, SETS)


def test_bad_input(tmp_path):
    def run(detectors=None, known=KNOWN, sets=SETS, **options):
        return ood_benchmark({"it": Away()} if detectors is None else detectors, known, sets, **options)

    with pytest.raises(ValueError, match="detectors is empty"):
        run({})
    with pytest.raises(ValueError, match="Two detectors are named 'it'"):
        run([("it", Away()), ("it", Away())])
    with pytest.raises(ValueError, match=r"detectors\[1\] must be a pair \(name, estimator\), got Away"):
        run([("it", Away()), Away()])
    with pytest.raises(TypeError, match="The detector 'it' is no estimator: str has no fit"):
        run({"it": "msp"})
    with pytest.raises(TypeError, match="StandardScaler has neither score_samples nor decision_function"):
        run({"it": StandardScaler()})
    with pytest.raises(ValueError, match="id_data must be"):
        run(known=(X, Y))
    with pytest.raises(ValueError, match=r"id_data has no X_test; it has \['X_train'\]"):
        run(known={"X_train": X})
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        run(known=(X[:10], Y, X))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        run(known=(X, Y, X, Y[:10]))
    with pytest.raises(ValueError, match=r"ood_sets must be \{name: X\}"):
        run(sets={})
    with pytest.raises(ValueError, match="No set can be named 'mean'"):
        run(sets={"mean": X})
    with pytest.raises(ValueError, match=r"near names 'besides', which is none of the sets"):
        run(near=["besides"])
    with pytest.raises(ValueError, match="near must be a sequence of names, got the text 'beside'"):
        run(near="beside")
    with pytest.raises(ValueError, match=r"Unknown metric 'f1'; there are auroc, .* fpr95 and other percentages"):
        run(metrics=["f1"])
    with pytest.raises(ValueError, match="Unknown metric 'fpr0'"):
        run(metrics=["fpr0"])
    with pytest.raises(ValueError, match="metrics must be a sequence of names"):
        run(metrics="auroc")
    with pytest.raises(ValueError, match="metrics is empty"):
        run(metrics=[])
    with pytest.raises(ValueError, match="No metric can be named 'set'"):
        run(metrics={"set": "auroc"})
    with pytest.raises(ValueError, match="fpr_rule must be one of"):
        run(fpr_rule="nearest")
    with pytest.raises(ValueError, match="fpr_positive must be one of"):
        run(fpr_positive="ood")
    with pytest.raises(ValueError, match="on_error must be one of"):
        run(on_error="skip")
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError):
        run(resume=tmp_path / "file")


# -- for a paper --------------------------------------------------------------------------------------------------


@pytest.fixture
def frame():
    rows = [
        ("MSP", "near|set", "near", 0.81234, 0.5),
        ("MSP", "near mean", "mean", 0.81234, 0.5),
        ("MSP", "far_set", "far", 0.9, np.nan),
        ("MSP", "far mean", "mean", 0.9, np.nan),
        ("MSP", "mean", "mean", 0.85617, np.nan),
        ("k&N", "near|set", "near", 0.81216, 0.25),
        ("k&N", "near mean", "mean", 0.81216, 0.25),
        ("k&N", "far_set", "far", 0.95, 1.0),
        ("k&N", "far mean", "mean", 0.95, 1.0),
        ("k&N", "mean", "mean", 0.88108, 0.625),
    ]
    frame = pd.DataFrame(rows, columns=["detector", "set", "kind", "auroc", "fpr95"])
    return frame.assign(fit_time=1.0, score_time=1.0, n_in=1, n_out=1, error=None)


def test_markdown(frame):
    assert ood_table(frame).splitlines() == [
        "| AUROC ↑ | near\\|set | near mean |  far_set | far mean |     mean |",
        "| ------- | --------: | --------: | -------: | -------: | -------: |",
        "| MSP     |  **81.2** |  **81.2** |     90.0 |     90.0 |     85.6 |",
        "| k&N     |  **81.2** |  **81.2** | **95.0** | **95.0** | **88.1** |",
    ]
    plain = ood_table(frame, "fpr95", best=None, digits=2).splitlines()
    assert plain[0].startswith("| FPR95 ↓ |")
    assert [cell.strip() for cell in plain[2].split("|")[2:-1]] == ["50.00", "50.00", "–", "–", "–"]
    assert [cell.strip() for cell in ood_table(frame, "fpr95").splitlines()[3].split("|")[2:-1]] == [
        *["**25.0**", "**25.0**", "**100.0**", "**100.0**", "**62.5**"]
    ]
    both = ood_table(frame, ["auroc", "fpr95"]).splitlines()
    assert both[0].count("AUROC ↑") == both[0].count("FPR95 ↓") == 5
    assert {line.replace("\\|", "").count("|") for line in both} == {12}


def test_latex(frame):
    assert ood_table(frame, format="latex").splitlines() == [
        r"\begin{tabular}{lrrrrr}",
        r"\toprule",
        r"AUROC $\uparrow$ & near|set & near mean & far\_set & far mean & mean \\",
        r"\midrule",
        r"MSP & \textbf{81.2} & \textbf{81.2} & 90.0 & 90.0 & 85.6 \\",
        r"k\&N & \textbf{81.2} & \textbf{81.2} & \textbf{95.0} & \textbf{95.0} & \textbf{88.1} \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]
    both = ood_table(frame, ["fpr95", "auroc"], format="latex").splitlines()
    assert both[0] == r"\begin{tabular}{lrrrrrrrrrr}"
    assert both[2].count(r"\multicolumn{2}{c}") == 5
    assert both[3].split()[-1] == r"\cmidrule(lr){10-11}"
    assert both[4].count("&") == both[6].count(" & ") == both[7].count(" & ") == 10
    assert r"-- & 90.0" in both[6]
    awkward = frame.replace("MSP", r"a~b^c\d{e}%#$")
    assert r"a\textasciitilde{}b\textasciicircum{}c\textbackslash{}d\{e\}\%\#\$ &" in ood_table(awkward, format="latex")


def test_which_is_best(frame):
    frame = frame.assign(accepted_in=frame["auroc"], accepted_out=frame["auroc"], detection_error=frame["auroc"])
    frame = frame.assign(mine=frame["auroc"])
    assert "*" not in ood_table(frame, "accepted_in")
    assert ood_table(frame, "accepted_in").startswith("| accepted in |")
    for column in ("accepted_out", "detection_error"):
        assert "**85.6**" in ood_table(frame, column)
    assert "**88.1**" in ood_table(frame, "mine")
    assert "**85.6**" in ood_table(frame, "mine", smaller_is_better=["mine"])


def test_tables_of_a_benchmark():
    made = ood_benchmark({"one": Away(), "two": Away(0.5)}, KNOWN, SETS, near=["beside"])
    lines = ood_table(made, "fpr95").splitlines()
    assert [cell.strip() for cell in lines[0].split("|")[2:-1]] == ORDER
    assert len(lines) == 4


def test_bad_tables(frame):
    with pytest.raises(ValueError, match=r"metric must be among \['auroc', 'fpr95'\], got 'fit_time'"):
        ood_table(frame, "fit_time")
    with pytest.raises(ValueError, match="metric must be among"):
        ood_table(frame, [])
    with pytest.raises(ValueError, match="format must be one of"):
        ood_table(frame, format="html")
    with pytest.raises(ValueError, match="best must be 'bold' or None"):
        ood_table(frame, best="red")


# -- real features ------------------------------------------------------------------------------------------------


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:Classes 264 and 474 have the same prototype")
def test_reference_of_the_scores_in_one_call(real_features):
    imagenet, flowers = real_features("imagenet"), real_features("oxford_flowers")
    text = imagenet["text"]
    detectors = {
        "MCM": (MCMDetector(text), 0.884),
        "MaxLogit": (MaxLogitDetector(text), 0.899),
        "Energy": (EnergyDetector(text), 0.891),
        "MSP": (MSPDetector(text), 0.810),
        "kNN": (KNNDetector(50), 0.511),
        "Mahalanobis": (MahalanobisDetector(), 0.665),
        "relative Mahalanobis": (RelativeMahalanobisDetector(), 0.701),
    }
    known = tuple(imagenet[name] for name in ("X_train_4", "y_train_4", "X_train_2", "y_train_2"))
    frame = ood_benchmark(
        {name: detector for name, (detector, _) in detectors.items()},
        known,
        {"flowers": flowers["X_train_16"]},
        metrics=["auroc", "accuracy"],
    )
    found = frame[frame["kind"] == "ood"].set_index("detector")
    for name, (_, expected) in detectors.items():
        assert found.loc[name, "auroc"] == pytest.approx(expected, abs=0.003)
    assert found.loc[["MCM", "MSP"], "accuracy"].nunique() == 1
