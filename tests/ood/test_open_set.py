"""`OpenSetClassifier`: labels of known classes, a refusal for all others, and the threshold between."""

from __future__ import annotations

import pickle

import joblib
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KNeighborsClassifier, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.adapters import GDAClassifier, LinearProbeClassifier
from skclip.datasets import make_picture_world
from skclip.ensemble import COOkeDClassifier
from skclip.features import CLIPFeatures
from skclip.ood import EnergyDetector, MSPDetector, OpenSetClassifier
from skclip.ood._open_set import cheapest_threshold
from skclip.zero_shot import CLIPClassifier, ZeroShotClassifier

LOF = LocalOutlierFactor(n_neighbors=4, novelty=True)


@pytest.fixture(scope="module")
def world(clusters):
    return clusters(0)


def probe():
    return LogisticRegression(C=10.0)


class CountingProbe(LogisticRegression):
    n_fits = 0

    def fit(self, X, y, sample_weight=None):
        type(self).n_fits += 1
        return super().fit(X, y, sample_weight)


# --------------------------------------------------------------------------------------------------- the verdict


@pytest.mark.parametrize("detector", [MSPDetector(), LOF, IsolationForest(n_estimators=10, random_state=0)], ids=repr)
def test_labels_where_the_detector_accepts_and_the_reject_label_elsewhere(world, detector):
    clf = OpenSetClassifier(probe(), detector).fit(world.X, world.y)
    X = np.vstack([world.X_in, world.X_out])
    known = clf.score_samples(X) >= clf.threshold_
    assert 0 < known.sum() < len(X)
    assert_array_equal(clf.is_known(X), known)
    assert_array_equal(clf.predict(X), np.where(known, clf.classifier_.predict(X), -1))
    assert_array_equal(clf.score_samples(X), clf.detector_.score_samples(X))
    assert clf.score_samples(X).dtype == np.float64


def test_methods_of_the_classifier_speak_of_known_classes(world):
    clf = OpenSetClassifier(LinearProbeClassifier(), LOF).fit(world.X, world.y)
    assert_array_equal(clf.classes_, np.arange(5))
    for method in ("predict_proba", "decision_function", "logits"):
        assert_array_equal(getattr(clf, method)(world.X_out), getattr(clf.classifier_, method)(world.X_out))
    assert_allclose(clf.predict_proba(world.X_out).sum(axis=1), 1.0)
    no_probabilities = OpenSetClassifier(LinearSVC(), LOF)
    assert not hasattr(no_probabilities, "predict_proba")
    assert not hasattr(no_probabilities, "logits")
    assert hasattr(no_probabilities.fit(world.X, world.y), "decision_function")


def test_unknown_pictures_are_refused_and_known_ones_named(world):
    clf = OpenSetClassifier(probe(), LOF).fit(world.X, world.y)
    truth = np.repeat(np.arange(5), 80)
    assert (clf.predict(world.X_out) == -1).mean() > 0.99
    assert (clf.predict(world.X_in) == truth).mean() > 0.9


@pytest.mark.parametrize(
    "labels",
    [np.array(["ant", "bee", "cat", "dog", "elk"]), np.arange(5.0), np.arange(5) - 2, np.arange(5) - 3 * 10**18],
)
def test_labels_of_any_kind(world, labels):
    clf = OpenSetClassifier(probe(), LOF).fit(world.X, labels[world.y])
    expected = {"U": "unknown", "f": -1}.get(labels.dtype.kind) or int(labels.min()) - 1
    assert clf.reject_label_ == expected
    assert clf.predict(world.X_out).dtype.kind == labels.dtype.kind
    assert set(clf.predict(world.X_out).tolist()) <= {expected, *labels.tolist()}
    assert (clf.predict(world.X_out) == expected).mean() > 0.99
    named = OpenSetClassifier(probe(), LOF, reject_label="none of them" if labels.dtype.kind == "U" else 99)
    assert named.fit(world.X, labels[world.y]).predict(world.X_out[:1])[0] == named.reject_label


def test_a_class_called_unknown_is_left_alone(world):
    labels = np.array(["unknown", "bee", "cat", "dog", "elk"])
    clf = OpenSetClassifier(probe(), LOF).fit(world.X, labels[world.y])
    assert clf.reject_label_ == "unknown_"
    assert "unknown" in clf.predict(world.X_in)


