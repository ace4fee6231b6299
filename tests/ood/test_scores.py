from __future__ import annotations

import numpy as np
import pytest
import sklearn
from scipy.special import logsumexp, rel_entr, softmax

from skclip.ood._scores import (
    free_energy,
    generalized_entropy,
    gradient_norm,
    match_posteriors,
    max_softmax,
    mean_posteriors,
    negative_entropy,
)

RNG = np.random.default_rng(0)
LOGITS = 3.0 * RNG.normal(size=(40, 7))
P = softmax(LOGITS, axis=1)
CERTAIN, UNDECIDED = np.eye(7)[:1], np.full((1, 7), 1.0 / 7.0)


def test_formulas_written_out():
    for logits, p in zip(LOGITS, P):
        one, probabilities = logits[None], p[None]
        exponentials = [np.exp(value / 2.0) for value in logits]
        assert max_softmax(one, 2.0)[0] == pytest.approx(max(exponentials) / sum(exponentials))
        assert free_energy(one, 2.0)[0] == pytest.approx(2.0 * np.log(sum(exponentials)))
        assert negative_entropy(probabilities)[0] == pytest.approx(sum(value * np.log(value) for value in p))
        largest = sorted(p)[-3:]
        expected = -sum(value**0.3 * (1.0 - value) ** 0.3 for value in largest)
        assert generalized_entropy(probabilities, 0.3, 3)[0] == pytest.approx(expected)


@pytest.mark.parametrize("temperature", [0.01, 1.0, 100.0])
def test_energy_of_logits_far_from_zero(temperature):
    logits = np.vstack([LOGITS, 1e4 + LOGITS, -1e4 + LOGITS, 1e4 * LOGITS])
    logits[0, :3] = -np.inf
    expected = temperature * logsumexp(logits / temperature, axis=1)
    np.testing.assert_allclose(free_energy(logits, temperature), expected, rtol=1e-12)


def test_certainty_and_equal_shares():
    assert negative_entropy(CERTAIN) == 0.0
    assert negative_entropy(UNDECIDED) == pytest.approx(-np.log(7))
    assert generalized_entropy(CERTAIN, 0.1) == 0.0
    assert generalized_entropy(UNDECIDED, 0.5) == pytest.approx(-7 * np.sqrt(1 / 7 * 6 / 7))
    rows = RNG.normal(size=(1, 5))
    with np.errstate(divide="ignore"):
        certain = gradient_norm(rows, np.log(CERTAIN))
    assert certain == pytest.approx(np.abs(rows).sum() * 2 * (7 - 1))
    assert gradient_norm(rows, np.log(UNDECIDED)) == pytest.approx(0.0, abs=1e-12)


def test_generalized_entropy_with_exponent_one_is_the_gini_index():
    np.testing.assert_allclose(generalized_entropy(P, 1.0), -(1.0 - np.square(P).sum(axis=1)))


@pytest.mark.parametrize("n_largest", [7, 100, None])
def test_more_classes_than_there_are_means_all(n_largest):
    np.testing.assert_allclose(generalized_entropy(P, 0.1, n_largest), -((P * (1 - P)) ** 0.1).sum(axis=1))


def test_a_probability_that_rounds_to_one_still_has_a_rest():
    logits = np.array([[0.0, -60.0, -70.0]])
    small = np.exp([-60.0, -70.0])
    expected = -(small.sum() ** 0.1 + (small**0.1).sum())
    assert generalized_entropy(softmax(logits, axis=1), 0.1) == pytest.approx(expected, rel=1e-12)
    assert generalized_entropy(softmax(logits, axis=1), 0.1, 1) == pytest.approx(-(small.sum() ** 0.1), rel=1e-12)


def test_the_input_is_left_as_it_is():
    before = P.copy()
    generalized_entropy(P, 0.1, 3)
    np.testing.assert_array_equal(P, before)


def test_templates_are_means_by_predicted_class():
    templates = mean_posteriors(LOGITS)
    predicted = P.argmax(axis=1)
    for j in range(7):
        np.testing.assert_allclose(templates[j], P[predicted == j].mean(axis=0))
    with sklearn.config_context(working_memory=1e-4):
        np.testing.assert_allclose(mean_posteriors(LOGITS), templates)
    # nobody is taken for class 2
    np.testing.assert_array_equal(mean_posteriors(LOGITS[predicted != 2])[2], np.eye(7)[2])


def test_matching_is_the_smallest_divergence():
    templates = mean_posteriors(LOGITS[:20])
    clipped = np.maximum(templates, 1e-12)
    expected = [-min(rel_entr(p, template).sum() for template in clipped) for p in P]
    np.testing.assert_allclose(match_posteriors(P, templates), expected, atol=1e-12)


def test_a_template_matches_itself():
    templates = mean_posteriors(LOGITS)
    np.testing.assert_allclose(match_posteriors(templates, templates), 0.0, atol=1e-12)
    assert match_posteriors(CERTAIN, np.eye(7)) == 0.0
    # a template without a class that the picture may be of
    assert match_posteriors(UNDECIDED, CERTAIN) == pytest.approx(-np.log(1 / 7) + 6 / 7 * np.log(1e-12))
