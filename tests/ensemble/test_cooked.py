from __future__ import annotations

import itertools
import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy.special import entr, softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone, is_classifier, is_outlier_detector
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier, VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_predict, cross_val_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip import CLIPClassifier, ZeroShotClassifier
from skclip.adapters import GDAClassifier, LinearProbeClassifier, SimilarityVoteClassifier
from skclip.datasets import make_picture_world
from skclip.ensemble import COOkeDClassifier
from skclip.metrics import get_scorer, ood_auroc
from skclip.ood import EntropyDetector, MSPDetector, OutlierView
from skclip.utils import SkclipWarning
from skclip.utils._arrays import unit_rows

VARIANTS = [
    COOkeDClassifier([("lr", LogisticRegression()), ("gda", GDAClassifier())], score="msp", calibration="in_sample"),
    COOkeDClassifier([("lr", LogisticRegression())], calibration=None),
]


@parametrize_with_checks(VARIANTS)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def entropy(probabilities):
    return entr(probabilities).sum(axis=1)


def small(seed=0, n=60, d=8, n_classes=3):
    """Rows, labels, prototypes."""
    rng = np.random.default_rng(seed)
    text = unit_rows(rng.normal(size=(n_classes, d)))
    codes = np.arange(n) % n_classes
    return text[codes] + 0.3 * rng.normal(size=(n, d)), np.array(["cat", "dog", "owl"])[codes], text


class Constant(ClassifierMixin, BaseEstimator):
    """Gives every row one distribution."""

    def __init__(self, probabilities=None, classes=None):
        self.probabilities = probabilities
        self.classes = classes

    def fit(self, X, y):
        self.classes_ = np.unique(y) if self.classes is None else np.asarray(self.classes)
        return self

    def predict_proba(self, X):
        return np.tile(np.asarray(self.probabilities, dtype=float), (len(X), 1))

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def constants(*rows, **params):
    members = [(f"m{i}", Constant(row)) for i, row in enumerate(rows)]
    X, y, _ = small()
    return COOkeDClassifier(members, **params).fit(X, y), X


# -- the rule ---------------------------------------------------------------------------------------------------------


def test_the_mean_of_probabilities_and_its_scores():
    X, y, _ = small()
    members = [("lr", LogisticRegression()), ("nb", GaussianNB()), ("gda", GDAClassifier())]
    alone = [clone(member).fit(X, y).predict_proba(X) for _, member in members]
    for weights in (None, [1.0, 2.0, 0.5], {"nb": 3.0}):
        w = {None: [1, 1, 1]}.get(weights, weights) if weights is None else weights
        w = np.array([1.0, 3.0, 1.0]) if isinstance(w, dict) else np.array(w, dtype=float)
        mean = np.tensordot(w / w.sum(), alone, axes=1)
        clf = COOkeDClassifier(members, weights=weights).fit(X, y)
        np.testing.assert_allclose(clf.predict_proba(X), mean, atol=1e-12)
        np.testing.assert_array_equal(clf.predict(X), clf.classes_[mean.argmax(axis=1)])
        np.testing.assert_allclose(clf.score_samples(X), np.sum(mean * np.log(mean), axis=1), atol=1e-10)
        msp = clone(clf).set_params(score="msp").fit(X, y)
        np.testing.assert_allclose(msp.score_samples(X), mean.max(axis=1), atol=1e-12)
        assert msp.score_samples(X).dtype == np.float64
        for (name, _), own in zip(members, alone):
            np.testing.assert_array_equal(clf.member_probabilities(X)[name], own)


def test_it_is_the_soft_vote_of_scikit_learn():
    X, y, _ = small()
    members = [("lr", LogisticRegression()), ("nb", GaussianNB())]
    vote = VotingClassifier(members, voting="soft", weights=[2, 1]).fit(X, y)
    clf = COOkeDClassifier(members, weights=[2, 1]).fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X), vote.predict_proba(X), atol=1e-12)
    assert clf.score(X, y) == vote.score(X, y)


def test_all_weight_on_zero_shot_reproduces_its_msp_and_entropy():
    X, y, text = small()
    prompts = ZeroShotClassifier(prototypes=text, classes=["cat", "dog", "owl"])
    members = [("zs", prompts), ("lr", LogisticRegression()), ("nb", GaussianNB())]
    alone = clone(prompts).fit(X, y).predict_proba(X).astype(np.float64)
    clf = COOkeDClassifier(members, weights=(1, 0, 0)).fit(X, y)
    np.testing.assert_array_equal(clf.predict_proba(X), alone)
    np.testing.assert_array_equal(clf.score_samples(X), -entropy(alone))
    np.testing.assert_allclose(clf.score_samples(X), EntropyDetector(prompts).fit(X, y).score_samples(X), atol=1e-7)
    clf.set_params(score="msp").fit(X, y)
    np.testing.assert_array_equal(clf.score_samples(X), alone.max(axis=1))
    np.testing.assert_allclose(clf.score_samples(X), MSPDetector(prompts).fit(X, y).score_samples(X), atol=1e-7)


