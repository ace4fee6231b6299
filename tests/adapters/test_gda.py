from __future__ import annotations

import pickle
import warnings

import joblib
import numpy as np
import pytest
from scipy.special import logsumexp, softmax
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.covariance import GraphicalLasso, LedoitWolf, ShrunkCovariance
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.frozen import FrozenEstimator
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.adapters import GDAClassifier
from skclip.adapters._gda import new_class_model
from skclip.adapters._held_out import Pictures, distinct_pictures, leave_one_out_scores, stratified_folds
from skclip.utils import SkclipWarning
from skclip.utils._arrays import unit_rows

COVARIANCES = ["ks", "pooled", "empirical", "ledoit_wolf", "oas"]


def small(n=60, d=10, n_classes=4, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    means = spread * rng.normal(size=(n_classes, d))
    return rng.normal(size=(n, d)) + means[y] + 1.0, y, means + 1.0


VARIANTS = [
    GDAClassifier(),
    GDAClassifier(alpha="cv"),
    GDAClassifier(precision_scale="unit", priors="empirical"),
    GDAClassifier(covariance="pooled"),
    GDAClassifier(covariance="empirical", alpha=0.1),
    GDAClassifier(covariance="ledoit_wolf", alpha="cv"),
    GDAClassifier(covariance="oas"),
    GDAClassifier(covariance=LedoitWolf()),
]


@pytest.mark.filterwarnings('ignore:alpha="cv" holds out pictures')
@parametrize_with_checks(VARIANTS)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def literal_logits(X, y, X_test, text=None, alpha=1.0, logit_scale=100.0, unit=False):
    """The method, written as the paper writes it."""
    X, X_test = unit_rows(X), unit_rows(X_test)
    n, d = X.shape
    means = np.stack([X[y == k].mean(axis=0) for k in np.unique(y)])
    centred = X - means[np.unique(y, return_inverse=True)[1]]
    S = np.cov(centred.T)
    P = d * np.linalg.pinv((n - 1) * S + np.trace(S) * np.eye(d))
    if unit:
        P /= d / (n - 1 + d)
    W = means @ P
    b = np.log(1 / len(means)) - 0.5 * np.einsum("kd,kd->k", W, means)
    return alpha * (X_test @ W.T + b) + (0 if text is None else logit_scale * X_test @ unit_rows(text).T)


@pytest.mark.parametrize("unit", [False, True])
def test_logits_are_the_formula(unit):
    X, y, text = small()
    clf = GDAClassifier(text, alpha=0.3, precision_scale="unit" if unit else "paper").fit(X, y)
    expected = literal_logits(X, y, X[:7] + 0.1, text, alpha=0.3, unit=unit)
    np.testing.assert_allclose(clf.logits(X[:7] + 0.1), expected, rtol=1e-8)
    np.testing.assert_allclose(clf.predict_proba(X[:7] + 0.1), softmax(expected, axis=1), atol=1e-8)


def test_alpha_zero_is_zero_shot_exactly():
    X, y, text = small()
    X, text = X.astype(np.float32), unit_rows(text).astype(np.float32)
    clf = GDAClassifier(text, alpha=0, logit_scale=50.0).fit(X, y)
    np.testing.assert_array_equal(clf.logits(X), 50.0 * (unit_rows(X) @ clf.prototypes_.T))


def test_equals_linear_discriminant_analysis():
    X, y, _ = small(n=200, spread=0.5)
    rows = unit_rows(X)
    lda = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=10 / (199 + 10), priors=np.full(4, 0.25))
    # LDA divides the scatter by N, KS by N - 1
    proba = lda.fit(rows, y).predict_proba(rows)
    clf = GDAClassifier(precision_scale="unit").fit(X, y)
    logits = clf.logits(X)
    np.testing.assert_allclose(softmax(logits * 200 / 199 - np.log(0.25) / 199, axis=1), proba, atol=1e-8)
    np.testing.assert_array_equal(clf.predict(X), lda.predict(rows))


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("alpha", [0.1, "cv"])
def test_order_of_rows_their_length_and_rotations_change_nothing(covariance, alpha):
    X, y, text = small(d=6)
    rng = np.random.default_rng(1)
    rotation = np.linalg.qr(rng.normal(size=(6, 6)))[0]
    order = rng.permutation(len(X))
    lengths = rng.uniform(0.1, 10, size=(len(X), 1))
    expected = GDAClassifier(text, alpha=alpha, covariance=covariance).fit(X, y).logits(X)
    shuffled = GDAClassifier(text, alpha=alpha, covariance=covariance).fit(X[order], y[order])
    np.testing.assert_allclose(shuffled.logits(X), expected, rtol=1e-6)
    if alpha == "cv" and covariance != "ks":
        return  # folds are drawn by the values of the rows
    scaled = GDAClassifier(text, alpha=alpha, covariance=covariance).fit(X * lengths, y)
    np.testing.assert_allclose(scaled.logits(X * lengths), expected, rtol=1e-6)
    rotated = GDAClassifier(text @ rotation, alpha=alpha, covariance=covariance).fit(X @ rotation, y)
    np.testing.assert_allclose(rotated.logits(X @ rotation), expected, rtol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_beats_every_plain_method_where_the_noise_is_anisotropic(seed, anisotropic_world):
    X, y, X_test, y_test, text = anisotropic_world(seed=seed)
    alone = GDAClassifier().fit(X, y).score(X_test, y_test)
    both = GDAClassifier(text, alpha="cv").fit(X, y)
    zero_shot = GDAClassifier(text, alpha=0).fit(X, y).score(X_test, y_test)
    means = np.stack([unit_rows(X)[y == k].mean(axis=0) for k in range(20)])
    nearest = np.mean(np.argmax(unit_rows(X_test) @ unit_rows(means).T, axis=1) == y_test)
    logistic = LogisticRegression(max_iter=1000).fit(X, y).score(X_test, y_test)
    assert 0.4 < zero_shot < 0.7
    assert alone > 0.98
    assert alone > max(zero_shot, nearest) + 0.25
    assert alone > logistic + 0.01
    assert both.score(X_test, y_test) >= alone - 0.005


@pytest.mark.parametrize("shots", [1, 2, 4, 8, 16])
def test_alpha_cv_is_at_least_as_good_as_both_parts(shots, anisotropic_world):
    reached = []
    for seed in range(5):
        X, y, X_test, y_test, text = anisotropic_world(shots, seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SkclipWarning)
            both = GDAClassifier(text, alpha="cv").fit(X, y)
        text_alone, alone = GDAClassifier(text, alpha=0).fit(X, y), GDAClassifier().fit(X, y)
        reached.append([clf.score(X_test, y_test) for clf in (both, text_alone, alone)])
    both, text_alone, alone = np.mean(reached, axis=0)
    assert both >= max(text_alone, alone) - 0.002


def test_repeated_views_at_unit_scale():
    X, y, _ = small(n=120)
    once = GDAClassifier(precision_scale="unit").fit(X, y)
    views = GDAClassifier(precision_scale="unit").fit(np.repeat(X[:, None], 5, axis=1), y)
    np.testing.assert_allclose(views.means_, once.means_, atol=1e-12)
    assert np.mean(views.predict(X) == once.predict(X)) > 0.97
    np.testing.assert_allclose(views.predict_proba(X), once.predict_proba(X), atol=0.15)
    paper = GDAClassifier().fit(np.repeat(X[:, None], 5, axis=1), y)
    assert paper.precision_factor_ < 0.3 * GDAClassifier().fit(X, y).precision_factor_


def test_only_the_first_view_is_read_outside_fit():
    X, y, _ = small()
    views = np.stack([X, X + 0.1, X - 0.2], axis=1)
    clf = GDAClassifier().fit(views, y)
    assert clf.n_features_in_ == 10
    np.testing.assert_array_equal(clf.logits(views), clf.logits(X))
    np.testing.assert_array_equal(clf.score_samples(views), clf.score_samples(X))
    flat = GDAClassifier().fit(views.reshape(-1, 10), np.repeat(y, 3))
    np.testing.assert_allclose(flat.logits(X), clf.logits(X))


@pytest.mark.parametrize("covariance", ["ks", "empirical", "oas"])
def test_chunks_give_the_model_of_one_fit(covariance):
    X, y, text = small(n=100)
    weights = np.random.default_rng(0).integers(1, 4, 100).astype(float)
    whole = GDAClassifier(text, alpha=0.2, covariance=covariance).fit(X, y, sample_weight=weights)
    chunks = GDAClassifier(text, alpha=0.2, covariance=covariance)
    for part in (slice(0, 3), slice(3, 50), slice(50, 100)):
        chunks.partial_fit(X[part], y[part], classes=[0, 1, 2, 3], sample_weight=weights[part])
    np.testing.assert_allclose(chunks.logits(X), whole.logits(X), rtol=1e-8)
    np.testing.assert_allclose(chunks.score_samples(X), whole.score_samples(X), rtol=1e-8)


def test_fit_then_partial_fit_continues_and_leaves_copies_alone():
    X, y, _ = small(n=100)
    first = GDAClassifier().fit(X[:60], y[:60])
    before = pickle.dumps(first.moments_)
    GDAClassifier.partial_fit(pickle.loads(pickle.dumps(first)), X[60:], y[60:])
    assert pickle.dumps(first.moments_) == before
    first.partial_fit(X[60:], y[60:])
    np.testing.assert_allclose(first.logits(X), GDAClassifier().fit(X, y).logits(X), rtol=1e-8)


def test_a_class_to_come_is_never_predicted():
    X, y, _ = small()
    clf = GDAClassifier().partial_fit(X[y < 3], y[y < 3], classes=[0, 1, 2, 3])
    assert clf.predict_proba(X)[:, 3].max() == 0
    assert np.isfinite(clf.score_samples(X)).all()
    clf.partial_fit(X[y == 3], y[y == 3])
    np.testing.assert_allclose(clf.logits(X), GDAClassifier().fit(X, y).logits(X), rtol=1e-8)


@pytest.mark.parametrize(
    ("params", "message"), [({"alpha": "cv"}, "hold out|held out"), ({"covariance": "pooled"}, "pooled")]
)
def test_partial_fit_says_why_it_is_missing(params, message):
    with pytest.raises(AttributeError) as caught:
        getattr(GDAClassifier(**params), "partial_fit")  # noqa: B009
    with pytest.raises(AttributeError, match=message):
        raise caught.value.__cause__


def test_partial_fit_errors():
    X, y, _ = small()
    with pytest.raises(ValueError, match="classes must be passed on the first call"):
        GDAClassifier().partial_fit(X, y)
    clf = GDAClassifier().partial_fit(X, y, classes=[0, 1, 2, 3])
    with pytest.raises(ValueError, match="differs from the classes of the first call"):
        clf.partial_fit(X, y, classes=[0, 1, 2, 3, 4])
    with pytest.raises(ValueError, match="7"):
        clf.partial_fit(X, y + 7)


@pytest.mark.parametrize("covariance", [*COVARIANCES, GraphicalLasso(0.01), ShrunkCovariance()])
@pytest.mark.parametrize("alpha", [1.0, "cv"])
def test_whole_weights_are_repeated_rows(covariance, alpha):
    X, y, text = small()
    weights = np.random.default_rng(3).integers(0, 4, len(X))
    weighted = GDAClassifier(text, covariance=covariance, alpha=alpha).fit(X, y, sample_weight=weights)
    repeated = GDAClassifier(text, covariance=covariance, alpha=alpha)
    repeated.fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    np.testing.assert_allclose(weighted.logits(X), repeated.logits(X), rtol=1e-5, atol=1e-5)


def test_covariance_that_takes_no_weights():
    X, y, _ = small()
    with pytest.raises(ValueError, match="takes no sample_weight; pass whole numbers"):
        GDAClassifier(covariance=LedoitWolf()).fit(X, y, sample_weight=np.linspace(1, 2, 60))


@pytest.mark.parametrize("weights", [np.zeros(60), np.full(60, -1.0), np.ones(59), np.full(60, np.nan)])
def test_bad_weights(weights):
    X, y, _ = small()
    with pytest.raises(ValueError, match="sample_weight"):
        GDAClassifier().fit(X, y, sample_weight=weights)


def test_pooled_is_the_mean_of_the_covariances():
    X, y, _ = small(n=400)
    rows = unit_rows(X)
    keep = (y > 0) | (np.cumsum(y == 0) == 1)  # one row of class 0, which has no covariance
    clf = GDAClassifier(covariance="pooled").fit(X[keep], y[keep])
    expected = np.mean([np.cov(rows[y == k].T) for k in (1, 2, 3)], axis=0)
    np.testing.assert_allclose(clf.covariance_, expected, atol=1e-12)
    np.testing.assert_allclose(clf.precision_, np.linalg.pinv(expected), rtol=1e-6, atol=1e-6)


def test_covariance_objects_and_names_agree():
    X, y, _ = small()
    named = GDAClassifier(covariance="ledoit_wolf").fit(X, y)
    given = GDAClassifier(covariance=LedoitWolf()).fit(X, y)
    np.testing.assert_allclose(given.logits(X), named.logits(X), rtol=1e-6)


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_score_samples_is_the_log_density_of_the_mixture(covariance):
    X, y, _ = small(n=400)
    priors = [0.1, 0.2, 0.3, 0.4]
    clf = GDAClassifier(covariance=covariance, priors=priors).fit(X, y)
    rows = unit_rows(X[:20] + 0.3)
    densities = [multivariate_normal(m, clf.covariance_).logpdf(rows) for m in clf.means_]
    expected = logsumexp(np.stack(densities, axis=1) + np.log(priors), axis=1)
    scores = clf.score_samples(X[:20] + 0.3)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, expected, rtol=1e-8)
    assert clf.score_samples(X).mean() > clf.score_samples(-X).mean()