def test_refused_pictures_of_unknown_classes_count_as_right(world):
    clf = OpenSetClassifier(probe(), LOF, tpr=0.8).fit(world.X, world.y)
    X = np.vstack([world.X_in, world.X_out])
    y = np.concatenate([np.repeat(np.arange(5), 80), np.full(len(world.X_out), -1)])
    assert clf.score(X, y) == np.mean(clf.predict(X) == y)
    assert clf.score(world.X_out, y[400:]) == np.mean(~clf.is_known(world.X_out))
    refused = ~clf.is_known(world.X_in)
    assert refused.any()
    assert clf.score(world.X_in[refused], y[:400][refused]) == 0.0


# ------------------------------------------------------------------------------------------------- the threshold


def overlapping(seed):
    """Four overlapping classes in 8 dimensions, 150 training and 500 fresh pictures each."""
    rng = np.random.default_rng(seed)
    centres = 1.5 * rng.normal(size=(4, 8))
    y, truth = np.repeat(np.arange(4), 150), np.repeat(np.arange(4), 500)
    return centres[y] + rng.normal(size=(600, 8)), y, centres[truth] + rng.normal(size=(2000, 8))


@pytest.mark.parametrize("detector", [MSPDetector(), LOF], ids=["msp", "lof"])
def test_the_share_of_fresh_known_pictures_is_kept(detector):
    # standard deviation of the share kept in one world: about 0.010 and 0.020; of the mean of eight a third of it
    worlds = [overlapping(seed) for seed in range(8)]
    for tpr, tolerance in [(0.95, 0.012), (0.75, 0.02)]:
        kept = [
            OpenSetClassifier(LinearDiscriminantAnalysis(), detector, tpr=tpr).fit(X, y).is_known(fresh).mean()
            for X, y, fresh in worlds
        ]
        assert abs(np.mean(kept) - tpr) < tolerance, kept


def test_with_few_pictures_the_threshold_is_on_the_safe_side(anisotropic):
    # members that have seen a fifth less score lower, here with 16 pictures per class
    kept = [
        OpenSetClassifier(probe(), MSPDetector(), tpr=0.9).fit(world.X, world.y).is_known(world.X_in).mean()
        for world in map(anisotropic, range(4))
    ]
    assert 0.9 < np.mean(kept) < 0.98


def test_in_sample_thresholds_flatter_a_classifier_that_knows_its_pictures(anisotropic):
    shares = {"cv": [], "in_sample": []}
    for seed in range(4):
        world = anisotropic(seed)
        for calibration, kept in shares.items():
            clf = OpenSetClassifier(LogisticRegression(C=1e4), MSPDetector(), calibration=calibration)
            kept.append(clf.fit(world.X, world.y).is_known(world.X_in).mean())
    assert np.mean(shares["in_sample"]) < 0.8
    assert np.mean(shares["cv"]) > 0.92


def test_in_sample_is_the_quantile_of_the_training_scores(world):
    clf = OpenSetClassifier(probe(), LOF, calibration="in_sample", tpr=0.8).fit(world.X, world.y)
    assert clf.threshold_ == np.quantile(clf.score_samples(world.X), 1.0 - 0.8)
    assert abs(clf.is_known(world.X).mean() - 0.8) < 1 / len(world.X)


def test_pictures_of_their_own_set_the_threshold(world):
    truth = np.repeat(np.arange(5), 80)
    clf = OpenSetClassifier(probe(), LOF, calibration=(world.X_in, truth), tpr=0.8).fit(world.X, world.y)
    assert clf.threshold_ == np.quantile(clf.score_samples(world.X_in), 1.0 - 0.8)
    # those of unknown classes among them set no share of known ones
    mixed = (np.vstack([world.X_in, world.X_out]), np.append(truth, np.full(len(world.X_out), -1)))
    with_unknown = OpenSetClassifier(probe(), LOF, reject_label=-1, calibration=mixed, tpr=0.8)
    assert with_unknown.fit(world.X, world.y).threshold_ == clf.threshold_


@pytest.mark.parametrize("names", [np.arange(5), np.array(["ant", "bee", "cat", "dog", "elk"])], ids=["int", "str"])
def test_pictures_of_their_own_may_carry_the_chosen_reject_label(world, names):
    truth = np.repeat(names, 80)
    clf = OpenSetClassifier(probe(), LOF, calibration=(world.X_in, truth), tpr=0.8).fit(world.X, names[world.y])
    unknown = np.full(len(world.X_out), clf.reject_label_)
    mixed = (np.vstack([world.X_in, world.X_out]), np.append(truth, unknown))
    again = OpenSetClassifier(probe(), LOF, calibration=mixed, tpr=0.8).fit(world.X, names[world.y])
    assert again.reject_label_ == clf.reject_label_
    assert again.threshold_ == clf.threshold_


