from __future__ import annotations

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.linear_model import LinearRegression, LogisticRegression, RidgeClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip import ood
from skclip.adapters import GDAClassifier, LinearProbeClassifier
from skclip.metrics import ood_auroc
from skclip.ood import EnergyDetector, MSPDetector, ResidualDetector, ViMDetector
from skclip.utils import SkclipWarning, get_logits
from skclip.utils._arrays import unit_rows
from skclip.utils.estimator_checks import NearestMeanClassifier

RNG = np.random.default_rng(0)
TEXT = unit_rows(RNG.normal(size=(5, 12)))
Y = np.repeat(np.arange(5), 20)
X = TEXT[Y] + RNG.normal(size=(100, 12)) * np.geomspace(0.4, 0.05, 12)
X_NEW = RNG.normal(size=(60, 12))

CLASSIFIERS = [LogisticRegression(), GDAClassifier(), LinearProbeClassifier(), GDAClassifier(TEXT), TEXT]


@parametrize_with_checks([ViMDetector(NearestMeanClassifier(), dim=1)])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def written_out(W, b, F, new, dim):
    """The paper's code: scikit-learn's empirical covariance there, its formula here."""
    u = -np.linalg.pinv(W, rcond=1e-6) @ b
    covariance = (F - u).T @ (F - u) / len(F)
    values, vectors = np.linalg.eigh(covariance)
    R = vectors[:, np.argsort(values * -1)[dim:]]
    alpha = (F @ W.T + b).max(axis=1).mean() / np.linalg.norm((F - u) @ R, axis=1).mean()
    return logsumexp(new @ W.T + b, axis=1) - alpha * np.linalg.norm((new - u) @ R, axis=1), alpha


@pytest.mark.parametrize("dim", [1, 4, 11])
def test_the_paper_written_out(dim):
    classifier = LogisticRegression().fit(X, Y)
    expected, alpha = written_out(classifier.coef_, classifier.intercept_, X, X_NEW, dim)
    detector = ViMDetector(LogisticRegression(), dim=dim).fit(X, Y)
    np.testing.assert_allclose(detector.score_samples(X_NEW), expected, rtol=1e-9)
    assert detector.alpha_ == pytest.approx(alpha)
    probe = LinearProbeClassifier().fit(X, Y)
    expected, _ = written_out(probe.coef_, probe.intercept_, unit_rows(X), unit_rows(X_NEW), dim)
    detector = ViMDetector(LinearProbeClassifier(), dim=dim).fit(X, Y)
    np.testing.assert_allclose(detector.score_samples(X_NEW), expected, rtol=1e-9)


@pytest.mark.parametrize("classifier", CLASSIFIERS, ids=lambda given: type(given).__name__)
def test_without_a_residual_it_is_the_energy(classifier):
    detector = ViMDetector(classifier, dim=12).fit(X, Y)
    energy = EnergyDetector(classifier).fit(X, Y)
    np.testing.assert_allclose(detector.score_samples(X_NEW), energy.score_samples(X_NEW), rtol=1e-9)
    assert detector.offset_ == pytest.approx(energy.offset_)
    assert detector.alpha_ == 0.0


@pytest.mark.parametrize("classifier", CLASSIFIERS, ids=lambda given: type(given).__name__)
def test_it_is_energy_and_residual(classifier):
    detector = ViMDetector(classifier, dim=4).fit(X, Y)
    energy = EnergyDetector(classifier).fit(X, Y).score_samples(X_NEW)
    residual = ResidualDetector(classifier, dim=4).fit(X, Y).score_samples(X_NEW)
    np.testing.assert_allclose(detector.score_samples(X_NEW), energy + detector.alpha_ * residual, rtol=1e-8)
    # the virtual logit of training pictures is as large as their largest one
    largest = get_logits(detector.classifier_, X).max(axis=1).mean()
    own = ResidualDetector(classifier, dim=4).fit(X, Y).score_samples(X).mean()
    assert -detector.alpha_ * own == pytest.approx(largest)


def test_the_origin_is_where_the_logits_vanish():
    detector = ViMDetector(LogisticRegression()).fit(X, Y)
    np.testing.assert_allclose(detector.coef_ @ detector.center_ + detector.intercept_, 0.0, atol=1e-9)
    np.testing.assert_array_equal(ViMDetector(TEXT).fit(X).center_, 0.0)
    for classifier in CLASSIFIERS[:4]:
        # no more than the rows themselves: what rounding leaves of the rank is no direction
        assert np.linalg.norm(ViMDetector(classifier).fit(X.astype(np.float32), Y).center_) < 10.0


