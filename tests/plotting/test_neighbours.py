from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex

from skclip.adapters import FewShotInspector, SimilarityVoteClassifier
from skclip.datasets import make_picture_world
from skclip.features import CLIPFeatures
from skclip.plotting import NeighboursDisplay
from skclip.plotting._figures import RIGHT, WRONG
from skclip.retrieval import CLIPRetriever

TINY = "skclip-tiny"


@pytest.fixture(scope="module")
def pool():
    return make_picture_world(150, noise=60)


@pytest.fixture(scope="module")
def queries():
    return make_picture_world(3, noise=60, start=150)


@pytest.fixture(scope="module")
def retriever(pool):
    return CLIPRetriever(TINY).fit(pool.images, pool.target)


def test_shows_what_was_found(pool, queries, retriever, overlaps):
    display = NeighboursDisplay.from_estimator(
        retriever, queries.images, queries.target, pictures=pool.images, n_neighbors=4
    )
    similarities, indices = retriever.kneighbors(queries.images, 4)
    assert display.axes_.shape == (3, 5)
    np.testing.assert_array_equal(display.similarities, similarities)
    for i in range(3):
        np.testing.assert_array_equal(display.axes_[i, 0].images[0].get_array(), queries.images[i])
        assert queries.target[i] in display.axes_[i, 0].get_title()
        for j, row in enumerate(indices[i]):
            np.testing.assert_array_equal(display.images_[i][j].get_array(), pool.images[row])
            ax, right = display.axes_[i, j + 1], pool.target[row] == queries.target[i]
            assert to_hex(ax.spines["left"].get_edgecolor()) == (RIGHT if right else WRONG).lower()
            assert ax.get_title() == f"{'✓' if right else '✗'} {similarities[i, j]:.3f}\n{pool.target[row]}"
    assert overlaps(display.figure_) == []


@pytest.mark.parametrize("kind", [SimilarityVoteClassifier, FewShotInspector])
def test_classifiers_that_look_at_neighbours(kind, pool, queries):
    features = CLIPFeatures(TINY)
    clf = kind().fit(features.transform(pool.images), pool.target)
    X = features.transform(queries.images)
    display = NeighboursDisplay.from_estimator(clf, X, pictures=pool.images, query_pictures=queries.images)
    _, indices = clf.kneighbors(X, 5)
    np.testing.assert_array_equal(display.neighbor_labels, pool.target[indices])
    with pytest.raises(ValueError, match="query_pictures"):
        NeighboursDisplay.from_estimator(clf, X, pictures=pool.images)


def test_texts_as_queries(pool, retriever, overlaps):
    texts = ["a photo of a red circle", "a photo of a blue star"]
    display = NeighboursDisplay.from_estimator(
        retriever, texts=texts, pictures=pool.images, class_names={"red circle": "a very long name of a red circle"}
    )
    assert not display.axes_[0, 0].axison
    assert display.axes_[0, 0].texts[0].get_text().replace("\n", " ") == texts[0]
    assert display.axes_[0, 1].get_title().endswith("…")
    assert overlaps(display.figure_) == []


def test_in_a_part_of_a_figure_labels_are_cut(pool, queries, retriever, overlaps):
    figure, axes = plt.subplots(1, 2, figsize=(11, 4), layout="constrained")
    display = NeighboursDisplay.from_estimator(
        retriever, queries.images, pictures=pool.images, labels=[f"label {i} of many" for i in range(150)], ax=axes[1]
    )
    assert display.figure_ is figure
    assert overlaps(figure) == []


def test_without_labels(pool, queries):
    display = NeighboursDisplay.from_predictions(
        [[0.9, 0.8]], [[3, 5]], pictures=list(pool.images), query_pictures=queries.images[:1]
    )
    assert display.axes_[0, 1].get_title() == "0.900"
    assert display.axes_[0, 0].get_title() == "query"


def test_what_cannot_be(pool, queries):
    one = {"pictures": pool.images, "query_pictures": queries.images[:1]}
    with pytest.raises(ValueError, match="one shape"):
        NeighboursDisplay.from_predictions([[0.9]], [[3, 5]], **one)
    with pytest.raises(ValueError, match="indices holds 150, but there are 150"):
        NeighboursDisplay.from_predictions([[0.9]], [[150]], **one)
    with pytest.raises(ValueError, match="indices holds -1"):
        NeighboursDisplay.from_predictions([[0.9]], [[-1]], **one)
    with pytest.raises(ValueError, match="either"):
        NeighboursDisplay.from_predictions([[0.9]], [[1]], **one, texts=["a"])
    with pytest.raises(ValueError, match="inconsistent"):
        NeighboursDisplay.from_predictions([[0.9], [0.8]], [[1], [2]], **one)
    with pytest.raises(ValueError, match="inconsistent"):
        NeighboursDisplay.from_predictions([[0.9]], [[1]], **one, labels=["a"])
    with pytest.raises(ValueError, match="inconsistent"):
        NeighboursDisplay.from_predictions([[0.9]], [[1]], **one, query_labels=["a", "b"])