def test_copies_of_one_member_are_that_member():
    X, y, _ = small()
    alone = LogisticRegression().fit(X, y).predict_proba(X)
    clf = COOkeDClassifier([(name, LogisticRegression()) for name in "abc"]).fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X), alone, rtol=1e-14)
    np.testing.assert_allclose(clf.disagreement(X), 0.0, atol=1e-14)


def test_the_order_of_members_is_irrelevant():
    X, y, _ = small()
    members = [("lr", LogisticRegression()), ("nb", GaussianNB()), ("knn", KNeighborsClassifier())]
    weights = {"lr": 1.0, "nb": 0.3, "knn": 2.0}
    first = COOkeDClassifier(members, weights=weights).fit(X, y)
    for order in itertools.permutations(members):
        other = COOkeDClassifier(list(order), weights=weights).fit(X, y)
        np.testing.assert_allclose(other.predict_proba(X), first.predict_proba(X), atol=1e-14)
        assert other.offset_ == pytest.approx(first.offset_, abs=1e-12)


def test_limits_of_the_scores():
    for rows in ([[1 / 3] * 3] * 2, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]):
        clf, X = constants(*rows)
        np.testing.assert_allclose(clf.score_samples(X), -np.log(3.0), atol=1e-12)
        clf.set_params(score="msp")
        np.testing.assert_allclose(clf.score_samples(X), 1 / 3, atol=1e-12)
    clf, X = constants([0, 1, 0], [0, 1, 0])
    np.testing.assert_array_equal(clf.score_samples(X), 0.0)
    np.testing.assert_array_equal(clf.set_params(score="msp").score_samples(X), 1.0)
    rng = np.random.default_rng(0)
    for rows in rng.dirichlet(np.full(3, 0.3), size=(20, 2)):
        clf, X = constants(*rows)
        assert -np.log(3.0) <= clf.score_samples(X)[0] <= 0.0
        assert 1 / 3 <= clf.set_params(score="msp").score_samples(X)[0] <= 1.0


def test_disagreement_is_the_entropy_of_the_mean_less_the_mean_entropy():
    clf, X = constants([1, 0, 0], [0, 1, 0])
    np.testing.assert_allclose(clf.disagreement(X), np.log(2.0))
    clf, X = constants([1 / 3] * 3, [1 / 3] * 3)  # unsure alike
    np.testing.assert_allclose(clf.disagreement(X), 0.0, atol=1e-14)
    X, y, _ = small(n=90)
    members = [("lr", LogisticRegression()), ("nb", GaussianNB()), ("knn", KNeighborsClassifier())]
    weights = np.array([0.5, 0.2, 0.3])
    clf = COOkeDClassifier(members, weights=weights).fit(X, y)
    own = list(clf.member_probabilities(X).values())
    expected = entropy(clf.predict_proba(X)) - np.tensordot(weights, [entropy(p) for p in own], axes=1)
    np.testing.assert_allclose(clf.disagreement(X), expected, atol=1e-12)
    assert (clf.disagreement(X) >= 0.0).all()
    assert clf.disagreement(X).max() > 0.05


# -- temperature ------------------------------------------------------------------------------------------------------


def test_temperature_divides_logits():
    X, y, text = small()
    prompts = ZeroShotClassifier(prototypes=text, classes=["cat", "dog", "owl"])
    logits = prompts.fit(X, y).logits(X)
    clf = COOkeDClassifier([("zs", prompts), ("lr", LogisticRegression())], temperature={"zs": 20.0}).fit(X, y)
    own = clf.member_probabilities(X)
    np.testing.assert_allclose(own["zs"], softmax(logits.astype(float) / 20.0, axis=1), rtol=1e-12)
    np.testing.assert_array_equal(own["lr"], LogisticRegression().fit(X, y).predict_proba(X))
    assert clf.temperatures_ == {"zs": 20.0, "lr": 1.0}
    colder = COOkeDClassifier([("zs", prompts)], temperature=5.0).fit(X, y)
    np.testing.assert_allclose(colder.predict_proba(X), softmax(logits.astype(float) / 5.0, axis=1), rtol=1e-12)


def test_temperature_of_members_without_logits_is_a_power_of_their_probabilities():
    X, y, _ = small()
    for member in (RandomForestClassifier(20, random_state=0), LogisticRegression(), SimilarityVoteClassifier()):
        p = clone(member).fit(X, y).predict_proba(X)
        expected = p ** (1 / 3)
        expected /= expected.sum(axis=1, keepdims=True)
        clf = COOkeDClassifier([("m", member)], temperature=3.0).fit(X, y)
        np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-12)
    lr = LogisticRegression().fit(X, y)  # for a softmax model these are its logits divided
    np.testing.assert_allclose(
        COOkeDClassifier([("m", lr)], temperature=3.0).fit(X, y).predict_proba(X),
        softmax(lr.decision_function(X) / 3.0, axis=1),
        atol=1e-12,
    )


