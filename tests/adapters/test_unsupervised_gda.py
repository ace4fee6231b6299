from __future__ import annotations

import pickle
import tracemalloc

import joblib
import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from sklearn import config_context
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip.adapters import GDAClassifier, UnsupervisedGDA
from skclip.datasets import make_picture_world
from skclip.utils._arrays import unit_rows

VARIANTS = [
    UnsupervisedGDA(),
    UnsupervisedGDA(update_priors=True, precision_scale="unit"),
    UnsupervisedGDA(covariance="oas", precision_scale="paper", alpha=0.3),
    UnsupervisedGDA(covariance="empirical"),
]


@parametrize_with_checks(VARIANTS)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def small(n=90, d=8, n_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    means = rng.normal(size=(n_classes, d))
    y = rng.integers(n_classes, size=n)
    text = means + 0.7 * rng.normal(size=means.shape)
    return means[y] + 0.6 * rng.normal(size=(n, d)) + 0.5, y, text


def literal(X, text, *, alpha=1.0, logit_scale=100.0, factor=1.0, n_iter=10, tol=0.0, update_priors=False):
    """The algorithm, written as it is defined."""
    X, T = unit_rows(X), unit_rows(text)
    n, d = X.shape
    K = len(T)
    G = softmax(logit_scale * X @ T.T, axis=1)
    changes, losses = [], []
    for _ in range(n_iter):
        n_k = G.sum(axis=0)
        mu = G.T @ X / n_k[:, None]
        S = np.zeros((d, d))
        for i in range(n):
            for k in range(K):
                S += G[i, k] * np.outer(X[i] - mu[k], X[i] - mu[k]) / n
        # Kubokawa-Srivastava with divisor N - 1
        S1 = S * n / (n - 1)
        rho = d / (n - 1 + d)
        shrunk = (1 - rho) * S1 + rho * np.trace(S1) / d * np.eye(d)
        P = factor * np.linalg.inv(shrunk)
        pi = n_k / n if update_priors else np.full(K, 1 / K)
        W, b = mu @ P, np.log(pi) - 0.5 * np.einsum("kd,kd->k", mu @ P, mu)
        logits = logit_scale * X @ T.T + alpha * (X @ W.T + b)
        new = softmax(logits, axis=1)
        changes.append(0.5 * np.abs(new - G).sum(axis=1).mean())
        weights = softmax(logit_scale * X @ T.T, axis=1) * pi**alpha
        squares = np.einsum("ikd,de,ike->ik", X[:, None] - mu, np.linalg.inv(shrunk), X[:, None] - mu)
        density = -0.5 * (squares + np.linalg.slogdet(shrunk)[1] + d * np.log(2 * np.pi))
        losses.append(-np.mean(logsumexp(np.log(weights) + alpha * factor * density, axis=1)))
        G = new
        if changes[-1] < tol:
            break
    return W, b, n_k, changes, losses


@pytest.mark.parametrize("update_priors", [False, True])
@pytest.mark.parametrize(("scale", "alpha"), [("support", 1.0), ("unit", 0.5), ("paper", 2.0)])
def test_iterations_are_the_formula(scale, alpha, update_priors):
    X, _, text = small()
    factor = {"support": 90 / (90 + 4 * 8), "unit": 1.0, "paper": 8 / (89 + 8)}[scale]
    clf = UnsupervisedGDA(text, alpha=alpha, precision_scale=scale, update_priors=update_priors, logit_scale=20, tol=0)
    clf.fit(X)
    W, b, n_k, changes, losses = literal(
        X, text, alpha=alpha, factor=factor, logit_scale=20, update_priors=update_priors
    )
    assert clf.n_iter_ == 10
    assert clf.precision_factor_ == pytest.approx(factor)
    np.testing.assert_allclose(clf.coef_, W, rtol=1e-8)
    np.testing.assert_allclose(clf.intercept_, b, rtol=1e-8)
    np.testing.assert_allclose(clf.counts_, n_k, rtol=1e-8)
    np.testing.assert_allclose(clf.change_curve_, changes, atol=1e-10)
    np.testing.assert_allclose(clf.loss_curve_, losses, rtol=1e-8)
    expected = 20 * unit_rows(X) @ unit_rows(text).T + alpha * (unit_rows(X) @ W.T + b)
    np.testing.assert_allclose(clf.logits(X), expected, rtol=1e-8)


def test_stops_where_responsibilities_have_settled():
    X, _, text = small()
    changes = literal(X, text, n_iter=30, factor=90 / (90 + 32), logit_scale=20.0)[3]
    tol = 0.5 * (changes[3] + changes[4])
    clf = UnsupervisedGDA(text, logit_scale=20, tol=tol, max_iter=30).fit(X)
    assert clf.n_iter_ == int(np.argmax(np.array(changes) < tol)) + 1
    assert clf.change_curve_[-1] < tol
    assert UnsupervisedGDA(text, logit_scale=20, max_iter=2, tol=0).fit(X).n_iter_ == 2


@pytest.mark.parametrize("update_priors", [False, True])
@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_the_likelihood_rises_without_shrinkage(alpha, update_priors):
    X, _, text = small(n=300)
    clf = UnsupervisedGDA(
        text, alpha=alpha, covariance="empirical", logit_scale=5, max_iter=40, tol=0, update_priors=update_priors
    )
    loss = np.array(clf.fit(X).loss_curve_)
    assert (np.diff(loss) <= 1e-9).all()
    assert loss[0] - loss[-1] > 0.01


def test_alpha_zero_is_zero_shot_exactly():
    X, _, text = small()
    X, text = X.astype(np.float32), unit_rows(text).astype(np.float32)
    clf = UnsupervisedGDA(text, alpha=0, logit_scale=50).fit(X)
    np.testing.assert_array_equal(clf.logits(X), 50.0 * (unit_rows(X) @ clf.prototypes_.T))
    assert clf.n_iter_ == 1
    np.testing.assert_allclose(clf.change_curve_, 0.0, atol=1e-10)


def test_certain_text_makes_it_the_supervised_model():
    X, _, text = small(n=200)
    y = np.argmax(unit_rows(X) @ unit_rows(text).T, axis=1)
    clf = UnsupervisedGDA(text, logit_scale=1e7, precision_scale="unit").fit(X)
    known = GDAClassifier(text, precision_scale="unit", logit_scale=1e7).fit(X, y)
    assert clf.n_iter_ == 1
    np.testing.assert_allclose(clf.coef_, known.coef_, rtol=1e-7)
    np.testing.assert_allclose(clf.intercept_, known.intercept_, rtol=1e-7)


def test_labels_are_not_read_where_there_is_text():
    X, y, text = small()
    expected = UnsupervisedGDA(text).fit(X).logits(X)
    wrong = np.array(["x", "y"])[(y > 1).astype(int)]
    np.testing.assert_array_equal(UnsupervisedGDA(text).fit(X, wrong).logits(X), expected)


def test_labels_start_em_where_there_is_no_text():
    X, y, _ = small(n=400)
    names = np.array(["ant", "bee", "cat", "dog"])
    clf = UnsupervisedGDA(max_iter=1, precision_scale="unit").fit(X, names[y])
    assert clf.classes_.tolist() == names.tolist()
    known = GDAClassifier(precision_scale="unit").fit(X, names[y])
    np.testing.assert_allclose(clf.logits(X), known.logits(X), rtol=1e-8)
    assert UnsupervisedGDA().fit(X, names[y]).n_iter_ > 1
    with pytest.raises(ValueError, match="requires y to be passed"):
        UnsupervisedGDA().fit(X)


def test_classes_are_those_of_the_text(text_estimator):
    X, _, text = small()
    names = np.array(["zebra", "ant", "owl", "cat"])
    expected = UnsupervisedGDA(text).fit(X)
    loose = text_estimator(text, names)
    clf = UnsupervisedGDA(loose).fit(X)
    assert clf.classes_.tolist() == ["ant", "cat", "owl", "zebra"]
    assert not hasattr(loose, "classes_")
    np.testing.assert_allclose(clf.logits(X), expected.logits(X)[:, [1, 3, 2, 0]], rtol=1e-5)
    kept = text_estimator(text, names).fit()
    kept.logit_scale_ = 3.0  # a fit would set 100
    assert UnsupervisedGDA(FrozenEstimator(kept)).fit(X).logit_scale_ == 3.0
    real = ZeroShotClassifier(prototypes=text, classes=names)
    np.testing.assert_allclose(UnsupervisedGDA(real).fit(X).logits(X), clf.logits(X), rtol=1e-5)


def test_order_and_length_of_rows_and_rotations_change_nothing():
    X, _, text = small()
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(8, 8)))[0]
    order, lengths = rng.permutation(90), rng.uniform(0.1, 10, (90, 1))
    expected = UnsupervisedGDA(text).fit(X).logits(X)
    np.testing.assert_allclose(UnsupervisedGDA(text).fit(X[order]).logits(X), expected, rtol=1e-7)
    np.testing.assert_allclose(UnsupervisedGDA(text).fit(X * lengths).logits(X), expected, rtol=1e-7)
    turned = UnsupervisedGDA(text @ rotation).fit(X @ rotation)
    np.testing.assert_allclose(turned.logits(X @ rotation), expected, rtol=1e-6)


