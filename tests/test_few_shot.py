"""Class text and a few pictures together, on tasks of the picture world where zero-shot leaves room."""

import runpy
from pathlib import Path

import pytest

TABLE = runpy.run_path(str(Path(__file__).parents[1] / "examples" / "few_shot_table.py"))


@pytest.mark.slow
def test_text_and_pictures_are_at_least_as_good_as_either():
    margins = []
    for name in ("sketch", "noise"):
        task = TABLE["TASKS"][name]()
        zero_shot, pictures, both = TABLE["accuracies"](task, "skclip-tiny", TABLE["SHOTS"], 5).mean(axis=2)
        assert zero_shot.max() < 95
        margins.append(both - zero_shot.clip(min=pictures))
        # "at least as good" up to what five draws of the training pictures can tell
        assert margins[-1].min() > -0.5, (name, zero_shot, pictures, both)
    assert max(margin.max() for margin in margins) > 1.0


def test_the_table_is_valid_and_marks_the_best():
    import numpy as np

    figures = {"a": np.arange(45.0).reshape(3, 5, 3)}
    text = TABLE["rst_table"](figures, {"a": "a task"}, "A note.")
    assert text.startswith(".. list-table::")
    assert text.count("**") == 2 * 5
    assert "**43.0** (0.8)" in text
