from __future__ import annotations

import joblib
import numpy as np
import pytest
import torch
from sklearn.base import BaseEstimator
from sklearn.covariance import LedoitWolf
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.features import MissingDeviceWarning
from skclip.metrics import get_scorer, ood_auroc
from skclip.ood import MahalanobisDetector, MSPDetector, RelativeMahalanobisDetector, _device, _gaussian
from skclip.utils import SkclipWarning
from skclip.utils._arrays import unit_rows

ADDITIVE = ("empirical", "ks", "oas")
EVERY = (*ADDITIVE, "ledoit_wolf", "pooled")
DETECTORS = (MahalanobisDetector, RelativeMahalanobisDetector)


class IdentityCovariance(BaseEstimator):
    def fit(self, X, y=None):
        self.covariance_ = np.eye(X.shape[1])
        return self


def known_rows(n=200, d=8, n_classes=5, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(n_classes, d)) + 2.0
    codes = rng.permutation(np.arange(n) % n_classes)
    return centres[codes] + 0.4 * rng.normal(size=(n, d)) * np.geomspace(1.0, 0.1, d), np.array(list("abcde"))[codes]


def auroc(detector, world):
    return ood_auroc(detector.score_samples(world.X_in), detector.score_samples(world.X_out))


def literal_scores(X, y, queries):
    """Equations (1) and (2) of the paper, with the divisor N; unit rows throughout."""
    rows, queries = unit_rows(X), unit_rows(queries)
    means = {label: rows[y == label].mean(axis=0) for label in np.unique(y)}
    covariance = sum((rows[y == k] - mean).T @ (rows[y == k] - mean) for k, mean in means.items()) / len(rows)
    precision = np.linalg.inv(covariance)
    return np.array([max(-(q - mean) @ precision @ (q - mean) for mean in means.values()) for q in queries])


def test_scores_equal_the_literal_formula():
    X, y = known_rows()
    queries = np.random.default_rng(1).normal(size=(30, 8))
    detector = MahalanobisDetector().fit(X, y)
    np.testing.assert_allclose(detector.score_samples(queries), literal_scores(X, y, queries), rtol=1e-8)
    np.testing.assert_allclose(
        detector.whitening_ @ detector.whitening_.T, np.linalg.inv(detector.covariance_), rtol=1e-6, atol=1e-6
    )


def test_identity_covariance_is_the_negative_squared_distance_to_the_nearest_mean():
    X, y = known_rows()
    queries = unit_rows(np.random.default_rng(1).normal(size=(30, 8)))
    detector = MahalanobisDetector(IdentityCovariance()).fit(X, y)
    squared = np.square(queries[:, None] - detector.means_).sum(axis=2)
    np.testing.assert_allclose(detector.score_samples(queries), -squared.min(axis=1), rtol=1e-10)


def test_without_labels_all_rows_are_one_class():
    X = known_rows()[0]
    without, one = MahalanobisDetector().fit(X), MahalanobisDetector().fit(X, np.full(len(X), "all"))
    assert without.classes_ is None
    assert one.classes_.tolist() == ["all"]
    np.testing.assert_allclose(without.score_samples(X), one.score_samples(X), rtol=1e-12)
    np.testing.assert_allclose(without.score_samples(X), literal_scores(X, np.zeros(len(X)), X), rtol=1e-8)


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("covariance", EVERY)
def test_rotations_and_permutations_change_nothing(detector, covariance, anisotropic):
    world = anisotropic(0)
    rng = np.random.default_rng(0)
    expected = detector(covariance).fit(world.X, world.y).score_samples(world.X_in)
    rotation = np.linalg.qr(rng.normal(size=(64, 64)))[0]
    turned = detector(covariance).fit(world.X @ rotation, world.y).score_samples(world.X_in @ rotation)
    np.testing.assert_allclose(turned, expected, rtol=1e-6)
    order, names = rng.permutation(len(world.X)), rng.permutation(20)
    shuffled = detector(covariance).fit(world.X[order], names[world.y[order]])
    np.testing.assert_allclose(shuffled.score_samples(world.X_in), expected, rtol=1e-6)