@pytest.mark.parametrize(
    ("n_features", "dim"), [(2048, 1000), (2500, 1000), (768, 512), (1024, 512), (512, 256), (7, 3)]
)
def test_official_number_of_directions(n_features, dim):
    assert ood._residual.principal_dim(None, n_features) == dim


def test_half_of_the_features_by_default():
    assert ViMDetector(TEXT).fit(X).dim_ == 6
    assert ViMDetector(TEXT).fit(X).residual_basis_.shape == (12, 6)
    assert ViMDetector(NearestMeanClassifier()).fit(X[:, :1], Y).dim_ == 0


def test_rotations_and_permutations():
    rotation = np.linalg.qr(RNG.normal(size=(12, 12)))[0]
    order = RNG.permutation(100)
    for classifier, turned in [(GDAClassifier(), GDAClassifier()), (TEXT, TEXT @ rotation)]:
        scores = ViMDetector(classifier, dim=4).fit(X, Y).score_samples(X_NEW)
        again = ViMDetector(turned, dim=4).fit(X @ rotation, Y).score_samples(X_NEW @ rotation)
        np.testing.assert_allclose(again, scores, rtol=1e-4)
        np.testing.assert_allclose(
            ViMDetector(classifier, dim=4).fit(X[order], Y[order]).score_samples(X_NEW), scores, rtol=1e-7
        )
    relabelled = ViMDetector(GDAClassifier(), dim=4).fit(X, 4 - Y).score_samples(X_NEW)
    np.testing.assert_allclose(
        relabelled, ViMDetector(GDAClassifier(), dim=4).fit(X, Y).score_samples(X_NEW), rtol=1e-7
    )


@pytest.mark.parametrize("dim", [3, 8])
def test_equal_to_pytorch_ood(pytorch_ood, dim):
    import torch

    new = X[::2] + 0.1 * X_NEW[:50]
    detector = ViMDetector(LogisticRegression(C=10.0), dim=dim).fit(X, Y)
    weights, bias = torch.from_numpy(detector.coef_), torch.from_numpy(detector.intercept_)
    theirs = pytorch_ood.ViM(None, dim, weights, bias).fit_features(torch.from_numpy(X), torch.from_numpy(Y))
    scores = -theirs.predict_features(torch.from_numpy(new)).numpy()
    # of pictures that are not far out: it computes in float32
    np.testing.assert_allclose(detector.score_samples(new), scores, rtol=1e-5, atol=1e-5)


def test_too_few_rows_to_measure_a_residual():
    with pytest.raises(ValueError, match="dim = 6 principal directions hold all n_samples = 6 training rows"):
        ViMDetector(TEXT).fit(X[:6])
    assert ViMDetector(TEXT, dim=3).fit(X[:6]).alpha_ > 0.0


def test_bad_dim():
    with pytest.raises(ValueError, match="dim=13 is more than the 12 features"):
        ViMDetector(TEXT, dim=13).fit(X)
    for dim in (0, 2.5):
        with pytest.raises(ValueError, match=f"The 'dim' parameter of ViMDetector must be .* Got {dim}"):
            ViMDetector(TEXT, dim=dim).fit(X)


def test_logits_that_are_negative_turn_the_residual_around():
    rows, y = np.repeat(np.eye(20, 25), 10, axis=0) + 0.02 * RNG.normal(size=(200, 25)), np.repeat(np.arange(20), 10)
    with pytest.warns(SkclipWarning, match="largest logits of the training pictures are negative on average"):
        detector = ViMDetector(RidgeClassifier(alpha=100.0)).fit(rows, y)
    assert detector.alpha_ < 0.0


def test_what_is_no_classifier():
    with pytest.raises(TypeError, match="is not a classifier"):
        ViMDetector(LinearRegression()).fit(X, Y)


def auroc(detector, world):
    detector.fit(world.X, world.y)
    return ood_auroc(detector.score_samples(world.X_in), detector.score_samples(world.X_out))


@pytest.mark.parametrize("seed", range(5))
def test_between_logits_and_covariances(anisotropic, seed):
    world = anisotropic(seed)
    vim = auroc(ViMDetector(world.text), world)
    assert vim > auroc(EnergyDetector(world.text), world) + 0.1
    assert vim > auroc(MSPDetector(world.text), world) + 0.03
    assert vim < auroc(ood.MahalanobisDetector(), world) - 0.1


@pytest.mark.parametrize("seed", range(5))
def test_good_text_and_isotropic_noise(isotropic, seed):
    assert auroc(ViMDetector(isotropic(seed).text), isotropic(seed)) > 0.8


@pytest.mark.parametrize("seed", range(5))
def test_unknown_pictures_at_class_means_pass(cluster_means, seed):
    assert auroc(ViMDetector(cluster_means(seed).text), cluster_means(seed)) < 0.05