def test_the_share_to_keep_moves_the_threshold_between_its_limits(world):
    thresholds = [
        OpenSetClassifier(probe(), LOF, tpr=tpr).fit(world.X, world.y).threshold_ for tpr in (0.0, 0.5, 0.9, 0.99, 1.0)
    ]
    assert thresholds[0] == np.inf
    assert thresholds[-1] == -np.inf
    assert np.all(np.diff(thresholds) < 0)


def test_limits_refuse_everything_and_nothing(world):
    everything = OpenSetClassifier(probe(), LOF, tpr=0.0).fit(world.X, world.y)
    assert set(everything.predict(world.X_in)) == {-1}
    nothing = OpenSetClassifier(probe(), LOF, tpr=1.0).fit(world.X, world.y)
    assert_array_equal(nothing.predict(world.X_out), nothing.classifier_.predict(world.X_out))


def test_a_score_as_threshold(world):
    clf = OpenSetClassifier(probe(), MSPDetector(), threshold=0.7).fit(world.X, world.y)
    assert clf.threshold_ == 0.7
    assert_array_equal(clf.is_known(world.X_in), clf.predict_proba(world.X_in).max(axis=1) >= 0.7)


def test_with_a_threshold_of_its_own_nothing_is_fitted_again(world):
    for params, n_fits in [({"threshold": 0.5}, 1), ({"tpr": 1.0}, 1), ({"calibration": "in_sample"}, 1), ({}, 6)]:
        CountingProbe.n_fits = 0
        OpenSetClassifier(CountingProbe(), MSPDetector(), **params).fit(world.X, world.y)
        assert CountingProbe.n_fits == n_fits


# ------------------------------------------------------------------------------------------------------- by cost


def total_cost(threshold, scores, excess, shares):
    return (shares * excess)[scores >= threshold].sum()


@pytest.mark.parametrize("seed", range(20))
def test_the_cheapest_threshold_is_the_cheapest_of_all(seed):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 8, size=30).astype(float)  # with ties
    excess, shares = rng.choice([-0.2, 0.8], size=30), rng.random(30)
    found = total_cost(cheapest_threshold(scores, excess, shares), scores, excess, shares)
    every = [total_cost(t, scores, excess, shares) for t in [-np.inf, *(np.unique(scores)), np.inf]]
    assert_allclose(found, min(every), atol=1e-12)


def test_of_several_cheapest_thresholds_the_one_that_refuses_least():
    assert cheapest_threshold(np.arange(4.0), np.zeros(4), np.ones(4)) == -np.inf
    assert cheapest_threshold(np.arange(4.0), np.array([1.0, -1.0, 1.0, -1.0]), np.ones(4)) == 0.5
    assert cheapest_threshold(np.arange(4.0), np.ones(4), np.ones(4)) == np.inf
    assert cheapest_threshold(np.zeros(4), np.array([-1.0, -1.0, 1.0, 2.0]), np.ones(4)) == np.inf
    # no number lies between two neighbours
    low = np.nextafter(1.0, 0.0)
    assert cheapest_threshold(np.array([low, 1.0]), np.array([1.0, -1.0]), np.ones(2)) == 1.0


def test_the_cheapest_threshold_is_where_isotonic_regression_passes_the_cost_of_a_refusal():
    from sklearn.isotonic import IsotonicRegression

    rng = np.random.default_rng(0)
    scores = rng.random(400)
    cost = (rng.random(400) > scores).astype(float)
    for refusal in (0.1, 0.3, 0.62):
        threshold = cheapest_threshold(scores, cost - refusal, np.ones(400))
        expected = IsotonicRegression(increasing=False).fit(scores, cost).predict(scores)
        assert_array_equal(scores >= threshold, expected <= refusal)


def hard(anisotropic):
    world = anisotropic(1)
    X = np.vstack([world.X, world.X_out[::3]])
    return X, np.append(world.y, np.full(len(world.X_out[::3]), -1)), world


