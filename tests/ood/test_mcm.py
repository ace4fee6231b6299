from __future__ import annotations

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from scipy.stats import spearmanr
from sklearn.base import clone

from skclip.datasets import make_picture_world
from skclip.features import CLIPFeatures
from skclip.metrics import ood_auroc
from skclip.ood import MCMDetector, MSPDetector
from skclip.utils._arrays import unit_rows
from skclip.zero_shot import ZeroShotClassifier

SEEDS = range(5)


@pytest.fixture
def data():
    rng = np.random.default_rng(0)
    return rng.normal(size=(50, 16)), rng.normal(size=(7, 16))


def auroc(detector, world):
    return ood_auroc(detector.score_samples(world.X_in), detector.score_samples(world.X_out))


@pytest.mark.parametrize("temperature", [1.0, 0.01, 0.3])
def test_is_the_formula_of_the_paper(data, temperature):
    X, text = data
    expected = []
    for x in X:
        cosines = [x @ t / np.sqrt((x @ x) * (t @ t)) for t in text]
        shares = np.exp(np.array(cosines) / temperature)
        expected.append(max(shares / sum(shares)))
    assert_allclose(MCMDetector(text, temperature=temperature).fit().score_samples(X), expected, atol=1e-6)


def test_at_a_hundredth_it_is_the_confidence_of_the_zero_shot_classifier(data):
    X, text = data
    confidence = MSPDetector(text).fit(X).score_samples(X)
    assert_allclose(MCMDetector(text, temperature=0.01).fit().score_samples(X), confidence, atol=1e-7)
    assert np.abs(MCMDetector(text).fit().score_samples(X) - confidence).max() > 0.3


def test_of_a_model_it_is_the_largest_probability_and_keeps_no_backbone():
    names = {"r": "red circle", "b": "blue square", "g": "green star"}
    zero_shot = ZeroShotClassifier("skclip-tiny", class_names=names, templates="a {}")
    X = CLIPFeatures("skclip-tiny").transform(make_picture_world(30).images)
    probabilities = clone(zero_shot).fit().predict_proba(X)
    scale = clone(zero_shot).fit().logit_scale_
    detector = MCMDetector(zero_shot, temperature=1 / scale).fit(X)
    assert_allclose(detector.score_samples(X), probabilities.max(axis=1), atol=1e-5)
    assert_array_equal(detector.predict_class(X), np.array(["b", "g", "r"])[probabilities.argmax(axis=1)])
    assert len(pickle.dumps(detector)) < detector.prototypes_.nbytes + 10_000


def test_hot_it_ranks_by_how_far_the_best_class_stands_above_the_mean(data):
    X, text = data
    cosines = unit_rows(X) @ unit_rows(text).T
    above = cosines.max(axis=1) - cosines.mean(axis=1)
    hot = MCMDetector(text, temperature=1e4).fit().score_samples(X)
    assert_array_equal(np.argsort(hot), np.argsort(above))
    assert_allclose(1e4 * (7 * hot - 1), above, rtol=1e-3)
    cold = MCMDetector(text, temperature=0.01).fit().score_samples(X)
    assert spearmanr(cold, above)[0] < 0.95


def test_bounds(data):
    X, text = data
    assert_array_equal(MCMDetector(text[:1]).fit().score_samples(X), 1.0)
    assert_allclose(MCMDetector(np.eye(16)).fit().score_samples(np.ones((1, 16))), 1 / 16)
    scores = MCMDetector(text).fit().score_samples(X)
    assert scores.min() > 1 / 7
    assert scores.max() < 1


def test_equals_pytorch_ood(data):
    from skclip._backbones._open_clip import import_open_clip

    import_open_clip()
    theirs = pytest.importorskip("pytorch_ood.detector")
    torch = pytest.importorskip("torch")
    X, text = data
    for temperature in (1.0, 0.1):
        reference = theirs.MCM(None, torch.from_numpy(text), temperature=temperature)
        outlierness = reference.predict_features(torch.from_numpy(X)).numpy()
        scores = MCMDetector(text, temperature=temperature).fit().score_samples(X)
        assert_allclose(scores, -outlierness, atol=1e-5)


@pytest.mark.parametrize("seed", SEEDS)
def test_beats_the_confidence_in_both_noise_worlds(anisotropic, isotropic, seed):
    for world, chance in ((anisotropic(seed), 0.55), (isotropic(seed), 0.75)):
        ours = auroc(MCMDetector(world.text).fit(), world)
        confidence = auroc(MSPDetector(world.text).fit(world.X), world)
        assert ours > confidence + 0.02
        assert ours > chance


def test_mean_margins_over_seeds(anisotropic, isotropic):
    for make, margin in ((anisotropic, 0.035), (isotropic, 0.04)):
        worlds = [make(seed) for seed in SEEDS]
        ours = np.mean([auroc(MCMDetector(world.text).fit(), world) for world in worlds])
        confidence = np.mean([auroc(MSPDetector(world.text).fit(world.X), world) for world in worlds])
        assert ours > confidence + margin


@pytest.mark.parametrize("seed", SEEDS)
def test_fails_where_the_unknown_lie_at_the_class_means(cluster_means, seed):
    world = cluster_means(seed)
    assert auroc(MCMDetector(world.text).fit(), world) < 0.02


@pytest.mark.realdata
@pytest.mark.filterwarnings("ignore:.*have the same prototype:skclip.utils.SkclipWarning")  # two pairs of names
def test_imagenet_against_flowers(real_features):
    imagenet, flowers = real_features("imagenet"), real_features("oxford_flowers")
    detector = MCMDetector(imagenet["text"]).fit()
    known, unknown = (detector.score_samples(X) for X in (imagenet["X_train_2"], flowers["X_train_16"]))
    assert ood_auroc(known, unknown) == pytest.approx(0.884, abs=0.003)
