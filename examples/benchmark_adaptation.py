"""
What learning prompts or weights gains: the table of the user guide
===================================================================

Every method of ``skclip.tuning`` that learns from a few pictures, beside class names alone and two adapters, on tasks
where the bundled model's zero-shot accuracy leaves room. One command measures and writes the table that the
documentation includes::

    python examples/benchmark_adaptation.py --json adaptation.jsonl --out docs/tables/adaptation.rst

Results are appended to the file of JSON lines as they come, and what is in it is not measured again: a run that was
interrupted goes on, and ``--only SCENARIO``, ``--methods A,B`` and ``--seeds 0,1`` measure a part of it.

Scenarios. The model was trained on pictures in the style "photo" with little noise; everything here is of other styles.

- sketch: few pictures per class of 16 (colour, shape) pairs drawn in outlines; each colour occurs with two shapes.
- digits: few pictures per class of scanned digits, overexposed.
- pixel, outline: base to new. 16 pictures of each of 8 pairs, in which every colour occurs with one shape, so that
  colour alone tells them apart; then the 24 pairs of three other combinations, by their names. 8 of these 24 were not
  in the training of the model either. In coarse noisy pixels there is much to lose on new pairs, in outlines much to
  gain.
- style: 16 pictures per class of the 8 shapes under strong noise; then the same shapes in styles not learned from. What
  learns without labels is given all 400 pictures.
- sessions: 8 pairs, then four times 5 more, 5 pictures of each, under strong noise; only the pictures of the session
  are there to learn from, and all pairs so far are to be told apart. What cannot learn in sessions by itself goes on
  from where it was (``warm_start``).

- unlabelled: the outlines of the first scenario, all those to draw from, without labels.

Protocol. A seed draws the training pictures and is the method's ``random_state``; the test pictures are the same for
all and are used for the figures alone. The settings in `METHODS` were chosen on other pictures for training and
testing, which ``--develop`` draws. Pictures are not augmented, for any method. Methods that read features are given
them ready: their seconds are of fitting alone.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from datetime import date
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from sklearn.metrics.pairwise import euclidean_distances
from sklearn.neighbors import NearestCentroid
from sklearn.pipeline import Pipeline, make_pipeline

import skclip
from skclip import CLIPFeatures, GDAClassifier, LinearProbeClassifier, ZeroShotClassifier, tuning
from skclip.adapters import UnsupervisedGDA
from skclip.datasets import corrupt_images, few_shot_split, load_digit_pictures, make_picture_world
from skclip.datasets._scenes import COLORS, SHAPES
from skclip.features import CLIPLayerStatistics
from skclip.metrics import (
    average_incremental_accuracy,
    forgetting,
    incremental_accuracy,
    incremental_accuracy_matrix,
    performance_drop,
)

MODEL = "skclip-tiny"
TEMPLATE = "a photo of a {}."
SHOTS = (1, 2, 4, 8, 16)
ZERO_SHOT = "class names"


# Pictures


@dataclass(frozen=True)
class Pictures:
    """Labelled pictures and their features."""

    images: NDArray
    labels: NDArray
    features: NDArray

    def take(self, rows: NDArray) -> Pictures:
        return Pictures(self.images[rows], self.labels[rows], self.features[rows])

    def of(self, labels: Sequence[Any]) -> Pictures:
        return self.take(np.flatnonzero(np.isin(self.labels, labels)))

    def draw(self, shots: int, seed: int) -> Pictures:
        return self.take(few_shot_split(self.labels, shots, random_state=seed)[0])

    def read_by(self, kind: str) -> NDArray:
        return {"features": self.features, "pictures": self.images}[kind]


@dataclass(frozen=True)
class Task:
    """Pictures to draw from, pictures to test on by what they show, the names of the classes of each."""

    pool: Pictures
    tests: dict[str, Pictures]
    names: dict[Any, str]
    descriptions: dict[Any, list[str]] = field(default_factory=dict)


def pictures(images: NDArray, labels: NDArray) -> Pictures:
    return Pictures(images, labels, CLIPFeatures(MODEL, store=None).fit_transform(images))


def world(n: int, seed: int, *, style: str, noise: float = 4.0, label: str = "pair") -> Pictures:
    """Coloured shapes; the label is the pair or the shape alone."""
    drawn = make_picture_world(n, styles=[style], noise=noise, held_out="include", random_state=seed)
    labels = drawn.target if label == "pair" else np.array([name.split()[1] for name in drawn.target])
    return pictures(drawn.images, labels)


def combination(k: int) -> list[str]:
    """8 pairs with every colour and every shape once. The model has never seen those of k = 1."""
    return [f"{color} {SHAPES[(3 * i + k) % 8]}" for i, color in enumerate(COLORS)]


def names_of(labels: Sequence[str]) -> dict[Any, str]:
    return {label: label for label in labels}


def descriptions_of(labels: Sequence[str]) -> dict[Any, list[str]]:
    """Three sentences of each pair or shape: its name, and what it looks like."""
    described = make_picture_world(1, held_out="include").class_descriptions
    found = {}
    for label in labels:
        words = label.split()
        looks = described[label] if len(words) == 2 else [text.split(",")[0] for text in described[f"red {label}"]]
        found[label] = [f"a photo of a {label}, {look}" for look in looks]
    return found


def sketch_task(seeds: tuple[int, int]) -> Task:
    pairs = combination(2) + combination(4)
    test = world(1600, seeds[1], style="sketch").of(pairs)
    return Task(world(2600, seeds[0], style="sketch").of(pairs), {"": test}, names_of(pairs), descriptions_of(pairs))


def digits_task(seeds: tuple[int, int]) -> Task:
    train, test = load_digit_pictures(subset="train"), load_digit_pictures(subset="test")
    pool = pictures(corrupt_images(train.images, "brightness", severity=5), train.target)
    if seeds == DEVELOPMENT:  # the test digits are for the figures alone
        pool, held = pool.take(np.arange(0, len(pool.labels), 2)), pool.take(np.arange(1, len(pool.labels), 2))
    else:
        held = pictures(corrupt_images(test.images, "brightness", severity=5), test.target)
    looks = {digit: [f"a handwritten {name}", f"a scanned {name}"] for digit, name in train.class_names.items()}
    return Task(pool, {"": held}, train.class_names, looks)


def new_task(seeds: tuple[int, int], style: str, noise: float) -> Task:
    base, new = combination(2), [*combination(1), *combination(5), *combination(7)]
    test = world(2000, seeds[1], style=style, noise=noise)
    tests = {"base": test.of(base), "new": test.of(new)}
    return Task(
        world(2600, seeds[0], style=style, noise=noise).of(base), tests, names_of(base), descriptions_of(base + new)
    )


def style_task(seeds: tuple[int, int]) -> Task:
    noises = {"photo": 40.0, "painting": 40.0, "blurry": 40.0, "pixel": 40.0, "dark": 15.0}
    tests = {name: world(400, seeds[1], style=name, noise=noise, label="shape") for name, noise in noises.items()}
    pool = world(400, seeds[0], style="photo", noise=40.0, label="shape")
    return Task(pool, tests, names_of(SHAPES), descriptions_of(SHAPES))


def sessions_task(seeds: tuple[int, int]) -> Task:
    pairs = [name for k in (2, 4, 6, 1) for name in combination(k)][:28]
    pool, test = (world(n, seed, style="photo", noise=60.0).of(pairs) for n, seed in zip((1600, 1200), seeds))
    return Task(pool, {"": test}, names_of(pairs), descriptions_of(pairs))


# seeds of the pictures to draw from and of those to test on
DEVELOPMENT = (501, 502)
REPORTED = (101, 102)
TASKS: dict[str, Callable[[tuple[int, int]], Task]] = {
    "sketch": sketch_task,
    "digits": digits_task,
    "pixel": partial(new_task, style="pixel", noise=30.0),
    "outline": partial(new_task, style="sketch", noise=4.0),
    "style": style_task,
    "sessions": sessions_task,
    "unlabelled": sketch_task,
}
LABELLED = tuple(TASKS)[:-1]


@lru_cache
def task_of(scenario: str, seeds: tuple[int, int]) -> Task:
    return TASKS[scenario](seeds)


# Methods


@dataclass(frozen=True)
class Method:
    """How a contestant is made.

    Attributes
    ----------
    kind : {"features", "pictures"}
        What it reads.
    make : callable
        ``make(names, seed, shots, task)``: an estimator.
    rival : str
        The method that its paper sets out to better.
    scenarios : tuple of str
        Those it can take part in.
    unlabelled : bool
        Whether it is given all pictures to draw from, and no label.
    """

    kind: str
    make: Callable[[dict[Any, str], int, int, Task], Any]
    rival: str = ""
    scenarios: tuple[str, ...] = LABELLED
    unlabelled: bool = False


def tuned(
    name: str,
    kind: str,
    rival: str,
    settings: Callable[[int, Task], dict[str, Any]] | None = None,
    scenarios: tuple[str, ...] = LABELLED,
    **fixed: Any,
) -> Method:
    """A method of ``skclip.tuning``; `settings` are those that depend on the shots or the task."""

    def make(names: dict[Any, str], seed: int, shots: int, task: Task) -> Any:
        more = {} if settings is None else settings(shots, task)
        cls = getattr(tuning, name)
        return cls(MODEL, class_names=names, random_state=seed, **{**fixed, **more})

    return Method(kind, make, rival, scenarios)


def text_of(names: dict[Any, str]) -> ZeroShotClassifier:
    return ZeroShotClassifier(MODEL, class_names=names, templates=TEMPLATE)


def gopro(**settings: Any) -> Callable[[dict[Any, str], int, int, Task], Any]:
    def make(names: dict[Any, str], seed: int, shots: int, task: Task) -> Any:
        clf = tuning.GOProClassifier(
            MODEL, class_names=names, max_iter=10, batch_size=16, random_state=seed, **settings
        )
        return make_pipeline(CLIPLayerStatistics(MODEL, n_views=3, random_state=seed, store=None), clf)

    return make


def nola(teacher: str | None) -> Callable[[dict[Any, str], int, int, Task], Any]:
    """NoLA whose second encoder is another bundled model, or the model itself."""

    def make(names: dict[Any, str], seed: int, shots: int, task: Task) -> Any:
        return tuning.NoLAClassifier(
            MODEL,
            zero_shot=text_of(names),
            teacher=None if teacher is None else CLIPFeatures(teacher),
            n_tokens=4,
            max_iter=8,
            batch_size=64,
            augmentation=None,
            random_state=seed,
        )

    return make


def described(shots: int, task: Task) -> dict[str, Any]:
    return {"descriptions": task.descriptions}


# Weights of losses, numbers of vectors and of layers are the papers' unless said otherwise; the learning rates that
# suit large towers are too small for this one.
TEXT = {"max_iter": 50, "batch_size": 32, "learning_rate": 0.02}
TOWERS = {"max_iter": 10, "batch_size": 16, "learning_rate": 0.02, "augmentation": None}
WEIGHTS = {"max_iter": 10, "learning_rate": 0.01, "augmentation": None}
METHODS: dict[str, Method] = {
    ZERO_SHOT: Method("features", lambda names, *_: text_of(names), scenarios=tuple(TASKS)),
    "linear probe": Method("features", lambda *_: LinearProbeClassifier(), scenarios=("sketch", "digits", "style")),
    "GDA": Method("features", lambda names, *_: GDAClassifier(text_of(names), alpha="cv"), scenarios=tuple(TASKS)[:5]),
    "label-free GDA": Method(
        "features", lambda names, *_: UnsupervisedGDA(text_of(names)), scenarios=("unlabelled",), unlabelled=True
    ),
    "class means": Method("features", lambda *_: NearestCentroid(), scenarios=("sessions",)),
    "CoOp": tuned("CoOpClassifier", "features", "linear probe", ctx_init="a photo of a", **TEXT),
    "CoCoOp": tuned("CoCoOpClassifier", "features", "CoOp", max_iter=20, batch_size=16, learning_rate=0.02),
    "KgCoOp": tuned("KgCoOpClassifier", "features", "CoOp", **TEXT),
    "ProGrad": tuned("ProGradClassifier", "features", "CoOp", n_ctx=4, **TEXT),
    "MoCoOp": tuned("MoCoOpClassifier", "features", "CoOp", max_iter=30, learning_rate=0.1),
    "BiomedCoOp": tuned(
        "BiomedCoOpClassifier", "features", "CoOp", described, sccm_weight=20.0, kdsp_weight=10.0, **TEXT
    ),
    "IVLP": tuned("IVLPClassifier", "pictures", "CoOp", **TOWERS),
    "MaPLe": tuned("MaPLeClassifier", "pictures", "CoOp", depth=2, augmentation=None),
    "PromptSRC": tuned(
        "PromptSRCClassifier", "pictures", "IVLP", n_ctx=2, n_visual_ctx=2, templates=TEMPLATE, **TOWERS
    ),
    "fine-tuning": tuned("CLIPFineTuneClassifier", "pictures", "linear probe", **{**WEIGHTS, "learning_rate": 1e-4}),
    "CLIP-LoRA": tuned("CLIPLoRAClassifier", "pictures", "CoOp", **WEIGHTS),
    "CLIP-SVD": tuned(
        "CLIPSVDClassifier",
        "pictures",
        "fine-tuning",
        encoder="vision",
        targets=("q", "k", "v", "o"),
        **{**WEIGHTS, "max_iter": 20, "learning_rate": 0.05, "weight_decay": 0.0},
    ),
    "GOPro": Method("pictures", gopro(learning_rate=0.02), "CoOp", ("style",)),
    "GOPro (prompts)": Method(
        "pictures", gopro(ssl_affects="prompts", learning_rate=0.001, consistency_weight=100.0), "CoOp", ("style",)
    ),
    "NoLA (own features)": Method("pictures", nola(None), ZERO_SHOT, ("style", "unlabelled"), unlabelled=True),
    "NoLA (skclip-tiny-rn)": Method(
        "pictures", nola("skclip-tiny-rn"), ZERO_SHOT, ("style", "unlabelled"), unlabelled=True
    ),
    "CPE-CLIP": Method(
        "pictures",
        lambda names, seed, *_: tuning.CPECLIPClassifier(MODEL, vision_mode="replace", random_state=seed),
        "fine-tuning",
        ("sessions",),
    ),
}


# Measuring


def measure(scenario: str, method: str, seed: int, shots: int, seeds: tuple[int, int]) -> dict[str, Any]:
    """Figures of one fit: accuracies in % by column, seconds, numbers that were learned."""
    task = task_of(scenario, seeds)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        figures = PROTOCOLS[scenario](METHODS[method], task, seed, shots)
    return {"scenario": scenario, "method": method, "seed": seed, "shots": shots, **figures}


def measured(
    wanted: Sequence[tuple[str, str, int, int]], seeds: tuple[int, int], n_processes: int
) -> Iterator[dict[str, Any]]:
    """`measure` of each entry, in order, by processes of one thread."""
    os.environ["OMP_NUM_THREADS"] = "1"  # processes that are spawned read it as they begin
    with ProcessPoolExecutor(n_processes, multiprocessing.get_context("spawn")) as pool:
        yield from pool.map(partial(measure, seeds=seeds), *zip(*wanted, strict=True))


def fit(method: Method, task: Task, train: Pictures, names: dict[Any, str], seed: int, shots: int) -> tuple[Any, float]:
    estimator = method.make(names, seed, shots, task)
    began = time.perf_counter()
    estimator.fit(train.read_by(method.kind), None if method.unlabelled else train.labels)
    return estimator, time.perf_counter() - began


def accuracy(estimator: Any, kind: str, test: Pictures) -> float:
    return 100.0 * float(np.mean(estimator.predict(test.read_by(kind)) == test.labels))


def n_learned(estimator: Any) -> int:
    """Numbers that were learned."""
    if isinstance(estimator, ZeroShotClassifier):
        return 0
    if isinstance(estimator, Pipeline):
        estimator = estimator[-1]
    state = getattr(estimator, "state_delta_", None)
    if state is not None:
        return sum(value.size for value in state.values())
    return getattr(estimator, "coef_", getattr(estimator, "centroids_", np.empty(0))).size


def few_shot(method: Method, task: Task, seed: int, shots: int) -> dict[str, Any]:
    estimator, seconds = fit(method, task, task.pool.draw(shots, seed), task.names, seed, shots)
    return _record(estimator, seconds, {"accuracy": accuracy(estimator, method.kind, task.tests[""])})


def base_to_new(method: Method, task: Task, seed: int, shots: int) -> dict[str, Any]:
    estimator, seconds = fit(method, task, task.pool.draw(shots, seed), task.names, seed, shots)
    base, new = (task.tests[name] for name in ("base", "new"))
    other = estimator.with_classes(names_of(np.unique(new.labels).tolist()))
    figures = {"base": accuracy(estimator, method.kind, base), "new": accuracy(other, method.kind, new)}
    figures["harmonic mean"] = 2.0 / (1.0 / max(figures["base"], 1e-9) + 1.0 / max(figures["new"], 1e-9))
    figures["never seen"] = accuracy(other, method.kind, new.of(combination(1)))
    return _record(estimator, seconds, figures)


def style_shift(method: Method, task: Task, seed: int, shots: int) -> dict[str, Any]:
    train = task.pool if method.unlabelled else task.pool.draw(shots, seed)
    estimator, seconds = fit(method, task, train, task.names, seed, shots)
    figures = {name: accuracy(estimator, method.kind, test) for name, test in task.tests.items()}
    figures["other styles"] = float(np.mean([value for name, value in figures.items() if name != "photo"]))
    return _record(estimator, seconds, figures)


def without_labels(method: Method, task: Task, seed: int, shots: int) -> dict[str, Any]:
    estimator, seconds = fit(method, task, task.pool, task.names, seed, shots)
    return _record(estimator, seconds, {"accuracy": accuracy(estimator, method.kind, task.tests[""])})


def sessions(method: Method, task: Task, seed: int, shots: int) -> dict[str, Any]:
    """Accuracy among all classes so far after each session, and what is forgotten, of these and within sessions."""
    labels = list(task.names)
    parts = [labels[:8], *(labels[i : i + 5] for i in range(8, len(labels), 5))]
    train = task.pool.draw(shots, seed)
    test = task.tests[""]
    estimator, seconds, predicted, within = None, 0.0, [], []
    for number, part in enumerate(parts, start=1):
        seen = [label for earlier in parts[:number] for label in earlier]
        began = time.perf_counter()
        estimator, seer = learn_session(method, task, train, part, seen, estimator, seed, shots)
        seconds += time.perf_counter() - began
        scores = scores_of(seer, test.read_by(method.kind))
        predicted.append(seer.classes_[scores.argmax(axis=1)])
        within.append(predicted[-1].copy())
        for earlier in parts[:number]:
            own, rows = np.isin(seer.classes_, earlier), np.isin(test.labels, earlier)
            within[-1][rows] = seer.classes_[own][scores[np.ix_(rows, own)].argmax(axis=1)]
    matrix = incremental_accuracy_matrix(test.labels, predicted, parts)
    sizes = [len(test.of(part).labels) for part in parts]
    by_session = 100 * incremental_accuracy(matrix, sizes)
    figures = {f"session {number}": float(value) for number, value in enumerate(by_session, start=1)}
    figures["mean"] = 100 * average_incremental_accuracy(matrix, sizes)
    figures["drop"] = 100 * performance_drop(matrix, sizes)
    figures["forgotten"] = 100 * forgetting(matrix)
    figures["within"] = 100 * forgetting(incremental_accuracy_matrix(test.labels, within, parts))
    return _record(estimator, seconds, figures)


def scores_of(seer: Any, X: NDArray) -> NDArray:
    """One per class, the predicted one's the largest."""
    return -euclidean_distances(X, seer.centroids_) if isinstance(seer, NearestCentroid) else seer.logits(X)