def test_temperature_reaches_logits_inside_pipelines_and_frozen_members():
    X, y, _ = small()
    piped = make_pipeline(StandardScaler(), GDAClassifier()).fit(X, y)
    expected = softmax(piped[-1].logits(piped[:-1].transform(X)) / 7.0, axis=1)
    for member in (piped, FrozenEstimator(piped)):
        clf = COOkeDClassifier([("m", member)], temperature=7.0).fit(X, y)
        np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-12)


# -- classes ----------------------------------------------------------------------------------------------------------


def test_columns_are_aligned_by_label():
    X, y, text = small()
    order = [2, 0, 1]
    names = np.array(["cat", "dog", "owl"])
    shuffled = ZeroShotClassifier(prototypes=text[order], classes=names[order])
    plain = ZeroShotClassifier(prototypes=text, classes=names)
    frozen = FrozenEstimator(Constant([0.5, 0.3, 0.2], ["owl", "cat", "dog"]).fit(X, y))
    clf = COOkeDClassifier([("a", shuffled), ("b", frozen)]).fit(X, y)
    assert clf.classes_.tolist() == ["cat", "dog", "owl"]
    own = clf.member_probabilities(X)
    np.testing.assert_allclose(own["a"], plain.fit(X, y).predict_proba(X), atol=1e-6)
    np.testing.assert_allclose(own["b"][0], [0.3, 0.2, 0.5])


def test_members_that_know_other_classes():
    X, y, _ = small()
    fewer = FrozenEstimator(Constant([0.4, 0.6], ["owl", "cat"]).fit(X, y))
    more = FrozenEstimator(Constant([0.4, 0.2, 0.2, 0.2], ["fox", "cat", "dog", "owl"]).fit(X, y))
    clf = COOkeDClassifier([("fewer", fewer), ("more", more)]).fit(X, y)
    own = clf.member_probabilities(X)
    np.testing.assert_allclose(own["fewer"][0], [0.6, 0.0, 0.4])  # 0 for what it does not know
    np.testing.assert_allclose(own["more"][0], [1 / 3, 1 / 3, 1 / 3])  # the share of the fox goes to the others
    np.testing.assert_allclose(clf.predict_proba(X).sum(axis=1), 1.0)


def test_without_labels_all_members_must_know_the_same():
    X, y, text = small()
    prompts = ZeroShotClassifier(prototypes=text, classes=["cat", "dog", "owl"])
    frozen = FrozenEstimator(GDAClassifier().fit(X, y))
    clf = COOkeDClassifier([("zs", prompts), ("gda", frozen)]).fit(X)
    np.testing.assert_array_equal(
        clf.predict_proba(X), COOkeDClassifier([("zs", prompts), ("gda", frozen)]).fit(X, y).predict_proba(X)
    )
    assert np.mean(clf.as_outlier_detector().predict(X) == 1) == pytest.approx(0.95, abs=0.02)
    two = FrozenEstimator(GDAClassifier().fit(X[y != "owl"], y[y != "owl"]))
    with pytest.raises(ValueError, match=r"'zs' knows \['cat', 'dog', 'owl'\] \(3 in all\) and 'two' \['cat', 'dog'\]"):
        COOkeDClassifier([("zs", prompts), ("two", two)]).fit(X)
    with pytest.raises(ValueError, match="requires y to be passed"):
        COOkeDClassifier([("zs", prompts), ("gda", GDAClassifier())]).fit(X)


# -- default members --------------------------------------------------------------------------------------------------


def test_default_members():
    X, y, text = small()
    clf = COOkeDClassifier().fit(X, y)
    assert list(clf.named_estimators_) == ["probe", "neighbors"]
    prompts = ZeroShotClassifier(prototypes=text[::-1], classes=["owl", "dog", "cat"], logit_scale=30.0)
    clf = COOkeDClassifier(zero_shot=prompts, weights={"zero_shot": 2.0}).fit(X, y)
    assert list(clf.named_estimators_) == ["zero_shot", "probe", "neighbors"]
    assert clf.weights_ == {"zero_shot": 0.5, "probe": 0.25, "neighbors": 0.25}
    parts = [clone(prompts), LinearProbeClassifier(), SimilarityVoteClassifier()]
    expected = np.tensordot([0.5, 0.25, 0.25], [part.fit(X, y).predict_proba(X) for part in parts], axes=1)
    np.testing.assert_allclose(clf.predict_proba(X), expected, atol=1e-6)
    scaled = COOkeDClassifier(zero_shot=prompts, logit_scale=60.0).fit(X, y)
    np.testing.assert_allclose(
        scaled.member_probabilities(X)["zero_shot"], softmax(2 * prompts.logits(X).astype(float), axis=1), atol=1e-5
    )


def test_an_array_of_prototypes_belongs_to_positions():
    X, y, text = small()
    codes = np.unique(y, return_inverse=True)[1]
    clf = COOkeDClassifier(zero_shot=text).fit(X, codes)
    assert clf.named_estimators_["zero_shot"].logit_scale_ == 100.0
    np.testing.assert_array_equal(clf.named_estimators_["zero_shot"].classes_, [0, 1, 2])
    with pytest.raises(ValueError, match=r"labels can only be 0\.\.2"):
        COOkeDClassifier(zero_shot=text).fit(X, y)
    with pytest.raises(ValueError, match="prototypes of width 4, but X has 8"):
        COOkeDClassifier(zero_shot=text[:, :4]).fit(X, codes)