def test_singular_covariance_scores_on_its_span():
    X, y, _ = small(n=12, d=30)
    clf = GDAClassifier(covariance="empirical").fit(X, y)
    assert clf.rank_ == 8
    assert np.isfinite(clf.score_samples(X)).all()


def test_priors():
    X, y, _ = small(n=60, spread=0.1)
    X, y = X[:40], np.minimum(y[:40], 1)
    shares = np.bincount(y) / len(y)
    uniform, empirical = GDAClassifier().fit(X, y), GDAClassifier(priors="empirical").fit(X, y)
    np.testing.assert_allclose(empirical.priors_, shares)
    difference = empirical.logits(X) - uniform.logits(X)
    np.testing.assert_allclose(difference, np.broadcast_to(np.log(shares / 0.5), (40, 2)), atol=1e-8)
    np.testing.assert_allclose(GDAClassifier(priors=shares).fit(X, y).logits(X), empirical.logits(X))
    for bad in ([0.5, 0.6], [1.5, -0.5], [1.0]):
        with pytest.raises(ValueError, match="priors"):
            GDAClassifier(priors=bad).fit(X, y)


def test_text_is_aligned_by_label(text_estimator):
    X, y, text = small()
    names = np.array(["zebra", "ant", "owl", "cat"])  # sorted: ant, cat, owl, zebra
    expected = GDAClassifier(text, alpha=0.1).fit(X, y)
    clf = GDAClassifier(text_estimator(text, names), alpha=0.1).fit(X, names[y])
    assert clf.classes_.tolist() == ["ant", "cat", "owl", "zebra"]
    np.testing.assert_array_equal(clf.predict(X), names[expected.predict(X)])
    np.testing.assert_allclose(clf.logits(X), expected.logits(X)[:, [1, 3, 2, 0]], rtol=1e-6)


