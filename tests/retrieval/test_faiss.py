from __future__ import annotations

import gc
import pickle
import sys

import numpy as np
import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.retrieval import CLIPRetriever
from skclip.utils import _faiss


def rows(n, d=16, seed=0):
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def test_without_faiss_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ImportError, match=r"skclip\[faiss\]"):
        CLIPRetriever(backend="faiss").fit(rows(10))


class TestWithFaiss:
    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("faiss")

    @parametrize_with_checks([CLIPRetriever(backend="faiss")])
    def test_scikit_learn_contract(self, estimator, check):
        check(estimator)

    @pytest.mark.parametrize("dtype", [np.float32, np.float64])
    def test_flat_equals_exact(self, dtype):
        X, queries = rows(500).astype(dtype), rows(40, seed=1).astype(dtype)
        expected, answer = [CLIPRetriever(backend=b).fit(X).kneighbors(queries, 9) for b in ("exact", "faiss")]
        np.testing.assert_array_equal(answer[1], expected[1])
        np.testing.assert_allclose(answer[0], expected[0], atol=1e-6)
        assert answer[0].dtype == dtype
        assert answer[1].dtype == np.intp

    @pytest.mark.parametrize(
        ("factory", "parameters", "at_least"), [("IVF16,Flat", "nprobe=8", 0.8), ("HNSW16", "efSearch=200", 0.95)]
    )
    def test_approximate_indices(self, factory, parameters, at_least, tmp_path):
        X, queries = rows(2000), rows(50, seed=1)
        expected = CLIPRetriever().fit(X).kneighbors(queries, 10)[1]
        retriever = CLIPRetriever(backend="faiss", faiss_factory=factory, faiss_parameters=parameters).fit(X)
        _, found = retriever.kneighbors(queries, 10)
        recall = np.mean([len(set(a) & set(b)) / 10 for a, b in zip(found.tolist(), expected.tolist())])
        assert recall >= at_least
        retriever.save(tmp_path / "saved")
        for again in (pickle.loads(pickle.dumps(retriever)), CLIPRetriever.load(tmp_path / "saved")):
            np.testing.assert_array_equal(again.kneighbors(queries, 10)[1], found)

    def test_too_few_answers_are_completed_exactly(self):
        X, queries = rows(400), rows(5, seed=1)
        retriever = CLIPRetriever(backend="faiss", faiss_factory="IVF40,Flat").fit(X)
        similarities, indices = retriever.kneighbors(queries, 100)
        assert (indices >= 0).all()
        expected = CLIPRetriever().fit(X).kneighbors(queries, 100)
        np.testing.assert_array_equal(indices, expected[1])
        np.testing.assert_allclose(similarities, expected[0], atol=1e-6)

    def test_bad_words_to_faiss(self):
        with pytest.raises(ValueError, match="faiss_factory='Flut'"):
            CLIPRetriever(backend="faiss", faiss_factory="Flut").fit(rows(10))
        with pytest.raises(ValueError, match=r"IVF64,Flat.*10 rows"):
            CLIPRetriever(backend="faiss", faiss_factory="IVF64,Flat").fit(rows(10))
        with pytest.raises(ValueError, match="faiss_parameters='nprobe=3'"):
            CLIPRetriever(backend="faiss", faiss_parameters="nprobe=3").fit(rows(10)).kneighbors(rows(1))

    def test_fit_and_partial_fit_renew_the_index(self):
        X, queries = rows(300), rows(20, seed=1)
        retriever = CLIPRetriever(backend="faiss").fit(X[:100])
        for change in (lambda: retriever.partial_fit(X[100:]), lambda: retriever.fit(X[50:])):
            change()
            expected = CLIPRetriever().fit(retriever.X_fit_).kneighbors(queries)[1]
            np.testing.assert_array_equal(retriever.kneighbors(queries)[1], expected)

    def test_an_index_goes_with_its_estimator(self):
        retriever = CLIPRetriever(backend="faiss").fit(rows(10))
        before = len(_faiss._indices)
        assert b"faiss" not in pickle.dumps(vars(retriever)["X_fit_"])
        del retriever
        gc.collect()
        assert len(_faiss._indices) == before - 1
