from __future__ import annotations

import pickle
import warnings

import numpy as np
import pytest
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.adapters import LinearProbeClassifier
from skclip.adapters._held_out import distinct_pictures
from skclip.adapters._lbfgs import minimise
from skclip.adapters._linear_probe import GRID, held_out_losses
from skclip.adapters._softmax import Design, SoftmaxObjective, penalty_of
from skclip.utils import SkclipWarning
from skclip.utils._arrays import unit_rows


def small(n=120, d=8, n_classes=4, seed=0, spread=0.7):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    return rng.normal(size=(n, d)) + spread * rng.normal(size=(n_classes, d))[y] + 1.0, y


def oracle(C, **params):
    return LogisticRegression(C=C, tol=1e-11, max_iter=100_000, **params)


VARIANTS = [
    LinearProbeClassifier(),
    LinearProbeClassifier("cv"),
    LinearProbeClassifier(1.0, class_weight="balanced"),
    LinearProbeClassifier(1e4, tol=1e-6),
]


@pytest.mark.filterwarnings('ignore:C="cv" holds out pictures')
@parametrize_with_checks(VARIANTS)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


@pytest.mark.parametrize("C", [1e-2, 1.0, 1e2, 1e4])
@pytest.mark.parametrize("n_classes", [2, 3, 7])
def test_is_logistic_regression_of_unit_rows(C, n_classes):
    X, y = small(n_classes=n_classes)
    clf = LinearProbeClassifier(C, tol=1e-9).fit(X, y)
    expected = oracle(C).fit(unit_rows(X), y)
    np.testing.assert_allclose(clf.predict_proba(X), expected.predict_proba(unit_rows(X)), atol=5e-6)
    if n_classes == 2:
        np.testing.assert_allclose(clf.coef_[1] - clf.coef_[0], expected.coef_[0], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(clf.decision_function(X), expected.decision_function(unit_rows(X)), atol=1e-3)
    np.testing.assert_allclose(clf.coef_.sum(axis=0), 0.0, atol=1e-9 * np.abs(clf.coef_).max())
    assert abs(clf.intercept_.sum()) < 1e-9 * max(1.0, np.abs(clf.intercept_).max())


@pytest.mark.parametrize("class_weight", [None, "balanced", {0: 3.0, 1: 0.5}])
@pytest.mark.parametrize("n_classes", [2, 4])
def test_weights_are_those_of_logistic_regression(class_weight, n_classes):
    X, y = small(n=90, n_classes=n_classes)
    weights = np.random.default_rng(1).uniform(0.0, 3.0, len(y))
    weights[:3] = 0.0
    clf = LinearProbeClassifier(10.0, class_weight=class_weight, tol=1e-9).fit(X, y, weights)
    expected = oracle(10.0, class_weight=class_weight).fit(unit_rows(X), y, weights)
    np.testing.assert_allclose(clf.predict_proba(X), expected.predict_proba(unit_rows(X)), atol=5e-6)


def test_fewer_rows_than_features():
    X, y = small(n=24, d=60)
    clf = LinearProbeClassifier(10.0, tol=1e-9).fit(X, y)
    expected = oracle(10.0).fit(unit_rows(X), y)
    other = unit_rows(np.random.default_rng(3).normal(size=(30, 60)))
    np.testing.assert_allclose(clf.predict_proba(other), expected.predict_proba(other), atol=5e-6)
    assert clf.coef_.shape == (4, 60)


def test_gradient_and_slope_of_the_objective():
    X, y = small(n=40, d=5)
    weights = np.random.default_rng(0).uniform(0.5, 2.0, 40)
    design = Design.of(X, y, weights, 4)
    objective = SoftmaxObjective(design, 0.3)
    rng = np.random.default_rng(1)
    point, direction = rng.normal(size=(2, 4, 6))
    loss, gradient = objective.start(point)
    coef, intercept = design.coefficients(point)
    literal = -weights @ log_softmax(X @ coef.T + intercept, axis=1)[np.arange(40), y]
    assert loss == pytest.approx(literal + 0.15 * np.sum(point[:, :-1] ** 2), rel=1e-12)
    objective.aim(direction)
    assert objective.at(0.0)[1] == pytest.approx(np.vdot(gradient, direction), rel=1e-10)
    numerical = (objective.at(1e-6)[0] - objective.at(-1e-6)[0]) / 2e-6
    assert objective.at(0.0)[1] == pytest.approx(numerical, rel=1e-6)
    objective.at(0.5)
    moved = objective.move(0.5)
    np.testing.assert_allclose(moved, SoftmaxObjective(design, 0.3).start(point + 0.5 * direction)[1], atol=1e-9)


def test_preconditioner_is_symmetric_and_positive_and_nearly_the_inverse_hessian():
    X, y = small(n=400, d=5, spread=0.1)
    design = Design.of(X, y, None, 4)
    objective = SoftmaxObjective(design, 20.0)
    found = minimise(objective, design.start(), tol=1e-6, max_iter=100)
    objective.refresh()
    rng = np.random.default_rng(0)
    a, b = (v - v.mean(axis=0) for v in rng.normal(size=(2, 4, 6)))
    Pa, Pb = objective.precondition(a), objective.precondition(b)
    assert np.vdot(a, Pb) == pytest.approx(np.vdot(Pa, b), rel=1e-9)
    assert np.vdot(a, Pa) > 0
    fresh = SoftmaxObjective(design, 20.0)
    ahead = fresh.start(found.point + 1e-5 * Pa)[1]
    behind = fresh.start(found.point - 1e-5 * Pa)[1]
    np.testing.assert_allclose((ahead - behind) / 2e-5, a, atol=0.15 * np.abs(a).max())


def clip_like(n, seed=0, d=64, n_classes=20):
    """Unit rows with a common direction, anisotropic noise and classes in groups."""
    rng = np.random.default_rng(seed)
    noise = (np.arange(d) + 2.0) ** -0.8
    groups, classes = rng.normal(size=(5, d)) * noise, 0.5 * rng.normal(size=(n_classes, d)) * noise
    y = np.arange(n) % n_classes
    X = groups[y % 5] + classes[y] + rng.normal(size=(n, d)) * noise
    return unit_rows(X + 3.0 * np.eye(d)[-1]).astype(np.float32), y


class Plain(SoftmaxObjective):
    """Without preconditioner."""

    def precondition(self, vector):
        return vector


@pytest.mark.parametrize(("C", "most", "share"), [(1.0, 20, 0.6), (100.0, 50, 0.4)])
def test_the_preconditioner_saves_iterations(C, most, share):
    X, y = clip_like(4000)
    design = Design.of(X.astype(np.float64), y, None, 20)
    best = minimise(SoftmaxObjective(design, 1 / C), design.start(), tol=1e-8, max_iter=1000).losses[-1]

    def iterations(kind):
        losses = minimise(kind(design, 1 / C), design.start(), tol=1e-8, max_iter=400).losses
        return int(np.argmax(np.array(losses) - best < 1e-8 * len(X)))

    ours, plain = iterations(SoftmaxObjective), iterations(Plain)
    assert 0 < ours <= most
    assert ours <= share * plain


@pytest.mark.parametrize("C", [1.0, 100.0])
def test_float32_is_as_good_as_float64(C):
    X, y = clip_like(3000)
    single = LinearProbeClassifier(C, tol=1e-5).fit(X, y)
    double = LinearProbeClassifier(C, tol=1e-8).fit(X.astype(np.float64), y)
    assert single.coef_.dtype == np.float64
    np.testing.assert_allclose(single.predict_proba(X), double.predict_proba(X), atol=1e-4)


def test_the_default_tolerance_is_near_the_minimum():
    X, y = clip_like(3000)
    for C in (0.1, 1.0, 31.6, 1000.0):
        loose = LinearProbeClassifier(C).fit(X, y)
        tight = LinearProbeClassifier(C, tol=1e-8).fit(X.astype(np.float64), y)
        assert loose.n_iter_ < tight.n_iter_
        np.testing.assert_allclose(loose.predict_proba(X), tight.predict_proba(X), atol=2e-3)
        assert loose.loss_curve_[-1] == pytest.approx(tight.loss_curve_[-1], abs=1e-6)


def test_the_intercept_is_not_penalised():
    X, y = small()
    rows = unit_rows(X)
    design = Design.of(rows, y, None, 4)
    shifted = Design.of(rows + 5.0, y, None, 4)
    ways = [minimise(SoftmaxObjective(D, 0.1), D.start(), tol=1e-9, max_iter=500).point for D in (design, shifted)]
    coef, intercept = design.coefficients(ways[0])
    coef_shifted, intercept_shifted = shifted.coefficients(ways[1])
    np.testing.assert_allclose(coef_shifted, coef, atol=1e-6)
    np.testing.assert_allclose(intercept_shifted, intercept - 5.0 * coef.sum(axis=1), atol=1e-5)


def test_strong_regularisation_leaves_the_class_shares():
    X, y = small()
    X, y = X[y < 3], y[y < 3]
    keep = np.flatnonzero((y > 0) | (np.arange(len(y)) % 2 == 0))
    clf = LinearProbeClassifier(1e-9).fit(X[keep], y[keep])
    np.testing.assert_allclose(clf.predict_proba(X), np.tile(np.bincount(y[keep]) / len(keep), (len(X), 1)), atol=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_separable_rows_with_a_huge_C_stay_finite(dtype):
    X, y = small(n=40, d=30, spread=3.0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        clf = LinearProbeClassifier(1e12).fit(X.astype(dtype), y)
    assert np.isfinite(clf.coef_).all()
    assert clf.score(X, y) == 1.0
    assert np.isfinite(clf.predict_proba(X)).all()


def test_equal_rows_tell_nothing():
    X = np.ones((12, 5))
    clf = LinearProbeClassifier().fit(X, np.repeat([0, 1, 2], [3, 3, 6]))
    np.testing.assert_allclose(clf.predict_proba(X), np.tile([0.25, 0.25, 0.5], (12, 1)), atol=1e-6)


def test_one_picture_per_class():
    X = np.eye(6, dtype=np.float32) + 0.1
    clf = LinearProbeClassifier(1e4).fit(X, np.arange(6))
    np.testing.assert_array_equal(clf.predict(X), np.arange(6))


def test_views_share_the_weight_of_their_picture():
    X, y = small()
    once = LinearProbeClassifier(10.0, tol=1e-9).fit(X, y)
    repeated = LinearProbeClassifier(10.0, tol=1e-9).fit(np.repeat(X[:, None], 3, axis=1), y)
    np.testing.assert_allclose(repeated.logits(X), once.logits(X), atol=1e-5)
    views = np.stack([X, X + 0.3, X[:, ::-1]], axis=1)
    clf = LinearProbeClassifier(10.0, tol=1e-9).fit(views, y)
    flat = LinearProbeClassifier(30.0 / 9.0, tol=1e-9).fit(views.reshape(-1, 8), np.repeat(y, 3))
    np.testing.assert_allclose(clf.logits(X), flat.logits(X), atol=1e-5)
    np.testing.assert_array_equal(clf.logits(views), clf.logits(X))


def test_raw_features_need_a_smaller_C():
    X, y = small()
    clf = LinearProbeClassifier(25.0, tol=1e-9).fit(X, y)
    raw = oracle(1.0).fit(5.0 * unit_rows(X), y)
    np.testing.assert_allclose(clf.predict_proba(X), raw.predict_proba(5.0 * unit_rows(X)), atol=5e-6)


@pytest.mark.parametrize("n_classes", [2, 5])
def test_cv_takes_the_best_of_what_it_tried(n_classes):
    X, y = small(n=100, n_classes=n_classes, spread=0.4)
    clf = LinearProbeClassifier("cv").fit(X, y)
    assert clf.C_ in clf.C_grid_
    assert clf.held_out_loss_[clf.C_grid_ == clf.C_] == clf.held_out_loss_.min()
    assert (np.diff(clf.C_grid_) > 0).all()
    np.testing.assert_allclose(clf.logits(X), LinearProbeClassifier(clf.C_).fit(X, y).logits(X))
    assert not hasattr(LinearProbeClassifier("cv").fit(X, y).set_params(C=1.0).fit(X, y), "C_grid_")


def test_the_path_equals_cold_fits():
    X, y = small(n=60, spread=0.5)
    pictures = distinct_pictures(unit_rows(X), y, np.ones(60), 1)
    losses = held_out_losses(pictures, 3, 1000, 1e-8)
    assert set(losses) - set(GRID)
    fold = np.empty(60, dtype=int)
    for k in range(4):
        fold[pictures.codes == k] = np.arange(15) % 3
    rows = pictures.views[:, 0]
    for C, loss in losses.items():
        cold = 0.0
        for k in range(3):
            inside = fold != k
            model = LinearProbeClassifier(C, tol=1e-9).fit(rows[inside], pictures.codes[inside], np.full(40, 1.5))
            proba = model.predict_proba(rows[~inside])
            cold -= np.log(proba[np.arange(20), pictures.codes[~inside]]).sum()
        assert loss == pytest.approx(cold, rel=1e-4)


def test_cv_follows_the_noise():
    def chosen(spread):
        X, y = small(n=400, d=20, spread=spread)
        return LinearProbeClassifier("cv").fit(X, y).C_

    assert chosen(0.05) < chosen(0.5) < chosen(3.0)


def test_cv_is_near_the_best_fixed_value_on_new_rows(anisotropic_world):
    for seed in range(3):
        X, y, X_test, y_test, _ = anisotropic_world(seed=seed)
        reached = LinearProbeClassifier("cv").fit(X, y).score(X_test, y_test)
        fixed = [LinearProbeClassifier(C).fit(X, y).score(X_test, y_test) for C in (1.0, 10.0, 100.0, 1e3, 1e4)]
        assert reached >= max(fixed) - 0.01


def test_cv_whole_weights_are_repeats_and_order_does_not_matter():
    X, y = small(n=60)
    weights = np.random.default_rng(0).integers(1, 4, 60)
    weighted = LinearProbeClassifier("cv", tol=1e-6).fit(X, y, weights)
    repeats = np.random.default_rng(1).permutation(np.repeat(np.arange(60), weights))
    repeated = LinearProbeClassifier("cv", tol=1e-6).fit(X[repeats], y[repeats])
    assert repeated.C_ == weighted.C_
    np.testing.assert_allclose(repeated.logits(X), weighted.logits(X), atol=1e-3)


def test_cv_with_a_single_picture_of_a_class_warns():
    X, y = small(n=21, n_classes=4)
    X, y = np.vstack([X[y < 3], X[y == 3][:1]]), np.append(y[y < 3], 3)
    with pytest.warns(SkclipWarning, match="class 3 has a single one: C is 10000"):
        clf = LinearProbeClassifier("cv").fit(X, y)
    assert clf.C_ == 1e4
    assert not hasattr(clf, "C_grid_")


def test_beats_nearest_class_mean_where_the_noise_is_anisotropic(anisotropic_world):
    for seed in range(3):
        X, y, X_test, y_test, _ = anisotropic_world(seed=seed)
        means = np.stack([unit_rows(X)[y == k].mean(axis=0) for k in range(20)])
        nearest = np.mean(np.argmax(unit_rows(X_test) @ unit_rows(means).T, axis=1) == y_test)
        assert LinearProbeClassifier().fit(X, y).score(X_test, y_test) > nearest + 0.2
        assert LinearProbeClassifier("cv").fit(X, y).score(X_test, y_test) > nearest + 0.3


def test_beats_nearest_class_mean_on_pictures(sketches):
    X, y, X_test, y_test = sketches.X, sketches.y, sketches.X_test, sketches.y_test
    labels = np.unique(y)
    means = np.stack([unit_rows(X)[y == k].mean(axis=0) for k in labels])
    nearest = np.mean(labels[np.argmax(unit_rows(X_test) @ unit_rows(means).T, axis=1)] == y_test)
    assert LinearProbeClassifier().fit(X, y).score(X_test, y_test) > nearest + 0.02


def test_running_out_of_iterations_warns():
    X, y = small()
    with pytest.warns(ConvergenceWarning, match="2 iterations: increase max_iter"):
        clf = LinearProbeClassifier(1e3, max_iter=2).fit(X, y)
    assert clf.n_iter_ == 2
    assert len(clf.loss_curve_) == 3


def test_a_tolerance_beyond_float32_is_reached_in_float64():
    X, y = clip_like(2000)
    clf = LinearProbeClassifier(10.0, tol=1e-9).fit(X, y)
    double = LinearProbeClassifier(10.0, tol=1e-9).fit(X.astype(np.float64), y)
    np.testing.assert_allclose(clf.predict_proba(X), double.predict_proba(X), atol=1e-6)


def test_a_tolerance_beyond_float64_warns():
    X, y = small()
    with pytest.warns(ConvergenceWarning, match=r"float64 cannot resolve tol=1e-30; pass a larger tol"):
        LinearProbeClassifier(10.0, tol=1e-30, max_iter=100_000).fit(X, y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shots", [1, 2, 4])
def test_few_rows_and_next_to_no_penalty(shots, dtype):
    # the first step goes so far that every row is right and the loss has no slope left
    rng = np.random.default_rng(shots)
    y = np.repeat(np.arange(6), shots)
    X = (np.eye(6, 40)[y] + 0.1 * rng.normal(size=(len(y), 40))).astype(dtype)
    for C in (1e4, 1e5, 3e5):
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            clf = LinearProbeClassifier(C).fit(X, y)
        np.testing.assert_array_equal(clf.predict(X), y)
        assert clf.loss_curve_[-1] < 0.05


def test_loss_curve_falls_and_verbose_prints(capsys):
    X, y = clip_like(1000)
    clf = LinearProbeClassifier(10.0, verbose=1).fit(X, y)
    assert f"C=10, {clf.n_iter_} iterations" in capsys.readouterr().out
    assert clf.loss_curve_[0] == pytest.approx(np.log(20), rel=1e-5)
    assert (np.diff(clf.loss_curve_) < 1e-6).all()


def test_pickled_state_is_small():
    X, y = small()
    clf = LinearProbeClassifier("cv").fit(X, y)
    assert len(pickle.dumps(clf)) < clf.coef_.nbytes + 10_000
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clf)).logits(X), clf.logits(X))


def test_penalty_of_two_classes():
    assert penalty_of(4.0, 3) == 0.25
    assert penalty_of(4.0, 2) == 0.5


@pytest.mark.parametrize(
    ("params", "weights", "message"),
    [
        ({"C": 0}, None, "'C' parameter"),
        ({"C": "best"}, None, "'C' parameter"),
        ({"tol": 0}, None, "'tol' parameter"),
        ({"max_iter": 0}, None, "'max_iter' parameter"),
        ({"class_weight": {0: 0.0}}, None, "class_weight of class 0 is 0"),
        ({"class_weight": {9: 1.0}}, None, "not in class_weight"),
        ({}, np.zeros(120), "zero"),
        ({}, np.ones(7), r"sample_weight.shape == \(7,\)"),
    ],
)
def test_bad_parameters_are_named(params, weights, message):
    X, y = small()
    with pytest.raises(ValueError, match=message):
        LinearProbeClassifier(**params).fit(X, y, weights)


def test_bad_rows_are_named():
    X, y = small()
    X[5, 2] = np.nan
    with pytest.raises(ValueError, match=r"X\[5, 2\]"):
        LinearProbeClassifier().fit(X, y)
    X, y = small()
    X[y == 1] = 0.0
    with pytest.raises(ValueError, match="class 1 is all zeros"):
        LinearProbeClassifier().fit(X, y)
    X, y = small()
    with pytest.raises(ValueError, match="one class"):
        LinearProbeClassifier().fit(X, np.zeros(120))
    with pytest.raises(ValueError, match="inconsistent"):
        LinearProbeClassifier().fit(X, y[:-1])
    with pytest.raises(ValueError, match="features"):
        LinearProbeClassifier().fit(X, y).predict(X[:, :5])