def test_text_of_classes_absent_from_y_is_left_out(text_estimator):
    X, y, text = small()
    few = y != 1
    for zero_shot in (text, text_estimator(text, [0, 1, 2, 3])):
        clf = GDAClassifier(zero_shot, alpha=0).fit(X[few], y[few])
        assert clf.classes_.tolist() == [0, 2, 3]
        np.testing.assert_allclose(clf.prototypes_, unit_rows(text)[[0, 2, 3]], rtol=1e-6)


def test_text_errors(text_estimator):
    X, y, text = small()
    with pytest.raises(ValueError, match=r"\b3\b.*zero_shot"):
        GDAClassifier(text_estimator(text[:3], [0, 1, 2])).fit(X, y)
    with pytest.raises(ValueError, match=r"3.*ZeroShotClassifier\(prototypes=\.\.\., classes="):
        GDAClassifier(text[:3]).fit(X, y)
    with pytest.raises(ValueError, match=r"'a'.*ZeroShotClassifier\(prototypes=\.\.\., classes="):
        GDAClassifier(text).fit(X, np.array(list("abcd"))[y])
    for zero_shot in (text[:, :9], text_estimator(text[:, :9], [0, 1, 2, 3])):
        with pytest.raises(ValueError, match=r"width 9.*10 features"):
            GDAClassifier(zero_shot).fit(X, y)