@pytest.mark.parametrize("detector", [MSPDetector(), LOF], ids=["msp", "lof"])
def test_dearer_answers_are_refused_more_often(anisotropic, detector):
    X, y, _ = hard(anisotropic)
    for name, values in [("cost_error", (0.0, 0.3, 1.0, 5.0)), ("cost_unknown", (0.0, 0.3, 1.0, 5.0))]:
        thresholds = [
            OpenSetClassifier(probe(), detector, reject_label=-1, threshold="cost", calibration="in_sample")
            .set_params(**{name: value})
            .fit(X, y)
            .threshold_
            for value in values
        ]
        assert np.all(np.diff(thresholds[1:]) >= 0), name
        assert thresholds[-1] > thresholds[0], name


def test_dearer_refusals_are_fewer(anisotropic):
    X, y, _ = hard(anisotropic)
    clf = OpenSetClassifier(probe(), MSPDetector(), reject_label=-1, threshold="cost")
    thresholds = [clone(clf).set_params(cost_rejection=cost).fit(X, y).threshold_ for cost in (0.02, 0.2, 0.5, 1.0)]
    assert np.all(np.diff(thresholds) <= 0)
    assert thresholds[0] > thresholds[2]
    assert thresholds[-1] == -np.inf  # no answer can cost more than the refusal


def test_the_cost_rule_costs_less_than_answering_all_none_and_a_share(anisotropic):
    saved = []
    for seed in range(4):
        world = anisotropic(seed)
        X = np.vstack([world.X, world.X_out[::3]])
        y = np.append(world.y, np.full(len(world.X_out[::3]), -1))
        X_test = np.vstack([world.X_in, world.X_out[1::3]])
        y_test = np.append(np.repeat(np.arange(20), 20), np.full(len(world.X_out[1::3]), -1))

        def cost(X_test=X_test, y_test=y_test, X=X, y=y, **params):
            clf = OpenSetClassifier(probe(), MSPDetector(), reject_label=-1, **params).fit(X, y)
            answers = clf.predict(X_test)
            return np.where(answers == -1, 0.2, answers != y_test).mean()

        others = [cost(tpr=tpr) for tpr in (0.0, 0.95, 1.0)]
        saved.append(min(others) - cost(threshold="cost"))
    # against the best of the three in each world, known only afterwards
    assert min(saved) > 0.05, saved


def test_pictures_of_unknown_classes_are_not_learned(world):
    y = np.append(world.y, np.full(len(world.X_out), -1))
    X = np.vstack([world.X, world.X_out])
    for threshold in ("tpr", "cost"):
        clf = OpenSetClassifier(probe(), LOF, reject_label=-1, threshold=threshold)
        with_unknown, without = clone(clf).fit(X, y), clone(clf).fit(world.X, world.y)
        assert_array_equal(with_unknown.classes_, np.arange(5))
        assert_array_equal(with_unknown.classifier_.coef_, without.classifier_.coef_)
        assert_array_equal(with_unknown.score_samples(X), without.score_samples(X))
        assert (with_unknown.threshold_ == without.threshold_) == (threshold == "tpr")


def test_the_expected_share_of_unknown_pictures_moves_the_cost(anisotropic):
    X, y, _ = hard(anisotropic)
    clf = OpenSetClassifier(probe(), MSPDetector(), reject_label=-1, threshold="cost")
    thresholds = [clone(clf).set_params(unknown_rate=rate).fit(X, y).threshold_ for rate in (0.0, 0.1, 0.5, 0.9)]
    assert np.all(np.diff(thresholds) >= 0)
    assert thresholds[-1] > thresholds[0]
    own_rate = np.mean(y == -1)
    assert clone(clf).set_params(unknown_rate=own_rate).fit(X, y).threshold_ == clone(clf).fit(X, y).threshold_
    known = clone(clf).fit(X[y != -1], y[y != -1])
    assert clone(clf).set_params(unknown_rate=0.0).fit(X, y).threshold_ == known.threshold_


# ------------------------------------------------------------------------------------------------- one classifier


def test_a_detector_without_classifier_reads_the_one_fitted_here(world):
    clf = OpenSetClassifier(probe(), MSPDetector(), calibration="in_sample").fit(world.X, world.y)
    assert clf.detector_.classifier_.estimator is clf.classifier_
    assert_allclose(clf.score_samples(world.X_in), clf.predict_proba(world.X_in).max(axis=1))
    # the parameter keeps what the user said
    assert clf.detector.classifier is None
    nested = OpenSetClassifier(probe(), make_pipeline(StandardScaler(), EnergyDetector())).fit(world.X, world.y)
    assert nested.detector_[-1].classifier_.estimator is nested.classifier_


