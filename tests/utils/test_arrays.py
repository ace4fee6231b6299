import numpy as np
import pytest

from skclip.adapters import GDAClassifier
from skclip.utils._arrays import unit_rows


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_bad_features_are_named_by_position(bad):
    X, y = np.random.RandomState(0).randn(12, 5), np.arange(12) % 3
    X[7, 2] = bad
    with pytest.raises(ValueError, match=r"(NaN|infinity).*The first is X\[7, 2\]\."):
        GDAClassifier().fit(X, y)
    with pytest.raises(ValueError, match=r"The first is X\[3, 1, 2\]\."):
        GDAClassifier().fit(X.reshape(6, 2, 5), y[:6])


def test_other_errors_are_scikit_learns_own():
    with pytest.raises(ValueError, match="Found array with 0 sample"):
        GDAClassifier().fit(np.empty((0, 3)), [])
    with pytest.raises(ValueError, match="Complex data not supported"):
        GDAClassifier().fit(np.ones((4, 3), dtype=complex), [0, 0, 1, 1])


def test_unit_rows_keeps_zero_rows_and_the_type():
    X = np.array([[3.0, 4.0], [0.0, 0.0]], dtype=np.float32)
    rows = unit_rows(X)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [[0.6, 0.8], [0, 0]], atol=1e-7)
    assert X[0, 0] == 3
