"""Corruption errors and robustness beyond accuracy."""

from __future__ import annotations

import numpy as np
import pytest

from skclip.metrics import (
    effective_robustness,
    mean_corruption_error,
    relative_mean_corruption_error,
    relative_robustness,
)


@pytest.fixture
def errors():
    rng = np.random.default_rng(0)
    return rng.uniform(0.3, 0.9, size=(4, 5)), rng.uniform(0.3, 0.9, size=(4, 5))


def test_mean_corruption_error_is_the_literal_formula(errors):
    model, base = errors
    expected = np.mean([sum(model[c]) / sum(base[c]) for c in range(4)])
    assert mean_corruption_error(model, base) == pytest.approx(expected, rel=1e-14)
    clean, base_clean = 0.1, 0.2
    expected = np.mean([sum(e - clean for e in model[c]) / sum(e - base_clean for e in base[c]) for c in range(4)])
    found = relative_mean_corruption_error(model, base, clean_error=clean, baseline_clean_error=base_clean)
    assert found == pytest.approx(expected, rel=1e-12)


def test_a_model_against_itself(errors):
    model, _ = errors
    assert mean_corruption_error(model, model) == pytest.approx(1.0)
    assert relative_mean_corruption_error(model, model, clean_error=0.1, baseline_clean_error=0.1) == pytest.approx(1.0)


def test_more_accurate_everywhere_is_not_more_robust(errors):
    _, base = errors
    lifted = base - 0.1
    assert mean_corruption_error(lifted, base) < 1.0
    found = relative_mean_corruption_error(lifted, base, clean_error=0.1, baseline_clean_error=0.2)
    assert found == pytest.approx(1.0)


def test_bad_errors(errors):
    model, base = errors
    with pytest.raises(ValueError, match=r"errors\[0, 0\] is .*not in percent"):
        mean_corruption_error(100 * model, base)
    with pytest.raises(ValueError, match=r"errors has shape \(4, 5\) and baseline_errors \(3, 5\)"):
        mean_corruption_error(model, base[:3])
    with pytest.raises(ValueError, match="corruption of row 2 the baseline makes no error"):
        mean_corruption_error(model, base * (np.arange(4) != 2)[:, None])
    with pytest.raises(ValueError, match="corruption of row 0 the baseline makes no more errors"):
        relative_mean_corruption_error(model, base, clean_error=0.1, baseline_clean_error=0.95)
    with pytest.raises(ValueError, match="clean_error must be in"):
        relative_mean_corruption_error(model, base, clean_error=10, baseline_clean_error=0.1)
    with pytest.raises(ValueError, match="errors must have 2 dimensions"):
        mean_corruption_error(model[0], base[0])


def test_effective_robustness_is_what_exceeds_the_line():
    def line(accuracy):
        return 0.9 * accuracy - 0.1

    ids = np.array([0.5, 0.7, 0.9])
    np.testing.assert_allclose(effective_robustness(ids, line(ids), line), 0.0, atol=1e-15)
    np.testing.assert_allclose(effective_robustness(ids, line(ids) + 0.05, line), 0.05)
    found = effective_robustness(0.5, 0.4, line)
    assert type(found) is float
    assert found == pytest.approx(0.05)


def test_relative_robustness_is_a_difference():
    assert relative_robustness(0.5, 0.625) == -0.125
    np.testing.assert_allclose(relative_robustness([0.5, 0.75], [0.25, 0.25]), [0.25, 0.5])


def test_bad_accuracies():
    with pytest.raises(ValueError, match=r"accuracy_id\[1\] is 70; accuracies lie between 0 and 1"):
        effective_robustness([0.5, 70], [0.4, 0.6], abs)
    with pytest.raises(ValueError, match=r"accuracy_shift\[0\] is nan"):
        relative_robustness(np.nan, 0.5)
    with pytest.raises(ValueError, match="one pair per model"):
        effective_robustness([0.5, 0.6], [0.4], abs)