def test_a_detector_with_a_classifier_keeps_it(world):
    clf = OpenSetClassifier(probe(), MSPDetector(GDAClassifier())).fit(world.X, world.y)
    assert isinstance(clf.detector_.classifier_, GDAClassifier)


def test_without_detector_the_classifier_scores_itself_where_it_can(world):
    by_default = OpenSetClassifier(probe()).fit(world.X, world.y)
    assert isinstance(by_default.detector_, MSPDetector)
    assert by_default.detector_.classifier_.estimator is by_default.classifier_

    class Scores(GDAClassifier):
        def score_samples(self, X):
            return np.asarray(X)[:, 0].astype(float)

    clf = OpenSetClassifier(Scores()).fit(world.X, world.y)
    assert clf.detector_ is clf.classifier_
    assert_array_equal(clf.score_samples(world.X), world.X[:, 0])


@pytest.mark.parametrize("tpr", [0.0, 0.3, 0.9, 1.0])
def test_the_verdict_as_an_outlier_detector(world, tpr):
    clf = OpenSetClassifier(probe(), LOF, tpr=tpr).fit(world.X, world.y)
    detector = clf.as_outlier_detector()
    for X in (world.X_in, world.X_out):
        assert_array_equal(detector.predict(X) == 1, clf.is_known(X))
        assert_array_equal(detector.score_samples(X), clf.score_samples(X))


def test_an_ensemble_that_scores_is_classifier_and_detector(world):
    members = [("probe", probe()), ("neighbours", KNeighborsClassifier(5, weights="distance"))]
    clf = OpenSetClassifier(COOkeDClassifier(members, calibration=None)).fit(world.X, world.y)
    assert clf.detector_ is clf.classifier_
    assert_array_equal(clf.score_samples(world.X_in), clf.classifier_.score_samples(world.X_in))
    frozen = COOkeDClassifier(members).fit(world.X, world.y)
    truth = np.repeat(np.arange(5), 80)
    by_view = OpenSetClassifier(FrozenEstimator(frozen), frozen.as_outlier_detector(), calibration="in_sample")
    assert abs(by_view.fit(world.X_in, truth).is_known(world.X_in).mean() - 0.95) < 0.01
    assert_array_equal(by_view.score_samples(world.X_out), frozen.score_samples(world.X_out))


def test_a_frozen_classifier_is_fitted_once_for_both(world):
    CountingProbe.n_fits = 0
    frozen = FrozenEstimator(CountingProbe().fit(world.X, world.y))
    truth = np.repeat(np.arange(5), 80)
    clf = OpenSetClassifier(frozen, MSPDetector(frozen)).fit(world.X_in, truth)
    assert CountingProbe.n_fits == 1
    assert clf.threshold_ == pytest.approx(np.quantile(clf.score_samples(world.X_in), 0.05))


def test_prototypes_are_a_classifier(world):
    clf = OpenSetClassifier(world.text, LOF).fit(world.X, world.y)
    assert_array_equal(clf.classes_, np.arange(5))
    by_text = OpenSetClassifier(ZeroShotClassifier(prototypes=world.text), LOF).fit(world.X, world.y)
    assert_array_equal(clf.predict(world.X_in), by_text.predict(world.X_in))


# ---------------------------------------------------------------------------------------------- around scikit-learn


def test_searches_reach_both_members_and_the_threshold(world):
    X = np.vstack([world.X, world.X_out])
    y = np.append(world.y, np.full(len(world.X_out), -1))
    grid = {"classifier__C": [0.1, 10.0], "detector__n_neighbors": [4, 40], "tpr": [0.5, 0.95]}
    search = GridSearchCV(OpenSetClassifier(probe(), LOF, reject_label=-1), grid, cv=2, error_score="raise").fit(X, y)
    assert search.best_params_["tpr"] == 0.95
    assert search.best_score_ > 0.8
    assert cross_val_score(search.best_estimator_, X, y, cv=2, error_score="raise").mean() == search.best_score_


def test_in_a_pipeline(world):
    pipeline = make_pipeline(StandardScaler(), OpenSetClassifier(probe(), LOF)).fit(world.X, world.y)
    assert (pipeline.predict(world.X_out) == -1).mean() > 0.9
    assert pipeline.score_samples(world.X_in).shape == (400,)


