from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skclip.tuning.weights import TextSpan

N, D, M = 400, 32, 60


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture(scope="module")
def texts():
    return unit(np.random.default_rng(0).normal(size=(M, D)))


def planted(texts, stds, seed=1, noise=0.01):
    """Rows that vary along the first texts, far from the origin."""
    rng = np.random.default_rng(seed)
    along = rng.normal(size=(N, len(stds))) * stds @ texts[: len(stds)]
    return 0.5 * texts[-1] + along + noise * rng.normal(size=(N, D))


def reference(X, texts, n_texts, rank):
    """The published procedure step by step: rows and texts are both deflated."""
    _, _, vectors = np.linalg.svd(X, full_matrices=False)
    texts = texts @ vectors[:rank].T @ vectors[:rank]
    rest = X - X.mean(axis=0)
    explained = np.broadcast_to(X.mean(axis=0), X.shape).copy()
    found = []
    for _ in range(n_texts):
        best = int((rest @ texts.T).std(axis=0).argmax())
        found.append(best)
        direction = texts[best] / np.linalg.norm(texts[best])
        explained += np.outer(rest @ direction, direction)
        rest = rest - np.outer(rest @ direction, direction)
        texts = texts - np.outer(texts @ direction, direction)
    return found, explained


def test_planted_texts_are_found_in_the_order_of_their_variance(texts):
    span = TextSpan(n_texts=3).fit(planted(texts, [1.0, 3.0, 2.0]), texts)
    assert span.indices_.tolist() == [1, 2, 0]
    assert span.explained_variance_ratio_.sum() > 0.99
    assert (np.diff(span.explained_variance_ratio_) < 0).all()


@pytest.mark.parametrize(("rank", "wanted"), [(None, 7), (4, 4), (10, 7)])
def test_it_is_the_published_procedure(texts, rank, wanted):
    """In 6 dimensions around a mean elsewhere; there is nothing beyond."""
    X = np.random.default_rng(2).normal(size=(N, 6)) @ np.random.default_rng(3).normal(size=(6, D)) + texts[3]
    n_texts = 4
    span = TextSpan(n_texts, rank=rank).fit(X, texts)
    found, explained = reference(X, texts, n_texts, wanted)
    assert span.indices_.tolist() == found
    assert_allclose(span.inverse_transform(span.transform(X)), explained, atol=1e-10)


def test_directions_are_orthogonal_and_of_length_one(texts):
    span = TextSpan(8).fit(planted(texts, [3.0, 2.0, 1.0]), texts)
    assert_allclose(span.components_ @ span.components_.T, np.eye(8), atol=1e-10)


def test_more_texts_explain_more_until_all_is_explained(texts):
    """Rows of rank 5 around their mean, which texts span: 5 of them explain all, and there the search ends."""
    X = np.random.default_rng(4).normal(size=(N, 5)) @ texts[:5]
    X -= X.mean(axis=0)
    errors = []
    for n_texts in range(1, 6):
        span = TextSpan(n_texts).fit(X, texts)
        errors.append(np.linalg.norm(X - span.inverse_transform(span.transform(X))))
    assert (np.diff(errors) < 0).all()
    assert errors[-1] < 1e-10
    assert_allclose(span.explained_variance_ratio_.sum(), 1.0)
    assert len(TextSpan(20).fit(X, texts).indices_) == 5


def test_each_share_is_the_variance_that_its_coordinate_has(texts):
    X = planted(texts, [3.0, 2.0, 1.0], noise=0.3)
    span = TextSpan(6).fit(X, texts)
    assert_allclose(span.explained_variance_ratio_, span.transform(X).var(axis=0) / X.var(axis=0).sum())
    assert_allclose(span.transform(X).mean(axis=0), 0.0, atol=1e-10)


def test_few_texts_and_rows_that_do_not_vary(texts):
    assert len(TextSpan(10).fit(planted(texts, [1.0, 2.0]), texts[:2]).indices_) == 2
    still = TextSpan(3).fit(np.tile(texts[:1], (4, 1)), texts)
    assert len(still.indices_) == len(still.explained_variance_ratio_) == 0
    assert_allclose(still.inverse_transform(still.transform(texts[:2])), texts[[0, 0]])


def test_as_a_transformer(texts):
    X = planted(texts, [2.0, 1.0])
    span = TextSpan(2)
    Z = clone(span).fit_transform(X, texts)
    span.fit(X, texts)
    assert_allclose(Z, span.transform(X))
    assert span.get_feature_names_out().tolist() == ["textspan0", "textspan1"]
    with pytest.raises(NotFittedError):
        TextSpan().transform(X)
    with pytest.raises(NotFittedError):
        TextSpan().inverse_transform(Z)


def test_rows_and_texts_of_two_models(texts):
    with pytest.raises(ValueError, match="X has 5 features and text_features has 32; both must be of one model"):
        TextSpan().fit(np.eye(5), texts)
    with pytest.raises(ValueError, match="n_texts"):
        TextSpan(0).fit(planted(texts, [1.0]), texts)
