"""What every adapter does with a training set, and what a fit that fails leaves behind."""

from __future__ import annotations

import inspect

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from sklearn.utils.validation import check_is_fitted

from skclip import adapters
from skclip.ensemble import TrustOrchestrator
from skclip.retrieval import CLIPRetriever

RNG = np.random.default_rng(0)
TEXT = RNG.normal(size=(3, 8))
Y = np.repeat([0, 1, 2], 4)
X = TEXT[Y] + RNG.normal(scale=0.3, size=(12, 8))


def with_text(text):
    """Every adapter that takes class text, and an ensemble of one."""
    quick = {"max_iter": 2, "random_state": 0, "text_weight": 0.5}
    for name in adapters.__all__:
        cls = getattr(adapters, name)
        known = inspect.signature(cls).parameters
        if "zero_shot" in known:
            yield cls(zero_shot=text, **{key: value for key, value in quick.items() if key in known})
    yield TrustOrchestrator([("cache", adapters.TipAdapterClassifier(text))])


NAMES = [type(estimator).__name__ for estimator in with_text(None)]


@pytest.mark.parametrize("position", range(len(NAMES)), ids=NAMES)
def test_a_first_fit_that_fails_leaves_an_estimator_that_is_not_fitted(position):
    estimator = list(with_text(TEXT[:, :-1]))[position]
    with pytest.raises(ValueError, match="width"):
        estimator.fit(X, Y)
    with pytest.raises(NotFittedError):
        check_is_fitted(estimator)
    with pytest.raises(NotFittedError):
        estimator.predict(X)


@pytest.mark.parametrize("position", range(len(NAMES)), ids=NAMES)
def test_a_later_fit_that_fails_leaves_no_mixture_of_two_fits(position):
    estimator = list(with_text(TEXT))[position].fit(X, Y)
    np.testing.assert_array_equal(estimator.predict(TEXT), [0, 1, 2])
    with pytest.raises(ValueError, match=r"labels can only be|width"):
        estimator.fit(X[:, :-1], Y + 1)
    with pytest.raises(NotFittedError):
        estimator.predict(TEXT)


def test_a_collection_of_zeros_leaves_a_retriever_that_is_not_fitted():
    retriever = CLIPRetriever(n_neighbors=1).fit(X)
    with pytest.raises(ValueError, match="zeros"):
        retriever.fit(np.zeros((4, 5)))
    with pytest.raises(NotFittedError):
        retriever.kneighbors(X)


def test_a_fit_after_one_that_failed_is_as_good_as_the_first():
    estimator = adapters.GDAClassifier(TEXT).fit(X, Y)
    expected = estimator.logits(X)
    with pytest.raises(ValueError, match="labels can only be"):
        estimator.fit(X, Y + 1)
    np.testing.assert_array_equal(estimator.fit(X, Y).logits(X), expected)


@pytest.mark.parametrize("position", range(len(NAMES)), ids=NAMES)
def test_prototypes_need_a_direction(position):
    estimator = list(with_text(np.where(np.arange(3)[:, None] == 1, 0.0, TEXT)))[position]
    with pytest.raises(ValueError, match=r"zero_shot\[1\] is all zeros"):
        estimator.fit(X, Y)
