from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from scipy.special import logsumexp
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.adapters import GDAClassifier, LinearProbeClassifier
from skclip.metrics import get_scorer, ood_auroc
from skclip.ood import EnergyDetector, NNGuideDetector
from skclip.utils import SkclipWarning, get_logits
from skclip.utils._arrays import unit_rows
from skclip.utils.estimator_checks import NearestMeanClassifier

RNG = np.random.default_rng(0)
TEXT = unit_rows(RNG.normal(size=(4, 12)) + 1.0)
Y = np.repeat(np.arange(4), 20)
X = TEXT[Y] + 0.1 * RNG.normal(size=(80, 12))
X_NEW = TEXT.mean(axis=0) + 0.3 * RNG.normal(size=(60, 12))
VIEWS = X[:, None] + 0.05 * RNG.normal(size=(80, 3, 12))

HEADS = [
    LogisticRegression(C=100.0),
    LinearProbeClassifier(),
    FrozenEstimator(LogisticRegression(C=100.0).fit(X, Y)),
    TEXT,
]


class Given(ClassifierMixin, BaseEstimator):
    """Gives every row the logits [level, level]."""

    def __init__(self, level=0.0):
        self.level = level

    def fit(self, X, y=None):
        self.classes_ = np.arange(2)
        return self

    def logits(self, X):
        return np.full((len(X), 2), self.level)

    def predict(self, X):
        return np.zeros(len(X), dtype=int)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags


@pytest.mark.filterwarnings("ignore:.* have energies that are not positive")
@parametrize_with_checks([NNGuideDetector(NearestMeanClassifier(), n_neighbors=2, backend="faiss")])
def test_scikit_learn_contract(estimator, check):
    pytest.importorskip("faiss")
    check(estimator)


def written_out(classifier, bank, new, k):
    """Equations (3) to (5) of the paper: all products, sorted."""

    def energy(rows):
        return logsumexp(get_logits(classifier, rows), axis=1)

    products = energy(bank) * (unit_rows(new) @ unit_rows(bank).T)
    return energy(new) * np.sort(products, axis=1)[:, -k:].mean(axis=1)


@pytest.mark.parametrize("k", [1, 10, 80])
@pytest.mark.parametrize("head", HEADS, ids=lambda head: type(head).__name__)
def test_the_paper_written_out(head, k):
    detector = NNGuideDetector(head, n_neighbors=k).fit(X, Y)
    expected = written_out(detector.classifier_, X, X_NEW, k)
    np.testing.assert_allclose(detector.score_samples(X_NEW), expected, rtol=1e-9)


@pytest.mark.parametrize("k", [1, 10])
def test_equals_pytorch_ood(pytorch_ood, k):
    import torch

    head = torch.nn.Linear(12, 4)
    classifier = LogisticRegression(C=100.0).fit(X, Y)
    head.weight.data, head.bias.data = (
        torch.tensor(classifier.coef_).float(),
        torch.tensor(classifier.intercept_).float(),
    )
    theirs = pytorch_ood.NNGuide(None, head, k=k).fit_features(torch.tensor(X), torch.tensor(Y))
    outlierness = theirs.predict_features(torch.tensor(X_NEW).float()).numpy()
    scores = NNGuideDetector(FrozenEstimator(classifier), n_neighbors=k).fit(X).score_samples(X_NEW)
    np.testing.assert_allclose(scores, -outlierness, rtol=1e-5)


def test_equal_energies_leave_the_cosines():
    detector = NNGuideDetector(Given(2.0), n_neighbors=3).fit(X)
    energy = 2.0 + np.log(2.0)
    np.testing.assert_allclose(detector.energies_, energy)
    cosines = np.sort(unit_rows(X_NEW) @ unit_rows(X).T, axis=1)[:, -3:].mean(axis=1)
    np.testing.assert_allclose(detector.score_samples(X_NEW), energy**2 * cosines, rtol=1e-12)


def test_a_bank_of_copies_of_one_picture_scores_it_by_its_squared_energy():
    detector = NNGuideDetector(TEXT, n_neighbors=5).fit(np.repeat(X[:1], 5, axis=0))
    energy = EnergyDetector(TEXT).fit(X).score_samples(X[:1])
    np.testing.assert_allclose(detector.score_samples(X[:1]), energy**2, rtol=1e-12)


def test_rotations_and_permutations_change_nothing():
    rotation = np.linalg.qr(RNG.normal(size=(12, 12)))[0]
    scores = NNGuideDetector(TEXT).fit(X).score_samples(X_NEW)
    rotated = NNGuideDetector(TEXT @ rotation).fit(X @ rotation).score_samples(X_NEW @ rotation)
    np.testing.assert_allclose(rotated, scores, rtol=1e-6)  # prototypes are float32
    order = RNG.permutation(len(X))
    again = NNGuideDetector(TEXT[::-1]).fit(X[order]).score_samples(X_NEW)
    np.testing.assert_allclose(again, scores, rtol=1e-6)


