"""The script behind the table of what learning prompts or weights gains."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import benchmark_adaptation as script


def row(scenario, method, seed, shots, **figures):
    return {
        "scenario": scenario,
        "method": method,
        "seed": seed,
        "shots": shots,
        "figures": figures,
        "seconds": 0.5,
        "learned": 1234,
    }


def cells_of(text, method):
    """The cells of a method's row, without its name."""
    lines = text.splitlines()
    first = lines.index(f"   * - {method}")
    last = next(i for i in range(first + 1, len(lines)) if not lines[i].startswith("     -"))
    return [line.removeprefix("     -").strip() for line in lines[first + 1 : last]]


def test_every_method_and_rival_is_there():
    for name, method in script.METHODS.items():
        assert not method.rival or method.rival in script.METHODS, name
        assert set(method.scenarios) <= set(script.TASKS), name
        assert method.kind in ("features", "pictures")
    assert set(script.TASKS) == set(script.PROTOCOLS) == set(script.SHOTS_OF) == set(script.TITLES)


def test_the_table_says_who_is_better_than_whom():
    rows = [
        *(row("style", script.ZERO_SHOT, seed, 16, photo=50.0, **{"other styles": 40.0}) for seed in (0, 1)),
        row("style", "linear probe", 0, 16, photo=60.0, **{"other styles": 45.0}),
        row("style", "linear probe", 1, 16, photo=60.0, **{"other styles": 35.0}),
        *(row("style", "CoOp", seed, 16, photo=59.0, **{"other styles": 39.0}) for seed in (0, 1)),
    ]
    text = script.render(rows, "A note.\n")
    assert cells_of(text, script.ZERO_SHOT) == ["50.0", "**40.0**", "1,234", "0.5", "", ""]
    assert cells_of(text, "linear probe") == ["**60.0**", "**40.0**", "1,234", "0.5", "+0.0 (1 of 2)", ""]
    assert cells_of(text, "CoOp")[-2:] == ["-1.0 (0 of 2)", "linear probe: -1.0 (1 of 2)"]
    assert "- *other styles*" in text
    assert text.endswith("A note.\n")


def test_few_shot_rows_are_put_side_by_side():
    rows = [row("sketch", script.ZERO_SHOT, 0, shots, accuracy=30.0) for shots in script.SHOTS]
    rows += [row("sketch", "GDA", 0, shots, accuracy=20.0 + shots) for shots in script.SHOTS]
    found = cells_of(script.render(rows, ""), "GDA")
    assert found[:6] == ["21.0", "22.0", "24.0", "28.0", "**36.0**", "26.2"]
    assert found[-2] == "-3.8 (0 of 1)"


@pytest.fixture
def small_task():
    """28 pairs, three rows of features each; nothing is drawn."""
    names = [name for k in (2, 4, 6, 1) for name in script.combination(k)][:28]
    rng = np.random.default_rng(0)
    labels = np.repeat(names, 3)
    rows = np.repeat(rng.normal(size=(28, 128)), 3, axis=0) + rng.normal(size=(84, 128))
    pictures = script.Pictures(np.zeros((84, 1)), labels, rows)
    return script.Task(pictures, {"": pictures}, script.names_of(names))


def test_what_is_measured_is_not_measured_again(small_task, tmp_path, monkeypatch, capsys):
    path = tmp_path / "adaptation.jsonl"
    table = tmp_path / "adaptation.rst"
    options = ["--only", "sketch", "--methods", f"{script.ZERO_SHOT},GDA", "--seeds", "7", "--develop"]
    monkeypatch.setattr(sys, "argv", ["script", *options, "--json", str(path), "--out", str(table)])
    monkeypatch.setattr(script, "SHOTS_OF", {**script.SHOTS_OF, "sketch": (1, 2)})
    monkeypatch.setattr(script, "SHOTS", (1, 2))
    monkeypatch.setattr(script, "task_of", lambda *_: small_task)
    monkeypatch.setattr(script, "measured", lambda wanted, seeds, _: (script.measure(*one, seeds) for one in wanted))
    script.main()
    written = path.read_text()
    rows = [json.loads(line) for line in written.splitlines()]
    assert [(r["method"], r["shots"]) for r in rows] == [(m, k) for m in (script.ZERO_SHOT, "GDA") for k in (1, 2)]
    assert rows[0]["figures"] == rows[1]["figures"]
    assert rows[2]["learned"] == 28 * 128
    monkeypatch.setattr(script, "measure", pytest.fail)
    script.main()
    assert path.read_text() == written
    assert table.read_text() in capsys.readouterr().out


@pytest.mark.slow
def test_processes_measure_what_this_one_does(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    wanted = [("unlabelled", name, 0, 0) for name in (script.ZERO_SHOT, "label-free GDA")]
    found = list(script.measured(wanted, script.DEVELOPMENT, 2))
    for there, one in zip(found, wanted, strict=True):
        assert there["figures"] == pytest.approx(script.measure(*one, script.DEVELOPMENT)["figures"])


def test_sessions_go_on_and_know_all_classes_so_far(small_task):
    """With class means nothing is forgotten: the last session is a fit to all pictures at once."""
    found = script.sessions(script.METHODS["class means"], small_task, 0, 2)["figures"]
    train = small_task.pool.draw(2, 0)
    at_once = script.NearestCentroid().fit(train.features, train.labels)
    assert found["session 5"] == script.accuracy(at_once, "features", small_task.tests[""])
    assert found["drop"] == found["session 1"] - found["session 5"]
