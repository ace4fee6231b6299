"""The script that reproduces few-shot tables, on small folders in both layouts."""

from __future__ import annotations

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from skclip import CLIPFeatures
from skclip.datasets import few_shot_split, make_picture_world

EXAMPLES = Path(__file__).parents[1] / "examples"
LEARNED = ("TipAdapterF", "LinearProbe", "LPPlusPlus", "CLAP", "CLIPAdapter")


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))
    import reproduce_few_shot

    return reproduce_few_shot


@pytest.fixture(scope="module")
def world():
    return make_picture_world(240, colors=["red", "green", "blue"], shapes=["circle", "star"], random_state=5)


def figures(rows, **wanted):
    return [row["accuracy"] for row in rows if all(row[key] == value for key, value in wanted.items())]


def test_pictures_in_coop_layout(script, world, tmp_path, capsys):
    names = world.target_names
    split: dict[str, list] = {"train": [], "val": [], "test": []}
    folder = tmp_path / "shapes" / "images"
    for i, (picture, name) in enumerate(zip(world.images, world.target)):
        path = Path(name.replace(" ", "_")) / f"{i}.png"
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(folder / path)
        split[("train", "val", "test")[i % 3]].append([str(path), names.index(name), name])
    (tmp_path / "shapes" / "split_zhou_Shapes.json").write_text(json.dumps(split))
    out = tmp_path / "figures.csv"
    options = "--model skclip-tiny --shots 1 2 --views 2 --seeds 1 --protocols --out"
    rows = script.main([str(tmp_path), *options.split(), str(out)])
    methods = {row["method"] for row in rows}
    assert {row["set"] for row in rows} == {"shapes"}
    assert {row["shots"] for row in rows} == {1, 2}
    assert {"class names alone", "GDA, formula, by validation", "Tip-Adapter, formula, by test (optimistic)"} <= methods
    assert {name for name in dir(script) if name.endswith("Classifier")} - {"ZeroShotClassifier"} <= methods
    assert np.isfinite([row["accuracy"] for row in rows]).all()
    for formula, method in (("GDA, formula", "GDAClassifier"), ("Tip-Adapter, formula", "TipAdapterClassifier")):
        np.testing.assert_allclose(figures(rows, method=formula), figures(rows, method=method), atol=0.1)
    with open(out, newline="") as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert "shapes" in capsys.readouterr().out


def test_imagenet_layout(script, world, tmp_path):
    folder = tmp_path / "imagenet"
    wnids = {name: f"n{k:08d}" for k, name in enumerate(world.target_names)}
    for i, (picture, name) in enumerate(zip(world.images[:90], world.target)):
        place = folder / "images" / ("train" if i % 2 else "val") / wnids[name]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(place / f"{i}.png")
    (folder / "classnames.txt").write_text("".join(f"{wnid} {name}\n" for name, wnid in wnids.items()))
    rows = script.main(
        [str(tmp_path), "--model", "skclip-tiny", "--shots", "1", "--views", "1", "--seeds", "1", "--methods", "names"]
    )
    assert figures(rows, method="class names alone")[0] > 95


def test_folder_of_features(script, world, tmp_path, capsys):
    X = CLIPFeatures("skclip-tiny").transform(world.images)
    y = np.searchsorted(world.target_names, world.target)
    arrays = {"X_test": X[120:], "y_test": y[120:]}
    for k in (1, 4):
        train, _ = few_shot_split(y[:120], k, random_state=0)
        arrays |= {f"X_train_{k}": X[train], f"y_train_{k}": y[train]}
    np.savez(tmp_path / "shapes.npz", **arrays)
    rows = script.main([str(tmp_path)])
    assert "class names alone" not in {row["method"] for row in rows}
    assert min(figures(rows, shots=4, method="GDAClassifier")) > 90
    assert "ece" in rows[0] or "ece" in rows[1]
    assert "nearest class mean" in capsys.readouterr().out


def test_an_empty_folder_says_so(script, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main([str(tmp_path)])
    assert "no data set" in capsys.readouterr().err
    assert "reproduce_few_shot" in sys.modules


@pytest.fixture(scope="module")
def real_rows(realdata):
    folder = realdata / "clip-vit-b-32-openai"
    if not folder.is_dir():
        pytest.skip("no features")
    sys.path.insert(0, str(EXAMPLES))
    try:
        import reproduce_few_shot
    finally:
        sys.path.remove(str(EXAMPLES))
    return reproduce_few_shot.main([str(folder), "--shots", "2", "4", "8", "16"])


@pytest.mark.realdata
@pytest.mark.slow
def test_adapters_are_their_formulas_on_real_features(real_rows):
    sets = {row["set"] for row in real_rows}
    assert {"caltech101", "oxford_flowers", "imagenet"} <= sets
    for formula, method in (("GDA, formula", "GDAClassifier"), ("Tip-Adapter, formula", "TipAdapterClassifier")):
        expected = figures(real_rows, method=formula)
        assert len(expected) >= 10
        np.testing.assert_allclose(figures(real_rows, method=method), expected, atol=0.1)


@pytest.mark.realdata
@pytest.mark.slow
def test_learned_adapters_beat_the_class_means_and_the_names(real_rows):
    for name in ("caltech101", "oxford_flowers"):
        for shots in (4, 8, 16):
            (nearest,) = figures(real_rows, set=name, shots=shots, method="nearest class mean")
            for method in LEARNED:
                (reached,) = figures(real_rows, set=name, shots=shots, method=f"{method}Classifier")
                assert reached > nearest, (name, shots, method)
    (names,) = figures(real_rows, set="imagenet", shots=4, method="class names alone")
    for method in LEARNED:
        if method == "LinearProbe":  # knows no names
            continue
        (reached,) = figures(real_rows, set="imagenet", shots=4, method=f"{method}Classifier")
        assert reached > names, method
