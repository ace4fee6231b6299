from __future__ import annotations

import pickle
from collections import Counter

import joblib
import numpy as np
import pytest
import sklearn
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.model_selection import GridSearchCV, GroupKFold, StratifiedKFold, cross_val_predict
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip import CLIPClassifier, CLIPFeatures, ZeroShotClassifier
from skclip.adapters import FewShotInspector, GDAClassifier, SimilarityVoteClassifier
from skclip.datasets import make_picture_world
from skclip.ensemble import TrustOrchestrator
from skclip.ensemble._trust import aligned, held_out_splits, product_trust, raw_encoder, shares, trust_measures
from skclip.utils import SkclipWarning

pd = pytest.importorskip("pandas")


class Distorted(ClassifierMixin, BaseEstimator):
    """A classifier on the first columns alone, trained on partly shuffled labels, its temperature changed."""

    def __init__(self, classifier=None, temperature=1.0, columns=None, shuffled=0.0):
        self.classifier = classifier
        self.temperature = temperature
        self.columns = columns
        self.shuffled = shuffled

    def fit(self, X, y):
        rng = np.random.default_rng(0)
        y = np.where(rng.random(len(y)) < self.shuffled, rng.permutation(y), y)
        self.classifier_ = clone(self.classifier).fit(X[:, : self.columns], y)
        self.classes_ = self.classifier_.classes_
        return self

    def predict_proba(self, X):
        log = np.log(np.maximum(self.classifier_.predict_proba(X[:, : self.columns]), 1e-12))
        return softmax(log / self.temperature, axis=1)

    def predict(self, X):
        return self.classes_[self.predict_proba(X).argmax(axis=1)]


def overconfident(columns):
    return Distorted(LogisticRegression(), 0.05, columns)


def world(seed=0, n=300, n_classes=5, d=20, n_test=1500):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(n_classes, d))
    y, y_test = np.arange(n) % n_classes, rng.integers(0, n_classes, n_test)
    return (
        means[y] + 2.0 * rng.normal(size=(n, d)) + 1.0,
        y,
        means[y_test] + 2.0 * rng.normal(size=(n_test, d)) + 1.0,
        y_test,
    )


def small(seed=0, n=80):
    return world(seed, n, 3, 8, 60)


LR, NB = LogisticRegression(C=0.1, max_iter=500), GaussianNB()

VARIANTS = [
    TrustOrchestrator([("lr", LogisticRegression()), ("gda", GDAClassifier())]),
    TrustOrchestrator([("gda", GDAClassifier())], reevaluate="always", cv=2),
]


@parametrize_with_checks(VARIANTS)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


# -- the measures -----------------------------------------------------------------------------------------------------


def test_trust_of_the_released_figures():
    one = {"accuracy": 0.45, "ece": 0.45299, "ccc": 0.12621, "ocr": 0.50781}
    two = {"accuracy": 0.57, "ece": 0.29332, "ccc": 0.36096, "ocr": 0.41602}
    assert round(product_trust(one), 3) == 0.152
    assert round(product_trust(two), 3) == 0.281


def test_trust_lies_in_0_1_and_is_monotone_in_each_measure():
    rng = np.random.default_rng(0)
    for ece, ocr, ccc in rng.uniform([0, 0, -1], [1, 1, 1], size=(50, 3)):
        base = {"accuracy": 0.5, "ece": ece, "ocr": ocr, "ccc": ccc}
        assert 0.0 <= product_trust(base) <= 1.0
        assert product_trust({**base, "ece": ece * 0.9}) > product_trust(base)
        assert product_trust({**base, "ocr": ocr * 0.9}) > product_trust(base)
        assert product_trust({**base, "ccc": ccc * 0.9 + 0.1}) > product_trust(base)


def test_measures_are_the_formulas():
    rng = np.random.default_rng(0)
    probabilities = rng.dirichlet(np.full(4, 0.3), size=200)
    codes = rng.integers(0, 4, 200)
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == codes
    bins = np.ceil(confidence * 10)
    ece = sum(abs(np.sum(right[bins == b]) - np.sum(confidence[bins == b])) for b in range(1, 11)) / 200
    measures = trust_measures(probabilities, codes, 0.8, 10)
    assert measures["accuracy"] == right.mean()
    assert measures["ece"] == pytest.approx(ece)
    assert measures["ocr"] == np.sum(~right & (confidence >= 0.8)) / 200
    assert measures["ccc"] == pytest.approx(np.corrcoef(confidence, right)[0, 1])