def test_text_estimators_are_cloned_unless_frozen(text_estimator):
    X, y, text = small()
    loose = text_estimator(text, [0, 1, 2, 3], logit_scale=7.0)
    clf = GDAClassifier(loose).fit(X, y)
    assert not hasattr(loose, "classes_")
    assert clf.logit_scale_ == 7.0
    assert GDAClassifier(loose, logit_scale=30.0).fit(X, y).logit_scale_ == 30.0
    kept = text_estimator(text, [0, 1, 2, 3]).fit()
    kept.logit_scale_ = 3.0  # a fit would set 100
    assert GDAClassifier(FrozenEstimator(kept)).fit(X, y).logit_scale_ == 3.0


def test_zero_shot_classifier():
    ZeroShotClassifier = pytest.importorskip("skclip.zero_shot").ZeroShotClassifier
    X, y, text = small()
    names = np.array(["zebra", "ant", "owl", "cat"])
    zero_shot = ZeroShotClassifier(prototypes=text, classes=names)
    clf = GDAClassifier(zero_shot, alpha=0).fit(X, names[y])
    np.testing.assert_allclose(clf.logits(X), clone(zero_shot).fit().logits(X), rtol=1e-5)
    with pytest.raises(ValueError, match="wasp"):
        GDAClassifier(zero_shot).fit(X, np.array(["zebra", "ant", "owl", "wasp"])[y])


