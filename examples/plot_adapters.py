"""
All few-shot adapters in one figure
===================================

The same features, the same class names, the same labelled pictures: outlines, a style that the bundled model has never
seen, in 36 classes. What each adapter makes of 1 to 16 labelled pictures per class.
"""

# %%
# Features once, for everything that follows
# ------------------------------------------

import warnings

import matplotlib.pyplot as plt

from skclip import CLIPFeatures, GDAClassifier, ZeroShotClassifier
from skclip.adapters import (
    CLAPClassifier,
    CLIPAdapterClassifier,
    FewShotInspector,
    LinearProbeClassifier,
    LPPlusPlusClassifier,
    SimilarityVoteClassifier,
    SuSXClassifier,
    TipAdapterClassifier,
    TipAdapterFClassifier,
)
from skclip.datasets import make_picture_world
from skclip.plotting import FewShotCurveDisplay, ReliabilityDisplay
from skclip.utils import SkclipWarning

MODEL = "skclip-tiny"
COLORS = ["red", "green", "blue", "yellow", "purple", "orange"]
SHAPES = ["circle", "square", "triangle", "star", "ring", "heart"]

pool = make_picture_world(1100, colors=COLORS, shapes=SHAPES, styles=["sketch"], held_out="include", random_state=0)
test = make_picture_world(
    600, colors=COLORS, shapes=SHAPES, styles=["sketch"], held_out="include", start=1100, random_state=0
)
features = CLIPFeatures(MODEL)
X, X_test = features.transform(pool.images), features.transform(test.images)
names = ZeroShotClassifier(
    MODEL, class_names={name: name for name in pool.target_names}, templates="a photo of a {}"
).fit()

# %%
# With class names
# ----------------
# What the papers search on validation pictures is left to the training pictures here (``"cv"``).

with_names = {
    "GDA": GDAClassifier(names, alpha="cv"),
    "Tip-Adapter": TipAdapterClassifier(names, alpha="cv", beta="cv"),
    "Tip-Adapter-F": TipAdapterFClassifier(names, alpha="cv", beta="cv", random_state=0),
    "SuS-X": SuSXClassifier(names, alpha="cv", beta="cv", gamma="cv"),
    "LP++": LPPlusPlusClassifier(names, random_state=0),
    "CLAP": CLAPClassifier(names, random_state=0),
    "CLIP-Adapter": CLIPAdapterClassifier(names, random_state=0),
}
options = {"X_test": X_test, "y_test": test.target, "n_draws": 2, "random_state": 0}

with warnings.catch_warnings():
    warnings.simplefilter("ignore", SkclipWarning)  # one picture per class: nothing can be held out
    curves = FewShotCurveDisplay.from_estimator(with_names, X, pool.target, baselines={"names alone": names}, **options)
curves.ax_.set_title("Class names and labelled pictures")

# %%
# Without
# -------

without_names = {
    "GDA": GDAClassifier(),
    "Tip-Adapter (cache alone)": TipAdapterClassifier(beta="cv"),
    "linear probe": LinearProbeClassifier("cv"),
    "similarity vote": SimilarityVoteClassifier(5),
    "best exemplar (inspector)": FewShotInspector(),
}
with warnings.catch_warnings():
    warnings.simplefilter("ignore", SkclipWarning)
    curves = FewShotCurveDisplay.from_estimator(
        without_names, X, pool.target, baselines={"names alone": names}, **options
    )
curves.ax_.set_title("Labelled pictures alone")

# %%
# Accuracy is not all: do the probabilities mean what they say?

both = GDAClassifier(names, alpha="cv").fit(X, pool.target)
fig, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
for ax, (title, clf) in zip(axes, {"names alone": names, "names and pictures (GDA)": both}.items()):
    ReliabilityDisplay.from_estimator(clf, X_test, test.target, ax=ax)
    ax.set_title(title)

# %%
# The user guide has the same for more data sets, with the time each takes (:doc:`/user_guide/adapters`).

# sphinx_gallery_thumbnail_number = 1
plt.show()
