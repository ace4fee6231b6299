import numpy as np
import pytest

from skclip.datasets import few_shot_split

Y = np.repeat(["b", "a", "c"], [7, 5, 9])


@pytest.mark.parametrize("shots", [1, 3, 5])
def test_same_number_of_every_class_and_nothing_lost(shots):
    train, test = few_shot_split(Y, shots, random_state=0)
    assert np.unique(Y[train], return_counts=True)[1].tolist() == [shots] * 3
    np.testing.assert_array_equal(np.sort(np.concatenate([train, test])), np.arange(len(Y)))


def test_smaller_draws_are_contained_in_larger_ones():
    small, large = (few_shot_split(Y, shots, random_state=4)[0] for shots in (2, 5))
    assert set(small) <= set(large)


def test_seeds():
    draws = [few_shot_split(Y, 2, random_state=seed)[0].tolist() for seed in (0, 0, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2] or draws[0] != draws[3]


def test_too_few_samples_names_the_class():
    with pytest.raises(ValueError, match=r"Class 'a' has 5 samples, fewer than the 6"):
        few_shot_split(Y, 6)


@pytest.mark.parametrize("shots", [0, 1.5, "two"])
def test_bad_shots(shots):
    with pytest.raises(ValueError, match="shots"):
        few_shot_split(Y, shots)


def test_empty_y():
    with pytest.raises(ValueError, match="empty"):
        few_shot_split([], 1)
