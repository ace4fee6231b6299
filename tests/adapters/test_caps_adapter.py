from __future__ import annotations

import pickle

import joblib
import numpy as np
import pandas as pd
import pytest
import sklearn
from scipy.special import softmax
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.estimator_checks import parametrize_with_checks

import skclip.adapters
from skclip import CLIPClassifier, CLIPFeatures, CLIPTextFeatures, ZeroShotClassifier
from skclip.adapters import CapSAdapterClassifier, SuSXClassifier
from skclip.datasets import make_picture_world
from skclip.utils import SkclipWarning
from skclip.utils._arrays import unit_rows

CV = {"alpha": "cv", "beta": "cv", "gamma": "cv", "delta": "cv"}
NUMBERS = {"alpha": 1.7, "beta": 3.0, "gamma": 0.8}


def small(n=60, d=10, n_classes=4, seed=0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    means = rng.normal(size=(n_classes, d))
    captions = means[y] + rng.normal(size=d) + 0.5 * rng.normal(size=(n, d))
    return rng.normal(size=(n, d)) + means[y], y, means, captions


@pytest.fixture
def routing():
    with sklearn.config_context(enable_metadata_routing=True):
        yield


VARIANTS = [
    CapSAdapterClassifier(),
    CapSAdapterClassifier(**CV),
    CapSAdapterClassifier(signature="feature"),
    CapSAdapterClassifier(signature="feature", **CV),
    CapSAdapterClassifier(signature=None, gamma="cv"),
]


@pytest.mark.filterwarnings("ignore:.*(leaves|holds) out pictures")
@parametrize_with_checks(VARIANTS)
def test_scikit_learn_contract(estimator, check):
    check(estimator)


def literal_logits(X, y, captions, X_test, text, alpha, beta, gamma, delta, signature="text", rescale="fit"):
    """The method as the paper writes it; signatures as the paper has them or as the released code has."""
    F, C, x, T = unit_rows(X), unit_rows(captions), unit_rows(X_test), unit_rows(text)
    L = np.eye(y.max() + 1)[y]

    def similarity(a):
        return (1 - delta) * a @ F.T + delta * a @ C.T

    def kl(a, b):
        q, s = (softmax((v @ T.T if signature == "text" else v) / 0.5, axis=1) for v in (a, b))
        return np.array([[sum(q[i] * np.log(q[i] / s[j])) for j in range(len(s))] for i in range(len(q))])

    A, M = similarity(x), kl(x, F)
    A_of_range, M_of_range = A, M
    if rescale == "fit":
        others = ~np.eye(len(F), dtype=bool)
        A_of_range, M_of_range = similarity(F)[others], kl(F, F)[others]
    share = (M - M_of_range.min()) / (M_of_range.max() - M_of_range.min())
    moved = A_of_range.min() + share * (A_of_range.max() - A_of_range.min())
    return 100 * x @ T.T - gamma * moved @ L + alpha * np.exp(-beta * (1 - A)) @ L


@pytest.mark.parametrize("signature", ["text", "feature"])
@pytest.mark.parametrize("rescale", ["fit", "batch"])
@pytest.mark.parametrize("delta", [0.0, 0.3, 1.0])
def test_logits_are_the_formula(signature, rescale, delta):
    X, y, text, captions = small()
    params = {**NUMBERS, "delta": delta, "signature": signature, "rescale": rescale}
    clf = CapSAdapterClassifier(text, **params).fit(X, y, captions=captions)
    expected = literal_logits(X, y, captions, X[:7] + 0.1, text, **params)
    np.testing.assert_allclose(clf.logits(X[:7] + 0.1), expected, atol=1e-6)


@pytest.mark.parametrize("rescale", ["fit", "batch"])
def test_delta_zero_is_sus_x(rescale):
    X, y, text, captions = small()
    expected = SuSXClassifier(text, **NUMBERS, rescale=rescale).fit(X, y).logits(X + 0.1)
    clf = CapSAdapterClassifier(text, **NUMBERS, delta=0.0, rescale=rescale).fit(X, y, captions=captions)
    np.testing.assert_array_equal(clf.logits(X + 0.1), expected)
    without = CapSAdapterClassifier(text, **NUMBERS, delta=0.9, rescale=rescale).fit(X, y)
    np.testing.assert_array_equal(without.logits(X + 0.1), expected)
    assert without.delta_ == 0.0


def test_without_captions_cv_is_that_of_sus_x():
    X, y, text, _ = small()
    clf = CapSAdapterClassifier(text, **CV).fit(X, y)
    expected = SuSXClassifier(text, alpha="cv", beta="cv", gamma="cv").fit(X, y)
    np.testing.assert_array_equal(clf.logits(X), expected.logits(X))


def test_pictures_alone_are_tip_adapter():
    if not hasattr(skclip.adapters, "TipAdapterClassifier"):
        pytest.skip("no TipAdapterClassifier")
    X, y, text, captions = small()
    tip = skclip.adapters.TipAdapterClassifier(text, alpha=1.7, beta=3.0).fit(X, y)
    clf = CapSAdapterClassifier(text, alpha=1.7, beta=3.0, gamma=0, delta=0).fit(X, y, captions=captions)
    np.testing.assert_allclose(clf.logits(X), tip.logits(X), rtol=1e-12)


def test_without_votes_it_is_zero_shot_exactly():
    X, y, text, captions = small()
    X, text = X.astype(np.float32), unit_rows(text).astype(np.float32)
    clf = CapSAdapterClassifier(text, alpha=0, gamma=0, logit_scale=50.0).fit(X, y, captions=captions)
    np.testing.assert_array_equal(clf.logits(X), 50.0 * (unit_rows(X) @ clf.prototypes_.T))


def test_no_signature_is_no_divergence_term():
    X, y, text, captions = small()
    short = CapSAdapterClassifier(text, **NUMBERS, signature=None).fit(X, y, captions=captions)
    without = CapSAdapterClassifier(text, **{**NUMBERS, "gamma": 0.0}).fit(X, y, captions=captions)
    np.testing.assert_array_equal(short.logits(X), without.logits(X))
    assert short.gamma_ == 0.0


@pytest.mark.filterwarnings("ignore:Zero-shot accuracy")
def test_delta_one_never_sees_the_support_pictures():
    X, y, text, captions = small()
    noise = np.random.default_rng(5).normal(size=X.shape)
    params = {"alpha": 5.0, "beta": 2.0, "gamma": 0.0, "delta": 1.0}
    expected = CapSAdapterClassifier(text, **params).fit(X, y, captions=captions).logits(X)
    clf = CapSAdapterClassifier(text, **params).fit(noise, y, captions=captions)
    np.testing.assert_array_equal(clf.logits(X), expected)


@pytest.mark.parametrize("beta", [0.5, 5.0])
def test_captions_that_are_the_prototypes_repeat_zero_shot(beta):
    X, y, text, _ = small()
    clf = CapSAdapterClassifier(text, alpha=10.0, beta=beta, gamma=0, delta=1.0).fit(X, y, captions=text[y])
    rows = np.random.default_rng(1).normal(size=(200, 10))
    votes = clf.logits(rows) - 100 * unit_rows(rows) @ unit_rows(text).T
    np.testing.assert_array_equal(np.argsort(votes, axis=1), np.argsort(rows @ unit_rows(text).T, axis=1))
    zero_shot = ZeroShotClassifier(prototypes=text).predict(rows)
    np.testing.assert_array_equal(clf.predict(rows), zero_shot)


def test_shuffled_captions():
    X, y, text, captions = small(n=200)
    rng = np.random.default_rng(0)
    within = np.arange(200)
    for k in range(4):
        within[y == k] = rng.permutation(np.flatnonzero(y == k))
    across = rng.permutation(200)

    def votes(order, beta):
        clf = CapSAdapterClassifier(text, alpha=1.0, beta=beta, gamma=0, delta=0.5)
        return clf.fit(X, y, captions=captions[order]).logits(X) - 100 * unit_rows(X) @ unit_rows(text).T

    # to the first order in beta only sums over a class count
    small_beta = [(votes(order, 1e-4) - 50.0) / 1e-4 for order in (np.arange(200), within, across)]
    np.testing.assert_allclose(small_beta[1], small_beta[0], atol=0.01)
    assert np.abs(small_beta[2] - small_beta[0]).max() > 1.0
    X_test = text[y] + rng.normal(size=X.shape)
    plain, same_class, other_class = (
        CapSAdapterClassifier(alpha=1.0, beta=5.0, delta=0.9).fit(X, y, captions=captions[order]).score(X_test, y)
        for order in (np.arange(200), within, across)
    )
    assert abs(same_class - plain) < 0.03
    assert other_class < plain - 0.05


@pytest.mark.parametrize("params", [{**NUMBERS, "delta": 0.4}, CV])
def test_order_of_rows_changes_nothing(params):
    X, y, text, captions = small()
    order = np.random.default_rng(1).permutation(60)
    expected = CapSAdapterClassifier(text, **params).fit(X, y, captions=captions).logits(X)
    clf = CapSAdapterClassifier(text, **params).fit(X[order], y[order], captions=captions[order])
    np.testing.assert_allclose(clf.logits(X), expected, rtol=1e-7)


@pytest.mark.parametrize("params", [{**NUMBERS, "delta": 0.4}, CV])
def test_whole_weights_are_repeated_rows(params):
    X, y, text, captions = small()
    weights = np.random.default_rng(3).integers(0, 4, 60)
    weighted = CapSAdapterClassifier(text, **params).fit(X, y, captions=captions, sample_weight=weights)
    repeated = CapSAdapterClassifier(text, **params)
    repeated.fit(*(np.repeat(rows, weights, axis=0) for rows in (X, y, captions)))
    np.testing.assert_allclose(weighted.logits(X), repeated.logits(X), rtol=1e-6)


def test_queries_do_not_depend_on_each_other():
    X, y, text, captions = small()
    clf = CapSAdapterClassifier(text, **CV).fit(X, y, captions=captions)
    one_by_one = np.concatenate([clf.logits(X[i : i + 1]) for i in range(60)])
    np.testing.assert_allclose(one_by_one, clf.logits(X), atol=1e-9)
    batch = CapSAdapterClassifier(text, rescale="batch").fit(X, y, captions=captions)
    assert np.abs(batch.logits(X[:5]) - batch.logits(X)[:5]).max() > 0.01


# a world in which the support looks unlike the pictures to come


def shifted_world(seed, shift=True, shots=8, n_classes=12, d=64, n_test=1500):
    """Support pictures turned and moved; captions are noisy prototypes of the true distribution."""
    rng = np.random.default_rng(seed)
    common, gap, away = rng.normal(size=(3, d))
    signal = rng.normal(size=(n_classes, d))
    turn = np.linalg.qr(np.eye(d) + 0.35 * rng.normal(size=(d, d)))[0]

    def write(y):
        return common + gap + 0.6 * (signal[y] + 0.8 * rng.normal(size=(len(y), d)))

    def draw(y):
        return 2 * common + 0.6 * signal[y] + rng.normal(size=(len(y), d))

    y, y_test = np.repeat(np.arange(n_classes), shots), rng.integers(0, n_classes, n_test)
    support = draw(y)
    if shift:
        support = support @ turn.T + 1.5 * away
    return support, y, write(y), draw(y_test), y_test, write(np.arange(n_classes))


def accuracy_by_delta(world, deltas):
    """Best accuracy of each delta over a grid of the other weights, on the test rows."""
    X, y, captions, X_test, y_test, text = world
    best = np.zeros(len(deltas))
    for i, delta in enumerate(deltas):
        clf = CapSAdapterClassifier(text, delta=delta).fit(X, y, captions=captions)
        for clf.beta_ in (1.0, 4.0, 16.0):
            for clf.alpha_ in (0.3, 3.0, 30.0, 300.0):
                for clf.gamma_ in (0.0, 1.0, 10.0):
                    best[i] = max(best[i], clf.score(X_test, y_test))
    return best


@pytest.mark.filterwarnings("ignore:Zero-shot accuracy")
@pytest.mark.parametrize("seed", range(3))
def test_captions_help_where_the_support_is_shifted(seed):
    world = shifted_world(seed)
    zero_shot = ZeroShotClassifier(prototypes=world[5]).score(world[3], world[4])
    best = accuracy_by_delta(world, [0.0, 0.3, 0.7, 1.0])
    assert best.argmax() > 0
    assert best.max() > max(best[0], zero_shot) + 0.06


@pytest.mark.parametrize("seed", range(3))
def test_captions_are_not_needed_where_it_is_not(seed):
    world = shifted_world(seed, shift=False)
    best = accuracy_by_delta(world, [0.0, 0.3, 0.7, 1.0])
    assert best[:2].max() > best[2:].max() + 0.01
    X, y, captions, X_test, y_test, text = world
    clf = CapSAdapterClassifier(text, **CV).fit(X, y, captions=captions)
    assert clf.delta_ <= 0.6
    assert clf.score(X_test, y_test) > best.max() - 0.015


# pictures


@pytest.fixture(scope="module")
def captioned(sketches):
    """Features of long captions of the training sketches."""
    world = make_picture_world(
        1800, held_out="include", styles=["sketch"], captions="long", paraphrase=True, random_state=101
    )
    assert world.target.tolist() == sketches.y.tolist()
    return CLIPTextFeatures("skclip-tiny").transform(world.captions)


def few(y, shots, seed=0):
    order = np.random.default_rng(seed).permutation(len(y))
    return np.concatenate([order[y[order] == k][:shots] for k in np.unique(y)])


@pytest.mark.parametrize("seed", range(2))
def test_beats_zero_shot_on_pictures(seed, sketches, captioned):
    chosen = few(sketches.y, 8, seed)
    zero_shot = sketches.text.score(sketches.X_test, sketches.y_test)
    for params, gain in ((CV, 0.2), ({**CV, "delta": 0.5}, 0.03)):
        clf = CapSAdapterClassifier(sketches.text, **params)
        clf.fit(sketches.X[chosen], sketches.y[chosen], captions=captioned[chosen])
        assert clf.score(sketches.X_test, sketches.y_test) > zero_shot + gain


def test_a_clean_support_for_sketches_does_no_harm(sketches):
    """Drawn in another style than the pictures to come, as generated supports are."""
    world = make_picture_world(700, held_out="include", captions="long", paraphrase=True, random_state=103)
    X = CLIPFeatures("skclip-tiny").transform(world.images)
    captions = CLIPTextFeatures("skclip-tiny").transform(world.captions)
    zero_shot = sketches.text.score(sketches.X_test, sketches.y_test)
    reached = [
        CapSAdapterClassifier(sketches.text, delta=delta).fit(X, world.target, captions=captions)
        for delta in (0.0, 0.5, 1.0)
    ]
    accuracy = [clf.score(sketches.X_test, sketches.y_test) for clf in reached]
    assert min(accuracy) > zero_shot - 0.03


@pytest.fixture(scope="module")
def pictures():
    return make_picture_world(48, shapes=["circle", "star"], colors=["red", "blue"], held_out="include", random_state=5)


def test_inside_clip_classifier(pictures):
    names = {name: name for name in pictures.target_names}
    inner = CapSAdapterClassifier(ZeroShotClassifier(class_names=names, templates="a photo of a {}"), delta=0.3)
    clf = CLIPClassifier("skclip-tiny", inner).fit(pictures.images, pictures.target, captions=pictures.captions)
    expected = CLIPTextFeatures("skclip-tiny").transform(pictures.captions)
    order = np.argsort(pictures.target, kind="stable")
    np.testing.assert_allclose(clf.classifier_.captions_, expected[order], atol=1e-5)
    assert clf.score(pictures.images, pictures.target) > 0.9
    np.testing.assert_array_equal(
        pickle.loads(pickle.dumps(clf)).predict(pictures.images), clf.predict(pictures.images)
    )


def test_strings_are_routed_through_clip_classifier(pictures, routing):
    names = {name: name for name in pictures.target_names}
    inner = CapSAdapterClassifier(ZeroShotClassifier(class_names=names, templates="a photo of a {}")).set_fit_request(
        captions=True
    )
    search = GridSearchCV(CLIPClassifier("skclip-tiny", inner), {"classifier__delta": [0.0, 0.5]}, cv=2)
    search.fit(list(pictures.images), pictures.target, captions=pictures.captions)
    assert search.best_score_ > 0.9
    assert search.best_estimator_.classifier_.captions_.shape == (48, 128)


@pytest.mark.parametrize("kind", [list, np.array, pd.Series, lambda texts: np.array(texts, dtype=object)])
def test_captions_as_strings(kind, pictures):
    zero_shot = ZeroShotClassifier("skclip-tiny", class_names=pictures.target_names, templates="a photo of a {}")
    X = CLIPFeatures("skclip-tiny").transform(pictures.images)
    clf = CapSAdapterClassifier(zero_shot).fit(X, pictures.target, captions=kind(pictures.captions))
    rows = CLIPTextFeatures("skclip-tiny").transform(pictures.captions)
    expected = CapSAdapterClassifier(zero_shot).fit(X, pictures.target, captions=rows)
    np.testing.assert_allclose(clf.logits(X), expected.logits(X), rtol=1e-5)


def test_strings_without_a_model(text_estimator):
    X, y, text, _ = small()
    for zero_shot in (None, text, text_estimator(text, [0, 1, 2, 3]), ZeroShotClassifier(prototypes=text)):
        with pytest.raises(ValueError, match="captions holds strings, which need the model"):
            CapSAdapterClassifier(zero_shot).fit(X, y, captions=["a word"] * 60)


# captions as metadata and as columns


def test_captions_are_routed(routing, tmp_path):
    X, y, text, captions = small(n=120)
    clf = CapSAdapterClassifier(text, alpha=300.0).set_fit_request(captions=True, sample_weight=True)
    clf.set_score_request(sample_weight=False)
    search = GridSearchCV(clf, {"delta": [0.0, 0.5, 1.0]}, cv=3)
    search.fit(X, y, captions=captions, sample_weight=np.ones(120))
    assert search.best_score_ > 0.5
    assert len(set(search.cv_results_["mean_test_score"])) > 1
    assert search.best_estimator_.captions_.shape == (120, 10)
    joblib.dump(search, tmp_path / "search.joblib")
    loaded = joblib.load(tmp_path / "search.joblib", mmap_mode="r")
    np.testing.assert_array_equal(loaded.predict_proba(X), search.predict_proba(X))
    pipe = make_pipeline(FunctionTransformer(), clf).fit(X, y, captions=captions, sample_weight=np.ones(120))
    np.testing.assert_array_equal(pipe[-1].captions_, unit_rows(captions)[np.argsort(y, kind="stable")])


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.FitFailedWarning")
def test_routed_captions_of_the_wrong_length(routing):
    X, y, text, captions = small()
    clf = CapSAdapterClassifier(text).set_fit_request(captions=True)
    with pytest.raises(ValueError, match="captions holds 59 captions, but X 30 pictures"):
        GridSearchCV(clf, {"delta": [0.5]}, cv=2, error_score="raise").fit(X, y, captions=captions[:59])


def test_captions_beside_the_images():
    X, y, text, captions = small()
    both = np.hstack([X, captions])
    expected = CapSAdapterClassifier(text, **NUMBERS).fit(X, y, captions=captions)
    for rows in (both, both.tolist(), np.stack([both, both], axis=1)):
        clf = CapSAdapterClassifier(text, **NUMBERS, caption_columns=10).fit(rows, y)
        assert clf.n_features_in_ == 10
        np.testing.assert_allclose(clf.logits(X), expected.logits(X), rtol=1e-12)
        np.testing.assert_array_equal(clf.logits(rows), clf.logits(X))
    # what searches do: the test fold has the columns of the training fold
    scores = cross_val_score(CapSAdapterClassifier(text, caption_columns=10), both, y, cv=3)
    assert scores.min() > 0.4


def test_caption_columns_of_a_frame():
    X, y, text, captions = small()
    names = [f"image{i}" for i in range(10)] + [f"caption{i}" for i in range(10)]
    frame = pd.DataFrame(np.hstack([X, captions]), columns=names)
    clf = CapSAdapterClassifier(text, caption_columns=10).fit(frame, y)
    assert clf.feature_names_in_.tolist() == names[:10]
    np.testing.assert_array_equal(clf.logits(frame), clf.logits(frame[names[:10]]))
    with pytest.raises(ValueError, match="feature names"):
        clf.logits(frame[names[9::-1]])


def test_views_share_a_caption():
    X, y, text, captions = small()
    views = np.stack([X, X + 0.2], axis=1)
    clf = CapSAdapterClassifier(text, **CV).fit(views, y, captions=captions)
    assert clf.captions_.shape == (60, 10)
    np.testing.assert_array_equal(clf.logits(views), clf.logits(X))


# bad input


@pytest.mark.parametrize(
    ("captions", "error", "message"),
    [
        (lambda C: C[:59], ValueError, "captions holds 59 captions, but X 60 pictures"),
        (lambda C: C[:, :9], ValueError, "width 9.*10 features"),
        (lambda C: np.where(np.arange(600).reshape(60, 10) == 32, np.nan, C), ValueError, r"captions\[3, 2\] is nan"),
        (lambda C: np.where((np.arange(60) == 3)[:, None], 0.0, C), ValueError, r"captions\[3\] is all zeros"),
        (lambda C: C[0], ValueError, "captions holds 10 captions, but X 60"),
    ],
)
def test_bad_captions(captions, error, message):
    X, y, text, good = small()
    with pytest.raises(error, match=message):
        CapSAdapterClassifier(text).fit(X, y, captions=captions(good))


def test_a_caption_that_is_no_string(pictures):
    zero_shot = ZeroShotClassifier("skclip-tiny", class_names=pictures.target_names, templates="a photo of a {}")
    X = CLIPFeatures("skclip-tiny").transform(pictures.images)
    with pytest.raises(TypeError, match=r"\[5\] is a NoneType"):
        CapSAdapterClassifier(zero_shot).fit(
            X, pictures.target, captions=[*pictures.captions[:5], None, *pictures.captions[6:]]
        )


@pytest.mark.parametrize(
    "params", [{"delta": 1.1}, {"delta": "best"}, {"signature": "image"}, {"caption_columns": 0}, {"rescale": None}]
)
def test_bad_parameters(params):
    X, y, text, captions = small()
    with pytest.raises(InvalidParameterError, match=next(iter(params))):
        CapSAdapterClassifier(text, **params).fit(X, y, captions=captions)


def test_bad_columns():
    X, y, text, captions = small()
    with pytest.raises(ValueError, match=r"caption_columns=10, but X has shape \(60, 10\)"):
        CapSAdapterClassifier(text, caption_columns=10).fit(X, y)
    with pytest.raises(ValueError, match="leave captions=None"):
        CapSAdapterClassifier(text, caption_columns=10).fit(np.hstack([X, captions]), y, captions=captions)


def test_bad_input():
    X, y, text, captions = small()
    clf = CapSAdapterClassifier(text)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        clf.fit(X, y[:-1], captions=captions)
    with pytest.raises(ValueError, match="one class"):
        clf.fit(X, np.zeros(60), captions=captions)
    with pytest.raises(ValueError, match=r"labels can only be 0\.\.3, but y holds -1"):
        clf.fit(X, np.where(y == 0, -1, y), captions=captions)
    with pytest.raises(ValueError, match="Every row of class 2 is all zeros"):
        clf.fit(np.where((y == 2)[:, None], 0.0, X), y, captions=captions)
    with pytest.raises(ValueError, match="Every sample_weight is zero"):
        clf.fit(X, y, captions=captions, sample_weight=np.zeros(60))


def test_single_pictures_warn_once():
    X, y, text, captions = small()
    with pytest.warns(SkclipWarning, match="delta is 0.5") as caught:
        clf = CapSAdapterClassifier(text, **CV).fit(X[:4], y[:4], captions=captions[:4])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert clf.delta_ == 0.5


def test_skops_trusts_only_what_it_knows():
    io = pytest.importorskip("skops.io")
    X, y, text, captions = small()
    clf = CapSAdapterClassifier(text).fit(X, y, captions=captions)
    data = io.dumps(clf)
    unknown = io.get_untrusted_types(data=data)
    assert all(name.startswith("skclip.") for name in unknown)
    np.testing.assert_array_equal(io.loads(data, trusted=unknown).logits(X), clf.logits(X))
