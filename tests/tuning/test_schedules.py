"""Learning rates by name."""

from __future__ import annotations

import math

import pytest
from numpy.testing import assert_allclose

from skclip.tuning._schedules import SCHEDULES, Position, learning_rate


def rates(schedule, base, n_epochs=5, n_batches=4, warmup=1, n_steps=None):
    n_steps = n_epochs * n_batches if n_steps is None else n_steps
    at = [Position(step // n_batches, step, n_epochs, n_steps) for step in range(n_steps)]
    return [learning_rate(schedule, base, one, warmup) for one in at]


def test_dassl_cosine_is_counted_in_epochs():
    found = rates("dassl_cosine", 0.002)
    assert_allclose(found[::4], [1e-5, *(0.002 * f for f in (1, 0.9045085, 0.6545085, 0.3454915))], rtol=1e-6)
    assert all(len(set(found[i : i + 4])) == 1 for i in range(0, 20, 4))


def test_dassl_cosine_warms_up_as_long_as_told_and_never_above_the_rate():
    assert rates("dassl_cosine", 0.1, warmup=3)[:13] == [1e-5] * 12 + [0.1]
    assert rates("dassl_cosine", 0.1, warmup=0)[0] == 0.1
    assert max(rates("dassl_cosine", 1e-6)) == 1e-6


def test_cosine_is_counted_in_steps():
    found = rates("cosine", 2e-4)
    assert found[0] == 2e-4
    assert_allclose(found[10], (2e-4 + 1e-6) / 2)
    steps = [1e-6 + (2e-4 - 1e-6) * (1 + math.cos(math.pi * step / 20)) / 2 for step in range(20)]
    assert_allclose(found, steps)


def test_the_linear_warm_up_is_counted_in_steps():
    found = rates("warmup_linear_cosine", 0.1, warmup=4)
    assert_allclose(found[:5], [0.025, 0.05, 0.075, 0.1, 0.1])
    assert_allclose(found[12], 0.05)
    assert 0 < found[-1] < 0.002
    assert_allclose(rates("warmup_linear_cosine", 0.1, n_epochs=1, warmup=4), [0.025, 0.05, 0.075, 0.1])


def test_cpe_restarts_rises_by_the_epoch_and_begins_again():
    found = rates("cpe_restarts", 0.1, n_epochs=402, n_batches=1)
    assert_allclose(found[:6], [0.001, 0.00298, 0.00496, 0.00694, 0.00892, 0.0109])
    assert found[50] == max(found) == 0.1
    assert_allclose(found[125], (0.1 + 0.001) / 2)
    assert_allclose(found[200:], found[:200] + found[:2])


def test_svd_code_swings_with_a_period_of_twice_the_epochs_in_steps():
    found = rates("svd_code", 5e-4)
    assert_allclose(found[::5], [5e-4, 1e-6, 5e-4, 1e-6])
    assert_allclose(found[10:], found[:10])


def test_constant():
    assert set(rates("constant", 0.3)) == {0.3}


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("shape", [(1, 1, None), (1, 7, None), (3, 7, 15), (300, 2, None)])
def test_every_rate_lies_between_nothing_and_the_base(schedule, shape):
    n_epochs, n_batches, n_steps = shape
    found = rates(schedule, 0.01, n_epochs, n_batches, 1, n_steps)
    assert all(0 < rate <= 0.01 for rate in found)
