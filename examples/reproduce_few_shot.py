"""
Every few-shot adapter on data sets of your own
===============================================

Accuracy, calibration and speed of all adapters at each number of labelled pictures per class, beside the nearest class
mean, the class names alone and the formulas of the papers written out. Two kinds of folders are understood.

Features, one ``.npz`` per data set with ``X_train_1, y_train_1, X_train_2, ...``, ``X_test, y_test`` and, if there are,
``X_val, y_val`` and ``text`` (one row per class 0..K-1). Where there is no test set, the largest other draw is
the test set::

    python examples/reproduce_few_shot.py features/

Pictures in the layout that CoOp made common (https://github.com/KaiyangZhou/CoOp, DATASETS.md): a folder per data set
with its ``split_zhou_*.json``, or ImageNet with ``classnames.txt``, ``images/train`` and ``images/val``::

    python examples/reproduce_few_shot.py DATA --model RN50/openai --views 10 --seeds 3

Whatever an adapter has to choose it chooses from the training pictures (``"cv"``). ``--protocols`` adds the choices of
the papers' code: by the validation pictures, and by the test pictures, which some of the published figures rest on.
"""

import argparse
import csv
import json
import platform
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.preprocessing import normalize

import skclip
from skclip import CLIPFeatures, GDAClassifier, ZeroShotClassifier
from skclip.adapters import (
    CapSAdapterClassifier,
    CLAPClassifier,
    CLIPAdapterClassifier,
    FewShotInspector,
    LinearProbeClassifier,
    LPPlusPlusClassifier,
    SimilarityVoteClassifier,
    SuSXClassifier,
    TipAdapterClassifier,
    TipAdapterFClassifier,
    UnsupervisedGDA,
)
from skclip.datasets import few_shot_split
from skclip.metrics import expected_calibration_error
from skclip.utils import SkclipWarning

SHOTS = (1, 2, 4, 8, 16)

# of the papers' code, by the name of the data set's folder; others get "a photo of a {}."
TEMPLATES = {
    "oxford_pets": "a photo of a {}, a type of pet.",
    "oxford_flowers": "a photo of a {}, a type of flower.",
    "fgvc_aircraft": "a photo of a {}, a type of aircraft.",
    "dtd": "{} texture.",
    "eurosat": "a centered satellite photo of {}.",
    "food-101": "a photo of {}, a type of food.",
    "ucf101": "a photo of a person doing {}.",
    "imagenet": "simple",
}


@dataclass(frozen=True)
class Draw:
    """One training set, its test set, and what is known besides."""

    shots: int
    X: np.ndarray  # (n, d) or (n, V, d)
    y: np.ndarray
    X_test: np.ndarray
    y_test: np.ndarray
    validation: tuple[np.ndarray, np.ndarray] | None = None
    captions: np.ndarray | None = None  # (n, d) text features of the training pictures


@dataclass(frozen=True)
class Task:
    """A data set: its class text, if any, and the training sets to learn from."""

    name: str
    text: ZeroShotClassifier | None
    draws: Callable[[], Iterator[Draw]] = field(repr=False)


# -- the formulas, as the papers write them ------------------------------------------------------------------------


class NearestClassMean(ClassifierMixin, BaseEstimator):
    """Largest cosine with the mean of the unit rows of a class."""

    def fit(self, X, y):
        rows, y = stacked_views(X, y)
        self.classes_ = np.unique(y)
        self.means_ = normalize(np.stack([normalize(rows)[y == label].mean(axis=0) for label in self.classes_]))
        return self

    def decision_function(self, X):
        return normalize(X) @ self.means_.T

    def predict(self, X):
        return self.classes_[self.decision_function(X).argmax(axis=1)]


def stacked_views(X, y):
    """Every view as a row of its own."""
    return (X, y) if X.ndim == 2 else (X.reshape(-1, X.shape[2]), np.repeat(y, X.shape[1]))


