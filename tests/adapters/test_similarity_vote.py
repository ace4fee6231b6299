from __future__ import annotations

import pickle

import joblib
import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, LeaveOneOut, cross_val_predict
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.adapters import SimilarityVoteClassifier
from skclip.utils import get_logits
from skclip.utils._arrays import unit_rows


def small(n=60, d=10, n_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return rng.normal(size=(n, d)) + rng.normal(size=(n_classes, d))[y] + 0.5, y, rng.normal(size=(25, d)) + 0.5


@parametrize_with_checks([SimilarityVoteClassifier(), SimilarityVoteClassifier(1), SimilarityVoteClassifier(1000)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("n_neighbors", [1, 3, 10, 60])
def test_shares_are_the_formula(n_neighbors):
    X, y, queries = small()
    clf = SimilarityVoteClassifier(n_neighbors).fit(X, y)
    expected = np.zeros((25, 4))
    for i, row in enumerate(unit_rows(queries)):
        cosines = unit_rows(X) @ row
        for j in np.argsort(-cosines)[:n_neighbors]:
            expected[i, y[j]] += max(cosines[j], 0.0)
    expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(clf.predict_proba(queries), expected, atol=1e-12)
    np.testing.assert_array_equal(clf.predict(queries), expected.argmax(axis=1))


def test_one_neighbour_is_scikit_learns():
    X, y, queries = small(n=200)
    expected = KNeighborsClassifier(1, metric="cosine").fit(X, y).predict(queries)
    np.testing.assert_array_equal(SimilarityVoteClassifier(1).fit(X, y).predict(queries), expected)


def test_neighbours_are_scikit_learns():
    X, y, queries = small(n=200)
    distances, places = KNeighborsClassifier(7, metric="cosine").fit(X, y).kneighbors(queries)
    similarities, indices = SimilarityVoteClassifier(7).fit(X, y).kneighbors(queries)
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-12)
    np.testing.assert_array_equal(indices, places)


def test_all_neighbours_of_balanced_classes_are_a_prior_weighted_by_similarity():
    X, y, _ = small(n=400)
    X += 50.0  # nearly parallel rows: the similarities differ little
    clf = SimilarityVoteClassifier(400).fit(X, y)
    queries = X[:20] + 1.0
    np.testing.assert_allclose(clf.predict_proba(queries), 0.25, atol=1e-3)
    by_class = np.stack([(unit_rows(queries) @ unit_rows(X[y == k]).T).sum(axis=1) for k in range(4)], axis=1)
    np.testing.assert_allclose(clf.predict_proba(queries), by_class / by_class.sum(axis=1, keepdims=True), rtol=1e-10)


def test_negative_similarities_do_not_vote():
    clf = SimilarityVoteClassifier(3).fit([[1.0, 0.0], [0.6, 0.8], [-1.0, 0.1]], [0, 1, 1])
    np.testing.assert_allclose(clf.predict_proba([[1.0, 0.0]]), [[1 / 1.6, 0.6 / 1.6]])


def test_where_nothing_is_similar_every_class_gets_the_same():
    clf = SimilarityVoteClassifier(2).fit([[1.0, 0.0], [0.6, 0.8], [0.8, 0.6]], [0, 1, 2])
    np.testing.assert_array_equal(clf.predict_proba([[-1.0, -1.0], [0.0, 0.0]]), np.full((2, 3), 1 / 3))


def test_lengths_of_rows_do_not_matter():
    X, y, queries = small()
    rng = np.random.default_rng(1)
    expected = SimilarityVoteClassifier(5).fit(X, y).predict_proba(queries)
    scaled = SimilarityVoteClassifier(5).fit(X * rng.uniform(0.1, 9, (60, 1)), y)
    np.testing.assert_allclose(scaled.predict_proba(queries * 1e-3), expected, atol=1e-12)


def test_of_equal_rows_the_first_is_taken():
    clf = SimilarityVoteClassifier(1).fit([[0.0, 1.0], [2.0, 0.0], [1.0, 0.0]], ["a", "b", "a"])
    similarities, indices = clf.kneighbors([[3.0, 0.0]], n_neighbors=2)
    np.testing.assert_array_equal(similarities, [[1.0, 1.0]])
    np.testing.assert_array_equal(indices, [[1, 2]])
    assert clf.predict([[3.0, 0.0]]) == ["b"]


def test_none_leaves_each_row_out():
    X, y, _ = small()
    clf = SimilarityVoteClassifier(5)
    expected = cross_val_predict(clf, X, y, cv=LeaveOneOut(), method="predict_proba")
    clf.fit(X, y)
    np.testing.assert_allclose(clf.predict_proba(None), expected, atol=1e-12)
    assert (clf.kneighbors()[1] != np.arange(60)[:, None]).all()
    assert SimilarityVoteClassifier(1000).fit(X, y).kneighbors()[1].shape == (60, 59)


def test_none_with_more_equal_rows_than_neighbours():
    X = np.ones((6, 3))
    clf = SimilarityVoteClassifier(2).fit(X, [0, 1, 0, 1, 0, 1])
    _, indices = clf.kneighbors()
    assert indices.shape == (6, 2)
    assert (indices != np.arange(6)[:, None]).all()


def test_memory_smaller_than_the_number_of_neighbours():
    X, y, queries = small(n=6, n_classes=3)
    clf = SimilarityVoteClassifier(10).fit(X, y)
    assert clf.n_neighbors_ == 6
    assert clf.kneighbors(queries)[0].shape == (25, 6)
    for bad in (0, 7, 2.5):
        with pytest.raises(ValueError, match=r"n_neighbors must be a whole number from 1 to 6.*got"):
            clf.kneighbors(queries, n_neighbors=bad)
    with pytest.raises(ValueError, match="from 1 to 5"):
        clf.kneighbors(n_neighbors=6)


def test_views_are_one_picture():
    X, y, queries = small()
    rng = np.random.default_rng(2)
    views = np.stack([X, X + 0.1 * rng.normal(size=X.shape)], axis=1)
    clf = SimilarityVoteClassifier(3).fit(views, y)
    mean = unit_rows((unit_rows(views[:, 0]) + unit_rows(views[:, 1])) / 2)
    np.testing.assert_allclose(clf.X_fit_, mean)
    assert clf.n_features_in_ == 10
    first = clf.predict_proba(np.stack([queries, -queries], axis=1))
    np.testing.assert_array_equal(first, clf.predict_proba(queries))


def test_float32_stays_float32():
    X, y, queries = small()
    clf = SimilarityVoteClassifier(5).fit(X.astype(np.float32), y)
    assert clf.X_fit_.dtype == np.float32
    assert clf.kneighbors(queries.astype(np.float32))[0].dtype == np.float32
    assert clf.predict_proba(queries.astype(np.float32)).dtype == np.float64
    np.testing.assert_allclose(
        clf.predict_proba(queries.astype(np.float32)),
        SimilarityVoteClassifier(5).fit(X, y).predict_proba(queries),
        atol=1e-5,
    )


def test_log_probabilities_stand_in_for_logits_only_where_asked():
    X, y, queries = small()
    clf = SimilarityVoteClassifier(5).fit(X, y)
    with pytest.raises(TypeError, match="probabilities only"):
        get_logits(clf, queries)
    logits = get_logits(clf, queries, shift_invariant=True)
    np.testing.assert_array_equal(logits.argmax(axis=1), clf.predict_proba(queries).argmax(axis=1))


def test_bad_input():
    X, y, queries = small()
    with pytest.raises(NotFittedError):
        SimilarityVoteClassifier().kneighbors(X)
    with pytest.raises(ValueError, match="one class only"):
        SimilarityVoteClassifier().fit(X, np.zeros(60))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        SimilarityVoteClassifier().fit(X, y[:-1])
    with pytest.raises(ValueError, match="class 2 is all zeros"):
        SimilarityVoteClassifier().fit(X * (y != 2)[:, None], y)
    with pytest.raises(ValueError, match="n_neighbors"):
        SimilarityVoteClassifier(0).fit(X, y)
    clf = SimilarityVoteClassifier().fit(X, y)
    with pytest.raises(ValueError, match="9 features"):
        clf.predict(queries[:, :9])
    queries[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"X\[3, 2\]"):
        clf.predict(queries)


def test_pickles_to_its_arrays(tmp_path):
    X, y, queries = small(n=2000, d=64)
    clf = SimilarityVoteClassifier().fit(X, y)
    queries = X[:9] + 0.1
    assert len(pickle.dumps(clf)) < clf.X_fit_.nbytes + clf.codes_.nbytes + 10_000
    joblib.dump(clf, tmp_path / "clf.joblib")
    loaded = joblib.load(tmp_path / "clf.joblib", mmap_mode="r")
    np.testing.assert_array_equal(loaded.predict_proba(queries), clf.predict_proba(queries))
    np.testing.assert_allclose(loaded.predict_proba(None), clf.predict_proba(None))


def test_skops_trusts_only_what_it_knows():
    io = pytest.importorskip("skops.io")
    X, y, queries = small()
    clf = SimilarityVoteClassifier().fit(X, y)
    data = io.dumps(clf)
    unknown = io.get_untrusted_types(data=data)
    assert all(name.startswith("skclip.") for name in unknown)
    np.testing.assert_array_equal(io.loads(data, trusted=unknown).predict_proba(queries), clf.predict_proba(queries))


def test_grid_search():
    X, y, _ = small()
    assert GridSearchCV(SimilarityVoteClassifier(), {"n_neighbors": [1, 5]}, cv=3).fit(X, y).best_score_ > 0.5