def test_who_is_never_wrong_is_not_half_trusted():
    sure = np.array([[0.9, 0.1], [0.2, 0.8]])
    measures = trust_measures(sure, np.array([0, 1]), 0.8, 10)
    assert measures["ccc"] == 0.0
    assert product_trust(measures) == pytest.approx(1.0 - measures["ece"])
    assert product_trust(trust_measures(sure, np.array([1, 0]), 0.8, 10)) == 0.0


def test_shares_of_nothing_are_equal():
    np.testing.assert_array_equal(shares(np.zeros(4)), np.full(4, 0.25))
    np.testing.assert_allclose(shares(np.array([1.0, 3.0])), [0.25, 0.75])


def test_columns_are_aligned_by_label():
    probabilities = np.array([[0.2, 0.5, 0.3], [1.0, 0.0, 0.0]])
    known, classes = np.array(["z", "a", "b"]), np.array(["a", "b", "c"])
    np.testing.assert_allclose(
        aligned(probabilities, known, classes, "x"), [[0.5 / 0.8, 0.3 / 0.8, 0.0], [1 / 3, 1 / 3, 1 / 3]]
    )
    np.testing.assert_allclose(aligned(probabilities[:, :2], classes[1:], classes, "x")[0], [0.0, 0.2, 0.5])
    with pytest.raises(ValueError, match=r"'x' knows the labels \['z'\]"):
        aligned(probabilities[:, :1], known[:1], classes, "x")


def test_pictures_alone_in_their_class_are_never_held_out():
    y = np.array([0, 0, 0, 1, 1, 1, 1, 2])
    splits = held_out_splits(5, y, y)
    assert len(splits) == 3
    np.testing.assert_array_equal(np.sort(np.concatenate([test for _, test in splits])), np.arange(7))
    for train, test in splits:
        assert 7 in train
        assert set(y[train]) == {0, 1, 2}
        assert not set(train) & set(test)
    assert held_out_splits(5, np.arange(4), np.arange(4)) is None


def test_trust_is_measured_on_held_out_pictures():
    X, y, *_ = small()
    clf = TrustOrchestrator([("nb", NB)], cv=4).fit(X, y)
    held_out = cross_val_predict(NB, X, y, cv=StratifiedKFold(4), method="predict_proba")
    expected = trust_measures(held_out, y, 0.8, 10)
    for measure, value in expected.items():
        assert clf.report_["nb"][measure] == pytest.approx(value)
    retrieved = SimilarityVoteClassifier(10).fit(X, y).predict_proba(None)
    for measure, value in trust_measures(retrieved, y, 0.8, 10).items():
        assert clf.report_["retriever"][measure] == pytest.approx(value)


@pytest.mark.parametrize("seed", range(3))
def test_an_agent_that_learns_by_heart_gains_nothing_by_it(seed):
    X, y, X_test, y_test = world(seed)
    by_heart = KNeighborsClassifier(1)
    honest = TrustOrchestrator([("lr", LR), ("heart", by_heart)], reevaluate="never").fit(X, y)
    leaking = TrustOrchestrator(
        [("lr", FrozenEstimator(clone(LR).fit(X, y))), ("heart", FrozenEstimator(clone(by_heart).fit(X, y)))],
        reevaluate="never",
    ).fit(X, y)
    assert leaking.report_["heart"]["trust"] == 1.0
    assert honest.report_["heart"]["trust"] < 0.4
    assert abs(honest.report_["heart"]["accuracy"] - by_heart.fit(X, y).score(X_test, y_test)) < 0.1
    assert honest.score(X_test, y_test) > leaking.score(X_test, y_test) + 0.03


# -- the vote ---------------------------------------------------------------------------------------------------------


def test_one_agent_and_no_second_look_is_that_agent():
    X, y, X_test, _ = small()
    clf = TrustOrchestrator([("nb", NB)], reevaluate="never").fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X_test), clone(NB).fit(X, y).predict_proba(X_test))
    assert clf.retriever_ is None
    assert list(clf.report_) == ["nb"]


def test_identical_agents_are_any_of_them():
    X, y, X_test, _ = small()
    clf = TrustOrchestrator([("a", NB), ("b", NB), ("c", NB)], reevaluate="never").fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(X_test), clone(NB).fit(X, y).predict_proba(X_test))
    np.testing.assert_allclose([clf.report_[name]["weight"] for name in "abc"], 1 / 3)


