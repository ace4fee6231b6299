"""
All adapters side by side: the table of the user guide
======================================================

Accuracy and calibration of every adapter at 1 to 16 pictures per class, the time of `fit` and the rows predicted
per second, on scanned digits, on drawn pictures in styles that the bundled model has not seen, and on folders of
features as ``reproduce_few_shot.py`` reads them. Writes the table that the documentation includes::

    python examples/adapter_table.py [FEATURES] --out docs/tables/adapters.rst
"""

import argparse
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from reproduce_few_shot import SHOTS, Draw, Task, evaluate, feature_tasks

import skclip
from skclip import CLIPFeatures, CLIPTextFeatures, ZeroShotClassifier
from skclip.datasets import few_shot_split, load_digit_pictures, make_picture_world
from skclip.utils import SkclipWarning

MODEL = "skclip-tiny"


def world_task(title: str, n_seeds: int, **choices: Any) -> Task:
    """Which colour and shape, 64 classes; each training picture has a caption."""
    pool = make_picture_world(2600, held_out="include", random_state=101, **choices)
    test = make_picture_world(1500, held_out="include", random_state=102, **choices)
    names = {name: name for name in pool.target_names}
    text = ZeroShotClassifier(MODEL, class_names=names, templates="a photo of a {}").fit()
    features = CLIPFeatures(MODEL)
    X, captions = features.transform(pool.images), CLIPTextFeatures(MODEL).transform(pool.captions)
    X_test = features.transform(test.images)

    def draws() -> Iterator[Draw]:
        for k in SHOTS:
            for seed in range(n_seeds):
                train, _ = few_shot_split(pool.target, k, random_state=seed)
                yield Draw(k, X[train], pool.target[train], X_test, test.target, captions=captions[train])

    return Task(title, text, draws)


def digits_task(n_seeds: int) -> Task:
    """Scanned digits; the bundled model was trained on those that can be drawn, and not on the test digits."""
    pool, test = load_digit_pictures(subset="train"), load_digit_pictures(subset="test")
    text = ZeroShotClassifier(MODEL, class_names=pool.class_names, templates="a photo of a {}").fit()
    features = CLIPFeatures(MODEL)
    X, X_test = features.transform(pool.images), features.transform(test.images)

    def draws() -> Iterator[Draw]:
        for k in SHOTS:
            for seed in range(n_seeds):
                train, _ = few_shot_split(pool.target, k, random_state=seed)
                yield Draw(k, X[train], pool.target[train], X_test, test.target)

    return Task("scanned digits", text, draws)


def tasks(folder: Path | None, n_seeds: int) -> Iterator[Task]:
    yield digits_task(n_seeds)
    yield world_task("drawn outlines (sketch)", n_seeds, styles=["sketch"])
    yield world_task("drawn pictures, strong noise", n_seeds, noise=60.0)
    if folder is not None:
        yield from feature_tasks(folder, SHOTS)


def rst_table(rows: list[dict[str, Any]]) -> str:
    """A block of rows per data set: "accuracy / ECE" at each number of shots, speed at the largest."""
    lines = [".. list-table::", "   :header-rows: 1", "   :class: adapters", "", "   * - data", "     - method"]
    lines += [f"     - {k} shot{'s' if k > 1 else ''}" for k in SHOTS] + ["     - fit, s", "     - rows/s"]
    for name in dict.fromkeys(row["set"] for row in rows):
        block = [row for row in rows if row["set"] == name]
        for m, method in enumerate(dict.fromkeys(row["method"] for row in block)):
            lines += [f"   * - {name if m == 0 else ''}", f"     - {method}"]
            own = [row for row in block if row["method"] == method]
            for k in SHOTS:
                lines.append(f"     - {_cell([row for row in own if row['shots'] == k], _best(block, k))}")
            most = [row for row in own if row["shots"] == max(row["shots"] for row in own)]
            lines.append(f"     - {np.median([row['fit_seconds'] for row in most]):.3g}")
            lines.append(f"     - {np.median([row['rows_per_second'] for row in most]):,.0f}")
    return "\n".join(lines)


def _best(block: list[dict[str, Any]], shots: int) -> float:
    methods = {row["method"] for row in block if row["shots"] == shots}
    return max((_mean(block, method, shots) for method in methods), default=np.inf)


def _mean(block: list[dict[str, Any]], method: str, shots: int) -> float:
    return float(np.mean([row["accuracy"] for row in block if (row["method"], row["shots"]) == (method, shots)]))


def _cell(rows: list[dict[str, Any]], best: float) -> str:
    if not rows:
        return "-"
    accuracy = float(np.mean([row["accuracy"] for row in rows]))
    text = f"**{accuracy:.1f}**" if accuracy >= best - 1e-9 else f"{accuracy:.1f}"
    errors = [row["ece"] for row in rows if "ece" in row]
    return text + (f" / {np.mean(errors):.0f}" if errors else "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="features of further data sets")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the training pictures of the generated sets")
    parser.add_argument("--out", type=Path, default=None, help="default: print")
    args = parser.parse_args()

    rows: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkclipWarning)  # one picture per class: nothing can be held out
        for task in tasks(args.folder, args.seeds):
            rows += [row for row in evaluate(task) if "fit_seconds" in row]
            write(rows, args.seeds, args.out)
            print(f"{task.name}: done", flush=True)


def write(rows: list[dict[str, Any]], n_seeds: int, out: Path | None) -> None:
    note = (
        "Accuracy in % / expected calibration error in points (15 bins); the best accuracy of each set and column in "
        f"bold. Generated sets: mean over {n_seeds} draws, model ``{MODEL}``; the others are features of OpenAI's CLIP "
        f"ViT-B/32, one draw each. Times at the largest number of shots, {torch.get_num_threads()} thread(s), "
        f"{platform.machine()} {platform.system()}, skclip {skclip.__version__}, scikit-learn {sklearn.__version__}, "
        f"torch {torch.__version__}; ``python examples/adapter_table.py FEATURES``."
    )
    text = f"{rst_table(rows)}\n\n{note}\n"
    if out is None:
        print(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
