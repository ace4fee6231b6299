"""
Searching pictures by text and by picture
=========================================

:class:`~skclip.retrieval.CLIPRetriever` takes a collection of pictures once; sentences and pictures then find what
is similar in it. The bundled model knows coloured shapes, so the collection is one of 1500 drawings.
"""

# %%
# By text
# -------
# Sentences are passed as ``texts=``; strings as X would be paths. Nothing was labelled: the labels below the pictures
# serve to check the answers.

import tempfile

import matplotlib.pyplot as plt
import numpy as np

from skclip.datasets import make_picture_world
from skclip.plotting import NeighboursDisplay
from skclip.retrieval import CLIPRetriever, retrieve_support
from skclip.zero_shot import ZeroShotClassifier

world = make_picture_world(1500, random_state=0)
retriever = CLIPRetriever("skclip-tiny", n_neighbors=6).fit(world.images, world.target)

texts = ["a photo of a red circle", "a photo of a huge green star", "a photo of a heart on the grass"]
NeighboursDisplay.from_estimator(retriever, texts=texts, pictures=world.images, n_neighbors=6)

# %%
# Adjectives count, as far as the model has learned them. Similarities of texts with pictures are smaller than those
# of pictures with pictures; compare them within a row only.
#
# By picture
# ----------
# The same with pictures as queries: two under strong noise, and two outlines, a style that the model has never seen.
# Noise costs it little. Of outlines it finds the colour, and takes the shape for a ring, the nearest thing that it
# knows: a look at the neighbours tells what a number of errors does not.

noisy = make_picture_world(2, noise=40, start=1500, random_state=0)
outlines = make_picture_world(2, styles=["sketch"], start=1501, random_state=0)
queries = np.concatenate([noisy.images, outlines.images])
labels = np.concatenate([noisy.target, outlines.target])
NeighboursDisplay.from_estimator(retriever, queries, labels, pictures=world.images, n_neighbors=6)

# %%
# How good is the search?
# -----------------------
# R@k is the share of queries that find what they should among the k nearest. Each caption of a new collection
# describes everything in one picture; does it find that picture among 300?

pairs = make_picture_world(300, captions="long", start=2000, random_state=0)
search = CLIPRetriever("skclip-tiny").fit(pairs.images)
recalls = search.recall_at_k(texts=pairs.captions, y=np.arange(300), k=[1, 5, 10])
print("  ".join(f"R@{k} {recall:.2f}" for k, recall in zip([1, 5, 10], recalls)))

# %%
# On the disk
# -----------
# A saved collection is opened without being read whole, and refuses texts that other weights would encode.

with tempfile.TemporaryDirectory() as folder:
    retriever.save(folder)
    reopened = CLIPRetriever.load(folder)
    print(reopened.ids_[reopened.kneighbors(texts=["a photo of a blue moon"], n_neighbors=3)[1]])

# %%
# A training set from names
# -------------------------
# The pictures nearest to the name of each class are a labelled training set for which nobody labelled anything.

names = ZeroShotClassifier(class_names=world.target_names, templates="a photo of a {}")
X, y, rows = retrieve_support(retriever, names, n_per_class=8, return_indices=True)
print(f"{len(X)} pictures of {len(world.target_names)} classes, {np.mean(world.target[rows] == y):.1%} labelled right")

# sphinx_gallery_thumbnail_number = 1
plt.show()
