"""What the adapters that are trained have in common; the method of each has a file of its own."""

from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.adapters import CLAPClassifier, CLIPAdapterClassifier, LPPlusPlusClassifier
from skclip.utils import SkclipWarning
from skclip.utils._arrays import unit_rows

torch = pytest.importorskip("torch")

LEARNED = [CLAPClassifier, CLIPAdapterClassifier, LPPlusPlusClassifier]
IN_EPOCHS = [cls for cls in LEARNED if "device" in inspect.signature(cls).parameters]

VARIANTS = [
    CLAPClassifier(max_iter=10),
    CLAPClassifier(max_iter=5, penalty=1.0, multipliers="adaptive"),
    CLAPClassifier(max_iter=5, penalty=0.5, distance="cosine", multipliers="corrected", logit_scale=20.0),
    CLAPClassifier(max_iter=5, early_stopping=True, random_state=0),
    CLIPAdapterClassifier(max_iter=10),
    CLIPAdapterClassifier(max_iter=5, reduction=1, ratio=0.8, logit_scale=20.0),
    CLIPAdapterClassifier(max_iter=5, early_stopping=True, random_state=0),
    LPPlusPlusClassifier(max_iter=40),
    LPPlusPlusClassifier(max_iter=40, momentum=0.0, intercept_step="published"),
    LPPlusPlusClassifier(max_iter=40, alpha_grad="fresh", early_stopping=True, random_state=0),
]