def test_prototypes_of_classes_that_y_lacks_are_left_out():
    X, y, text = small()
    prompts = ZeroShotClassifier(prototypes=text, classes=["cat", "dog", "owl"])
    kept = y != "dog"
    clf = COOkeDClassifier(zero_shot=prompts).fit(X[kept], y[kept])
    assert clf.classes_.tolist() == ["cat", "owl"]
    assert clf.predict_proba(X).shape == (60, 2)


def test_views():
    X, y, _ = small()
    views = np.stack([X, X[::-1]], axis=1)
    clf = COOkeDClassifier([("gda", GDAClassifier()), ("probe", LinearProbeClassifier())]).fit(views, y)
    np.testing.assert_allclose(clf.predict_proba(views), clf.predict_proba(X), atol=1e-12)
    assert clf.n_features_in_ == 8
    COOkeDClassifier().fit(views, y).predict(X)


# -- columns ----------------------------------------------------------------------------------------------------------


def test_members_that_see_some_columns():
    X, y, _ = small()
    wide = np.hstack([X, X[::-1, :3]])
    members = [("left", LogisticRegression()), ("right", GaussianNB()), ("all", GDAClassifier())]
    columns = {"left": slice(0, 8), "right": [8, 9, 10]}
    clf = COOkeDClassifier(members, columns=columns).fit(wide, y)
    expected = [
        LogisticRegression().fit(X, y).predict_proba(X),
        GaussianNB().fit(wide[:, 8:], y).predict_proba(wide[:, 8:]),
        GDAClassifier().fit(wide, y).predict_proba(wide),
    ]
    np.testing.assert_allclose(clf.predict_proba(wide), np.mean(expected, axis=0), atol=1e-12)
    assert clf.n_features_in_ == 11
    frame = pd.DataFrame(wide, columns=[f"f{i}" for i in range(11)])
    of_frame = clone(clf).fit(frame, y)
    np.testing.assert_allclose(of_frame.predict_proba(frame), clf.predict_proba(wide), atol=1e-12)
    assert of_frame.feature_names_in_.tolist() == list(frame.columns)
    with pytest.raises(ValueError, match="X has 8 features, but COOkeDClassifier is expecting 11"):
        clf.predict(X)


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"who": slice(3)}, r"columns names \['who'\]; the members are \['lr'\]"),
        ({"lr": [0, 99]}, "does not fit the 8 columns"),
        ({"lr": slice(20, 30)}, "leaves none of the 8 columns"),
    ],
)
def test_columns_that_are_not_there(columns, words):
    X, y, _ = small()
    with pytest.raises(ValueError, match=words):
        COOkeDClassifier([("lr", LogisticRegression())], columns=columns).fit(X, y)


# -- worlds -----------------------------------------------------------------------------------------------------------


def cluster_world(seed, n_classes=5, n_clusters=6, d=64, noise=0.05, shots=10):
    """Classes of six tight clusters with as many pictures each, and twenty unknown clusters."""
    rng = np.random.default_rng(seed)
    centres = unit_rows(rng.normal(size=(n_classes * n_clusters + 20, d)))
    known, unknown = centres[:-20], centres[-20:]

    def around(points, each):
        points = np.repeat(points, each, axis=0)
        return unit_rows(points + noise * rng.normal(size=points.shape))

    X, y = around(known, shots), np.repeat(np.arange(n_classes), n_clusters * shots)
    text = unit_rows(np.stack([X[y == k].mean(axis=0) for k in range(n_classes)]))
    return X, y, around(known, 14), around(unknown, 25), text


def aurocs(clf, X_in, X_out):
    """Of the entropy of the ensemble, and of all its subsets, by their names."""
    inside, outside = clf.member_probabilities(X_in), clf.member_probabilities(X_out)

    def of(names):
        p_in, p_out = (np.mean([own[name] for name in names], axis=0) for own in (inside, outside))
        return ood_auroc(-entropy(p_in), -entropy(p_out))

    names = list(inside)
    return {subset: of(subset) for size in (1, 2, 3) for subset in itertools.combinations(names, size)}


def test_entropy_of_the_mean_beats_every_member_in_the_cluster_world():
    reached = []
    for seed in range(5):
        X, y, X_in, X_out, text = cluster_world(seed)
        clf = COOkeDClassifier(zero_shot=text, calibration=None).fit(X, y)
        reached.append(aurocs(clf, X_in, X_out))
    mean = {subset: np.mean([of[subset] for of in reached]) for subset in reached[0]}
    whole = mean["zero_shot", "probe", "neighbors"]
    assert whole > max(mean[name,] for name in ("zero_shot", "probe", "neighbors")) + 0.005
    assert whole > mean["zero_shot", "probe"] + 0.03
    assert whole > mean["zero_shot", "neighbors"] + 0.005
    assert whole > 0.965
    # at its temperature of 1 the text is too sure to help the other two, which have seen the clusters
    assert mean["probe", "neighbors"] > whole + 0.005


