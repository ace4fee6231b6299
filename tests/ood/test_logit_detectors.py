"""Detectors that read logits alone."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, rel_entr, softmax
from scipy.stats import entropy
from sklearn.base import BaseEstimator, ClassifierMixin, clone
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline

from skclip.datasets import make_picture_world
from skclip.features import CLIPFeatures
from skclip.metrics import ood_auroc
from skclip.ood import (
    EnergyDetector,
    EntropyDetector,
    GENDetector,
    GradNormDetector,
    KLMatchingDetector,
    MaxLogitDetector,
    MSPDetector,
)
from skclip.utils import get_logits
from skclip.utils._arrays import unit_rows
from skclip.zero_shot import CLIPClassifier, ZeroShotClassifier

RNG = np.random.default_rng(0)
TEXT = unit_rows(RNG.normal(size=(6, 16)))
Y = np.repeat(np.arange(6), 10)
X = TEXT[Y] + 0.3 * RNG.normal(size=(60, 16))
X_NEW = RNG.normal(size=(80, 16))

RELATIVE = [MSPDetector, EntropyDetector, GENDetector, KLMatchingDetector]
ABSOLUTE = [MaxLogitDetector, EnergyDetector]


class Given(ClassifierMixin, BaseEstimator):
    """Takes its rows for logits."""

    def fit(self, X, y=None):
        self.classes_ = np.arange(np.shape(X)[1])
        return self

    def logits(self, X):
        return np.asarray(X)

    def predict(self, X):
        return np.argmax(X, axis=1)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags


def scores_of(cls, fitted_on, asked, **parameters):
    """Scores of the logits `asked`."""
    return cls(Given(), **parameters).fit(fitted_on).score_samples(asked)


LOGITS = 2.0 * RNG.normal(size=(200, 8))
LOGITS_NEW = 2.0 * RNG.normal(size=(100, 8))


# identities


def test_msp_of_cosines_is_the_confidence_of_zero_shot():
    cosines = ZeroShotClassifier(prototypes=TEXT, logit_scale=1.0)
    confidence = ZeroShotClassifier(prototypes=TEXT, logit_scale=100.0).fit().predict_proba(X_NEW).max(axis=1)
    detector = MSPDetector(cosines, temperature=0.01).fit(X)
    np.testing.assert_allclose(detector.score_samples(X_NEW), confidence, rtol=1e-9)
    np.testing.assert_allclose(MSPDetector(TEXT).fit(X).score_samples(X_NEW), confidence, rtol=1e-9)


@pytest.mark.parametrize("temperature", [0.1, 1.0, 10.0])
def test_energy_is_a_soft_maximum(temperature):
    energy = scores_of(EnergyDetector, LOGITS, LOGITS_NEW, temperature=temperature)
    largest = scores_of(MaxLogitDetector, LOGITS, LOGITS_NEW)
    np.testing.assert_array_equal(largest, LOGITS_NEW.max(axis=1))
    assert (energy >= largest).all()
    assert (energy - largest <= temperature * np.log(8)).all()


def test_limits_of_the_temperature():
    cold = scores_of(EnergyDetector, LOGITS, LOGITS_NEW, temperature=1e-4)
    np.testing.assert_allclose(cold, LOGITS_NEW.max(axis=1), atol=1e-3)
    hot = scores_of(EnergyDetector, LOGITS, LOGITS_NEW, temperature=1e6) - 1e6 * np.log(8)
    np.testing.assert_allclose(hot, LOGITS_NEW.mean(axis=1), atol=1e-4)
    undecided = scores_of(MSPDetector, LOGITS, LOGITS_NEW, temperature=1e9)
    np.testing.assert_allclose(undecided, 1 / 8, atol=1e-8)


def test_gen_with_exponent_one_is_the_gini_index():
    p = softmax(LOGITS_NEW, axis=1)
    for n_largest in (8, 100):
        gini = scores_of(GENDetector, LOGITS, LOGITS_NEW, gamma=1.0, M=n_largest)
        np.testing.assert_allclose(gini, -(1.0 - np.square(p).sum(axis=1)))


def test_entropy_is_negative():
    expected = -entropy(softmax(LOGITS_NEW, axis=1), axis=1)
    np.testing.assert_allclose(scores_of(EntropyDetector, LOGITS, LOGITS_NEW), expected)


def test_templates_follow_predictions_and_not_labels():
    classifier = FrozenEstimator(LogisticRegression().fit(X, Y))
    misled = KLMatchingDetector(classifier).fit(X, np.roll(Y, 1))
    p = classifier.predict_proba(X)
    templates = np.stack([p[classifier.predict(X) == k].mean(axis=0) for k in range(6)])
    np.testing.assert_allclose(misled.templates_, templates)
    np.testing.assert_array_equal(KLMatchingDetector(classifier).fit(X).templates_, misled.templates_)
    new = classifier.predict_proba(X_NEW)
    expected = [-min(rel_entr(row, template).sum() for template in templates) for row in new]
    np.testing.assert_allclose(misled.score_samples(X_NEW), expected, atol=1e-12)


def test_a_class_that_is_never_predicted_is_matched_by_certainty():
    kept = LOGITS[LOGITS.argmax(axis=1) != 3]
    detector = KLMatchingDetector(Given()).fit(kept)
    np.testing.assert_array_equal(detector.templates_[3], np.eye(8)[3])
    certain = 40.0 * np.eye(8)[[3]]
    assert detector.score_samples(certain) == pytest.approx(0.0, abs=1e-9)
    assert np.isfinite(detector.score_samples(LOGITS_NEW)).all()


# invariances


@pytest.mark.parametrize("cls", RELATIVE)
def test_a_constant_added_to_all_logits_changes_nothing(cls):
    moved, moved_new = LOGITS + RNG.normal(size=(200, 1)), LOGITS_NEW + RNG.normal(size=(100, 1))
    np.testing.assert_allclose(
        scores_of(cls, moved, moved_new), scores_of(cls, LOGITS, LOGITS_NEW), rtol=1e-9, atol=1e-12
    )


@pytest.mark.parametrize("cls", ABSOLUTE)
def test_a_constant_added_to_all_logits_is_added_to_the_score(cls):
    np.testing.assert_allclose(scores_of(cls, LOGITS, LOGITS_NEW + 3.0), scores_of(cls, LOGITS, LOGITS_NEW) + 3.0)


@pytest.mark.parametrize("cls", RELATIVE + ABSOLUTE)
def test_permutations_and_rotations(cls):
    scores = cls(TEXT).fit(X).score_samples(X_NEW)
    order = RNG.permutation(60)
    np.testing.assert_allclose(cls(TEXT).fit(X[order]).score_samples(X_NEW), scores, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(cls(TEXT[::-1]).fit(X).score_samples(X_NEW), scores, rtol=1e-9, atol=1e-12)
    rotation = np.linalg.qr(RNG.normal(size=(16, 16)))[0]
    turned = cls(TEXT @ rotation).fit(X @ rotation).score_samples(X_NEW @ rotation)
    # prototypes are float32
    np.testing.assert_allclose(turned, scores, rtol=1e-4, atol=1e-4)


# classifiers


@pytest.mark.parametrize("cls", RELATIVE)
@pytest.mark.parametrize("classifier", [GaussianNB(), KNeighborsClassifier(7)], ids=str)
def test_probabilities_alone_will_do(cls, classifier):
    p = clone(classifier).fit(X, Y).predict_proba(X_NEW)
    scores = cls(classifier).fit(X, Y).score_samples(X_NEW)
    logits = np.log(np.maximum(p, np.finfo(np.float64).tiny))
    fitted_on = np.log(np.maximum(clone(classifier).fit(X, Y).predict_proba(X), np.finfo(np.float64).tiny))
    np.testing.assert_allclose(scores, scores_of(cls, fitted_on, logits))
    if cls is MSPDetector:
        np.testing.assert_allclose(scores, p.max(axis=1))


@pytest.mark.parametrize("cls", ABSOLUTE)
def test_probabilities_are_no_logits(cls):
    with pytest.raises(TypeError, match="GaussianNB offers probabilities only"):
        cls(GaussianNB()).fit(X, Y)


@pytest.mark.parametrize("cls", RELATIVE + ABSOLUTE)
def test_two_classes_have_two_logits(cls):
    pair = Y < 2
    classifier = LogisticRegression().fit(X[pair], Y[pair])
    s = classifier.decision_function(X_NEW)
    scores = cls(FrozenEstimator(classifier)).fit(X[pair]).score_samples(X_NEW)
    logits = np.column_stack([-s / 2, s / 2])
    np.testing.assert_allclose(scores, scores_of(cls, get_logits(classifier, X[pair]), logits))


@pytest.mark.parametrize("cls", RELATIVE + ABSOLUTE)
def test_a_class_that_is_impossible(cls):
    logits = LOGITS.copy()
    logits[:, 0] = -np.inf
    scores = scores_of(cls, logits, logits)
    if cls is not KLMatchingDetector:
        np.testing.assert_allclose(scores, scores_of(cls, logits[:, 1:], logits[:, 1:]))


def test_pictures_go_to_the_classifier_as_they_are(empty_stores):
    world = make_picture_world(24, shapes=["circle", "star"], colors=["red", "blue"], held_out="include")
    pictures, labels = list(world.images), world.target
    names = ZeroShotClassifier(class_names=world.target_names, templates="a photo of a {}")
    for classifier, y, calibration in [
        (CLIPClassifier("skclip-tiny", names), None, pictures[:5]),
        (make_pipeline(CLIPFeatures("skclip-tiny"), LogisticRegression()), labels, "cv"),
    ]:
        for cls in (MSPDetector, EnergyDetector, KLMatchingDetector):
            detector = cls(classifier, contamination=0.2, calibration=calibration).fit(pictures, y)
            assert detector.score_samples(pictures[:7]).shape == (7,)
            np.testing.assert_array_equal(detector.predict_class(pictures), detector.classifier_.predict(pictures))
            if cls is MSPDetector:
                confidence = detector.classifier_.predict_proba(pictures).max(axis=1)
                np.testing.assert_allclose(detector.score_samples(pictures), confidence, rtol=1e-5)
                assert np.mean(detector.predict_class(pictures) == labels) > 0.8


@pytest.mark.parametrize(
    ("cls", "bad"),
    [
        (MSPDetector, {"temperature": 0.0}),
        (EnergyDetector, {"temperature": -1.0}),
        (GENDetector, {"gamma": 0.0}),
        (GENDetector, {"M": 0}),
        (GENDetector, {"M": 2.5}),
    ],
)
def test_bad_parameters(cls, bad):
    name, value = next(iter(bad.items()))
    with pytest.raises(ValueError, match=rf"The '{name}' parameter of {cls.__name__} must be .* Got {value}"):
        cls(TEXT, **bad).fit(X)


# what others compute


@pytest.mark.parametrize("spread", [1.0, 3.0])
def test_equal_to_pytorch_ood(pytorch_ood, spread):
    import torch

    logits, new = spread * LOGITS, spread * LOGITS_NEW
    asked = torch.from_numpy(new)
    theirs = {
        "msp": pytorch_ood.MaxSoftmax.score(asked, 2.0),
        "max_logit": pytorch_ood.MaxLogit.score(asked),
        "energy": pytorch_ood.EnergyBased.score(asked, 2.0),
        "kl": pytorch_ood.KLMatching(None).fit_logits(torch.from_numpy(logits)).predict_logits(asked),
    }
    ours = {
        "msp": scores_of(MSPDetector, logits, new, temperature=2.0),
        "max_logit": scores_of(MaxLogitDetector, logits, new),
        "energy": scores_of(EnergyDetector, logits, new, temperature=2.0),
        "kl": scores_of(KLMatchingDetector, logits, new),
    }
    for name, scores in theirs.items():
        np.testing.assert_allclose(ours[name], -scores.numpy(), atol=1e-5, err_msg=name)


def test_equal_to_pytorch_ood_where_no_probability_is_tiny(pytorch_ood):
    import torch

    mild = np.clip(LOGITS_NEW, -4.0, 4.0)
    asked = torch.from_numpy(mild)
    np.testing.assert_allclose(scores_of(EntropyDetector, LOGITS, mild), -pytorch_ood.Entropy.score(asked), atol=1e-5)
    # it takes the mean of the terms, the paper their sum
    for gamma, n_largest in [(0.1, 8), (0.5, 3), (2.0, 5)]:
        theirs = n_largest * pytorch_ood.GEN.score(asked, gamma, n_largest)
        ours = scores_of(GENDetector, LOGITS, mild, gamma=gamma, M=n_largest)
        np.testing.assert_allclose(ours, -theirs.numpy(), atol=1e-5)


def test_pytorch_ood_rounds_up_tiny_probabilities(pytorch_ood):
    """It counts what is below 1e-7 as 1e-7, of which the tenth root is 0.2: many faint classes then are an entropy."""
    import torch

    peaked = np.zeros((1, 1000))
    peaked[:, 0] = 25.0
    p = softmax(peaked, axis=1)[0]
    written_out = -sum(value**0.1 * (1.0 - value) ** 0.1 for value in p)
    assert scores_of(GENDetector, peaked, peaked, M=1000)[0] == pytest.approx(written_out, rel=1e-5)
    theirs = 1000 * pytorch_ood.GEN.score(torch.from_numpy(peaked), 0.1).item()
    assert theirs > 2.0 * -written_out
    exact = -np.sum(p * log_softmax(peaked, axis=1)[0])
    assert -scores_of(EntropyDetector, peaked, peaked)[0] == pytest.approx(exact)
    assert pytorch_ood.Entropy.score(torch.from_numpy(peaked)).item() > 100.0 * exact


def test_pytorch_ood_knows_no_template_of_classes_never_predicted(pytorch_ood):
    """It compares with the classes alone that were predicted; a certain answer for another is its worst outlier."""
    import torch

    fitted_on = LOGITS[LOGITS.argmax(axis=1) != 3]
    certain = np.where(np.arange(8) == 3, 30.0, 0.0)[None]
    theirs = pytorch_ood.KLMatching(None).fit_logits(torch.from_numpy(fitted_on))
    assert theirs.predict_logits(torch.from_numpy(certain)).item() > 1.0
    assert scores_of(KLMatchingDetector, fitted_on, certain)[0] == pytest.approx(0.0, abs=1e-8)

    # the paper's code written out: a template for every class, the smallest divergence of all
    p_fit, p_new = softmax(fitted_on, axis=1), softmax(LOGITS_NEW, axis=1)
    predicted = p_fit.argmax(axis=1)
    templates = [p_fit[predicted == j].mean(axis=0) if (predicted == j).any() else np.eye(8)[j] for j in range(8)]
    divergences = [[np.sum(p * np.log(p / np.maximum(q, 1e-12))) for q in templates] for p in p_new]
    np.testing.assert_allclose(
        scores_of(KLMatchingDetector, fitted_on, LOGITS_NEW), -np.min(divergences, axis=1), atol=1e-12
    )


# worlds


def auroc(detector, world):
    detector.fit(world.X, world.y)
    return ood_auroc(detector.score_samples(world.X_in), detector.score_samples(world.X_out))


@pytest.mark.parametrize("seed", range(5))
def test_probabilities_beat_logits_under_shared_noise(anisotropic, seed):
    # what all classes share moves all logits, which the shares of classes do not see
    world = anisotropic(seed)
    of = {cls: auroc(cls(world.text), world) for cls in RELATIVE + ABSOLUTE}
    for relative in (MSPDetector, EntropyDetector, GENDetector):
        assert of[relative] > max(of[MaxLogitDetector], of[EnergyDetector]) + 0.05
    assert of[GENDetector] > of[MSPDetector] + 0.01
    assert 0.5 < of[EnergyDetector] <= of[MaxLogitDetector] + 0.01
    assert of[KLMatchingDetector] > 0.52


@pytest.mark.parametrize("seed", range(5))
def test_good_text_and_isotropic_noise(isotropic, seed):
    world = isotropic(seed)
    for cls in [*RELATIVE, *ABSOLUTE, GradNormDetector]:
        assert auroc(cls(world.text), world) > 0.7
    assert auroc(EntropyDetector(), world) > 0.95  # of a probe


@pytest.mark.parametrize("seed", range(5))
def test_unknown_pictures_at_class_means_pass(cluster_means, seed):
    world = cluster_means(seed)
    assert auroc(MSPDetector(world.text), world) < 0.2
    for cls in (EntropyDetector, GENDetector, MaxLogitDetector, EnergyDetector):
        assert auroc(cls(world.text), world) < 0.05


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:Classes 264 and 474 have the same prototype")
@pytest.mark.parametrize(
    ("cls", "expected"), [(MSPDetector, 0.810), (MaxLogitDetector, 0.899), (EnergyDetector, 0.891)]
)
def test_reference_figures(real_features, cls, expected):
    imagenet, flowers = real_features("imagenet"), real_features("oxford_flowers")
    detector = cls(imagenet["text"]).fit(imagenet["X_train_4"])
    scores = [detector.score_samples(rows) for rows in (imagenet["X_train_2"], flowers["X_train_16"])]
    assert ood_auroc(*scores) == pytest.approx(expected, abs=0.003)