@pytest.mark.parametrize("reevaluate", ["auto", "always", "never"])
def test_both_stages_are_the_formula(reevaluate):
    X, y, X_test, _ = small()
    agents = [("lr", LR), ("nb", NB), ("hot", overconfident(1))]
    clf = TrustOrchestrator(agents, reevaluate=reevaluate, min_trust=0.4, n_neighbors=7).fit(X, y)
    probabilities = np.array([clone(agent).fit(X, y).predict_proba(X_test) for _, agent in agents])
    trust = np.array([clf.report_[name]["trust"] for name, _ in agents])
    first = np.tensordot(trust / trust.sum(), probabilities, axes=1)
    again = np.full(len(X_test), reevaluate == "always")
    if reevaluate == "auto":
        disagree = [len(set(column)) > 1 for column in probabilities.argmax(axis=2).T.tolist()]
        doubtful = (trust[:, None] * probabilities.max(axis=2)).max(axis=0) < 0.4
        again = np.array(disagree) | doubtful
        assert np.sum(doubtful & ~np.array(disagree)) > 0  # agreement alone does not stop the second look
        assert np.sum(~again) > 0
    expected = first.copy()
    if reevaluate != "never":
        retrieved = SimilarityVoteClassifier(7).fit(X, y).predict_proba(X_test)
        own = clf.report_["retriever"]["trust"]
        second = (np.tensordot(trust, probabilities, axes=1) + own * retrieved) / (trust.sum() + own)
        expected[again] = second[again]
    np.testing.assert_allclose(clf.predict_proba(X_test), expected, atol=1e-12)
    explanation = clf.explain(X_test)
    np.testing.assert_array_equal(explanation.reevaluated, again)
    np.testing.assert_allclose(explanation.first_probabilities, first)


def test_rows_that_are_not_looked_at_again_keep_the_first_vote():
    X, y, X_test, _ = small()
    agents = [("lr", LR), ("nb", NB)]
    auto, never, always = (
        TrustOrchestrator(agents, reevaluate=how, min_trust=0.4).fit(X, y) for how in ("auto", "never", "always")
    )
    again = auto.explain(X_test).reevaluated
    assert 0 < again.sum() < len(again)
    proba = auto.predict_proba(X_test)
    np.testing.assert_array_equal(proba[~again], never.predict_proba(X_test)[~again])
    np.testing.assert_allclose(proba[again], always.predict_proba(X_test)[again])
    assert np.abs(proba[again] - never.predict_proba(X_test)[again]).max() > 0.01


def test_min_trust_is_the_gate():
    X, y, X_test, _ = small()

    def share(min_trust):
        clf = TrustOrchestrator([("lr", LR), ("nb", NB)], min_trust=min_trust).fit(X, y)
        return clf.explain(X_test).reevaluated.mean()

    lr, nb = (clone(agent).fit(X, y).predict(X_test) for agent in (LR, NB))
    reached = [share(min_trust) for min_trust in (0.0, 0.3, 0.5, 1.0)]
    assert reached[0] == np.mean(lr != nb)
    assert reached == sorted(reached)
    assert reached[-1] == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_beats_soft_and_hard_voting_with_an_overconfident_bad_agent(seed):
    X, y, X_test, y_test = world(seed)
    agents = [("lr", LR), ("nb", NB), ("bad", overconfident(1))]
    voting = [VotingClassifier(agents, voting=how).fit(X, y).score(X_test, y_test) for how in ("soft", "hard")]
    for how in ("never", "auto"):
        clf = TrustOrchestrator(agents, reevaluate=how).fit(X, y)
        assert clf.score(X_test, y_test) >= max(voting) - 0.002
        assert clf.report_["bad"]["weight"] < 0.5 * clf.report_["lr"]["weight"]
    assert clf.score(X_test, y_test) > SimilarityVoteClassifier().fit(X, y).score(X_test, y_test) + 0.01


@pytest.mark.parametrize("seed", range(3))
def test_a_good_agent_among_overconfident_bad_ones_is_heard(seed):
    X, y, X_test, y_test = world(seed)
    agents = [("lr", LR), ("bad", overconfident(1)), ("worse", overconfident(2))]
    voting = [VotingClassifier(agents, voting=how).fit(X, y).score(X_test, y_test) for how in ("soft", "hard")]
    clf = TrustOrchestrator(agents, reevaluate="never").fit(X, y)
    assert clf.score(X_test, y_test) > max(voting) + 0.15
    assert clf.score(X_test, y_test) > clf.named_estimators_["lr"].score(X_test, y_test) - 0.05