def test_the_classifier_gets_what_fit_is_given():
    names = [f"f{i}" for i in range(12)]
    frame, new = pd.DataFrame(5.0 * X, columns=names), pd.DataFrame(5.0 * X_NEW, columns=names)
    detector = NNGuideDetector(LogisticRegression()).fit(frame, Y)
    assert detector.classifier_.feature_names_in_.tolist() == names
    expected = written_out(LogisticRegression().fit(5.0 * X, Y), 5.0 * X, 5.0 * X_NEW, 10)
    np.testing.assert_allclose(detector.score_samples(new), expected, rtol=1e-9)
    np.testing.assert_array_equal(detector.predict_class(new), detector.classifier_.predict(new))


@pytest.mark.parametrize("head", [GDAClassifier(), TEXT], ids=["GDA", "array"])
def test_every_view_guides_with_an_energy_of_its_own(head):
    detector = NNGuideDetector(head, n_neighbors=4).fit(VIEWS, Y)
    assert detector.energies_.shape == (240,)
    expected = written_out(detector.classifier_, VIEWS.reshape(240, 12), VIEWS[:, 0], 4)
    np.testing.assert_allclose(detector.score_samples(VIEWS), expected, rtol=1e-9)


# the threshold


@pytest.mark.parametrize("X", [X, VIEWS], ids=["rows", "views"])
def test_cv_of_a_fixed_classifier_leaves_each_picture_out(X):
    detector = NNGuideDetector(TEXT, n_neighbors=2, contamination=0.2, calibration="cv").fit(X)
    plain = NNGuideDetector(TEXT, n_neighbors=2)
    alone = [plain.fit(np.delete(X, i, axis=0)).score_samples(X[i : i + 1])[0] for i in range(len(X))]
    assert detector.offset_ == pytest.approx(np.percentile(alone, 20.0))
    assert detector.offset_ < plain.set_params(contamination=0.2).fit(X).offset_


def test_cv_of_another_fits_it_without_each_fold():
    heads = LogisticRegression(C=1e4), FrozenEstimator(LogisticRegression(C=1e4).fit(X[:, :6], Y))
    fitted, frozen = (NNGuideDetector(head, calibration="cv").fit(X[:, :6], Y) for head in heads)
    in_sample = NNGuideDetector(heads[0]).fit(X[:, :6], Y)
    np.testing.assert_allclose(fitted.score_samples(X[:, :6]), in_sample.score_samples(X[:, :6]))
    assert len({fitted.offset_, frozen.offset_, in_sample.offset_}) == 3


def test_in_sample_refuses_that_share_of_the_training_pictures():
    detector = NNGuideDetector(LogisticRegression(C=100.0), contamination=0.1).fit(X, Y)
    assert np.sum(detector.predict(X) == -1) == 8


# growing


@pytest.mark.parametrize("calibration", ["in_sample", "cv", X_NEW], ids=["in_sample", "cv", "given"])
@pytest.mark.parametrize("X", [X, VIEWS, X.astype(np.float32)], ids=["rows", "views", "float32"])
@pytest.mark.parametrize("head", [TEXT, FrozenEstimator(LinearProbeClassifier().fit(X, Y))], ids=["array", "frozen"])
def test_chunks_add_up(head, X, calibration):
    detector = NNGuideDetector(head, n_neighbors=5, calibration=calibration)
    whole = clone(detector).fit(X)
    for part in (slice(0, 50), slice(50, 51), slice(51, None)):
        detector.partial_fit(X[part])
    np.testing.assert_array_equal(detector.pictures_, whole.pictures_)
    assert detector.bank_.dtype == X.dtype
    for name in ("bank_", "energies_", "offset_"):
        np.testing.assert_allclose(getattr(detector, name), getattr(whole, name), rtol=1e-5)
    np.testing.assert_allclose(detector.score_samples(X_NEW), whole.score_samples(X_NEW), rtol=1e-5)


@pytest.mark.parametrize("head", [None, LogisticRegression()])
def test_a_classifier_that_learns_cannot_be_continued(head):
    with pytest.raises(AttributeError, match="partial_fit") as caught:
        NNGuideDetector(head).partial_fit(X, Y)
    assert "FrozenEstimator" in str(caught.value.__cause__)


def test_a_chunk_that_does_not_fit_changes_nothing():
    detector = NNGuideDetector(TEXT).fit(X)
    with pytest.raises(ValueError, match="features"):
        detector.partial_fit(X[:, :4])
    with pytest.raises(ValueError, match="inconsistent"):
        detector.partial_fit(X, [0, 1])
    np.testing.assert_array_equal(detector.score_samples(X_NEW), NNGuideDetector(TEXT).fit(X).score_samples(X_NEW))


