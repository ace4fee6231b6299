"""What holds of every detector of the room, whatever its score."""

from __future__ import annotations

import pickle
import subprocess
import sys

import joblib
import numpy as np
import pytest
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV

from skclip import ood
from skclip.metrics import get_scorer, ood_auroc
from skclip.utils._arrays import unit_rows

RNG = np.random.default_rng(0)
TEXT = unit_rows(RNG.normal(size=(4, 12)))
LABELS = np.array(["cat", "dog", "hen", "owl"])
CODES = np.repeat(np.arange(4), 30)
Y = LABELS[CODES]
X = unit_rows(TEXT[CODES] + 0.12 * RNG.normal(size=(120, 12)))
X_IN = unit_rows(TEXT[np.repeat(np.arange(4), 20)] + 0.12 * RNG.normal(size=(80, 12)))
X_OUT = unit_rows(RNG.normal(size=(60, 12)))
HEAD = LogisticRegression(C=100.0)

# class name -> parameters, and one to search with two values
CASES = {
    "MSPDetector": ({"classifier": HEAD}, {"temperature": [1.0, 2.0]}),
    "EntropyDetector": ({"classifier": HEAD}, {"classifier__C": [1.0, 10.0]}),
    "MaxLogitDetector": ({"classifier": HEAD}, {"classifier__C": [1.0, 10.0]}),
    "EnergyDetector": ({"classifier": HEAD}, {"temperature": [0.5, 1.0]}),
    "GENDetector": ({"classifier": HEAD}, {"gamma": [0.1, 0.5]}),
    "KLMatchingDetector": ({"classifier": HEAD}, {"classifier__C": [1.0, 10.0]}),
    "MahalanobisDetector": ({}, {"covariance": ["ks", "empirical"]}),
    "RelativeMahalanobisDetector": ({}, {"covariance": ["ks", "empirical"]}),
    "KNNDetector": ({"n_neighbors": 5}, {"n_neighbors": [1, 10]}),
    "ViMDetector": ({"classifier": HEAD, "dim": 4}, {"dim": [3, 4]}),
    "ResidualDetector": ({"dim": 4}, {"dim": [3, 4]}),
    "ReActDetector": ({"classifier": HEAD}, {"percentile": [90, 99]}),
    "NNGuideDetector": ({"classifier": TEXT}, {"n_neighbors": [1, 10]}),
    "SHEDetector": ({"classifier": HEAD}, {"classifier__C": [1.0, 10.0]}),
    "GradNormDetector": ({"classifier": HEAD}, {"classifier__C": [1.0, 10.0]}),
    "MCMDetector": ({"zero_shot": TEXT}, {"temperature": [0.1, 1.0]}),
    "GLMCMDetector": ({"zero_shot": TEXT[:, :6], "n_tokens": 2}, {"temperature": [0.1, 1.0]}),
    "NegLabelDetector": (
        {"zero_shot": TEXT, "candidates": unit_rows(RNG.normal(size=(60, 12))), "fraction": 1.0, "n_groups": 2},
        {"n_groups": [1, 2]},
    ),
    "VarianceDetector": ({"zero_shot": TEXT}, {"temperature": [0.1, 1.0]}),
    "OODEnsemble": (
        {"detectors": [("knn", ood.KNNDetector(5)), ("means", ood.MahalanobisDetector(covariance="ks"))]},
        {"knn__n_neighbors": [1, 10]},
    ),
}
# scores that need not tell these worlds apart: GradNorm and SHE follow the head, and SHE knows directions alone
ONLY_FINITE = {"GradNormDetector", "ReActDetector"}

DETECTORS = [name for name in ood.__all__ if name.endswith("Detector") or name == "OODEnsemble"]


def make(name):
    return clone(getattr(ood, name)(**CASES[name][0]))


def labels_for(name):
    """Class text given as an array knows the labels 0..K-1."""
    return CODES if "zero_shot" in CASES[name][0] or name == "NNGuideDetector" else Y


def fitted(name):
    return make(name).fit(X, labels_for(name))


def test_the_list_is_complete():
    assert set(DETECTORS) == set(CASES)


@pytest.mark.parametrize("name", DETECTORS)
def test_scores_and_verdicts(name):
    detector = fitted(name)
    scores = detector.score_samples(X_IN)
    assert scores.dtype == np.float64
    assert scores.shape == (len(X_IN),)
    np.testing.assert_array_equal(detector.decision_function(X_IN), scores - detector.offset_)
    np.testing.assert_array_equal(detector.predict(X_IN), np.where(scores >= detector.offset_, 1, -1))
    np.testing.assert_array_equal(make(name).fit_predict(X, labels_for(name)), detector.predict(X))
    np.testing.assert_allclose(detector.score_samples(X_IN[:3]), scores[:3], rtol=1e-9)
    if name not in ONLY_FINITE:
        assert ood_auroc(scores, detector.score_samples(X_OUT)) > 0.8