@pytest.mark.parametrize("seed", range(3))
def test_an_agent_of_random_labels_weighs_little(seed):
    X, y, X_test, y_test = world(seed)
    agents = [("lr", LR), ("nb", NB), ("random", Distorted(LogisticRegression(), 0.05, shuffled=1.0))]
    clf = TrustOrchestrator(agents).fit(X, y)
    assert clf.report_["random"]["weight"] < 0.1
    assert clf.score(X_test, y_test) > VotingClassifier(agents, voting="soft").fit(X, y).score(X_test, y_test) + 0.02


@pytest.mark.parametrize("seed", range(3))
def test_an_agent_without_an_error_leads_the_vote(seed):
    rng = np.random.default_rng(seed)
    means = 4.0 * rng.normal(size=(5, 20))
    y, y_test = np.arange(60) % 5, rng.integers(0, 5, 1500)
    X, X_test = (means[labels] + 2.0 * rng.normal(size=(len(labels), 20)) for labels in (y, y_test))
    agents = [("lr", LogisticRegression()), ("few", Distorted(NB, columns=3)), ("hot", Distorted(LR, 0.3, 3))]
    clf = TrustOrchestrator(agents, reevaluate="never").fit(X, y)
    assert clf.report_["lr"]["accuracy"] == 1.0
    # the correlation is undefined without an error; taken for 0, this agent would be trusted less than one that errs
    assert clf.report_["lr"]["ccc"] == 0.0
    assert clf.report_["lr"]["weight"] == max(report["weight"] for report in clf.report_.values())
    soft = VotingClassifier(agents, voting="soft").fit(X, y).score(X_test, y_test)
    assert clf.score(X_test, y_test) > soft + 0.02


# -- members ----------------------------------------------------------------------------------------------------------


def test_frozen_agents_are_measured_on_the_rows_given():
    X, y, X_test, y_test = small()
    frozen = clone(NB).fit(X_test, y_test)
    clf = TrustOrchestrator([("nb", FrozenEstimator(frozen))]).fit(X, y)
    assert clf.report_["nb"]["accuracy"] == frozen.score(X, y)
    assert clf.named_estimators_["nb"].estimator is frozen
    memory = FrozenEstimator(SimilarityVoteClassifier().fit(X_test, y_test))
    clf.set_params(retriever=memory).fit(X, y)
    assert clf.report_["retriever"]["accuracy"] == memory.score(X, y)
    assert "neighbors" not in clf.explain(X)  # they are no rows of our X


def test_agents_may_know_more_and_fewer_classes():
    X, y, X_test, y_test = small()
    names = np.array(["ant", "bee", "cat"])[y]
    means = [X[y == k].mean(axis=0) for k in (2, 1, 0)]
    more = ZeroShotClassifier(prototypes=[-means[0], *means], classes=["zebra", "cat", "bee", "ant"])
    fewer = FrozenEstimator(clone(NB).fit(X[y > 0], names[y > 0]))
    clf = TrustOrchestrator([("more", more), ("fewer", fewer), ("nb", NB)]).fit(X, names)
    proba = clf.predict_proba(X_test)
    np.testing.assert_allclose(proba.sum(axis=1), 1.0)
    assert clf.classes_.tolist() == ["ant", "bee", "cat"]
    assert clf.score(X_test, np.array(["ant", "bee", "cat"])[y_test]) > 0.6
    assert set(clf.explain(X_test).answers[:, 1]) <= {"bee", "cat"}


def test_a_fold_that_lost_a_class():
    X, y, X_test, y_test = small()
    splits = [(np.flatnonzero(y != 2), np.flatnonzero(y == 2)), (np.arange(40), np.arange(40, 80))]
    clf = TrustOrchestrator([("nb", NB)], cv=splits).fit(X, y)
    assert clf.score(X_test, y_test) > 0.6
    n = np.sum(y == 2) + 40
    assert clf.report_["nb"]["accuracy"] == np.sum(clone(NB).fit(X[:40], y[:40]).predict(X[40:]) == y[40:]) / n


def test_groups_stay_together_for_agents_and_retriever():
    X, y, *_ = small(n=40)
    # four near copies of every picture: without groups a neighbour would give the answer away
    rng = np.random.default_rng(0)
    groups = rng.permutation(np.repeat(np.arange(40), 4))
    X, labels = X[groups] + 1e-3 * rng.normal(size=(160, 8)), rng.permutation(y)[groups]
    by_heart = [("heart", KNeighborsClassifier(1))]
    naive = TrustOrchestrator(by_heart, n_neighbors=3).fit(X, labels).report_
    kept = TrustOrchestrator(by_heart, n_neighbors=3, cv=list(GroupKFold(5).split(X, labels, groups))).fit(X, labels)
    for name in ("heart", "retriever"):
        assert naive[name]["accuracy"] > 0.9
        assert kept.report_[name]["accuracy"] < 0.6


