"""Class text and a few pictures together, on tasks of the picture world where zero-shot leaves room."""

import runpy
from pathlib import Path

import numpy as np
import pytest

TABLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "few_shot_table.py"))


@pytest.mark.slow
def test_text_and_pictures_are_at_least_as_good_as_either():
    figures = []
    for name in ("sketch", "noise", "dark", "pixel"):
        task = TABLE["TASKS"][name]()
        figures.append(TABLE["accuracies"](task, "skclip-tiny", TABLE["SHOTS"], 5).mean(axis=2))
    zero_shot, pictures, both = np.moveaxis(np.array(figures), 1, 0)  # (n_tasks, n_shots)
    assert zero_shot.max() < 95
    # up to what five draws of the training pictures can tell
    assert (both - np.maximum(zero_shot, pictures)).min() > -0.5
    assert (both - np.maximum(zero_shot, pictures)).max() > 5.0


def test_the_table_is_valid_and_marks_the_best():
    figures = {"a": np.arange(45.0).reshape(3, 5, 3)}
    text = TABLE["rst_table"](figures, {"a": "a task"}, "A note.")
    assert text.startswith(".. list-table::")
    assert text.count("**") == 2 * 5
    assert "**43.0** (0.8)" in text
