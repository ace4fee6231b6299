from __future__ import annotations

import numpy as np
import pytest

from skclip.adapters import CLAPClassifier
from skclip.adapters._gradient import Pictures
from skclip.adapters._prototypes import class_means, means_of_others, prepare
from skclip.utils._arrays import unit_rows


def pictures(n=12, n_views=2, weights=None, seed=0):
    rng = np.random.default_rng(seed)
    views = unit_rows(rng.normal(size=(n * n_views, 5)) + 1).reshape(n, n_views, 5)
    return Pictures(views, np.arange(n) % 3, weights)


def test_class_means():
    weights = np.arange(1.0, 13.0)
    given = pictures(weights=weights)
    expected = [np.einsum("n,nvd->d", weights[given.codes == k], given.views[given.codes == k]) for k in range(3)]
    np.testing.assert_allclose(class_means(given, 3), unit_rows(np.array(expected)))


def test_means_of_others():
    given = pictures(weights=np.arange(1.0, 13.0))
    distinct, others = means_of_others(given, 3)
    assert len(distinct.codes) == 12
    for i, (views, code, weight) in enumerate(zip(*distinct)):
        rest = np.flatnonzero((given.codes == code) & (given.views != views).any(axis=(1, 2)))
        assert len(rest) == 3
        total = np.einsum("n,nvd->d", given.weights[rest], given.views[rest])
        np.testing.assert_allclose(others[i], total / np.linalg.norm(total))
        assert weight == given.weights[(given.views == views).all(axis=(1, 2))].sum()


def test_repeats_are_left_out_together():
    given = pictures()
    expected = means_of_others(given._replace(weights=np.full(12, 2.0)), 3)
    distinct, others = means_of_others(given.take(np.repeat(np.arange(12), 2)), 3)
    np.testing.assert_array_equal(distinct.views, expected[0].views)
    np.testing.assert_array_equal(distinct.weights, expected[0].weights)
    np.testing.assert_allclose(others, expected[1])


def test_a_picture_alone_meets_itself():
    given = pictures(n=3, n_views=1)
    distinct, others = means_of_others(given, 3)
    np.testing.assert_allclose(others, distinct.views[:, 0])


@pytest.mark.parametrize("logit_scale", [None, 7.0])
def test_prepare_without_text(logit_scale):
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 5)), np.arange(20) % 2
    estimator = CLAPClassifier(logit_scale=logit_scale, early_stopping=True, validation_fraction=0.2, random_state=0)
    lesson = prepare(estimator, X, y, None)
    assert lesson.logit_scale == estimator.logit_scale_ == (logit_scale or 100.0)
    assert (len(lesson.pictures.codes), len(lesson.validation.codes)) == (16, 4)
    np.testing.assert_array_equal(lesson.prototypes, class_means(lesson.pictures, 2))
    assert estimator.prototypes_ is None


def test_prepare_keeps_the_floating_type_of_the_rows():
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(20, 5)).astype(np.float32), np.arange(20) % 2
    lesson = prepare(CLAPClassifier(np.eye(5)[:2]), X, y, None)
    assert lesson.prototypes.dtype == np.float32
    assert lesson.validation is None
