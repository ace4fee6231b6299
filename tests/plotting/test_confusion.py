from __future__ import annotations

import tracemalloc

import matplotlib.pyplot as plt
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix

from skclip.datasets import make_picture_world
from skclip.plotting import ConfusionDisplay
from skclip.plotting._confusion import most_confused
from skclip.zero_shot import CLIPClassifier, ZeroShotClassifier


def errors(n=3000, n_classes=12, seed=0):
    rng = np.random.default_rng(seed)
    y = rng.integers(0, n_classes, n)
    guess = np.where(rng.random(n) < 0.6, y, np.minimum(rng.geometric(0.3, n) - 1, n_classes - 1))
    return y, guess


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("by_share", [False, True])
def test_pairs_are_the_largest_cells_of_the_matrix(symmetric, by_share):
    y, guess = errors()
    names = np.array([f"class {i:02d}" for i in range(12)])
    pairs, rows = most_confused(names[y], names[guess], 15, by_share=by_share, symmetric=symmetric)
    matrix = confusion_matrix(y, guess).astype(float)
    totals = np.broadcast_to(matrix.sum(axis=1, keepdims=True), matrix.shape)
    np.fill_diagonal(matrix, 0)
    if symmetric:
        matrix, totals = np.triu(matrix + matrix.T), totals + totals.T
    cells = matrix / totals if by_share else matrix
    values = pairs["count"] / pairs["total"] if by_share else pairs["count"]
    np.testing.assert_allclose(values, np.sort(cells.ravel())[::-1][:15])
    for one, other, count, total, some in zip(*(pairs[k] for k in ("true", "predicted", "count", "total")), rows):
        i, j = np.flatnonzero(names == one)[0], np.flatnonzero(names == other)[0]
        assert (matrix[i, j], totals[i, j], len(some)) == (count, total, count)
        assert all({y[row], guess[row]} == {i, j} for row in some)


def test_bars_and_words(overlaps):
    y, guess = errors()
    display = ConfusionDisplay.from_predictions(y, guess, n_pairs=5, class_names={i: f"kind {i}" for i in range(12)})
    assert [bar.get_width() for bar in display.bars_] == display.count.tolist()
    labels = [text.get_text() for text in display.ax_.get_yticklabels()]
    assert labels[0] == f"kind {display.true[0]} → kind {display.predicted[0]}"
    assert f"{np.sum(y != guess)} of 3000 wrong" in display.ax_.get_title(loc="left")
    assert display.example_axes_ == []
    assert overlaps(display.figure_) == []
    share = ConfusionDisplay.from_predictions(y, guess, normalize="true", symmetric=True)
    assert share.bars_[0].get_width() == share.count[0] / share.total[0]
    assert "↔" in share.ax_.get_yticklabels()[0].get_text()


def test_examples_are_pictures_mistaken_so(overlaps):
    world = make_picture_world(150, noise=60)
    names = ZeroShotClassifier(class_names=world.target_names, templates="a photo of a {}")
    clf = CLIPClassifier("skclip-tiny", names)
    display = ConfusionDisplay.from_estimator(clf, world.images, world.target, n_pairs=4, n_examples=2)
    guess = clf.predict(world.images)
    assert [len(axes) for axes in display.example_axes_] == np.minimum(display.count, 2).tolist()
    for one, other, axes in zip(display.true, display.predicted, display.example_axes_):
        mistaken = world.images[(world.target == one) & (guess == other)]
        for ax, picture in zip(axes, mistaken):
            np.testing.assert_array_equal(ax.images[0].get_array(), picture)
    display.figure_.canvas.draw()
    for i, axes in enumerate(display.example_axes_):  # in line with the bars, and within the figure
        middle = display.ax_.transData.transform((0, i))[1]
        for ax in axes:
            box = ax.get_window_extent()
            assert box.y0 < middle < box.y1
            assert display.ax_.get_window_extent().x1 <= box.x0
            assert box.x1 <= display.figure_.bbox.x1
    assert overlaps(display.figure_) == []


def test_on_given_axes():
    y, guess = errors()
    _, axes = plt.subplots(1, 2)
    assert ConfusionDisplay.from_predictions(y, guess, ax=axes[0], color="black").ax_ is axes[0]
    pictures = np.zeros((3000, 4, 4, 3), np.uint8)
    display = ConfusionDisplay.from_predictions(y, guess, ax=axes[1], pictures=pictures)
    assert display.figure_ is axes[1].figure
    assert not axes[1].axison


def test_thousands_of_classes_need_no_matrix():
    y, guess = errors(n=50_000, n_classes=5000)
    tracemalloc.start()
    try:
        most_confused(y, guess, 20, by_share=True, symmetric=False)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 20e6  # the matrix: 200 MB


def test_what_cannot_be():
    with pytest.raises(ValueError, match="All 2 predictions are right"):
        ConfusionDisplay.from_predictions([1, 2], [1, 2])
    with pytest.raises(ValueError, match="inconsistent"):
        ConfusionDisplay.from_predictions([1, 2], [1])
    with pytest.raises(ValueError, match="inconsistent"):
        ConfusionDisplay.from_predictions([1, 2], [2, 2], pictures=np.zeros((3, 4, 4, 3), np.uint8))
    with pytest.raises(ValueError, match="normalize"):
        ConfusionDisplay.from_predictions([1, 2], [2, 2], normalize="pred")
