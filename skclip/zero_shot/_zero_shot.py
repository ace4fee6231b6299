"""Classes described by text, or by given prototypes: cosine similarity to one vector per class."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length

from skclip._backbones import DEFAULT_MODEL, get_card, load_backbone, weights_digest
from skclip.features import CLIPTextFeatures
from skclip.templates._templates import SLOT, Descriptions, Templates, check_descriptions, fill_templates
from skclip.utils._arrays import check_features, check_prototypes, first_view, unit_rows
from skclip.utils._base import SkclipBase, SkclipWarning
from skclip.utils._classifier import LogitsMixin
from skclip.utils._cosine import DEFAULT_LOGIT_SCALE, chance_message, cosine_logits, is_chance
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames, align_names, check_labels, rows_of_labels
from skclip.utils._params import Interval, check_parameters


class _Knowledge(NamedTuple):
    """What prediction reads."""

    classes: NDArray  # (K,)
    prototypes: NDArray  # (K, d) unit rows, float32
    logit_scale: float
    digest: str | None


@fill_doc
class ZeroShotClassifier(LogitsMixin, SkclipBase):
    """Classify image features by the names of the classes, without a single labelled picture.

    Each class is one unit vector, its prototype: the mean of the normalised embeddings of its sentences (its
    name put into every template), normalised again. The score of a class is the cosine of the picture with
    the prototype, times `logit_scale`.

    Every estimator that needs class text takes one of these as its ``zero_shot`` parameter.

    Parameters
    ----------
    model : str, default=None
        Model whose text tower encodes the sentences; must be the model of the features. None is the model of
        the enclosing `CLIPClassifier`, or `skclip`'s default model where there is none. Not used with
        `prototypes`.
    class_names : {label: str} or list of str, default=None
        Names of the classes. A list is accepted only where it cannot be misread: where the labels (`classes`,
        or those of y) are 0..K-1, or are the names themselves. Without labels to compare with, the names are
        the labels.
    templates : str, list of str or {label: list of str}, default="openai"
        A set of `skclip.templates.list_templates`, a sentence with ``{}`` for the name, a list of such
        sentences, or descriptions: the sentences of each class, which make `class_names` optional.
    prototypes : array-like of shape (K, d), default=None
        Class embeddings to use instead of text; normalised here.
    classes : array-like of shape (K,), default=None
        Labels of the rows of `prototypes`; None means 0..K-1. With a list of `class_names`, the labels it is
        compared with.
    logit_scale : float, default=None
        Multiplier of the cosines. None is the one the model was trained with, and 100 for `prototypes`.
    device : {"auto", "cpu", "cuda", "cuda:N", "mps"}, default="auto"
        Where the text tower runs.
    precision : str, default="auto"
        Precision of the text tower.
    batch_size : int or "auto", default="auto"
        Sentences per batch.
    store : "memory", path or None, default="memory"
        Where embeddings of sentences are kept, see `CLIPTextFeatures`.

    Attributes
    ----------
    classes_ : ndarray of shape (K,)
        Labels of `class_names`, of the descriptions or of `classes`, sorted as ``np.unique`` does. Never
        taken from y: a class that y lacks is still predicted.
    prototypes_ : ndarray of shape (K, d), float32
        Unit rows; row k belongs to ``classes_[k]``.
    logit_scale_ : float
        Multiplier in use.
    weights_digest_ : str or None
        Identity of the weights that encoded the text; None with `prototypes`.
    n_features_in_ : int
        d. Only where `fit` saw features.
    %(feature_names_in_)s

    See Also
    --------
    CLIPClassifier : The same for pictures instead of features.

    Notes
    -----
    Prediction without `fit` works wherever the classes are known from the parameters. It then looks up the
    sentences of all classes in every call; `fit` once to predict often.

    `fit` encodes ``K * n_templates`` sentences in one pass; prediction costs ``O(n K d)``.

    References
    ----------
    .. [1] A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
       ICML 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.zero_shot import ZeroShotClassifier
    >>> clf = ZeroShotClassifier(prototypes=np.eye(3), classes=["cat", "dog", "owl"])
    >>> clf.predict([[0.1, 0.9, 0.2], [0.5, 0.1, 0.7]])
    array(['dog', 'owl'], dtype='<U3')
    """

    # `CLIPClassifier` fills in the model of what encodes class names
    _encodes_text = True
    _parameter_constraints: dict[str, list[Any]] = {
        "model": [str, None],
        "class_names": [Mapping, Sequence, np.ndarray, None],
        "templates": [str, Sequence, Mapping],
        "prototypes": ["array-like", None],
        "classes": ["array-like", None],
        "logit_scale": [Interval(Real, 0, None, closed="neither"), None],
    }

    def __init__(
        self,
        model: str | None = None,
        *,
        class_names: ClassNames | None = None,
        templates: Templates | Descriptions = "openai",
        prototypes: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        logit_scale: float | None = None,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | str = "auto",
        store: Any = "memory",
    ) -> None:
        self.model = model
        self.class_names = class_names
        self.templates = templates
        self.prototypes = prototypes
        self.classes = classes
        self.logit_scale = logit_scale
        self.device = device
        self.precision = precision
        self.batch_size = batch_size
        self.store = store

    def fit(self, X: Any = None, y: ArrayLike | None = None) -> Self:
        """Encode the classes. Features and labels are only checked against them.

        Parameters
        ----------
        X : array-like of shape (n, d) or (n, V, d), default=None
            Image features; None where there are none yet.
        y : array-like of shape (n,), default=None
            Labels, all of them among the classes. They also tell how to read a list of `class_names`.

        %(self)s

        Raises
        ------
        ValueError
            If no classes are given, a label of y is unknown, a list of names could be misread, or the widths
            of features and prototypes differ.

        Warns
        -----
        SkclipWarning
            If two classes have the same prototype, as two labels of one name have; if the accuracy on the rows of X
            is no better than chance, as when features and text come from two models.
        """
        check_parameters(self)
        if not self._has_classes():
            raise ValueError(
                "ZeroShotClassifier needs classes: pass class_names={label: name}, "
                "templates={label: [sentences]}, or prototypes with classes=[labels]."
            )
        labels = None if y is None else self._check_y(y)
        knowledge = self._resolve(labels)
        _warn_of_twins(knowledge)
        if X is not None:
            self._check_width(X, knowledge)
            rows, n_views = check_features(self, X, reset=True)
            if labels is not None:
                rows = first_view(rows, n_views)
                check_consistent_length(rows, labels)
                self._warn_if_chance(rows, labels, knowledge)
        self.classes_ = knowledge.classes
        self.prototypes_ = knowledge.prototypes
        self.logit_scale_ = knowledge.logit_scale
        self.weights_digest_ = knowledge.digest
        return self

    def with_classes(self, class_names: ClassNames) -> ZeroShotClassifier:
        """A new classifier, fitted, that knows other classes; this one is left as it is.

        Parameters
        ----------
        class_names : {label: str} or list of str
            The new classes, all of them. A list makes the names the labels, and is refused where the labels
            of this classifier are numbers.

        Returns
        -------
        ZeroShotClassifier
            Fitted, with the parameters of this one otherwise.

        Raises
        ------
        ValueError
            If a list could be misread, the classifier holds prototypes and no `model` to encode names with,
            or the model's weights are no longer those of `fit`.
        """
        fitted = hasattr(self, "classes_")
        if fitted and not isinstance(class_names, Mapping) and self.classes_.dtype.kind not in "US":
            raise ValueError(
                f"The labels of this classifier are numbers ({self.classes_[:3].tolist()}, ...), so a list "
                "of names does not tell their labels. Write with_classes({label: name, ...})."
            )
        if self.prototypes is not None and self.model is None:
            raise ValueError(
                "with_classes encodes names, and this classifier holds prototypes of unknown origin: pass "
                "model= with the name of the model they come from."
            )
        new = clone(self).set_params(class_names=class_names, prototypes=None, classes=None).fit()
        if fitted and self.weights_digest_ not in (None, new.weights_digest_):
            raise ValueError(
                f"The weights of {self._model_name()!r} have changed since fit (digest "
                f"{self.weights_digest_[:12]} then, {new.weights_digest_[:12]} now); features and new "
                "classes would not match. Fit again."
            )
        width = new.prototypes_.shape[1]
        if fitted and width != self.prototypes_.shape[1]:
            raise ValueError(
                f"Model {self._model_name()!r} gives prototypes of width {width}, but this classifier works "
                f"on features of width {self.prototypes_.shape[1]}."
            )
        for seen in ("n_features_in_", "feature_names_in_"):
            if hasattr(self, seen):
                setattr(new, seen, getattr(self, seen))
        return new

    def logits(self, X: Any) -> NDArray:
        """Scaled cosines of each row with each class.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n, K)
            Columns in the order of `classes_`, also for two classes; in the floating type of X.
        """
        return self._logits(X)[0]

    def predict(self, X: Any) -> NDArray:
        """The label of the nearest prototype.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n,)
        """
        logits, classes = self._logits(X)
        return classes[np.argmax(logits, axis=1)]

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "prototypes_") or self._has_classes()

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.requires_fit = not self._has_classes()
        tags.target_tags.required = False
        return tags

    def _has_classes(self) -> bool:
        return self.class_names is not None or self.prototypes is not None or isinstance(self.templates, Mapping)

    def _model_name(self) -> str:
        return DEFAULT_MODEL if self.model is None else self.model

    def _check_y(self, y: ArrayLike) -> NDArray:
        labels = check_labels(y)
        if labels.dtype.kind == "f":  # others are classes; one row of each would only draw a warning
            check_classification_targets(labels)
        return labels

    def _logits(self, X: Any) -> tuple[NDArray, NDArray]:
        """Logits, and the labels of their columns: an unfitted classifier keeps no ``classes_``."""
        knowledge = self._knowledge()
        self._check_width(X, knowledge)
        if not hasattr(self, "n_features_in_") and hasattr(X, "columns"):
            X = np.asarray(X)  # there are no column names of `fit` to compare with
        rows = first_view(*check_features(self, X))
        return cosine_logits(unit_rows(rows), knowledge.prototypes, knowledge.logit_scale), knowledge.classes

    def _knowledge(self) -> _Knowledge:
        if hasattr(self, "prototypes_"):
            return _Knowledge(self.classes_, self.prototypes_, self.logit_scale_, self.weights_digest_)
        if not self._has_classes():
            raise NotFittedError(
                "This ZeroShotClassifier knows no classes: pass class_names, templates={label: [sentences]} "
                "or prototypes."
            )
        check_parameters(self)
        return self._resolve(None)

    def _resolve(self, labels: NDArray | None) -> _Knowledge:
        """Classes, prototypes and scale from the parameters; `labels` of y are compared with them."""
        if self.prototypes is not None:
            return self._from_prototypes(labels)
        classes, sentences = self._sentences(labels)
        return self._from_text(classes, sentences)

    def _from_prototypes(self, labels: NDArray | None) -> _Knowledge:
        if self.class_names is not None or isinstance(self.templates, Mapping):
            raise ValueError(
                "Both prototypes and class text (class_names or descriptions) are given; pass one of them. "
                "The labels of prototypes go into classes=."
            )
        prototypes = check_prototypes(self.prototypes, "prototypes")
        classes, order = align_prototypes(len(prototypes), self.classes)
        if labels is not None:
            source = (
                "the prototypes, which carry 0..K-1 without classes=[labels]" if self.classes is None else "classes"
            )
            rows_of_labels(classes, np.unique(labels), source=source)
        scale = DEFAULT_LOGIT_SCALE if self.logit_scale is None else float(self.logit_scale)
        return _Knowledge(classes, unit_rows(prototypes)[order].astype(np.float32), scale, None)

    def _sentences(self, labels: NDArray | None) -> tuple[NDArray, list[list[str]]]:
        """Labels and the sentences of each, from `class_names` and `templates`."""
        given = None if self.classes is None else check_labels(self.classes, name="classes")
        if self.class_names is not None:
            classes, names = align_names(self.class_names, labels if given is None else given)
            named = dict(zip(classes.tolist(), names))
        else:
            assert isinstance(self.templates, Mapping)
            classes = np.unique(check_labels(list(self.templates), name="the keys of templates"))
            _refuse_slots(self.templates)
            named = dict.fromkeys(classes.tolist(), "")
        if given is not None and set(given.tolist()) != set(classes.tolist()):
            raise ValueError(
                f"classes={given.tolist()!r} and the labels of the class text, {classes.tolist()!r}, differ."
            )
        if labels is not None:
            rows_of_labels(
                classes,
                np.unique(labels),
                source="class_names" if self.class_names is not None else "templates",
            )
        return classes, fill_templates(named, self.templates)

    def _from_text(self, classes: NDArray, sentences: list[list[str]]) -> _Knowledge:
        model = self._model_name()
        encoder = CLIPTextFeatures(
            model,
            device=self.device,
            precision=self.precision,
            batch_size=self.batch_size,
            store=self.store,
        )
        embeddings = encoder.transform([sentence for of_class in sentences for sentence in of_class])
        prototypes = mean_prototypes(np.asarray(embeddings), [len(of_class) for of_class in sentences])
        scale = model_logit_scale(model) if self.logit_scale is None else float(self.logit_scale)
        return _Knowledge(classes, prototypes, scale, weights_digest(model))

    def _check_width(self, X: Any, knowledge: _Knowledge) -> None:
        shape: tuple[int, ...] = getattr(X, "shape", ())
        width = knowledge.prototypes.shape[1]
        if len(shape) in (2, 3) and shape[-1] not in (0, width):
            source = (
                "the given prototypes" if self.prototypes is not None else f"the text tower of {self._model_name()!r}"
            )
            raise ValueError(
                f"X has {shape[-1]} features, but ZeroShotClassifier is expecting {width} features as input: "
                f"the width of {source}. Features and classes must come from one model."
            )

    def _warn_if_chance(self, rows: NDArray, labels: NDArray, knowledge: _Knowledge) -> None:
        logits = cosine_logits(unit_rows(rows), knowledge.prototypes, knowledge.logit_scale)
        n_right = int(np.sum(knowledge.classes[np.argmax(logits, axis=1)] == labels))
        if is_chance(n_right, len(labels), len(knowledge.classes)):
            source = "the prototypes" if self.prototypes is not None else f"the class text of {self._model_name()!r}"
            warnings.warn(
                chance_message(n_right, len(labels), len(knowledge.classes), source),
                SkclipWarning,
                stacklevel=3,
            )


def mean_prototypes(embeddings: NDArray, counts: Sequence[int]) -> NDArray:
    """Normalised mean of consecutive groups of unit rows.

    Parameters
    ----------
    embeddings : ndarray of shape (sum(counts), d)
        Unit rows, the sentences of class 0 first.
    counts : sequence of K int, each at least 1
        Sentences of each class.

    Returns
    -------
    ndarray of shape (K, d), float32
    """
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    # the sum points where the mean points
    return unit_rows(np.add.reduceat(embeddings, starts, axis=0)).astype(np.float32, copy=False)


def align_prototypes(n_prototypes: int, classes: ArrayLike | None) -> tuple[NDArray, NDArray]:
    """Sorted labels of prototype rows, and the rows in that order."""
    if classes is None:
        return np.arange(n_prototypes), np.arange(n_prototypes)
    labels = check_labels(classes, name="classes")
    if len(labels) != n_prototypes:
        raise ValueError(f"classes holds {len(labels)} labels for {n_prototypes} prototypes; each row needs its own.")
    unique, order = np.unique(labels, return_index=True)
    if len(unique) < len(labels):
        twice = unique[np.unique(labels, return_counts=True)[1] > 1]
        raise ValueError(f"classes repeats {twice[:5].tolist()}; each prototype needs a label of its own.")
    return unique, order


def _warn_of_twins(knowledge: _Knowledge) -> None:
    """Warn of classes that text cannot tell apart, as where two labels share a name."""
    _, first, group = np.unique(knowledge.prototypes, axis=0, return_index=True, return_inverse=True)
    twins = np.flatnonzero(first[group.ravel()] != np.arange(len(group)))
    if twins.size:
        one, other = (knowledge.classes[k].item() for k in (first[group.ravel()[twins[0]]], twins[0]))
        warnings.warn(
            f"Classes {one!r} and {other!r} have the same prototype, so text cannot tell them apart ({twins.size} such "
            "in all). Do their names differ?",
            SkclipWarning,
            stacklevel=3,
        )


def model_logit_scale(model: str) -> float:
    """Multiplier `model` was trained with; reads the weights only where its configuration does not tell."""
    scale = get_card(model).logit_scale
    return float(load_backbone(model).logit_scale if scale is None else scale)


def _refuse_slots(descriptions: Descriptions) -> None:
    for label, sentences in check_descriptions(descriptions).items():
        for sentence in sentences:
            if SLOT in sentence:
                raise ValueError(
                    f"templates[{label!r}] holds {sentence!r}, which asks for the name of the class; pass "
                    "class_names, or write the name out."
                )