def test_trust_may_be_the_users_own():
    X, y, X_test, _ = small()
    seen = []

    def accurate(report):
        seen.append(report)
        return [measures["accuracy"] ** 2 for measures in report.values()]

    clf = TrustOrchestrator([("lr", LR), ("nb", NB)], trust=accurate).fit(X, y)
    assert list(seen[0]) == ["lr", "nb", "retriever"]
    assert clf.report_["nb"]["trust"] == clf.report_["nb"]["accuracy"] ** 2
    mute = TrustOrchestrator([("lr", LR), ("nb", NB)], trust=lambda report: [0, 1, 0], min_trust=0).fit(X, y)
    np.testing.assert_allclose(mute.predict_proba(X_test), clone(NB).fit(X, y).predict_proba(X_test))
    for wrong in ([1.0], [1, 1, -1], [1, 1, np.nan]):
        with pytest.raises(ValueError, match=r"trust must return .*\['lr', 'nb', 'retriever'\]"):
            TrustOrchestrator([("lr", LR), ("nb", NB)], trust=lambda report, wrong=wrong: wrong).fit(X, y)


@pytest.mark.parametrize(
    "retriever",
    [KNeighborsClassifier(5), NB, FewShotInspector(), make_pipeline(StandardScaler(), SimilarityVoteClassifier(4))],
)
def test_any_classifier_may_retrieve(retriever):
    X, y, X_test, _ = small()
    clf = TrustOrchestrator([("lr", LR)], retriever=retriever, reevaluate="always").fit(X, y)
    trust = clf.trust_
    expected = trust[0] * clone(LR).fit(X, y).predict_proba(X_test)
    expected += trust[1] * clone(retriever).fit(X, y).predict_proba(X_test)
    np.testing.assert_allclose(clf.predict_proba(X_test), expected / trust.sum())
    assert ("neighbors" in clf.explain(X_test)) == (retriever is not NB)


def test_a_retriever_whose_features_have_seen_the_labels_is_held_out_with_them():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(60, 40)), rng.integers(2, size=60)  # nothing to learn
    supervised = make_pipeline(LinearDiscriminantAnalysis(), SimilarityVoteClassifier(5))
    clf = TrustOrchestrator([("lr", LR)], retriever=supervised).fit(X, y)
    assert np.mean(clf.retriever_[-1].predict(None) == y) > 0.85
    assert clf.report_["retriever"]["accuracy"] < 0.7


def test_neighbours_of_a_frozen_memory_are_no_rows_of_fit():
    X, y = world(0)[:2]
    frozen = make_pipeline(StandardScaler(), FrozenEstimator(SimilarityVoteClassifier(3).fit(X, y)))
    clf = TrustOrchestrator([("lr", LR)], retriever=frozen, reevaluate="always").fit(X[:40], y[:40])
    assert "neighbors" not in clf.explain(X[:5])


def test_one_picture_per_class_trusts_all_alike():
    X, y = np.eye(4) + 0.1, np.arange(4)
    with pytest.warns(SkclipWarning, match="all are trusted alike") as seen:
        clf = TrustOrchestrator([("lr", LR), ("vote", SimilarityVoteClassifier(1))]).fit(X, y)
    assert len(seen) == 1
    assert seen[0].filename == __file__
    np.testing.assert_array_equal(clf.trust_, 1.0)
    assert np.isnan(clf.report_["lr"]["ece"])
    np.testing.assert_array_equal(clf.predict(X), y)


def test_explanation_tells_how_each_answer_came_about():
    X, y, X_test, _ = small()
    labels = np.array(["ant", "bee", "cat"])[y]
    clf = TrustOrchestrator([("lr", LR), ("nb", NB)], n_neighbors=4).fit(X, labels)
    seen = clf.explain(X_test)
    assert seen.agents == ["lr", "nb"]
    for column, agent in enumerate(clf.estimators_):
        np.testing.assert_array_equal(seen.answers[:, column], agent.predict(X_test))
        np.testing.assert_array_equal(seen.confidences[:, column], agent.predict_proba(X_test).max(axis=1))
    np.testing.assert_array_equal(seen.prediction, clf.predict(X_test))
    np.testing.assert_array_equal(seen.probabilities, clf.predict_proba(X_test))
    similarities, neighbors = SimilarityVoteClassifier(4).fit(X, labels).kneighbors(X_test)
    np.testing.assert_array_equal(seen.neighbors, neighbors)
    np.testing.assert_array_equal(seen.similarities, similarities)
    np.testing.assert_array_equal(seen.neighbor_labels, labels[neighbors])