def test_whole_weights_are_repeats_and_zeros_leave_out():
    X, _, text = small()
    weights = np.arange(90) % 4
    expected = UnsupervisedGDA(text).fit(np.repeat(X, weights, axis=0)).logits(X)
    clf = UnsupervisedGDA(text).fit(X, sample_weight=weights)
    np.testing.assert_allclose(clf.logits(X), expected, rtol=1e-7)
    seeded = UnsupervisedGDA().fit(X, np.arange(90) % 3, sample_weight=weights + 1)
    repeated = UnsupervisedGDA().fit(np.repeat(X, weights + 1, axis=0), np.repeat(np.arange(90) % 3, weights + 1))
    np.testing.assert_allclose(seeded.logits(X), repeated.logits(X), rtol=1e-6)


def test_views_are_rows():
    X, _, text = small()
    views = np.stack([X, X + 0.1], axis=1)
    clf = UnsupervisedGDA(text).fit(views, sample_weight=np.ones(90))
    expected = UnsupervisedGDA(text).fit(views.reshape(180, 8))
    np.testing.assert_allclose(clf.coef_, expected.coef_, rtol=1e-9)
    np.testing.assert_array_equal(clf.predict_proba(views), clf.predict_proba(X))


def test_blocks_change_nothing_and_bound_the_memory():
    rng = np.random.default_rng(0)
    text = rng.normal(size=(200, 32)).astype(np.float32)
    X = (text[rng.integers(200, size=20_000)] + rng.normal(size=(20_000, 32))).astype(np.float32)
    whole = UnsupervisedGDA(text, max_iter=2).fit(X)
    with config_context(working_memory=1):
        tracemalloc.start()
        blocks = UnsupervisedGDA(text, max_iter=2).fit(X)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    np.testing.assert_allclose(blocks.means_, whole.means_, atol=1e-5)
    assert peak < 8e6  # responsibilities alone would take 16 MB