def learn_session(
    method: Method, task: Task, train: Pictures, part: list[str], seen: list[str], before: Any, seed: int, shots: int
) -> tuple[Any, Any]:
    """What goes on in the next session, and what tells all classes so far apart."""
    new = train.of(part)
    X, names = new.read_by(method.kind), names_of(part)
    estimator = method.make(names, seed, shots, task) if before is None else before
    if isinstance(estimator, NearestCentroid):  # of all rows so far: the same as keeping the means of each session
        known = train.of(seen)
        return estimator, estimator.fit(known.features, known.labels)
    if isinstance(estimator, ZeroShotClassifier):
        return estimator, text_of(names_of(seen)).fit()
    if hasattr(estimator, "partial_fit"):
        estimator.partial_fit(X, new.labels)
        return estimator, estimator
    estimator.set_params(class_names=names, warm_start=True).fit(X, new.labels)
    return estimator, estimator.with_classes(names_of(seen))


def _record(estimator: Any, seconds: float, figures: dict[str, float]) -> dict[str, Any]:
    return {"figures": figures, "seconds": seconds, "learned": n_learned(estimator)}


PROTOCOLS = {
    "sketch": few_shot,
    "digits": few_shot,
    "pixel": base_to_new,
    "outline": base_to_new,
    "style": style_shift,
    "sessions": sessions,
    "unlabelled": without_labels,
}
SHOTS_OF = {
    "sketch": SHOTS,
    "digits": SHOTS,
    "pixel": (16,),
    "outline": (16,),
    "style": (16,),
    "sessions": (5,),
    "unlabelled": (0,),
}