def gda_scores(draw: Draw, X: np.ndarray) -> np.ndarray:
    """Discriminant scores: arXiv 2402.04087, equations (4) and (5), with the precision of the official code."""
    rows, y = stacked_views(draw.X, draw.y)
    rows, classes = normalize(rows), np.unique(y)
    means = np.stack([rows[y == label].mean(axis=0) for label in classes])
    covariance = np.cov((rows - means[np.searchsorted(classes, y)]).T)
    d = rows.shape[1]
    precision = d * np.linalg.pinv((len(rows) - 1) * covariance + np.trace(covariance) * np.eye(d))
    weights = means @ precision
    return normalize(X) @ weights.T + np.log(1 / len(classes)) - 0.5 * np.einsum("kd,kd->k", weights, means)


def tip_scores(draw: Draw, X: np.ndarray, beta: float) -> np.ndarray:
    """Votes of the cache: arXiv 2207.09519, equations (3) and (4)."""
    keys = normalize(draw.X if draw.X.ndim == 2 else draw.X.mean(axis=1))
    values = (draw.y[:, None] == np.unique(draw.y)).astype(np.float32)
    return np.exp(-beta * (1 - normalize(X) @ keys.T)) @ values


# -- every adapter, at its recommended setting ---------------------------------------------------------------------


def methods(text: ZeroShotClassifier | None, seed: int) -> dict[str, ClassifierMixin]:
    """Name -> estimator; those that cannot do without text are left out where there is none."""
    found = {
        "nearest class mean": NearestClassMean(),
        "class names alone": text,
        "GDAClassifier": GDAClassifier(text, alpha="cv"),
        "TipAdapterClassifier": TipAdapterClassifier(text, alpha="cv", beta="cv"),
        "TipAdapterFClassifier": TipAdapterFClassifier(text, alpha="cv", beta="cv", random_state=seed),
        "SuSXClassifier": SuSXClassifier(text, alpha="cv", beta="cv", gamma="cv"),
        "CapSAdapterClassifier": CapSAdapterClassifier(text, alpha="cv", beta="cv", gamma="cv", delta="cv"),
        "LinearProbeClassifier, default C": LinearProbeClassifier(),
        "LinearProbeClassifier": LinearProbeClassifier("cv"),
        "LPPlusPlusClassifier": LPPlusPlusClassifier(text, random_state=seed),
        "CLAPClassifier": CLAPClassifier(text, random_state=seed),
        "CLIPAdapterClassifier": CLIPAdapterClassifier(text, random_state=seed),
        "UnsupervisedGDA": UnsupervisedGDA(text),
        "SimilarityVoteClassifier": SimilarityVoteClassifier(),
        "FewShotInspector": FewShotInspector(),
    }
    if text is None:
        del found["class names alone"], found["UnsupervisedGDA"]
    return found


def fit(estimator: Any, draw: Draw) -> Any:
    """`estimator`, fitted to the training set of `draw`; captions go where they are understood."""
    if isinstance(estimator, CapSAdapterClassifier) and draw.captions is not None:
        return estimator.fit(draw.X, draw.y, captions=draw.captions)
    return estimator.fit(draw.X, draw.y)


def measure(estimator: Any, draw: Draw) -> dict[str, Any]:
    """Accuracy, expected calibration error, seconds of `fit` and rows predicted per second."""
    fit_seconds = _seconds(lambda: fit(estimator, draw))
    predict_seconds = _seconds(lambda: estimator.predict(draw.X_test))
    figures = {
        "accuracy": 100 * np.mean(estimator.predict(draw.X_test) == draw.y_test),
        "fit_seconds": fit_seconds,
        "rows_per_second": len(draw.X_test) / predict_seconds,
    }
    if hasattr(estimator, "predict_proba") and set(np.unique(draw.y_test)) <= set(estimator.classes_):
        proba = estimator.predict_proba(draw.X_test)
        figures["ece"] = 100 * expected_calibration_error(draw.y_test, proba, labels=estimator.classes_)
    chosen = {name: getattr(estimator, name, None) for name in ("alpha_", "beta_", "gamma_", "delta_", "C_")}
    figures["chosen"] = " ".join(f"{name[:-1]}={value:.3g}" for name, value in chosen.items() if np.isscalar(value))
    return figures


