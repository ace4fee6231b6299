from __future__ import annotations

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.pipeline import make_pipeline

from skclip.datasets import make_picture_world
from skclip.features import DenseCLIPFeatures
from skclip.metrics import ood_auroc
from skclip.ood import GLMCMDetector, MCMDetector
from skclip.utils._arrays import unit_rows
from skclip.zero_shot import ZeroShotClassifier

K, T, D = 6, 5, 12
RNG = np.random.default_rng(0)
TEXT = unit_rows(RNG.normal(size=(K, D)))
TOKENS = RNG.normal(size=(30, T, D))
X = TOKENS.reshape(30, T * D)


@pytest.mark.parametrize(("temperature", "lambda_local"), [(1.0, 1.0), (0.01, 0.5), (2.0, 3.0)])
def test_is_the_formula_of_the_paper(temperature, lambda_local):
    expected = []
    for tokens in TOKENS:
        best = []
        for token in tokens:
            cosines = np.array([token @ t / np.linalg.norm(token) for t in TEXT])
            shares = np.exp(cosines / temperature)
            best.append(max(shares / sum(shares)))
        expected.append(best[0] + lambda_local * max(best[1:]))
    detector = GLMCMDetector(TEXT, temperature=temperature, lambda_local=lambda_local).fit()
    assert_allclose(detector.score_samples(X), expected, atol=1e-5)


def test_without_regions_it_is_mcm_of_the_whole():
    whole = MCMDetector(TEXT, temperature=0.3).fit(TOKENS[:, 0])
    detector = GLMCMDetector(TEXT, temperature=0.3, lambda_local=0.0).fit(X)
    assert_array_equal(detector.score_samples(X), whole.score_samples(TOKENS[:, 0]))
    assert detector.offset_ == whole.offset_
    alone = GLMCMDetector(TEXT, temperature=0.3, lambda_local=0.0).fit(TOKENS[:, 0])
    assert_array_equal(alone.score_samples(TOKENS[:, 0]), whole.score_samples(TOKENS[:, 0]))


def test_the_order_of_regions_changes_nothing_and_one_of_a_class_is_enough():
    detector = GLMCMDetector(TEXT).fit()
    expected = detector.score_samples(X)
    turned = np.concatenate([TOKENS[:, :1], TOKENS[:, :0:-1]], axis=1).reshape(30, -1)
    assert_allclose(detector.score_samples(turned), expected, rtol=1e-12)
    shown = TOKENS.copy()
    shown[:, 3] = TEXT[2]
    better = detector.score_samples(shown.reshape(30, -1))
    assert (better >= expected).all()
    assert (better > expected).any()
    doubled = np.concatenate([TOKENS, TOKENS[:, 1:]], axis=1).reshape(30, -1)
    assert_allclose(GLMCMDetector(TEXT).fit().score_samples(doubled), expected, rtol=1e-12)


def test_one_known_object_among_unknown_regions_passes_where_the_whole_does_not():
    """The mean of many regions hides a known one: the whole is at chance level, the regions tell."""
    for seed in range(5):
        rng = np.random.default_rng(seed)
        text = unit_rows(rng.normal(size=(10, 64)))
        regions = rng.normal(size=(400, 20, 64)) / 8
        regions[:200, 7] = text[rng.integers(0, 10, 200)] + 0.05 * rng.normal(size=(200, 64))
        tokens = np.concatenate([regions.mean(axis=1, keepdims=True), regions], axis=1).reshape(400, -1)

        def auroc(lambda_local, tokens=tokens, text=text):
            scores = GLMCMDetector(text, lambda_local=lambda_local).fit().score_samples(tokens)
            return ood_auroc(scores[:200], scores[200:])

        assert auroc(1.0) > 0.95
        assert auroc(1.0) > auroc(0.0) + 0.1


def test_number_of_tokens_is_given_or_counted():
    counted = GLMCMDetector(TEXT).fit(X)
    assert counted.n_features_in_ == T * D
    given = GLMCMDetector(TEXT, n_tokens=T).fit()
    assert given.n_features_in_ == T * D
    assert_array_equal(given.score_samples(X), counted.score_samples(X))
    # without either, every X may have its own
    free = GLMCMDetector(TEXT).fit()
    assert free.score_samples(X[:, : 3 * D]).shape == (30,)
    assert free.score_samples(X).shape == (30,)


def test_wrong_numbers_of_tokens_are_named():
    with pytest.raises(ValueError, match="width 12, but X has 59 features; tokens of one model make a multiple of it"):
        GLMCMDetector(TEXT).fit(X[:, :-1])
    with pytest.raises(ValueError, match="X has 60 features; tokens of one model make n_tokens=4 times that"):
        GLMCMDetector(TEXT, n_tokens=4).fit(X)
    with pytest.raises(ValueError, match="one token per picture and none of a region"):
        GLMCMDetector(TEXT).fit(X[:, :D])
    with pytest.raises(ValueError, match="one token per picture"):
        GLMCMDetector(TEXT, n_tokens=1).fit()
    with pytest.raises(ValueError, match="X has 48 features, but GLMCMDetector is expecting 60"):
        GLMCMDetector(TEXT).fit(X).score_samples(X[:, : 4 * D])
    with pytest.raises(ValueError, match="one token per picture"):
        GLMCMDetector(TEXT).fit().score_samples(X[:, :D])


def test_blocks_stay_within_the_working_memory(monkeypatch):
    rows = np.tile(X, (20, 1))
    detector = GLMCMDetector(TEXT).fit()
    sizes, score = [], detector._score_rows
    monkeypatch.setattr(detector, "_score_rows", lambda part: (sizes.append(len(part)), score(part))[1])
    with config_context(working_memory=0.1):
        blocked = detector.score_samples(rows)
    assert max(sizes) * T * 8 * (3 * K + 2 * D) <= 0.1 * 2**20
    assert len(sizes) > 5
    assert_allclose(blocked, GLMCMDetector(TEXT).fit().score_samples(rows), rtol=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_regions_of_pictures_tell_the_unknown_from_the_known(seed):
    """Pictures of two objects of known colours against two of unknown ones: of several things at once the whole
    resembles no name in particular, while its regions do."""
    shapes = ("circle", "square", "triangle", "star")
    known, unknown = ("red", "green", "blue", "yellow"), ("purple", "orange", "cyan", "pink")
    names = {f"{color} {shape}": f"{color} {shape}" for color in known for shape in shapes}
    zero_shot = ZeroShotClassifier("skclip-tiny", class_names=names, templates="a photo of a {}")
    X_in, X_out = (
        make_picture_world(150, min_objects=2, max_objects=2, colors=colors, shapes=shapes, random_state=seed).images
        for colors in (known, unknown)
    )
    tokens = DenseCLIPFeatures("skclip-tiny", layout="flat", global_token=True)

    def auroc(lambda_local):
        detector = make_pipeline(tokens, GLMCMDetector(zero_shot, lambda_local=lambda_local)).fit(X_in)
        return ood_auroc(detector.score_samples(X_in), detector.score_samples(X_out))

    assert auroc(1.0) > 0.93
    assert auroc(1.0) > auroc(0.0) + 0.08