def plan(scenarios: Sequence[str], methods: Sequence[str], seeds: Sequence[int]) -> Iterator[tuple[str, str, int, int]]:
    for scenario in scenarios:
        for method in methods:
            if scenario in METHODS[method].scenarios:
                yield from ((scenario, method, seed, shots) for shots in SHOTS_OF[scenario] for seed in seeds)


# The table


TITLES = {
    "sketch": "Few pictures per class: outlines of 16 pairs",
    "digits": "Few pictures per class: overexposed digits",
    "pixel": "Base to new: coarse noisy pixels, 16 of each of 8 pairs; then 24 other pairs by name",
    "outline": "Base to new: outlines, 16 of each of 8 pairs; then 24 other pairs by name",
    "style": "Another style: 16 noisy pictures of each of 8 shapes; then other styles",
    "sessions": "In sessions: 8 pairs, then four times 5 more, 5 noisy pictures of each",
    "unlabelled": "Without labels: outlines of 16 pairs",
}
# by what methods are compared, and whether more is better
DECIDES = {
    "sketch": "mean",
    "digits": "mean",
    "pixel": "new",
    "outline": "new",
    "style": "other styles",
    "sessions": "mean",
    "unlabelled": "accuracy",
}
LEGEND = """\
Accuracy in %, mean over the draws of the training pictures. The last two columns are the difference of the figure in
italics from that of the class names alone and from that of the method that the paper sets out to better, and in how
many of the draws it is positive. "Drop" is from the first session to the last; "forgotten" the mean over the earlier
sessions of their best accuracy less the last, to which new classes to be mistaken for add; "within" the same where only
the classes of the picture's own session can be answered, so that it is what training has undone. Seconds are of `fit`
with most pictures.
"""