def _seconds(call: Callable[[], object]) -> float:
    """Median time of a call, repeated up to five times while it is short."""
    times: list[float] = []
    while len(times) < 5 and sum(times) < 0.5:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def evaluate(task: Task, *, wanted: str = "", protocols: bool = False) -> Iterator[dict[str, Any]]:
    """One row of figures per method and draw."""
    for seed, draw in enumerate(task.draws()):
        fitted = {}
        for name, estimator in methods(task.text, seed).items():
            if wanted.lower() in name.lower():
                figures = measure(estimator, draw)
                fitted[name] = estimator
                yield {"set": task.name, "method": name, "shots": draw.shots, **figures}
        for name, logits in formulas(task, draw, fitted, protocols=protocols):
            accuracy = 100 * np.mean(np.unique(draw.y)[logits.argmax(axis=1)] == draw.y_test)
            yield {"set": task.name, "method": name, "shots": draw.shots, "accuracy": accuracy}


def formulas(task: Task, draw: Draw, fitted: dict[str, Any], *, protocols: bool) -> Iterator[tuple[str, np.ndarray]]:
    """Name and test logits of the formulas: at what the adapters chose, and at what the papers' code picks."""
    gda, tip = fitted.get("GDAClassifier"), fitted.get("TipAdapterClassifier")
    judges = {"test (optimistic)": (draw.X_test, draw.y_test)}
    if draw.validation is not None:
        judges["validation"] = draw.validation
    text = _text_logits(task.text, draw, draw.X_test)
    if gda is not None:
        scores = gda_scores(draw, draw.X_test)
        yield "GDA, formula", text + gda.alpha_ * scores
        if protocols and task.text is not None:
            for judge, rows in judges.items():
                alpha, _ = _most_accurate(task.text, draw, rows, gda_scores, (1e-4, 1e-3, 1e-2, 0.1, 1, 10, 100), [()])
                yield f"GDA, formula, by {judge}", text + alpha * scores
    if tip is not None:
        yield "Tip-Adapter, formula", text + tip.alpha_ * tip_scores(draw, draw.X_test, tip.beta_)
        if protocols:
            alphas = [0.1 + j * (3 - 0.1) / 20 for j in range(20)]
            betas = [(0.1 + i * (7 - 0.1) / 20,) for i in range(20)]
            for judge, rows in judges.items():
                alpha, beta = _most_accurate(task.text, draw, rows, tip_scores, alphas, betas)
                yield f"Tip-Adapter, formula, by {judge}", text + alpha * tip_scores(draw, draw.X_test, *beta)


def _most_accurate(
    text: ZeroShotClassifier | None,
    draw: Draw,
    rows: tuple[np.ndarray, np.ndarray],
    scores: Callable[..., np.ndarray],
    alphas: Sequence[float],
    options: Sequence[tuple[float, ...]],
) -> tuple[float, tuple[float, ...]]:
    """The first alpha and options of `scores` that get most of `rows` right."""
    X, y = rows
    classes, given = np.unique(draw.y), _text_logits(text, draw, X)
    best, found = -1.0, (0.0, options[0])
    for option in options:
        added = scores(draw, X, *option)
        for alpha in alphas:
            right = np.mean(classes[(given + alpha * added).argmax(axis=1)] == y)
            if right > best:
                best, found = right, (alpha, option)
    return found


def _text_logits(text: ZeroShotClassifier | None, draw: Draw, X: np.ndarray) -> np.ndarray | float:
    """Logits of the class names, of the classes of the draw; 0 where there are none."""
    return 0.0 if text is None else text.logits(X)[:, np.searchsorted(text.classes_, np.unique(draw.y))]


# -- folders of features -------------------------------------------------------------------------------------------