@pytest.mark.parametrize("detector", DETECTORS)
def test_rows_of_any_length_and_type_mean_the_same(detector):
    X, y = known_rows()
    expected = detector().fit(X, y).score_samples(X)
    lengths = np.random.default_rng(0).uniform(0.1, 10.0, (len(X), 1))
    np.testing.assert_allclose(detector().fit(lengths * X, y).score_samples(3.0 * X), expected, rtol=1e-8)
    low = detector().fit(X.astype(np.float32), y).score_samples(X.astype(np.float32))
    assert low.dtype == np.float64
    np.testing.assert_allclose(low, expected, rtol=1e-3)


@pytest.mark.parametrize("seed", range(3))
def test_shared_noise_is_seen_where_probabilities_see_nothing(seed, anisotropic):
    world = anisotropic(seed)
    assert auroc(MahalanobisDetector().fit(world.X, world.y), world) > 0.97
    assert auroc(RelativeMahalanobisDetector().fit(world.X, world.y), world) > 0.97
    assert auroc(MSPDetector(world.text).fit(world.X, world.y), world) < 0.75


@pytest.mark.parametrize("seed", range(4))
def test_isotropic_noise(seed, isotropic):
    world = isotropic(seed)
    for detector in DETECTORS:
        assert auroc(detector().fit(world.X, world.y), world) > 0.87


@pytest.mark.parametrize("seed", range(3))
def test_unknown_pictures_at_class_means_where_no_cluster_is(seed, cluster_means):
    world = cluster_means(seed)
    for detector in DETECTORS:
        assert auroc(detector().fit(world.X, world.y), world) > 0.97
    assert auroc(MSPDetector(world.text).fit(world.X, world.y), world) < 0.2


@pytest.mark.realdata
def test_reference_figure_on_real_features(real_features):
    known, unknown = real_features("imagenet"), real_features("oxford_flowers")["X_train_16"]
    for detector, figure in ((MahalanobisDetector(), 0.665), (RelativeMahalanobisDetector(), 0.701)):
        detector.fit(known["X_train_4"], known["y_train_4"])
        found = ood_auroc(detector.score_samples(known["X_train_2"]), detector.score_samples(unknown))
        assert found == pytest.approx(figure, abs=0.003)


@pytest.fixture
def double():
    """Torch in float64 throughout, which pytorch-ood does not choose by itself."""
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