@pytest.mark.parametrize("seed", range(5))
def test_with_its_text_calmed_it_beats_every_member_and_stays_with_the_best_pair(seed):
    X, y, X_in, X_out, text = cluster_world(seed)
    clf = COOkeDClassifier(zero_shot=text, temperature={"zero_shot": 50.0}, calibration=None).fit(X, y)
    reached = aurocs(clf, X_in, X_out)
    whole = reached.pop(("zero_shot", "probe", "neighbors"))
    assert whole == pytest.approx(ood_auroc(clf.score_samples(X_in), clf.score_samples(X_out)), abs=1e-12)
    singles = [value for subset, value in reached.items() if len(subset) == 1]
    pairs = [value for subset, value in reached.items() if len(subset) == 2]
    assert whole > max(singles)
    assert whole > max(pairs) - 0.01
    assert whole > np.mean(pairs) + 0.005


def anisotropic_world(seed, n_known=20, n_unknown=10, d=64):
    rng = np.random.default_rng(seed)
    n = n_known + n_unknown
    common, gap, signal = rng.normal(size=d), rng.normal(size=d), rng.normal(size=(n, d))
    noise = np.linalg.qr(rng.normal(size=(d, d)))[0] * np.geomspace(5.0, 0.2, d)
    text = unit_rows(common + gap + 0.35 * (signal + 0.8 * rng.normal(size=signal.shape)))

    def draw(labels):
        return unit_rows(2.0 * common + 0.8 * signal[labels] + rng.normal(size=(len(labels), d)) @ noise.T)

    y = np.repeat(np.arange(n_known), 16)
    inside, outside = np.repeat(np.arange(n_known), 20), np.repeat(np.arange(n_known, n), 50)
    return draw(y), y, draw(inside), draw(outside), text[:n_known], inside


@pytest.mark.parametrize("seed", range(3))
def test_one_weak_member_makes_the_mean_worse_than_the_best(seed):
    """What the documentation warns of: text that says little, beside a classifier that suits the pictures."""
    X, y, X_in, X_out, text, y_in = anisotropic_world(seed)
    members = [("text", ZeroShotClassifier(prototypes=text)), ("gda", GDAClassifier())]
    clf = COOkeDClassifier(members, calibration=None).fit(X, y)
    reached = aurocs(clf, X_in, X_out)
    assert reached["text",] < reached["gda",] - 0.1
    assert reached["text", "gda"] < reached["gda",] - 0.02
    assert clf.score(X_in, y_in) < clf.named_estimators_["gda"].score(X_in, y_in) - 0.01
    dropped = clone(clf).set_params(text="drop").fit(X, y)
    assert ood_auroc(dropped.score_samples(X_in), dropped.score_samples(X_out)) == pytest.approx(reached["gda",])
    light = clone(clf).set_params(weights={"text": 0.1}).fit(X, y)
    assert ood_auroc(light.score_samples(X_in), light.score_samples(X_out)) > reached["text", "gda"] + 0.01


# -- the outlier side -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tpr", [0.9, 0.95])
@pytest.mark.parametrize("score", ["entropy", "msp"])
def test_it_accepts_as_many_new_pictures_as_promised(tpr, score):
    accepted = []
    for seed in range(3):
        X, y, X_in, X_out, text = cluster_world(seed, n_clusters=3, d=24, shots=30, noise=0.12)
        clf = COOkeDClassifier(zero_shot=text, tpr=tpr, score=score).fit(X, y)
        detector = clf.as_outlier_detector()
        accepted.append(np.mean(detector.predict(X_in) == 1))
        assert np.mean(detector.predict(X_out) == -1) > 0.15
    assert np.mean(accepted) == pytest.approx(tpr, abs=0.04)


def test_in_sample_scores_refuse_too_many_new_pictures():
    """Neighbours know their training pictures, which get the threshold too high."""
    X, y, X_in, *_ = cluster_world(0, n_clusters=3, d=24, shots=15, noise=0.2)
    member = KNeighborsClassifier(5, weights="distance")  # nearest to itself at distance 0: certain

    def accepted(**params):
        clf = COOkeDClassifier([("knn", member)], **params).fit(X, y)
        return np.mean(clf.as_outlier_detector().predict(X_in) == 1)

    assert accepted(calibration="in_sample") < 0.8
    assert accepted() == pytest.approx(0.95, abs=0.04)
    assert accepted(calibration=X_in[::2]) == pytest.approx(0.95, abs=0.04)