def columns_of(rows: list[dict[str, Any]], scenario: str) -> list[str]:
    if scenario in ("sketch", "digits"):
        return [*(str(k) for k in SHOTS), "mean"]
    return list(rows[0]["figures"])


def figure(rows: list[dict[str, Any]], method: str, column: str, scenario: str) -> NDArray:
    """One method's figure for each seed, NaN where it was not measured."""
    own = [row for row in rows if row["method"] == method]
    seeds = sorted({row["seed"] for row in own})
    values = []
    for seed in seeds:
        of_seed = [row for row in own if row["seed"] == seed]
        if scenario in ("sketch", "digits"):
            wanted = SHOTS if column == "mean" else (int(column),)
            found = [row["figures"]["accuracy"] for row in of_seed if row["shots"] in wanted]
            values.append(np.mean(found) if len(found) == len(wanted) else np.nan)
        else:
            values.append(of_seed[0]["figures"][column])
    return np.array(values, dtype=float)


def difference(values: NDArray, others: NDArray) -> str:
    if not len(others) or len(values) != len(others):
        return ""
    gains = values - others
    return f"{gains.mean():+.1f} ({int((gains > 0).sum())} of {len(gains)})"


def render_scenario(rows: list[dict[str, Any]], scenario: str) -> str:
    columns = columns_of(rows, scenario)
    decisive = DECIDES[scenario]
    measured = {row["method"] for row in rows}
    present = [name for name in METHODS if name in measured]
    mean = {
        (m, c): figure(rows, m, c, scenario).mean()
        for m in present
        for c in columns
        if len(figure(rows, m, c, scenario))
    }
    heads = [f"*{c}*" if c == decisive else c for c in columns]
    lines = [f".. list-table:: {TITLES[scenario]}", "   :header-rows: 1", "   :class: adaptation", ""]
    header = ["method", *heads, "learned", "fit, s", "over names", "over its rival"]
    lines += _row(header)
    for method in present:
        own = [row for row in rows if row["method"] == method]
        most = [row for row in own if row["shots"] == max(row["shots"] for row in own)]
        cells = [method]
        for column in columns:
            best = (min if column in ("drop", "forgotten", "within") else max)(mean[other, column] for other in present)
            text = f"{mean[method, column]:.1f}"
            cells.append(f"**{text}**" if text == f"{best:.1f}" else text)
        cells += [f"{most[0]['learned']:,}", f"{np.median([row['seconds'] for row in most]):.2g}"]
        values, rival = figure(rows, method, decisive, scenario), METHODS[method].rival
        cells.append("" if method == ZERO_SHOT else difference(values, figure(rows, ZERO_SHOT, decisive, scenario)))
        over = difference(values, figure(rows, rival, decisive, scenario)) if rival else ""
        cells.append(f"{rival}: {over}" if over else "")
        lines += _row(cells)
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> list[str]:
    first, *rest = cells
    return [f"   * - {first}", *(f"     - {cell}".rstrip() for cell in rest)]


