"""
Accept or reject: visual inspection from a few exemplars
========================================================

A camera looks down on a production line. From some tens of pictures of good and of defective parts,
:class:`~skclip.adapters.FewShotInspector` decides about new ones and shows the exemplars it decided by;
:class:`~skclip.adapters.GDAClassifier` learns besides what may vary without being a defect. A missed defect costs more
than a false alarm, and that sets the threshold.
"""

# %%
# The product
# -----------
# Position, angle and light differ from picture to picture; the outlines show the exact masks of the defects.

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.metrics import f1_score, make_scorer, precision_score, recall_score, roc_auc_score
from sklearn.model_selection import TunedThresholdClassifierCV

from skclip.adapters import FewShotInspector, GDAClassifier
from skclip.datasets import make_inspection_parts
from skclip.features import CLIPFeatures

PRODUCT = {"layout": "single", "defect_size": (0.15, 0.3), "random_state": 0}
support = make_inspection_parts(240, **PRODUCT)
test = make_inspection_parts(700, start=240, **PRODUCT)

fig, axes = plt.subplots(2, 5, figsize=(9, 4.1), layout="constrained")
for column, kind in zip(axes.T, ["good", "hole", "missing part", "scratch", "stain"]):
    for ax, i in zip(column, np.flatnonzero(support.target == kind)):
        ax.imshow(support.images[i])
        if support.masks[i].any():
            ax.contour(support.masks[i], levels=[0.5], colors="red", linewidths=1.2)
        ax.set_axis_off()
    column[0].set_title(kind, fontsize=11)

# %%
# Two inspectors
# --------------
# One row of features per picture, all kinds of defects as one class. Whole-picture features of a small model do not
# see everything: the table tells how well each kind of defect is ranked above good parts.

features = CLIPFeatures("skclip-tiny-rn")
X, X_test = features.transform(support.images), features.transform(test.images)
y, y_test = (np.where(parts.target == "good", "good", "defect") for parts in (support, test))

inspectors = {
    "exemplars": FewShotInspector(3, pos_label="defect"),
    "discriminant": GDAClassifier(),
}
risk = {}  # probability of a defect of each test picture
for name, inspector in inspectors.items():
    inspector.fit(X, y)
    risk[name] = inspector.predict_proba(X_test)[:, inspector.classes_.tolist().index("defect")]

print(f"{np.sum(y == 'good')} good and {np.sum(y == 'defect')} defective exemplars")
print(f"{'area under the ROC curve':<26}" + "".join(f"{name:>14}" for name in inspectors))
for kind in ["hole", "missing part", "scratch", "stain", "all defects"]:
    rows = (test.target == "good") | (test.target == kind) | (kind == "all defects")
    scores = [roc_auc_score(y_test[rows] == "defect", risk[name][rows]) for name in inspectors]
    print(f"{kind:<26}" + "".join(f"{score:14.3f}" for score in scores))


# %%
# What a mistake costs
# --------------------
# One part in twenty is defective. A defect that reaches the customer costs 300, a good part that is thrown away costs
# 5. The test pictures hold as many defects as good parts, so the rates are weighed by how often each occurs on the
# line.

SHARE, MISS, FALSE_ALARM = 0.05, 300.0, 5.0


def cost(y, verdict):
    """Cost per part on the line."""
    missed = np.mean(verdict[y == "defect"] == "good")
    alarms = np.mean(verdict[y == "good"] == "defect")
    return SHARE * MISS * missed + (1 - SHARE) * FALSE_ALARM * alarms


# %%
# `TunedThresholdClassifierCV` finds the threshold of lowest cost on the exemplars alone, by cross-validation.

print(f"{'':<26}{'cost':>8}{'sensitivity':>13}{'specificity':>13}{'precision':>11}{'F1':>7}")
tuned = {}
for name, inspector in inspectors.items():
    scorer = make_scorer(cost, greater_is_better=False)
    tuned[name] = TunedThresholdClassifierCV(clone(inspector), scoring=scorer, cv=10, random_state=0).fit(X, y)
    for label, verdict in (
        (f"{name}, as it is", inspector.predict(X_test)),
        (f"{name}, tuned", tuned[name].predict(X_test)),
    ):
        print(
            f"{label:<26}{cost(y_test, verdict):8.2f}{recall_score(y_test, verdict, pos_label='defect'):13.3f}"
            f"{recall_score(y_test, verdict, pos_label='good'):13.3f}"
            f"{precision_score(y_test, verdict, pos_label='defect'):11.3f}"
            f"{f1_score(y_test, verdict, pos_label='defect'):7.3f}"
        )
