from __future__ import annotations

import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from skclip.plotting import ConfusionDisplay, FewShotCurveDisplay, NeighboursDisplay, ReliabilityDisplay
from skclip.plotting._figures import display_name, divide, show_picture

DRAW = [
    lambda: ReliabilityDisplay.from_predictions([True, False], [0.9, 0.2]),
    lambda: FewShotCurveDisplay({"a": {1: 0.5}}).plot(),
    lambda: ConfusionDisplay.from_predictions([0, 1], [1, 1]),
    lambda: NeighboursDisplay.from_predictions(
        [[0.9]], [[0]], pictures=np.zeros((1, 4, 4, 3), np.uint8), texts=["a star"]
    ),
]


@pytest.mark.parametrize("draw", DRAW)
def test_without_matplotlib_the_error_names_the_extra(monkeypatch, draw):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"skclip\[plots\]"):
        draw()


def test_importing_the_displays_does_not_import_matplotlib():
    code = "import sys, skclip.plotting; assert 'matplotlib' not in sys.modules and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pictures_of_any_kind_and_size(tmp_path):
    large = Image.new("RGBA", (1200, 600), (255, 0, 0, 128))
    large.save(tmp_path / "large.png")
    for picture in (large, tmp_path / "large.png", np.asarray(large), (tmp_path / "large.png").read_bytes()):
        shown = show_picture(plt.figure().add_subplot(), picture).get_array()
        assert shown.shape == (128, 256, 3)
    assert large.size == (1200, 600)
    assert show_picture(plt.figure().add_subplot(), np.zeros((5, 7), np.uint8)).get_array().shape == (5, 7, 3)


def test_free_standing_axes_cannot_be_divided():
    with pytest.raises(ValueError, match="subplots"):
        divide(plt.figure().add_axes((0, 0, 1, 1)), plt, 2, 2, (1, 1))


def test_names_stand_for_labels():
    assert display_name(np.int64(3), {3: "owl"}) == "owl"
    assert display_name(4, {3: "owl"}) == "4"
    assert display_name("cat", None) == "cat"
