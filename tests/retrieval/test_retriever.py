from __future__ import annotations

import copy
import pickle
import threading

import joblib
import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neighbors import NearestNeighbors
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.datasets import make_picture_world
from skclip.features import CLIPFeatures, CLIPTextFeatures
from skclip.metrics import retrieval_recall
from skclip.retrieval import CLIPRetriever

TINY = "skclip-tiny"


@parametrize_with_checks([CLIPRetriever(), CLIPRetriever(n_neighbors=1, model="no/such-model")])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def rows(n, d=12, seed=0, dtype=np.float64):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(dtype)


@pytest.fixture(scope="module")
def world():
    return make_picture_world(240, image_size=32)


@pytest.fixture(scope="module")
def retriever(world):
    return CLIPRetriever(TINY).fit(world.images, world.target)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("working_memory", [1024, 0.01])
def test_equals_scikit_learn_on_features(dtype, working_memory):
    X, queries = rows(400, dtype=dtype), rows(30, seed=1, dtype=dtype)
    distances, expected = NearestNeighbors(metric="cosine", algorithm="brute").fit(X).kneighbors(queries, 7)
    with config_context(working_memory=working_memory):
        similarities, indices = CLIPRetriever().fit(X).kneighbors(queries, 7)
    assert similarities.dtype == dtype
    np.testing.assert_array_equal(indices, expected)
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-6)


def test_without_queries_no_row_is_its_own_neighbour():
    X = rows(50)
    _, expected = NearestNeighbors(metric="cosine", algorithm="brute").fit(X).kneighbors(n_neighbors=4)
    np.testing.assert_array_equal(CLIPRetriever(n_neighbors=4).fit(X).kneighbors(return_similarity=False), expected)
    copies = CLIPRetriever().fit(np.ones((9, 3)))
    indices = copies.kneighbors(n_neighbors=3)[1]
    assert not (indices == np.arange(9)[:, None]).any()
    assert all(len(set(line)) == 3 for line in indices.tolist())


def test_of_views_the_first_is_read():
    X, queries = rows(60).reshape(20, 3, 12), rows(9, seed=1).reshape(3, 3, 12)
    views, plain = CLIPRetriever().fit(X), CLIPRetriever().fit(X[:, 0])
    assert views.n_features_in_ == 12
    for ours, expected in zip(views.kneighbors(queries), plain.kneighbors(queries[:, 0])):
        np.testing.assert_array_equal(ours, expected)


def test_length_of_rows_does_not_matter():
    X, queries = rows(40), rows(5, seed=1)
    scale = np.random.default_rng(2).uniform(0.1, 9, (40, 1))
    one, other = CLIPRetriever().fit(X), CLIPRetriever().fit(X * scale)
    np.testing.assert_array_equal(one.kneighbors(queries)[1], other.kneighbors(queries * 7)[1])


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
@pytest.mark.parametrize("named", [False, True])
def test_partial_fit_equals_one_fit(dtype, named):
    X = rows(70, dtype=dtype)
    y = np.array([f"picture {i}.png" for i in range(70)]) if named else None
    whole, parts = CLIPRetriever().fit(X, y), CLIPRetriever()
    for chunk in np.split(np.arange(70), [1, 30, 31]):
        parts.partial_fit(X[chunk], None if y is None else y[chunk])
    np.testing.assert_array_equal(parts.X_fit_, whole.X_fit_)
    np.testing.assert_array_equal(parts.ids_, whole.ids_)
    assert parts.n_samples_fit_ == 70


def test_partial_fit_refuses_what_does_not_fit():
    unnamed, named = CLIPRetriever().fit(rows(5)), CLIPRetriever().fit(rows(5), list("abcde"))
    with pytest.raises(ValueError, match="given no y"):
        unnamed.partial_fit(rows(1), ["a"])
    with pytest.raises(ValueError, match="needs the ids"):
        named.partial_fit(rows(1))
    with pytest.raises(TypeError, match="y holds 3"):
        named.partial_fit(rows(1), [3])
    with pytest.raises(ValueError, match="features"):
        named.partial_fit(rows(1, d=3), ["f"])
    assert named.n_samples_fit_ == 5


def test_texts_and_pictures_of_the_tiny_world(world, retriever):
    queries = make_picture_world(200, image_size=32, start=240)
    assert retriever.n_features_in_ == 128
    np.testing.assert_array_equal(retriever.kneighbors(world.images, 1)[1][:, 0], np.arange(240))
    by_text, by_picture = [
        retriever.recall_at_k(X, queries.target, texts=texts, k=1)
        for X, texts in ((None, queries.captions), (queries.images, None))
    ]
    assert by_text > 0.9  # chance: 1/56
    assert by_picture > 0.6


@pytest.mark.parametrize("kind", ["long", "attr"])
def test_a_caption_finds_its_own_picture(kind):
    pairs = make_picture_world(100, captions=kind, start=5000)
    assert len(set(pairs.captions)) == 100
    recalls = CLIPRetriever(TINY).fit(pairs.images).recall_at_k(texts=pairs.captions, y=np.arange(100))
    assert recalls[0] > 0.8  # chance: 0.01
    assert np.all(np.diff(recalls) >= 0)
    texts = CLIPRetriever(TINY).fit(CLIPTextFeatures(TINY).transform(pairs.captions))
    assert texts.recall_at_k(pairs.images, np.arange(100), k=1) > 0.8