print(f"{'accept everything':<26}{SHARE * MISS:8.2f}")
print(f"{'reject everything':<26}{(1 - SHARE) * FALSE_ALARM:8.2f}")

# %%
# The same as curves: cost of every threshold on the test pictures, the threshold of equal probabilities (circle) and
# the one that cross-validation found without them (star).

COLORS = {"exemplars": "tab:blue", "discriminant": "tab:orange"}
thresholds = np.linspace(0.0, 1.0, 201)
fig, ax = plt.subplots(figsize=(7, 4.2), layout="constrained")
ax.axhline((1 - SHARE) * FALSE_ALARM, color="0.45", linestyle="--", lw=1)
ax.text(0.995, (1 - SHARE) * FALSE_ALARM + 0.08, "reject everything", ha="right", va="bottom", color="0.35", fontsize=9)
for name, color in COLORS.items():
    costs = [cost(y_test, np.where(risk[name] > t, "defect", "good")) for t in thresholds]
    ax.plot(thresholds, costs, color=color, label=name)
    chosen = 1.0 - tuned[name].best_threshold_  # that is of the last label in sorted order, "good"
    for t, marker, size in ((0.5, "o", 7), (chosen, "*", 14)):
        ax.plot(t, np.interp(t, thresholds, costs), marker, color=color, markersize=size, markeredgecolor="white")
ax.set_xlabel("reject where the probability of a defect is above")
ax.set_ylabel("cost per part")
ax.set_xlim(0, 1)
ax.set_ylim(0, 8)
ax.grid(alpha=0.3)
ax.spines[["top", "right"]].set_visible(False)
ax.legend(frameon=False, loc="upper left")

# %%
# Why was it rejected?
# --------------------
# `explain` gives the best exemplar of each class, ready for a table or a picture. The descriptions are whatever was
# known about the exemplars; here the kind of the defect.

inspector = FewShotInspector(3, pos_label="defect").fit(X, y, descriptions=support.target)
verdicts = inspector.predict(X_test)
one_of_each = [np.flatnonzero(test.target == kind)[0] for kind in ["hole", "scratch", "stain", "missing part", "good"]]
shown = [*one_of_each, np.flatnonzero((y_test == "defect") & (verdicts == "good"))[0]]
table = {key: column.reshape(len(shown), 2) for key, column in inspector.explain(X_test[shown]).items()}
classes = table["class"][0].tolist()

fig, axes = plt.subplots(3, len(shown), figsize=(10, 5.8), layout="constrained")
for column, i in enumerate(shown):
    axes[0, column].imshow(test.images[i])
    axes[0, column].set_title(
        f"{'accepted' if verdicts[i] == 'good' else 'rejected'}\n({test.target[i]})",
        color="tab:green" if verdicts[i] == y_test[i] else "tab:red",
        fontsize=10,
    )
    for ax, label in zip(axes[1:, column], ["good", "defect"]):
        k = classes.index(label)
        ax.imshow(support.images[table["exemplar"][column, k]])
        ax.set_title(f"{table['description'][column, k]}, {table['similarity'][column, k]:.3f}", fontsize=10)
for ax in axes.flat:
    ax.set(xticks=[], yticks=[])
for ax, text in zip(axes[:, 0], ["on the line", "best good exemplar", "best defective exemplar"]):
    ax.set_ylabel(text, fontsize=10)

# %%
# What to look at: the last column is the first defect that was missed. Similarities differ in the second or third
# decimal there, and the best defective exemplar tells what is lacking: add a picture that looks like the miss, fit
# again, and the next part of that kind is found. A defective exemplar need not show the same kind of defect: features
# of a small model tell more surely that something is there than what.

# sphinx_gallery_thumbnail_number = 3
plt.show()
