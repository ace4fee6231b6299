import numpy as np
import pytest

from skclip.adapters import GDAClassifier
from skclip.utils._arrays import take_rows, unit_rows


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


def test_rows_of_anything_that_holds_samples():
    pd = pytest.importorskip("pandas")
    X, positions = np.arange(12.0).reshape(4, 3), np.array([2, 0])
    np.testing.assert_array_equal(take_rows(X, positions), X[[2, 0]])
    np.testing.assert_array_equal(take_rows(X.tolist(), positions), X[[2, 0]])
    assert take_rows(["a", "b", "c"], positions) == ["c", "a"]
    table = pd.DataFrame(X, index=list("wxyz"), columns=list("abc"))
    assert take_rows(table, positions).equals(table.loc[["y", "w"]])
    assert take_rows(table["a"], positions).tolist() == [6.0, 0.0]