def test_the_detector_is_the_other_side_of_the_same_scores(tmp_path):
    X, y, text = small()
    clf = COOkeDClassifier(zero_shot=ZeroShotClassifier(prototypes=text, classes=["cat", "dog", "owl"])).fit(X, y)
    detector = clf.as_outlier_detector()
    assert isinstance(detector, OutlierView)
    assert is_outlier_detector(detector)
    assert is_classifier(clf)
    assert not is_outlier_detector(clf)
    assert detector.contamination == 0.05
    np.testing.assert_array_equal(detector.score_samples(X), clf.score_samples(X))
    np.testing.assert_array_equal(detector.decision_function(X), clf.score_samples(X) - clf.offset_)
    np.testing.assert_array_equal(detector.predict(X), np.where(clf.score_samples(X) >= clf.offset_, 1, -1))
    np.testing.assert_array_equal(detector.predict_class(X), clf.predict(X))
    joblib.dump(detector, tmp_path / "detector.joblib")
    again = joblib.load(tmp_path / "detector.joblib")
    np.testing.assert_array_equal(again.decision_function(X), detector.decision_function(X))
    assert np.mean(pickle.loads(pickle.dumps(detector)).calibrate(X).predict(X) == 1) >= 0.95


def test_the_threshold_is_the_quantile_of_held_out_scores():
    X, y, _ = small(n=60)
    clf = COOkeDClassifier([("lr", LogisticRegression()), ("gda", GDAClassifier())], tpr=0.9).fit(X, y)
    means = [
        cross_val_predict(member, X, y, cv=StratifiedKFold(5), method="predict_proba")
        for member in (LogisticRegression(), GDAClassifier())
    ]
    assert clf.offset_ == pytest.approx(np.percentile(-entropy(np.mean(means, axis=0)), 10.0), abs=1e-10)
    in_sample = clone(clf).set_params(calibration="in_sample").fit(X, y)
    assert in_sample.offset_ == pytest.approx(np.percentile(in_sample.score_samples(X), 10.0))


def test_no_threshold():
    X, y, _ = small()
    clf = COOkeDClassifier(calibration=None).fit(X, y)
    assert clf.offset_ is None
    with pytest.raises(ValueError, match="calibration=None sets no threshold"):
        clf.as_outlier_detector()
    assert np.mean(clf.as_outlier_detector(X).predict(X) == 1) == pytest.approx(0.95, abs=0.02)


def test_frozen_members_and_text_are_neither_fitted_nor_held_out():
    X, y, text = small()

    class Once(Constant):
        fits = 0

        def fit(self, X, y):
            type(self).fits += 1
            return super().fit(X, y)

    frozen = FrozenEstimator(Once([0.5, 0.3, 0.2]).fit(X, y))
    prompts = ZeroShotClassifier(prototypes=text, classes=["cat", "dog", "owl"])
    clf = COOkeDClassifier([("frozen", frozen), ("zs", prompts), ("lr", LogisticRegression())]).fit(X, y)
    assert Once.fits == 1
    assert clf.named_estimators_["frozen"] is frozen


def test_pictures_alone_in_their_class_are_not_held_out():
    X, y, _ = small(n=31)
    y = np.append(y[:-1], "yak")
    clf = COOkeDClassifier([("lr", LogisticRegression())]).fit(X, y)
    assert np.isfinite(clf.offset_)
    with pytest.warns(SkclipWarning, match="No class has two pictures"):
        COOkeDClassifier([("lr", LogisticRegression())]).fit(X[:3], y[:3])


# -- scikit-learn -----------------------------------------------------------------------------------------------------


def test_nested_parameters_clone_and_drop():
    X, y, _ = small()
    members = [("lr", LogisticRegression()), ("nb", GaussianNB())]
    clf = COOkeDClassifier(members, weights=[1, 3])
    clf.set_params(lr__C=0.25, score="msp")
    assert clf.get_params()["lr__C"] == 0.25
    assert clf.get_params()["score"] == "msp"
    assert clone(clf).get_params()["score"] == "msp"
    assert "score='msp'" in repr(clf)
    clf.set_params(nb="drop").fit(X, y)  # weights count the dropped as well
    assert list(clf.named_estimators_) == ["lr"]
    assert clf.weights_ == {"lr": 1.0}
    np.testing.assert_array_equal(clf.predict_proba(X), LogisticRegression(C=0.25).fit(X, y).predict_proba(X))
    assert not hasattr(members[0][1], "coef_")


def test_the_parameter_called_score_leaves_the_method():
    X, y, _ = small()
    clf = COOkeDClassifier(score="msp").fit(X, y)
    assert clf.score(X, y) == np.mean(clf.predict(X) == y)
    assert cross_val_score(clf, X, y, cv=3).shape == (3,)
    again = pickle.loads(pickle.dumps(clf))
    assert again.get_params()["score"] == "msp"
    assert again.score(X, y) == clf.score(X, y)
    with pytest.raises(ValueError, match="The 'score' parameter of COOkeDClassifier must be a str among"):
        COOkeDClassifier(score="energy").fit(X, y)