def test_pytorch_ood_has_the_same_scores_times_half_n(pytorch_ood, double):
    # its covariance is a sum that is not divided by N, its distance is halved
    X, y = known_rows(2000)
    queries = unit_rows(np.random.default_rng(1).normal(size=(50, 8)))
    theirs = pytorch_ood.Mahalanobis(None)
    theirs.fit_features(torch.tensor(unit_rows(X)), torch.tensor(np.unique(y, return_inverse=True)[1]))
    expected = -theirs.predict_features(torch.tensor(queries)).numpy() * 2.0 * len(X)
    found = MahalanobisDetector().fit(X, y).score_samples(queries)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_singular_covariance_warns_and_measures_where_it_can():
    X, y = known_rows(9, d=12, n_classes=3)
    with pytest.warns(SkclipWarning, match=r"covariance='empirical' of 9 rows is singular: rank 6 of 12.*\"ks\""):
        detector = MahalanobisDetector().fit(X, y)
    assert detector.rank_ == detector.whitening_.shape[1] == 6
    precision = np.linalg.pinv(detector.covariance_, rcond=1e-10)
    centred = unit_rows(X)[:, None] - detector.means_
    expected = -np.einsum("nkd,de,nke->nk", centred, precision, centred).min(axis=1)
    np.testing.assert_allclose(detector.score_samples(X), expected, rtol=1e-6)
    assert MahalanobisDetector("ks").fit(X, y).rank_ == 12


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("covariance", EVERY)
def test_one_row_per_class_has_the_total_scatter(detector, covariance):
    X = np.random.default_rng(0).normal(size=(60, 6)) + 1.0
    alone = detector(covariance).fit(X, np.arange(60))
    together = MahalanobisDetector("empirical" if covariance == "pooled" else covariance).fit(X)
    factor = 59 / 60 if covariance == "pooled" else 1.0
    np.testing.assert_allclose(factor * alone.covariance_, together.covariance_, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("detector", DETECTORS)
def test_equal_rows_have_no_scatter_and_finite_scores(detector):
    X = np.tile([1.0, 2.0, 3.0], (10, 1))
    fitted = detector().fit(X, np.repeat([0, 1], 5))
    np.testing.assert_allclose(fitted.score_samples(X), 0.0, atol=1e-12)
    assert fitted.predict([[-1.0, 0.0, 0.0]]).tolist() == ([-1] if detector is MahalanobisDetector else [1])


@pytest.mark.parametrize("detector", DETECTORS)
def test_a_covariance_estimator_is_cloned_and_fitted_to_centred_rows(detector):
    X, y = known_rows()
    estimator = LedoitWolf(assume_centered=True)
    ours = detector("ledoit_wolf").fit(X, y)
    theirs = detector(estimator).fit(X, y)
    assert not hasattr(estimator, "covariance_")
    np.testing.assert_allclose(theirs.score_samples(X), ours.score_samples(X), rtol=1e-8)


@pytest.mark.parametrize("detector", DETECTORS)
def test_views_are_rows_of_the_fit_and_the_first_is_scored(detector):
    X, y = known_rows(200)
    views = X[:200].reshape(100, 2, 8)
    labels = y[::2]
    rows, repeated = views.reshape(-1, 8), np.repeat(labels, 2)
    with_views, flat = detector().fit(views, labels), detector().fit(rows, repeated)
    assert with_views.n_features_in_ == 8
    np.testing.assert_allclose(with_views.score_samples(views), flat.score_samples(views[:, 0]), rtol=1e-10)
    assert with_views.offset_ == pytest.approx(np.percentile(flat.score_samples(views[:, 0]), 5))


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize("covariance", ADDITIVE)
@pytest.mark.parametrize("labelled", [True, False])
def test_chunks_add_up_to_one_fit(detector, covariance, labelled):
    X, y = known_rows()
    order = np.argsort(y, kind="stable") if labelled else np.arange(200)
    X, y = X[order], y[order]
    chunked, classes = detector(covariance), list("abcde")
    for part in (slice(0, 90), slice(90, 91), slice(91, 200)):
        if labelled:
            chunked.partial_fit(X[part], y[part], classes=classes)
        else:
            chunked.partial_fit(X[part])
    whole = detector(covariance).fit(X, y if labelled else None)
    np.testing.assert_allclose(chunked.score_samples(X), whole.score_samples(X), rtol=1e-7)
    # the threshold is that of the last chunk, under the model of all
    assert chunked.offset_ == pytest.approx(np.percentile(whole.score_samples(X[91:]), 5), rel=1e-7)
    continued = detector(covariance).fit(X[:150], y[:150] if labelled else None)
    if labelled:
        with pytest.raises(ValueError, match=r"y holds 'e'.*unknown to classes"):
            continued.partial_fit(X[150:], y[150:])
    else:
        continued.partial_fit(X[150:])
        np.testing.assert_allclose(continued.score_samples(X), whole.score_samples(X), rtol=1e-7)


def test_a_class_without_rows_yet_has_no_part_in_the_score():
    X, y = known_rows()
    some = np.isin(y, ["a", "b"])
    early = MahalanobisDetector().partial_fit(X[some], y[some], classes=list("abcde"))
    alone = MahalanobisDetector().fit(X[some], y[some])
    assert early.classes_.tolist() == list("abcde")
    np.testing.assert_allclose(early.score_samples(X), alone.score_samples(X), rtol=1e-8)


def test_given_pictures_set_the_threshold_of_every_chunk():
    X, y = known_rows()
    held_out = known_rows(seed=1)[0]
    detector = MahalanobisDetector(calibration=held_out).partial_fit(X[:100], y[:100]).partial_fit(X[100:], y[100:])
    assert detector.offset_ == pytest.approx(np.percentile(detector.score_samples(held_out), 5))


@pytest.mark.parametrize("detector", DETECTORS)
def test_partial_fit_says_why_not(detector):
    X, y = known_rows()
    with pytest.raises(AttributeError) as error:
        _ = detector("ledoit_wolf").partial_fit
    assert "cannot estimate covariance='ledoit_wolf' from sums over rows" in str(error.value.__cause__)
    with pytest.raises(AttributeError) as error:
        _ = detector(calibration="cv").partial_fit
    assert 'nothing can be held out for calibration="cv"' in str(error.value.__cause__)
    with pytest.raises(ValueError, match="got classes but no y"):
        detector().partial_fit(X, classes=["a"])
    with pytest.raises(ValueError, match="Earlier chunks had y, this one has no y"):
        detector().partial_fit(X, y).partial_fit(X)
    with pytest.raises(ValueError, match="Earlier chunks had no y, this one has y"):
        detector().partial_fit(X).partial_fit(X, y)
    with pytest.raises(ValueError, match="differs from the classes of the first call"):
        detector().partial_fit(X, y).partial_fit(X, y, classes=["a"])
    with pytest.raises(ValueError, match="kept no sums over rows"):
        detector("ledoit_wolf").fit(X, y).set_params(covariance="ks").partial_fit(X, y)


@pytest.mark.parametrize("seed", range(3))
def test_held_out_thresholds_keep_new_pictures_that_in_sample_ones_refuse(seed, anisotropic):
    # 320 rows of 64 features
    world, kept = anisotropic(seed), {}
    for calibration in ("in_sample", "cv"):
        detector = MahalanobisDetector(calibration=calibration).fit(world.X, world.y)
        kept[calibration] = np.mean(detector.predict(world.X_in) == 1)
    assert kept["in_sample"] < 0.6
    assert kept["cv"] == pytest.approx(0.95, abs=0.045)


@pytest.mark.parametrize("detector", DETECTORS)
def test_search_and_persistence(detector, anisotropic, tmp_path):
    world = anisotropic(0)
    scorer = get_scorer("ood_auroc", X_out=world.X_out)
    grid = {"covariance": ["empirical", "ks", "ledoit_wolf"]}
    search = GridSearchCV(detector(), grid, scoring=scorer, cv=StratifiedKFold(3)).fit(world.X, world.y)
    assert search.best_params_["covariance"] != "ks"  # whose shrinkage is too strong here
    assert search.best_score_ > 0.98
    joblib.dump(search.best_estimator_, tmp_path / "detector")
    again = joblib.load(tmp_path / "detector", mmap_mode="r")
    np.testing.assert_array_equal(again.predict(world.X_out), search.best_estimator_.predict(world.X_out))


@pytest.mark.parametrize("detector", DETECTORS)
def test_an_absent_device_fails_the_fit_and_warns_once_in_use(detector, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("skclip._backbones._device._missing_devices", set())
    X, y = known_rows()
    for method in (detector(device="cuda").fit, detector(device="cuda").partial_fit):
        with pytest.raises(ValueError, match="device='cuda' is not on this machine"):
            method(X, y)
    fitted = detector().fit(X, y)
    expected = fitted.score_samples(X)
    fitted.device = "cuda"
    with pytest.warns(MissingDeviceWarning, match="Running on the CPU"):
        np.testing.assert_array_equal(fitted.score_samples(X), expected)


@pytest.mark.parametrize("detector", DETECTORS)
def test_scores_and_thresholds_by_torch(detector, monkeypatch):
    X, y = known_rows()
    plain, used = detector().fit(X, y), []
    expected = plain.score_samples(X)
    there = _gaussian.distances_on
    monkeypatch.setattr(_device, "resolve", lambda device: torch.device("cpu"))
    monkeypatch.setattr(_gaussian, "distances_on", lambda *args: used.append(1) or there(*args))
    fitted = detector().fit(X, y)
    assert used == [1]
    assert fitted.offset_ == pytest.approx(plain.offset_, rel=1e-9)
    np.testing.assert_allclose(fitted.score_samples(X), expected, rtol=1e-9)
    assert used == [1, 1]


@pytest.mark.parametrize("detector", DETECTORS)
@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"covariance": "full"}, "'covariance' parameter"),
        ({"device": 0}, "'device' parameter"),
        ({"contamination": 0.6}, "'contamination' parameter"),
    ],
)
def test_parameters_are_checked(detector, params, message):
    with pytest.raises(ValueError, match=message):
        detector(**params).fit(*known_rows())


@pytest.mark.parametrize("detector", DETECTORS)
def test_bad_rows(detector):
    X, y = known_rows()
    with pytest.raises(ValueError, match=r"X\[3, 1\]"):
        detector().fit(np.where(np.arange(1600).reshape(200, 8) == 25, np.nan, X), y)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        detector().fit(X, y[:-1])
    with pytest.raises(ValueError, match="Every row of class 'a' is all zeros"):
        detector().fit(np.where((y == "a")[:, None], 0.0, X), y)
    with pytest.raises(ValueError, match="7 features, but"):
        detector().fit(X, y).score_samples(X[:, :7])


@parametrize_with_checks(
    [
        MahalanobisDetector("ledoit_wolf"),
        MahalanobisDetector("pooled", device="auto"),
    ]
)
def test_scikit_learn_contract_of_variants(estimator, check):
    check(estimator)
