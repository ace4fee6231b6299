import numpy as np
import pytest

from skclip.utils._arrays import unit_rows
from skclip.utils._class_text import names_misplaced


def _world(noise, turned, seed=0, n_classes=60, d=32):
    """Pictures that follow the structure of the names, turned away from the names or not."""
    rng = np.random.default_rng(seed)
    structure = unit_rows(rng.normal(size=(n_classes, 6)) @ rng.normal(size=(6, d)))
    turn = np.linalg.qr(rng.normal(size=(d, d)))[0] if turned else np.eye(d)
    pictures = unit_rows(structure @ turn + noise * rng.normal(size=(n_classes, d)))
    return pictures, structure


@pytest.mark.parametrize("seed", range(5))
def test_turned_pictures_are_told_from_noisy_and_from_fitting_ones(seed):
    assert names_misplaced(*_world(0.02, turned=True, seed=seed))
    assert not names_misplaced(*_world(0.02, turned=False, seed=seed))
    assert not names_misplaced(*_world(1.0, turned=False, seed=seed))
    assert not names_misplaced(*_world(1.0, turned=True, seed=seed))


def test_leaving_a_class_out_is_exact():
    from skclip.utils import _class_text

    pictures, names = _world(0.2, turned=True, n_classes=12, d=8)
    centred = pictures - pictures.mean(axis=0)
    unit = unit_rows(names - names.mean(axis=0))
    right = np.zeros(12, dtype=bool)
    everyone = np.linalg.solve(unit.T @ unit + _class_text._RIDGE * np.eye(8), unit.T @ centred)
    for k in range(12):
        others = np.arange(12) != k
        gram = unit[others].T @ unit[others] + _class_text._RIDGE * np.eye(8)
        prediction = unit[k] @ np.linalg.solve(gram, unit[others].T @ centred[others])
        own = unit_rows(prediction[None])[0] @ unit_rows(centred[k : k + 1])[0]
        right[k] = own > (unit_rows(unit[others] @ everyone) @ unit_rows(centred[k : k + 1])[0]).max()
    by_name = (pictures @ names.T).argmax(1) == np.arange(12)
    gained, lost = (right & ~by_name).sum(), (by_name & ~right).sum()
    assert names_misplaced(pictures, names) == (gained - lost > 2 * np.sqrt(gained + lost))


def test_one_class_or_equal_rows_are_no_evidence():
    assert not names_misplaced(np.ones((3, 4)) / 2, np.eye(4)[:3])
