"""Accuracy of parts of a test set, against literal loops."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from skclip.metrics import factor_accuracy, factor_gap, group_accuracy, shape_bias, worst_group_accuracy
from skclip.utils import SkclipWarning


@pytest.fixture
def rows():
    rng = np.random.default_rng(0)
    y = rng.choice(["cat", "dog", "hen"], 200)
    pred = np.where(rng.random(200) < 0.6, y, rng.choice(["cat", "dog", "hen"], 200))
    return y, pred, rng.choice(["a", "b", "c", "d"], 200), rng.random((200, 3)) < 0.4


def test_group_accuracy_is_the_literal_loop(rows):
    y, pred, groups, _ = rows
    found = group_accuracy(y, pred, groups)
    assert list(found) == ["a", "b", "c", "d"]
    for group in found:
        assert found[group] == pytest.approx(np.mean([t == p for t, p, g in zip(y, pred, groups) if g == group]))
    assert worst_group_accuracy(y, pred, groups) == min(found.values())
    assert all(type(key) is str and type(value) is float for key, value in found.items())


def test_groups_of_labels_give_balanced_accuracy(rows):
    y, pred, *_ = rows
    assert np.mean(list(group_accuracy(y, pred, y).values())) == pytest.approx(balanced_accuracy_score(y, pred))


def test_factors_that_partition_the_rows_average_to_overall_accuracy(rows):
    y, pred, groups, _ = rows
    tags = groups[:, None] == np.array(["a", "b", "c", "d"])
    accuracies = factor_accuracy(y, pred, tags)
    np.testing.assert_allclose(accuracies, list(group_accuracy(y, pred, groups).values()))
    assert np.average(accuracies, weights=tags.sum(axis=0)) == pytest.approx(accuracy_score(y, pred))


def test_factor_gap_is_overall_less_tagged(rows):
    y, pred, _, tags = rows
    expected = [np.mean(y == pred) - np.mean((y == pred)[tags[:, f]]) for f in range(3)]
    np.testing.assert_allclose(factor_gap(y, pred, tags), expected)
    np.testing.assert_allclose(factor_gap(y, pred, tags[:, 1]), expected[1:2])
    np.testing.assert_allclose(factor_gap(y, pred, np.ones(200, bool)), [0.0], atol=1e-15)


def test_a_factor_without_pictures_is_nan_with_a_warning(rows):
    y, pred, _, tags = rows
    tags = tags.copy()
    tags[:, 1] = False
    with pytest.warns(SkclipWarning, match="No picture has factor 1"):
        found = factor_accuracy(y, pred, tags)
    assert np.isnan(found).tolist() == [False, True, False]


def test_shape_bias():
    shape = ["cat", "cat", "cat", "dog", "dog", "hen"]
    texture = ["dog", "dog", "hen", "cat", "dog", "cat"]
    # texture, shape, neither, shape, agreeing cues, shape
    pred = ["dog", "cat", "dog", "dog", "dog", "hen"]
    assert shape_bias(shape, texture, pred) == pytest.approx(3 / 4)
    assert shape_bias(texture, shape, pred) == pytest.approx(1 / 4)
    assert shape_bias(shape, texture, shape) == 1.0
    assert shape_bias(shape, texture, texture) == 0.0
    assert shape_bias(shape, texture, pred, sample_weight=[3, 1, 1, 1, 1, 1]) == pytest.approx(3 / 6)
    with pytest.warns(SkclipWarning, match="no shape bias"):
        assert np.isnan(shape_bias(shape, texture, ["eel"] * 6))
    with pytest.warns(SkclipWarning, match="no shape bias"):
        assert np.isnan(shape_bias(shape, shape, shape))


def test_weights_are_repeats(rows):
    y, pred, groups, tags = rows
    weights = np.random.default_rng(1).integers(0, 3, len(y))
    many = np.repeat(np.arange(len(y)), weights)
    assert group_accuracy(y, pred, groups, sample_weight=weights) == pytest.approx(
        group_accuracy(y[many], pred[many], groups[many])
    )
    for measure in (factor_accuracy, factor_gap):
        np.testing.assert_allclose(
            measure(y, pred, tags, sample_weight=weights), measure(y[many], pred[many], tags[many])
        )


def test_a_group_of_weight_zero_is_left_out(rows):
    y, pred, groups, _ = rows
    assert "b" not in group_accuracy(y, pred, groups, sample_weight=(groups != "b").astype(float))


def test_bad_input(rows):
    y, pred, groups, tags = rows
    with pytest.raises(ValueError, match="Different lengths: y_true 200, y_pred 199"):
        group_accuracy(y, pred[:-1], groups)
    with pytest.raises(ValueError, match="Different lengths: y_true 200, groups 3"):
        group_accuracy(y, pred, groups[:3])
    with pytest.raises(ValueError, match="y_true holds texts, y_pred holds numbers"):
        group_accuracy(y, np.arange(200), groups)
    with pytest.raises(ValueError, match="groups contains NaN at position 0"):
        group_accuracy(y, pred, np.full(200, np.nan))
    with pytest.raises(ValueError, match="factors must hold True or False"):
        factor_accuracy(y, pred, 2 * tags.astype(int))
    with pytest.raises(ValueError, match="factors 5"):
        factor_accuracy(y, pred, tags[:5])
    with pytest.raises(ValueError, match="y_true is empty"):
        group_accuracy([], [], [])
    with pytest.raises(ValueError, match="Different lengths: y_shape 200, y_texture 2"):
        shape_bias(y, y[:2], pred)
