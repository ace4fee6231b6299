"""Choice of the pictures that a classifier is sure of."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax

from skclip.tuning._pseudo_labels import log_odds, most_confident, n_per_class


@pytest.fixture
def logits():
    return 4 * np.random.default_rng(0).normal(size=(300, 5))


def test_number_per_class_is_a_share_of_an_even_split_with_a_floor():
    assert n_per_class(1000, 10, 0.2, 16) == 20
    assert n_per_class(100, 10, 0.2, 16) == 16


def test_each_class_takes_its_most_probable_pictures(logits):
    chosen = most_confident(logits, 7)
    probabilities = softmax(logits, axis=1)
    guesses, confidences = probabilities.argmax(axis=1), probabilities.max(axis=1)
    for k in range(5):
        own = np.flatnonzero(guesses == k)
        expected = own[np.argsort(-confidences[own])[:7]]
        np.testing.assert_array_equal(chosen.rows[chosen.codes == k], np.sort(expected))
    np.testing.assert_allclose(chosen.confidences, confidences[chosen.rows])


def test_every_chosen_picture_is_surer_than_every_one_left_of_its_class(logits):
    chosen = most_confident(logits, 7)
    guesses, confidences = logits.argmax(axis=1), softmax(logits, axis=1).max(axis=1)
    left = np.setdiff1d(np.arange(300), chosen.rows)
    for k in range(5):
        assert confidences[chosen.rows][chosen.codes == k].min() >= confidences[left][guesses[left] == k].max()


def test_fewer_pictures_than_wanted_are_all_kept_under_their_prediction(logits):
    chosen = most_confident(logits, 300)
    np.testing.assert_array_equal(chosen.rows, np.arange(300))
    np.testing.assert_array_equal(chosen.codes, logits.argmax(axis=1))


def test_more_per_class_only_adds(logits):
    few, many = most_confident(logits, 5), most_confident(logits, 9)
    assert set(zip(few.rows, few.codes)) < set(zip(many.rows, many.codes))


def test_the_order_of_the_pictures_plays_no_part(logits):
    order = np.random.default_rng(1).permutation(300)
    chosen, shuffled = most_confident(logits, 7), most_confident(logits[order], 7)
    assert set(zip(chosen.rows, chosen.codes)) == set(zip(order[shuffled.rows], shuffled.codes))


def test_probabilities_that_round_to_one_are_still_told_apart():
    logits = np.zeros((4, 3))
    logits[:, 0] = [60.0, 80.0, 70.0, 50.0]
    assert (softmax(logits, axis=1)[:, 0] == 1.0).all()
    chosen = most_confident(logits, 2)
    np.testing.assert_array_equal(chosen.rows[chosen.codes == 0], [1, 2])
    np.testing.assert_allclose(log_odds(logits, np.zeros(4, dtype=int)), logits[:, 0] - np.log(2))


def test_a_class_that_is_nowhere_the_best_takes_where_it_is_second():
    # class 2 is nobody's best; of the pictures that are left over, 3 and 4 have it second
    logits = np.array([[9, 1, 0], [8, 1, 0], [1, 9, 0], [5, 0, 4], [5, 0, 3], [5, 1, 0]], dtype=float)
    chosen = most_confident(logits, 1)
    assert dict(zip(chosen.rows.tolist(), chosen.codes.tolist())) == {0: 0, 2: 1, 3: 2}


def test_third_best_where_there_is_no_second_and_none_where_there_is_neither():
    logits = np.array([[9, 5, 1, 0], [8, 5, 1, 0], [5, 9, 1, 0]], dtype=float)
    chosen = most_confident(logits, 1)
    assert dict(zip(chosen.rows.tolist(), chosen.codes.tolist())) == {0: 0, 2: 1, 1: 2}
    assert 3 not in chosen.codes