def test_a_class_without_pictures_keeps_its_text():
    X, _, text = small(n=200)
    X, text = X + 3, text + 3
    far = np.vstack([text, -np.ones(8)])
    clf = UnsupervisedGDA(far, logit_scale=1000).fit(X.astype(np.float32))
    assert clf.counts_[4] == 0.0
    assert np.isfinite(clf.logits(X)).all()
    np.testing.assert_allclose(clf.means_[4], unit_rows(X).mean(axis=0), atol=1e-6)
    assert clf.predict(-np.ones((1, 8))) == [4]


@pytest.mark.parametrize("seed", range(3))
def test_2000_pictures_without_labels_are_nearly_enough(seed, anisotropic_world):
    *_, X, y, text = anisotropic_world(n_test=4000, seed=seed)
    zero_shot = UnsupervisedGDA(text, alpha=0).fit(X[:2000]).score(X[2000:], y[2000:])
    clf = UnsupervisedGDA(text).fit(X[:2000])
    assert 0.4 < zero_shot < 0.7
    assert clf.score(X[2000:], y[2000:]) > (0.95 if seed == 0 else 0.99)
    assert UnsupervisedGDA(text, precision_scale="unit").fit(X[:2000]).score(X[2000:], y[2000:]) > 0.987


@pytest.mark.parametrize("n", [50, 100, 200, 500, 1000])
def test_loses_little_with_few_pictures(n, anisotropic_world):
    gains = []
    for seed in range(5):
        *_, X, y, text = anisotropic_world(n_test=4000, seed=seed)
        zero_shot = UnsupervisedGDA(text, alpha=0).fit(X[:n]).score(X[2000:], y[2000:])
        gains.append(UnsupervisedGDA(text).fit(X[:n]).score(X[2000:], y[2000:]) - zero_shot)
    assert min(gains) > -0.03
    assert np.mean(gains) > {50: -0.02, 100: 0.0, 200: 0.04, 500: 0.25, 1000: 0.4}[n]


def check_gains(X, X_test, y_test, text, gain):
    zero_shot = text.score(X_test, y_test)
    assert UnsupervisedGDA(text).fit(X).score(X_test, y_test) >= zero_shot + gain
    # 100 pictures for 64 classes cannot do harm either
    assert UnsupervisedGDA(text).fit(X[:100]).score(X_test, y_test) >= zero_shot - 0.01


def test_adapts_to_sketches_without_labels(sketches):
    check_gains(sketches.X, sketches.X_test, sketches.y_test, sketches.text, 0.01)


@pytest.mark.parametrize(("style", "gain"), [("photo", 0.0), ("dark", 0.02)])
def test_adapts_to_pictures_without_labels(style, gain):
    world = make_picture_world(1700, held_out="include", styles=[style], random_state=101)
    X = CLIPFeatures("skclip-tiny").transform(world.images)
    names = {name: name for name in world.target_names}
    text = ZeroShotClassifier("skclip-tiny", class_names=names, templates="a photo of a {}").fit()
    check_gains(X[:1200], X[1200:], world.target[1200:], text, gain)


