from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.metrics import ood_auroc
from skclip.ood import EnergyDetector, KNNDetector, MCMDetector, MSPDetector

RNG = np.random.default_rng(0)
X = RNG.normal(size=(120, 10)) + 1.0
X_NEW = RNG.normal(size=(50, 10)) + 1.0
VIEWS = X[:, None] + 0.3 * RNG.normal(size=(120, 3, 10))


def expected_failures(estimator):
    reason = "the threshold keeps a share of pictures that are not in the bank"
    checks = ("check_outliers_fit_predict", "check_outliers_train")
    return dict.fromkeys(checks, reason) if estimator.calibration == "cv" else {}


@parametrize_with_checks(
    [KNNDetector(3, calibration="cv"), KNNDetector(2, backend="faiss"), KNNDetector(2, device="auto")],
    expected_failed_checks=expected_failures,
)
def test_scikit_learn_contract(estimator, check):
    if estimator.backend == "faiss":
        pytest.importorskip("faiss")
    check(estimator)


def written_out(bank, new, k):
    """Equation of section 3.1 of the paper, squared: all distances, sorted."""
    bank, new = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (bank, new))
    squared = np.square(new[:, None, :] - bank[None, :, :]).sum(axis=2)
    return -np.sort(squared, axis=1)[:, k - 1]


@pytest.mark.parametrize("k", [1, 7, 120])
def test_the_paper_written_out(k):
    detector = KNNDetector(k).fit(X)
    np.testing.assert_allclose(detector.score_samples(X_NEW), written_out(X, X_NEW, k), rtol=1e-10)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_training_row_is_its_own_nearest(dtype):
    scores = KNNDetector(1).fit(X.astype(dtype)).score_samples(X.astype(dtype))
    np.testing.assert_allclose(scores, 0.0, atol=4 * np.finfo(dtype).eps)
    assert scores.max() <= 0.0


def test_scores_lie_between_opposite_and_equal():
    detector = KNNDetector(1).fit(X[:1])
    np.testing.assert_allclose(detector.score_samples([X[0], -X[0]]), [0.0, -4.0], atol=1e-12)


def test_rotations_and_permutations_change_nothing():
    rotation = np.linalg.qr(RNG.normal(size=(10, 10)))[0]
    scores = KNNDetector(5).fit(X).score_samples(X_NEW)
    rotated = KNNDetector(5).fit(X @ rotation).score_samples(X_NEW @ rotation)
    np.testing.assert_allclose(rotated, scores, rtol=1e-9)
    order = RNG.permutation(len(X))
    np.testing.assert_allclose(KNNDetector(5).fit(X[order]).score_samples(X_NEW), scores, rtol=1e-12)


def test_more_neighbours_never_raise_a_score():
    scores = [KNNDetector(k).fit(X).score_samples(X_NEW) for k in (1, 5, 50)]
    assert (np.diff(scores, axis=0) < 0.0).all()


def test_labels_change_nothing():
    plain = KNNDetector(5).fit(X)
    detector = KNNDetector(5).fit(X, np.arange(120) % 3)
    np.testing.assert_array_equal(detector.score_samples(X_NEW), plain.score_samples(X_NEW))
    assert detector.offset_ == plain.offset_
    assert detector.classes_.tolist() == [0, 1, 2]
    assert plain.classes_ is None


def test_every_view_is_in_the_bank_and_the_first_is_scored():
    detector = KNNDetector(4).fit(VIEWS)
    np.testing.assert_array_equal(detector.pictures_, np.repeat(np.arange(120), 3))
    bank = VIEWS.reshape(360, 10)
    np.testing.assert_allclose(detector.score_samples(VIEWS), written_out(bank, VIEWS[:, 0], 4), atol=1e-12)


# the threshold


def without(X, i):
    return np.delete(X, i, axis=0)


@pytest.mark.parametrize("X", [X, VIEWS], ids=["rows", "views"])
@pytest.mark.parametrize("k", [1, 6, 119])
def test_cv_leaves_each_picture_out(X, k):
    detector = KNNDetector(k, contamination=0.2, calibration="cv").fit(X)
    alone = [KNNDetector(k).fit(without(X, i)).score_samples(X[i : i + 1])[0] for i in range(len(X))]
    assert detector.offset_ == pytest.approx(np.percentile(alone, 20.0))


