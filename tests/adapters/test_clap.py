from __future__ import annotations

import pickle

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.adapters import CLAPClassifier
from skclip.adapters._clap import initial_multipliers
from skclip.utils import SkclipWarning
from skclip.utils._arrays import unit_rows

torch = pytest.importorskip("torch")


def small(n=60, d=10, n_classes=4, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    means = spread * rng.normal(size=(n_classes, d))
    return rng.normal(size=(n, d)) + means[y] + 1.0, y, means + 1.0


VARIANTS = [
    CLAPClassifier(max_iter=10),
    CLAPClassifier(max_iter=5, penalty=1.0, multipliers="adaptive"),
    CLAPClassifier(max_iter=5, penalty=0.5, distance="cosine", multipliers="corrected", logit_scale=20.0),
    CLAPClassifier(max_iter=5, early_stopping=True, random_state=0),
]


@parametrize_with_checks(
    VARIANTS,
    expected_failed_checks=lambda estimator: (
        {"check_sample_weight_equivalence_on_dense_data": "which pictures are held out depends on their number"}
        if estimator.early_stopping
        else {}
    ),
)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


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


@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.parametrize("multipliers", ["class", "adaptive"])
def test_whole_weights_are_repeated_rows_within_a_batch(with_text, multipliers):
    X, y, text = small()
    weights = np.random.default_rng(3).integers(0, 4, len(X))
    clf = CLAPClassifier(
        text if with_text else None, penalty=0.5, multipliers=multipliers, max_iter=30, random_state=0, logit_scale=20.0
    )
    weighted = clone(clf).fit(X, y, sample_weight=weights)
    repeated = clone(clf).fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    np.testing.assert_allclose(weighted.logits(X), repeated.logits(X), rtol=1e-6, atol=1e-8)


def test_repeated_views_change_nothing_and_only_the_first_is_read():
    X, y, text = small()
    once = CLAPClassifier(text, max_iter=20, random_state=0).fit(X, y)
    views = CLAPClassifier(text, max_iter=20, random_state=0).fit(np.repeat(X[:, None], 3, axis=1), y)
    np.testing.assert_allclose(views.logits(X), once.logits(X), rtol=1e-6)
    np.testing.assert_array_equal(views.logits(np.stack([X, -X], axis=1)), views.logits(X))


def test_the_random_state_decides_everything():
    X, y, text = small()
    fits = [CLAPClassifier(text, max_iter=5, batch_size=16, random_state=seed).fit(X, y).coef_ for seed in (0, 0, 1)]
    np.testing.assert_array_equal(fits[0], fits[1])
    assert np.abs(fits[0] - fits[2]).max() > 1e-6


def test_early_stopping_holds_pictures_out_and_stops():
    X, y, text = small(n=200, spread=0.5)
    clf = CLAPClassifier(text, penalty=0, early_stopping=True, random_state=0, n_iter_no_change=5).fit(X, y)
    assert len(clf.validation_scores_) == clf.n_iter_ < 300
    assert clf.n_iter_ == int(np.argmax(clf.validation_scores_)) + 1 + 5
    assert CLAPClassifier(text, max_iter=2).fit(X, y).validation_scores_ == []
    with pytest.raises(ValueError, match="early_stopping=False"):
        CLAPClassifier(text, early_stopping=True).fit(X[:4], y[:4])


def test_text_is_aligned_by_label(text_estimator):
    X, y, text = small()
    names = np.array(["zebra", "ant", "owl", "cat"])  # sorted: ant, cat, owl, zebra
    clf = CLAPClassifier(text_estimator(text, names, logit_scale=7.0), max_iter=3).fit(X, names[y])
    assert clf.classes_.tolist() == ["ant", "cat", "owl", "zebra"]
    assert clf.logit_scale_ == 7.0
    np.testing.assert_allclose(clf.prototypes_, unit_rows(text)[[1, 3, 2, 0]], rtol=1e-6)
    few = CLAPClassifier(text_estimator(text, names), max_iter=3).fit(X[y != 1], names[y[y != 1]])
    assert few.coef_.shape == (3, 10)


def test_bad_input(text_estimator):
    X, y, text = small()
    clf = CLAPClassifier(max_iter=1)
    for weights in (np.zeros(60), np.full(60, -1.0), np.ones(59), np.full(60, np.nan)):
        with pytest.raises(ValueError, match="sample_weight"):
            clf.fit(X, y, sample_weight=weights)
    with pytest.raises(ValueError, match="one class"):
        clf.fit(X, np.zeros(60))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        clf.fit(X, y[:-1])
    with pytest.raises(ValueError, match=r"X\[3, 2\]"):
        clf.fit(np.where(np.arange(600).reshape(60, 10) == 32, np.nan, X), y)
    with pytest.raises(ValueError, match="Every row of class 2 is all zeros"):
        clf.fit(np.where((y == 2)[:, None], 0.0, X), y)
    with pytest.raises(ValueError, match=r"-1.*ZeroShotClassifier\(prototypes=\.\.\., classes="):
        CLAPClassifier(text).fit(X, y - 1)
    with pytest.raises(ValueError, match=r"width 9.*10 features"):
        CLAPClassifier(text[:, :9]).fit(X, y)
    with pytest.raises(ValueError, match=r"\b3\b.*zero_shot"):
        CLAPClassifier(text_estimator(text[:3], [0, 1, 2])).fit(X, y)
    for params in ({"penalty": -1.0}, {"penalty": "all"}, {"distance": "l1"}, {"multipliers": "none"}):
        with pytest.raises(ValueError, match=next(iter(params))):
            CLAPClassifier(**params).fit(X, y)
    with pytest.raises(ValueError, match="device='abacus'"):
        CLAPClassifier(device="abacus").fit(X, y)


def test_warns_where_text_guesses():
    X, y, text = small(n=120, spread=3.0)
    with pytest.warns(SkclipWarning, match="no better than chance") as caught:
        CLAPClassifier(-text, max_iter=1).fit(X, y)
    assert caught[0].filename == __file__


def test_persistence_and_search():
    io = pytest.importorskip("skops.io")
    X, y, text = small()
    clf = CLAPClassifier(text, max_iter=3, multipliers="adaptive").fit(X, y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clf)).logits(X), clf.logits(X))
    data = io.dumps(clf)
    unknown = io.get_untrusted_types(data=data)
    assert all(name.startswith("skclip.") for name in unknown)
    np.testing.assert_array_equal(io.loads(data, trusted=unknown).logits(X), clf.logits(X))
    search = GridSearchCV(CLAPClassifier(text, max_iter=3), {"penalty": [0, 1.0, 1e4, np.inf]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_accelerator_agrees_with_the_cpu():
    X, y, text = small()
    fits = [CLAPClassifier(text, max_iter=20, random_state=0, device=d).fit(X, y) for d in ("cpu", "cuda")]
    np.testing.assert_allclose(fits[0].predict_proba(X), fits[1].predict_proba(X), atol=1e-3)