def test_warns_where_text_guesses():
    X, y, text = small(n=120, spread=3.0)
    with pytest.warns(SkclipWarning, match=r"Zero-shot accuracy on 120 training rows is 0\.\d+"):
        GDAClassifier(-text).fit(X, y)
    GDAClassifier(text).fit(X, y)


@pytest.mark.parametrize("n_views", [1, 3])
@pytest.mark.parametrize("unit_scale", [False, True])
def test_leave_one_out_equals_fits_without_the_picture(n_views, unit_scale):
    rng = np.random.default_rng(0)
    codes = np.arange(21) % 4
    views = unit_rows(rng.normal(size=(21 * n_views, 12)) + np.repeat(codes, n_views)[:, None] * 0.3)
    weights = rng.integers(1, 4, 21).astype(float)
    pictures = Pictures(views.reshape(21, n_views, 12), codes, weights)
    scores = np.concatenate([s for s, _ in leave_one_out_scores(pictures, np.zeros(4), unit_scale=unit_scale)])
    n_rows = weights.sum() * n_views
    rho = 12 / (n_rows - 1 + 12)
    own = []
    for i in range(21):
        rest = np.arange(21) != i
        clf = GDAClassifier(precision_scale="unit").fit(pictures.views[rest], codes[rest], weights[rest])
        expected = (clf.logits(pictures.views[i : i + 1])[0] - np.log(0.25)) * (1.0 if unit_scale else rho)
        others = np.arange(4) != codes[i]
        np.testing.assert_allclose(scores[i, others], expected[others], rtol=1e-9)
        own.append(scores[i, codes[i]] - expected[codes[i]])
    # what the mean of the own class lacks in pictures is given back, the more the fewer it has
    assert min(own) > 0


def test_the_correction_of_left_out_pictures_removes_the_bias_of_their_class():
    rng = np.random.default_rng(0)
    codes = np.repeat(np.arange(300), 3)
    views = unit_rows(rng.normal(size=(900, 20)) + 4 * rng.normal(size=20)).reshape(900, 1, 20)  # all alike
    pictures = Pictures(views, codes, np.ones(900))
    scores = np.concatenate([s for s, _ in leave_one_out_scores(pictures, np.zeros(300), unit_scale=True)])
    own = scores[np.arange(900), codes]
    error = np.std(own - scores.mean(axis=1)) / 30
    assert abs(np.mean(own - scores.mean(axis=1))) < 4 * error


def test_repeats_of_a_picture_are_one_picture():
    X, y, _ = small(n=8)
    rows = unit_rows(X)
    pictures = distinct_pictures(rows[[0, 1, 0, 2, 2]], y[[0, 1, 0, 2, 2]], np.array([1.0, 1, 2, 1, 1]), 1)
    assert len(pictures.codes) == 3
    assert sorted(zip(pictures.codes.tolist(), pictures.weights.tolist())) == [(0, 3.0), (1, 1.0), (2, 2.0)]


