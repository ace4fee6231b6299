"""
All detectors side by side: the table of the user guide
=======================================================

AUROC and FPR at 95 % TPR of every detector, of their fusion and of COOkeD and its members, on drawn pictures encoded by
the bundled model and on a folder of features of a real CLIP (``imagenet.npz`` and others, as ``reproduce_few_shot.py``
reads them). Writes the table that the documentation includes::

    python examples/ood_table.py [FEATURES] --out docs/tables/ood.rst
"""

import argparse
import platform
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import sklearn
import torch
from numpy.typing import NDArray
from reproduce_few_shot import given_text, load_features
from sklearn.frozen import FrozenEstimator

import skclip
from skclip import CLIPFeatures, CLIPTextFeatures, LinearProbeClassifier, ZeroShotClassifier
from skclip.adapters import SimilarityVoteClassifier
from skclip.datasets import load_digit_pictures, make_inspection_parts, make_picture_world
from skclip.ensemble import COOkeDClassifier
from skclip.evaluation import ood_benchmark
from skclip.ood import (
    EnergyDetector,
    EntropyDetector,
    GENDetector,
    GradNormDetector,
    KLMatchingDetector,
    KNNDetector,
    MahalanobisDetector,
    MaxLogitDetector,
    MCMDetector,
    MSPDetector,
    NegLabelDetector,
    NNGuideDetector,
    OODEnsemble,
    ReActDetector,
    RelativeMahalanobisDetector,
    ResidualDetector,
    SHEDetector,
    VarianceDetector,
    ViMDetector,
)
from skclip.utils import SkclipWarning

MODEL = "skclip-tiny"


class Task(NamedTuple):
    """Known pictures, and sets of unknown ones."""

    name: str
    X: NDArray
    y: NDArray
    X_in: NDArray
    out: dict[str, NDArray]
    near: list[str]
    text: ZeroShotClassifier | None
    words: NDArray | None = None  # text features of words for NegLabel


def picture_task(noise: float) -> Task:
    """Four shapes in four colours; near are other shapes and colours, far are digits and circuit boards."""
    known: dict[str, Any] = {
        "colors": ["red", "green", "blue", "yellow"],
        "shapes": ["circle", "square", "triangle", "star"],
        "held_out": "include",
        "noise": noise,
    }
    train, test = (make_picture_world(800, random_state=seed, **known) for seed in (1, 2))
    others = {
        "other shapes": {"shapes": ["cross", "ring", "moon", "heart"]},
        "other colours": {"colors": ["purple", "orange", "cyan", "pink"]},
        "unseen shapes": {"shapes": "unseen"},
    }
    features = CLIPFeatures(MODEL)
    out = {
        name: features.transform(make_picture_world(400, random_state=3 + i, **{**known, **change}).images)
        for i, (name, change) in enumerate(others.items())
    }
    out["digits"] = features.transform(load_digit_pictures(subset="test").images[:400])
    out["circuit boards"] = features.transform(make_inspection_parts(400, random_state=6).images)
    names = {name: name for name in train.target_names}
    text = ZeroShotClassifier(MODEL, class_names=names, templates="a photo of a {}").fit()
    colors = ["red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink"]
    shapes = ["circle", "square", "triangle", "star", "cross", "ring", "moon", "heart"]
    words = [f"a photo of a {c} {s}" for c in colors for s in shapes if f"{c} {s}" not in names]
    X, X_in = features.transform(train.images), features.transform(test.images)
    title = f"coloured shapes, noise {noise:g}"
    return Task(title, X, train.target, X_in, out, list(others), text, CLIPTextFeatures(MODEL).transform(words))


def feature_tasks(folder: Path) -> Iterator[Task]:
    """ImageNet with text, half of ImageNet against the other half, and sets without text against each other.

    k-shot rows are compared with k-shot rows: they are means of augmented views, which single views are not.
    """
    sets = ("imagenet", "oxford_flowers", "caltech101", "dtd")
    imagenet, flowers, caltech, dtd = (load_features(folder / f"{name}.npz") for name in sets)
    text = given_text(imagenet)
    assert text is not None
    others = {
        "Flowers": flowers["X_train_16"],
        "Caltech": caltech["X_train_16"],
        "DTD": dtd["X_train_1"],
    }
    X, y, X_in, y_in = (imagenet[name] for name in ("X_train_4", "y_train_4", "X_train_2", "y_train_2"))
    yield Task("ImageNet, 4 shots", X, y, X_in, others, [], text)

    known = np.sort(np.random.default_rng(0).permutation(1000)[:500])
    names = ZeroShotClassifier(prototypes=text.prototypes_[known], classes=known)
    own, own_in = np.isin(y, known), np.isin(y_in, known)
    out = {"other classes": X_in[~own_in], **others}
    yield Task("half of ImageNet", X[own], y[own], X_in[own_in], out, ["other classes"], names)

    for name, data, out in (
        ("Caltech, 16 shots", caltech, {"Flowers": flowers["X_train_16"], "DTD": dtd["X_train_1"]}),
        ("Flowers, 16 shots", flowers, {"Caltech": caltech["X_train_16"], "DTD": dtd["X_train_1"]}),
    ):
        known = np.unique(data["y_train_16"])[::2]
        rows, held = (np.isin(data[f"y_train_{k}"], known) for k in (16, 8))
        out = {"other classes": data["X_train_16"][~rows], **out}
        yield Task(
            name,
            data["X_train_16"][rows],
            data["y_train_16"][rows],
            data["X_train_8"][held],
            out,
            ["other classes"],
            None,
        )


