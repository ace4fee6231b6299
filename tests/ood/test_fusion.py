"""The arithmetic of the ensemble."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import ndtr, ndtri
from scipy.stats import combine_pvalues

from skclip.ood._fusion import (
    evidence,
    held_out_weights,
    log_e_values,
    mean_log_p,
    normal_score_knots,
    normal_scores,
    smallest,
    weighted_mean,
)


@pytest.mark.parametrize("draw", ["normal", "exponential", "uniform"])
def test_calibration_scores_become_standard_normal(draw):
    scores = getattr(np.random.default_rng(0), draw)(size=2000)
    normal = normal_scores(normal_score_knots(scores), scores)
    assert abs(normal.mean()) < 0.06
    assert normal.std() == pytest.approx(1.0, abs=0.15)
    inner = np.abs(normal) < 1.5
    np.testing.assert_allclose(ndtr(normal[inner]), (np.argsort(np.argsort(scores))[inner] + 0.5) / 2000, atol=1e-3)


def test_the_scale_of_normal_scores_is_that_of_the_normal_distribution():
    scores = 7.0 + 3.0 * ndtri((np.arange(4000) + 0.5) / 4000)
    asked = np.linspace(-30.0, 40.0, 200)
    np.testing.assert_allclose(normal_scores(normal_score_knots(scores), asked), (asked - 7.0) / 3.0, atol=0.02)


@pytest.mark.parametrize("ties", [False, True])
def test_order_is_kept_everywhere(ties):
    scores = np.random.default_rng(1).gamma(2.0, size=300)
    scores = np.round(scores, 1) if ties else scores
    asked = np.linspace(-20.0, 40.0, 5001)
    assert np.diff(normal_scores(normal_score_knots(scores), asked)).min() > 0.0


def test_units_of_a_score_do_not_matter():
    scores, asked = np.random.default_rng(2).normal(size=(2, 200))
    plain = normal_scores(normal_score_knots(scores), asked)
    np.testing.assert_allclose(normal_scores(normal_score_knots(3.0 * scores - 5.0), 3.0 * asked - 5.0), plain)


def test_a_constant_says_nothing():
    knots = normal_score_knots(np.full(30, 2.5))
    np.testing.assert_array_equal(normal_scores(knots, np.array([-1e9, 0.0, 2.5, 1e9])), 0.0)


def test_scores_most_of_which_are_equal_still_have_a_scale():
    scores = np.concatenate([np.zeros(97), [-1.0, -2.0, -3.0]])
    normal = normal_scores(normal_score_knots(scores), np.array([-3.0, -1.0, 0.0, 1.0]))
    assert np.isfinite(normal).all()
    assert np.diff(normal).min() > 0.0


@pytest.mark.parametrize("p", [1e-12, 1e-4, 0.05, 0.3, 0.9, 0.97, 0.999999])
def test_e_value_is_the_mean_of_the_alternatives(p):
    expected = quad(lambda c: c * p ** (c - 1.0), 0.0, 1.0, epsabs=0.0, epsrel=1e-10)[0]
    assert np.exp(log_e_values(np.array([ndtri(p)])))[0] == pytest.approx(expected, rel=1e-6)


def test_e_values_bet_fairly_and_decrease():
    """Of a uniform p-value the expectation is 1: a bet on it that is not won on average."""
    total = quad(lambda z: np.exp(log_e_values(np.array([z])))[0] * np.exp(-0.5 * z * z), -37.0, 37.0, limit=500)[0]
    assert total / np.sqrt(2.0 * np.pi) == pytest.approx(1.0, abs=0.03)  # the rest lies below exp(-37 ** 2 / 2)
    normal = np.linspace(-40.0, 8.0, 20001)
    values = log_e_values(normal)
    assert np.diff(values[normal < 5.0]).max() < 0.0
    assert np.diff(values).max() <= 0.0
    assert values[-1] == pytest.approx(np.log(0.5))


def test_regression_finds_the_odds_of_a_shift():
    """Unit normals that differ by s in one column: the log-odds are ``s z + s^2 / 2``."""
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(size=(2, 20000, 2))
    unknown[:, 0] -= 1.5
    weights, intercept = held_out_weights(known, unknown)
    np.testing.assert_allclose(weights, [1.5, 0.0], atol=0.05)
    assert intercept == pytest.approx(1.5**2 / 2, abs=0.05)


def test_weights_are_never_negative():
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(size=(2, 500, 2))
    unknown += [[-1.0, 1.0]]  # the second finds the unknown more familiar
    weights, _ = held_out_weights(known, unknown)
    assert weights[0] > 0.5
    assert weights[1] == 0.0


def test_both_kinds_count_the_same():
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(size=(400, 1)), rng.normal(size=(400, 1)) - 1.0
    weights, intercept = held_out_weights(known, unknown)
    again, shifted = held_out_weights(known, np.repeat(unknown, 10, axis=0))
    np.testing.assert_allclose(again, weights, atol=1e-4)
    assert shifted == pytest.approx(intercept, abs=1e-4)


def test_equal_members_share_their_weight():
    rng = np.random.default_rng(0)
    known, unknown = rng.normal(size=(400, 1)), rng.normal(size=(400, 1)) - 1.0
    weights, _ = held_out_weights(np.repeat(known, 2, axis=1), np.repeat(unknown, 2, axis=1))
    alone, _ = held_out_weights(known, unknown)
    assert weights[0] == pytest.approx(weights[1], abs=1e-4)
    assert weights.sum() == pytest.approx(alone[0], abs=5e-3)


def test_evidence_is_the_mean_of_two_likelihood_ratios():
    normal = np.random.default_rng(0).normal(size=(50, 3))
    shares, weights = np.array([0.5, 0.3, 0.2]), np.array([0.7, 0.0, 0.4])
    e_values = np.exp(log_e_values(normal)) @ shares
    np.testing.assert_allclose(evidence(normal, shares, None, 0.0), -np.log(e_values))
    ratios = np.exp(-(normal @ weights + 0.1))
    np.testing.assert_allclose(evidence(normal, shares, weights, 0.1), -np.log(0.5 * ratios + 0.5 * e_values))


def test_evidence_hears_a_single_member_and_never_falls_as_scores_rise():
    shares, weights = np.full(4, 0.25), np.array([1.0, 0.0, 0.0, 0.0])
    one_cries = np.array([[0.0, 0.0, 0.0, -8.0]])
    two_wonder = np.array([[-1.0, -1.0, 0.0, 0.0]])
    assert evidence(one_cries, shares, weights, 0.0) < evidence(two_wonder, shares, weights, 0.0)
    rng = np.random.default_rng(0)
    low = 3.0 * rng.normal(size=(500, 4))
    high = low + np.abs(rng.normal(size=low.shape))
    assert (evidence(high, shares, weights, 0.0) - evidence(low, shares, weights, 0.0)).min() >= 0.0


def test_evidence_without_a_share():
    normal = np.random.default_rng(0).normal(size=(20, 2))
    with_one = evidence(normal, np.array([1.0, 0.0]), None, 0.0)
    np.testing.assert_allclose(with_one, -log_e_values(normal[:, 0]))


def test_plain_rules_are_those_of_scipy():
    normal = np.random.default_rng(0).normal(size=(20, 3))
    weights = np.array([0.5, 0.25, 0.25])
    p = ndtr(normal)
    stouffer = [-combine_pvalues(row, "stouffer", weights=weights)[0] for row in p]
    np.testing.assert_allclose(weighted_mean(normal, weights) / np.linalg.norm(weights), stouffer)
    fisher = [-combine_pvalues(row, "fisher")[0] for row in p]
    np.testing.assert_allclose(2.0 * 3 * mean_log_p(normal, np.full(3, 1 / 3)), fisher)
    tippett = [combine_pvalues(row, "tippett")[0] for row in p]
    np.testing.assert_allclose(ndtr(smallest(normal, weights)), tippett)
    np.testing.assert_array_equal(smallest(normal, np.array([1.0, 0.0, 0.0])), normal[:, 0])