def test_report_is_a_table():
    X, y, *_ = small()
    table = pd.DataFrame(TrustOrchestrator([("lr", LR), ("nb", NB)]).fit(X, y).report_).T
    assert table.index.tolist() == ["lr", "nb", "retriever"]
    assert table.columns.tolist() == ["accuracy", "ece", "ocr", "ccc", "trust", "weight"]
    assert table["weight"][:2].sum() == pytest.approx(1.0)
    assert table["weight"]["retriever"] == pytest.approx(table["trust"]["retriever"] / table["trust"].sum())


# -- a member of the family -------------------------------------------------------------------------------------------


def test_parameters_of_agents_are_searched_by_name():
    X, y, *_ = small()
    search = GridSearchCV(
        TrustOrchestrator([("lr", LR), ("nb", NB)], cv=2),
        {"lr__C": [0.01, 1.0], "nb": [NB, "drop"], "n_neighbors": [3]},
        cv=2,
        error_score="raise",
    ).fit(X, y)
    assert search.best_estimator_.get_params()["lr__C"] in (0.01, 1.0)
    dropped = TrustOrchestrator([("lr", LR), ("nb", NB)]).set_params(nb="drop").fit(X, y)
    assert list(dropped.named_estimators_) == ["lr"]


def test_agents_are_cloned_and_parallel_fits_are_the_same():
    X, y, X_test, _ = small()
    agents = [("lr", clone(LR)), ("nb", clone(NB))]
    clf = TrustOrchestrator(agents).fit(X, y)
    assert not hasattr(agents[0][1], "coef_")
    expected = clf.predict_proba(X_test)
    np.testing.assert_array_equal(clone(clf).set_params(n_jobs=2).fit(X, y).predict_proba(X_test), expected)
    np.testing.assert_array_equal(clf.fit(X, y).predict_proba(X_test), expected)


def test_prediction_writes_nothing_and_pickles_answer_alike(tmp_path):
    X, y, X_test, _ = small()
    clf = TrustOrchestrator([("lr", LR), ("nb", NB)]).fit(X, y)
    expected, before = clf.predict_proba(X_test), joblib.hash(clf)
    clf.explain(X_test)
    assert joblib.hash(clf) == before
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clf)).predict_proba(X_test), expected)
    joblib.dump(clf, tmp_path / "clf.joblib")
    np.testing.assert_array_equal(joblib.load(tmp_path / "clf.joblib", mmap_mode="r").predict_proba(X_test), expected)
    io = pytest.importorskip("skops.io")
    state = io.dumps(clf)
    trusted = io.get_untrusted_types(data=state)
    assert all(name.startswith("skclip.") for name in trusted)
    np.testing.assert_array_equal(io.loads(state, trusted=trusted).predict_proba(X_test), expected)


def test_tables_and_views_reach_the_agents_as_they_are():
    X, y, X_test, _ = small()
    table = pd.DataFrame(X, columns=[f"f{i}" for i in range(8)])
    clf = TrustOrchestrator([("nb", NB)]).fit(table, y)
    assert clf.feature_names_in_.tolist() == table.columns.tolist()
    expected = TrustOrchestrator([("nb", NB)]).fit(X, y).predict_proba(X_test)
    np.testing.assert_allclose(clf.predict_proba(pd.DataFrame(X_test, columns=table.columns)), expected, rtol=1e-10)
    assert not hasattr(clf.fit(X, y), "feature_names_in_")
    views = np.stack([X, X[:, ::-1]], axis=1)
    assert TrustOrchestrator([("gda", GDAClassifier())]).fit(views, y).predict_proba(X_test).shape == (60, 3)


def test_sample_weight_reaches_every_agent():
    X, y, X_test, _ = small()
    weights = np.random.default_rng(0).uniform(0.1, 5.0, len(X))
    clf = TrustOrchestrator([("lr", LR), ("nb", NB)], reevaluate="never").fit(X, y, sample_weight=weights)
    for agent in (LR, NB):
        name = "lr" if agent is LR else "nb"
        np.testing.assert_array_equal(
            clf.named_estimators_[name].predict_proba(X_test),
            clone(agent).fit(X, y, sample_weight=weights).predict_proba(X_test),
        )
    held_out = cross_val_predict(
        NB, X, y, cv=StratifiedKFold(5), method="predict_proba", params={"sample_weight": weights}
    )
    assert clf.report_["nb"]["ece"] == pytest.approx(trust_measures(held_out, y, 0.8, 10)["ece"])
    with pytest.raises(ValueError, match="agent 'vote', SimilarityVoteClassifier, takes no sample_weight"):
        TrustOrchestrator([("vote", SimilarityVoteClassifier())]).fit(X, y, sample_weight=weights)
    with pytest.raises(ValueError, match="sample_weight leaves one class"):
        clf.fit(X, y, sample_weight=(y == 1).astype(float))
    with pytest.raises(ValueError, match="zero"):
        clf.fit(X, y, sample_weight=np.zeros(len(y)))
    with pytest.raises(TypeError, match="groups"):
        clf.fit(X, y, groups=y)


