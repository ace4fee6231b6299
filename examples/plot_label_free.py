"""
Adapting to a new style without a label
=======================================

The bundled model was trained on clean pictures. These are darker and noisier: the names of the classes fit less well.
Nobody has labelled a single one, but there is a folder full of them, and that is enough to do better.
"""

# %%
# The task
# --------
# Sixteen classes; 1,200 pictures without labels to adapt to, and others to test on.

import matplotlib.pyplot as plt
import numpy as np

from skclip import CLIPFeatures, GDAClassifier, ZeroShotClassifier
from skclip.adapters import SuSXClassifier, UnsupervisedGDA
from skclip.datasets import few_shot_split, make_picture_world
from skclip.retrieval import CLIPRetriever, retrieve_support

MODEL = "skclip-tiny"
STYLE = {
    "colors": ["red", "green", "blue", "yellow"],
    "shapes": ["circle", "square", "triangle", "star"],
    "styles": ["dark"],
    "noise": 25,
    "held_out": "include",
}

folder = make_picture_world(1200, random_state=3, **STYLE)
test = make_picture_world(1000, start=1200, random_state=3, **STYLE)

fig, axes = plt.subplots(2, 6, figsize=(9, 3.6), layout="constrained")
for ax, picture in zip(axes.flat, folder.images):
    ax.imshow(picture)
    ax.set_axis_off()
fig.suptitle("Twelve of 1,200 pictures that nobody has labelled")

# %%
# Names alone
# -----------

features = CLIPFeatures(MODEL)
X, X_test = features.transform(folder.images), features.transform(test.images)
names = ZeroShotClassifier(
    MODEL, class_names={name: name for name in folder.target_names}, templates="a photo of a {}"
).fit()
accuracy = {"names alone": names.score(X_test, test.target)}

# %%
# Names and unlabelled pictures
# -----------------------------
# :class:`~skclip.adapters.UnsupervisedGDA` guesses the classes of the pictures by their names, fits a Gaussian to each
# class, and guesses again with both, until the guesses settle.

adapted = UnsupervisedGDA(names).fit(X)
accuracy["names and unlabelled pictures"] = adapted.score(X_test, test.target)
print(f"{adapted.n_iter_} rounds; share of the guesses that each has moved: {np.round(adapted.change_curve_, 3)}")

# %%
# Another way: let the names pick a support set from the folder, and treat it as if it were labelled.

support, guessed = retrieve_support(CLIPRetriever(MODEL).fit(X), names, n_per_class=16)
found = SuSXClassifier(names, alpha="cv", beta="cv", gamma="cv").fit(support, guessed)
accuracy["names and retrieved pictures"] = found.score(X_test, test.target)

# %%
# What labels would have brought
# ------------------------------

for shots in (1, 4, 16):
    scores = []
    for seed in range(3):
        train, _ = few_shot_split(folder.target, shots, random_state=seed)
        labelled = GDAClassifier(names, alpha=0.01 if shots == 1 else "cv").fit(X[train], folder.target[train])
        scores.append(labelled.score(X_test, test.target))
    accuracy[f"names and {16 * shots} labelled pictures"] = float(np.mean(scores))

for method, value in accuracy.items():
    print(f"{method:32s} {value:.3f}")

fig, ax = plt.subplots(figsize=(7.5, 3.4), layout="constrained")
colors = ["tab:blue" if "labelled pictures" not in m or "unlabelled" in m else "0.6" for m in accuracy]
bars = ax.barh(list(accuracy), list(accuracy.values()), color=colors)
ax.bar_label(bars, fmt="%.2f", padding=4)
ax.invert_yaxis()
ax.set_xlim(0, 1)
ax.set_xlabel(f"accuracy on {len(X_test)} other pictures")
ax.spines[["top", "right"]].set_visible(False)

# %%
# It does not always help: see the notes of :class:`~skclip.adapters.UnsupervisedGDA` on how many pictures it takes, and
# what happens where the names guess no better than chance.

# sphinx_gallery_thumbnail_number = 2
plt.show()
