from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from skclip.adapters import GDAClassifier
from skclip.metrics import ood_auroc
from skclip.ood import MSPDetector, ResidualDetector
from skclip.utils._arrays import unit_rows

RNG = np.random.default_rng(0)
Y = np.repeat(np.arange(4), 20)
CENTRES = RNG.normal(size=(4, 10))
X = CENTRES[Y] + RNG.normal(size=(80, 10)) * np.geomspace(0.5, 0.05, 10)
X_NEW = RNG.normal(size=(50, 10))


@pytest.mark.parametrize("dim", [1, 5, 9])
def test_distance_from_the_principal_space(dim):
    rows, new = unit_rows(X), unit_rows(X_NEW)
    principal = np.linalg.svd(rows, full_matrices=False)[2][:dim]
    expected = -np.linalg.norm(new - new @ principal.T @ principal, axis=1)
    np.testing.assert_allclose(ResidualDetector(dim=dim).fit(X).score_samples(X_NEW), expected, rtol=1e-8)


def test_a_head_moves_the_origin():
    classifier = LogisticRegression().fit(X, Y)
    u = -np.linalg.pinv(classifier.coef_, rcond=1e-6) @ classifier.intercept_
    principal = np.linalg.svd(X - u, full_matrices=False)[2][:3]
    new = X_NEW - u
    expected = -np.linalg.norm(new - new @ principal.T @ principal, axis=1)
    detector = ResidualDetector(LogisticRegression(), dim=3).fit(X, Y)
    np.testing.assert_allclose(detector.score_samples(X_NEW), expected, rtol=1e-8)
    np.testing.assert_allclose(detector.center_, u)
    np.testing.assert_array_equal(detector.predict_class(X_NEW), classifier.predict(X_NEW))


def test_a_head_without_intercepts_is_as_none():
    by_text = ResidualDetector(CENTRES).fit(X)
    np.testing.assert_allclose(by_text.score_samples(X_NEW), ResidualDetector().fit(X).score_samples(X_NEW), rtol=1e-12)


def test_without_a_classifier():
    detector = ResidualDetector().fit(X)
    assert detector.classifier_ is None
    assert detector.classes_ is None
    assert detector.unit_rows_
    assert detector.coef_.shape == (0, 10)
    assert not hasattr(detector, "predict_class")
    np.testing.assert_array_equal(ResidualDetector().fit(X, Y).classes_, [0, 1, 2, 3])
    np.testing.assert_array_equal(ResidualDetector().fit(X, Y).score_samples(X_NEW), detector.score_samples(X_NEW))


def test_pictures_within_the_space_of_training_have_none():
    rows = RNG.normal(size=(30, 3)) @ RNG.normal(size=(3, 10))
    detector = ResidualDetector(dim=3).fit(rows)
    np.testing.assert_allclose(detector.score_samples(RNG.normal(size=(5, 30)) @ rows), 0.0, atol=1e-7)
    assert detector.score_samples(X_NEW).max() < -0.1


def test_rotations_and_permutations():
    rotation, order = np.linalg.qr(RNG.normal(size=(10, 10)))[0], RNG.permutation(80)
    for classifier in (None, GDAClassifier()):
        scores = ResidualDetector(classifier, dim=4).fit(X, Y).score_samples(X_NEW)
        turned = ResidualDetector(classifier, dim=4).fit(X @ rotation, Y).score_samples(X_NEW @ rotation)
        np.testing.assert_allclose(turned, scores, rtol=1e-7)
        again = ResidualDetector(classifier, dim=4).fit(X[order], Y[order]).score_samples(X_NEW)
        np.testing.assert_allclose(again, scores, rtol=1e-7)


def test_all_views_are_training_rows():
    views = np.stack([X, X + 0.5 * RNG.normal(size=X.shape)], axis=1)
    flat = ResidualDetector(dim=4).fit(views.reshape(-1, 10))
    detector = ResidualDetector(dim=4).fit(views)
    np.testing.assert_allclose(detector.score_samples(views), flat.score_samples(X), rtol=1e-9)


@pytest.mark.parametrize("dim", [10, 11])
def test_no_direction_left(dim):
    with pytest.raises(ValueError, match=rf"dim={dim} leaves no residual of 10 features"):
        ResidualDetector(dim=dim).fit(X)


@pytest.mark.parametrize("seed", range(3))
def test_sees_what_logits_do_not(anisotropic, seed):
    world = anisotropic(seed)

    def auroc(detector):
        detector.fit(world.X, world.y)
        return ood_auroc(detector.score_samples(world.X_in), detector.score_samples(world.X_out))

    assert auroc(ResidualDetector()) > auroc(MSPDetector(world.text)) + 0.1