def test_equal_pictures_of_two_classes_stay_apart():
    rows = unit_rows(np.ones((4, 3)))
    assert len(distinct_pictures(rows, np.array([0, 0, 1, 1]), np.ones(4), 1).codes) == 2


def test_folds_are_stratified():
    codes = np.array([0, 1, 0, 1, 0, 1, 0, 0, 1])
    folds = stratified_folds(codes, 2)
    for k in (0, 1):
        counts = np.bincount(folds[codes == k])
        assert counts.max() - counts.min() <= 1


def test_alpha_cv_is_between_the_bounds_without_text():
    X, y, _ = small()
    clf = GDAClassifier(alpha="cv").fit(X, y)
    assert 1e-4 <= clf.alpha_ <= 1e4
    np.testing.assert_array_equal(clf.predict(X), GDAClassifier().fit(X, y).predict(X))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_single_pictures_warn_once(covariance):
    X, y, text = small()
    keep = (y > 0) | (np.cumsum(y == 0) == 1)
    for chosen in (keep, np.arange(60) < 4):
        with pytest.warns(SkclipWarning, match="class 0 has a single one") as caught:
            clf = GDAClassifier(text, alpha="cv", covariance=covariance).fit(X[chosen], y[chosen])
        assert len(caught) == 1
        assert 1e-4 <= clf.alpha_ <= 1e4
        assert np.isfinite(clf.logits(X)).all()
        if covariance != "ks":
            assert clf.alpha_ == 0.01


def test_a_single_row_per_class_uses_the_total_scatter():
    X, y, _ = small(n=8, n_classes=8)
    clf = GDAClassifier(covariance="empirical").fit(X, y)
    np.testing.assert_allclose(clf.covariance_, np.cov(unit_rows(X).T), atol=1e-12)


def test_equal_rows_give_equal_probabilities():
    clf = GDAClassifier().fit(np.ones((6, 4)), [0, 1, 2, 0, 1, 2])
    np.testing.assert_allclose(clf.predict_proba(np.ones((2, 4))), 1 / 3)


def test_with_classes_is_the_base_to_new_protocol(text_estimator):
    X, y, text = small(n=200, d=12)
    new = {"rook": np.arange(12.0) - 3, "jay": np.ones(12) - np.eye(12)[2]}
    zero_shot = text_estimator(text, [0, 1, 2, 3], new=new)
    base = GDAClassifier(zero_shot, alpha=0.3, covariance="pooled").fit(X, y)
    before = pickle.dumps(base)
    clf = base.with_classes({"rook": "a rook", "jay": "a jay"})
    assert pickle.dumps(base) == before
    assert clf.classes_.tolist() == ["jay", "rook"]
    rows, prototypes = unit_rows(X), unit_rows(np.stack([new["jay"], new["rook"]]))
    means, precision = [], 0
    for w in prototypes:
        nearest = rows[np.argsort(-rows @ w)[:64]]
        means.append(np.vstack([nearest, np.tile(w, (16, 1))]).mean(axis=0))
        C = (nearest - w).T @ (nearest - w) / 63
        precision = precision + 12 * np.linalg.pinv(63 * C + np.trace(C) * np.eye(12)) / 2
    W = np.stack(means) @ precision
    b = np.log(0.5) - 0.5 * np.einsum("kd,kd->k", W, np.stack(means))
    expected = 100 * rows @ prototypes.T + 0.3 * (rows @ W.T + b)
    np.testing.assert_allclose(clf.logits(X), expected, rtol=1e-4)
    assert np.isfinite(clf.score_samples(X)).all()
    again = clf.with_classes({"rook": "a rook", "jay": "a jay"})
    assert again.precision_factor_ == pytest.approx(clf.precision_factor_)


