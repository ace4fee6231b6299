import numpy as np
import pytest
from sklearn.covariance import ledoit_wolf, oas

from skclip.utils import _covariance
from skclip.utils._covariance import (
    empirical_covariance,
    invert,
    ks_covariance,
    ks_intensity,
    ledoit_wolf_covariance,
    oas_covariance,
    pseudo_invert,
    whitening,
)


def centred_rows(n=30, d=12, seed=0):
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(n, d)) * np.geomspace(1.0, 0.1, d)
    return rows - rows.mean(axis=0)


@pytest.mark.parametrize("n", [3, 30, 3000])
def test_ks_is_the_formula_of_the_paper(n):
    rows = centred_rows(n)
    d, S = rows.shape[1], np.cov(rows.T)
    literal = d * np.linalg.pinv((n - 1) * S + np.trace(S) * np.eye(d))
    precision = ks_intensity(n, d) * invert(ks_covariance(rows.T @ rows, n)).precision
    np.testing.assert_allclose(precision, literal, rtol=1e-6, atol=1e-6 * np.abs(literal).max())


def test_ks_tends_to_the_empirical_covariance():
    scatter = np.diag([1.0, 2.0, 3.0])
    np.testing.assert_allclose(ks_covariance(1e9 * scatter, 1e9), scatter, rtol=1e-6)


def test_oas_equals_scikit_learn():
    rows = centred_rows()
    np.testing.assert_allclose(oas_covariance(rows.T @ rows, len(rows)), oas(rows, assume_centered=True)[0], rtol=1e-10)


@pytest.mark.parametrize("n", [5, 30, 1000])
def test_ledoit_wolf_equals_scikit_learn(n):
    rows = centred_rows(n)
    fourth = np.sum(np.sum(rows**2, axis=1) ** 2)
    expected = ledoit_wolf(rows, assume_centered=True)[0]
    np.testing.assert_allclose(ledoit_wolf_covariance(rows.T @ rows, n, fourth), expected, atol=1e-12)


def test_inverses_agree_on_a_regular_matrix():
    covariance = np.cov(centred_rows(100).T)
    for inverse in (invert(covariance), pseudo_invert(covariance)):
        np.testing.assert_allclose(inverse.precision @ covariance, np.eye(12), atol=1e-9)
        assert inverse.log_det == pytest.approx(np.linalg.slogdet(covariance)[1])
        assert inverse.rank == 12


def test_pseudo_inverse_on_the_span_of_a_singular_matrix():
    covariance = np.cov(centred_rows(5).T)
    inverse = pseudo_invert(covariance)
    assert inverse.rank == 4
    np.testing.assert_allclose(inverse.precision, np.linalg.pinv(covariance, rcond=1e-12), rtol=1e-6)
    values = np.linalg.eigvalsh(covariance)[-4:]
    assert inverse.log_det == pytest.approx(np.log(values).sum())


def test_isotropic_scatter_is_a_fixed_point_of_every_shrinkage():
    for name in ("ks_covariance", "oas_covariance"):
        covariance = getattr(_covariance, name)(10.0 * np.eye(4), 10)
        np.testing.assert_allclose(covariance, covariance[0, 0] * np.eye(4), atol=1e-12)


@pytest.mark.parametrize("n", [5, 100])
def test_whitening_is_a_root_of_the_precision(n):
    covariance = np.cov(centred_rows(n).T)
    inverse, root = pseudo_invert(covariance), whitening(covariance)
    assert root.shape == (12, inverse.rank)
    np.testing.assert_allclose(
        root @ root.T, inverse.precision, rtol=1e-8, atol=1e-10 * np.abs(inverse.precision).max()
    )


@pytest.mark.parametrize("smallest", [1e-1, 1e-6, 1e-9, 1e-12, 1e-17, 0.0])
def test_the_way_without_eigenvectors_empties_no_other_direction(smallest):
    rotation = np.linalg.qr(np.random.default_rng(0).normal(size=(12, 12)))[0]
    variances = np.r_[np.geomspace(1.0, 0.1, 11), smallest]
    covariance = (rotation * variances) @ rotation.T
    covariance = (covariance + covariance.T) / 2.0
    inverse = pseudo_invert(covariance)
    assert inverse.rank == whitening(covariance).shape[1] == (12 if smallest >= 1e-12 else 11)
    rounding = 1e-14 / max(smallest, 1e-12)
    np.testing.assert_allclose(covariance @ inverse.precision @ covariance, covariance, atol=rounding)
    values = np.linalg.eigvalsh(covariance)[-inverse.rank :]
    assert inverse.log_det == pytest.approx(np.log(values).sum(), rel=1e-3)


def test_a_regular_matrix_needs_no_eigenvectors(monkeypatch):
    monkeypatch.setattr(_covariance, "eigh", None)
    covariance = np.cov(centred_rows(100).T)
    assert pseudo_invert(covariance).rank == whitening(covariance).shape[1] == 12


def test_divisors_of_the_empirical_covariance():
    np.testing.assert_allclose(empirical_covariance(np.eye(2), 5.0), np.eye(2) / 4.0)
    np.testing.assert_allclose(empirical_covariance(np.eye(2), 5.0, ddof=0), np.eye(2) / 5.0)


def test_directions_of_rounding_alone_are_empty_although_cholesky_takes_them():
    covariance = np.diag([1.0, 0.5, 1e-20])
    np.linalg.cholesky(covariance)
    assert whitening(covariance).shape == (3, 2)
    shared = pseudo_invert(covariance)
    assert shared.rank == 2
    np.testing.assert_allclose(shared.precision, np.diag([1.0, 2.0, 0.0]))
