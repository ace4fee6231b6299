"""
The picture world
=================

What :func:`~skclip.datasets.make_picture_world` draws: coloured shapes in six styles, with everything about
them known, down to the object that each pixel belongs to.
"""

# %%
# One scene, six styles
# ---------------------
# The random state decides what is in a picture; the style only how it is drawn. The bundled models were trained
# on "photo" alone, so the other styles are tests of what they learned.

import textwrap

import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle
from matplotlib.patheffects import Normal, Stroke

from skclip.datasets import make_picture_world

STYLES = ["photo", "sketch", "dark", "blurry", "painting", "pixel"]
N_SCENES = 7

fig, axes = plt.subplots(len(STYLES), N_SCENES, figsize=(8, 7.2), layout="constrained")
for row, style in zip(axes, STYLES):
    world = make_picture_world(N_SCENES, styles=[style], random_state=3)
    for ax, picture in zip(row, world.images):
        ax.imshow(picture)
        ax.set(xticks=[], yticks=[])
    row[0].set_ylabel(style)
for ax, name in zip(axes[0], world.target):
    ax.set_title(name, fontsize=9)

# %%
# Several objects, and what is known of them
# ------------------------------------------
# ``id_map`` tells which pixel belongs to which object and ``boxes`` where each object is; the captions come in
# many kinds, here "all".

world = make_picture_world(4, min_objects=2, max_objects=4, captions="all", random_state=4)

fig, axes = plt.subplots(2, 4, figsize=(9, 5.4), layout="constrained")
for i, (above, below) in enumerate(axes.T):
    above.imshow(world.images[i])
    for left, top, right, bottom in world.boxes[i][world.boxes[i].any(axis=1)]:
        corner = (left - 0.5, top - 0.5)
        outline = Rectangle(corner, right - left, bottom - top, fill=False, edgecolor="white")
        outline.set_path_effects([Stroke(linewidth=3, foreground="black"), Normal()])
        above.add_patch(outline)
    above.set_title(textwrap.fill(world.captions[i], 26), fontsize=9)
    below.imshow(world.id_map[i], cmap="viridis", interpolation="nearest", vmin=0, vmax=4)
    for ax in (above, below):
        ax.set(xticks=[], yticks=[])
axes[0, 0].set_ylabel("images, boxes")
axes[1, 0].set_ylabel("id_map")

plt.show()