def render_overview(rows: list[dict[str, Any]]) -> str:
    """What each method reads, learns and takes, and what it does to classes of `fit` and to others."""
    lines = [".. list-table:: At a glance: both tasks of base to new, less the accuracy of class names alone"]
    lines += ["   :header-rows: 1", "   :class: adaptation", ""]
    lines += _row(["method", "X", "learned", "fit, s", "base", "new", "never seen"])
    tasks = ("pixel", "outline")
    for name, method in METHODS.items():
        own = [row for row in rows if row["method"] == name and row["scenario"] in tasks]
        if name == ZERO_SHOT or {row["scenario"] for row in own} != set(tasks):
            continue
        cells = [name, method.kind, f"{own[0]['learned']:,}", f"{np.median([row['seconds'] for row in own]):.2g}"]
        for column in ("base", "new", "never seen"):
            gains = []
            for task in tasks:
                of_task = [row for row in rows if row["scenario"] == task]
                gains.append(figure(of_task, name, column, task) - figure(of_task, ZERO_SHOT, column, task))
            cells.append(f"{np.mean(gains):+.1f}")
        lines += _row(cells)
    return "\n".join(lines) + "\n"


def render(rows: list[dict[str, Any]], note: str) -> str:
    """All tables in reStructuredText."""
    parts = [render_overview(rows)] if {row["scenario"] for row in rows} >= {"pixel", "outline"} else []
    for scenario in TASKS:
        own = [row for row in rows if row["scenario"] == scenario]
        if own:
            parts.append(render_scenario(own, scenario))
    return "\n".join([".. Written by examples/benchmark_adaptation.py.\n", LEGEND, *parts, note])


