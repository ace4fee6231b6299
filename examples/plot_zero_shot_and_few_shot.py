"""
Class names, a few pictures, or both
====================================

The bundled model was trained on clean pictures. Here it meets the same shapes under strong noise, so that
their names alone no longer decide everything, and :class:`~skclip.adapters.GDAClassifier` learns from 1, 2,
4, 8 or 16 labelled noisy pictures of each class: without the names, and on top of them.
"""

# %%
# The task
# --------
# Two slices of one endless sequence of pictures: from the first come the labelled ones, the second is the
# test set.

import warnings

import matplotlib.pyplot as plt
import numpy as np

from skclip.adapters import GDAClassifier
from skclip.datasets import few_shot_split, make_picture_world
from skclip.features import CLIPFeatures
from skclip.utils import SkclipWarning
from skclip.zero_shot import ZeroShotClassifier

MODEL = "skclip-tiny"

pool = make_picture_world(2000, noise=60, random_state=0)
test = make_picture_world(800, noise=60, start=2000, random_state=0)

fig, axes = plt.subplots(2, 6, figsize=(9, 3.6), layout="constrained")
for ax, picture, name in zip(axes.flat, pool.images, pool.target):
    ax.imshow(picture)
    ax.set_title(name, fontsize=10)
    ax.set_axis_off()
fig.suptitle(f"Twelve of {len(pool.images)} noisy pictures, {len(pool.target_names)} classes")

# %%
# From pictures to numbers
# ------------------------
# One row of features per picture, and one prototype per class from its name.

features = CLIPFeatures(MODEL)
X, X_test = features.transform(pool.images), features.transform(test.images)
y, y_test = pool.target, test.target

names = ZeroShotClassifier(MODEL, class_names=pool.target_names, templates="a photo of a {}")
by_name = names.fit().score(X_test, y_test)
print(f"Accuracy by class names alone: {by_name:.3f}")

# %%
# Few-shot curves
# ---------------
# With one random state the pictures of a smaller draw are contained in the larger ones. ``alpha="cv"`` weighs
# pictures against names on the training pictures themselves. Where each class has a single picture, there is
# none to hold out; the classifier warns of that, which is expected here.

SHOTS = [1, 2, 4, 8, 16]
SEEDS = range(3)
methods = {
    "pictures alone": GDAClassifier(),
    "names and pictures": GDAClassifier(zero_shot=names, alpha="cv"),
}
accuracy = {name: np.empty((len(SHOTS), len(SEEDS))) for name in methods}

with warnings.catch_warnings():
    warnings.simplefilter("ignore", SkclipWarning)
    for i, shots in enumerate(SHOTS):
        for seed in SEEDS:
            train, _ = few_shot_split(y, shots, random_state=seed)
            for name, method in methods.items():
                accuracy[name][i, seed] = method.fit(X[train], y[train]).score(X_test, y_test)

print(f"{'shots':>20} " + " ".join(f"{shots:6d}" for shots in SHOTS))
for name, values in accuracy.items():
    print(f"{name:>20} " + " ".join(f"{value:6.3f}" for value in values.mean(axis=1)))

# %%
# What to look at: how many labelled pictures the names are worth - the horizontal distance between the curves -
# and whether having both ever loses against the better of the two. Bands are one standard deviation over three
# draws of the labelled pictures.

COLORS = {"pictures alone": "tab:blue", "names and pictures": "tab:orange"}
fig, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
ax.axhline(by_name, color="0.4", linestyle="--", label="names alone")
for name, values in accuracy.items():
    mean, spread = values.mean(axis=1), values.std(axis=1)
    ax.fill_between(SHOTS, mean - spread, mean + spread, color=COLORS[name], alpha=0.2, lw=0)
    ax.plot(SHOTS, mean, "o-", color=COLORS[name], label=name)
ax.set_xscale("log", base=2)
ax.set_xticks(SHOTS, labels=map(str, SHOTS))
ax.set_xlabel("labelled pictures of each class")
ax.set_ylabel(f"accuracy on {len(y_test)} test pictures")
ax.set_ylim(bottom=0)
ax.grid(alpha=0.3)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="lower right")

# %%
# The same with picture files and one object:
# ``CLIPClassifier(model, GDAClassifier(names, alpha="cv")).fit(paths, labels)``.

# sphinx_gallery_thumbnail_number = 2
plt.show()