def test_pictures_equal_their_features(world, retriever, tmp_path):
    from PIL import Image

    features = CLIPFeatures(TINY).transform(world.images)
    of_features = CLIPRetriever(TINY).fit(features)
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for path, picture in zip(paths, world.images):
        Image.fromarray(picture).save(path)
    expected = of_features.kneighbors(features[:3])
    for queries in (world.images[:3], list(world.images[:3]), paths, [str(path) for path in paths]):
        for answer in (of_features.kneighbors(queries), retriever.kneighbors(queries)):
            np.testing.assert_array_equal(answer[1], expected[1])
            np.testing.assert_allclose(answer[0], expected[0], atol=1e-6)
    text = ["a red circle"]
    np.testing.assert_array_equal(of_features.kneighbors(texts=text)[1], retriever.kneighbors(texts=text)[1])
    added = CLIPRetriever(TINY).partial_fit(world.images[:100]).partial_fit(features[100:])
    np.testing.assert_allclose(added.X_fit_, retriever.X_fit_, atol=1e-6)


def test_a_collection_of_features_without_model_takes_features_only(world):
    retriever = CLIPRetriever().fit(rows(20))
    for query in ({"texts": ["a star"]}, {"X": world.images[:1]}):
        with pytest.raises(ValueError, match=r"nothing tells which model.*model=\.\.\."):
            retriever.kneighbors(**query)
    assert retriever.model_ is retriever.weights_digest_ is None


def test_a_model_of_another_width_is_refused():
    with pytest.raises(ValueError, match="gives 128 features, but the collection has 12"):
        CLIPRetriever(TINY).fit(rows(20)).kneighbors(texts=["a star"])


def test_sentences_as_X_are_paths(retriever):
    with pytest.raises(ValueError, match=r"X\[0\].*no such file") as caught:
        retriever.kneighbors(["a photo of a red circle"])
    assert "texts=" in "".join(caught.value.__notes__)
    with pytest.raises(TypeError, match="single text"):
        retriever.kneighbors(texts="a photo of a red circle")
    with pytest.raises(ValueError, match="Both X and texts"):
        retriever.kneighbors(rows(1, 128), texts=["a star"])


def test_other_weights_are_refused(retriever, world):
    other = copy.copy(retriever)
    other.weights_digest_ = "0" * 64
    for query in ({"texts": ["a star"]}, {"X": world.images[:1]}):
        with pytest.raises(ValueError, match="not those that encoded the collection"):
            other.kneighbors(**query)
    other.kneighbors(retriever.X_fit_[:1])


@pytest.mark.parametrize("k", [6, 100])
def test_more_neighbours_than_rows(k):
    retriever = CLIPRetriever(n_neighbors=k).fit(rows(5))
    with pytest.raises(ValueError, match=rf"Expected n_neighbors <= n_samples_fit, but n_neighbors = {k}"):
        retriever.kneighbors(rows(2))
    with pytest.raises(ValueError, match="n_samples_fit - 1"):
        retriever.kneighbors(n_neighbors=5)
    assert retriever.kneighbors(rows(2), 5)[1].shape == (2, 5)


@pytest.mark.parametrize(("k", "error"), [(0, ValueError), (2.0, TypeError), (True, TypeError)])
def test_impossible_numbers_of_neighbours(k, error):
    with pytest.raises(error, match="n_neighbors must be"):
        CLIPRetriever().fit(rows(5)).kneighbors(rows(1), k)


def test_bad_rows_and_ids(world):
    X = rows(6)
    with pytest.raises(ValueError, match="6 rows and y 5 ids"):
        CLIPRetriever().fit(X, range(5))
    with pytest.raises(ValueError, match="240 rows and y 2 ids"):
        CLIPRetriever("no/such-model").fit(world.images, [1, 2])  # noticed before anything is encoded
    with pytest.raises(TypeError, match=r"y\[1\] is None"):
        CLIPRetriever().fit(X, ["a", None, "c", "d", "e", "f"])
    with pytest.raises(ValueError, match="0 sample"):
        CLIPRetriever().fit(np.empty((0, 3)))
    with pytest.raises(ValueError, match="0 sample"):
        CLIPRetriever().fit([])
    retriever = CLIPRetriever().fit(X)
    bad = rows(6)
    bad[3] = 0
    with pytest.raises(ValueError, match=r"X\[3\] is all zeros"):
        retriever.kneighbors(bad)
    with pytest.raises(ValueError, match="All 6 rows of X are zeros"):
        CLIPRetriever().fit(0 * bad)
    assert CLIPRetriever().fit(bad).kneighbors(X, 6)[0].shape == (6, 6)  # a single one is similar to nothing
    bad[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"NaN.*X\[3, 2\]"):
        retriever.kneighbors(bad)
    with pytest.raises(TypeError, match=r"X\[1\]"):
        CLIPRetriever(TINY).fit([world.images[0], None])
    with pytest.raises(NotFittedError):
        CLIPRetriever().kneighbors(X)
    with pytest.raises(NotFittedError):
        CLIPRetriever().score(X, range(6))


