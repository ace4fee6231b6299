"""Parts of docstrings that several public names share, and the decorator that puts them in."""

from __future__ import annotations

import inspect
import re
from textwrap import indent
from typing import Any, TypeVar

Described = TypeVar("Described")

# alone on its line; percent signs, because braces stand for sets and templates in docstrings
_PLACEHOLDER = re.compile(r"^(?P<indent> *)%\((?P<name>\w+)\)s$", flags=re.MULTILINE)

_FEATURES = "array-like of shape (n, d) or (n, V, d)"

BLOCKS: dict[str, str] = {
    # parameters of adapters; a line of the class's own says what None does
    "zero_shot": """\
zero_shot : ZeroShotClassifier or array-like of shape (K, d), default=None
    Class text. A classifier is cloned and fitted; wrap it in `FrozenEstimator` to keep its fit. Rows of an
    array belong to the labels 0..K-1. Rows are aligned with y by label, and prototypes of classes absent
    from y are left out.""",
    "logit_scale": """\
logit_scale : float, default=None
    Multiplier of the cosines with the prototypes. None is that of `zero_shot`, 100 for an array.""",
    "logit_scale_without_text": """\
logit_scale : float, default=None
    Multiplier of the cosines. None is that of `zero_shot`, 100 for an array or without text.""",
    # parameters of adapters that train in epochs
    "early_stopping": """\
early_stopping : bool, default=False
    Whether to hold out pictures, keep the epoch that recognises most of them, and end training after
    `n_iter_no_change` epochs without a better one.""",
    "validation_fraction": """\
validation_fraction : float, default=0.1
    Share of each class to hold out, rounded up, but never a whole class.""",
    "n_iter_no_change": """\
n_iter_no_change : int, default=10
    Epochs without a better one before training ends. Only with `early_stopping`.""",
    "device": """\
device : {"auto", "cpu", "cuda", "cuda:N", "mps"}, default="auto"
    Where to train. Prediction runs in NumPy.""",
    "verbose": """\
verbose : int, default=0
    1 shows a progress bar.""",
    # parameters of what tunes prompts or towers
    "model_of_text": """\
model : str, default=None
    The model of the features, whose text tower reads the prompts. None is the model of the enclosing
    `CLIPClassifier`, or `skclip`'s default model where there is none.""",
    "model_to_tune": """\
model : str, default=None
    The model that is tuned: its weights are read and never changed. None is `skclip`'s default model.""",
    "class_names": """\
class_names : {label: str} or list of str, default=None
    Names of the classes; those absent from y are left out. A list is accepted only where it cannot be misread:
    where the labels are 0..K-1, or are the names themselves. None takes labels that are strings for names.""",
    "tuning": """\
early_stopping : bool, default=False
    Whether to hold out pictures, keep the epoch that recognises most of them, and end training after
    `n_iter_no_change` epochs without a better one. Without it the last epoch counts, as published.
validation_fraction : float, default=0.1
    Share of each class to hold out, rounded up, but never a whole class.
n_iter_no_change : int, default=10
    Epochs without a better one before training ends. Only with `early_stopping`.
warm_start : bool, default=False
    Whether `fit` goes on from what an earlier `fit` has learned.
checkpoint : path, default=None
    A file that holds the state of training after each epoch. `fit` with the same data and parameters goes on
    from there, and on a CPU ends bit for bit where an undisturbed one does; it refuses the file of another run.
    Needs an integer `random_state`; with `warm_start` every fit needs a path of its own.
distributed : bool, default=False
    Whether this process is one of several begun by ``accelerate launch`` or ``torchrun``, which divide each
    batch among them. Needs the extra ``skclip[accelerate]``.
device : {"auto", "cpu", "cuda", "cuda:N", "mps"}, default="auto"
    Where to train and to encode; "auto" takes an accelerator if there is one.
precision : {"auto", "float32", "bf16", "fp16"}, default="auto"
    Of the towers' products; what is learned is float32. "auto" is half precision on accelerators and float32 on
    CPUs.
random_state : int, RandomState or None, default=None
    Initial values, order of the pictures, views, dropout, held-out pictures.
verbose : int, default=0
    1 shows a progress bar.""",
    "tuning_pictures": """\
augmentation : {"crop_flip"} or None, default="crop_flip"
    Whether each epoch sees a random crop of each picture, mirrored half of the time, or the picture as
    prediction does. Where left and right matter, as in digits, None.
min_crop : float, default=0.08
    Smallest share of a picture's area that a random crop shows.
n_workers : int, default=None
    Threads that read pictures. None is one per core, at most 8.
store : "memory", path or None, default="memory"
    Where features of pictures by the tuned tower are kept, so that no picture is encoded twice.""",
    "tuned": """\
class_names_ : ndarray of shape (K,)
    Names of the classes, row k for ``classes_[k]``.
text_features_ : ndarray of shape (K, d), float32
    Unit rows of the classes.
state_delta_ : dict of str to ndarray
    All that was learned, by name.
logit_scale_ : float
    Multiplier of the cosines.
loss_curve_ : list of float
    Mean loss of each epoch.
loss_terms_ : dict of str to list of float
    The same for each of its terms.
validation_scores_ : list of float
    Accuracy on the held-out pictures after each epoch; empty without `early_stopping`.
n_iter_ : int
    Epochs run.
weights_digest_ : str
    SHA-256 of the file of the model's weights.
state_digest_ : str
    Names the weights and what was learned.""",
    "raises_tuning": """\
ValueError
    If y holds one class only or a label without name, a prompt is longer than the model reads, the device is
    not there, `early_stopping` meets classes with one picture each only, the loss stops being finite, or
    `checkpoint` is of another run.
KeyboardInterrupt
    Ctrl-C, saying where the checkpoint is and how to go on.""",
    # parameters of what reads pictures
    "execution": """\
device : {"auto", "cpu", "cuda", "cuda:N", "mps"}, default="auto"
    Where the model runs; "auto" takes an accelerator if there is one.
precision : {"auto", "float32", "bf16", "fp16"}, default="auto"
    Of the model; "auto" is half precision on accelerators and float32 on CPUs.
compile : bool, default=False
    Whether ``torch.compile`` compiles the image tower first, which takes a minute or more and pays for long
    runs on accelerators. Where it fails, the tower runs as it is, with a warning.
batch_size : int or "auto", default="auto"
    Pictures per forward pass. "auto" measures on the first batches how many pay. Halved as long as an
    accelerator's memory does not suffice.
decode : {"exact", "fast"}, default="exact"
    "exact" gives open_clip's own pixels, bit for bit. "fast" decodes JPEG files at the smallest scale that
    suffices and resizes no more than the crop keeps.
workers : {"threads", "processes"}, default="threads"
    What reads and decodes pictures. Processes take some seconds to start, stay for later calls, and pay where
    threads wait for Python.
n_workers : int or None, default=None
    Their number; None means one per core, at most 8.""",
    # attributes of adapters
    "classes_": """\
classes_ : ndarray of shape (K,)
    Labels of y, sorted.""",
    "prototypes_": """\
prototypes_ : ndarray of shape (K, d) or None
    Unit rows of the class text, in the order of `classes_`; None without text.""",
    "logit_scale_": """\
logit_scale_ : float or None
    Multiplier of the cosines; None without text.""",
    "zero_shot_": """\
zero_shot_ : object or None
    The fitted clone of `zero_shot`, where that is an estimator.""",
    "validation_scores_": """\
validation_scores_ : list of float
    Accuracy on the held-out pictures after each epoch; empty without `early_stopping`.""",
    "n_epochs_": """\
n_iter_ : int
    Epochs run.""",
    "n_features_in_": """\
n_features_in_ : int
    d.""",
    "feature_names_in_": """\
feature_names_in_ : ndarray of shape (d,)
    Only where `fit` saw a data frame.""",
    # detectors
    "classifier": """\
classifier : classifier or array-like of shape (K, d), default=None
    Whose logits are read: any of this package or scikit-learn's, also a `Pipeline` or a `CLIPClassifier` on
    pictures; cloned and fitted, and kept as it is in a `FrozenEstimator`. An array holds one prototype per
    class, cosines with which are multiplied by 100. None is `LinearProbeClassifier`.""",
    "contamination": """\
contamination : float, default=0.05
    Share of in-distribution pictures that the threshold refuses, in (0, 0.5]; 0.05 keeps 95 percent of them.""",
    "calibration": """\
calibration : {"in_sample", "cv"} or array-like, default="in_sample"
    Pictures whose scores set the threshold.

    - "in_sample": those of `fit`; of more than 10,000 a random 10,000, always the same.
    - "cv": those of `fit`, each scored by a detector fitted without its fold (five folds, or as many as the
      smallest class has pictures), which costs as many more fits and is honest where the score knows its
      training pictures.
    - in-distribution pictures of their own, as X of `fit`.""",
    "covariance_of_detector": """\
covariance : {"empirical", "ks", "ledoit_wolf", "oas", "pooled"} or covariance estimator, default="empirical"
    How covariances are estimated from unit rows.

    - "empirical": no shrinkage, divisor N; pseudo-inverted, with a warning, where singular: then only the
      directions that the rows span are seen.
    - "ks": shrinkage to a scaled identity with intensity ``d / (N - 1 + d)``, for any number of rows.
    - "ledoit_wolf", "oas": scikit-learn's estimators of the same names.
    - "pooled": mean of the covariances of the classes with at least two rows, divisor ``n_k - 1``.
    - an object with ``fit`` and ``covariance_``, such as `sklearn.covariance.MinCovDet`; cloned.""",
    "device_of_scores": """\
device : {"auto", "cpu", "cuda", "cuda:N", "mps"}, default="cpu"
    Where scores are computed: "cpu" with NumPy, others with torch. "auto" is an accelerator where there is one,
    else NumPy. A detector fitted for a device that the machine lacks warns once and uses NumPy.""",
    "gaussians_": """\
means_ : ndarray of shape (K, d)
    Means of the unit rows of each class, of all rows without y.
location_ : ndarray of shape (d,)
    Mean of all unit rows.
covariance_ : ndarray of shape (d, d)
    Of the rows about the means of their classes.
rank_ : int
    r: d, or less where `covariance_` is singular.
whitening_ : ndarray of shape (d, r)
    Root of the precision matrix: ``whitening_ @ whitening_.T`` is the (pseudo-)inverse of `covariance_`.
whitened_means_ : ndarray of shape (K, r)
    ``(means_ - location_) @ whitening_``, without classes of which no row has been seen.
moments_ : dict of ndarray and float
    Sums over the rows, which `partial_fit` continues; only where `covariance` is a function of them.""",
    "partial_fit_detector": """Parameters
----------
X : array-like of shape (n, d) or (n, V, d)
    In-distribution pictures.
y : array-like of shape (n,), default=None
    Their labels, all among `classes`; None in every chunk is one class.
classes : array-like of shape (K,), default=None
    All labels that will come; None is those of the first y. A class without rows yet has no part in the score.

%(self)s

Raises
------
AttributeError
    If `covariance` is no function of sums over rows ("empirical", "ks" and "oas" are), or `calibration` is
    "cv", which holds rows out.
ValueError
    If `classes` change, y holds another label, or some chunks have y and others not.

Notes
-----
`offset_` is the quantile of the scores of this chunk, under the model of all chunks, unless `calibration`
holds pictures. O(n d^2 + n K d + d^3) per call.""",
    "bank_search": """\
device : {"auto", "cpu", "cuda", "cuda:N", "mps"}, default="cpu"
    Where the exact search runs: "cpu" with NumPy, others with torch. "auto" is an accelerator where there is
    one, else NumPy. A detector fitted for a device that the machine lacks warns once and uses NumPy.
backend : {"exact", "faiss"}, default="exact"
    "exact" compares each picture with every row. "faiss" searches with the package faiss-cpu, not on `device`;
    worth its while with an approximate `faiss_factory` on millions of rows.
faiss_factory : str, default="Flat"
    What faiss builds, in the words of ``faiss.index_factory``: "Flat" is exact, "IVF4096,Flat" and "HNSW32"
    are approximate.
faiss_parameters : str, default=None
    Of the search, in the words of ``faiss.ParameterSpace``: "nprobe=32", "efSearch=128".""",
    "bank_attributes": """\
pictures_ : ndarray of shape (m,)
    Training picture that each row of the bank is a view of, 0, 1, 2, ...
faiss_index_ : ndarray of uint8, or None
    The index of an approximate `faiss_factory`.""",
    "partial_fit_bank": """\
Parameters
----------
X : array-like of shape (n, d) or (n, V, d)
    In-distribution pictures.
y : array-like of shape (n,), default=None
    Their labels, which the bank does not need.

%(self)s

Raises
------
ValueError
    If there are fewer rows than `n_neighbors` after the first chunk already, or X is of another width.

Notes
-----
Each call copies the bank once, builds the index of faiss anew and, unless `calibration` holds pictures, scores
those of the bank for the threshold, O(m^2 d), or 10,000 of them with "in_sample": add pictures by the thousand.""",
    "classifier_": """\
classifier_ : classifier
    The fitted clone of `classifier`.""",
    "classes_of_classifier": """\
classes_ : ndarray of shape (K,)
    Those of `classifier_`.""",
    "classes_known": """\
classes_ : ndarray of shape (K,) or None
    Labels of y, sorted; None without y.""",
    "offset_": """\
offset_ : float
    The threshold: the `contamination` quantile of the scores of the `calibration` pictures.""",
    "linear_classifier": """\
classifier : classifier or array-like of shape (K, d), default=None
    Whose logits are linear in the features: `LinearProbeClassifier` (None), `GDAClassifier`,
    `ZeroShotClassifier` and others of this package, linear models of scikit-learn, pipelines of affine steps;
    cloned and fitted, and kept as it is in a `FrozenEstimator`. An array holds one prototype per class, cosines
    with which are multiplied by 100.""",
    "linear_head_": """\
coef_ : ndarray of shape (K, d)
    Weights of the logits of `classifier_`, two rows for two classes.
intercept_ : ndarray of shape (K,)
    Their intercepts.
unit_rows_ : bool
    Whether `classifier_` reads rows at unit length, as those of this package do. The score reads them alike.""",
    "dim": """\
dim : int, default=None
    Principal directions, d being the number of features. None is 1000 of 2048 features or more, 512 of 768 or
    more, and half of them otherwise.""",
    "X_y_detector": """\
X : array-like of shape (n, d) or (n, V, d), or what the classifier takes
    In-distribution pictures.
y : array-like of shape (n,), default=None
    Their labels, where the score needs them.""",
    "zero_shot_of_detector": """\
zero_shot : ZeroShotClassifier or array-like of shape (K, d), default=None
    Class text, which `fit` cannot do without. A classifier is cloned and fitted; wrap it in `FrozenEstimator`
    to keep its fit. Rows of an array belong to the labels 0..K-1.""",
    "classes_of_text": """\
classes_ : ndarray of shape (K,)
    Labels of the class text; never taken from y.""",
    "prototypes_of_text": """\
prototypes_ : ndarray of shape (K, d)
    Unit rows of the class text, in the order of `classes_`.""",
    "offset_of_text": """\
offset_ : float or None
    The threshold: the `contamination` quantile of the scores of the `calibration` pictures; None after
    ``fit(None)`` until `calibrate`.""",
    "fitted_detector": """\
%(self)s

Raises
------
ValueError
    If a parameter, X or y does not fit, or a score is not finite.""",
    # fit
    "X_fit": f"""\
X : {_FEATURES}
    Image features; of any length, not modified.""",
    "y_fit": """\
y : array-like of shape (n,)
    Labels, at least two different ones.""",
    "weights_fit": """\
sample_weight : array-like of shape (n,), default=None
    Weight of each picture: how often it counts. Pictures of weight 0 are left out.""",
    "self": """\
Returns
-------
self : object""",
    "fit": """\
Parameters
----------
%(X_fit)s
%(y_fit)s
%(weights_fit)s

%(self)s""",
    "raises_fit": """\
ValueError
    If y holds one class only or a label without prototype, widths of features and prototypes differ, every
    row of a class is all zeros, or the weights are negative or all zero.""",
    "raises_also_epochs": """\
Also if the device is not there, `early_stopping` meets classes with one picture each only, or the loss stops
being finite.""",
    "warns_chance": """\
SkclipWarning
    If the zero-shot accuracy on the training rows is no better than chance, as when features and text come
    from two models.""",
    # pictures
    "pictures": """\
X : sequence of n pictures
    Paths, PIL pictures, encoded bytes, uint8 arrays, or one uint8 array (n, height, width, 3); also as a Series
    or a data frame of one column.""",
    # prediction
    "X": f"""\
X : {_FEATURES}
    Image features; of V views the first is read.""",
    "logits_array": """\
ndarray of shape (n, K), float32 or float64
    Columns in the order of `classes_`, also for two classes.""",
    "logits": """\
Parameters
----------
%(X)s

Returns
-------
%(logits_array)s""",
    "kneighbors": f"""\
Parameters
----------
X : {_FEATURES}, default=None
    Image features; of V views the first is read. None: the rows of `fit`, none its own neighbour.
n_neighbors : int, default=None
    None is the parameter of the same name, or as many as there are.

Returns
-------
similarities : ndarray of shape (n, n_neighbors)
    Cosines, descending.
indices : ndarray of shape (n, n_neighbors)
    Rows of the X of `fit`.

Raises
------
ValueError
    If more neighbours are asked for than there are.""",
    # metrics
    "y_true": """\
y_true : array-like of shape (n,)
    Labels.""",
    "y_true_or_correct": """\
y_true : array-like of shape (n,)
    Labels; with confidences (n,), whether each prediction was right.""",
    "y_true_y_pred": """\
y_true, y_pred : array-like of shape (n,)
    Labels, and labels predicted.""",
    "y_prob": """\
y_prob : array-like of shape (n, K)
    Probabilities of the classes.""",
    "y_prob_or_confidence": """\
y_prob : array-like of shape (n, K) or (n,)
    Probabilities of the classes, or confidences.""",
    "y_prob_or_order": """\
y_prob : array-like of shape (n, K) or (n,)
    Probabilities of the classes, or scores on any scale whose order is that of confidence.""",
    "labels": """\
labels : array-like of shape (K,), default=None
    Labels of the columns. None: 0..K-1 where `y_true` holds nothing else, or the K different labels of
    `y_true`, sorted.""",
    "sample_weight": """\
sample_weight : array-like of shape (n,), default=None
    Weights of the rows.""",
    # measures of out-of-distribution scores
    "scores_in_out": """\
scores_in : array-like of shape (n,)
    Scores of in-distribution pictures: larger = more in-distribution, as from ``score_samples``.
scores_out : array-like of shape (m,)
    Scores of the others.""",
    "y_true_y_pred_known": """\
y_true, y_pred : array-like of shape (n,)
    Labels of the in-distribution pictures, and labels predicted, whether refused or not.""",
    "fpr_rule": """\
rule : {"at_least", "first", "closest"}, default="at_least"
    Which score is the threshold; published figures differ in it.

    - "at_least": the lower ``1 - tpr`` quantile (``method="lower"``) of the scores to keep, so that no less
      than `tpr` is kept.
    - "first": of all scores the highest that keeps at least `tpr`, as codes do that search a ROC curve
      (OpenOOD 1.5, pytorch-ood); at most one picture off "at_least".
    - "closest": of all scores the one whose recall is closest to `tpr`, the lowest of several: what the code
      handed on from outlier exposure, arXiv:1812.04606, to MCM does. With few pictures it may keep less than
      `tpr`.""",
}