def feature_tasks(folder: Path, shots: tuple[int, ...]) -> Iterator[Task]:
    """A task for each ``.npz`` of `folder` that holds few-shot training sets."""
    for path in sorted(folder.glob("*.npz")):
        data = load_features(path)
        sizes = sorted(int(key[8:]) for key in data if key.startswith("X_train_"))
        if sizes:
            yield Task(path.stem, given_text(data), lambda data=data, sizes=sizes: _feature_draws(data, sizes, shots))


def load_features(path: Path) -> dict[str, np.ndarray]:
    """The arrays of one data set, floats in single precision."""
    with np.load(path) as arrays:
        return {k: v.astype(np.float32) if v.dtype.kind == "f" else v for k, v in arrays.items()}


def given_text(data: dict[str, np.ndarray]) -> ZeroShotClassifier | None:
    """Class text from ``text``, or from the sum of several classifiers ``text_a, text_b, ...``."""
    parts = [normalize(data[key]) for key in sorted(data) if key == "text" or key.startswith("text_")]
    return ZeroShotClassifier(prototypes=np.sum(parts, axis=0)).fit() if parts else None


def _feature_draws(data: dict[str, np.ndarray], sizes: list[int], shots: tuple[int, ...]) -> Iterator[Draw]:
    validation = (data["X_val"], data["y_val"]) if "X_val" in data else None
    for k in (k for k in sizes if k in shots):
        if "X_test" in data:
            test = "test"
        elif len(sizes) > 1:
            test = f"train_{max(size for size in sizes if size != k)}"
        else:
            continue
        X, y = data[f"X_train_{k}"], data[f"y_train_{k}"]
        yield Draw(k, X, y, data[f"X_{test}"], data[f"y_{test}"], validation)


# -- folders of pictures -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pictures:
    """Paths and labels of the three parts of a data set."""

    train: tuple[list[Path], np.ndarray]
    validation: tuple[list[Path], np.ndarray] | None
    test: tuple[list[Path], np.ndarray]
    class_names: dict[int, str]


def picture_tasks(
    folder: Path, model: str, shots: tuple[int, ...], *, n_views: int, n_seeds: int, store: Path | None
) -> Iterator[Task]:
    """A task for each data set below `folder`, its pictures encoded by `model`."""
    folders = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    for place in folders:
        found = sorted(place.glob("split_zhou_*.json"))
        if found:
            pictures = read_split(found[0])
        elif (place / "classnames.txt").is_file() and (place / "images" / "train").is_dir():
            pictures = read_imagenet(place)
        else:
            continue
        text = ZeroShotClassifier(
            model, class_names=pictures.class_names, templates=TEMPLATES.get(place.name, "a photo of a {}.")
        ).fit()
        features = CLIPFeatures(model, n_views=n_views, store="memory" if store is None else store, random_state=1)
        yield Task(
            place.name,
            text,
            lambda pictures=pictures, features=features: _picture_draws(pictures, features, shots, n_seeds),
        )


def read_split(path: Path) -> Pictures:
    """The parts of a ``split_zhou_*.json``: lists of (picture, label, class name) under "train", "val" and "test"."""
    with open(path, encoding="utf-8") as file:
        split = json.load(file)
    root = _picture_root(path.parent, split["test"][0][0])
    parts = {
        part: ([root / picture for picture, *_ in rows], np.array([label for _, label, _ in rows], dtype=int))
        for part, rows in split.items()
    }
    names = {int(label): str(name) for rows in split.values() for _, label, name in rows}
    return Pictures(parts["train"], parts.get("val"), parts["test"], names)


def _picture_root(folder: Path, picture: str) -> Path:
    """The folder that the paths of a split are relative to."""
    candidates = [folder, *sorted(path for path in folder.iterdir() if path.is_dir())]
    for root in candidates:
        if (root / picture).is_file():
            return root
    raise FileNotFoundError(f"{picture} is neither in {folder} nor in a folder of it; are the pictures unpacked?")