# errors and warnings


def test_fewer_rows_than_neighbours():
    with pytest.raises(ValueError, match=r"n_neighbors=10, but there are 9 rows to search \(n_samples = 9\)"):
        NNGuideDetector(TEXT).fit(X[:9])


def test_labels_are_needed_to_fit_the_classifier():
    with pytest.raises(ValueError, match="NNGuideDetector needs y"):
        NNGuideDetector().fit(X)


def test_a_classifier_without_logits():
    with pytest.raises(TypeError, match="GaussianNB offers probabilities only"):
        NNGuideDetector(GaussianNB()).fit(X, Y)


@pytest.mark.parametrize("level", [np.nan, np.inf])
def test_logits_that_are_not_finite(level):
    with pytest.raises(ValueError, match=r"The logits of Given have energy (nan|inf) for row 0"):
        NNGuideDetector(Given(level)).fit(X)


def test_energies_that_are_not_positive():
    with pytest.warns(SkclipWarning, match="80 of 80 training rows have energies that are not positive") as caught:
        NNGuideDetector(Given(-2.0)).fit(X)
    assert caught[0].filename == __file__
    frozen = NNGuideDetector(FrozenEstimator(Given(2.0).fit(X))).fit(X)
    frozen.classifier_.estimator.level = -2.0
    with pytest.warns(SkclipWarning, match="80 of 80 training rows") as caught:
        frozen.partial_fit(X)
    assert caught[0].filename == __file__
    with pytest.warns(SkclipWarning, match="not positive"):
        detector = NNGuideDetector(Given(-np.log(2.0))).fit(X)
    np.testing.assert_allclose(detector.score_samples(X_NEW), 0.0, atol=1e-15)


def test_scorer_of_a_search():
    scorer = get_scorer("ood_auroc", X_out=X_NEW)
    detector = NNGuideDetector(TEXT).fit(X)
    expected = ood_auroc(detector.score_samples(X), detector.score_samples(X_NEW))
    assert scorer(detector, X, Y) == pytest.approx(expected)


# worlds


def mean_auroc(world_of, make):
    found = []
    for seed in range(5):
        world = world_of(seed)
        detector = make(world).fit(world.X)
        found.append(ood_auroc(detector.score_samples(world.X_in), detector.score_samples(world.X_out)))
    return np.mean(found)


@pytest.mark.filterwarnings("ignore:.* have energies that are not positive")  # one picture of the cluster worlds
def test_worlds(anisotropic, isotropic, cluster_means, clusters):
    def guided(world):
        return NNGuideDetector(world.text)

    assert 0.48 < mean_auroc(anisotropic, guided) < 0.65
    assert mean_auroc(isotropic, guided) > 0.85
    # between cosines and logits, and the logits fail
    assert mean_auroc(cluster_means, lambda world: EnergyDetector(world.text)) < 0.05
    assert mean_auroc(cluster_means, guided) < 0.3
    # neighbours help where clusters are what logits do not see
    assert mean_auroc(clusters, guided) > mean_auroc(clusters, lambda world: EnergyDetector(world.text)) + 0.02


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:Classes .* have the same prototype")
def test_flowers_against_imagenet(real_features):
    imagenet, flowers = real_features("imagenet"), real_features("oxford_flowers")
    detector = NNGuideDetector(imagenet["text"]).fit(imagenet["X_train_4"])
    assert detector.energies_.min() > 10.0
    known, unknown = (detector.score_samples(rows) for rows in (imagenet["X_train_2"], flowers["X_train_16"]))
    # the energy alone reaches 0.891: pictures of flowers find similar ones among four of a class
    assert ood_auroc(known, unknown) == pytest.approx(0.712, abs=0.003)


@pytest.mark.filterwarnings("ignore:.* have energies that are not positive")
def test_chunks_add_up_where_energies_are_negative():
    prototypes = TEXT[:2] - TEXT.mean(axis=0)
    frozen = NNGuideDetector(prototypes, contamination=0.1)
    whole = clone(frozen).fit(X)
    assert 10 < np.sum(whole.energies_ < 0.0) < 70
    grown = clone(frozen).partial_fit(X[:50]).partial_fit(X[50:])
    assert grown.offset_ == pytest.approx(whole.offset_, rel=1e-9)
    # each without itself, as those that were never in the bank
    held_out = [clone(frozen).fit(np.delete(X, i, axis=0)).score_samples(X[[i]])[0] for i in range(len(X))]
    offset = clone(frozen).set_params(calibration="cv").fit(X).offset_
    assert offset == pytest.approx(np.percentile(held_out, 10), rel=1e-9)