@pytest.mark.parametrize("params", [{}, {"threshold": "cost"}, {"tpr": 1.0}], ids=repr)
def test_saved_and_loaded(world, params, tmp_path):
    clf = OpenSetClassifier(probe(), MSPDetector(), **params).fit(world.X, world.y)
    joblib.dump(clf, tmp_path / "clf.joblib")
    for loaded in (pickle.loads(pickle.dumps(clf)), joblib.load(tmp_path / "clf.joblib")):
        assert_array_equal(loaded.predict(world.X_out), clf.predict(world.X_out))
        # one classifier, not two copies
        assert loaded.detector_.classifier_.estimator is loaded.classifier_


def test_sample_weight_reaches_the_classifier(world):
    weights = np.where(world.y == 0, 3.0, 1.0)
    for clf in (
        OpenSetClassifier(probe(), LOF),
        OpenSetClassifier(probe(), IsolationForest(n_estimators=10, random_state=0)),
    ):
        fitted = clf.fit(world.X, world.y, sample_weight=weights)
        assert_array_equal(fitted.classifier_.coef_, probe().fit(world.X, world.y, weights).coef_)
    with pytest.raises(ValueError, match="KNeighborsClassifier takes no sample_weight"):
        OpenSetClassifier(KNeighborsClassifier(), LOF).fit(world.X, world.y, sample_weight=weights)
    with pytest.raises(TypeError, match="groups"):
        OpenSetClassifier(probe(), LOF).fit(world.X, world.y, groups=weights)


def test_rows_of_unknown_classes_take_their_weights_with_them(world):
    X, y = np.vstack([world.X_out[:9], world.X]), np.append(np.full(9, -1), world.y)
    weights = np.random.default_rng(0).random(len(y))
    clf = OpenSetClassifier(probe(), LOF, reject_label=-1).fit(X, y, sample_weight=weights)
    assert_array_equal(clf.classifier_.coef_, probe().fit(world.X, world.y, weights[9:]).coef_)


def test_metadata_routing(world):
    weights = np.where(world.y == 0, 3.0, 1.0)
    with config_context(enable_metadata_routing=True):
        asks = probe().set_fit_request(sample_weight=True)
        for detector in (
            LOF,
            None,
            IsolationForest(n_estimators=10, random_state=0).set_fit_request(sample_weight=False),
        ):
            clf = OpenSetClassifier(asks, detector).fit(world.X, world.y, sample_weight=weights)
            assert_array_equal(clf.classifier_.coef_, probe().fit(world.X, world.y, weights).coef_)
        asks_not = OpenSetClassifier(probe().set_fit_request(sample_weight=False), LOF)
        with pytest.raises(TypeError, match="sample_weight"):
            asks_not.fit(world.X, world.y, sample_weight=weights)


@parametrize_with_checks(
    [
        OpenSetClassifier(LogisticRegression(), IsolationForest(n_estimators=5, random_state=0), tpr=1.0),
        OpenSetClassifier(LogisticRegression(), MSPDetector(), threshold="cost", cost_rejection=2.0),
    ]
)
def test_scikit_learn_contract_of_variants(estimator, check):
    check(estimator)


# --------------------------------------------------------------------------------------------------------- pictures


def test_pictures_reach_the_members_untouched():
    drawn = make_picture_world(120, shapes=["circle", "star"], colors=["red", "blue"], random_state=0)
    strange = make_picture_world(20, shapes=["heart"], colors=["green"], random_state=1)
    pictures = list(drawn.images)
    encoder = CLIPFeatures("skclip-tiny")
    clf = OpenSetClassifier(
        CLIPClassifier("skclip-tiny", GDAClassifier()), make_pipeline(encoder, LocalOutlierFactor(novelty=True))
    ).fit(pictures, drawn.target)
    assert clf.score(pictures, drawn.target) > 0.85
    assert (clf.predict(list(strange.images)) == "unknown").mean() > 0.8
    in_features = OpenSetClassifier(GDAClassifier(), LocalOutlierFactor(novelty=True))
    rows = encoder.fit_transform(pictures)
    assert_array_equal(in_features.fit(rows, drawn.target).predict(rows), clf.predict(pictures))
    shared = OpenSetClassifier(CLIPClassifier("skclip-tiny", GDAClassifier()), MSPDetector())
    assert shared.fit(pictures, drawn.target).is_known(pictures).mean() > 0.9


