from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.linear_model import LogisticRegression

from skclip.adapters import GDAClassifier, LinearProbeClassifier
from skclip.ood import EnergyDetector, ReActDetector
from skclip.utils._arrays import unit_rows

RNG = np.random.default_rng(0)
TEXT = unit_rows(RNG.normal(size=(4, 10)))
Y = np.repeat(np.arange(4), 15)
X = TEXT[Y] + 0.2 * RNG.normal(size=(60, 10))
X_NEW = 2.0 * RNG.normal(size=(50, 10))

CLASSIFIERS = [LogisticRegression(), GDAClassifier(), LinearProbeClassifier(), TEXT]


def test_the_paper_written_out():
    classifier = LogisticRegression().fit(X, Y)
    ceiling = np.percentile(X.ravel(), 70.0)
    cut = np.clip(X_NEW, a_min=None, a_max=ceiling)
    expected = logsumexp(cut @ classifier.coef_.T + classifier.intercept_, axis=1)
    detector = ReActDetector(LogisticRegression(), percentile=70).fit(X, Y)
    np.testing.assert_allclose(detector.score_samples(X_NEW), expected)
    assert detector.ceiling_ == ceiling


def test_features_are_cut_at_the_length_that_the_head_reads():
    detector = ReActDetector(LinearProbeClassifier()).fit(X, Y)
    assert detector.ceiling_ == pytest.approx(np.percentile(unit_rows(X), 90.0))
    np.testing.assert_allclose(detector.score_samples(X_NEW), detector.score_samples(5.0 * X_NEW))


@pytest.mark.parametrize("classifier", CLASSIFIERS, ids=lambda given: type(given).__name__)
def test_nothing_cut_is_the_energy(classifier):
    detector = ReActDetector(classifier, percentile=100.0).fit(X, Y)
    energy = EnergyDetector(classifier).fit(X, Y)
    np.testing.assert_allclose(detector.score_samples(X), energy.score_samples(X), rtol=1e-9)
    assert detector.offset_ == pytest.approx(energy.offset_)


@pytest.mark.parametrize("percentile", [85.0, 90.0])
def test_equal_to_pytorch_ood(pytorch_ood, percentile):
    import torch

    detector = ReActDetector(LogisticRegression(), percentile=percentile).fit(X, Y)
    head = torch.nn.Linear(10, 4, dtype=torch.float64)
    with torch.no_grad():
        head.weight[:] = torch.from_numpy(detector.coef_)
        head.bias[:] = torch.from_numpy(detector.intercept_)
    theirs = pytorch_ood.ReAct(torch.nn.Identity(), head, percentile=percentile / 100.0)
    theirs.fit_feature_maps(torch.from_numpy(X), torch.from_numpy(Y))
    np.testing.assert_allclose(
        detector.score_samples(X_NEW), -theirs.predict_feature_maps(torch.from_numpy(X_NEW)).numpy(), atol=1e-5
    )


def test_permutations_change_nothing_and_rotations_do():
    scores = ReActDetector(TEXT).fit(X).score_samples(X_NEW)
    order = RNG.permutation(60)
    np.testing.assert_allclose(ReActDetector(TEXT[::-1]).fit(X[order]).score_samples(X_NEW), scores)
    rotation = np.linalg.qr(RNG.normal(size=(10, 10)))[0]
    turned = ReActDetector(TEXT @ rotation).fit(X @ rotation).score_samples(X_NEW @ rotation)
    assert np.abs(turned - scores).max() > 0.1


@pytest.mark.parametrize("percentile", [0.0, 101.0])
def test_bad_percentile(percentile):
    with pytest.raises(ValueError, match=f"The 'percentile' parameter of ReActDetector must be .* Got {percentile}"):
        ReActDetector(TEXT, percentile=percentile).fit(X)