def note_of(seeds: Sequence[int]) -> str:
    return (
        f"Model ``{MODEL}``, {len(seeds)} draws; one thread, {platform.machine()} {platform.system()}, "
        f"{os.cpu_count()} cores, skclip {skclip.__version__}, scikit-learn {sklearn.__version__}, torch "
        f"{torch.__version__}; {date.today()}; ``python {shlex.join(sys.argv)}``.\n"
    )


def read(path: Path | None) -> list[dict[str, Any]]:
    if path is None or not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def key_of(row: dict[str, Any]) -> tuple[str, str, int, int]:
    return row["scenario"], row["method"], row["seed"], row["shots"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("--only", nargs="+", choices=list(TASKS), default=list(TASKS), help="scenarios to measure")
    parser.add_argument("--methods", help="names of METHODS, with commas; default: all")
    parser.add_argument("--seeds", default="0,1,2", help="draws of the training pictures, with commas")
    parser.add_argument("--develop", action="store_true", help="other pictures to draw from and to test on")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--json", type=Path, help="file of JSON lines; what is in it is not measured again")
    parser.add_argument("--out", type=Path, help="reStructuredText file to write")
    options = parser.parse_args()

    methods = list(METHODS) if options.methods is None else options.methods.split(",")
    seeds = [int(seed) for seed in options.seeds.split(",")]
    drawn = DEVELOPMENT if options.develop else REPORTED
    rows = read(options.json)
    done = {key_of(row) for row in rows}
    wanted = [entry for entry in plan(options.only, methods, seeds) if entry not in done]
    for row in measured(wanted, drawn, options.jobs):
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
        if options.json:
            with options.json.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(row) + "\n")
    text = render(rows, note_of(seeds))
    if options.out:
        options.out.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