def test_cv_among_copies_leaves_out_one():
    copies = np.repeat(X[:20], 4, axis=0)
    assert KNNDetector(3, calibration="cv").fit(copies).offset_ == pytest.approx(0.0, abs=1e-12)
    assert KNNDetector(4, contamination=0.5, calibration="cv").fit(copies).offset_ < -0.01


@pytest.mark.parametrize("seed", range(3))
def test_with_one_neighbour_only_cv_keeps_new_pictures(isotropic, seed):
    world = isotropic(seed)
    kept = {
        calibration: np.mean(
            KNNDetector(1, contamination=0.1, calibration=calibration).fit(world.X).predict(world.X_in)
        )
        for calibration in ("in_sample", "cv")
    }
    assert kept["in_sample"] == -1.0
    assert 0.5 * (1.0 + kept["cv"]) == pytest.approx(0.9, abs=0.05)


@pytest.mark.parametrize("contamination", [0.01, 0.05, 0.3])
@pytest.mark.parametrize("n_neighbors", [2, 50])
def test_in_sample_refuses_that_share_of_the_training_pictures(contamination, n_neighbors):
    many = RNG.normal(size=(1000, 10)).astype(np.float32)
    detector = KNNDetector(n_neighbors, contamination=contamination).fit(many)
    assert np.sum(detector.predict(many) == -1) == 1000 * contamination


# growing


@pytest.mark.parametrize("calibration", ["in_sample", "cv", X_NEW], ids=["in_sample", "cv", "given"])
@pytest.mark.parametrize("X", [X, VIEWS, X.astype(np.float32)], ids=["rows", "views", "float32"])
def test_chunks_add_up(X, calibration):
    detector = KNNDetector(5, calibration=calibration)
    whole = clone(detector).fit(X, np.arange(120) % 3)
    for part in (slice(0, 50), slice(50, 51), slice(51, None)):
        detector.partial_fit(X[part], np.arange(120)[part] % 3)
    for name in ("bank_", "pictures_", "classes_"):
        np.testing.assert_array_equal(getattr(detector, name), getattr(whole, name))
    assert detector.bank_.dtype == X.dtype
    np.testing.assert_allclose(detector.score_samples(X_NEW), whole.score_samples(X_NEW), rtol=1e-6)
    assert detector.offset_ == pytest.approx(whole.offset_, rel=1e-6)


def test_a_chunk_that_does_not_fit_changes_nothing():
    detector = KNNDetector(5).fit(X)
    with pytest.raises(ValueError, match="features"):
        detector.partial_fit(X[:, :4])
    with pytest.raises(ValueError, match="inconsistent"):
        detector.partial_fit(X, [0, 1])
    with pytest.raises(ValueError, match="zeros"):
        detector.partial_fit(np.zeros((2, 10)))
    np.testing.assert_array_equal(detector.score_samples(X_NEW), KNNDetector(5).fit(X).score_samples(X_NEW))


def test_labels_of_chunks_join_as_they_are():
    detector = KNNDetector(5).partial_fit(X[:60], np.arange(60) % 2)
    assert detector.partial_fit(X[60:90], np.full(30, -1)).classes_.tolist() == [-1, 0, 1]
    with pytest.raises(TypeError, match=r"mixed type: classes_\[0\] is -1 \(number\) but classes_\[3\] is 'cat'"):
        detector.partial_fit(X[90:], ["cat"] * 30)
    assert detector.classes_.tolist() == [-1, 0, 1]
    assert len(detector.bank_) == 90


# errors


@pytest.mark.parametrize(
    ("k", "n", "calibration", "message"),
    [
        (50, 20, "in_sample", r"n_neighbors=50, but there are 20 rows to search \(n_samples = 20\)"),
        (20, 20, "cv", r"n_neighbors=20, but there are 19 rows of other pictures"),
    ],
)
def test_fewer_rows_than_neighbours(k, n, calibration, message):
    with pytest.raises(ValueError, match=message):
        KNNDetector(k, calibration=calibration).fit(X[:n])
    with pytest.raises(ValueError, match="n_neighbors"):
        KNNDetector(k, calibration=calibration).partial_fit(X[:n])
    assert KNNDetector(k - 1 - (k > n) * (k - n), calibration=calibration).fit(X[:n]).offset_ < 0.0


