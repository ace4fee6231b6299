from __future__ import annotations

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV
from sklearn.utils.estimator_checks import parametrize_with_checks

from skclip.adapters import CLIPAdapterClassifier
from skclip.adapters._clip_adapter import adapt
from skclip.utils import SkclipWarning
from skclip.utils._arrays import unit_rows

torch = pytest.importorskip("torch")


def small(n=60, d=12, n_classes=4, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    means = spread * rng.normal(size=(n_classes, d))
    return rng.normal(size=(n, d)) + means[y] + 1.0, y, means + 1.0


VARIANTS = [
    CLIPAdapterClassifier(max_iter=10),
    CLIPAdapterClassifier(max_iter=5, reduction=1, ratio=0.8, logit_scale=20.0),
    CLIPAdapterClassifier(max_iter=5, early_stopping=True, random_state=0),
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


def literal(X, y, text, start, *, max_iter, ratio=0.2, scale=20.0, learning_rate=0.1):
    """The method over all pictures at once as its code writes it, on rows as they are: logits of X, losses."""
    F, codes = torch.from_numpy(X), torch.from_numpy(y)
    T = torch.nn.functional.normalize(torch.from_numpy(text))
    d, h = X.shape[1], len(start.down_weights_)
    adapter = torch.nn.Sequential(
        torch.nn.Linear(d, h, bias=False), torch.nn.ReLU(), torch.nn.Linear(h, d, bias=False), torch.nn.ReLU()
    ).double()
    with torch.no_grad():
        adapter[0].weight.copy_(torch.from_numpy(start.down_weights_))
        adapter[2].weight.copy_(torch.from_numpy(start.up_weights_))

    def logits():
        return scale * torch.nn.functional.normalize(ratio * adapter(F) + (1 - ratio) * F) @ T.T

    optimizer = torch.optim.SGD(adapter.parameters(), lr=learning_rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max_iter)
    losses = []
    for _ in range(max_iter):
        loss = torch.nn.functional.cross_entropy(logits(), codes)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
    return logits().detach().numpy(), losses


@pytest.mark.parametrize("ratio", [0.2, 0.7])
def test_is_the_published_method_on_raw_features(ratio):
    """Without biases the adapter is homogeneous: rows of any length are as good as unit rows."""
    X, y, text = small(spread=0.5)
    X = X * np.random.default_rng(0).uniform(5, 15, size=(60, 1))
    params = {"ratio": ratio, "logit_scale": 20.0, "random_state": 0, "learning_rate": 0.1}
    start = CLIPAdapterClassifier(text, max_iter=0, **params).fit(X, y)
    clf = CLIPAdapterClassifier(text, max_iter=15, **params).fit(X, y)
    logits, losses = literal(X, y, text, start, max_iter=15, ratio=ratio)
    np.testing.assert_allclose(clf.logits(X), logits, rtol=1e-7, atol=1e-7)
    np.testing.assert_allclose(clf.loss_curve_, losses, rtol=1e-8)
    assert clf.n_iter_ == 15
    assert losses[-1] < losses[0]


def test_the_start_is_that_of_linear_layers():
    X, y, text = small(d=40)
    clf = CLIPAdapterClassifier(text, max_iter=0, random_state=0).fit(X, y)
    assert clf.down_weights_.shape == (10, 40)
    assert clf.up_weights_.shape == (40, 10)
    assert 0.9 / np.sqrt(40) < np.abs(clf.down_weights_).max() < 1 / np.sqrt(40)
    assert 0.9 / np.sqrt(10) < np.abs(clf.up_weights_).max() < 1 / np.sqrt(10)
    assert CLIPAdapterClassifier(text, reduction=99, max_iter=0).fit(X, y).down_weights_.shape == (1, 40)


def test_ratio_zero_is_zero_shot():
    X, y, text = small()
    clf = CLIPAdapterClassifier(text, ratio=0, logit_scale=30.0).fit(X, y)
    np.testing.assert_allclose(clf.logits(X), 30 * unit_rows(X) @ unit_rows(text).T, rtol=1e-10)


def test_no_weights_in_the_second_layer_are_zero_shot():
    X, y, text = small()
    clf = CLIPAdapterClassifier(text, max_iter=3, random_state=0).fit(X, y)
    rows = unit_rows(X)
    up = np.zeros_like(clf.up_weights_)
    np.testing.assert_allclose(adapt(rows, clf.down_weights_, up, 0.3), 0.7 * rows)
    clf.up_weights_ = up
    np.testing.assert_array_equal(clf.predict(X), np.argmax(rows @ unit_rows(text).T, axis=1))


def test_the_adapter_is_homogeneous():
    rng = np.random.default_rng(0)
    rows, down, up = rng.normal(size=(5, 8)), rng.normal(size=(3, 8)), rng.normal(size=(8, 3))
    np.testing.assert_allclose(adapt(9 * rows, down, up, 0.4), 9 * adapt(rows, down, up, 0.4))


def test_without_text_pictures_are_compared_with_class_means():
    X, y, _ = small()
    clf = CLIPAdapterClassifier(max_iter=2, random_state=0).fit(X, y)
    means = unit_rows(np.stack([unit_rows(X)[y == k].mean(axis=0) for k in range(4)]))
    np.testing.assert_allclose(clf.targets_, means)
    assert clf.prototypes_ is None
    assert clf.logit_scale_ == 100
    alone = CLIPAdapterClassifier(ratio=0).fit(X, y)
    np.testing.assert_array_equal(alone.predict(X), np.argmax(unit_rows(X) @ means.T, axis=1))


def test_without_text_pictures_are_trained_on_the_means_of_others():
    X, y, _ = small(n=40, spread=0.4)
    X, y = np.vstack([X, X[:3]]), np.append(y, y[:3])  # repeats are left out together
    keep = (y > 0) | (np.cumsum(y == 0) == 1)  # class 0 has one picture
    X, y = X[keep], y[keep]
    params = {"logit_scale": 20.0, "random_state": 0}
    start = CLIPAdapterClassifier(max_iter=0, **params).fit(X, y)
    clf = CLIPAdapterClassifier(max_iter=1, **params).fit(X, y)
    rows = unit_rows(X)
    moved = unit_rows(adapt(rows, start.down_weights_, start.up_weights_, 0.2))
    losses = []
    for i in range(len(rows)):
        means = clf.targets_.copy()
        others = (y == y[i]) & (rows != rows[i]).any(axis=1)
        if others.any():
            means[y[i]] = unit_rows(rows[others].sum(axis=0, keepdims=True))
        scores = 20 * moved[i] @ means.T
        losses.append(np.log(np.exp(scores).sum()) - scores[y[i]])
    assert clf.loss_curve_[0] == pytest.approx(np.mean(losses))


def test_held_out_pictures_are_no_part_of_the_class_means():
    X, y, _ = small(n=12)
    clf = CLIPAdapterClassifier(max_iter=1, early_stopping=True, validation_fraction=0.3, random_state=0).fit(X, y)
    rows = unit_rows(X)
    for k in range(4):
        own = rows[y == k]
        pairs = [unit_rows((own[i] + own[j])[None])[0] for i, j in ((0, 1), (0, 2), (1, 2))]
        assert np.abs(np.array(pairs) - clf.targets_[k]).max(axis=1).min() < 1e-12


@pytest.mark.parametrize("with_text", [False, True])
def test_whole_weights_are_repeated_rows_within_a_batch(with_text):
    X, y, text = small()
    weights = np.random.default_rng(3).integers(0, 4, len(X))
    clf = CLIPAdapterClassifier(text if with_text else None, max_iter=30, random_state=0, logit_scale=20.0)
    weighted = clone(clf).fit(X, y, sample_weight=weights)
    repeated = clone(clf).fit(np.repeat(X, weights, axis=0), np.repeat(y, weights))
    np.testing.assert_allclose(weighted.logits(X), repeated.logits(X), rtol=1e-6, atol=1e-6)


def test_repeated_views_change_nothing_and_only_the_first_is_read():
    X, y, text = small()
    once = CLIPAdapterClassifier(text, max_iter=20, random_state=0).fit(X, y)
    views = CLIPAdapterClassifier(text, max_iter=20, random_state=0).fit(np.repeat(X[:, None], 3, axis=1), y)
    np.testing.assert_allclose(views.logits(X), once.logits(X), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(views.logits(np.stack([X, -X], axis=1)), views.logits(X))


def test_the_random_state_decides_everything():
    X, y, text = small()
    fits = [CLIPAdapterClassifier(text, max_iter=3, batch_size=16, random_state=seed).fit(X, y) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(fits[0].up_weights_, fits[1].up_weights_)
    assert np.abs(fits[0].up_weights_ - fits[2].up_weights_).max() > 1e-6


def test_early_stopping_holds_pictures_out_and_stops():
    X, y, text = small(n=200, spread=0.5)
    clf = CLIPAdapterClassifier(text, early_stopping=True, random_state=0, n_iter_no_change=5).fit(X, y)
    assert len(clf.validation_scores_) == clf.n_iter_ < 200
    assert clf.n_iter_ == int(np.argmax(clf.validation_scores_)) + 1 + 5
    with pytest.raises(ValueError, match="early_stopping=False"):
        CLIPAdapterClassifier(text, early_stopping=True).fit(X[:4], y[:4])


def test_text_is_aligned_by_label(text_estimator):
    X, y, text = small()
    names = np.array(["zebra", "ant", "owl", "cat"])  # sorted: ant, cat, owl, zebra
    clf = CLIPAdapterClassifier(text_estimator(text, names, logit_scale=7.0), max_iter=3).fit(X, names[y])
    assert clf.classes_.tolist() == ["ant", "cat", "owl", "zebra"]
    assert clf.logit_scale_ == 7.0
    np.testing.assert_allclose(clf.targets_, unit_rows(text)[[1, 3, 2, 0]], rtol=1e-6)
    few = CLIPAdapterClassifier(text_estimator(text, names), max_iter=3).fit(X[y != 1], names[y[y != 1]])
    assert few.logits(X).shape == (60, 3)


def test_bad_input(text_estimator):
    X, y, text = small()
    clf = CLIPAdapterClassifier(max_iter=1)
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
        CLIPAdapterClassifier(text).fit(X, y - 1)
    with pytest.raises(ValueError, match=r"width 9.*12 features"):
        CLIPAdapterClassifier(text[:, :9]).fit(X, y)
    with pytest.raises(ValueError, match=r"\b3\b.*zero_shot"):
        CLIPAdapterClassifier(text_estimator(text[:3], [0, 1, 2])).fit(X, y)
    for params in ({"ratio": 1.1}, {"reduction": 0}, {"learning_rate": 0.0}):
        with pytest.raises(ValueError, match=next(iter(params))):
            CLIPAdapterClassifier(**params).fit(X, y)
    with pytest.raises(ValueError, match="device='abacus'"):
        CLIPAdapterClassifier(device="abacus").fit(X, y)


def test_warns_where_text_guesses():
    X, y, text = small(n=120, spread=3.0)
    with pytest.warns(SkclipWarning, match="no better than chance") as caught:
        CLIPAdapterClassifier(-text, max_iter=1).fit(X, y)
    assert caught[0].filename == __file__


def test_persistence_and_search():
    io = pytest.importorskip("skops.io")
    X, y, text = small()
    clf = CLIPAdapterClassifier(text, max_iter=3).fit(X, y)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(clf)).logits(X), clf.logits(X))
    data = io.dumps(clf)
    unknown = io.get_untrusted_types(data=data)
    assert all(name.startswith("skclip.") for name in unknown)
    np.testing.assert_array_equal(io.loads(data, trusted=unknown).logits(X), clf.logits(X))
    search = GridSearchCV(CLIPAdapterClassifier(text, max_iter=3), {"ratio": [0, 0.2, 1.0]}, cv=2).fit(X, y)
    assert search.best_score_ > 0.5


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_accelerator_agrees_with_the_cpu():
    X, y, text = small()
    fits = [CLIPAdapterClassifier(text, max_iter=20, random_state=0, device=d).fit(X, y) for d in ("cpu", "cuda")]
    np.testing.assert_allclose(fits[0].predict_proba(X), fits[1].predict_proba(X), atol=1e-3)
