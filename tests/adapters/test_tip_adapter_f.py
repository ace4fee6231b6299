from __future__ import annotations

import pickle

import joblib
import numpy as np
import pytest
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.adapters import GDAClassifier, TipAdapterClassifier, TipAdapterFClassifier
from skclip.utils import SkclipWarning
from skclip.utils._arrays import unit_rows


def small(n=60, d=10, n_classes=4, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    means = spread * rng.normal(size=(n_classes, d))
    return rng.normal(size=(n, d)) + means[y] + 1.0, y, means + 1.0


VARIANTS = [
    TipAdapterFClassifier(max_iter=3),
    TipAdapterFClassifier(alpha="cv", beta="cv", max_iter=2, normalize_values=True),
]


@pytest.mark.filterwarnings('ignore:.*"cv" holds out pictures')
@parametrize_with_checks(VARIANTS)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("params", [{}, {"alpha": 2.0, "beta": 7.0, "normalize_values": True}, {"logit_scale": 9.0}])
def test_without_epochs_it_is_the_untrained_cache(params):
    X, y, text = small()
    X, y = np.r_[X, X[:7]], np.r_[y, y[:7]]  # repeats share a key
    views = np.stack([X, 2 * X + 0.3], axis=1)
    weights = np.random.default_rng(0).uniform(0.5, 2, len(y))
    clf = TipAdapterFClassifier(text, max_iter=0, **params).fit(views, y, sample_weight=weights)
    plain = TipAdapterClassifier(text, **{"beta": 1.0, **params}).fit(views, y, sample_weight=weights)
    np.testing.assert_allclose(clf.logits(X), plain.logits(X), rtol=1e-10)
    assert (clf.n_iter_, clf.loss_curve_, len(clf.keys_)) == (0, [], 60)


def literal_training(X, y, text, alpha, beta, epochs, leave_own_out):
    """Full-batch training of the keys as the official script writes it, but for its half precision."""
    F = torch.tensor(unit_rows(X))
    L = torch.nn.functional.one_hot(torch.tensor(y)).double()
    T = torch.tensor(unit_rows(text))
    keys = F.clone().requires_grad_()
    optimizer = torch.optim.AdamW([keys], lr=1e-2, eps=1e-4, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    losses = []
    for _ in range(epochs):
        votes = torch.exp(-beta * (1 - F @ keys.T))
        if leave_own_out:
            n_k = L.sum(0)
            votes = votes * (1 - torch.eye(len(F)))
            cache = votes @ L * torch.where(L > 0, n_k / (n_k - 1), 1.0)
        else:
            cache = votes @ L
        loss = torch.nn.functional.cross_entropy(10.0 * F @ T.T + alpha * cache, torch.tensor(y))
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
    return keys.detach().numpy(), losses


@pytest.mark.parametrize("leave_own_out", [False, True])
def test_training_is_the_formula(leave_own_out):
    X, y, text = small(spread=0.3)
    order = np.argsort(y, kind="stable")
    keys, losses = literal_training(X[order], y[order], text, 0.8, 3.0, 6, leave_own_out)
    clf = TipAdapterFClassifier(
        text, alpha=0.8, beta=3.0, logit_scale=10.0, leave_own_out=leave_own_out, max_iter=6, learning_rate=1e-2
    ).fit(X, y)
    np.testing.assert_allclose(clf.loss_curve_, losses, rtol=1e-9)

    def sorted_rows(rows):
        return rows[np.lexsort(rows.T)]

    np.testing.assert_allclose(sorted_rows(clf.keys_), sorted_rows(keys), rtol=1e-8)
    expected = 10.0 * unit_rows(X) @ unit_rows(text).T
    expected += 0.8 * np.exp(-3.0 * (1 - unit_rows(X) @ keys.T)) @ np.eye(4)[y[order]]
    np.testing.assert_allclose(clf.logits(X), expected, rtol=1e-8)


def test_the_loss_falls_and_only_the_keys_move():
    X, y, text = small(spread=0.3)
    start = TipAdapterFClassifier(text, max_iter=0, alpha=2.0).fit(X, y)
    clf = TipAdapterFClassifier(text, max_iter=30, learning_rate=1e-2, alpha=2.0, random_state=0).fit(X, y)
    assert len(clf.loss_curve_) == clf.n_iter_ == 30
    assert clf.loss_curve_[-1] < 0.75 * clf.loss_curve_[0]
    assert np.abs(clf.keys_ - start.keys_).max() > 0.01
    assert not np.allclose(np.linalg.norm(clf.keys_, axis=1), 1.0, atol=1e-3)  # not normalised again
    for name in ("codes_", "weights_", "prototypes_"):
        np.testing.assert_array_equal(getattr(clf, name), getattr(start, name))
    assert (clf.alpha_, clf.beta_, clf.validation_scores_) == (2.0, 1.0, [])


def test_alpha_zero_is_zero_shot_exactly():
    X, y, text = small()
    clf = TipAdapterFClassifier(text, alpha=0, max_iter=2).fit(X, y)
    np.testing.assert_array_equal(clf.logits(X), TipAdapterClassifier(text, alpha=0).fit(X, y).logits(X))


def test_a_picture_alone_in_its_class_keeps_its_vote():
    X, y, _ = small(n=8, n_classes=8)
    ours, published = (
        TipAdapterFClassifier(alpha=3.0, leave_own_out=flag, random_state=0).fit(X, y) for flag in (True, False)
    )
    np.testing.assert_array_equal(ours.keys_, published.keys_)


@pytest.mark.parametrize("alpha", [1.0, "cv"])
def test_order_of_rows_and_repeats_change_nothing(alpha):
    X, y, text = small()
    params = {"alpha": alpha, "max_iter": 5, "batch_size": 16, "random_state": 0}
    weights = np.random.default_rng(3).integers(1, 4, len(X))
    expected = TipAdapterFClassifier(text, **params).fit(X, y, sample_weight=weights).logits(X)
    order = np.random.default_rng(0).permutation(weights.sum())
    rows = np.repeat(np.arange(60), weights)[order]
    np.testing.assert_allclose(
        TipAdapterFClassifier(text, **params).fit(X[rows], y[rows]).logits(X), expected, rtol=1e-8
    )


def test_random_state_decides():
    X, y, text = small(spread=0.3)
    fits = [
        TipAdapterFClassifier(text, max_iter=3, batch_size=8, learning_rate=0.01, random_state=seed).fit(X, y).keys_
        for seed in (0, 0, 1)
    ]
    np.testing.assert_array_equal(fits[0], fits[1])
    assert np.abs(fits[0] - fits[2]).max() > 1e-6


def test_early_stopping_keeps_the_best_epoch():
    X, y, text = small(n=200, spread=0.3)
    params = {"alpha": 3.0, "learning_rate": 0.05, "max_iter": 200, "random_state": 0}
    clf = TipAdapterFClassifier(text, early_stopping=True, validation_fraction=0.2, n_iter_no_change=5, **params)
    clf.fit(X, y)
    scores = clf.validation_scores_
    assert clf.n_iter_ == len(scores) == len(clf.loss_curve_) < 200
    assert clf.n_iter_ == int(np.argmax(scores)) + 1 + 5
    assert len(clf.keys_) == 200  # held-out pictures keep their keys
    assert max(scores) < 1.0  # which do not vote for themselves
    with pytest.raises(ValueError, match="early_stopping holds out pictures"):
        TipAdapterFClassifier(early_stopping=True).fit(X[:4], y[:4])


def test_views_take_turns_in_training():
    X, y, text = small(spread=0.3)
    views = np.stack([X, X + 0.5, X[:, ::-1]], axis=1)
    clf = TipAdapterFClassifier(text, random_state=0).fit(views, y)
    mean = TipAdapterFClassifier(text, random_state=0).fit(views.mean(axis=1), y)
    assert clf.keys_.shape == (60, 10)
    assert clf.n_features_in_ == 10
    assert np.abs(clf.keys_ - mean.keys_).max() > 1e-4
    np.testing.assert_array_equal(clf.logits(views), clf.logits(X))


@pytest.mark.parametrize("seed", range(3))
def test_beats_the_untrained_cache_but_not_discriminant_analysis(seed, anisotropic_world):
    X, y, X_test, y_test, text = anisotropic_world(seed=seed)
    zero_shot = TipAdapterClassifier(text, alpha=0).fit(X, y).score(X_test, y_test)
    untrained = TipAdapterClassifier(text, alpha="cv", beta="cv").fit(X, y).score(X_test, y_test)
    trained = TipAdapterFClassifier(text, alpha="cv", random_state=0).fit(X, y).score(X_test, y_test)
    assert trained > untrained + 0.06
    assert trained > zero_shot + 0.15
    assert GDAClassifier().fit(X, y).score(X_test, y_test) > trained + 0.1


def test_beats_zero_shot_and_nearest_mean_on_drawn_pictures(sketches):
    chosen = np.concatenate([np.flatnonzero(sketches.y == k)[:8] for k in np.unique(sketches.y)])
    X, y = sketches.X[chosen], sketches.y[chosen]
    clf = TipAdapterFClassifier(FrozenEstimator(sketches.text), alpha="cv", random_state=0).fit(X, y)
    means = np.stack([unit_rows(X)[y == k].mean(axis=0) for k in clf.classes_])
    nearest = clf.classes_[np.argmax(sketches.X_test @ unit_rows(means).T, axis=1)]
    reached = clf.score(sketches.X_test, sketches.y_test)
    assert reached > np.mean(nearest == sketches.y_test) + 0.02
    assert reached > sketches.text.score(sketches.X_test, sketches.y_test) + 0.25


def test_single_pictures_warn_once():
    X, y, text = small()
    for zero_shot in (text, None):
        with pytest.warns(SkclipWarning, match="alpha is 1, beta is 1 unless given") as caught:
            clf = TipAdapterFClassifier(zero_shot, alpha="cv", max_iter=1).fit(X[:4], y[:4])
        assert len(caught) == 1
        assert caught[0].filename == __file__
        assert clf.alpha_ == 1.0


def test_text_is_aligned_by_label(text_estimator):
    X, y, text = small()
    names = np.array(["zebra", "ant", "owl", "cat"])
    clf = TipAdapterFClassifier(text_estimator(text, names), random_state=0).fit(X, names[y])
    expected = TipAdapterFClassifier(text, random_state=0).fit(X, y)
    assert np.mean(clf.predict(X) == names[expected.predict(X)]) > 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(60)}, "one class"),
        ({"y": np.arange(60) % 4 - 1}, "-1"),
        ({"sample_weight": np.zeros(60)}, "sample_weight is zero"),
        ({"sample_weight": np.ones(59)}, "sample_weight"),
    ],
)
def test_bad_input(change, message):
    X, y, text = small()
    with pytest.raises(ValueError, match=message):
        TipAdapterFClassifier(text).fit(X, **{"y": y, **change})