@pytest.mark.parametrize("backend", ["exact", "faiss"])
def test_more_neighbours_than_the_bank_has(backend):
    if backend == "faiss":
        pytest.importorskip("faiss")
    detector = KNNDetector(5, backend=backend).fit(X).set_params(n_neighbors=121)
    with pytest.raises(ValueError, match="n_neighbors=121, changed since fit, but the bank has 120 rows"):
        detector.score_samples(X_NEW)


def test_rows_without_direction():
    with pytest.raises(ValueError, match="all zeros"):
        KNNDetector(1).fit(np.zeros((3, 4)))
    assert KNNDetector(1).fit(X).score_samples(np.zeros((1, 10))) == pytest.approx(-2.0)


@pytest.mark.parametrize("parameters", [{"n_neighbors": 0}, {"n_neighbors": 1.5}, {"backend": "annoy"}, {"device": 3}])
def test_parameters_out_of_range(parameters):
    with pytest.raises(ValueError, match=f"The {next(iter(parameters))!r} parameter of KNNDetector"):
        KNNDetector(**parameters).fit(X)


# worlds


def test_shared_noise_drowns_it(anisotropic):
    for seed in range(5):
        world = anisotropic(seed)
        detector = KNNDetector(5).fit(world.X)
        assert 0.45 < ood_auroc(detector.score_samples(world.X_in), detector.score_samples(world.X_out)) < 0.65


def test_plain_noise_does_not(isotropic):
    found = []
    for seed in range(5):
        world = isotropic(seed)
        detector = KNNDetector(5).fit(world.X)
        found.append(ood_auroc(detector.score_samples(world.X_in), detector.score_samples(world.X_out)))
        assert found[-1] > 0.75
    assert np.mean(found) > 0.85


def test_it_succeeds_where_logits_fail(cluster_means):
    for seed in range(5):
        world = cluster_means(seed)

        def auroc(detector, world=world):
            return ood_auroc(detector.score_samples(world.X_in), detector.score_samples(world.X_out))

        assert auroc(KNNDetector(5).fit(world.X)) > 0.9
        for cls in (MSPDetector, EnergyDetector, MCMDetector):
            assert auroc(cls(world.text).fit(world.X)) < 0.25


# others


@pytest.mark.parametrize("k", [1, 5, 50])
def test_pytorch_ood_gives_the_distance_we_its_square(pytorch_ood, k):
    import torch

    theirs = pytorch_ood.KNN(None, k=k).fit_features(torch.tensor(X), torch.zeros(len(X)))
    distances = theirs.predict_features(torch.tensor(X_NEW)).numpy()
    np.testing.assert_allclose(KNNDetector(k).fit(X).score_samples(X_NEW), -np.square(distances), rtol=1e-5)


def test_pytorch_ood_without_normalisation_ranks_by_length_too(pytorch_ood):
    import torch

    theirs = pytorch_ood.KNN(None, k=5, normalize=False).fit_features(torch.tensor(X), torch.zeros(len(X)))
    longer = theirs.predict_features(torch.tensor(5.0 * X_NEW)).numpy()
    assert (longer > theirs.predict_features(torch.tensor(X_NEW)).numpy()).all()
    detector = KNNDetector(5).fit(X)
    np.testing.assert_allclose(detector.score_samples(5.0 * X_NEW), detector.score_samples(X_NEW), rtol=1e-12)


@pytest.mark.realdata
def test_flowers_against_imagenet(real_features):
    imagenet, flowers = real_features("imagenet"), real_features("oxford_flowers")
    detector = KNNDetector(50).fit(imagenet["X_train_4"])
    known, unknown = (detector.score_samples(rows) for rows in (imagenet["X_train_2"], flowers["X_train_16"]))
    assert ood_auroc(known, unknown) == pytest.approx(0.511, abs=0.003)


# memory


@pytest.mark.parametrize("calibration", ["in_sample", "cv"])
def test_memory_stays_within_its_limit(calibration):
    many = np.random.default_rng(0).normal(size=(6000, 8)).astype(np.float32)
    with config_context(working_memory=4):
        tracemalloc.start()
        try:
            KNNDetector(10, calibration=calibration).fit(many).score_samples(many)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert peak < 6 * 2**20  # the matrix of similarities: 137 MiB