def test_grid_search_over_score_weights_and_members():
    X, y, X_in, X_out, text = cluster_world(0)
    grid = {
        "score": ["entropy", "msp"],
        "weights": [None, (1, 0, 0), {"zero_shot": 0.2}],
        "zero_shot__logit_scale": [100.0, 2.0],
    }
    clf = COOkeDClassifier(zero_shot=ZeroShotClassifier(prototypes=text), calibration=None)
    scorer = get_scorer("ood_auroc", X_out=X_out[::5])
    search = GridSearchCV(clf, grid, scoring=scorer, cv=2).fit(X, y)
    assert len(search.cv_results_["params"]) == 12
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_params_["zero_shot__logit_scale"] == 2.0
    assert np.ptp(search.cv_results_["mean_test_score"]) > 0.02
    assert ood_auroc(search.best_estimator_.score_samples(X_in), search.best_estimator_.score_samples(X_out)) > 0.93
    plain = GridSearchCV(COOkeDClassifier(calibration=None), {"score": ["entropy", "msp"], "probe": ["drop"]}, cv=2)
    with pytest.raises(ValueError, match="Invalid parameter 'probe'"):  # members of the default are not parameters
        plain.fit(X, y)


def test_n_jobs_gives_the_same():
    X, y, _ = small()
    one, two = (COOkeDClassifier(n_jobs=n_jobs).fit(X, y) for n_jobs in (None, 2))
    np.testing.assert_array_equal(one.predict_proba(X), two.predict_proba(X))
    assert one.offset_ == two.offset_


def test_joblib_and_size(tmp_path):
    X, y, _ = small()
    clf = COOkeDClassifier().fit(X, y)
    joblib.dump(clf, tmp_path / "clf.joblib")
    again = joblib.load(tmp_path / "clf.joblib")
    np.testing.assert_array_equal(again.predict_proba(X), clf.predict_proba(X))
    assert len(pickle.dumps(COOkeDClassifier())) < 2000
    assert len(pickle.dumps(clf)) < X.nbytes + 10_000


def test_sample_weight_reaches_the_members_that_take_it():
    X, y, _ = small(n=61)
    w = np.linspace(0.0, 3.0, 61)
    members = [("lr", LogisticRegression()), ("piped", make_pipeline(StandardScaler(), GaussianNB()))]
    clf = COOkeDClassifier(members).fit(X, y, sample_weight=w)
    np.testing.assert_array_equal(
        clf.named_estimators_["lr"].predict_proba(X), LogisticRegression().fit(X, y, w).predict_proba(X)
    )
    np.testing.assert_array_equal(
        clf.named_estimators_["piped"].predict_proba(X),
        make_pipeline(StandardScaler(), GaussianNB()).fit(X, y, gaussiannb__sample_weight=w).predict_proba(X),
    )
    with pytest.warns(SkclipWarning, match=r"\['knn'\] take no sample_weight"):
        COOkeDClassifier([*members, ("knn", KNeighborsClassifier())]).fit(X, y, sample_weight=w)
    with pytest.raises(TypeError, match=r"got \['groups'\]"):
        COOkeDClassifier(members).fit(X, y, groups=w)
    with pytest.raises(ValueError, match="sample_weight leaves one class only"):
        COOkeDClassifier(members).fit(X, y, sample_weight=(y == "cat").astype(float))


def test_metadata_routing():
    X, y, text = small()
    w = np.linspace(0.1, 3.0, len(y))
    with sklearn.config_context(enable_metadata_routing=True):
        members = [
            ("yes", LogisticRegression().set_fit_request(sample_weight=True)),
            ("no", LogisticRegression().set_fit_request(sample_weight=False)),
        ]
        clf = COOkeDClassifier(members).fit(X, y, sample_weight=w)
        COOkeDClassifier(zero_shot=ZeroShotClassifier(prototypes=text, classes=["cat", "dog", "owl"])).fit(X, y)
    own = clf.member_probabilities(X)
    np.testing.assert_array_equal(own["yes"], LogisticRegression().fit(X, y, w).predict_proba(X))
    np.testing.assert_array_equal(own["no"], LogisticRegression().fit(X, y).predict_proba(X))


def test_inside_other_estimators():
    X, y, _ = small()
    piped = make_pipeline(StandardScaler(), COOkeDClassifier()).fit(X, y)
    assert piped.score(X, y) > 0.9
    assert piped[-1].as_outlier_detector().predict(piped[:-1].transform(X)).shape == (60,)
    nested = COOkeDClassifier([("inner", COOkeDClassifier(calibration=None)), ("nb", GaussianNB())]).fit(X, y)
    own = nested.member_probabilities(X)
    np.testing.assert_array_equal(own["inner"], COOkeDClassifier().fit(X, y).predict_proba(X))