def test_recall_is_that_of_the_metric():
    X, queries = rows(80), rows(40, seed=1)
    wanted = np.random.default_rng(2).integers(0, 80, 40)
    retriever = CLIPRetriever().fit(X)
    recalls = retriever.recall_at_k(queries, wanted, k=[1, 5, 20])
    similarities, indices = retriever.kneighbors(queries, 80)
    matrix = np.empty_like(similarities)
    np.put_along_axis(matrix, indices, similarities, axis=1)
    np.testing.assert_allclose(recalls, retrieval_recall(matrix, wanted, k=[1, 5, 20]))
    assert retriever.score(queries, wanted) == recalls[1]
    with pytest.raises(ValueError, match="needs y"):
        retriever.recall_at_k(queries)
    with pytest.raises(ValueError, match="needs queries"):
        retriever.score(y=wanted)
    with pytest.raises(ValueError, match="inconsistent"):
        retriever.recall_at_k(queries, wanted[:-1])


def test_recall_of_what_cannot_be_looked_at():
    retriever = CLIPRetriever().fit(np.eye(3), ["a", "b", "c"])
    assert retriever.recall_at_k(np.eye(2, 3), ["a", "z"], k=1) == 0.5
    with pytest.raises(TypeError, match="y holds 0, but the ids are such as 'a'"):
        retriever.recall_at_k(np.eye(2, 3), [0, 1], k=1)
    for k in (1.5, (1, 0)):
        with pytest.raises(ValueError, match="k must be a positive whole number"):
            retriever.recall_at_k(np.eye(2, 3), ["a", "b"], k=k)


def test_models_are_compared_by_a_search(world):
    folds = PredefinedSplit(np.repeat([-1, 0], 120))
    search = GridSearchCV(CLIPRetriever(n_neighbors=1), {"model": [TINY, "skclip-tiny-rn"]}, cv=folds)
    search.fit(list(world.images), world.target)
    assert (search.cv_results_["mean_test_score"] > 0.4).all()  # chance: 1/56


def test_a_pickle_holds_arrays_and_no_model(retriever, world, tmp_path):
    size = retriever.X_fit_.nbytes + retriever.ids_.nbytes
    assert len(pickle.dumps(retriever)) < size + 10_000
    assert len(pickle.dumps(clone(retriever))) < 2000
    joblib.dump(retriever, tmp_path / "retriever.joblib")
    loaded = joblib.load(tmp_path / "retriever.joblib", mmap_mode="r")
    for ours, expected in zip(loaded.kneighbors(texts=["a star"]), retriever.kneighbors(texts=["a star"])):
        np.testing.assert_array_equal(ours, expected)


def test_skops_trusts_only_what_it_knows():
    io = pytest.importorskip("skops.io")
    retriever = CLIPRetriever().fit(rows(20), [f"{i}" for i in range(20)])
    data = io.dumps(retriever)
    unknown = io.get_untrusted_types(data=data)
    assert all(name.startswith("skclip.") for name in unknown)
    np.testing.assert_array_equal(
        io.loads(data, trusted=unknown).kneighbors(rows(3))[1], retriever.kneighbors(rows(3))[1]
    )


def test_search_writes_nothing_and_threads_share_it(retriever, world):
    before, expected, answers = pickle.dumps(retriever), retriever.kneighbors(world.images[:20]), [None] * 4

    def work(i):
        answers[i] = retriever.kneighbors(world.images[:20])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert pickle.dumps(retriever) == before
    for answer in answers:
        np.testing.assert_array_equal(answer[1], expected[1])


def test_a_device_that_is_missing(world, retriever):
    with pytest.raises(ValueError, match="cuda:77"):
        CLIPRetriever(TINY, device="cuda:77").fit(world.images)
    elsewhere = copy.copy(retriever).set_params(device="cuda:77")
    with pytest.warns(UserWarning, match="cuda:77"):
        answer = elsewhere.kneighbors(texts=["a star"])
    np.testing.assert_allclose(answer[0], retriever.kneighbors(texts=["a star"])[0], atol=1e-6)


@pytest.mark.realdata
def test_pairs_of_flickr8k(realdata):
    with np.load(realdata / "clip-vit-b-32-openai" / "flickr8k_pairs.npz") as pairs:
        pictures, texts = pairs["images"].astype(np.float32), pairs["texts"].astype(np.float32)
    owner = np.arange(len(texts)) // 5
    assert CLIPRetriever().fit(pictures).recall_at_k(texts, owner, k=1) == pytest.approx(0.832, abs=1e-9)
    to_texts = CLIPRetriever(n_neighbors=1).fit(texts, owner)
    assert to_texts.score(pictures, np.arange(len(pictures))) == pytest.approx(0.93, abs=1e-9)
