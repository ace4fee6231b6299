"""Averages of learned tensors."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose

torch = pytest.importorskip("torch")

from skclip.tuning._averaging import EMA, Gaussian, WiSE  # noqa: E402


@pytest.fixture
def course():
    return np.random.default_rng(0).normal(size=(21, 4))


def averaged(averaging, course):
    """What comes of a course of values, the first of which is where it starts."""
    average = {"a": torch.tensor(course[0])}
    for count, value in enumerate(course[1:], 1):
        averaging.update(average, {"a": torch.tensor(value)}, count)
    return averaging.result(average, {"a": torch.tensor(course[-1])})["a"].numpy()


def test_ema_is_the_recurrence(course):
    expected = course[0]
    for value in course[1:]:
        expected = 0.9 * expected + 0.1 * value
    assert_allclose(averaged(EMA(0.9), course), expected)
    assert_allclose(averaged(EMA(0.0), course), course[-1])


@pytest.mark.parametrize(("mu", "sigma"), [(15, 1), (30, 30), (6, 10), (45, 5)])
def test_gaussian_is_the_weighted_mean_of_the_epochs(course, mu, sigma):
    epochs = np.arange(1, 21)
    weights = np.exp(-((epochs - mu) ** 2) / (2 * sigma**2))
    assert_allclose(averaged(Gaussian(mu, sigma), course), weights / weights.sum() @ course[1:], rtol=1e-6)


def test_gaussian_picks_one_epoch_or_takes_the_mean_at_the_limits(course):
    assert_allclose(averaged(Gaussian(20, 1e-3), course), course[20])
    assert_allclose(averaged(Gaussian(7, 1e-200), course), course[7])
    assert_allclose(averaged(Gaussian(1e6, 1e-9), course), course[20])
    assert_allclose(averaged(Gaussian(3, float("inf")), course), course[1:].mean(axis=0))


def test_gaussian_of_a_training_that_ends_early_is_a_mean_as_well(course):
    assert_allclose(averaged(Gaussian(1000, 1.0), course[:6]), course[5])
    weights = np.exp(-((np.arange(1, 6) - 8.0) ** 2) / 18)
    assert_allclose(averaged(Gaussian(8, 3.0), course[:6]), weights / weights.sum() @ course[1:6])


def test_wise_lies_between_start_and_end(course):
    assert_allclose(averaged(WiSE(0.25), course), 0.75 * course[0] + 0.25 * course[-1])
    assert_allclose(averaged(WiSE(1.0), course), course[-1])
    assert_allclose(averaged(WiSE(0.0), course), course[0])
