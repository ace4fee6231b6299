from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression

from skclip.adapters import LinearProbeClassifier
from skclip.ood import GradNormDetector
from skclip.utils._arrays import unit_rows

RNG = np.random.default_rng(0)
TEXT = unit_rows(RNG.normal(size=(4, 10)))
Y = np.repeat(np.arange(4), 15)
X = TEXT[Y] + 0.2 * RNG.normal(size=(60, 10))
X_NEW = 2.0 * RNG.normal(size=(50, 10))


@pytest.fixture(scope="module")
def fitted():
    return GradNormDetector(LogisticRegression()).fit(X, Y)


def linear_layer(detector):
    import torch

    layer = torch.nn.Linear(*detector.coef_.shape[::-1], dtype=torch.float64)
    with torch.no_grad():
        layer.weight[:] = torch.from_numpy(detector.coef_)
        layer.bias[:] = torch.from_numpy(detector.intercept_)
    return layer


@pytest.mark.parametrize("classifier", [LogisticRegression(), LinearProbeClassifier()])
def test_closed_form_of_the_gradient(classifier):
    import torch

    detector = GradNormDetector(classifier).fit(X, Y)
    read = unit_rows(X_NEW) if detector.unit_rows_ else X_NEW
    layer = linear_layer(detector)
    expected = []
    for row in torch.from_numpy(read):
        layer.zero_grad()
        # the official code: cross-entropy with a target of ones
        torch.sum(-torch.log_softmax(layer(row[None]), dim=1)).backward()
        expected.append(layer.weight.grad.abs().sum().item())
    np.testing.assert_allclose(detector.score_samples(X_NEW), expected, rtol=1e-9)


def test_certain_and_undecided():
    prototypes = np.eye(3, 5)
    detector = GradNormDetector(prototypes).fit(np.eye(3, 5))
    # cosines of 1 and 0 times 100: certain
    assert detector.score_samples(7.0 * np.eye(1, 5)) == pytest.approx(1.0 * 2 * (3 - 1))
    away = [[0.0, 0.0, 0.0, 3.0, 4.0]]
    assert detector.score_samples(away) == pytest.approx(0.0, abs=1e-12)


def test_the_length_of_raw_rows_counts(fitted):
    p = softmax(X_NEW @ fitted.coef_.T + fitted.intercept_, axis=1)
    expected = np.abs(X_NEW).sum(axis=1) * np.abs(4 * p - 1).sum(axis=1)
    np.testing.assert_allclose(fitted.score_samples(X_NEW), expected)


def test_equal_to_pytorch_ood(pytorch_ood, fitted):
    import torch

    layer = linear_layer(fitted)
    theirs = pytorch_ood.GradNorm(layer, param_filter=lambda name: name == "weight").to("cpu")
    # the mean over the classes, where the official code has the sum
    scores = -4.0 * theirs.predict(torch.from_numpy(X_NEW)).numpy()
    np.testing.assert_allclose(fitted.score_samples(X_NEW), scores, atol=1e-5)


def test_pytorch_ood_takes_the_intercepts_along(pytorch_ood, fitted):
    """Unless told otherwise; the paper's gradient is that of the weights of the last layer."""
    import torch

    theirs = -4.0 * pytorch_ood.GradNorm(linear_layer(fitted)).to("cpu").predict(torch.from_numpy(X_NEW)).numpy()
    p = softmax(X_NEW @ fitted.coef_.T + fitted.intercept_, axis=1)
    np.testing.assert_allclose(theirs - fitted.score_samples(X_NEW), np.abs(4 * p - 1).sum(axis=1), atol=1e-5)


def test_a_constant_added_to_all_logits_changes_nothing(fitted):
    shifted = LogisticRegression().fit(X, Y)
    shifted.coef_ = shifted.coef_ + RNG.normal(size=10)
    shifted.intercept_ = shifted.intercept_ + 3.0
    scores = GradNormDetector(FrozenEstimator(shifted)).fit(X).score_samples(X_NEW)
    np.testing.assert_allclose(scores, fitted.score_samples(X_NEW), rtol=1e-8)


def test_permutations_change_nothing_and_rotations_do():
    scores = GradNormDetector(TEXT).fit(X).score_samples(X_NEW)
    order = RNG.permutation(60)
    np.testing.assert_allclose(GradNormDetector(TEXT[::-1]).fit(X[order]).score_samples(X_NEW), scores)
    rotation = np.linalg.qr(RNG.normal(size=(10, 10)))[0]
    turned = GradNormDetector(TEXT @ rotation).fit(X @ rotation).score_samples(X_NEW @ rotation)
    assert np.abs(turned - scores).max() > 0.1