@pytest.mark.realdata
@pytest.mark.parametrize(("train", "test", "gain"), [(4, 2, 0.8), (1, 4, -0.3)])
def test_imagenet_without_labels(real_features, train, test, gain):
    data = real_features("imagenet")
    X, X_test, y_test = data[f"X_train_{train}"], data[f"X_train_{test}"], data[f"y_train_{test}"]
    zero_shot = 100 * UnsupervisedGDA(data["text"], alpha=0).fit(X).score(X_test, y_test)
    reached = 100 * UnsupervisedGDA(data["text"]).fit(X).score(X_test, y_test)
    assert reached >= zero_shot + gain
    if train == 4:
        own = UnsupervisedGDA(data["text"]).fit(X).score(X, data["y_train_4"])
        assert 100 * own >= 60.55 + 1.2
        unit = UnsupervisedGDA(data["text"], precision_scale="unit").fit(X)
        assert 100 * unit.score(X_test, y_test) < zero_shot - 5  # why it is not the default


def test_bad_input(text_estimator):
    X, y, text = small()
    with pytest.raises(ValueError, match="at least two"):
        UnsupervisedGDA(text).fit(X[:1])
    with pytest.raises(ValueError, match="All 90 rows of X are all zeros"):
        UnsupervisedGDA(text).fit(np.zeros_like(X))
    with pytest.raises(ValueError, match="one class only, 'ant'"):
        UnsupervisedGDA(text_estimator(text[:1], ["ant"])).fit(X)
    with pytest.raises(ValueError, match="one class only"):
        UnsupervisedGDA().fit(X, np.zeros(90))
    with pytest.raises(ValueError, match=r"width 7.*8 features"):
        UnsupervisedGDA(text[:, :7]).fit(X)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        UnsupervisedGDA(text).fit(X, y[:-1])
    with pytest.raises(ValueError, match="Every sample_weight is zero"):
        UnsupervisedGDA(text).fit(X, sample_weight=np.zeros(90))
    with pytest.raises(ValueError, match="expected \\(90,\\)"):
        UnsupervisedGDA(text).fit(X, sample_weight=np.ones(89))
    with pytest.raises(ValueError, match=r"sample_weight\[3\] is -1"):
        UnsupervisedGDA(text).fit(X, sample_weight=np.where(np.arange(90) == 3, -1, 1))
    for params in ({"alpha": -1}, {"alpha": "cv"}, {"max_iter": 0}, {"covariance": "pooled"}, {"tol": -1}):
        with pytest.raises(ValueError, match=next(iter(params))):
            UnsupervisedGDA(text, **params).fit(X)
    X[4, 1] = np.inf
    with pytest.raises(ValueError, match=r"X\[4, 1\]"):
        UnsupervisedGDA(text).fit(X)


def test_equal_rows_are_no_reason_to_fail():
    clf = UnsupervisedGDA(np.eye(3, 4)).fit(np.ones((6, 4)))
    np.testing.assert_allclose(clf.predict_proba(np.ones((2, 4))), 1 / 3)


def test_float32_rows_are_close_to_float64():
    X, _, text = small(n=300)
    double = UnsupervisedGDA(text, logit_scale=20).fit(X).predict_proba(X)
    single = UnsupervisedGDA(text.astype(np.float32), logit_scale=20).fit(X.astype(np.float32))
    np.testing.assert_allclose(single.predict_proba(X.astype(np.float32)), double, atol=1e-3)


def test_pickles_to_its_arrays(tmp_path, text_estimator):
    X, _, text = small(n=200)
    clf = UnsupervisedGDA(text_estimator(text, list("dbca"))).fit(X)
    size = sum(value.nbytes for value in vars(clf).values() if isinstance(value, np.ndarray))
    given = len(pickle.dumps(clf.zero_shot)) + len(pickle.dumps(clf.zero_shot_))
    assert len(pickle.dumps(clf)) < size + given + 10_000
    joblib.dump(clf, tmp_path / "clf.joblib")
    loaded = joblib.load(tmp_path / "clf.joblib", mmap_mode="r")
    np.testing.assert_array_equal(loaded.logits(X), clf.logits(X))
    np.testing.assert_array_equal(clone(clf).fit(X).logits(X), clf.logits(X))


def test_skops_trusts_only_what_it_knows():
    io = pytest.importorskip("skops.io")
    X, _, text = small()
    clf = UnsupervisedGDA(text).fit(X)
    data = io.dumps(clf)
    unknown = io.get_untrusted_types(data=data)
    assert all(name.startswith("skclip.") for name in unknown)
    np.testing.assert_array_equal(io.loads(data, trusted=unknown).logits(X), clf.logits(X))