def test_metadata_is_routed_to_who_asks_for_it():
    X, y, X_test, _ = small()
    weights = np.random.default_rng(0).uniform(0.1, 5.0, len(X))
    with sklearn.config_context(enable_metadata_routing=True):
        agents = [
            ("lr", clone(LR).set_fit_request(sample_weight=True)),
            ("nb", clone(NB).set_fit_request(sample_weight=False)),
        ]
        clf = TrustOrchestrator(agents).fit(X, y, sample_weight=weights)
        np.testing.assert_array_equal(
            clf.named_estimators_["nb"].predict_proba(X_test), clone(NB).fit(X, y).predict_proba(X_test)
        )
        np.testing.assert_array_equal(
            clf.named_estimators_["lr"].predict_proba(X_test),
            clone(LR).fit(X, y, sample_weight=weights).predict_proba(X_test),
        )
        with pytest.raises(ValueError, match="not explicitly set"):
            TrustOrchestrator([("lr", LR)]).fit(X, y, sample_weight=weights)


BAD = [
    ({"agents": []}, "at least one is needed"),
    ({"agents": [("lr", "drop")]}, "at least one is needed"),
    ({"agents": [LR]}, "list of \\(name, classifier\\)"),
    ({"agents": [("lr", "soft")]}, "list of \\(name, classifier\\)"),
    ({"agents": [("lr", LR), ("lr", NB)]}, "not unique"),
    ({"agents": [("cv", LR)]}, "conflict with constructor"),
    ({"agents": [("a__b", LR)]}, "must not contain __"),
    ({"agents": [("scale", StandardScaler())]}, "agent 'scale'.* is not a classifier"),
    ({"agents": [("ridge", RidgeClassifier())]}, "agent 'ridge'.* has no predict_proba"),
    ({"retriever": 3}, "retriever"),
    ({"n_neighbors": 0}, "n_neighbors"),
    ({"overconfidence_threshold": 1.5}, "overconfidence_threshold"),
    ({"n_bins": 0}, "n_bins"),
    ({"trust": "sum"}, "trust"),
    ({"reevaluate": "sometimes"}, "reevaluate"),
    ({"min_trust": -0.1}, "min_trust"),
    ({"cv": 1}, "cv"),
]


@pytest.mark.parametrize(("params", "message"), BAD)
def test_bad_parameters(params, message):
    X, y, *_ = small()
    with pytest.raises(ValueError, match=message):
        TrustOrchestrator([("lr", LR)]).set_params(**params).fit(X, y)


def test_bad_data():
    X, y, *_ = small()
    clf = TrustOrchestrator([("gda", GDAClassifier())])
    with pytest.raises(ValueError, match="inconsistent numbers"):
        clf.fit(X, y[:-1])
    with pytest.raises(ValueError, match="one class only"):
        clf.fit(X, np.zeros(len(X)))
    with pytest.raises(ValueError, match="NaN"):
        clf.fit(np.where(np.arange(len(X))[:, None] == 3, np.nan, X), y)
    with pytest.raises(ValueError, match="all zeros"):
        clf.fit(np.zeros_like(X), y)
    with pytest.raises(ValueError, match="expecting 8 features"):
        clf.fit(X, y).predict(X[:, :5])
    other = FrozenEstimator(clone(NB).fit(X, y))
    with pytest.raises(ValueError, match=r"'other' knows the labels \[0, 1, 2\]"):
        TrustOrchestrator([("other", other)]).fit(X, np.array(["ant", "bee", "cat"])[y])
    with pytest.raises(NotFittedError):
        TrustOrchestrator().predict(X)


# -- pictures ---------------------------------------------------------------------------------------------------------

SHAPES, COLORS = ["circle", "square", "star", "ring"], ["red", "green", "blue", "yellow"]
TINY, TINY_RN = "skclip-tiny", "skclip-tiny-rn"