def test_a_diverging_loss_is_an_error():
    X, y, text = small()
    with pytest.raises(ValueError, match="no longer finite"):
        TipAdapterFClassifier(text, learning_rate=1e30, beta=5.0).fit(X, y)


@pytest.mark.parametrize(
    "params", [{"max_iter": -1}, {"learning_rate": 0.0}, {"eps": 0}, {"batch_size": 0}, {"leave_own_out": "x"}]
)
def test_bad_parameters(params):
    X, y, _ = small()
    with pytest.raises(ValueError, match=f"'{next(iter(params))}' parameter"):
        TipAdapterFClassifier(**params).fit(X, y)


def test_pickles_to_its_arrays(tmp_path):
    X, y, text = small(n=200, d=60)
    clf = TipAdapterFClassifier(text, max_iter=3).fit(X, y)
    size = sum(value.nbytes for value in vars(clf).values() if isinstance(value, np.ndarray))
    assert len(pickle.dumps(clf)) < size + 10_000
    joblib.dump(clf, tmp_path / "clf.joblib")
    loaded = joblib.load(tmp_path / "clf.joblib", mmap_mode="r")
    np.testing.assert_array_equal(loaded.logits(X), clf.logits(X))
    io = pytest.importorskip("skops.io")
    data = io.dumps(clf)
    unknown = io.get_untrusted_types(data=data)
    assert all(name.startswith("skclip.") for name in unknown)
    np.testing.assert_array_equal(io.loads(data, trusted=unknown).logits(X), clf.logits(X))