# -- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"estimators": []}, "estimators holds no classifier"),
        ({"estimators": [("lr", "drop")]}, "estimators holds no classifier"),
        ({"estimators": [("lr", "leave")]}, r"list of \(name, classifier\) or \(name, 'drop'\)"),
        ({"estimators": [("lr", LogisticRegression()), ("lr", GaussianNB())]}, "Names provided are not unique"),
        ({"estimators": [("tpr", LogisticRegression())]}, "conflict with constructor arguments"),
        ({"estimators": [("svm", LinearSVC())]}, "member 'svm', LinearSVC.*has no predict_proba"),
        ({"estimators": [("ridge", RidgeClassifier())]}, "CalibratedClassifierCV"),
        ({"estimators": [("scale", StandardScaler())]}, "is not a classifier"),
        ({"estimators": [("lr", LogisticRegression)]}, "Expected an estimator instance"),
        ({"estimators": [("lr", LogisticRegression())], "zero_shot": np.eye(3, 8)}, "put a ZeroShotClassifier into"),
        ({"weights": [1.0]}, r"weights holds 1 numbers for 2 members, \['probe', 'neighbors'\]"),
        ({"weights": [0.0, 0.0]}, "are all zero"),
        ({"weights": [1.0, -1.0]}, "must be finite numbers of at least 0"),
        ({"weights": [1.0, np.nan]}, "must be finite numbers of at least 0"),
        ({"weights": ["much", 1.0]}, "must be numbers"),
        ({"weights": {"clf": 1.0}}, r"weights names \['clf'\]; the members are \['probe', 'neighbors'\]"),
        ({"temperature": {"clf": 1.0}}, r"temperature names \['clf'\]"),
        ({"temperature": {"probe": 0.0}}, "must be finite and above 0"),
        ({"temperature": {"probe": "hot"}}, "must be finite and above 0"),
        ({"temperature": -1.0}, "The 'temperature' parameter"),
        ({"tpr": 1.0}, "The 'tpr' parameter"),
        ({"calibration": "all"}, "The 'calibration' parameter"),
    ],
)
def test_bad_parameters(params, words):
    X, y, _ = small()
    with pytest.raises((ValueError, TypeError), match=words):
        COOkeDClassifier(**params).fit(X, y)


def test_bad_data():
    X, y, _ = small()
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        COOkeDClassifier().fit(X, y[:-1])
    with pytest.raises(ValueError, match="one class only"):
        COOkeDClassifier().fit(X, np.full(60, "cat"))
    with pytest.raises(ValueError, match="NaN"):
        COOkeDClassifier().fit(np.where(np.eye(60, 8) == 1, np.nan, X), y)
    with pytest.raises(NotFittedError):
        COOkeDClassifier().predict(X)
    with pytest.raises(NotFittedError):
        COOkeDClassifier().as_outlier_detector()
    with pytest.raises(ValueError, match=r"CLIPClassifier\(model, COOkeDClassifier"):
        COOkeDClassifier().fit(["a.png", "b.png"], ["cat", "dog"])
    stranger = FrozenEstimator(DummyClassifier().fit(X, np.arange(60) % 2))
    with pytest.raises(ValueError, match=r"'stranger' knows the labels \[0, 1\], but y holds \['cat', 'dog', 'owl'\]"):
        COOkeDClassifier([("stranger", stranger)]).fit(X, y)
    with pytest.raises(ValueError, match=r"member 'bad' gives .*nan.* for X\[0\]: not finite"):
        COOkeDClassifier([("bad", Constant([np.nan, 0.5, 0.5]))]).fit(X, y)
    with pytest.raises(ValueError, match=r"member 'bad' gives probabilities of shape \(60, 2\) for 3 classes"):
        COOkeDClassifier([("bad", Constant([0.5, 0.5]))], calibration="in_sample").fit(X, y)


def test_a_fit_that_fails_leaves_nothing_of_the_one_before():
    X, y, _ = small()
    clf = COOkeDClassifier().fit(X, y)
    for bad in ((np.full_like(X, np.nan), y), (X, y[1:]), (X, None)):
        with pytest.raises(ValueError, match=r"NaN|inconsistent numbers of samples|requires y"):
            clf.fit(*bad)
        with pytest.raises(NotFittedError):
            clf.predict(X)
        clf.fit(X, y)


class BlindToLargeNumbers(LogisticRegression):
    def predict_proba(self, X):
        return np.where(X[:, :1] > 1e3, np.nan, super().predict_proba(X))


def test_answers_that_are_no_numbers_are_named_by_their_place_in_x_also_in_folds():
    X, y, _ = small()
    X[41, 0] = 1e4
    clf = COOkeDClassifier([("a", LogisticRegression()), ("bad", BlindToLargeNumbers())])
    for calibration in ("cv", "in_sample"):
        with pytest.raises(ValueError, match=r"member 'bad' gives .*nan.* for X\[41\]: not finite"):
            clf.set_params(calibration=calibration).fit(X, y)


def test_in_the_front_door():
    """The class text takes the model of the enclosing classifier of pictures."""
    text = ZeroShotClassifier(class_names=["circle", "star"], templates="a photo of a {}")
    clf = CLIPClassifier("skclip-tiny", COOkeDClassifier(zero_shot=text))
    world = make_picture_world(40, shapes=["circle", "star"], colors=["red"], held_out="include")
    y = np.array([name.split()[-1] for name in world.target])
    clf.fit(world.images, y)
    assert clf.classifier_.named_estimators_["zero_shot"].prototypes_.shape == (2, 128)
    assert clf.score(world.images, y) > 0.9
    assert clf.score_samples(world.images).shape == (40,)
