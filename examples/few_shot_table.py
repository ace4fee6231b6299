"""
Few labels, class names, or both: the table of the user guide
=============================================================

Accuracy of class names alone, of `GDAClassifier` alone and of both together (``alpha="cv"``) at 1 to 16 pictures
per class, on tasks where the bundled model's zero-shot accuracy leaves room. The test pictures are used once, for
the figures. Writes the table that the documentation includes::

    python examples/few_shot_table.py --out docs/tables/few_shot.rst
"""

import argparse
import platform
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sklearn
import torch

import skclip
from skclip import CLIPFeatures, GDAClassifier, ZeroShotClassifier
from skclip.datasets import few_shot_split, make_picture_world
from skclip.utils import SkclipWarning

SHOTS = (1, 2, 4, 8, 16)
METHODS = ("class names", "GDA", "GDA and class names")


@dataclass(frozen=True)
class Task:
    """Training pool and test pictures of one problem, and the names of its classes."""

    title: str
    pool: np.ndarray
    pool_labels: np.ndarray
    test: np.ndarray
    test_labels: np.ndarray
    class_names: dict[str, str]
    template: str


def _pairs_task(title: str, n_pool: int, n_test: int, **choices: object) -> Task:
    """Which colour and shape, 64 classes."""
    pool = make_picture_world(n_pool, held_out="include", random_state=101, **choices)
    test = make_picture_world(n_test, held_out="include", random_state=102, **choices)
    names = {name: name for name in pool.target_names}
    return Task(title, pool.images, pool.target, test.images, test.target, names, "a photo of a {}")


TASKS = {
    "sketch": lambda: _pairs_task("outlines only (sketch)", 2600, 1500, styles=["sketch"]),
    "noise": lambda: _pairs_task("strong pixel noise", 2600, 1500, noise=60.0),
    "dark": lambda: _pairs_task("dark and noisy", 2600, 1500, styles=["dark"], noise=25.0),
    "pixel": lambda: _pairs_task("coarse pixels", 2600, 1500, styles=["pixel"]),
}


def accuracies(task: Task, model: str, shots: tuple[int, ...], n_seeds: int) -> np.ndarray:
    """Test accuracy in % of each of `METHODS`: (n_methods, n_shots, n_seeds)."""
    features = CLIPFeatures(model)
    pool, test = features.fit_transform(task.pool), features.transform(task.test)
    text = ZeroShotClassifier(model, class_names=task.class_names, templates=task.template)
    figures = np.empty((len(METHODS), len(shots), n_seeds))
    figures[0] = 100 * text.fit().score(test, task.test_labels)
    for i, k in enumerate(shots):
        for seed in range(n_seeds):
            train, _ = few_shot_split(task.pool_labels, k, random_state=seed)
            X, y = pool[train], task.pool_labels[train]
            figures[1, i, seed] = 100 * GDAClassifier().fit(X, y).score(test, task.test_labels)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", SkclipWarning)  # one picture per class: said in the user guide
                both = GDAClassifier(zero_shot=text, alpha="cv").fit(X, y)
            figures[2, i, seed] = 100 * both.score(test, task.test_labels)
    return figures


def rst_table(figures: dict[str, np.ndarray], titles: dict[str, str], note: str) -> str:
    """One block of rows per task: mean over the draws, standard deviation in brackets."""
    lines = [".. list-table::", "   :header-rows: 1", "", "   * - task", "     - method"]
    lines += [f"     - {k} shot{'s' if k > 1 else ''}" for k in SHOTS]
    for name, block in figures.items():
        for m, method in enumerate(METHODS):
            lines += [f"   * - {titles[name] if m == 0 else ''}", f"     - {method}"]
            best = block.mean(2).max(0)
            for i in range(len(SHOTS)):
                mean, deviation = block[m, i].mean(), block[m, i].std()
                text = f"**{mean:.1f}**" if mean >= best[i] - 1e-9 else f"{mean:.1f}"
                lines.append(f"     - {text}" + (f" ({deviation:.1f})" if m else ""))
    return "\n".join([*lines, "", note, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="skclip-tiny")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=None, help="default: print")
    args = parser.parse_args()

    tasks = {name: build() for name, build in TASKS.items()}
    figures = {name: accuracies(task, args.model, SHOTS, args.seeds) for name, task in tasks.items()}
    note = (
        f"Accuracy in %, mean over {args.seeds} draws of the training pictures (standard deviation); the best of each "
        f'task and column in bold. Model ``"{args.model}"``, {platform.machine()} {platform.system()}, '
        f"skclip {skclip.__version__}, scikit-learn {sklearn.__version__}, torch {torch.__version__}; "
        "``python examples/few_shot_table.py``."
    )
    text = rst_table(figures, {name: task.title for name, task in tasks.items()}, note)
    if args.out is None:
        print(text)
    else:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
