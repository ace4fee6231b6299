"""One temperature: closed forms, scikit-learn's, and what it must not change."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from sklearn.calibration import CalibratedClassifierCV
from sklearn.datasets import make_classification
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss

from skclip.evaluation import _temperature, fit_temperature
from skclip.metrics import expected_calibration_error, negative_log_likelihood
from skclip.utils import SkclipWarning, get_logits
from skclip.utils._arrays import unit_rows


def calibrated(n=4000, n_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    logits = 2.0 * rng.normal(size=(n, n_classes))
    return logits, (logits + rng.gumbel(size=logits.shape)).argmax(axis=1)


@pytest.mark.parametrize("scale", [1e-3, 0.1, 1.0, 7.0, 100.0])
def test_scaled_logits_give_the_scale(scale):
    logits, y = calibrated(40_000)
    base = fit_temperature(logits, y)
    assert base == pytest.approx(1.0, abs=0.03)
    assert fit_temperature(scale * logits, y) == pytest.approx(scale * base, rel=1e-8)


def test_is_the_minimum():
    logits, y = calibrated()

    def nll(log_t):
        return log_loss(y, softmax(3 * logits / np.exp(log_t), axis=1))

    expected = np.exp(minimize_scalar(nll, bounds=(-3, 3), method="bounded", options={"xatol": 1e-10}).x)
    assert fit_temperature(3 * logits, y) == pytest.approx(expected, rel=1e-6)


def test_same_as_scikit_learn():
    X, y = make_classification(900, 12, n_informative=6, n_classes=3, random_state=0)
    names = np.array(["hen", "cat", "dog"])[y]
    classifier = LogisticRegression(max_iter=2000, C=100).fit(X[:60], names[:60])
    reference = CalibratedClassifierCV(FrozenEstimator(classifier), method="temperature").fit(X[60:], names[60:])
    beta = reference.calibrated_classifiers_[0].calibrators[0].beta_
    logits = get_logits(classifier, X[60:])
    found = fit_temperature(logits, names[60:], labels=classifier.classes_)
    assert found == pytest.approx(1.0 / beta, rel=1e-6)
    np.testing.assert_allclose(softmax(logits / found, axis=1), reference.predict_proba(X[60:]), atol=1e-7)


def test_same_probabilities_as_scikit_learn_for_two_classes():
    X, y = make_classification(600, 12, n_informative=6, random_state=0)
    classifier = LogisticRegression(C=100).fit(X[:60], y[:60])
    reference = CalibratedClassifierCV(FrozenEstimator(classifier), method="temperature").fit(X[60:], y[60:])
    logits = get_logits(classifier, X[60:])
    found = softmax(logits / fit_temperature(logits, y[60:]), axis=1)
    np.testing.assert_allclose(found, reference.predict_proba(X[60:]), atol=1e-7)


@pytest.mark.parametrize("seed", range(5))
def test_never_worse_on_the_rows_it_was_fitted_to(seed):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(80, 6)) * rng.uniform(0.1, 20)
    y = np.where(rng.random(80) < 0.6, logits.argmax(axis=1), rng.integers(0, 6, 80))
    temperature = fit_temperature(logits, y)
    before, after = (negative_log_likelihood(y, softmax(logits / t, axis=1)) for t in (1.0, temperature))
    assert after <= before + 1e-12
    np.testing.assert_array_equal((logits / temperature).argmax(axis=1), logits.argmax(axis=1))


def test_shifts_weights_types_and_blocks(monkeypatch):
    logits, y = calibrated(500)
    logits = 5 * logits
    expected = fit_temperature(logits, y)
    assert fit_temperature(log_softmax(logits, axis=1), y) == pytest.approx(expected, rel=1e-9)
    assert fit_temperature(logits + 1e4 * np.arange(500)[:, None], y) == pytest.approx(expected, rel=1e-6)
    assert fit_temperature(logits.astype(np.float32), y) == pytest.approx(expected, rel=1e-5)
    names = np.array(list("edcba"))
    assert fit_temperature(logits, names[y], labels=names) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr(_temperature, "_BLOCK", 60)
    assert fit_temperature(logits, y) == pytest.approx(expected, rel=1e-9)
    weights = np.random.default_rng(0).integers(0, 3, 500)
    found = fit_temperature(logits, y, sample_weight=weights)
    many = np.repeat(np.arange(500), weights)
    assert found == pytest.approx(fit_temperature(logits[many], y[many]), rel=1e-9)


def test_where_no_temperature_is_best():
    logits, y = calibrated(50)
    best = logits.argmax(axis=1)
    with pytest.warns(SkclipWarning, match="every row"):
        assert fit_temperature(logits, best) < 1e-4
    with pytest.warns(SkclipWarning, match="no better than chance"):
        assert fit_temperature(-logits, best) > 1e4
    with pytest.warns(SkclipWarning, match="all logits of a row are equal"):
        assert fit_temperature(np.ones((50, 5)), y) == 1.0


def test_bad_input():
    logits, y = calibrated(6)
    broken = logits.copy()
    broken[2, 1] = -np.inf
    with pytest.raises(ValueError, match=r"logits\[2, 1\] is -inf"):
        fit_temperature(broken, y)
    with pytest.raises(ValueError, match="logits must have 2 dimensions"):
        fit_temperature(logits[:, 0], y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        fit_temperature(logits, y[:-1])
    with pytest.raises(ValueError, match="logits has 5 columns but y holds 1 different labels"):
        fit_temperature(logits, ["cat"] * 6)
    with pytest.raises(ValueError, match="y holds 'eel', unknown to labels"):
        fit_temperature(logits, ["eel"] * 6, labels=list("abcde"))
    with pytest.raises(ValueError, match="zero"):
        fit_temperature(logits, y, sample_weight=np.zeros(6))


@pytest.mark.realdata
def test_cosines_of_a_real_model_need_its_scale(realdata):
    path = realdata / "clip-vit-b-32-openai" / "imagenet.npz"
    if not path.is_file():
        pytest.skip("no imagenet.npz")
    with np.load(path) as data:
        X, y, *texts = (data[name].astype(np.float32) for name in ("X_train_2", "y_train_2", "text_a", "text_b"))
    y = y.astype(int)
    cosines = unit_rows(X) @ unit_rows(sum(map(unit_rows, texts))).T
    accuracy = np.mean(cosines.argmax(axis=1) == y)
    # bare cosines are as good as no confidence at all
    assert expected_calibration_error(y, softmax(cosines, axis=1)) == pytest.approx(accuracy - 1 / 1000, abs=0.002)
    # the scale that the model was trained with is 100
    assert 1 / fit_temperature(cosines[::2], y[::2]) == pytest.approx(105.4, abs=0.5)
    errors = {scale: expected_calibration_error(y[1::2], softmax(scale * cosines[1::2], axis=1)) for scale in (1, 100)}
    assert errors[100] < 0.08 < 0.5 < errors[1]
