"""The default ensemble beside every single detector, on features of real pictures.

In-distribution and unknown pictures are rows of one kind, k-shot means of ten views or single views, because a detector
can tell the kinds apart.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from skclip.metrics import ood_auroc
from skclip.ood import (
    EnergyDetector,
    EntropyDetector,
    GENDetector,
    KNNDetector,
    MahalanobisDetector,
    MaxLogitDetector,
    MCMDetector,
    MSPDetector,
    NNGuideDetector,
    OODEnsemble,
    RelativeMahalanobisDetector,
    ResidualDetector,
    VarianceDetector,
    ViMDetector,
)
from skclip.ood._mean_matching import _MeanMatchingDetector

pytestmark = [
    pytest.mark.realdata,
    pytest.mark.filterwarnings("ignore:Classes .* have the same prototype"),
    pytest.mark.filterwarnings("ignore:The covariance='empirical' of .* rows is singular"),
]

SAME_PICTURE = 0.985  # cosine of the means of two draws of views


class Task(NamedTuple):
    X: NDArray
    y: NDArray
    text: NDArray | None
    X_in: NDArray
    X_out: dict[str, NDArray]


@pytest.fixture(scope="module")
def sets(real_features):
    return {name: real_features(name) for name in ("imagenet", "caltech101", "oxford_flowers", "dtd")}


def imagenet_task(sets, known, unknown=None):
    """Four shots of the classes `known` with their names; the two-shot draw of the same, and what is unknown."""
    data = sets["imagenet"]
    X_out = {
        "flowers": sets["oxford_flowers"]["X_train_16"],
        "caltech": sets["caltech101"]["X_train_16"],
        "dtd": sets["dtd"]["X_train_1"],
    }
    unknown = np.setdiff1d(np.arange(1000), known) if unknown is None else unknown
    if len(unknown):
        X_out["other classes"] = data["X_train_2"][np.isin(data["y_train_2"], unknown)]
    rows, rows_in = np.isin(data["y_train_4"], known), np.isin(data["y_train_2"], known)
    codes = np.searchsorted(known, data["y_train_4"][rows])
    return Task(data["X_train_4"][rows], codes, data["text"][known], data["X_train_2"][rows_in], X_out)


def few_shot_task(sets, name, known, others):
    """Eight shots without text; the pictures of the 16-shot draw that are not among them."""
    data = sets[name]
    new = (data["X_train_16"] @ data["X_train_8"].T).max(axis=1) < SAME_PICTURE
    rows, X_new, y_new = np.isin(data["y_train_8"], known), data["X_train_16"][new], data["y_train_16"][new]
    X_out = {"other classes": X_new[~np.isin(y_new, known)], "imagenet": sets["imagenet"]["X_train_2"]}
    X_out |= {other: sets[other]["X_train_16"] for other in others}
    return Task(data["X_train_8"][rows], data["y_train_8"][rows], None, X_new[np.isin(y_new, known)], X_out)


def dtd_task(sets):
    """Sixteen single views of each texture; single views of other sets."""
    data, rng = sets["dtd"], np.random.default_rng(400)
    rows = np.concatenate([rng.permutation(np.flatnonzero(data["y_val"] == k))[:16] for k in range(47)])
    X_out = {name: sets[name]["X_test"] for name in ("caltech101", "oxford_flowers")}
    return Task(data["X_val"][rows], data["y_val"][rows], None, data["X_test"], X_out)


def single_detectors(text):
    detectors = {
        "kNN 50": KNNDetector(),
        "kNN 10": KNNDetector(10),
        "Mahalanobis": MahalanobisDetector(),
        "Mahalanobis ks": MahalanobisDetector("ks"),
        "relative Mahalanobis": RelativeMahalanobisDetector(),
        "relative Mahalanobis ks": RelativeMahalanobisDetector("ks"),
        "residual": ResidualDetector(),
        "mean matching": _MeanMatchingDetector(),
    }
    if text is not None:
        detectors |= {
            "MCM": MCMDetector(text),
            "variance": VarianceDetector(text),
            "MSP": MSPDetector(text),
            "MaxLogit": MaxLogitDetector(text),
            "energy": EnergyDetector(text),
            "entropy": EntropyDetector(text),
            "GEN": GENDetector(text),
            "ViM": ViMDetector(text),
            "NNGuide": NNGuideDetector(text),
        }
    return detectors


def compare(tasks):
    """AUROC: one row per in-distribution and unknown set, one column per detector."""
    figures = {}
    for name, task in tasks.items():
        detectors = {**single_detectors(task.text), "ensemble": OODEnsemble(zero_shot=task.text)}
        for label, detector in detectors.items():
            scores_in = detector.fit(task.X, task.y).score_samples(task.X_in)
            for other, X_out in task.X_out.items():
                figures.setdefault((name, other), {})[label] = ood_auroc(scores_in, detector.score_samples(X_out))
    return pd.DataFrame(figures).T


def loss(table):
    """By how much the best single detector of each set is ahead of the ensemble."""
    return table.drop(columns="ensemble").max(axis=1) - table["ensemble"]


DOGS = np.arange(151, 269)


@pytest.fixture(scope="module")
def small_table(sets):
    a_fifth = np.sort(np.random.default_rng(103).permutation(1000)[:200])
    return compare(
        {
            "imagenet, 200 classes": imagenet_task(sets, a_fifth),
            "imagenet, dogs": imagenet_task(sets, DOGS, np.setdiff1d(np.arange(398), DOGS)),
        }
    )


@pytest.fixture(scope="module")
def table(sets, small_table):
    half = np.sort(np.random.default_rng(301).permutation(100)[:50])
    others = compare(
        {
            "imagenet": imagenet_task(sets, np.arange(1000)),
            "imagenet, animals": imagenet_task(sets, np.arange(398)),
            "imagenet, objects": imagenet_task(sets, np.arange(398, 1000)),
            "caltech, 50 classes": few_shot_task(sets, "caltech101", half, ["oxford_flowers"]),
            "flowers, 50 classes": few_shot_task(sets, "oxford_flowers", half, ["caltech101"]),
            "dtd": dtd_task(sets),
        }
    )
    return pd.concat([small_table, others])


def test_a_fifth_of_imagenet_and_its_dogs(small_table):
    """Concept matching is best for the first and bad for the second, energy and neighbours the reverse."""
    mean = small_table.mean()
    assert mean["ensemble"] > mean.drop("ensemble").max() + 0.005
    assert loss(small_table).max() < 0.04
    assert np.mean(loss(small_table) <= 0.03) >= 0.85
    fifth, dogs = small_table.loc["imagenet, 200 classes"].mean(), small_table.loc["imagenet, dogs"].mean()
    assert fifth["MCM"] - fifth["kNN 50"] > 0.3
    assert dogs["kNN 50"] - dogs["MCM"] > 0.2


@pytest.mark.slow
def test_its_mean_is_above_that_of_every_single_detector(table):
    """0.913, against 0.873 of the relative Mahalanobis distance on all sets; with names 0.893, and 0.874 of MaxLogit;
    without names it is level with the best, 0.961 and 0.964.
    """
    everywhere = table.dropna(axis=1).mean()
    assert everywhere["ensemble"] > everywhere.drop("ensemble").max() + 0.03
    assert everywhere["ensemble"] == pytest.approx(0.913, abs=0.005)
    with_names = table.dropna().mean()
    assert with_names["ensemble"] > with_names.drop("ensemble").max() + 0.01
    without = table[table.isna().any(axis=1)].mean()
    assert without["ensemble"] > without.drop("ensemble").max() - 0.01


@pytest.mark.slow
def test_it_is_close_to_the_best_single_detector_on_most_sets(table):
    """On 24 of 27 within 0.03; Caltech101 beside ImageNet, half of whose classes are known, is furthest away: 0.078
    behind matching with class means. Every single detector is further away somewhere."""
    assert np.sum(loss(table) <= 0.03) >= 24
    assert loss(table).max() < 0.09
    best = table.drop(columns="ensemble").max(axis=1)
    assert table.drop(columns="ensemble").rsub(best, axis=0).max().min() > 0.14


@pytest.mark.slow
def test_figures_on_imagenet(table):
    """Fitted to four shots of all classes, with names; no sets of another kind of picture than the two-shot draw."""
    assert table["ensemble"]["imagenet", "flowers"] == pytest.approx(0.875, abs=0.005)
    assert table["ensemble"]["imagenet", "caltech"] == pytest.approx(0.665, abs=0.005)
    assert table["ensemble"]["imagenet", "dtd"] == pytest.approx(0.850, abs=0.005)


@pytest.mark.slow
def test_pictures_of_a_subject_that_names_take_for_known(sets):
    """Caltech's airplanes: named by ImageNet, and few of its pictures are like them; what MCM loses, neighbours see."""
    task = imagenet_task(sets, np.arange(1000))
    data = sets["caltech101"]
    airplanes = data["X_train_16"][data["y_train_16"] == list(data["class_names"]).index("airplane")]
    figures = {}
    for name, detector in {
        "ensemble": OODEnsemble(zero_shot=task.text),
        "MCM": MCMDetector(task.text),
        "kNN": KNNDetector(10),
    }.items():
        detector.fit(task.X, task.y)
        figures[name] = ood_auroc(detector.score_samples(task.X_in), detector.score_samples(airplanes))
    assert figures["kNN"] > 0.95
    assert figures["MCM"] < 0.6
    assert figures["ensemble"] > 0.75


def test_threshold_holds_on_new_pictures(sets):
    task = imagenet_task(sets, DOGS, np.arange(398, 1000))
    accepted = np.mean(OODEnsemble(zero_shot=task.text).fit(task.X, task.y).predict(task.X_in) == 1)
    assert accepted == pytest.approx(0.95, abs=0.04)