@pytest.mark.parametrize("name", DETECTORS)
def test_one_in_ten_known_pictures_is_refused(name):
    detector = make(name).set_params(contamination=0.1).fit(X, labels_for(name))
    if name == "OODEnsemble":
        pytest.skip("its threshold is of held-out scores")
    assert np.sum(detector.predict(X) == -1) == 12


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize("calibration", ["cv", X_IN], ids=["cv", "data"])
def test_calibration(name, calibration):
    detector = make(name).set_params(contamination=0.2, calibration=calibration).fit(X, labels_for(name))
    refused = np.mean(detector.predict(X_IN) == -1)
    if isinstance(calibration, str):
        assert 0.05 < refused < 0.4
    else:
        assert refused == pytest.approx(0.2, abs=0.01)
    lenient = detector.set_params(contamination=0.05).calibrate(X_IN)
    assert np.mean(lenient.predict(X_IN) == -1) == pytest.approx(0.05, abs=0.01)


@pytest.mark.parametrize("name", DETECTORS)
def test_views_are_read_in_fit_alone(name):
    if name in {"GLMCMDetector", "OODEnsemble"} or isinstance(CASES[name][0].get("classifier"), LogisticRegression):
        pytest.skip("takes tokens, or members that take no views")
    views = np.stack([X, unit_rows(X + 0.05 * RNG.normal(size=X.shape))], axis=1)
    detector = make(name).fit(views, labels_for(name))
    np.testing.assert_allclose(detector.score_samples(views), detector.score_samples(X), rtol=1e-9)


@pytest.mark.parametrize("name", DETECTORS)
def test_float32_and_rows_of_any_length(name):
    if isinstance(CASES[name][0].get("classifier"), LogisticRegression):
        pytest.skip("a head of scikit-learn reads rows as they are")
    detector = fitted(name)
    scores = detector.score_samples(X_IN)
    np.testing.assert_allclose(detector.score_samples(X_IN.astype(np.float32)), scores, rtol=2e-4, atol=2e-4)
    np.testing.assert_allclose(detector.score_samples(3.0 * X_IN), scores, rtol=1e-9)


@pytest.mark.parametrize("name", DETECTORS)
def test_permutations_change_nothing(name):
    order = np.random.default_rng(1).permutation(len(X))
    y = labels_for(name)
    scores = fitted(name).score_samples(X_IN)
    again = make(name).fit(X[order], y[order]).score_samples(X_IN)
    tolerance = 1e-3 if isinstance(CASES[name][0].get("classifier"), LogisticRegression) else 1e-8
    if name == "OODEnsemble":
        assert np.corrcoef(scores, again)[0, 1] > 0.99  # other folds calibrate its members
    else:
        np.testing.assert_allclose(again, scores, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", DETECTORS)
def test_search_with_an_out_of_distribution_scorer(name):
    search = GridSearchCV(make(name), CASES[name][1], scoring=get_scorer("ood_auroc", X_out=X_OUT), cv=3)
    search.fit(X, labels_for(name))
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert set(search.best_params_) == set(CASES[name][1])


@pytest.mark.parametrize("name", DETECTORS)
def test_persistence(name, tmp_path):
    detector = fitted(name)
    scores = detector.score_samples(X_IN)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(detector)).score_samples(X_IN), scores)
    joblib.dump(detector, tmp_path / "detector.joblib")
    loaded = joblib.load(tmp_path / "detector.joblib", mmap_mode="r")
    np.testing.assert_allclose(loaded.score_samples(X_IN), scores, rtol=1e-12)


def test_nothing_needs_torch_on_a_cpu(tmp_path):
    detectors = {name: fitted(name) for name in DETECTORS if not isinstance(make(name), ood.OODEnsemble)}
    joblib.dump((detectors, X_IN), tmp_path / "all.joblib")
    code = (
        "import joblib, sys\n"
        f"detectors, X = joblib.load({str(tmp_path / 'all.joblib')!r})\n"
        "for detector in detectors.values():\n    detector.predict(X)\n"
        "assert not {'torch', 'open_clip', 'timm'} & set(sys.modules), sorted(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", DETECTORS)
def test_bad_rows_are_refused(name):
    detector = fitted(name)
    wrong = X_IN.copy()
    wrong[7, 3] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        detector.score_samples(wrong)
    with pytest.raises(ValueError, match=r"features|width|column"):
        detector.score_samples(X_IN[:, :5])


@pytest.mark.parametrize("name", [name for name in DETECTORS if "classifier" in CASES[name][0]])
def test_labels_that_are_needed(name):
    with pytest.raises(ValueError, match="needs y"):
        make(name).set_params(classifier=HEAD).fit(X)
    frozen = FrozenEstimator(clone(HEAD).fit(X, Y))
    if name not in {"SHEDetector"}:
        assert make(name).set_params(classifier=frozen).fit(X).predict(X_IN).shape == (len(X_IN),)