@pytest.fixture(scope="module")
def drawings():
    """Outline drawings, which neither bundled model has seen."""
    return make_picture_world(
        500, shapes=SHAPES, colors=COLORS, held_out="include", styles=["sketch"], noise=8.0, random_state=200
    )


def zero_shot(model, names):
    text = ZeroShotClassifier(model, class_names={name: name for name in names}, templates="a photo of a {}")
    return make_pipeline(CLIPFeatures(model), text)


def probe(model, temperature, columns=None):
    return make_pipeline(CLIPFeatures(model), Distorted(LogisticRegression(C=10, max_iter=300), temperature, columns))


@pytest.mark.parametrize("seed", range(3))
def test_beats_the_vote_of_agents_of_different_quality_on_pictures(drawings, seed):
    order = np.random.default_rng(seed).permutation(500)
    train, test = order[:260], order[260:]
    agents = [
        ("text", zero_shot(TINY, drawings.target_names)),
        ("text_rn", zero_shot(TINY_RN, drawings.target_names)),
        ("bad", probe(TINY, 0.05, 4)),
        ("worse", probe(TINY_RN, 0.05, 3)),
        ("good", probe(TINY_RN, 0.3)),
    ]
    clf = TrustOrchestrator(agents, cv=3).fit(drawings.images[train], drawings.target[train])
    seen = clf.explain(drawings.images[test])
    y = drawings.target[test]
    majority = np.mean([Counter(row).most_common(1)[0][0] == label for row, label in zip(seen.answers.tolist(), y)])
    soft = np.mean([agent.predict_proba(drawings.images[test]) for agent in clf.estimators_], axis=0)
    soft = np.mean(clf.classes_[soft.argmax(axis=1)] == y)
    first = np.mean(clf.classes_[seen.first_probabilities.argmax(axis=1)] == y)
    retrieval = np.mean(clf.retriever_.predict(drawings.images[test]) == y)
    assert first > max(majority, soft) + 0.1
    assert np.mean(seen.prediction == y) > max(majority, soft) + 0.15
    assert np.mean(seen.prediction == y) > retrieval + 0.03
    assert clf.report_["good"]["trust"] > 2 * clf.report_["worse"]["trust"]


def test_default_retriever_reads_pictures_as_the_first_agent_that_does(drawings):
    X, y = list(drawings.images[:60]), drawings.target[:60]
    y = np.array([label.split()[0] for label in y])
    constant = DummyClassifier(strategy="prior")
    clf = TrustOrchestrator(
        [("constant", constant), ("gda", make_pipeline(CLIPFeatures(TINY), GDAClassifier()))], cv=2, n_neighbors=3
    ).fit(X, y)
    similarities, neighbors = (
        SimilarityVoteClassifier(3).fit(CLIPFeatures(TINY).transform(X), y).kneighbors(CLIPFeatures(TINY).transform(X))
    )
    seen = clf.explain(X)
    np.testing.assert_array_equal(seen.neighbors, neighbors)
    np.testing.assert_allclose(seen.similarities, similarities, atol=1e-5)
    with pytest.raises(ValueError, match="retriever=make_pipeline"):
        TrustOrchestrator([("constant", constant)]).fit(["a.png"] * 60, y)
    with pytest.raises(ValueError, match="retriever=make_pipeline"):
        TrustOrchestrator([("constant", constant)]).fit(drawings.images[:60], y)


def test_behind_the_front_door_text_agents_get_its_model(drawings):
    X, y = drawings.images[:60], np.array([name.split()[0] for name in drawings.target[:60]])
    text = ZeroShotClassifier(class_names=COLORS, templates="a photo of something {}")
    agents = [("text", text), ("gda", GDAClassifier())]
    clf = CLIPClassifier(TINY, TrustOrchestrator(agents, n_neighbors=3)).fit(X, y)
    assert clf.classifier_.named_estimators_["text"].model == TINY
    features = CLIPFeatures(TINY).transform(X)
    agents[0] = ("text", clone(text).set_params(model=TINY))
    alone = TrustOrchestrator(agents, n_neighbors=3).fit(features, y)
    np.testing.assert_allclose(clf.predict_proba(X), alone.predict_proba(features), atol=1e-5)


def test_who_encodes_for_the_default_retriever():
    assert raw_encoder(NB) is None
    assert raw_encoder(make_pipeline(StandardScaler(), NB)) is None
    front = CLIPClassifier(TINY, store=None)
    assert raw_encoder(front).get_params()["store"] is None
    assert raw_encoder(FrozenEstimator(front)).model == TINY
    assert raw_encoder(make_pipeline(CLIPFeatures(TINY), StandardScaler(), NB))[0].model == TINY
