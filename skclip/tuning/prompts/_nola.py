"""NoLA: class text labels the surest pictures, a second encoder learns from these, and the image tower from it."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.pipeline import Pipeline
from sklearn.utils import check_random_state

from skclip._backbones import DEFAULT_MODEL, load_backbone, resolve_device
from skclip.features import CLIPFeatures
from skclip.tuning._losses import cross_entropy
from skclip.tuning._perceptron import _Perceptron
from skclip.tuning._processes import join_processes
from skclip.tuning._pseudo_labels import most_confident, n_per_class
from skclip.tuning._setting import Setting, Step, Term, in_float32
from skclip.tuning._tuned import PICTURE_CONSTRAINTS, TRAINING_CONSTRAINTS, Examples, TowerClassifier, check_pictures
from skclip.tuning._weight_specs import LayerNorms
from skclip.utils._base import SkclipWarning, forget_fit, stack_level
from skclip.utils._class_text import resolve_text
from skclip.utils._cosine import cosine_logits
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames
from skclip.utils._params import HasMethods, Interval, StrOptions
from skclip.zero_shot import ZeroShotClassifier
from skclip.zero_shot._clip_classifier import same_model

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Group, Recipe

    Tensors = dict[str, torch.Tensor]

# the side of the patch in the published range of initial tokens, whatever that of the tower
_PATCH = 16


@fill_doc
class NoLAClassifier(TowerClassifier):
    """Adapt the image tower to a task with names, a folder of pictures and not one label.

    Three steps [1]_: class text labels the pictures it is surest of; a small network learns these labels from the
    features of a second encoder, which was trained without any text and so errs differently; and tokens and norms of
    the image tower, with a linear layer for the classes, learn to give for a random view of each picture what that
    network gives for the picture as it is.

    It can only be as good as the second encoder is at telling the classes apart, and as the surest labels are right:
    look at ``pseudo_confidence_`` and try ``aligned_teacher_`` by itself on the few labels you have. Where an hour of
    labelling is possible, `GDAClassifier` with eight pictures per class is better and takes a second; `UnsupervisedGDA`
    needs no labels either, and no training.

    Parameters
    ----------
    model : str, default=None
        The model that is tuned: its weights are read and never changed. None is that of `zero_shot`, or `skclip`'s
        default model.
    zero_shot : ZeroShotClassifier or array-like of shape (K, d)
        Class text by the same model, with names, templates and descriptions as there; cloned, and given `model` if it
        names none. The rows of an array are prototypes of the labels 0..K-1. Required.
    teacher : transformer, default=None
        The second encoder: takes pictures, gives a row of features for each, and learns nothing from labels; cloned,
        or kept as it is in a `FrozenEstimator`. A `Pipeline` of scikit-learn, or a self-supervised network such as DINO
        (the paper's choice) behind ``transform``. None takes the features of `model` itself, which is self-training and
        cannot mend an error that its features make.
    teacher_head : classifier, default=None
        What learns the labels of the surest pictures from the features of `teacher`; cloned. None is the published
        network: a hidden layer of 256, 50 epochs of Adam with learning rate 0.001 on batches of 32.
    top_fraction : float, default=0.2
        Share of the pictures whose labels are trusted, divided evenly among the classes.
    min_per_class : int, default=16
        Pictures per class that are trusted at least, if so many are assigned to it.
    n_tokens : int, default=16
        Learned tokens, put between the class token and the patches of every picture. 0 is none, and then towers other
        than open_clip's own VisionTransformer do as well.
    tune_norms : bool, default=True
        Whether weights and biases of all LayerNorms of the image tower learn.
    tune_head : bool, default=True
        Whether the linear layer learns, which begins as the class text.
    label_smoothing : float, default=0.1
        Share of each label given to all classes alike.
    max_iter : int, default=50
        Epochs of the last step; 0 stops after the teacher.
    learning_rate : float, default=0.004
        Of AdamW; constant.
    batch_size : int, default=512
        Pictures per step; what is left over at the end of an epoch waits for the next.
    weight_decay : float, default=0.01
        Of AdamW; not for biases.
    augmentation : {"nola", "strong", "crop_flip"} or None, default="nola"
        What the tower sees of each picture in training. "nola": a crop of 20 to 100 % of the area, mirrored half of the
        time, with other colours, blurred, and half of the time tilted. Where left and right matter, or colour does,
        "crop_flip" or None.
    n_workers : int, default=None
        Threads that read pictures. None is one per core, at most 8.
    store : "memory", path or None, default="memory"
        Where features are kept, see `CLIPFeatures`.
    %(tuning)s

    Attributes
    ----------
    classes_ : ndarray of shape (K,)
        Labels of the class text, sorted; never taken from y.
    pseudo_rows_ : ndarray of shape (m,)
        Positions in X of the pictures whose labels were trusted.
    pseudo_labels_ : ndarray of shape (m,)
        These labels.
    pseudo_confidence_ : ndarray of shape (m,)
        Their zero-shot probabilities.
    aligned_teacher_ : Pipeline
        The second encoder and its head, fitted: a classifier of pictures by itself.
    zero_shot_ : object or None
        The fitted text-side estimator; None where an array was given.
    prototypes_ : ndarray of shape (K, d)
        Unit rows of the class text.
    coef_ : ndarray of shape (K, d)
        The linear layer, to be multiplied with projections that are not normalised.
    %(tuned)s

    See Also
    --------
    UnsupervisedGDA : Names and unlabelled features, in closed form.
    TimmClassifier : A network of timm, from labels.

    Notes
    -----
    ``early_stopping`` looks at held-out pictures, too, but at their teacher's labels: it is the agreement with the
    teacher that grows. The published code keeps the epoch that is best on labelled validation pictures.

    Projections are not normalised before the linear layer, as published: with class text of unit length in it the
    logits begin about ten times smaller than zero-shot ones.

    The second encoder reads pictures as it is used to; the published code gives DINO pixels normalised for CLIP. Its
    features are those of the plain pictures and computed once, and they are centred and brought to a common scale for
    the published head, so that their unit plays no part.

    A class that is the largest logit of no picture takes from those where it is the second or third; one that finds
    none there is reported by a warning.

    Cost: a pass of both encoders for each picture, then in each epoch one of the image tower, forwards and backwards.
    Prediction needs the image tower alone. Learned numbers: ``n_tokens * W + K * d`` and the norms.

    References
    ----------
    .. [1] M. A. Imam et al., "CLIP meets DINO for Tuning Zero-Shot Classifier using Unlabeled Image Collections",
       2024, arXiv:2411.19346.

    Examples
    --------
    >>> from skclip import ZeroShotClassifier
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import NoLAClassifier
    >>> world = make_picture_world(64, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    >>> text = ZeroShotClassifier(class_names=world.target_names, templates="a photo of a {}")
    >>> clf = NoLAClassifier("skclip-tiny", zero_shot=text, max_iter=1, random_state=0).fit(world.images)
    >>> clf.predict_proba(world.images[:2]).shape
    (2, 4)
    >>> clf.aligned_teacher_.predict(world.images[:2]).shape
    (2,)
    """

    _encodes_text = False
    _parameter_constraints: dict[str, list[Any]] = {
        **TRAINING_CONSTRAINTS,
        **PICTURE_CONSTRAINTS,
        "zero_shot": [HasMethods(["fit"]), "array-like", None],
        "teacher": [HasMethods(["fit", "transform"]), None],
        "teacher_head": [HasMethods(["fit", "predict"]), None],
        "top_fraction": [Interval(Real, 0, 1, closed="both")],
        "min_per_class": [Interval(Integral, 1, None, closed="left")],
        "n_tokens": [Interval(Integral, 0, None, closed="left")],
        "tune_norms": ["boolean"],
        "tune_head": ["boolean"],
        "label_smoothing": [Interval(Real, 0, 1, closed="left")],
        "augmentation": [StrOptions({"nola", "strong", "crop_flip"}), None],
    }
    _parameter_constraints.pop("class_names")  # those of the `zero_shot` classifier
    _parameter_constraints.pop("min_crop")  # that of each augmentation

    def __init__(
        self,
        model: str | None = None,
        *,
        zero_shot: Any = None,
        teacher: Any = None,
        teacher_head: Any = None,
        top_fraction: float = 0.2,
        min_per_class: int = 16,
        n_tokens: int = 16,
        tune_norms: bool = True,
        tune_head: bool = True,
        label_smoothing: float = 0.1,
        max_iter: int = 50,
        learning_rate: float = 0.004,
        batch_size: int = 512,
        weight_decay: float = 0.01,
        augmentation: str | None = "nola",
        n_workers: int | None = None,
        store: str | Path | None = "memory",
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        warm_start: bool = False,
        checkpoint: str | PathLike[str] | None = None,
        distributed: bool = False,
        device: str = "auto",
        precision: str = "auto",
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.model = model
        self.zero_shot = zero_shot
        self.teacher = teacher
        self.teacher_head = teacher_head
        self.top_fraction = top_fraction
        self.min_per_class = min_per_class
        self.n_tokens = n_tokens
        self.tune_norms = tune_norms
        self.tune_head = tune_head
        self.label_smoothing = label_smoothing
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.augmentation = augmentation
        self.n_workers = n_workers
        self.store = store
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.warm_start = warm_start
        self.checkpoint = checkpoint
        self.distributed = distributed
        self.device = device
        self.precision = precision
        self.random_state = random_state
        self.verbose = verbose

    # weights could not say the same of the three steps
    def fit(self, X: Any, y: ArrayLike | None = None) -> Self:  # type: ignore[override]
        """Learn from pictures without labels.

        Parameters
        ----------
        %(pictures)s
        y : array-like of shape (n,), default=None
            Not read, so that labels, -1 for unlabelled pictures, or nothing give the same result.

        %(self)s

        Raises
        ------
        %(raises_tuning)s
            Also if there is no class text, it is of another model, the teacher gives no matrix, or the model's image
            tower takes no tokens.

        Warns
        -----
        SkclipWarning
            If the class text finds no picture for some of the classes.
        """
        return self._fit(X, [] if y is None else y, None)

    def logits(self, X: Any) -> NDArray:
        """What the linear layer makes of the tuned tower's projections.

        Parameters
        ----------
        %(pictures)s

        Returns
        -------
        %(logits_array)s
        """
        return self._projections(X).astype(np.float64) @ self.coef_.T

    def with_classes(self, class_names: ClassNames) -> Self:
        """Refused: each class has learned a row of its own.

        Parameters
        ----------
        class_names : {label: str} or list of str

        Raises
        ------
        ValueError
            Always. Fit again with the new classes, which needs no labels.
        """
        raise ValueError(
            "NoLAClassifier has learned a row for each class of fit, and new ones have none. Fit again with the new "
            "classes in zero_shot, which needs no labels."
        )

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = False
        return tags

    def _model_name(self) -> str:
        of_text = getattr(self.zero_shot, "model", None)
        return self.model or of_text or DEFAULT_MODEL

    def _names(self, classes: NDArray) -> list[str]:
        return [str(label) for label in classes.tolist()]

    def _examples(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None) -> Examples:
        """The pictures with the teacher's labels."""
        forget_fit(self)
        pictures = check_pictures(X, type(self).__name__)
        n_labels = len(np.asarray(y))
        if n_labels not in (0, len(pictures)):
            raise ValueError(f"X holds {len(pictures)} pictures and y {n_labels} labels; pass y=None, it is not read.")
        self._check_tower()
        frozen = CLIPFeatures(
            self._model_name(), device=self.device, precision=self.precision, n_workers=self.n_workers, store=self.store
        )
        rows = frozen.transform(pictures)
        scale = self._read_text(rows.shape[1])
        self._trust(cosine_logits(rows, self.prototypes_, scale))
        teacher = (frozen if self.teacher is None else clone(self.teacher)).fit(pictures, None)
        features = _matrix(teacher.transform(pictures), len(pictures))
        head = self._new_head().fit(features[self.pseudo_rows_], self.pseudo_labels_)
        self.aligned_teacher_ = Pipeline([("teacher", teacher), ("head", head)])
        # of several processes without a random_state each has drawn a head of its own
        processes = join_processes(resolve_device(self.device), self.distributed)
        codes = processes.from_main(np.searchsorted(self.classes_, head.predict(features)))
        return Examples(pictures, codes, None)

    def _check_tower(self) -> None:
        """Refuse a tower that takes no tokens, or has no norms, before hours are spent on the teacher."""
        from skclip._backbones import OpenedTowerError, VisionTower

        backbone = load_backbone(self._model_name(), device=self.device, precision="float32")
        tower = VisionTower(backbone.module, backbone.card.name)
        checks = {"n_tokens": lambda: tower.width, "tune_norms": lambda: self._norms.start(backbone.module)}
        for parameter, check in checks.items():
            value = getattr(self, parameter)
            try:
                if value:
                    check()
            except OpenedTowerError as error:
                raise OpenedTowerError(
                    f"{parameter}={value!r} does not go with the image tower of {backbone.card.name!r}, a "
                    f"{type(backbone.module.visual).__name__}. NoLAClassifier(n_tokens=0) does with LayerNorms alone, "
                    "NoLAClassifier(n_tokens=0, tune_norms=False) tunes its linear layer, with every model."
                ) from error

    def _read_text(self, width: int) -> float:
        """Set ``classes_``, ``prototypes_`` and ``zero_shot_``; returns the multiplier of the zero-shot cosines."""
        if self.zero_shot is None:
            raise ValueError(
                "NoLAClassifier needs class text: pass zero_shot=ZeroShotClassifier(class_names={label: name})."
            )
        zero_shot, model = self.zero_shot, self._model_name()
        named = getattr(zero_shot, "model", None)
        if named is not None and not same_model(named, model):
            raise ValueError(
                f"zero_shot__model={named!r}, but model={model!r} is tuned; features of two models do not compare. "
                "Leave zero_shot__model=None."
            )
        if isinstance(zero_shot, ZeroShotClassifier) and named is None and zero_shot.prototypes is None:
            zero_shot = clone(zero_shot).set_params(model=model)
        text = resolve_text(zero_shot, None, width, None)
        assert text is not None
        if len(text.prototypes) < 2:
            raise ValueError("zero_shot knows one class only; NoLAClassifier needs at least two classes.")
        self.classes_ = np.arange(len(text.prototypes)) if text.estimator is None else text.estimator.classes_
        self.prototypes_, scale, self.zero_shot_ = text
        return scale

    def _trust(self, logits: NDArray) -> None:
        """Choose the pictures whose zero-shot labels are trusted."""
        n, n_classes = logits.shape
        chosen = most_confident(logits, n_per_class(n, n_classes, self.top_fraction, self.min_per_class))
        self.pseudo_rows_, self.pseudo_confidence_ = chosen.rows, chosen.confidences
        self.pseudo_labels_ = self.classes_[chosen.codes]
        if len(np.unique(chosen.codes)) < 2:
            raise ValueError(
                f"The class text assigns all {n} pictures to one class, {self.pseudo_labels_[0].item()!r}, so that "
                f"there is nothing to learn; with min_per_class={self.min_per_class} none is left for another. Are the "
                "names those of what the pictures show?"
            )
        missing = np.setdiff1d(np.arange(n_classes), chosen.codes)
        if missing.size:
            warnings.warn(
                f"The class text finds no picture of {self.classes_[missing[:5]].tolist()} ({len(missing)} of "
                f"{n_classes} classes), so they cannot be learned. Are there any in X?",
                SkclipWarning,
                stacklevel=stack_level(),
            )

    def _new_head(self) -> Any:
        if self.teacher_head is not None:
            return clone(self.teacher_head)
        seed = check_random_state(self.random_state).randint(2**31 - 1)
        return _Perceptron(device=self.device, random_state=seed, verbose=self.verbose)

    def _is_of_classes(self) -> bool:
        return True

    def _start(self, setting: Setting) -> Tensors:
        import torch

        if not (self.n_tokens or self.tune_norms or self.tune_head):
            raise ValueError("With n_tokens=0, tune_norms=False and tune_head=False nothing is left to learn.")
        start = {"head": torch.tensor(self.prototypes_, dtype=torch.float32)}
        if self.n_tokens:
            width = setting.vision.width
            limit = (6 / (3 * _PATCH**2 + width)) ** 0.5
            start["tokens"] = torch.empty(self.n_tokens, width).uniform_(-limit, limit, generator=setting.generator)
        if self.tune_norms:
            start.update(self._norms.start(setting.backbone.module))
        return start

    _norms = LayerNorms(("vision",))

    def _text(self, learned: Tensors, setting: Setting) -> torch.Tensor:
        return learned["head"]

    def _image(
        self, learned: Tensors, setting: Setting, inputs: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return setting.vision(inputs, **self._in_place(learned, setting))

    def _image_encoder(self, learned: Tensors, setting: Setting) -> Callable[[torch.Tensor], torch.Tensor]:
        options = self._in_place(learned, setting)  # once for all batches
        return lambda inputs: setting.vision(inputs, **options)

    def _in_place(self, learned: Tensors, setting: Setting) -> dict[str, Any]:
        """What the image tower is to be called with."""
        from skclip._backbones import VisualPrompts

        options: dict[str, Any] = {}
        if self.n_tokens:
            options["prompts"] = VisualPrompts([learned["tokens"]], place="after_cls")
        if self.tune_norms:
            options["weights"] = self._norms.overrides(setting.backbone.module, learned)
        return options

    def _scores(self, step: Step) -> torch.Tensor:
        image = step.raw_image.float()
        with in_float32(image):
            return image @ step.learned["head"].T

    def _terms(self, setting: Setting) -> dict[str, Term]:
        def smoothed(step: Step) -> torch.Tensor:
            return cross_entropy(step.logits, step.batch.codes, step.batch.weights, self.label_smoothing)

        return {"cross_entropy": smoothed}

    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        from skclip.tuning._engine import Recipe

        return Recipe(
            max_iter=self.max_iter,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            optimizer="adamw",
            weight_decay=self.weight_decay,
            schedule="constant",
            n_iter_no_change=self.n_iter_no_change if self.early_stopping else None,
        )

    def _groups(self) -> dict[str, Group]:
        from skclip.tuning._engine import Group

        groups = {"*.bias": Group(weight_decay=0.0)} if self.tune_norms else {}
        return groups if self.tune_head else {**groups, "head": Group(lr=0.0)}

    def _augmentation(self) -> Any:
        from skclip._media import Augmentation

        return None if self.augmentation is None else Augmentation(self.augmentation)

    def _publish(self, state: dict[str, NDArray], setting: Setting) -> None:
        self.coef_ = state["head"]


def _matrix(features: Any, n: int) -> NDArray:
    """What a teacher gives, as one row of numbers for each picture."""
    features = features.toarray() if hasattr(features, "toarray") else np.asarray(features)
    if features.ndim != 2 or len(features) != n:
        raise ValueError(
            f"teacher gives an array of shape {features.shape} for {n} pictures; it must be one row for each."
        )
    return features
