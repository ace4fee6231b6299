"""The line of standard models."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import norm
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skclip.evaluation import RobustnessLine

IDS = np.linspace(0.4, 0.9, 12)


def test_models_on_an_exact_probit_line():
    shifts = norm.cdf(0.8 * norm.ppf(IDS) - 0.3)
    line = RobustnessLine().fit(IDS, shifts)
    assert line.slope_ == pytest.approx(0.8, abs=1e-6)
    assert line.intercept_ == pytest.approx(-0.3, abs=1e-6)
    assert line.r2_ == pytest.approx(1.0)
    assert line.n_models_ == 12
    np.testing.assert_allclose(line.effective_robustness(IDS, shifts), 0.0, atol=1e-9)
    np.testing.assert_allclose(line.effective_robustness(IDS, shifts + 0.04), 0.04, atol=1e-9)
    assert line.effective_robustness(0.5, line.predict([0.5])[0] + 0.1) == pytest.approx(0.1)


def test_logit_and_linear():
    logits = np.log(IDS / (1 - IDS))
    line = RobustnessLine("logit").fit(IDS, 1 / (1 + np.exp(-(1.2 * logits - 0.5))))
    assert (line.slope_, line.intercept_) == pytest.approx((1.2, -0.5), abs=1e-9)
    line = RobustnessLine("linear").fit(IDS, 0.5 * IDS)
    assert (line.slope_, line.intercept_) == pytest.approx((0.5, 0.0), abs=1e-12)
    steep = RobustnessLine("linear").fit([0.5, 0.6], [0.1, 0.9])
    np.testing.assert_array_equal(steep.predict([0.0, 1.0]), [0.0, 1.0])


def test_least_squares_is_polyfit():
    rng = np.random.default_rng(0)
    shifts = np.clip(0.7 * IDS + rng.normal(scale=0.05, size=12), 0, 1)
    line = RobustnessLine().fit(IDS, shifts)
    slope, intercept = np.polyfit(norm.ppf(IDS), norm.ppf(shifts), 1)
    assert (line.slope_, line.intercept_) == pytest.approx((slope, intercept), rel=1e-10)
    assert 0 < line.r2_ < 1


def test_weights_are_repeats():
    rng = np.random.default_rng(0)
    shifts = np.clip(0.7 * IDS + rng.normal(scale=0.05, size=12), 0, 1)
    weights = rng.integers(0, 3, 12)
    weighted = RobustnessLine().fit(IDS, shifts, sample_weight=weights)
    repeated = RobustnessLine().fit(np.repeat(IDS, weights), np.repeat(shifts, weights))
    assert (weighted.slope_, weighted.intercept_) == pytest.approx((repeated.slope_, repeated.intercept_))


def test_zero_and_one_are_clipped():
    line = RobustnessLine(clip=1e-3).fit([0.0, 0.5, 1.0], [0.0, 0.5, 1.0])
    assert np.isfinite(line.predict([0.0, 1.0])).all()
    np.testing.assert_allclose(line.predict([0.0, 0.5, 1.0]), [1e-3, 0.5, 1 - 1e-3])


def test_bad_input():
    with pytest.raises(NotFittedError):
        RobustnessLine().predict([0.5])
    with pytest.raises(ValueError, match="needs models of different accuracies"):
        RobustnessLine().fit([0.5, 0.5], [0.3, 0.4])
    with pytest.raises(ValueError, match=r"y\[1\] is 40; accuracies lie between 0 and 1"):
        RobustnessLine().fit([0.5, 0.6], [0.3, 40])
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        RobustnessLine().fit([0.5, 0.6], [0.3])
    with pytest.raises(ValueError, match="one accuracy per model"):
        RobustnessLine().fit(0.5, 0.4)
    with pytest.raises(ValueError, match="'scale' parameter"):
        RobustnessLine("arcsin").fit(IDS, IDS)
    with pytest.raises(ValueError, match="'clip' parameter"):
        RobustnessLine(clip=0.0).fit(IDS, IDS)
    assert clone(RobustnessLine("logit", clip=0.01)).get_params() == {"scale": "logit", "clip": 0.01}