def test_with_classes_weighs_the_new_classes_as_the_base_ones(text_estimator):
    X, y, text = small(n=200, d=12)
    zero_shot = text_estimator(text, [0, 1, 2, 3], new={"jay": np.ones(12), "rook": np.arange(12.0)})
    clf = GDAClassifier(zero_shot).fit(X, y)
    rho = new_class_model(unit_rows(X), unit_rows(text))[2]
    new = clf.with_classes({"jay": "a jay", "rook": "a rook"})
    assert new.precision_factor_ == pytest.approx(rho * clf.precision_factor_)
    unit = GDAClassifier(zero_shot, precision_scale="unit").fit(X, y)
    assert unit.with_classes({"jay": "a jay", "rook": "a rook"}).precision_factor_ == 1.0
    with pytest.raises(ValueError, match="made by with_classes"):
        new.partial_fit(X, np.repeat(["jay", "rook"], 100))


def test_with_classes_needs_text_and_rows():
    X, y, text = small()
    for clf in (GDAClassifier().fit(X, y), GDAClassifier(text).fit(X, y)):
        assert not hasattr(clf, "X_fit_")
        with pytest.raises(ValueError, match="with_classes needs a zero_shot"):
            clf.with_classes({5: "a jay"})


def test_one_class_is_an_error():
    X, _, _ = small()
    with pytest.raises(ValueError, match="one class"):
        GDAClassifier().fit(X, np.zeros(60))
    with pytest.raises(ValueError, match="one class"):
        GDAClassifier().partial_fit(X, np.zeros(60), classes=[0])


def test_bad_features_and_labels():
    X, y, _ = small()
    X[3, 2] = np.nan
    with pytest.raises(ValueError, match="NaN"):
        GDAClassifier().fit(X, y)
    X[3, 2] = 0.0
    with pytest.raises(TypeError, match="mixed type"):
        GDAClassifier().fit(X, [1, "a"] * 30)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        GDAClassifier().fit(X, y[:-1])


def test_decision_function_of_two_classes_is_the_difference():
    X, y, _ = small(n_classes=2)
    clf = GDAClassifier().fit(X, y)
    logits = clf.logits(X)
    assert logits.shape == (60, 2)
    np.testing.assert_allclose(clf.decision_function(X), logits[:, 1] - logits[:, 0])


def test_float32_rows_are_close_to_float64(anisotropic_world):
    X, y, X_test, _, text = anisotropic_world()
    double = GDAClassifier(text, alpha=0.1).fit(X, y).predict_proba(X_test)
    single = GDAClassifier(text.astype(np.float32), alpha=0.1).fit(X.astype(np.float32), y)
    np.testing.assert_allclose(single.predict_proba(X_test.astype(np.float32)), double, atol=1e-3)


@pytest.mark.parametrize("params", [{}, {"alpha": "cv"}, {"covariance": "pooled"}])
def test_pickles_to_its_arrays(params, tmp_path, text_estimator):
    X, y, text = small(n=200, d=60)
    clf = GDAClassifier(text_estimator(text, [0, 1, 2, 3]), **params).fit(X, y)
    arrays = [*vars(clf).values(), *clf.moments_.values()]
    size = sum(value.nbytes for value in arrays if isinstance(value, np.ndarray))
    given = len(pickle.dumps(clf.zero_shot)) + len(pickle.dumps(clf.zero_shot_))
    assert len(pickle.dumps(clf)) < size + given + 10_000
    joblib.dump(clf, tmp_path / "clf.joblib")
    loaded = joblib.load(tmp_path / "clf.joblib", mmap_mode="r")
    np.testing.assert_array_equal(loaded.logits(X), clf.logits(X))
    if not params:
        joblib.load(tmp_path / "clf.joblib", mmap_mode="r").partial_fit(X, y)


def test_skops_trusts_only_what_it_knows():
    io = pytest.importorskip("skops.io")
    X, y, text = small()
    clf = GDAClassifier(text, alpha="cv").fit(X, y)
    data = io.dumps(clf)
    unknown = io.get_untrusted_types(data=data)
    assert all(name.startswith("skclip.") for name in unknown)
    np.testing.assert_array_equal(io.loads(data, trusted=unknown).logits(X), clf.logits(X))


def test_grid_search_over_nested_parameters(text_estimator):
    X, y, text = small()
    grid = {"alpha": [0.1, 1.0], "covariance": ["ks", "pooled"], "zero_shot__logit_scale": [10.0, 100.0]}
    search = GridSearchCV(GDAClassifier(text_estimator(text, [0, 1, 2, 3])), grid, cv=3).fit(X, y)
    assert search.best_score_ > 0.5
