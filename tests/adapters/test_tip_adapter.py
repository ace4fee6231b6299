from __future__ import annotations

import pickle
import warnings

import joblib
import numpy as np
import pytest
from scipy.special import softmax
from sklearn import config_context
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, PredefinedSplit
from sklearn.neighbors import KNeighborsClassifier
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.adapters import GDAClassifier, TipAdapterClassifier
from skclip.utils import SkclipWarning
from skclip.utils._arrays import unit_rows


def small(n=60, d=10, n_classes=4, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    means = spread * rng.normal(size=(n_classes, d))
    return rng.normal(size=(n, d)) + means[y] + 1.0, y, means + 1.0


VARIANTS = [
    TipAdapterClassifier(),
    TipAdapterClassifier(alpha="cv", beta="cv"),
    TipAdapterClassifier(beta="cv"),
    TipAdapterClassifier(alpha=3.0, beta=20.0, normalize_values=True),
]


@pytest.mark.filterwarnings('ignore:.*"cv" holds out pictures')
@parametrize_with_checks(VARIANTS)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def literal_logits(X, y, X_test, text=None, alpha=1.0, beta=5.5, logit_scale=100.0, normalize=False):
    """The method, written as the paper writes it."""
    F, f = unit_rows(X), unit_rows(X_test)
    L = (y[:, None] == np.unique(y)).astype(float)
    if normalize:
        L /= L.sum(axis=0)
    A = np.exp(-beta * (1 - f @ F.T))
    return alpha * A @ L + (0 if text is None else logit_scale * f @ unit_rows(text).T)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("with_text", [False, True])
def test_logits_are_the_formula(with_text, normalize):
    X, y, text = small(n=58)
    text = text if with_text else None
    clf = TipAdapterClassifier(text, alpha=0.7, beta=9.0, normalize_values=normalize).fit(X, y)
    expected = literal_logits(X, y, X[:7] + 0.1, text, 0.7, 9.0, normalize=normalize)
    np.testing.assert_allclose(clf.logits(X[:7] + 0.1), expected, rtol=1e-10)
    np.testing.assert_allclose(clf.predict_proba(X[:7] + 0.1), softmax(expected, axis=1), atol=1e-9)


def test_alpha_zero_is_zero_shot_exactly():
    X, y, text = small()
    X, text = X.astype(np.float32), unit_rows(text).astype(np.float32)
    clf = TipAdapterClassifier(text, alpha=0, logit_scale=50.0).fit(X, y)
    np.testing.assert_array_equal(clf.logits(X), 50.0 * (unit_rows(X) @ clf.prototypes_.T))
    assert not TipAdapterClassifier(alpha=0).fit(X, y).logits(X).any()


@pytest.mark.parametrize(("dtype", "beta"), [(np.float64, 300.0), (np.float32, 40.0)])
@pytest.mark.parametrize("with_text", [False, True])
def test_sharp_votes_are_the_nearest_neighbour(dtype, beta, with_text):
    X, y, text = small(spread=0.3)
    X_test = small(n=400, seed=1, spread=0.3)[0]
    affinities = np.sort(unit_rows(X_test) @ unit_rows(X).T, axis=1)
    clear = (affinities[:, -1] - affinities[:, -2]) * beta > np.log(len(X))
    assert clear.sum() > 20
    nearest = KNeighborsClassifier(1, metric="cosine").fit(X, y).predict(X_test)
    text = text.astype(dtype) if with_text else None
    clf = TipAdapterClassifier(text, alpha=1e200, beta=beta).fit(X.astype(dtype), y)
    np.testing.assert_array_equal(clf.predict(X_test.astype(dtype))[clear], nearest[clear])
    if with_text:
        blunt = TipAdapterClassifier(text, alpha=0).fit(X.astype(dtype), y).predict(X_test.astype(dtype))
        assert np.mean(blunt[clear] == nearest[clear]) < 0.9


def test_blunt_votes_are_class_counts():
    X, y, text = small()
    rare = np.concatenate([np.flatnonzero(y > 0), np.flatnonzero(y == 0)[:3]])
    clf = TipAdapterClassifier(alpha=2.0, beta=1e-9).fit(X[rare], y[rare])
    np.testing.assert_allclose(clf.logits(X), np.broadcast_to(2.0 * np.bincount(y[rare]), (60, 4)), rtol=1e-6)
    # of a balanced cache the same for all classes
    balanced = TipAdapterClassifier(text, alpha=100.0, beta=1e-9).fit(X, y)
    np.testing.assert_array_equal(balanced.predict(X), TipAdapterClassifier(text, alpha=0).fit(X, y).predict(X))


def test_a_support_set_twice_is_alpha_doubled():
    X, y, text = small()
    twice = TipAdapterClassifier(text, alpha=0.7).fit(np.r_[X, X], np.r_[y, y])
    doubled = TipAdapterClassifier(text, alpha=1.4).fit(X, y)
    np.testing.assert_allclose(twice.logits(X), doubled.logits(X), rtol=1e-10)
    # but nothing new to means
    once, again = (
        TipAdapterClassifier(text, normalize_values=True).fit(*rows) for rows in ((X, y), (np.r_[X, X], np.r_[y, y]))
    )
    np.testing.assert_allclose(again.logits(X), once.logits(X), rtol=1e-10)


@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.parametrize("setting", [0.5, "cv"])
def test_order_of_rows_and_their_length_change_nothing(setting, with_text):
    X, y, text = small(d=6)
    text = text if with_text else None
    rng = np.random.default_rng(1)
    order, lengths = rng.permutation(len(X)), 2.0 ** rng.integers(-9, 9, size=(len(X), 1))
    expected = TipAdapterClassifier(text, alpha=setting, beta=setting).fit(X, y).logits(X)
    shuffled = TipAdapterClassifier(text, alpha=setting, beta=setting).fit(X[order], y[order])
    np.testing.assert_allclose(shuffled.logits(X), expected, rtol=1e-8)
    if setting == 0.5 or with_text:  # without text keys are drawn by the values of the rows
        scaled = TipAdapterClassifier(text, alpha=setting, beta=setting).fit(X * lengths, y)
        np.testing.assert_allclose(scaled.logits(X * lengths), expected, rtol=1e-8)


def test_support_rows_have_their_own_label():
    X, y, text = small(spread=0.2)
    clf = TipAdapterClassifier(text, alpha=1e6, beta=500.0).fit(X, y)
    np.testing.assert_array_equal(clf.predict(X), y)
    assert np.mean(TipAdapterClassifier(text, alpha=0).fit(X, y).predict(X) == y) < 0.9


def test_views_are_averaged_and_the_first_is_read_outside_fit():
    X, y, text = small()
    views = np.stack([X, 2 * X + 0.5, X - 0.2], axis=1)
    clf = TipAdapterClassifier(text).fit(views, y)
    assert clf.n_features_in_ == 10
    mean = TipAdapterClassifier(text).fit(views.mean(axis=1), y)
    np.testing.assert_allclose(clf.keys_, mean.keys_)
    np.testing.assert_array_equal(clf.logits(views), clf.logits(X))


@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.parametrize("params", [{}, {"alpha": "cv", "beta": "cv"}, {"beta": "cv", "normalize_values": True}])
def test_whole_weights_are_repeated_rows(params, with_text):
    X, y, text = small()
    text = text if with_text else None
    weights = np.random.default_rng(3).integers(0, 4, len(X))
    weighted = TipAdapterClassifier(text, **params).fit(X, y, sample_weight=weights)
    repeated = TipAdapterClassifier(text, **params).fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    assert len(weighted.keys_) == np.count_nonzero(weights)
    np.testing.assert_allclose(weighted.logits(X), repeated.logits(X), rtol=1e-6)


def test_chunks_give_the_model_of_one_fit():
    X, y, text = small(n=100)
    weights = np.random.default_rng(0).integers(0, 4, 100).astype(float)
    whole = TipAdapterClassifier(text, normalize_values=True).fit(X, y, sample_weight=weights)
    chunks = TipAdapterClassifier(text, normalize_values=True)
    for part in (slice(0, 3), slice(3, 50), slice(50, 100)):
        chunks.partial_fit(X[part], y[part], classes=[0, 1, 2, 3], sample_weight=weights[part])
    for name in ("keys_", "codes_", "weights_", "prototypes_"):
        np.testing.assert_array_equal(getattr(chunks, name), getattr(whole, name))
    np.testing.assert_array_equal(chunks.logits(X), whole.logits(X))


def test_fit_then_partial_fit_continues_and_leaves_copies_alone():
    X, y, _ = small(n=100)
    first = TipAdapterClassifier().fit(X[:60], y[:60])
    before = pickle.dumps(first)
    pickle.loads(before).partial_fit(X[60:], y[60:])
    assert pickle.dumps(first) == before
    first.partial_fit(X[60:], y[60:])
    np.testing.assert_array_equal(first.logits(X), TipAdapterClassifier().fit(X, y).logits(X))


def test_a_class_to_come_is_known_by_its_text_alone():
    X, y, text = small()
    few = y < 3
    alone = TipAdapterClassifier().partial_fit(X[few], y[few], classes=[0, 1, 2, 3])
    assert not alone.logits(X)[:, 3].any()
    assert 3 not in alone.predict(X)
    both = TipAdapterClassifier(text).partial_fit(X[few], y[few], classes=[0, 1, 2, 3])
    zero_shot = TipAdapterClassifier(text, alpha=0).fit(X, y).logits(X)
    np.testing.assert_allclose(both.logits(X)[:, 3], zero_shot[:, 3])


@pytest.mark.parametrize("params", [{"alpha": "cv"}, {"beta": "cv"}])
def test_partial_fit_says_why_it_is_missing(params):
    with pytest.raises(AttributeError) as caught:
        getattr(TipAdapterClassifier(**params), "partial_fit")  # noqa: B009
    with pytest.raises(AttributeError, match=f'{next(iter(params))}="cv"'):
        raise caught.value.__cause__


def test_partial_fit_errors():
    X, y, _ = small()
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        TipAdapterClassifier().partial_fit(X, y)
    with pytest.raises(ValueError, match="one class only"):
        TipAdapterClassifier().partial_fit(X, np.zeros(60), classes=[0])
    clf = TipAdapterClassifier().partial_fit(X, y, classes=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="differs from the classes of the first call"):
        clf.partial_fit(X, y, classes=[0, 1, 2, 3, 4])
    with pytest.raises(ValueError, match="7"):
        clf.partial_fit(X, y + 7)
    with pytest.raises(ValueError, match="features"):
        clf.partial_fit(X[:, :9], y)


@pytest.mark.parametrize("seed", range(3))
def test_beats_noisy_text_but_not_discriminant_analysis(seed, anisotropic_world):
    X, y, X_test, y_test, text = anisotropic_world(seed=seed)
    zero_shot = TipAdapterClassifier(text, alpha=0).fit(X, y).score(X_test, y_test)
    reached = TipAdapterClassifier(text, alpha="cv", beta="cv").fit(X, y).score(X_test, y_test)
    means = np.stack([unit_rows(X)[y == k].mean(axis=0) for k in range(20)])
    nearest = np.mean(np.argmax(unit_rows(X_test) @ unit_rows(means).T, axis=1) == y_test)
    neighbours = KNeighborsClassifier(5, metric="cosine").fit(X, y).score(X_test, y_test)
    assert reached > zero_shot + 0.06
    assert reached > nearest + 0.02
    assert reached > neighbours + 0.2
    # noise that is common to all classes is what these learn
    logistic = LogisticRegression(max_iter=1000).fit(X, y).score(X_test, y_test)
    assert min(logistic, GDAClassifier().fit(X, y).score(X_test, y_test)) > reached + 0.2


@pytest.mark.parametrize(("shots", "at_most"), [(2, 0.04), (4, 0.02), (16, 0.01)])
def test_cv_is_near_the_best_fixed_pair_in_the_noisy_world(shots, at_most, anisotropic_world):
    gaps = []
    for seed in range(3):
        X, y, X_test, y_test, text = anisotropic_world(shots, seed=seed)
        reached = TipAdapterClassifier(text, alpha="cv", beta="cv").fit(X, y).score(X_test, y_test)
        zero_shot = TipAdapterClassifier(text, alpha=0).fit(X, y).logits(X_test)
        fixed = []
        for beta in (1.0, 3.0, 10.0, 30.0):
            votes = TipAdapterClassifier(beta=beta).fit(X, y).logits(X_test)
            unit = zero_shot.std(axis=1).mean() / votes.std(axis=1).mean()
            for alpha in unit * np.geomspace(0.01, 10, 13):
                fixed.append(np.mean(np.argmax(zero_shot + alpha * votes, axis=1) == y_test))
        gaps.append(max(fixed) - reached)
    assert np.mean(gaps) < at_most


def test_beats_zero_shot_on_drawn_pictures(sketches):
    text = FrozenEstimator(sketches.text)
    zero_shot = sketches.text.score(sketches.X_test, sketches.y_test)
    for shots, gain in ((2, 0.1), (4, 0.2), (16, 0.35)):
        chosen = np.concatenate([np.flatnonzero(sketches.y == k)[:shots] for k in np.unique(sketches.y)])
        clf = TipAdapterClassifier(text, alpha="cv", beta="cv").fit(sketches.X[chosen], sketches.y[chosen])
        assert clf.score(sketches.X_test, sketches.y_test) > zero_shot + gain


@pytest.mark.parametrize("with_text", [False, True])
def test_cv_keeps_numbers(with_text):
    X, y, text = small()
    text = text if with_text else None
    clf = TipAdapterClassifier(text, alpha="cv", beta=3.0).fit(X, y)
    assert clf.beta_ == 3.0
    assert clf.alpha_ > 0
    clf = TipAdapterClassifier(text, alpha=2.0, beta="cv").fit(X, y)
    assert clf.alpha_ == 2.0
    assert 1.0 <= clf.beta_ <= 100.0


def test_cv_finds_how_much_the_text_knows():
    X, y, text = small(n=400, spread=0.4)
    useless = TipAdapterClassifier(np.random.default_rng(0).normal(size=text.shape), alpha="cv", logit_scale=10.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkclipWarning)  # of guessing
        useless.fit(X, y)
    useful = TipAdapterClassifier(text, alpha="cv", logit_scale=10.0).fit(X, y)
    assert useless.alpha_ > 5 * useful.alpha_


def test_cv_with_equal_rows():
    X = np.repeat([[1.0, 1, 1, 1], [1.0, 1, 1, 2]], 3, axis=0)  # two pictures, each of every class
    y = [0, 1, 2, 0, 1, 2]
    for text in (None, np.ones((3, 4))):
        clf = TipAdapterClassifier(text, alpha="cv", beta="cv").fit(X, y)
        np.testing.assert_allclose(clf.predict_proba(X), 1 / 3)


@pytest.mark.parametrize("with_text", [False, True])
def test_single_pictures_warn_once(with_text):
    X, y, text = small()
    text = text if with_text else None
    some = (y > 0) | (np.cumsum(y == 0) == 1)
    with pytest.warns(SkclipWarning, match="class 0 has a single one: it is not held out") as caught:
        clf = TipAdapterClassifier(text, alpha="cv", beta="cv").fit(X[some], y[some])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert np.isfinite(clf.logits(X)).all()
    with pytest.warns(SkclipWarning, match=r"alpha and beta=.*alpha is 1, beta is 5\.5 unless given") as caught:
        clf = TipAdapterClassifier(text, alpha="cv", beta="cv").fit(X[:4], y[:4])
    assert len(caught) == 1
    assert (clf.alpha_, clf.beta_) == (1.0, 5.5)
    with pytest.warns(SkclipWarning, match='^beta="cv"'):
        assert TipAdapterClassifier(text, alpha=7, beta="cv").fit(X[:4], y[:4]).alpha_ == 7.0


def test_the_published_protocol_by_grid_search():
    """First strict improvement over beta, then alpha, on validation pictures that never join the cache."""
    X, y, text = small(n=40, spread=0.4)
    X_val, y_val, _ = small(n=80, seed=0, spread=0.4)
    X_val = X_val + np.random.default_rng(9).normal(size=X_val.shape)
    betas, alphas = np.linspace(0.1, 7, 12), np.linspace(0.1, 3, 8)
    best, chosen = 0.0, None
    for beta in betas:
        for alpha in alphas:
            logits = literal_logits(X, y, X_val, text, alpha, beta, logit_scale=5.0)
            accuracy = np.mean(logits.argmax(axis=1) == y_val)
            if accuracy > best:
                best, chosen = accuracy, (beta, alpha)
    split = PredefinedSplit(np.r_[np.full(len(X), -1), np.zeros(len(X_val), int)])
    search = GridSearchCV(
        TipAdapterClassifier(text, logit_scale=5.0), {"beta": betas, "alpha": alphas}, cv=split, refit=False
    )
    search.fit(np.r_[X, X_val], np.r_[y, y_val])
    assert search.best_score_ == pytest.approx(best)
    found = search.best_params_
    tied = [p for p, s in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"]) if s == best]
    assert {"beta": chosen[0], "alpha": chosen[1]} in tied
    assert found in tied


def test_text_is_aligned_by_label(text_estimator):
    X, y, text = small()
    names = np.array(["zebra", "ant", "owl", "cat"])  # sorted: ant, cat, owl, zebra
    expected = TipAdapterClassifier(text).fit(X, y)
    clf = TipAdapterClassifier(text_estimator(text, names)).fit(X, names[y])
    assert clf.classes_.tolist() == ["ant", "cat", "owl", "zebra"]
    np.testing.assert_array_equal(clf.predict(X), names[expected.predict(X)])
    np.testing.assert_allclose(clf.logits(X), expected.logits(X)[:, [1, 3, 2, 0]], rtol=1e-6)


def test_text_of_classes_absent_from_y_is_left_out():
    X, y, text = small()
    few = y != 1
    clf = TipAdapterClassifier(text).fit(X[few], y[few])
    assert clf.classes_.tolist() == [0, 2, 3]
    np.testing.assert_allclose(clf.prototypes_, unit_rows(text)[[0, 2, 3]], rtol=1e-6)


def test_text_errors(text_estimator):
    X, y, text = small()
    with pytest.raises(ValueError, match=r"\b3\b.*zero_shot"):
        TipAdapterClassifier(text_estimator(text[:3], [0, 1, 2])).fit(X, y)
    with pytest.raises(ValueError, match=r"-1.*ZeroShotClassifier\(prototypes=\.\.\., classes="):
        TipAdapterClassifier(text).fit(X, y - 1)
    with pytest.raises(ValueError, match=r"width 9.*10 features"):
        TipAdapterClassifier(text[:, :9]).fit(X, y)
    with pytest.warns(SkclipWarning, match="no better than chance") as caught:
        TipAdapterClassifier(text[[1, 2, 3, 0]]).fit(X, y)
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"y": np.zeros(60)}, "one class"),
        ({"y": np.arange(59) % 4}, "inconsistent numbers of samples"),
        ({"y": [1, "a"] * 30}, "mixed type"),
        ({"sample_weight": np.zeros(60)}, "sample_weight is zero"),
        ({"sample_weight": np.ones(59)}, "sample_weight"),
        ({"sample_weight": np.arange(60.0) - 3}, r"sample_weight\[0\]"),
    ],
)
def test_bad_input(change, message):
    X, y, _ = small()
    with pytest.raises((ValueError, TypeError), match=message):
        TipAdapterClassifier().fit(X, **{"y": y, **change})