def fill_doc(described: Described) -> Described:
    """Decorator that replaces placeholders in the docstring of a function, or of a class and its own methods.

    A placeholder is a line ``%(name)s``; the block of that name in `BLOCKS` takes its place, as far indented. Blocks
    may hold placeholders, too.

    Raises
    ------
    ValueError
        If there is no such block.

    Notes
    -----
    Under ``python -OO`` there are no docstrings, and nothing happens.
    """
    _fill(described)
    if inspect.isclass(described):
        for member in vars(described).values():
            # what wraps a method has a copy of its docstring
            while member is not None:
                if callable(member) or hasattr(member, "__wrapped__"):
                    _fill(member)
                member = getattr(member, "__wrapped__", None)
    return described


def filled(text: str, name: str = "") -> str:
    """`text` with its placeholders replaced; `name` is whose docstring an error speaks of."""

    def block(match: re.Match[str]) -> str:
        if match["name"] not in BLOCKS:
            raise ValueError(f"The docstring of {name} asks for an unknown block, {match['name']!r}.")
        return indent(filled(BLOCKS[match["name"]], name), match["indent"])

    return _PLACEHOLDER.sub(block, text)


def _fill(described: Any) -> None:
    text = described.__doc__
    if text and "%(" in text:
        described.__doc__ = filled(text, getattr(described, "__qualname__", repr(described)))
