"""
A thousand numbers in the place of all weights
==============================================

The bundled model has seen photographs; these are outlines. What has to be learned is not a word but a way to see, and
for that the image tower must change. CLIP-SVD trains the singular values of its attention matrices and nothing else:
1,536 numbers, 0.2 % of the model. Which parts of the tower does it change, and what are they for?
"""

# %%
# The task
# --------
# Eight classes to learn from, 16 pictures of each; then 24 others, known by name alone.

import matplotlib.pyplot as plt
import numpy as np

from skclip import CLIPFeatures, ZeroShotClassifier
from skclip.datasets import few_shot_split, make_picture_world
from skclip.tuning import CLIPLoRAClassifier, CLIPSVDClassifier

MODEL = "skclip-tiny"
COLORS = ["red", "green", "blue", "yellow", "purple", "orange", "cyan", "pink"]
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring", "moon", "heart"]


def pairs(k):
    return [f"{color} {SHAPES[(3 * i + k) % 8]}" for i, color in enumerate(COLORS)]


base, new = pairs(2), [*pairs(1), *pairs(5), *pairs(7)]
world = make_picture_world(2000, styles=["sketch"], held_out="include", random_state=1)
of_base, of_new = (np.flatnonzero(np.isin(world.target, names)) for names in (base, new))
train, test = few_shot_split(world.target[of_base], shots=16, random_state=0)
train, test = of_base[train], of_base[test]

fig, axes = plt.subplots(1, 8, figsize=(9, 1.6), layout="constrained")
for ax, name in zip(axes, base):
    ax.imshow(world.images[np.flatnonzero(world.target == name)[0]])
    ax.set_title(name, fontsize=7)
    ax.set_axis_off()

# %%
# Learning from the pictures
# --------------------------
# What changes the image tower is given the pictures themselves. The model in memory is never touched: what was learned
# is kept beside it.

svd = CLIPSVDClassifier(
    MODEL,
    encoder="vision",
    targets=["q", "k", "v", "o"],
    max_iter=15,
    learning_rate=0.05,
    augmentation=None,
    random_state=0,
)
lora = CLIPLoRAClassifier(MODEL, max_iter=10, learning_rate=0.01, augmentation=None, random_state=0)
for name, classifier in {"CLIP-SVD": svd, "CLIP-LoRA": lora}.items():
    classifier.fit(world.images[train], world.target[train])
    n_learned = sum(value.size for value in classifier.state_delta_.values())
    accuracies = (
        classifier.score(world.images[test], world.target[test]),
        classifier.with_classes(new).score(world.images[of_new], world.target[of_new]),
    )
    print(f"{name:10} {n_learned:6,} numbers   classes learned {accuracies[0]:.3f}   new classes {accuracies[1]:.3f}")

# %%
# Names alone recognise 40 % of the new pictures by the tower as it came. What it has learned of outlines from eight
# classes serves for others.

names = ZeroShotClassifier(MODEL, class_names=new, templates="a photo of a {}.").fit()
rows = CLIPFeatures(MODEL).transform(world.images[of_new])
print(f"names alone {names.score(rows, world.target[of_new]):.3f}")

# %%
# What has changed
# ----------------
# ``head_changes`` tells how far each head of each layer has moved.

changes = np.zeros((4, 4))
for change in svd.head_changes():
    changes[change.layer, change.head] = change.relative

fig, ax = plt.subplots(figsize=(4.4, 3.4), layout="constrained")
image = ax.imshow(changes, cmap="viridis")
ax.set_xlabel("head")
ax.set_ylabel("layer")
ax.set_xticks(range(4))
ax.set_yticks(range(4))
fig.colorbar(image, label="relative change")
ax.set_title("Where the singular values moved")

# %%
# And ``interpret`` says in words what the heads of the upper layers tell apart: of many texts, those that explain most
# of what a head writes into the embedding.

texts = [*COLORS, *SHAPES, *(f"a {color} {shape}" for color in COLORS for shape in SHAPES)]
for head in svd.interpret(texts, world.images[test], n_texts=3):
    print(f"layer {head.layer}, head {head.head}: {head.explained[-1]:4.0%} by {', '.join(head.texts)}")

plt.show()
