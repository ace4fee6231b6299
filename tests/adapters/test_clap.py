from __future__ import annotations

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.base import clone

from skclip.adapters import CLAPClassifier
from skclip.adapters._clap import initial_multipliers
from skclip.utils._arrays import unit_rows

torch = pytest.importorskip("torch")


def small(n=60, d=10, n_classes=4, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    means = spread * rng.normal(size=(n_classes, d))
    return rng.normal(size=(n, d)) + means[y] + 1.0, y, means + 1.0


def literal(X, y, text, *, max_iter, penalty, distance="l2", adaptive=False, kind="class", norm=10.0, scale=20.0):
    """The method over all pictures at once, as its code writes it: weights, multipliers, losses."""
    F = torch.from_numpy(unit_rows(X))
    codes = torch.from_numpy(y)
    T = torch.from_numpy(norm * unit_rows(text))
    W = T.clone().requires_grad_()
    probabilities = torch.softmax(scale * F @ torch.nn.functional.normalize(T).T, dim=1)
    one_hot = torch.nn.functional.one_hot(codes).double()
    confidence = torch.diag(probabilities.T @ one_hot) / one_hot.sum(0)
    multipliers = confidence.clone()
    if kind == "corrected":
        multipliers *= len(T) / confidence.sum()
    if kind == "constant":
        multipliers = torch.full_like(confidence, float(confidence.mean()))
    if kind == "balanced":
        multipliers = torch.ones_like(confidence)
    rho = multipliers.clone()
    optimizer = torch.optim.SGD([W], lr=0.1, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max_iter)
    losses = []
    for _ in range(max_iter):
        h = (W - T).pow(2).sum(1) if distance == "l2" else 1 - torch.cosine_similarity(W, T)
        scores = scale * F @ torch.nn.functional.normalize(W).T
        loss = torch.nn.functional.cross_entropy(scores, codes) + penalty * torch.mean(multipliers * h)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if adaptive:
            with torch.no_grad():
                h = (W - T).pow(2).sum(1)
                multipliers = torch.clamp(multipliers + rho * h, min=0)
                rho = h
    return W.detach().numpy(), multipliers.numpy(), losses


@pytest.mark.parametrize(
    ("params", "options"),
    [
        ({"penalty": 0}, {"penalty": 0}),
        ({}, {"penalty": 1}),
        ({"penalty": 3.0, "distance": "cosine"}, {"penalty": 3, "distance": "cosine"}),
        ({"multipliers": "adaptive"}, {"penalty": 1, "adaptive": True}),
        ({"multipliers": "balanced"}, {"penalty": 1, "kind": "balanced"}),
        ({"multipliers": "constant"}, {"penalty": 1, "kind": "constant"}),
        ({"multipliers": "corrected"}, {"penalty": 1, "kind": "corrected"}),
        ({"prototype_norm": 4.0}, {"penalty": 1, "norm": 4.0}),
    ],
)
def test_is_the_published_method(params, options):
    X, y, text = small(spread=0.6)
    clf = CLAPClassifier(text, logit_scale=20.0, max_iter=12, **params).fit(X, y)
    weights, multipliers, losses = literal(X, y, text, max_iter=12, **options)
    np.testing.assert_allclose(clf.coef_, 20 * unit_rows(weights), rtol=1e-6, atol=1e-9)
    np.testing.assert_allclose(clf.loss_curve_, losses, rtol=1e-7)
    np.testing.assert_allclose(clf.logits(X), 20 * unit_rows(X) @ unit_rows(weights).T, rtol=1e-6, atol=1e-6)
    assert clf.n_iter_ == 12
    if options["penalty"]:
        np.testing.assert_allclose(clf.multipliers_, multipliers, rtol=1e-7)
    else:
        assert clf.multipliers_ is None


@pytest.mark.parametrize("params", [{"max_iter": 0}, {"max_iter": 0, "penalty": 0}, {"penalty": np.inf}])
def test_zero_shot_at_both_ends(params):
    X, y, text = small()
    clf = CLAPClassifier(text, logit_scale=30.0, **params).fit(X, y)
    np.testing.assert_allclose(clf.logits(X), 30 * unit_rows(X) @ unit_rows(text).T, rtol=1e-10)


def test_a_growing_penalty_leads_from_the_probe_to_zero_shot():
    X, y, text = small(spread=0.4)
    fits = [
        CLAPClassifier(text, penalty=penalty, logit_scale=20.0, max_iter=100, random_state=0).fit(X, y)
        for penalty in (0, 1e-8, 0.1, 1, 10, 100, 1e5, np.inf)
    ]
    np.testing.assert_allclose(fits[1].coef_, fits[0].coef_, atol=1e-4)
    moved = [np.abs(clf.coef_ - fits[-1].coef_).max() for clf in fits]
    assert np.all(np.diff(moved) < 1e-6)
    assert moved[0] > 20 * moved[6]
    assert moved[4] > 0
    assert np.mean(fits[6].predict(X) == fits[-1].predict(X)) > 0.95


def test_multipliers_are_mean_probabilities_of_the_text():
    X, y, text = small(spread=0.3)
    clf = CLAPClassifier(text, logit_scale=20.0, max_iter=1).fit(X, y)
    own = softmax(20 * unit_rows(X) @ unit_rows(text).T, axis=1)[np.arange(60), y]
    np.testing.assert_allclose(clf.multipliers_, [own[y == k].mean() for k in range(4)])
    assert clf.multipliers_.min() >= 0
    assert clf.multipliers_.max() <= 1
    weights = np.random.default_rng(0).uniform(1, 2, 60)
    weighted = clone(clf).fit(X, y, sample_weight=weights)
    expected = [np.average(own[y == k], weights=weights[y == k]) for k in range(4)]
    np.testing.assert_allclose(weighted.multipliers_, expected)
    views = np.stack([X, X + 0.3], axis=1)
    own = softmax(20 * unit_rows(views.reshape(-1, 10)) @ unit_rows(text).T, axis=1)[np.arange(120), np.repeat(y, 2)]
    expected = [own[np.repeat(y, 2) == k].mean() for k in range(4)]
    np.testing.assert_allclose(clone(clf).fit(views, y).multipliers_, expected)


def test_kinds_of_multipliers():
    confidence = np.array([0.2, 0.4, 0.6])
    np.testing.assert_array_equal(initial_multipliers(confidence, "class"), confidence)
    np.testing.assert_array_equal(initial_multipliers(confidence, "adaptive"), confidence)
    np.testing.assert_array_equal(initial_multipliers(confidence, "balanced"), [1, 1, 1])
    np.testing.assert_allclose(initial_multipliers(confidence, "constant"), [0.4, 0.4, 0.4])
    np.testing.assert_allclose(initial_multipliers(confidence, "corrected"), [0.5, 1.0, 1.5])


def test_classes_that_the_text_knows_stay_nearer_to_it():
    rng = np.random.default_rng(0)
    directions = rng.normal(size=(6, 30))
    text = directions.copy()
    text[3:] += 1.5 * rng.normal(size=(3, 30))  # names that say little
    y = np.repeat(np.arange(6), 20)
    X = directions[y] + rng.normal(size=(120, 30))
    clf = CLAPClassifier(text, logit_scale=20.0, random_state=0).fit(X, y)
    assert clf.multipliers_[:3].min() > clf.multipliers_[3:].max()
    turned = 1 - np.einsum("kd,kd->k", unit_rows(clf.coef_), unit_rows(text))
    assert turned[:3].max() < turned[3:].min()


def test_without_text_it_starts_at_the_class_means_and_is_free():
    X, y, _ = small()
    means = unit_rows(np.stack([unit_rows(X)[y == k].mean(axis=0) for k in range(4)]))
    start = CLAPClassifier(max_iter=0).fit(X, y)
    np.testing.assert_allclose(start.coef_, 100 * means)
    assert start.logit_scale_ == 100
    assert start.prototypes_ is None
    free, probe = CLAPClassifier(random_state=0).fit(X, y), CLAPClassifier(penalty=0, random_state=0).fit(X, y)
    np.testing.assert_array_equal(free.coef_, probe.coef_)
    assert free.multipliers_ is None
    tied = CLAPClassifier(penalty=1, random_state=0).fit(X, y)
    assert np.linalg.norm(tied.coef_ - start.coef_) < np.linalg.norm(free.coef_ - start.coef_)
