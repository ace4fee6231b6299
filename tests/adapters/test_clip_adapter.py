from __future__ import annotations

import numpy as np
import pytest

from skclip.adapters import CLIPAdapterClassifier
from skclip.adapters._clip_adapter import adapt
from skclip.utils._arrays import unit_rows

torch = pytest.importorskip("torch")


def small(n=60, d=12, n_classes=4, seed=0, spread=1.0):
    rng = np.random.default_rng(seed)
    y = np.arange(n) % n_classes
    means = spread * rng.normal(size=(n_classes, d))
    return rng.normal(size=(n, d)) + means[y] + 1.0, y, means + 1.0


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