def detectors(task: Task) -> dict[str, Any]:
    """Every detector that the task has the means for."""
    head = FrozenEstimator(LinearProbeClassifier().fit(task.X, task.y))
    found: dict[str, Any] = {
        "KNN (50)": KNNDetector(50),
        "Mahalanobis, ks": MahalanobisDetector(covariance="ks"),
        "Mahalanobis": MahalanobisDetector(),
        "RelativeMahalanobis, ks": RelativeMahalanobisDetector(covariance="ks"),
        "RelativeMahalanobis": RelativeMahalanobisDetector(),
        "Residual": ResidualDetector(),
        "MSP": MSPDetector(head),
        "Entropy": EntropyDetector(head),
        "MaxLogit": MaxLogitDetector(head),
        "Energy": EnergyDetector(head),
        "GEN": GENDetector(head),
        "KLMatching": KLMatchingDetector(head),
        "ViM": ViMDetector(head),
        "ReAct": ReActDetector(head),
        "GradNorm": GradNormDetector(head),
        "SHE": SHEDetector(head),
    }
    if task.text is not None:
        found |= {
            "NNGuide, names": NNGuideDetector(task.text),
            "MSP, names": MSPDetector(task.text),
            "MaxLogit, names": MaxLogitDetector(task.text),
            "Energy, names": EnergyDetector(task.text),
            "GEN, names": GENDetector(task.text),
            "ViM, names": ViMDetector(task.text),
            "MCM": MCMDetector(task.text),
            "Variance": VarianceDetector(task.text),
        }
    if task.words is not None:
        found["NegLabel"] = NegLabelDetector(task.text, candidates=task.words, fraction=1.0, n_groups=1)
    found["OODEnsemble"] = OODEnsemble(zero_shot=task.text)
    members: list[tuple[str, Any]] = [("probe", head), ("neighbours", SimilarityVoteClassifier())]
    if task.text is not None:
        members.insert(0, ("names", task.text))
    found |= {f"COOkeD member: {name}": EntropyDetector(member) for name, member in members}
    found["COOkeD"] = COOkeDClassifier(members, calibration=None)
    return found


def rst_table(frames: dict[str, tuple[Task, pd.DataFrame]]) -> str:
    """One block of rows per task: AUROC / FPR95 of each set and of the mean."""
    parts = []
    for name, (task, frame) in frames.items():
        sets = [*task.out, "mean"]
        lines = [f".. list-table:: {name}: AUROC / FPR95 in %", "   :header-rows: 1", "   :class: adapters", ""]
        lines += ["   * - detector"] + [f"     - {s}{' (near)' if s in task.near else ''}" for s in sets]
        lines += ["     - fit, s", "     - rows/s"]
        best = {s: frame.loc[frame["set"] == s, "auroc"].max() for s in sets}
        for detector in dict.fromkeys(frame["detector"]):
            own = frame[frame["detector"] == detector].set_index("set")
            lines.append(f"   * - {detector}")
            for s in sets:
                auroc, fpr = 100 * own.loc[s, "auroc"], 100 * own.loc[s, "fpr95"]
                mark = "**" if own.loc[s, "auroc"] >= best[s] - 1e-12 else ""
                lines.append(f"     - {mark}{auroc:.1f}{mark} / {fpr:.0f}")
            scored = own.loc[list(task.out)]
            rate = (scored["n_out"].sum() / scored["score_time"].sum()) if scored["score_time"].sum() else np.nan
            lines.append(f"     - {own['fit_time'].iloc[0]:.2g}")
            lines.append(f"     - {rate:,.0f}")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="features of real data sets")
    parser.add_argument("--out", type=Path, default=None, help="default: print")
    parser.add_argument("--resume", type=Path, default=None, help="folder that keeps what is finished")
    args = parser.parse_args()

    tasks = [picture_task(25.0)]
    if args.folder is not None:
        tasks += feature_tasks(args.folder)
    frames: dict[str, tuple[Task, pd.DataFrame]] = {}
    for task in tasks:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SkclipWarning)  # few rows: singular covariances
            frame = ood_benchmark(
                detectors(task), (task.X, task.y, task.X_in), task.out, near=task.near, resume=args.resume
            )
        frames[task.name] = task, frame
        write(rst_table(frames), args.out)
        print(f"{task.name}: done", flush=True)


def write(table: str, out: Path | None) -> None:
    note = (
        'The best AUROC of each column in bold; FPR95 by the rule "at_least"; the mean is that of the near and the far '
        f"mean where there are near sets. Drawn pictures: model ``{MODEL}``; the others are features of OpenAI's CLIP "
        'ViT-B/32. Scores of logits without "names" read one linear probe, whose fit their time leaves out. Times with '
        f"{torch.get_num_threads()} thread(s), {platform.machine()} {platform.system()}, "
        f"skclip {skclip.__version__}, scikit-learn {sklearn.__version__}, torch {torch.__version__}; "
        "``python examples/ood_table.py FEATURES``."
    )
    text = f"{table}\n\n{note}\n"
    if out is None:
        print(text)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
