import numpy as np
import pytest

from skclip.datasets import load_digit_pictures


def test_subsets_are_disjoint_and_complete():
    parts = {name: load_digit_pictures(subset=name, image_size=16) for name in ("train", "test", "all")}
    assert len(parts["train"].images) + len(parts["test"].images) == len(parts["all"].images) == 1797
    seen = {image.tobytes() for image in parts["train"].images}
    assert not any(image.tobytes() in seen for image in parts["test"].images)


def test_pictures_are_dark_ink_on_light_paper():
    digits = load_digit_pictures(image_size=40)
    assert digits.images.shape == (1797, 40, 40, 3)
    assert digits.images.dtype == np.uint8
    assert digits.images[:, 0, 0].mean() > 220
    assert digits.images.min() < 40
    assert digits.class_names[7] == "digit seven"
    assert sorted(digits.class_names) == sorted(set(digits.target.tolist()))


def test_unknown_subset():
    with pytest.raises(ValueError, match="subset"):
        load_digit_pictures(subset="validation")
