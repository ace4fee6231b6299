from __future__ import annotations

import numpy as np
import pytest
from scipy.special import log_softmax, softmax
from sklearn.base import clone

from skclip.adapters import LPPlusPlusClassifier
from skclip.adapters._lp_plus_plus import step_sizes
from skclip.utils._arrays import unit_rows


def small(n=60, d=10, n_classes=4, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    means = spread * rng.normal(size=(n_classes, d))
    return rng.normal(size=(n, d)) + means[y] + 1.0, y, means + 1.0


def literal(X, y, text=None, *, max_iter, intercept, accumulate=True, momentum=0.9, safe=False):
    """The method, written as the paper and its code write it: weights, intercept, alpha, losses."""
    F, Y = unit_rows(X), np.eye(y.max() + 1)[y]
    n = len(F)
    W, b = Y.T @ F, intercept.copy()
    T = np.zeros_like(W) if text is None else unit_rows(text)
    shots = Y.sum(axis=0)
    alpha = np.full(len(W), 250 * np.mean((Y * (F @ T.T)).sum(axis=0) / shots))
    lr = lr_b = 4 * n / np.linalg.eigvalsh(F.T @ F).max()
    if safe:
        c = np.sqrt(0.1 * np.linalg.eigvalsh(F.T @ F).max() / n)
        G = np.hstack([F, np.full((n, 1), c)])
        lr = 4 * n / np.linalg.eigvalsh(G.T @ G).max()
        lr_b = c**2 * lr
    lr_alpha = n / (4 * np.square(F @ T.T).sum(axis=0).max()) if text is not None else 0.0
    vW, vb, g_alpha, losses = 0.0, 0.0, 0.0, []
    for i in range(1, max_iter + 1):
        logits = F @ W.T + b + alpha * (F @ T.T)
        losses.append(-log_softmax(logits, axis=1)[np.arange(n), y].mean())
        residual = (softmax(logits, axis=1) - Y) / n
        vW, vb = momentum * vW + residual.T @ F, momentum * vb + residual.sum(axis=0)
        W, b = W - lr * vW, b - lr_b * vb
        gradient = (residual * (F @ T.T)).sum(axis=0)
        g_alpha = g_alpha + gradient if accumulate else gradient
        if i % 10 == 0:
            alpha = alpha - lr_alpha * g_alpha
    return W + alpha[:, None] * T, b, alpha, losses


@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.parametrize("alpha_grad", ["accumulated", "fresh"])
@pytest.mark.parametrize("intercept_step", ["safe", "published"])
def test_is_the_published_iteration(with_text, alpha_grad, intercept_step):
    X, y, text = small()
    text = text if with_text else None
    params = {"alpha_grad": alpha_grad, "intercept_step": intercept_step, "random_state": 0}
    start = LPPlusPlusClassifier(text, max_iter=0, **params).fit(X, y)
    clf = LPPlusPlusClassifier(text, max_iter=35, **params).fit(X, y)
    coef, intercept, alpha, losses = literal(
        X,
        y,
        text,
        max_iter=35,
        intercept=start.intercept_,
        accumulate=alpha_grad == "accumulated",
        safe=intercept_step == "safe",
    )
    np.testing.assert_allclose(clf.coef_, coef, rtol=1e-8)
    np.testing.assert_allclose(clf.intercept_, intercept, rtol=1e-8)
    np.testing.assert_allclose(clf.loss_curve_, losses, rtol=1e-8)
    assert clf.n_iter_ == 35
    if with_text:
        np.testing.assert_allclose(clf.alpha_, alpha, rtol=1e-8)
    else:
        assert clf.alpha_ is None
    np.testing.assert_allclose(clf.logits(X), unit_rows(X) @ coef.T + intercept, rtol=1e-7)


def test_without_iterations_it_is_sums_of_rows_and_text():
    X, y, text = small()
    clf = LPPlusPlusClassifier(text, max_iter=0, random_state=0).fit(X, y)
    rows, T = unit_rows(X), unit_rows(text)
    sums = np.stack([rows[y == k].sum(axis=0) for k in range(4)])
    alpha = 250 * np.mean([(rows[y == k] @ T[k]).mean() for k in range(4)])
    np.testing.assert_allclose(clf.alpha_, alpha)
    np.testing.assert_allclose(clf.logits(X), rows @ sums.T + alpha * rows @ T.T + clf.intercept_)
    assert np.abs(clf.intercept_).max() <= 1 / np.sqrt(10)
    assert clf.n_iter_ == 0
    assert clf.loss_curve_ == []


def test_a_large_alpha_at_one_shot_ranks_as_zero_shot():
    X, y, text = small(n=200)
    one_shot = np.arange(4)
    clf = LPPlusPlusClassifier(text, max_iter=0, init_scale=1e9, random_state=0).fit(X[one_shot], y[one_shot])
    expected = np.argsort(unit_rows(X) @ unit_rows(text).T, axis=1)
    np.testing.assert_array_equal(np.argsort(clf.logits(X), axis=1), expected)


def test_step_sizes():
    X, y, text = small()
    rows, T = unit_rows(X), unit_rows(text)
    power = np.linalg.eigvalsh(rows.T @ rows).max()
    published = LPPlusPlusClassifier(text, max_iter=1, intercept_step="published").fit(X, y)
    assert published.learning_rate_ == pytest.approx(4 * 60 / power)
    assert published.intercept_learning_rate_ == published.learning_rate_
    assert published.alpha_learning_rate_ == pytest.approx(60 / (4 * np.square(rows @ T.T).sum(axis=0).max()))
    safe = LPPlusPlusClassifier(text, max_iter=1).fit(X, y)
    assert published.learning_rate_ / 1.1 - 1e-9 <= safe.learning_rate_ <= published.learning_rate_
    few_rows = step_sizes(rows[:3], np.ones(3), safe=False)[0]
    assert few_rows == pytest.approx(4 * 3 / np.linalg.eigvalsh(rows[:3].T @ rows[:3]).max())


def cone(n_classes, shots, seed):
    """Rows that all point in a similar direction, in classes of unequal size: where step sizes overshoot."""
    rng = np.random.default_rng(seed)
    common, means = 2 * rng.normal(size=16), 0.15 * rng.normal(size=(n_classes, 16))
    y = np.repeat(np.arange(n_classes), np.maximum(1, shots * rng.uniform(0.3, 1.7, n_classes)).astype(int))
    X = common + means[y] + 0.5 * rng.normal(size=(len(y), 16))
    return X, y, common + means + 0.2 * rng.normal(size=means.shape)


@pytest.mark.parametrize("n_classes", [2, 3, 5, 10])
@pytest.mark.parametrize("shots", [4, 20, 100])
@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.filterwarnings("ignore:Zero-shot accuracy")
def test_without_momentum_the_loss_never_rises(n_classes, shots, with_text):
    for seed in range(3):
        X, y, text = cone(n_classes, shots, seed)
        params = {"momentum": 0.0, "alpha_grad": "fresh", "max_iter": 120, "random_state": seed}
        clf = LPPlusPlusClassifier(text if with_text else None, **params).fit(X, y)
        assert np.diff(clf.loss_curve_).max() < 1e-10
        assert clf.loss_curve_[-1] < clf.loss_curve_[0]


def test_published_intercept_steps_overshoot_where_classes_are_few():
    X, y, _ = cone(2, 100, 0)
    rises = {}
    for step in ("safe", "published"):
        clf = LPPlusPlusClassifier(momentum=0.0, intercept_step=step, random_state=0).fit(X, y)
        rises[step] = np.diff(clf.loss_curve_).max()
    assert rises["safe"] < 1e-10
    assert rises["published"] > 0.02


def test_accumulated_gradients_move_alpha_by_the_sum_of_all_before():
    X, y, text = small()
    params = {"momentum": 0.0, "random_state": 0, "max_iter": 10}
    fresh = LPPlusPlusClassifier(text, alpha_grad="fresh", **params).fit(X, y)
    summed = LPPlusPlusClassifier(text, **params).fit(X, y)
    every = LPPlusPlusClassifier(text, alpha_every=1, alpha_grad="fresh", random_state=0, max_iter=1, momentum=0.0)
    start = LPPlusPlusClassifier(text, max_iter=0, random_state=0).fit(X, y).alpha_
    first = every.fit(X, y).alpha_ - start
    # the loss falls, so that the sum of ten gradients is longer than the tenth and about as long as ten of the first
    assert np.abs(summed.alpha_ - start).max() > 2 * np.abs(fresh.alpha_ - start).max()
    assert np.abs(summed.alpha_ - start).max() < 10 * np.abs(first).max()
    np.testing.assert_array_equal(summed.loss_curve_, fresh.loss_curve_)  # until alpha has moved


def test_alpha_moves_every_tenth_iteration_only():
    X, y, text = small()
    alphas = [LPPlusPlusClassifier(text, max_iter=i, random_state=0).fit(X, y).alpha_ for i in (0, 9, 10, 19, 20)]
    np.testing.assert_array_equal(alphas[0], alphas[1])
    np.testing.assert_array_equal(alphas[2], alphas[3])
    assert np.abs(alphas[2] - alphas[1]).max() > 0
    assert np.abs(alphas[4] - alphas[3]).max() > 0


def test_the_scale_of_small_weights_does_not_matter():
    X, y, text = small()
    weights = np.random.default_rng(3).uniform(1, 2, len(X))
    first = LPPlusPlusClassifier(text, random_state=0).fit(X, y, sample_weight=weights / weights.sum())
    other = LPPlusPlusClassifier(text, random_state=0).fit(X, y, sample_weight=1e-3 * weights)
    np.testing.assert_allclose(first.logits(X), other.logits(X), rtol=1e-6)


def test_order_and_length_of_rows_change_nothing():
    X, y, text = small()
    rng = np.random.default_rng(1)
    order, lengths = rng.permutation(len(X)), rng.uniform(0.1, 10, size=(len(X), 1))
    expected = LPPlusPlusClassifier(text, random_state=0).fit(X, y)
    other = LPPlusPlusClassifier(7 * text, random_state=0).fit((lengths * X)[order], y[order])
    np.testing.assert_allclose(other.logits(X), expected.logits(X), rtol=1e-6)


def test_early_stopping_keeps_the_latest_best_iterate():
    X, y, _ = small(n=200, spread=0.5)
    clf = LPPlusPlusClassifier(early_stopping=True, validation_fraction=0.3, random_state=0).fit(X, y)
    assert len(clf.validation_scores_) == clf.n_iter_ <= 300
    best = len(clf.validation_scores_) - 1 - int(np.argmax(clf.validation_scores_[::-1]))
    again = clone(clf).set_params(max_iter=best + 1).fit(X, y)
    np.testing.assert_array_equal(again.coef_, clf.coef_)
    patient = clone(clf).set_params(n_iter_no_change=3).fit(X, y)
    scores = np.array(patient.validation_scores_)
    assert patient.n_iter_ < 300
    assert np.all(scores[-3:] < scores.max())
