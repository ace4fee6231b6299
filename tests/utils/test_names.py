"""Names go to labels by label: the tests use names that sort differently from their labels."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from skclip.utils._names import align_names, check_labels, check_name_list, rows_of_labels

# the first ten classes of ImageNet in the order of the data set, and their identifiers
IMAGENET = {
    "n01440764": "tench",
    "n01443537": "goldfish",
    "n01484850": "great white shark",
    "n01491361": "tiger shark",
    "n01494475": "hammerhead shark",
    "n01496331": "electric ray",
    "n01498041": "stingray",
    "n01514668": "rooster",
    "n01514859": "hen",
    "n01518878": "ostrich",
}
NAMES = list(IMAGENET.values())


def test_names_as_labels_are_sorted_and_most_of_them_move():
    classes, names = align_names(NAMES)
    assert sum(name != old for name, old in zip(names, NAMES)) == 8
    assert names == classes.tolist() == sorted(NAMES)


def test_dict_with_labels_that_sort_otherwise_than_their_names():
    shuffled = dict(reversed(IMAGENET.items()))
    classes, names = align_names(shuffled)
    assert classes.tolist() == sorted(IMAGENET)
    assert names == [IMAGENET[label] for label in classes.tolist()]
    assert names != sorted(names)


def test_dict_with_integer_labels():
    classes, names = align_names({30: "ant", 4: "zebra", 200: "cat"}, labels=[200, 4])
    assert classes.tolist() == [4, 30, 200]
    assert classes.dtype.kind == "i"
    assert names == ["zebra", "ant", "cat"]


@pytest.mark.parametrize("labels", [np.arange(10), [7, 3, 3], np.array([0.0, 9.0]), pd.Series([1, 2], dtype="int8")])
def test_list_belongs_to_labels_from_zero_on(labels):
    classes, names = align_names(NAMES, labels)
    assert classes.tolist() == list(range(10))
    assert names == NAMES


@pytest.mark.parametrize("labels", [NAMES, NAMES[4:6], np.array(NAMES[:2]), np.array(NAMES, dtype=object)])
def test_list_belongs_to_labels_that_are_the_names(labels):
    classes, names = align_names(NAMES, labels)
    assert names == classes.tolist() == sorted(NAMES)


@pytest.mark.parametrize(
    "labels",
    [
        list(IMAGENET),  # other strings
        list(range(1, 11)),  # counted from 1
        [-1, 0],
        [0.5, 1.0],
        [False, True],
        ["tench", "n01443537"],
    ],
)
def test_list_that_could_be_misread_shows_the_dict_to_write(labels):
    with pytest.raises(ValueError, match="position does not tell") as caught:
        align_names(NAMES, labels)
    assert "class_names={" in str(caught.value)
    assert f"{np.unique(labels)[0].item()!r}: <its name>" in str(caught.value)


def test_label_without_a_name_is_listed():
    with pytest.raises(ValueError, match=r"y holds 'n99999999'.*unknown to class_names"):
        align_names(IMAGENET, labels=["n01440764", "n99999999"])


def test_strings_do_not_match_numbers():
    with pytest.raises(ValueError, match="y holds '1'"):
        align_names({1: "ant", 2: "bee"}, labels=["1", "2"])


def test_numpy_strings_are_strings():
    classes, names = align_names({np.str_("b"): np.str_("bee"), "a": "ant"}, labels=np.array(["a"]))
    assert classes.tolist() == ["a", "b"]
    assert names == ["ant", "bee"]
    assert all(type(name) is str for name in names)


def test_two_labels_may_share_a_name_but_not_be_one():
    assert align_names({0: "crane", 1: "crane"})[1] == ["crane", "crane"]
    assert align_names(["crane", "crane"], labels=[0, 1])[1] == ["crane", "crane"]
    with pytest.raises(ValueError, match=r"repeats 'crane'.*dict"):
        align_names(["crane", "crane"])


@pytest.mark.parametrize("names", ["cat", {"cat", "dog"}, 3, pd.Series(["cat"])])
def test_what_is_no_list_of_names(names):
    with pytest.raises(TypeError, match="dict"):
        check_name_list(names)


@pytest.mark.parametrize("names", [[], {}])
def test_no_names(names):
    with pytest.raises(ValueError, match="empty"):
        align_names(names)


def test_names_that_are_no_text():
    with pytest.raises(TypeError, match=r"class_names\[1\] is 3"):
        align_names(["cat", 3])
    with pytest.raises(TypeError, match=r"class_names\['a'\] is None"):
        align_names({"a": None})
    with pytest.raises(ValueError, match=r"class_names\[0\] is an empty name"):
        align_names([" "])


@pytest.mark.parametrize(
    "labels",
    [[1, "a"], np.array([1, "a"], dtype=object), pd.Series([1, "a"]), (1, "a")],
)
def test_mixed_labels_are_refused_with_their_position(labels):
    with pytest.raises(TypeError, match=r"mixed type.*y\[0\] is 1 \(number\) but y\[1\] is 'a' \(string\)"):
        check_labels(labels)


def test_mixed_keys_are_refused():
    with pytest.raises(TypeError, match=r"keys of class_names.*mixed type"):
        align_names({0: "ant", "b": "bee"})


@pytest.mark.parametrize("missing", [None, pd.NA, object()])
def test_other_objects_are_no_labels(missing):
    with pytest.raises(TypeError, match=r"y\[1\] is"):
        check_labels(["a", missing])


def test_missing_number_is_refused():
    with pytest.raises(ValueError, match="NaN at position 1"):
        check_labels([0.0, float("nan")])


def test_labels_are_one_dimensional():
    assert check_labels([[1], [2]]).tolist() == [1, 2]
    with pytest.raises(ValueError, match="one-dimensional"):
        check_labels([[1, 2], [3, 4]])


def test_rows_of_labels():
    assert rows_of_labels(["c", "a", "b"], ["b", "c"]).tolist() == [2, 0]
    assert rows_of_labels([3, 1], np.array([], dtype=int)).tolist() == []
    with pytest.raises(ValueError, match=r"y holds 'z' and|y holds 'z', unknown to classes"):
        rows_of_labels(["a"], ["z"])


def test_long_lists_are_cut_in_errors():
    with pytest.raises(ValueError, match="and 995 more"):
        rows_of_labels([0], np.arange(1, 1001))
