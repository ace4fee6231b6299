from __future__ import annotations

import pickle
import warnings

import joblib
import numpy as np
import pytest
import sklearn
from scipy.special import softmax
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.adapters import SuSXClassifier, TipAdapterClassifier
from skclip.adapters._signatures import Ranges, divergence_logits, divergence_sums, text_signature
from skclip.adapters._support import BETAS
from skclip.utils import SkclipWarning
from skclip.utils._arrays import unit_rows

CV = {"alpha": "cv", "beta": "cv", "gamma": "cv"}
NUMBERS = {"alpha": 1.7, "beta": 3.0, "gamma": 0.8}


def small(n=60, d=10, n_classes=4, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    means = spread * rng.normal(size=(n_classes, d))
    return rng.normal(size=(n, d)) + means[y], y, means


@pytest.mark.filterwarnings("ignore:.*(leaves|holds) out pictures")
@parametrize_with_checks([SuSXClassifier(), SuSXClassifier(**CV), SuSXClassifier(alpha=20.0, beta="cv")])
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def literal_logits(X, y, X_test, text, alpha, beta, gamma, temperature=0.5, rescale="fit", weights=None):
    """The method as the paper writes it, pair by pair."""
    F, x, T = unit_rows(X), unit_rows(X_test), unit_rows(text)
    L = np.eye(y.max() + 1)[y] * (1.0 if weights is None else weights[:, None])

    def kl(a, b):
        q, s = softmax(a @ T.T / temperature, axis=1), softmax(b @ T.T / temperature, axis=1)
        return np.array([[sum(q[i] * np.log(q[i] / s[j])) for j in range(len(s))] for i in range(len(q))])

    A, M = x @ F.T, kl(x, F)
    A_of_range, M_of_range = A, M
    if rescale == "fit":
        others = ~np.eye(len(F), dtype=bool)
        A_of_range, M_of_range = (F @ F.T)[others], kl(F, F)[others]
    share = (M - M_of_range.min()) / (M_of_range.max() - M_of_range.min())
    moved = A_of_range.min() + share * (A_of_range.max() - A_of_range.min())
    return 100 * x @ T.T - gamma * moved @ L + alpha * np.exp(-beta * (1 - A)) @ L


@pytest.mark.parametrize("rescale", ["fit", "batch"])
@pytest.mark.parametrize("temperature", [0.5, 0.05])
def test_logits_are_the_formula(rescale, temperature):
    X, y, text = small()
    weights = np.random.default_rng(0).uniform(0.5, 2.0, 60)
    clf = SuSXClassifier(text, **NUMBERS, rescale=rescale, temperature=temperature)
    clf.fit(X, y, sample_weight=weights)
    for rows in (X[:7] + 0.1, X[20:22] - 0.3):
        expected = literal_logits(
            X, y, rows, text, **NUMBERS, rescale=rescale, temperature=temperature, weights=weights
        )
        np.testing.assert_allclose(clf.logits(rows), expected, atol=1e-6)


def test_without_signatures_it_is_tip_adapter():
    X, y, text = small()
    for zero_shot in (text, None):
        tip = TipAdapterClassifier(zero_shot, alpha=1.7, beta=3.0).fit(X, y)
        clf = SuSXClassifier(zero_shot, alpha=1.7, beta=3.0, gamma=0.0).fit(X, y)
        np.testing.assert_allclose(clf.logits(X + 0.1), tip.logits(X + 0.1), rtol=1e-12)


def test_without_votes_it_is_zero_shot_exactly():
    X, y, text = small()
    X, text = X.astype(np.float32), unit_rows(text).astype(np.float32)
    clf = SuSXClassifier(text, alpha=0, gamma=0, logit_scale=50.0).fit(X, y)
    np.testing.assert_array_equal(clf.logits(X), 50.0 * (unit_rows(X) @ clf.prototypes_.T))


def test_without_text_there_are_no_signatures():
    X, y, _ = small()
    clf = SuSXClassifier(alpha=1.7, beta=3.0, gamma=5.0).fit(X, y)
    assert clf.gamma_ == 0.0
    assert clf.signature_sums_ is None
    expected = 1.7 * np.exp(-3.0 * (1.0 - unit_rows(X) @ unit_rows(X).T)) @ np.eye(4)[y]
    np.testing.assert_allclose(clf.logits(X), expected)


def test_a_support_picture_is_most_like_itself():
    X, y, text = small(n=12)
    clf = SuSXClassifier(text, alpha=0.0, gamma=1.0).fit(X, y)
    signature = text_signature(clf.prototypes_, 0.5)
    votes = []
    for j in range(12):  # each support picture as if it were the only one
        one = divergence_sums(signature(clf.keys_), signature(clf.keys_[j : j + 1]), np.ones(1))
        ranges = Ranges(tuple(clf.affinity_range_), tuple(clf.divergence_range_))
        votes.append(divergence_logits(one, np.ones(1), ranges)[:, 0])
    np.testing.assert_array_equal(np.argmax(votes, axis=1), np.arange(12))


@pytest.mark.parametrize("params", [NUMBERS, CV])
def test_queries_do_not_depend_on_each_other(params):
    X, y, text = small()
    clf = SuSXClassifier(text, **params).fit(X, y)
    rows = X + 0.2
    one_by_one = np.concatenate([clf.logits(rows[i : i + 1]) for i in range(60)])
    np.testing.assert_allclose(one_by_one, clf.logits(rows), atol=1e-9)


def test_ranges_of_a_batch_tie_its_queries_together():
    X, y, text = small()
    clf = SuSXClassifier(text, **NUMBERS, rescale="batch").fit(X, y)
    assert clf.affinity_range_ is None
    rows = X + 0.2
    assert np.abs(clf.logits(rows[:5]) - clf.logits(rows)[:5]).max() > 0.01
    # all of a batch move alike, the last of it included, which the official code leaves out
    literal = literal_logits(X, y, rows[:53], text, **NUMBERS, rescale="batch")
    np.testing.assert_allclose(clf.logits(rows[:53]), literal, atol=1e-6)


@pytest.mark.parametrize("params", [NUMBERS, CV])
def test_order_length_and_rotations_change_nothing(params):
    X, y, text = small()
    rng = np.random.default_rng(1)
    order, lengths = rng.permutation(60), rng.uniform(0.1, 10, size=(60, 1))
    rotation = np.linalg.qr(rng.normal(size=(10, 10)))[0]
    expected = SuSXClassifier(text, **params).fit(X, y).logits(X)
    shuffled = SuSXClassifier(text, **params).fit(X[order], y[order])
    np.testing.assert_allclose(shuffled.logits(X), expected, rtol=1e-7)
    scaled = SuSXClassifier(text, **params).fit(X * lengths, y)
    np.testing.assert_allclose(scaled.logits(X * lengths), expected, rtol=1e-7)
    rotated = SuSXClassifier(text @ rotation, **params).fit(X @ rotation, y)
    np.testing.assert_allclose(rotated.logits(X @ rotation), expected, rtol=1e-7)


@pytest.mark.parametrize("text", [True, False])
@pytest.mark.parametrize("params", [NUMBERS, CV])
def test_whole_weights_are_repeated_rows(params, text):
    X, y, prototypes = small()
    weights = np.random.default_rng(3).integers(0, 4, 60)
    zero_shot = prototypes if text else None
    weighted = SuSXClassifier(zero_shot, **params).fit(X, y, sample_weight=weights)
    repeated = SuSXClassifier(zero_shot, **params).fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    np.testing.assert_allclose(weighted.logits(X), repeated.logits(X), rtol=1e-6)


def test_doubling_the_support_doubles_its_votes():
    X, y, text = small()
    twice = SuSXClassifier(text, alpha=1.0, gamma=0.5).fit(np.tile(X, (2, 1)), np.tile(y, 2))
    doubled = SuSXClassifier(text, alpha=2.0, gamma=1.0).fit(X, y)
    np.testing.assert_allclose(twice.logits(X), doubled.logits(X), rtol=1e-9)


def test_views_are_averaged_and_the_first_is_read():
    X, y, text = small()
    views = np.stack([X, X + 0.3, X - 0.1], axis=1)
    clf = SuSXClassifier(text, **CV).fit(views, y)
    assert clf.n_features_in_ == 10
    order = np.argsort(y, kind="stable")
    np.testing.assert_allclose(clf.keys_, unit_rows(views.mean(axis=1))[order])
    np.testing.assert_array_equal(clf.logits(views), clf.logits(X))


def test_small_working_memory_changes_nothing():
    X, y, text = small()
    expected = {
        rescale: SuSXClassifier(text, **CV, rescale=rescale).fit(X, y).logits(X) for rescale in ("fit", "batch")
    }
    with sklearn.config_context(working_memory=0.01):
        for rescale, logits in expected.items():
            clf = SuSXClassifier(text, **CV, rescale=rescale).fit(X, y)
            np.testing.assert_allclose(clf.logits(X), logits, rtol=1e-9)


def test_float32_rows_are_close_to_float64():
    X, y, text = small()
    double = SuSXClassifier(text, **NUMBERS).fit(X, y).predict_proba(X)
    single = SuSXClassifier(text.astype(np.float32), **NUMBERS).fit(X.astype(np.float32), y)
    assert single.keys_.dtype == np.float32
    np.testing.assert_allclose(single.predict_proba(X.astype(np.float32)), double, atol=1e-4)


def test_text_is_aligned_by_label(text_estimator):
    X, y, text = small()
    names = np.array(["zebra", "ant", "owl", "cat"])
    expected = SuSXClassifier(text, **NUMBERS).fit(X, y).logits(X)
    clf = SuSXClassifier(text_estimator(text, names), **NUMBERS).fit(X, names[y])
    np.testing.assert_allclose(clf.logits(X), expected[:, [1, 3, 2, 0]], rtol=1e-5)
    few = y != 1
    assert SuSXClassifier(text, **CV).fit(X[few], y[few]).classes_.tolist() == [0, 2, 3]


# a world in which pictures differ most in what no class name describes


def nuisance_world(seed, useless=False, shots=8, n_classes=12, d=64, n_test=1500):
    """Classes differ in the span of the prototypes, pictures of all classes mostly outside it; or, with `useless`
    text, the other way round."""
    rng = np.random.default_rng(seed)
    basis = np.linalg.qr(rng.normal(size=(d, d)))[0]
    span, rest = basis[:, :n_classes], basis[:, n_classes:]
    text = unit_rows(rng.normal(size=(n_classes, n_classes))) @ span.T
    centre = text + rng.normal(size=(n_classes, n_classes)) @ span.T / np.sqrt(n_classes)
    loudness = 3.0
    if useless:
        centre = 0.5 * rng.normal(size=(n_classes, d - n_classes)) @ rest.T / np.sqrt(d - n_classes)
        loudness = 0.8

    def draw(y):
        within = 0.5 * rng.normal(size=(len(y), n_classes)) @ span.T / np.sqrt(n_classes)
        outside = loudness * rng.normal(size=(len(y), d - n_classes)) @ rest.T / np.sqrt(d - n_classes)
        return centre[y] + within + outside

    y, y_test = np.repeat(np.arange(n_classes), shots), rng.integers(0, n_classes, n_test)
    return draw(y), y, draw(y_test), y_test, text


@pytest.mark.parametrize("seed", range(4))
def test_signatures_see_through_a_nuisance_outside_the_text(seed):
    X, y, X_test, y_test, text = nuisance_world(seed)
    zero_shot = SuSXClassifier(text, alpha=0, gamma=0).fit(X, y).score(X_test, y_test)
    tip = SuSXClassifier(text, alpha="cv", beta="cv", gamma=0).fit(X, y).score(X_test, y_test)
    both = SuSXClassifier(text, **CV).fit(X, y).score(X_test, y_test)
    assert both > max(zero_shot, tip) + 0.015
    assert both > 0.95


@pytest.mark.filterwarnings("ignore:Zero-shot accuracy")
def test_signatures_of_useless_prototypes_are_useless():
    tip, both, alone = [], [], []
    for seed in range(4):
        X, y, X_test, y_test, text = nuisance_world(seed, useless=True)
        tip.append(SuSXClassifier(text, alpha="cv", beta="cv", gamma=0).fit(X, y).score(X_test, y_test))
        both.append(SuSXClassifier(text, **CV).fit(X, y).score(X_test, y_test))
        alone.append(SuSXClassifier(text, alpha=0, gamma=1e4).fit(X, y).score(X_test, y_test))
    assert np.mean(alone) < 0.2
    assert 0.5 < np.mean(tip) < 0.95
    assert abs(np.mean(both) - np.mean(tip)) < 0.01


@pytest.mark.parametrize("seed", range(3))
def test_beats_zero_shot_where_text_is_noisy(seed, anisotropic_world):
    X, y, X_test, y_test, text = anisotropic_world(seed=seed)
    zero_shot = SuSXClassifier(text, alpha=0, gamma=0).fit(X, y).score(X_test, y_test)
    assert SuSXClassifier(text, **CV).fit(X, y).score(X_test, y_test) > zero_shot + 0.03


def test_beats_zero_shot_on_pictures(sketches):
    rng = np.random.default_rng(0)
    order = rng.permutation(len(sketches.y))
    few = np.concatenate([order[sketches.y[order] == k][:8] for k in np.unique(sketches.y)])
    clf = SuSXClassifier(sketches.text, **CV).fit(sketches.X[few], sketches.y[few])
    zero_shot = sketches.text.score(sketches.X_test, sketches.y_test)
    assert clf.score(sketches.X_test, sketches.y_test) > zero_shot + 0.2


# choosing the weights


@pytest.mark.parametrize("params", [{"alpha": "cv"}, {"beta": "cv"}, {"gamma": "cv"}, {"alpha": "cv", "gamma": "cv"}])
def test_numbers_beside_cv_stay(params):
    X, y, text = small()
    clf = SuSXClassifier(text, **{**NUMBERS, **params}).fit(X, y)
    for name, value in NUMBERS.items():
        if name not in params:
            assert getattr(clf, f"{name}_") == value
    assert clf.beta_ in (3.0, *BETAS)


def test_cv_is_near_the_best_of_the_grid(anisotropic_world):
    lost = []
    for seed in range(5):
        X, y, X_test, y_test, text = anisotropic_world(8, seed=seed)
        clf = SuSXClassifier(text, **CV).fit(X, y)
        lost.append(best_fixed(clf, X_test, y_test)[0] - clf.score(X_test, y_test))
    # the best of 300 points on the test rows is itself lucky
    assert np.mean(lost) < 0.015


def best_fixed(fitted, X_test, y_test, n_steps=7):
    """Best accuracy over a grid of fixed alpha, beta, gamma on the test rows; and without signatures."""
    clf = pickle.loads(pickle.dumps(fitted))
    zero_shot = clf.logit_scale_ * unit_rows(X_test) @ clf.prototypes_.T
    codes = np.searchsorted(clf.classes_, y_test)

    def term(alpha, beta, gamma):
        clf.alpha_, clf.beta_, clf.gamma_ = alpha, beta, gamma
        logits = clf.logits(X_test) - zero_shot
        return (logits * (zero_shot.std(axis=1).mean() / logits.std(axis=1).mean())).astype(np.float32)

    steps = np.concatenate([[0.0], np.geomspace(0.05, 3.0, n_steps)]).astype(np.float32)
    divergence, best = term(0.0, 1.0, 1.0), np.zeros(len(steps))
    for beta in (1.0, 2.0, 4.0, 8.0, 16.0):
        votes = term(1.0, beta, 0.0)
        for i, gamma in enumerate(steps):
            base = zero_shot + gamma * divergence
            for alpha in steps:
                best[i] = max(best[i], np.mean(np.argmax(base + alpha * votes, axis=1) == codes))
    return best.max(), best[0]


@pytest.mark.parametrize("text", [True, False])
def test_single_pictures_warn_once(text):
    X, y, prototypes = small()
    zero_shot = prototypes if text else None
    alone = (y > 0) | (np.cumsum(y == 0) == 1)
    with pytest.warns(SkclipWarning, match="class 0 has a single one: it is not (left|held) out") as caught:
        clf = SuSXClassifier(zero_shot, **CV).fit(X[alone], y[alone])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert np.isfinite(clf.logits(X)).all()
    with pytest.warns(SkclipWarning, match="alpha is 1, beta is 1") as caught:
        clf = SuSXClassifier(zero_shot, **CV).fit(X[:4], y[:4])
    assert len(caught) == 1
    assert (clf.alpha_, clf.beta_) == (1.0, 1.0)
    # repeats of a picture are one picture
    with pytest.warns(SkclipWarning, match="class 0 has a single one"):
        SuSXClassifier(zero_shot, alpha="cv").fit(np.vstack([X[:4], X[:4]]), np.tile(y[:4], 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        SuSXClassifier(zero_shot).fit(X[:4], y[:4])


# bad input


@pytest.mark.parametrize(
    "params",
    [{"alpha": -1}, {"beta": "best"}, {"gamma": -0.1}, {"temperature": 0}, {"rescale": "all"}, {"logit_scale": 0}],
)
def test_bad_parameters(params):
    X, y, text = small()
    with pytest.raises(InvalidParameterError, match=next(iter(params))):
        SuSXClassifier(text, **params).fit(X, y)


def test_bad_input():
    X, y, text = small()
    clf = SuSXClassifier(text)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        clf.fit(X, y[:-1])
    with pytest.raises(ValueError, match="one class"):
        clf.fit(X, np.zeros(60))
    with pytest.raises(ValueError, match=r"labels can only be 0\.\.3, but y holds -1"):
        clf.fit(X, np.where(y == 0, -1, y))
    with pytest.raises(ValueError, match=r"width 9.*10 features"):
        SuSXClassifier(text[:, :9]).fit(X, y)
    with pytest.raises(ValueError, match="Every row of class 2 is all zeros"):
        clf.fit(np.where((y == 2)[:, None], 0.0, X), y)
    with pytest.raises(ValueError, match="Every sample_weight is zero"):
        clf.fit(X, y, sample_weight=np.zeros(60))
    with pytest.raises(ValueError, match=r"X\[3, 2\]"):
        clf.fit(np.where(np.arange(600).reshape(60, 10) == 32, np.nan, X), y)
    with pytest.raises(NotFittedError):
        SuSXClassifier(text).predict(X)
    with pytest.raises(ValueError, match="9 features, but SuSXClassifier is expecting 10"):
        clf.fit(X, y).predict(X[:, :9])
    with pytest.warns(SkclipWarning, match="Zero-shot accuracy"):
        SuSXClassifier(-text).fit(*small(n=120, spread=3.0)[:2])


def test_an_empty_row_among_good_ones_is_predicted():
    X, y, text = small()
    X[5] = 0.0
    clf = SuSXClassifier(text, **CV).fit(X, y)
    assert np.isfinite(clf.logits(X)).all()


def test_saved_and_searched(tmp_path, text_estimator):
    X, y, text = small(n=200, d=60)
    clf = SuSXClassifier(text_estimator(text, [0, 1, 2, 3]), **CV).fit(X, y)
    arrays = [value.nbytes for value in vars(clf).values() if isinstance(value, np.ndarray)]
    assert len(pickle.dumps(clf)) < sum(arrays) + 2 * len(pickle.dumps(clf.zero_shot_)) + 10_000
    joblib.dump(clf, tmp_path / "clf.joblib")
    loaded = joblib.load(tmp_path / "clf.joblib", mmap_mode="r")
    np.testing.assert_array_equal(loaded.logits(X), clf.logits(X))
    grid = {"gamma": [0.0, 1.0], "zero_shot__logit_scale": [10.0, 100.0]}
    assert GridSearchCV(SuSXClassifier(text_estimator(text, [0, 1, 2, 3])), grid, cv=3).fit(X, y).best_score_ > 0.5


def test_skops_trusts_only_what_it_knows():
    io = pytest.importorskip("skops.io")
    X, y, text = small()
    clf = SuSXClassifier(text, **CV).fit(X, y)
    data = io.dumps(clf)
    unknown = io.get_untrusted_types(data=data)
    assert all(name.startswith("skclip.") for name in unknown)
    np.testing.assert_array_equal(io.loads(data, trusted=unknown).logits(X), clf.logits(X))


@pytest.mark.realdata
def test_imagenet_four_shots(real_features):
    data = real_features("imagenet")
    X, y, text = data["X_train_4"], data["y_train_4"], data["text"]
    X_test, y_test = data["X_train_2"], data["y_train_2"]
    clf = SuSXClassifier(text, **CV).fit(X, y)
    zero_shot = np.mean(np.argmax(unit_rows(X_test) @ clf.prototypes_.T, axis=1) == y_test)
    reached = clf.score(X_test, y_test)
    best, best_tip = best_fixed(clf, X_test, y_test)
    assert zero_shot == pytest.approx(0.6105, abs=5e-4)
    assert reached > zero_shot + 0.025
    assert reached > best - 0.005
    assert best > best_tip


def test_without_text_the_search_is_that_of_tip_adapter():
    X, y, _ = small()
    clf = SuSXClassifier(alpha="cv", beta="cv", gamma="cv").fit(X, y)
    tip = TipAdapterClassifier(alpha="cv", beta="cv").fit(X, y)
    assert (clf.alpha_, clf.beta_, clf.gamma_) == (tip.alpha_, tip.beta_, 0.0)
    unread = SuSXClassifier(alpha=2.0, beta=3.0, gamma="cv").fit(X, y)
    assert (unread.alpha_, unread.beta_, unread.gamma_) == (2.0, 3.0, 0.0)
    np.testing.assert_allclose(clf.logits(X), tip.logits(X))
