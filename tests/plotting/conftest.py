"""Figures are drawn without a screen, and closed after each test."""

from __future__ import annotations

import matplotlib
import pytest

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def close_figures():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


@pytest.fixture
def overlaps():
    """``overlaps(figure) -> list``: pairs of texts in a drawn figure that lie over each other."""

    def find(figure):
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        boxes = []
        for ax in figure.axes:
            texts = [ax.title, ax._left_title, ax.xaxis.label, ax.yaxis.label, *ax.texts]
            if ax.axison:
                texts += [*ax.get_xticklabels(), *ax.get_yticklabels()]
            texts += ax.get_legend().get_texts() if ax.get_legend() else []
            boxes += [(t.get_text(), t.get_window_extent(renderer)) for t in texts if t.get_text() and t.get_visible()]
        return [
            (one, other)
            for i, (one, box) in enumerate(boxes)
            for other, its in boxes[i + 1 :]
            if box.padded(-1).overlaps(its.padded(-1))
        ]

    return find
