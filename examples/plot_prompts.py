"""
Learning the words around the class names
=========================================

The bundled model was trained on clean pictures; these are coarse and noisy. 16 labelled pictures per class teach
vectors that stand where "a photo of a" stood. Will they also serve for classes that were not among them?
"""

# %%
# The task
# --------
# Eight classes to learn from, each colour with one shape; then 24 others, known by name alone.

import matplotlib.pyplot as plt
import numpy as np

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip.datasets import few_shot_split, make_picture_world
from skclip.tuning import CoOpClassifier, KgCoOpClassifier, ProGradClassifier

MODEL, SENTENCE = "skclip-tiny", "a photo of a {}."
COLORS = ["red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink"]
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring", "moon", "heart"]


def pairs(k):
    return [f"{color} {SHAPES[(3 * i + k) % 8]}" for i, color in enumerate(COLORS)]


base, new = pairs(2), [*pairs(1), *pairs(5), *pairs(7)]
coarse = make_picture_world(3000, styles=["pixel"], noise=30, held_out="include", random_state=1)

fig, axes = plt.subplots(1, 8, figsize=(9, 1.6), layout="constrained")
for ax, name in zip(axes, base):
    ax.imshow(coarse.images[np.flatnonzero(coarse.target == name)[0]])
    ax.set_title(name, fontsize=7)
    ax.set_axis_off()

# %%
# The image tower stays as it is, so the pictures are encoded once.

X = CLIPFeatures(MODEL).transform(coarse.images)
of_base, of_new = (np.flatnonzero(np.isin(coarse.target, names)) for names in (base, new))
train, test = few_shot_split(coarse.target[of_base], shots=16, random_state=0)
train, test = of_base[train], of_base[test]

# %%
# Four ways to know the classes
# -----------------------------
# `with_classes` puts other names behind the same learned words.

settings = {"ctx_init": "a photo of a", "max_iter": 40, "learning_rate": 0.02, "random_state": 0}
classifiers = {
    "names alone": ZeroShotClassifier(MODEL, class_names=base, templates=SENTENCE),
    "CoOp": CoOpClassifier(MODEL, **settings),
    "KgCoOp": KgCoOpClassifier(MODEL, max_iter=40, learning_rate=0.02, batch_size=32, random_state=0),
    "ProGrad": ProGradClassifier(MODEL, **settings),
}
accuracy = {}
for name, classifier in classifiers.items():
    classifier.fit(X[train], coarse.target[train])
    others = classifier.with_classes(new)
    accuracy[name] = (
        classifier.score(X[test], coarse.target[test]),
        others.score(X[of_new], coarse.target[of_new]),
    )
    print(f"{name:12} classes learned {accuracy[name][0]:.3f}   new classes {accuracy[name][1]:.3f}")

# %%
# Each colour occurs with one shape among the classes learned from, so that colour alone tells them apart. CoOp learns
# just that, and knows less of the new classes than their names alone did. What is held near the hand-written sentence
# keeps more of them.

fig, ax = plt.subplots(figsize=(7, 3.2), layout="constrained")
places = np.arange(len(accuracy))
for i, label in enumerate(["classes learned from", "new classes, by name"]):
    bars = ax.bar(places + 0.4 * (i - 0.5), [pair[i] for pair in accuracy.values()], width=0.38, label=label)
    ax.bar_label(bars, fmt="%.2f", fontsize=8)
ax.set_xticks(places, accuracy)
ax.set_ylabel("accuracy")
ax.set_ylim(0, 1.25)
ax.legend(loc="upper center", ncols=2)
ax.set_title("16 pictures of each of 8 classes")

# %%
# The loss of each epoch is kept, and with several terms the curve of each.

fig, ax = plt.subplots(figsize=(6, 3), layout="constrained")
for name in ("CoOp", "KgCoOp", "ProGrad"):
    ax.plot(classifiers[name].loss_terms_["cross_entropy"], label=name)
ax.set_xlabel("epoch")
ax.set_ylabel("cross entropy")
ax.set_title("The first epoch is a warm-up, at almost no learning rate")
ax.legend()
plt.show()