def test_bad_features():
    X, y, _ = small()
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match=r"NaN.*X\[3, 2\]"):
        TipAdapterClassifier().fit(X, y)
    X[y == 2] = 0.0
    with pytest.raises(ValueError, match="class 2 is all zeros"):
        TipAdapterClassifier().fit(np.nan_to_num(X), y)


@pytest.mark.parametrize(
    "params", [{"alpha": -1}, {"beta": 0.0}, {"beta": "auto"}, {"logit_scale": 0}, {"normalize_values": "yes"}]
)
def test_bad_parameters(params):
    X, y, _ = small()
    with pytest.raises(ValueError, match=f"'{next(iter(params))}' parameter"):
        TipAdapterClassifier(**params).fit(X, y)


def test_decision_function_of_two_classes_is_the_difference():
    X, y, _ = small(n_classes=2)
    clf = TipAdapterClassifier().fit(X, y)
    logits = clf.logits(X)
    assert logits.shape == (60, 2)
    np.testing.assert_allclose(clf.decision_function(X), logits[:, 1] - logits[:, 0])


def test_float32_rows_are_close_to_float64(anisotropic_world):
    X, y, X_test, _, text = anisotropic_world()
    double = TipAdapterClassifier(text).fit(X, y).predict_proba(X_test)
    single = TipAdapterClassifier(text.astype(np.float32)).fit(X.astype(np.float32), y)
    assert single.keys_.dtype == np.float32
    np.testing.assert_allclose(single.predict_proba(X_test.astype(np.float32)), double, atol=1e-3)