def read_imagenet(folder: Path) -> Pictures:
    """ImageNet: ``classnames.txt`` with "n01440764 tench" per line; the validation pictures are the test set."""
    lines = (folder / "classnames.txt").read_text(encoding="utf-8").splitlines()
    names = dict(line.strip().split(" ", 1) for line in lines if line.strip())
    ids = sorted(names)

    def part(name: str) -> tuple[list[Path], np.ndarray]:
        files = [
            (path, label)
            for label, wnid in enumerate(ids)
            for path in sorted((folder / "images" / name / wnid).iterdir())
        ]
        return [path for path, _ in files], np.array([label for _, label in files])

    return Pictures(part("train"), None, part("val"), {label: names[wnid] for label, wnid in enumerate(ids)})


def _picture_draws(pictures: Pictures, features: CLIPFeatures, shots: tuple[int, ...], n_seeds: int) -> Iterator[Draw]:
    X_test, y_test = features.transform(pictures.test[0]), pictures.test[1]
    validation = None
    if pictures.validation is not None:
        validation = features.transform(pictures.validation[0]), pictures.validation[1]
    paths, y = pictures.train
    fewest = np.unique(y, return_counts=True)[1].min()
    for k in (k for k in shots if k <= fewest):
        for seed in range(1, n_seeds + 1):
            train, _ = few_shot_split(y, k, random_state=seed)
            X = features.fit_transform([paths[i] for i in train])
            yield Draw(k, X, y[train], X_test, y_test, validation)


# -- output --------------------------------------------------------------------------------------------------------


def table(rows: list[dict[str, Any]]) -> str:
    """Mean accuracy in %: a block per data set, a line per method, a column per number of shots."""
    lines = []
    for name in dict.fromkeys(row["set"] for row in rows):
        block = [row for row in rows if row["set"] == name]
        shots = sorted({row["shots"] for row in block})
        lines += ["", f"{name:44s}" + "".join(f"{k:>8d}" for k in shots) + "   shots"]
        for method in dict.fromkeys(row["method"] for row in block):
            cells = [[r["accuracy"] for r in block if r["method"] == method and r["shots"] == k] for k in shots]
            lines.append(f"{method:44s}" + "".join(f"{np.mean(c):8.2f}" if c else f"{'-':>8s}" for c in cells))
    return "\n".join(lines)


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    columns = ("set", "method", "shots", "accuracy", "ece", "fit_seconds", "rows_per_second", "chosen")
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, restval="")
        writer.writeheader()
        writer.writerows(rows)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", default=None, help="encode pictures with this model; without it, features are read")
    parser.add_argument("--shots", type=int, nargs="+", default=list(SHOTS))
    parser.add_argument("--views", type=int, default=10, help="views of each training picture, with --model")
    parser.add_argument("--seeds", type=int, default=3, help="draws of the training pictures, with --model")
    parser.add_argument("--store", type=Path, default=None, help="folder that keeps the features, with --model")
    parser.add_argument("--methods", default="", help="only those whose name contains this")
    parser.add_argument("--protocols", action="store_true", help="also choose by validation and by test pictures")
    parser.add_argument("--out", type=Path, default=None, help="write all figures as CSV")
    args = parser.parse_args(arguments)
    if not args.folder.is_dir():
        parser.error(f"{args.folder} is not a folder.")

    shots = tuple(args.shots)
    if args.model is None:
        tasks = feature_tasks(args.folder, shots)
    else:
        tasks = picture_tasks(args.folder, args.model, shots, n_views=args.views, n_seeds=args.seeds, store=args.store)
    rows: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SkclipWarning)  # one picture per class: nothing can be held out
        for task in tasks:
            for row in evaluate(task, wanted=args.methods, protocols=args.protocols):
                rows.append(row)
                print(f"\r{task.name}: {row['method']}, {row['shots']} shots".ljust(79), end="", file=sys.stderr)
    if not rows:
        parser.error(f"{args.folder} holds no data set in a layout that is understood; see --help.")
    print(file=sys.stderr)
    print(table(rows))
    print(f"\nAccuracy in %. skclip {skclip.__version__}, {platform.machine()} {platform.system()}")
    if args.out is not None:
        write_csv(args.out, rows)
    return rows


if __name__ == "__main__":
    main()
