from __future__ import annotations

import pickle
from itertools import combinations

import joblib
import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from scipy.stats import hypergeom
from sklearn import config_context
from sklearn.calibration import CalibratedClassifierCV
from sklearn.exceptions import NotFittedError
from sklearn.metrics import make_scorer, roc_auc_score
from sklearn.model_selection import TunedThresholdClassifierCV, cross_validate
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.adapters import FewShotInspector, GDAClassifier
from skclip.adapters._inspector import mean_of_ranks, rank_shares
from skclip.utils._arrays import unit_rows

VARIANTS = [
    FewShotInspector(),
    FewShotInspector(5, temperature=1.0),
    FewShotInspector(2, balanced=True, temperature=0.1),
]


@parametrize_with_checks(VARIANTS)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def small(n=60, d=10, n_classes=2, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return rng.normal(size=(n, d)) + rng.normal(size=(n_classes, d))[y] + 0.5, y, rng.normal(size=(25, d)) + 0.5


def literal_similarities(X, y, queries, n_neighbors=1):
    cosines = unit_rows(queries) @ unit_rows(X).T
    return np.stack(
        [np.sort(cosines[:, y == k], axis=1)[:, ::-1][:, :n_neighbors].mean(axis=1) for k in np.unique(y)], axis=1
    )


@pytest.mark.parametrize("n_classes", [2, 4])
@pytest.mark.parametrize("n_neighbors", [1, 3, 1000])
def test_logits_are_the_formula(n_neighbors, n_classes):
    X, y, queries = small(n_classes=n_classes)
    clf = FewShotInspector(n_neighbors, temperature=0.2).fit(X, y)
    s = literal_similarities(X, y, queries, n_neighbors)
    np.testing.assert_allclose(clf.logits(queries), s / 0.2, atol=1e-12)
    np.testing.assert_allclose(clf.predict_proba(queries), softmax(s / 0.2, axis=1), atol=1e-12)
    np.testing.assert_array_equal(clf.predict(queries), s.argmax(axis=1))
    if n_classes == 2:
        np.testing.assert_allclose(clf.decision_function(queries), (s[:, 1] - s[:, 0]) / 0.2, atol=1e-12)


def test_one_neighbour_is_scikit_learns():
    for n_classes in (2, 5):
        X, y, queries = small(n=300, n_classes=n_classes)
        expected = KNeighborsClassifier(1, metric="cosine").fit(X, y).predict(queries)
        np.testing.assert_array_equal(FewShotInspector().fit(X, y).predict(queries), expected)


def test_an_exemplar_is_its_own_best_match():
    X, y, _ = small()
    clf = FewShotInspector().fit(X, y)
    table = pd.DataFrame(clf.explain(X))
    own = table[table["class"] == y[table["row"]]]
    np.testing.assert_array_equal(own["exemplar"], np.arange(60))
    np.testing.assert_allclose(own["similarity"], 1.0)
    similarities, indices = clf.kneighbors(X)
    np.testing.assert_array_equal(indices[:, 0], np.arange(60))
    np.testing.assert_allclose(similarities[:, 0], 1.0)


def test_temperature_only_rescales():
    X, y, queries = small()
    released = FewShotInspector(temperature=1.0).fit(X, y)
    sharp = FewShotInspector().fit(X, y)
    truth = np.arange(25) % 2
    np.testing.assert_array_equal(released.predict(queries), sharp.predict(queries))
    auc = [roc_auc_score(truth, clf.decision_function(queries)) for clf in (released, sharp)]
    assert auc[0] == auc[1]
    assert np.abs(released.predict_proba(queries) - sharp.predict_proba(queries)).max() > 0.1
    cold = FewShotInspector(temperature=1e-9).fit(X, y).predict_proba(queries)
    np.testing.assert_array_equal(cold.max(axis=1), 1.0)
    warm = FewShotInspector(temperature=1e9).fit(X, y).predict_proba(queries)
    np.testing.assert_allclose(warm, 0.5, atol=1e-8)


def test_without_temperature_probabilities_of_similar_pictures_say_nothing():
    X, y, queries = small()
    proba = FewShotInspector(temperature=1.0).fit(X + 8.0, y).predict_proba(queries + 8.0)
    assert proba.min() > 0.48
    assert proba.max() < 0.52


def test_more_exemplars_never_lower_a_similarity():
    X, y, queries = small()
    before = FewShotInspector(temperature=1.0).fit(X[:30], y[:30]).logits(queries)
    after = FewShotInspector(temperature=1.0).fit(X, y).logits(queries)
    assert (after >= before - 1e-12).all()
    assert (after > before + 1e-6).any()


def test_order_of_exemplars_and_lengths_of_rows_do_not_matter():
    X, y, queries = small(n_classes=3)
    rng = np.random.default_rng(1)
    order, lengths = rng.permutation(60), rng.uniform(0.1, 9, (60, 1))
    expected = FewShotInspector(2, balanced=True).fit(X, y).logits(queries)
    shuffled = FewShotInspector(2, balanced=True).fit((X * lengths)[order], y[order])
    np.testing.assert_allclose(shuffled.logits(queries * 7), expected, atol=1e-9)


def test_swapped_labels_change_the_sign():
    X, y, queries = small()
    scores = FewShotInspector().fit(X, y).decision_function(queries)
    np.testing.assert_array_equal(FewShotInspector().fit(X, 1 - y).decision_function(queries), -scores)


def test_a_tie_is_nominal():
    X, y = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array(["bad", "good"])
    tie, toward_bad = [[3.0, 3.0]], [[3.001, 3.0]]
    assert FewShotInspector(pos_label="bad").fit(X, y).predict(tie) == ["good"]
    assert FewShotInspector(pos_label="good").fit(X, y).predict(tie) == ["bad"]
    assert FewShotInspector().fit(X, y).pos_label_ == "good"
    assert FewShotInspector(pos_label="bad").fit(X, y).predict(toward_bad) == ["bad"]
    # the sign of the decision function is scikit-learn's, whatever the positive label
    assert FewShotInspector(pos_label="bad").fit(X, y).decision_function(toward_bad) < 0


@pytest.mark.parametrize("threshold", [0.0, 0.2, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("pos_label", ["bad", "good"])
def test_threshold_is_for_the_probability_of_the_positive_label(threshold, pos_label):
    X, y, queries = small(n=200)
    names = np.array(["bad", "good"])
    clf = FewShotInspector(threshold=threshold, pos_label=pos_label, temperature=0.1).fit(X, names[y])
    positive = clf.predict_proba(queries)[:, names.tolist().index(pos_label)] > threshold
    np.testing.assert_array_equal(clf.predict(queries) == pos_label, positive)


def test_shares_of_a_subset_are_its_expectation():
    rng = np.random.default_rng(0)
    for n, m, k in [(7, 3, 1), (7, 3, 2), (6, 5, 3), (5, 1, 1), (5, 2, 4)]:
        values = rng.normal(size=(4, n))
        subsets = [
            np.sort(values[:, chosen], axis=1)[:, ::-1][:, :k].mean(axis=1) for chosen in combinations(range(n), m)
        ]
        np.testing.assert_allclose(mean_of_ranks(values, rank_shares(n, k, m)), np.mean(subsets, axis=0), atol=1e-9)
    assert rank_shares(10_000, 1, 10_000).tolist() == [1.0]
    assert len(rank_shares(10_000, 1, 1000)) < 400
    exact = hypergeom.cdf(2, 9999, np.arange(10_000), 999) / 30
    shares = rank_shares(10_000, 3, 1000)
    np.testing.assert_allclose(shares, exact[: len(shares)], atol=1e-9)
    assert exact[len(shares) :].sum() < 1e-8


def imbalanced(seed, d=64):
    """A defect that shows against nuisance variance; 220 good and 20 bad exemplars, balanced test pictures."""
    rng = np.random.default_rng(seed)
    base, turn = 6 * unit_rows(rng.normal(size=(1, d)))[0], np.linalg.qr(rng.normal(size=(d, d)))[0]
    scale = np.where(np.arange(d) < 20, 1.0, 0.1)
    y, y_test = np.repeat([0, 1], [220, 20]), np.arange(1000) % 2

    def draw(y):
        return base + (rng.normal(size=(len(y), d)) * scale) @ turn.T + 2.0 * y[:, None] * turn[:, -1]

    return draw(y), y, draw(y_test), y_test


def test_balanced_corrects_for_many_good_exemplars():
    plain, balanced = [], []
    for seed in range(5):
        X, y, X_test, y_test = imbalanced(seed)
        for outcome, clf in ((plain, FewShotInspector()), (balanced, FewShotInspector(balanced=True))):
            predicted = clf.fit(X, y).predict(X_test)
            outcome.append([np.mean(predicted[y_test == k] == k) for k in (0, 1)])
    specificity, sensitivity = np.mean(plain, axis=0)
    assert specificity > 0.95
    assert sensitivity < 0.45
    assert np.mean(balanced, axis=0).min() > 0.75
    assert np.mean(balanced) > np.mean(plain) + 0.1


def test_balanced_changes_nothing_where_classes_are_equal():
    X, y, queries = small()
    expected = FewShotInspector(3).fit(X, y).logits(queries)
    np.testing.assert_array_equal(FewShotInspector(3, balanced=True).fit(X, y).logits(queries), expected)


@pytest.mark.parametrize("seed", range(5))
def test_beats_the_nearest_centroid_where_classes_have_several_modes(seed):
    rng = np.random.default_rng(seed)
    centres = unit_rows(rng.normal(size=(30, 32)))
    clusters, test = np.repeat(np.arange(30), 4), rng.integers(30, size=1000)
    X, X_test = (centres[c] + 0.5 * rng.normal(size=(len(c), 32)) / np.sqrt(32) for c in (clusters, test))
    y, y_test = clusters // 6, test // 6
    # of unit rows, where the nearest centroid in cosine has to be taken by its direction
    centroids = unit_rows(NearestCentroid().fit(unit_rows(X), y).centroids_)
    centroid = np.mean(np.argmax(unit_rows(X_test) @ centroids.T, axis=1) == y_test)
    inspector = FewShotInspector().fit(X, y).score(X_test, y_test)
    assert centroid < 0.9
    assert inspector > 0.99
    assert inspector > GDAClassifier().fit(X, y).score(X_test, y_test) + 0.04


@pytest.mark.parametrize("seed", range(5))
def test_loses_to_discriminant_analysis_where_defects_are_a_small_shared_change(seed):
    rng = np.random.default_rng(seed)
    base, turn = 6 * unit_rows(rng.normal(size=(1, 64)))[0], np.linalg.qr(rng.normal(size=(64, 64)))[0]
    scale = np.where(np.arange(64) < 20, 1.0, 0.1)

    def draw(y):
        return base + (rng.normal(size=(len(y), 64)) * scale) @ turn.T + 0.6 * y[:, None] * turn[:, -1]

    y, y_test = np.arange(60) % 2, np.arange(1000) % 2
    X, X_test = draw(y), draw(y_test)
    auc = [
        roc_auc_score(y_test, clf.fit(X, y).decision_function(X_test)) for clf in (FewShotInspector(), GDAClassifier())
    ]
    assert auc[0] < 0.6
    assert auc[1] > auc[0] + 0.1


def test_explain_is_a_table(tmp_path):
    X, y, queries = small(n_classes=3)
    names = np.array(["good", "hole", "stain"])
    texts = [f"part {i}" for i in range(60)]
    clf = FewShotInspector().fit(X, names[y], descriptions=texts)
    table = pd.DataFrame(clf.explain(queries))
    assert table.columns.tolist() == ["row", "class", "probability", "exemplar", "similarity", "description"]
    assert len(table) == 25 * 3
    cosines = unit_rows(queries) @ unit_rows(X).T
    for _, line in table.iterrows():
        own = np.flatnonzero(names[y] == line["class"])
        assert line["exemplar"] == own[np.argmax(cosines[line["row"], own])]
        assert line["similarity"] == pytest.approx(cosines[line["row"], line["exemplar"]])
        assert line["description"] == f"part {line['exemplar']}"
    np.testing.assert_allclose(table["probability"].to_numpy().reshape(25, 3), clf.predict_proba(queries))
    joblib.dump(clf, tmp_path / "clf.joblib")
    pd.testing.assert_frame_equal(pd.DataFrame(joblib.load(tmp_path / "clf.joblib").explain(queries)), table)
    assert FewShotInspector().fit(X, y).explain(queries)["description"].tolist() == [""] * 75


def test_explained_probabilities_are_those_of_the_verdict(text_estimator):
    X, y, queries = small()
    text = text_estimator(np.eye(2, 10), [0, 1])
    clf = FewShotInspector(4, balanced=True, zero_shot=text, text_weight=0.3).fit(X[:40], (y * (X[:, 0] > 0))[:40])
    probabilities = clf.explain(queries)["probability"].reshape(25, 2)
    np.testing.assert_allclose(probabilities, clf.predict_proba(queries))


def test_kneighbors():
    X, y, queries = small(n=200)
    distances, places = KNeighborsClassifier(7, metric="cosine").fit(X, y).kneighbors(queries)
    clf = FewShotInspector(7).fit(X, y)
    similarities, indices = clf.kneighbors(queries)
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-12)
    np.testing.assert_array_equal(indices, places)
    assert (clf.kneighbors(n_neighbors=1)[1][:, 0] != np.arange(200)).all()
    with pytest.raises(ValueError, match="from 1 to 200"):
        clf.kneighbors(queries, n_neighbors=201)


def test_text_adds_its_cosine(text_estimator):
    X, y, queries = small()
    names = np.array(["bad", "good"])
    prototypes = np.random.default_rng(3).normal(size=(2, 10))
    text = text_estimator(prototypes, ["bad", "good"])
    clf = FewShotInspector(zero_shot=text, text_weight=0.7, temperature=0.1).fit(X, names[y])
    expected = literal_similarities(X, y, queries) + 0.7 * unit_rows(queries) @ unit_rows(prototypes).T
    np.testing.assert_allclose(clf.logits(queries), expected / 0.1, rtol=1e-5)
    unused = FewShotInspector(zero_shot=text).fit(X, names[y])
    np.testing.assert_array_equal(unused.logits(queries), FewShotInspector().fit(X, y).logits(queries))
    with pytest.raises(ValueError, match=r"text_weight=0.7.*pass zero_shot"):
        FewShotInspector(text_weight=0.7).fit(X, y)
    with pytest.raises(ValueError, match=r"width 9.*10 features"):
        FewShotInspector(zero_shot=prototypes[:, :9]).fit(X, y)
    with pytest.raises(ValueError, match=r"labels can only be 0\.\.1, but y holds -1"):
        FewShotInspector(zero_shot=prototypes).fit(X, 2 * y - 1)


def test_views_are_one_exemplar():
    X, y, queries = small()
    views = np.stack([X, X + 0.3], axis=1)
    clf = FewShotInspector().fit(views, y)
    assert clf.X_fit_.shape == (60, 10)
    np.testing.assert_allclose(clf.X_fit_, unit_rows((unit_rows(views[:, 0]) + unit_rows(views[:, 1])) / 2))
    pairs = np.stack([queries, -queries], axis=1)
    np.testing.assert_array_equal(clf.predict(pairs), clf.predict(queries))
    np.testing.assert_array_equal(clf.explain(pairs)["exemplar"], clf.explain(queries)["exemplar"])


def test_blocks_change_nothing():
    X, y, queries = small(n=3000, d=16, n_classes=3)
    queries = np.tile(queries, (40, 1))
    clf = FewShotInspector(2).fit(X, y)
    expected, best = clf.logits(queries), clf.explain(queries[:100])["exemplar"]
    with config_context(working_memory=1):
        np.testing.assert_allclose(clf.logits(queries), expected, atol=1e-10)
        np.testing.assert_array_equal(clf.explain(queries[:100])["exemplar"], best)


def test_float32_is_close_to_float64():
    X, y, queries = small()
    single = FewShotInspector().fit(X.astype(np.float32), y)
    assert single.X_fit_.dtype == np.float32
    logits = single.logits(queries.astype(np.float32))
    assert logits.dtype == np.float64
    np.testing.assert_allclose(logits, FewShotInspector().fit(X, y).logits(queries), atol=1e-3)


def test_cost_decides_the_threshold():
    _, _, X, y = imbalanced(0)

    def saved(y, predicted):
        return -(20 * np.mean((y == 1) & (predicted == 0)) + np.mean((y == 0) & (predicted == 1)))

    tuned = TunedThresholdClassifierCV(FewShotInspector(), scoring=make_scorer(saved), cv=4).fit(X[:300], y[:300])
    plain = FewShotInspector().fit(X[:300], y[:300])
    assert saved(y[300:], tuned.predict(X[300:])) > saved(y[300:], plain.predict(X[300:])) + 0.3


def test_calibration_and_cross_validation():
    X, y, _ = small(n=200)
    calibrated = CalibratedClassifierCV(FewShotInspector(), cv=3).fit(X, y)
    assert calibrated.predict_proba(X).shape == (200, 2)
    scores = cross_validate(FewShotInspector(), X, y, cv=4, scoring=["accuracy", "roc_auc", "f1", "precision"])
    assert scores["test_roc_auc"].mean() > 0.7


def test_bad_input():
    X, y, queries = small()
    names = np.array(["good", "bad"])[y]
    with pytest.raises(NotFittedError):
        FewShotInspector().explain(X)
    with pytest.raises(ValueError, match=r"one class only, 'good'.*outlier detector.*KNNDetector"):
        FewShotInspector().fit(X[::2], names[::2])
    with pytest.raises(ValueError, match=r"pos_label='defect' is none of the labels of y, \['bad', 'good'\]"):
        FewShotInspector(pos_label="defect").fit(X, names)
    for params in ({"pos_label": 1}, {"threshold": 0.3}):
        with pytest.raises(ValueError, match="are for two classes, but y holds 3"):
            FewShotInspector(**params).fit(X, np.arange(60) % 3)
    for texts in (["a"] * 59, "a" * 60):
        with pytest.raises(ValueError, match="one text for each of the 60 exemplars"):
            FewShotInspector().fit(X, y, descriptions=texts)
    with pytest.raises(ValueError, match=r"descriptions\[2\] is 7"):
        FewShotInspector().fit(X, y, descriptions=["a", "b", 7] + ["c"] * 57)
    with pytest.raises(ValueError, match="class 'bad' is all zeros"):
        FewShotInspector().fit(X * (names == "good")[:, None], names)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        FewShotInspector().fit(X, y[:-1])
    for params in ({"n_neighbors": 0}, {"temperature": 0}, {"threshold": 1.5}, {"text_weight": -1}):
        with pytest.raises(ValueError, match=next(iter(params))):
            FewShotInspector(**params).fit(X, y)
    clf = FewShotInspector().fit(X, y)
    with pytest.raises(ValueError, match="9 features"):
        clf.explain(queries[:, :9])
    queries[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"X\[3, 2\]"):
        clf.predict(queries)


def test_pickles_to_its_arrays():
    X, y, _ = small(n=2000, d=64)
    clf = FewShotInspector().fit(X, y)
    assert len(pickle.dumps(clf)) < clf.X_fit_.nbytes + clf.codes_.nbytes + 10_000


def test_skops_trusts_only_what_it_knows():
    io = pytest.importorskip("skops.io")
    X, y, queries = small()
    clf = FewShotInspector(pos_label=1).fit(X, y, descriptions=["a"] * 60)
    data = io.dumps(clf)
    unknown = io.get_untrusted_types(data=data)
    assert all(name.startswith("skclip.") for name in unknown)
    np.testing.assert_array_equal(io.loads(data, trusted=unknown).logits(queries), clf.logits(queries))


# labels in alphabetical order; "good" is the nominal one
GOOD = {"bottle": 3, "cable": 5, "carpet": 2, "hazelnut": 2, "screw": 0}


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "auc_one", "auc_half"),
    [
        ("bottle", 0.938, 0.955),
        ("cable", 0.609, 0.877),
        ("carpet", 0.999, 0.998),
        ("hazelnut", 0.656, 0.880),
        ("screw", 0.700, 0.895),
    ],
)
def test_real_parts(name, auc_one, auc_half, real_features):
    data = real_features(name, folder="clip-vit-b-16-openai-mvtec")
    X, y = data["X_test"], data["y_test"] != GOOD[name]

    def auc(clf, train_X, train_y, rows):
        return roc_auc_score(y[rows], clf.fit(train_X, train_y).decision_function(X[rows]))

    # one picture of each class: every kind of defect for itself
    clf = FewShotInspector().fit(data["X_train_1"], data["y_train_1"])
    similarities = clf.logits(X)
    defect = np.delete(similarities, GOOD[name], axis=1).max(axis=1) - similarities[:, GOOD[name]]
    assert roc_auc_score(y, defect) == pytest.approx(auc_one, abs=0.01)
    # half of the test pictures as exemplars, the defects as one class; "val" repeats rows of "test", so it is left out
    plain, balanced, gda = [], [], []
    for seed in range(5):
        order = np.random.default_rng(seed).permutation(len(y))
        own, rest = order[: len(y) // 2], order[len(y) // 2 :]
        train_X = np.concatenate([data["X_train_1"], X[own]])
        train_y = np.concatenate([data["y_train_1"] != GOOD[name], y[own]])
        for outcome, method in ((plain, FewShotInspector()), (balanced, FewShotInspector(balanced=True))):
            outcome.append(auc(method, train_X, train_y, rest))
        gda.append(auc(GDAClassifier(), train_X, train_y, rest))
    assert np.mean(balanced) == pytest.approx(auc_half, abs=0.01)
    assert np.mean(balanced) >= np.mean(plain) - 0.005
    # whole-picture similarity misses small defects that discriminant analysis finds
    assert np.mean(gda) >= np.mean(balanced) - 0.005
