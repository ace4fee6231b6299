"""
Refusing what was never seen
============================

A classifier answers whatever it is shown. Trained on circles and squares, it calls a heart a circle, and a scanned
digit, too. A detector learns from the same pictures what is familiar, and refuses the rest.
"""

# %%
# Known and unknown
# -----------------
# Sixteen known classes: four shapes in four colours. Of the unknown pictures some are near - other shapes in the same
# colours, which the bundled model knows, and shapes that it has never met - and some are far: scanned digits, circuit
# boards.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.pipeline import make_pipeline

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip.datasets import load_digit_pictures, make_inspection_parts, make_picture_world
from skclip.evaluation import ood_benchmark, ood_table
from skclip.ood import (
    EnergyDetector,
    KNNDetector,
    MahalanobisDetector,
    MCMDetector,
    OODEnsemble,
    OpenSetClassifier,
)
from skclip.plotting import OODHistogramDisplay

MODEL = "skclip-tiny"
KNOWN = {
    "colors": ["red", "green", "blue", "yellow"],
    "shapes": ["circle", "square", "triangle", "star"],
    "held_out": "include",
    "noise": 25,
}
train = make_picture_world(800, random_state=1, **KNOWN)
test = make_picture_world(400, random_state=2, **KNOWN)
unknown = {
    "other shapes": make_picture_world(300, random_state=3, **{**KNOWN, "shapes": ["cross", "ring", "heart"]}).images,
    "unseen shapes": make_picture_world(300, random_state=4, **{**KNOWN, "shapes": "unseen"}).images,
    "digits": load_digit_pictures(subset="test").images[:300],
    "circuit boards": make_inspection_parts(300, random_state=5).images,
}

# %%
# A detector in a pipeline
# ------------------------
# `fit` takes in-distribution pictures and, for scores that tell classes apart, their labels. The threshold is set so
# that 5 in 100 known pictures are refused; ``calibration="cv"`` measures that on pictures held out.

detector = make_pipeline(CLIPFeatures(MODEL), MahalanobisDetector(covariance="ks", calibration="cv"))
detector.fit(train.images, train.target)
print(f"known, kept: {np.mean(detector.predict(test.images) == 1):.2f}")
for name, pictures in unknown.items():
    print(f"{name}, refused: {np.mean(detector.predict(pictures) == -1):.2f}")

# %%
# What it accepts, and what it refuses
# ------------------------------------
# Ten pictures of each kind as they come; a red frame is a refusal.

rows = {"known": test.images, **unknown}
fig, axes = plt.subplots(len(rows), 10, figsize=(9, 5), layout="constrained")
for line, (name, pictures) in zip(axes, rows.items()):
    for ax, picture, verdict in zip(line, pictures, detector.predict(pictures[:10])):
        ax.imshow(picture)
        ax.set(xticks=[], yticks=[])
        for spine in ax.spines.values():
            spine.set(color="tab:green" if verdict == 1 else "tab:red", linewidth=3)
    line[0].set_ylabel(name, rotation=0, ha="right", va="center")

# %%
# The scores behind the verdicts
# ------------------------------
# The digits are so far away that they would not fit on the axis.

OODHistogramDisplay.from_estimator(
    detector, test.images, {name: pictures for name, pictures in unknown.items() if name != "digits"}
)

# %%
# The hardest cases
# -----------------
# Unknown pictures with the highest scores, and known ones with the lowest.

scores_in = detector.score_samples(test.images)
others = np.concatenate(list(unknown.values()))
scores_out = detector.score_samples(others)
fig, axes = plt.subplots(2, 10, figsize=(9, 2.4), layout="constrained")
for line, title, pictures in zip(
    axes,
    ("unknown, nearly\nor quite accepted", "known, refused"),
    (others[np.argsort(-scores_out)[:10]], test.images[np.argsort(scores_in)[:10]]),
):
    for ax, picture in zip(line, pictures):
        ax.imshow(picture)
        ax.set(xticks=[], yticks=[])
    line[0].set_ylabel(title, rotation=0, ha="right", va="center")

# %%
# A label or a refusal
# --------------------
# `OpenSetClassifier` puts a classifier and a detector into one object that answers with a label or with "unknown".

names = ZeroShotClassifier(
    MODEL, class_names={name: name for name in train.target_names}, templates="a photo of a {}"
).fit()
features = CLIPFeatures(MODEL)
X, X_test = features.transform(train.images), features.transform(test.images)
X_out = {name: features.transform(pictures) for name, pictures in unknown.items()}
open_set = OpenSetClassifier(names, MahalanobisDetector(covariance="ks"), reject_label="unknown").fit(X, train.target)
answers = open_set.predict(X_test)
print(f"known pictures: {np.mean(answers == test.target):.2f} right, {np.mean(answers == 'unknown'):.2f} refused")
called, counts = np.unique(open_set.predict(X_out["unseen shapes"]), return_counts=True)
print("unseen shapes are called", dict(sorted(zip(called.tolist(), counts.tolist()), key=lambda pair: -pair[1])[:4]))

# %%
# Several detectors beside each other
# -----------------------------------
# ``near`` names the sets that resemble the known classes; the mean is that of the near and the far mean, as published
# tables have it.

detectors = {
    "class names (MCM)": MCMDetector(names),
    "class names (energy)": EnergyDetector(names),
    "neighbours": KNNDetector(10),
    "Mahalanobis": MahalanobisDetector(covariance="ks"),
    "several, fused": OODEnsemble(zero_shot=names),
}
frame = ood_benchmark(detectors, (X, train.target, X_test), X_out, near=["other shapes", "unseen shapes"])
print(ood_table(frame))

# sphinx_gallery_thumbnail_number = 1
plt.show()