# ----------------------------------------------------------------------------------------------------------- errors


def test_reject_labels_that_do_not_fit(world):
    names = np.array(["ant", "bee", "cat", "dog", "elk"])[world.y]
    with pytest.raises(ValueError, match=r"reject_label=-1 does not fit y, which holds strings; 'unknown' would"):
        OpenSetClassifier(probe(), LOF, reject_label=-1).fit(world.X, names)
    with pytest.raises(ValueError, match=r"reject_label='no' does not fit y, which holds numbers; -1 would"):
        OpenSetClassifier(probe(), LOF, reject_label="no").fit(world.X, world.y)
    with pytest.raises(ValueError, match="booleans"):
        OpenSetClassifier(probe(), LOF).fit(world.X, world.y > 2)


def test_a_reject_label_that_the_classifier_knows(world):
    frozen = FrozenEstimator(probe().fit(world.X, world.y))
    with pytest.raises(ValueError, match="reject_label=4 is a class of FrozenEstimator"):
        OpenSetClassifier(frozen, LOF, reject_label=4).fit(world.X, world.y)
    with pytest.raises(ValueError, match="Every row of y is reject_label=0"):
        OpenSetClassifier(probe(), LOF, reject_label=0).fit(world.X, np.zeros_like(world.y))


def test_members_that_do_not_fit(world):
    with pytest.raises(ValueError, match="'detector' parameter"):
        OpenSetClassifier(probe(), LocalOutlierFactor()).fit(world.X, world.y)
    with pytest.raises(TypeError, match="is not a classifier"):
        OpenSetClassifier(IsolationForest(n_estimators=5), LOF).fit(world.X, world.y)
    with pytest.raises(NotFittedError, match="GDAClassifier"):
        OpenSetClassifier(FrozenEstimator(GDAClassifier()), LOF).fit(world.X, world.y)


def test_scores_that_are_no_numbers(world):
    class Broken(IsolationForest):
        value = np.nan

        def score_samples(self, X):
            scores = super().score_samples(X)
            scores[2] = self.value
            return scores

    with pytest.raises(ValueError, match=r"Broken gives nan for X\[2\]"):
        OpenSetClassifier(probe(), Broken(n_estimators=2)).fit(world.X, world.y)

    class Wide(IsolationForest):
        def score_samples(self, X):
            return np.zeros((len(X), 2))

    with pytest.raises(ValueError, match=r"score_samples of Wide has shape"):
        OpenSetClassifier(probe(), Wide(n_estimators=2)).fit(world.X, world.y)


def test_calibration_that_does_not_fit(world):
    with pytest.raises(ValueError, match="holds out pictures"):
        OpenSetClassifier(probe(), LOF).fit(world.X[::60], world.y[::60])
    with pytest.raises(ValueError, match="calibration holds 3 things"):
        OpenSetClassifier(probe(), LOF, calibration=(1, 2, 3)).fit(world.X, world.y)
    with pytest.raises(ValueError, match="no picture of a known class"):
        OpenSetClassifier(probe(), LOF, reject_label=-1, calibration=(world.X_out, np.full(500, -1))).fit(
            world.X, world.y
        )
    strange = (world.X_in, np.repeat(np.arange(3, 8), 80))
    with pytest.raises(ValueError, match=r"holds the labels \[5, 6, 7\], which are neither .* nor reject_label"):
        OpenSetClassifier(probe(), LOF, calibration=strange).fit(world.X, world.y)
    with pytest.raises(ValueError, match=r"holds the labels \['ant'\]"):
        OpenSetClassifier(probe(), LOF, calibration=(world.X_in, ["ant"] * 400)).fit(world.X, world.y)
    with pytest.raises(ValueError, match="no picture of an unknown class is given"):
        OpenSetClassifier(probe(), LOF, threshold="cost", unknown_rate=0.5).fit(world.X, world.y)


@pytest.mark.parametrize(
    ("name", "value"),
    [("tpr", 1.5), ("threshold", "quantile"), ("cost_error", -1.0), ("unknown_rate", 1.0), ("calibration", "loo")],
)
def test_parameters_out_of_range_are_named(world, name, value):
    with pytest.raises(ValueError, match=f"'{name}' parameter"):
        OpenSetClassifier(probe(), LOF).set_params(**{name: value}).fit(world.X, world.y)