def small(n=60, d=12, n_classes=4, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    means = spread * rng.normal(size=(n_classes, d))
    return rng.normal(size=(n, d)) + means[y] + 1.0, y, means + 1.0


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


@pytest.mark.parametrize("with_text", [False, True])
@pytest.mark.parametrize(
    "clf",
    [
        CLAPClassifier(penalty=0.5, max_iter=30, logit_scale=20.0),
        CLAPClassifier(penalty=0.5, multipliers="adaptive", max_iter=30, logit_scale=20.0),
        CLIPAdapterClassifier(max_iter=30, logit_scale=20.0),
        LPPlusPlusClassifier(),
    ],
)
def test_whole_weights_are_repeated_rows_within_a_batch(clf, with_text):
    X, y, text = small()
    weights = np.random.default_rng(3).integers(0, 4, len(X))
    clf = clone(clf).set_params(zero_shot=text if with_text else None, random_state=0)
    weighted = clone(clf).fit(X, y, sample_weight=weights)
    repeated = clone(clf).fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    np.testing.assert_allclose(weighted.logits(X), repeated.logits(X), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cls", LEARNED)
def test_repeated_views_change_nothing_and_only_the_first_is_read(cls):
    X, y, text = small()
    clf = cls(text, max_iter=20, random_state=0)
    once = clone(clf).fit(X, y)
    views = clone(clf).fit(np.repeat(X[:, None], 3, axis=1), y)
    np.testing.assert_allclose(views.logits(X), once.logits(X), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(views.logits(np.stack([X, -X], axis=1)), views.logits(X))
    other = clone(clf).fit(np.stack([X, X + 1], axis=1), y)
    assert np.abs(other.logits(X) - once.logits(X)).max() > 1e-3


@pytest.mark.parametrize("cls", LEARNED)
def test_the_random_state_decides_everything(cls):
    X, y, text = small()
    batches = {"batch_size": 16} if cls in IN_EPOCHS else {}
    fits = [cls(text, max_iter=5, random_state=seed, **batches).fit(X, y).logits(X) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(fits[0], fits[1])
    assert np.abs(fits[0] - fits[2]).max() > 1e-6


@pytest.mark.parametrize("cls", IN_EPOCHS)
def test_early_stopping_holds_pictures_out_and_stops(cls):
    X, y, text = small(n=200, spread=0.5)
    clf = cls(text, early_stopping=True, random_state=0, n_iter_no_change=5).fit(X, y)
    assert len(clf.validation_scores_) == clf.n_iter_ < clf.max_iter
    assert clf.n_iter_ == int(np.argmax(clf.validation_scores_)) + 1 + 5


@pytest.mark.parametrize("cls", LEARNED)
def test_early_stopping_needs_two_pictures_of_a_class(cls):
    X, y, text = small()
    assert cls(text, max_iter=2).fit(X, y).validation_scores_ == []
    with pytest.raises(ValueError, match="early_stopping=False"):
        cls(text, early_stopping=True).fit(X[:4], y[:4])


@pytest.mark.parametrize("cls", LEARNED)
def test_text_is_aligned_by_label(cls, text_estimator):
    X, y, text = small()
    names = np.array(["zebra", "ant", "owl", "cat"])  # sorted: ant, cat, owl, zebra
    order = [1, 3, 2, 0]
    clf = cls(text_estimator(text, names), max_iter=20, random_state=0).fit(X, names[y])
    assert clf.classes_.tolist() == ["ant", "cat", "owl", "zebra"]
    np.testing.assert_allclose(clf.prototypes_, unit_rows(text)[order], rtol=1e-6)
    expected = cls(text[order], max_iter=20, random_state=0).fit(X, np.argsort(order)[y])
    np.testing.assert_allclose(clf.logits(X), expected.logits(X), rtol=1e-4, atol=1e-3)
    few = cls(text_estimator(text, names), max_iter=3).fit(X[y != 1], names[y[y != 1]])
    assert few.logits(X).shape == (60, 3)


@pytest.mark.parametrize("cls", IN_EPOCHS)
def test_the_scale_of_the_text_is_used(cls, text_estimator):
    X, y, text = small()
    assert cls(text_estimator(text, np.arange(4), logit_scale=7.0), max_iter=1).fit(X, y).logit_scale_ == 7.0


@pytest.mark.parametrize("cls", LEARNED)
def test_bad_input(cls, text_estimator):
    X, y, text = small()
    clf = cls(max_iter=1)
    for weights in (np.zeros(60), np.full(60, -1.0), np.ones(59), np.full(60, np.nan)):
        with pytest.raises(ValueError, match="sample_weight"):
            clf.fit(X, y, sample_weight=weights)
    with pytest.raises(ValueError, match="one class"):
        clf.fit(X, np.zeros(60))
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        clf.fit(X, y[:-1])
    with pytest.raises(ValueError, match=r"X\[3, 2\]"):
        clf.fit(np.where(np.arange(720).reshape(60, 12) == 38, np.nan, X), y)
    with pytest.raises(ValueError, match="Every row of class 2 is all zeros"):
        clf.fit(np.where((y == 2)[:, None], 0.0, X), y)
    with pytest.raises(ValueError, match=r"-1.*ZeroShotClassifier\(prototypes=\.\.\., classes="):
        cls(text).fit(X, y - 1)
    with pytest.raises(ValueError, match=r"width 9.*12 features"):
        cls(text[:, :9]).fit(X, y)
    with pytest.raises(ValueError, match=r"\b3\b.*zero_shot"):
        cls(text_estimator(text[:3], [0, 1, 2])).fit(X, y)


@pytest.mark.parametrize(
    ("cls", "params"),
    [
        (CLAPClassifier, {"penalty": -1.0}),
        (CLAPClassifier, {"penalty": "all"}),
        (CLAPClassifier, {"distance": "l1"}),
        (CLAPClassifier, {"multipliers": "none"}),
        (CLAPClassifier, {"device": "abacus"}),
        (CLIPAdapterClassifier, {"ratio": 1.1}),
        (CLIPAdapterClassifier, {"reduction": 0}),
        (CLIPAdapterClassifier, {"learning_rate": 0.0}),
        (CLIPAdapterClassifier, {"device": "abacus"}),
        (LPPlusPlusClassifier, {"alpha_grad": "none"}),
    ],
)
def test_bad_parameters(cls, params):
    X, y, _ = small()
    with pytest.raises(ValueError, match=next(iter(params))):
        cls(**params).fit(X, y)


@pytest.mark.parametrize("cls", LEARNED)
def test_warns_where_text_guesses(cls):
    X, y, text = small(n=120, spread=3.0)
    with pytest.warns(SkclipWarning, match="no better than chance") as caught:
        cls(-text, max_iter=1).fit(X, y)
    assert caught[0].filename == __file__


@pytest.mark.parametrize("cls", LEARNED)
def test_float32_rows_are_close_to_float64(cls):
    X, y, text = small(n=200)
    clf = cls(max_iter=100, random_state=0)
    double = clone(clf).set_params(zero_shot=text).fit(X, y)
    single = clone(clf).set_params(zero_shot=text.astype(np.float32)).fit(X.astype(np.float32), y)
    np.testing.assert_allclose(single.predict_proba(X), double.predict_proba(X), atol=1e-3)
    assert single.logits(X.astype(np.float32)).dtype == np.float64


@pytest.mark.parametrize(
    ("cls", "grid"),
    [
        (CLAPClassifier, {"multipliers": ["class", "adaptive"], "penalty": [0, 1.0, 1e4, np.inf]}),
        (CLIPAdapterClassifier, {"ratio": [0, 0.2, 1.0]}),
        (LPPlusPlusClassifier, {"init_scale": [0, 250]}),
    ],
)
def test_persistence_and_search(cls, grid):
    io = pytest.importorskip("skops.io")
    X, y, text = small()
    search = GridSearchCV(cls(text, max_iter=3), grid, cv=2).fit(X, y)
    assert search.best_score_ > 0.5
    clf = cls(text, max_iter=3, **{name: values[1] for name, values in grid.items()}).fit(X, y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clf)).logits(X), clf.logits(X))
    data = io.dumps(clf)
    unknown = io.get_untrusted_types(data=data)
    assert all(name.startswith("skclip.") for name in unknown)
    np.testing.assert_array_equal(io.loads(data, trusted=unknown).logits(X), clf.logits(X))


@pytest.mark.parametrize("cls", LEARNED)
def test_progress_bar_only_when_asked(cls, capfd):
    X, y, _ = small()
    cls(max_iter=3).fit(X, y)
    assert capfd.readouterr().err == ""
    cls(max_iter=3, verbose=1).fit(X, y)
    assert cls.__name__ in capfd.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("cls", IN_EPOCHS)
def test_accelerator_agrees_with_the_cpu(cls):
    X, y, text = small()
    fits = [cls(text, max_iter=20, random_state=0, device=device).fit(X, y) for device in ("cpu", "cuda")]
    np.testing.assert_allclose(fits[0].predict_proba(X), fits[1].predict_proba(X), atol=1e-3)