def test_pickles_to_its_arrays(tmp_path, text_estimator):
    X, y, text = small(n=200, d=60)
    clf = TipAdapterClassifier(text_estimator(text, [0, 1, 2, 3])).fit(X, y)
    size = sum(value.nbytes for value in vars(clf).values() if isinstance(value, np.ndarray))
    given = len(pickle.dumps(clf.zero_shot)) + len(pickle.dumps(clf.zero_shot_))
    assert len(pickle.dumps(clf)) < size + given + 10_000
    joblib.dump(clf, tmp_path / "clf.joblib")
    loaded = joblib.load(tmp_path / "clf.joblib", mmap_mode="r")
    np.testing.assert_array_equal(loaded.logits(X), clf.logits(X))
    loaded.partial_fit(X, y)


def test_skops_trusts_only_what_it_knows():
    io = pytest.importorskip("skops.io")
    X, y, text = small()
    clf = TipAdapterClassifier(text, alpha="cv", beta="cv").fit(X, y)
    data = io.dumps(clf)
    unknown = io.get_untrusted_types(data=data)
    assert all(name.startswith("skclip.") for name in unknown)
    np.testing.assert_array_equal(io.loads(data, trusted=unknown).logits(X), clf.logits(X))


def test_working_memory_does_not_change_what_is_chosen_without_text():
    X, y, _ = small(spread=2.0)
    clf = TipAdapterClassifier(alpha="cv", beta="cv").fit(X, y)
    expected = clf.alpha_, clf.beta_
    with config_context(working_memory=0.001):
        clf.fit(X, y)
    assert (clf.alpha_, clf.beta_) == pytest.approx(expected)
