"""What all estimators have in common that tune prompts or weights of CLIP by gradient."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from copy import copy
from functools import partial
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from types import CodeType, FunctionType
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.frozen import FrozenEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skclip._backbones import (
    DEFAULT_MODEL,
    device_of_fitted,
    load_backbone,
    resolve_device,
    resolve_precision,
)
from skclip._media import are_pictures, check_images
from skclip.tuning._losses import cross_entropy
from skclip.tuning._processes import join_processes
from skclip.tuning._setting import Setting, Step, Term, cosine_scores
from skclip.utils._arrays import check_features, check_weights, first_view, take_rows, unit_rows
from skclip.utils._base import SkclipBase, forget_fit, unchanged_on_failure
from skclip.utils._class_text import ClassText, warn_if_guessing
from skclip.utils._classifier import LogitsMixin
from skclip.utils._cosine import cosine_logits
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames, align_names
from skclip.utils._params import Interval, StrOptions, check_parameters
from skclip.utils._training import Training, check_n_classes, check_target, check_training, validation_split

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Batch, Group, Inputs, Recipe, Trained

    Tensors = dict[str, torch.Tensor]

TRAINING_CONSTRAINTS: dict[str, list[Any]] = {
    "model": [str, None],
    "class_names": [Mapping, "array-like", None],
    "max_iter": [Interval(Integral, 0, None, closed="left")],
    "learning_rate": [Interval(Real, 0, None, closed="neither")],
    "batch_size": [Interval(Integral, 1, None, closed="left")],
    "weight_decay": [Interval(Real, 0, None, closed="left")],
    "early_stopping": ["boolean"],
    "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
    "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
    "warm_start": ["boolean"],
    "checkpoint": [str, PathLike, None],
    "distributed": ["boolean"],
    "device": [str],
    "precision": [StrOptions({"auto", "float32", "bf16", "fp16"})],
    "random_state": ["random_state"],
    "verbose": ["verbose"],
}
SGD_CONSTRAINTS: dict[str, list[Any]] = {
    **TRAINING_CONSTRAINTS,
    "momentum": [Interval(Real, 0, 1, closed="left")],
}
PICTURE_CONSTRAINTS: dict[str, list[Any]] = {
    "augmentation": [StrOptions({"crop_flip"}), None],
    "min_crop": [Interval(Real, 0, 1, closed="right")],
    "n_workers": [Interval(Integral, 1, None, closed="left"), None],
    "store": [str, Path, None],
}

# what it was that a checkpoint was written for does not change with these
_NOT_OF_THE_RUN = ("checkpoint", "device", "distributed", "n_workers", "store", "verbose", "warm_start")


class Before(NamedTuple):
    """What was learned before, of which model and for which classes."""

    state: dict[str, NDArray]
    weights_digest: str
    classes: NDArray


class Examples(NamedTuple):
    """Pictures to learn from.

    Attributes
    ----------
    X : ndarray of shape (n, V, width), or a sequence of n pictures
        Rows of features, of every view, as the method reads them; or what `check_images` returns.
    codes : ndarray of shape (n,)
        Class of each picture, 0..K-1.
    weights : ndarray of shape (n,) or None
    """

    X: Any
    codes: NDArray
    weights: NDArray | None

    def take(self, rows: NDArray) -> Examples:
        weights = None if self.weights is None else self.weights[rows]
        return Examples(take_rows(self.X, rows), self.codes[rows], weights)


@fill_doc
class TunedClassifier(LogitsMixin, SkclipBase, ABC):
    """Base of the classifiers that train a few tensors of CLIP, or beside it, by gradient.

    A method says where training starts (`_start`), how its tensors change the features of the classes (`_text`) and of
    the pictures (`_image`), and what is minimised (`_terms`).
    """

    _set_last = "state_delta_"
    # `CLIPClassifier` fills in the model of what encodes class names
    _encodes_text = True

    model: str | None
    classes_: NDArray
    state_delta_: dict[str, NDArray]

    def with_classes(self, class_names: ClassNames) -> Self:
        """A new classifier, fitted, that knows other classes by what was learned; this one is left as it is.

        Parameters
        ----------
        class_names : {label: str} or list of str
            The new classes, all of them. A list makes the names the labels, and is refused where the labels of this
            classifier are numbers.

        Returns
        -------
        self : object
            A copy that shares what was learned.

        Raises
        ------
        ValueError
            If a list could be misread, what was learned belongs to single classes, or the model's weights are no longer
            those of `fit`.
        """
        check_is_fitted(self)
        if not isinstance(class_names, Mapping) and self.classes_.dtype.kind not in "US":
            raise ValueError(
                f"The labels of this classifier are numbers ({self.classes_[:3].tolist()}, ...), so a list of names "
                "does not tell their labels. Write with_classes({label: name, ...})."
            )
        new = copy(self)
        new.class_names = class_names
        new.classes_, _ = align_names(class_names)
        new.class_names_ = np.asarray(new._names(new.classes_))
        new._encode_classes(new._restored())
        return new

    # ------------------------------------------------------------------ what a method defines

    @abstractmethod
    def _start(self, setting: Setting) -> Tensors:
        """Where training starts: tensors by name."""

    @abstractmethod
    def _text(self, learned: Tensors, setting: Setting) -> torch.Tensor:
        """Projections of the classes, (K, d)."""

    @abstractmethod
    def _image(
        self, learned: Tensors, setting: Setting, inputs: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        """Projections of pictures, (b, d); `generator` where it is for training."""

    def _scores(self, step: Step) -> torch.Tensor:
        """Logits of a batch, (b, K)."""
        return cosine_scores(step)

    def _terms(self, setting: Setting) -> dict[str, Term]:
        """What is summed to the loss, by name, each with its weight in it."""
        return {"cross_entropy": label_loss}

    @abstractmethod
    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        """How to train with so many pictures."""

    def _goes_on(self) -> bool:
        """Whether training goes on from what was learned before, if anything was."""
        return self.warm_start

    def _is_of_classes(self) -> bool:
        """Whether what is learned belongs to single classes."""
        return False

    def _prepare(self, setting: Setting, examples: Examples) -> None:
        """Fill ``setting.constants`` before training begins."""

    def _groups(self) -> dict[str, Group]:
        """Tensors whose learning rate or weight decay differs from the others'."""
        return {}

    # a function that takes the place of the sum's backward pass, see `train`
    _gradients: Callable[[Any, Tensors], None] | None = None

    # ------------------------------------------------------------------ fit

    def _fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None) -> Self:
        # a warm start that is interrupted goes on from where it began
        with unchanged_on_failure(self) if self.warm_start else nullcontext(), self._interruptible():
            check_parameters(self)
            self._check_checkpoint()
            processes = join_processes(resolve_device(self.device), self.distributed)
            before = None
            if self._goes_on() and hasattr(self, "state_delta_"):
                before = Before(self.state_delta_, self.weights_digest_, self.classes_)
            examples = self._examples(X, y, sample_weight)
            classes, names = self.classes_, self._names(self.classes_)
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
            setting = self._setting(classes, names, str(processes.device), seed)
            # without a random_state each process has drawn its own
            setting.generator.set_state(processes.from_main(setting.generator.get_state()))
            trained = self._train(setting, examples, before)
            self.loss_curve_, self.loss_terms_ = trained.loss_curve, trained.loss_terms
            self.validation_scores_, self.n_iter_ = trained.validation_curve, trained.n_iter
            self._keep(setting, trained.learned)
        return self

    @contextmanager
    def _interruptible(self) -> Iterator[None]:
        """Say of Ctrl-C what is kept, where the training itself has not: before its first epoch, or after its last."""
        try:
            yield
        except KeyboardInterrupt as error:
            if error.args:
                raise
            path = self.checkpoint
            kept = "nothing is kept" if path is None else f"checkpoint={str(path)!r} keeps what it held"
            raise KeyboardInterrupt(f"{type(self).__name__}: interrupted outside training; {kept}.") from error

    def _keep(self, setting: Setting, state: dict[str, NDArray]) -> None:
        """Set what prediction reads."""
        self.classes_, self.class_names_ = setting.classes, np.asarray(setting.names)
        self.logit_scale_ = setting.logit_scale
        self.weights_digest_ = setting.backbone.digest
        self.state_digest_ = _digest(state, setting.backbone.digest)
        self._publish(state, setting)
        self._encode_classes(setting, state)
        self.state_delta_ = state

    def _publish(self, state: dict[str, NDArray], setting: Setting) -> None:
        """Set the attributes under which a method shows what was learned."""

    def _encode_classes(self, setting: Setting, state: dict[str, NDArray] | None = None) -> None:
        """Set ``text_features_``, the unit rows of the classes."""
        import torch
        from torch.nn.functional import normalize

        with torch.no_grad():
            rows = self._text(self._tensors(setting, state), setting)
        self.text_features_ = normalize(rows.float(), dim=-1).cpu().numpy()

    def _tensors(self, setting: Setting, state: dict[str, NDArray] | None = None) -> Tensors:
        """What was learned, on the device."""
        import torch

        given = self.state_delta_ if state is None else state
        return {name: torch.tensor(value, device=setting.device) for name, value in given.items()}

    def _train(self, setting: Setting, examples: Examples, before: Before | None) -> Trained:
        import torch

        from skclip.tuning._engine import train

        given, held = examples, None
        if self.early_stopping:
            seed = int(torch.randint(2**31 - 1, (1,), generator=setting.generator))
            kept, held_rows = validation_split(examples.codes, self.validation_fraction, np.random.RandomState(seed))
            examples, held = examples.take(kept), examples.take(held_rows)
        self._prepare(setting, examples)
        learned = self._start(setting)
        if before is not None:
            self._check_same_kind(before, setting, learned)
            learned = {name: torch.tensor(value) for name, value in before.state.items()}
        terms = self._terms(setting)

        def losses(batch: Batch) -> dict[str, torch.Tensor]:
            step = Step(self, setting, learned, batch)
            return {name: term(step) for name, term in terms.items()}

        validate = None if held is None else self._validation(setting, learned, held)
        return train(
            learned,
            losses,
            self._inputs(examples, setting, training=True),
            examples.codes,
            examples.weights,
            self._recipe(len(examples.codes), len(setting.classes)),
            groups=self._groups(),
            generator=setting.generator,
            device=setting.device,
            precision=resolve_precision(self.precision, setting.device),
            gradients=self._gradients,
            validate=validate,
            checkpoint=self.checkpoint,
            fingerprint={} if self.checkpoint is None else self._fingerprint(setting, given, before),
            distributed=self.distributed,
            verbose=self.verbose,
            name=type(self).__name__,
        )

    def _check_same_kind(self, before: Before, setting: Setting, start: Tensors) -> None:
        """Refuse to go on from what was learned of something else."""
        if before.weights_digest != setting.backbone.digest:
            raise ValueError(
                f"What was learned before belongs to other weights (digest {before.weights_digest[:12]}) than those of "
                f"{self._model_name()!r} ({setting.backbone.digest[:12]}). Fit a clone."
            )
        if self._is_of_classes() and not np.array_equal(before.classes, setting.classes):
            raise ValueError(
                f"What {type(self).__name__} has learned belongs to the classes {before.classes[:5].tolist()}, so that "
                f"it cannot go on with {setting.classes[:5].tolist()}. Fit a clone."
            )
        shapes, wanted = (
            {name: tuple(value.shape) for name, value in given.items()} for given in (before.state, start)
        )
        if shapes != wanted:
            raise ValueError(
                f"warm_start=True and partial_fit go on from tensors of shapes {shapes}, but the parameters now ask "
                f"for {wanted}. Fit a clone, or set the parameters back."
            )

    def _validation(self, setting: Setting, learned: Tensors, held: Examples) -> Callable[[], float]:
        """A function that tells the share of held-out pictures that are recognised now."""
        import torch

        from skclip.tuning._engine import Batch

        inputs = self._inputs(held, setting, training=False)
        parts = np.array_split(np.arange(len(held.codes)), -(-len(held.codes) // max(self.batch_size, 32)))
        shares = np.ones(len(held.codes)) if held.weights is None else held.weights

        def validate() -> float:
            right, text = 0.0, None
            with torch.no_grad():
                for rows, part in zip(parts, inputs.batches(parts, 0, setting.generator)):
                    codes = torch.from_numpy(held.codes[rows]).to(setting.device)
                    step = Step(self, setting, learned, Batch(rows, part, codes, None, 0, 0, None))
                    if text is not None:
                        vars(step)["text"] = text
                    hits = (self._scores(step).argmax(dim=1) == codes).cpu().numpy()
                    text = vars(step).get("text")
                    right += float(shares[rows] @ hits)
            return right / float(shares.sum())

        return validate

    @abstractmethod
    def _examples(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None) -> Examples:
        """Check what `fit` is given, and set ``classes_``."""

    @abstractmethod
    def _inputs(self, examples: Examples, setting: Setting, *, training: bool) -> Inputs:
        """What the training loop reads of the pictures; without views where it is not for training."""

    # ------------------------------------------------------------------ classes and model

    def _model_name(self) -> str:
        return DEFAULT_MODEL if self.model is None else self.model

    def _names(self, classes: NDArray) -> list[str]:
        """Name of each class, underscores read as spaces."""
        return names_of(self.class_names, classes, type(self).__name__)

    def _setting(self, classes: NDArray, names: list[str], device: str, seed: int = 0) -> Setting:
        """The model and these classes; what is fitted draws nothing, so that prediction leaves `random_state` alone."""
        import torch

        backbone = load_backbone(self._model_name(), device=device, precision="float32")
        # as the card has it, where it does: what the weights give differs in the last digits of half precision
        own = backbone.card.logit_scale or backbone.logit_scale
        scale = getattr(self, "logit_scale", None)
        return Setting(
            backbone, classes, names, own if scale is None else float(scale), torch.Generator().manual_seed(seed)
        )

    def _restored(self) -> Setting:
        """The setting of a fitted classifier, with the weights it was fitted with."""
        device, _ = device_of_fitted(self.device, self.precision)
        setting = self._setting(self.classes_, self.class_names_.tolist(), device)
        if setting.backbone.digest != self.weights_digest_:
            raise ValueError(
                f"The weights of {self._model_name()!r} have changed since fit (digest {self.weights_digest_[:12]} "
                f"then, {setting.backbone.digest[:12]} now), so that what was learned does not fit them. Fit again."
            )
        return setting

    def _check_checkpoint(self) -> None:
        if self.checkpoint is not None and not isinstance(self.random_state, Integral):
            raise ValueError(
                f"checkpoint={str(self.checkpoint)!r} needs an integer random_state, so that the run that goes on is "
                f"the one that was begun; got random_state={self.random_state!r}."
            )

    def _described(self, but: Collection[str]) -> dict[str, str]:
        """This method with its parameters, alike in every process."""
        params = {name: value for name, value in self.get_params(deep=False).items() if name not in but}
        return {"estimator": type(self).__name__, **{name: _shown(value) for name, value in sorted(params.items())}}

    def _fingerprint(self, setting: Setting, examples: Examples, before: Before | None) -> dict[str, str]:
        """What a run depends on, so that a checkpoint is not taken up by another."""
        return {
            **self._described(_NOT_OF_THE_RUN),
            "weights": setting.backbone.digest,
            "what training starts from": "None" if before is None else _digest(before.state, ""),
            "classes": repr(setting.classes.tolist()),
            "names": repr(setting.names),
            "y": _hash(examples.codes),
            "sample_weight": "None" if examples.weights is None else _hash(examples.weights),
            "X": _hash(examples.X),
        }


@fill_doc
class PromptClassifier(TunedClassifier):
    """Base of the methods that leave the image tower as it is, and so learn from features."""

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Learn from labelled features.

        Parameters
        ----------
        %(X_fit)s
        %(y_fit)s
        %(weights_fit)s

        %(self)s

        Raises
        ------
        %(raises_tuning)s

        Warns
        -----
        SkclipWarning
            If the class names recognise no more of the pictures than chance, as where features and text come from two
            models.
        """
        return self._fit(X, y, sample_weight)

    def logits(self, X: Any) -> NDArray:
        """Scaled cosines of each row with each class.

        %(logits)s
        """
        check_is_fitted(self)
        rows = unit_rows(first_view(*check_features(self, X)))
        return cosine_logits(rows, self.text_features_, self.logit_scale_)

    def _image(
        self, learned: Tensors, setting: Setting, inputs: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return inputs

    def _examples(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None) -> Examples:
        if are_pictures(X):
            raise ValueError(
                f"{type(self).__name__} learns from features, but X holds pictures. Put CLIPFeatures("
                f"{self._model_name()!r}) before it, by CLIPClassifier(classifier=...) or in a pipeline."
            )
        training = check_training(self, X, y, sample_weight)
        rows = self._rows(training.X).astype(np.float32, copy=False)
        views = rows.reshape(len(training.codes), training.n_views, -1)
        return Examples(views, training.codes, training.weights)

    def _rows(self, X: NDArray) -> NDArray:
        """Rows of X as `_image` reads them."""
        return unit_rows(X)

    def _prepare(self, setting: Setting, examples: Examples) -> None:
        check_width(examples.X, setting.backbone.card.dim, self._model_name())
        text = setting.class_text("{}.")
        known = ClassText(text.cpu().numpy(), setting.logit_scale, None)
        plain = Training(examples.X[:, 0], examples.codes, None, 1, np.arange(len(examples.codes)))
        warn_if_guessing(plain, known, source=f"model={self._model_name()!r}")

    def _inputs(self, examples: Examples, setting: Setting, *, training: bool) -> Inputs:
        return feature_inputs(examples, setting, training=training)


@fill_doc
class TowerClassifier(TunedClassifier):
    """Base of the methods that can change the image tower, and so learn from pictures.

    Where one leaves the image tower as it is, pictures are encoded once, and features do as well.
    """

    _reads_pictures = True
    _n_least_classes = 2

    def _changes_images(self) -> bool:
        """Whether the image tower is changed."""
        return True

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Learn from labelled pictures.

        Parameters
        ----------
        %(pictures)s
        %(y_fit)s
        %(weights_fit)s

        %(self)s

        Raises
        ------
        %(raises_tuning)s
            Also if a picture cannot be read, or the model's image tower is of a kind that cannot be tuned so.
        """
        return self._fit(X, y, sample_weight)

    def logits(self, X: Any) -> NDArray:
        """Scaled cosines of each picture with each class.

        Parameters
        ----------
        %(pictures)s
            Where the image tower is as it came, also features of shape (n, d) or (n, V, d); of V views the first is
            read.

        Returns
        -------
        %(logits_array)s
        """
        check_is_fitted(self)
        if not self._are_features(X):
            return cosine_logits(self.encode_image(X), self.text_features_, self.logit_scale_)
        rows = unit_rows(first_view(*check_features(self, X)))
        check_width(rows, self.text_features_.shape[1], self._model_name())
        return cosine_logits(rows, self.text_features_, self.logit_scale_)

    def encode_image(self, X: Any) -> NDArray[np.float32]:
        """Features of pictures by the tuned tower.

        Parameters
        ----------
        %(pictures)s

        Returns
        -------
        ndarray of shape (n, d), float32
            Unit rows, in input order.

        Raises
        ------
        ValueError
            If a picture cannot be read.
        """
        return unit_rows(self._projections(X))

    def _projections(self, X: Any) -> NDArray[np.float32]:
        """Projections of pictures by the tuned tower, (n, d)."""
        from skclip.features._extraction import Execution, encode_pictures
        from skclip.features._readings import tuned_reading
        from skclip.tuning._network_training import autocast

        check_is_fitted(self)
        pictures = check_pictures(X, type(self).__name__)
        setting = self._restored()
        device, precision = device_of_fitted(self.device, self.precision)
        if not self._changes_images():
            return self._encoded(pictures, device, precision)
        precision = resolve_precision(precision, setting.device)
        encode = self._image_encoder(self._tensors(setting), setting)

        def project(inputs: torch.Tensor) -> torch.Tensor:
            with autocast(setting.device, precision):
                return encode(inputs).float()

        execution = Execution(
            self._model_name(), device, "float32", "auto", self.store, n_workers=self.n_workers, verbose=self.verbose
        )
        # one state can be read in several ways, such as tokens that replace others or come beside them
        way = self._described((*_NOT_OF_THE_RUN, "model", "class_names", "random_state", "precision"))
        reading = tuned_reading(f"{self.state_digest_} {way} {precision}", setting.backbone.card.dim, project)
        return encode_pictures(pictures, range(1), execution, seed=0, on_error="raise", reading=reading)[:, 0]

    def as_features(self) -> Any:
        """The tuned tower as a transformer, to stand before an adapter or a detector.

        Returns
        -------
        TunedCLIPFeatures
            Fitted; ``transform`` is the `encode_image` of now, whatever is fitted to this classifier later.
        """
        from skclip.tuning._tuned_features import TunedCLIPFeatures

        check_is_fitted(self)
        return TunedCLIPFeatures(FrozenEstimator(copy(self))).fit()

    def _image_encoder(self, learned: Tensors, setting: Setting) -> Callable[[torch.Tensor], torch.Tensor]:
        """The tuned tower as one function of normalised pictures, which several threads may call at once."""
        return lambda inputs: self._image(learned, setting, inputs)

    def _are_features(self, X: Any) -> bool:
        """Whether X holds features, which only an image tower as it came goes with."""
        return not self._changes_images() and not are_pictures(X)

    def _examples(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None) -> Examples:
        if self._are_features(X):
            training = check_training(self, X, y, sample_weight, n_least=self._n_least_classes)
            views = unit_rows(training.X).astype(np.float32).reshape(len(training.codes), training.n_views, -1)
            return Examples(views, training.codes, training.weights)
        forget_fit(self)
        pictures = check_pictures(X, type(self).__name__)
        labels = check_target(self, y)
        if len(pictures) != len(labels):
            raise ValueError(f"X holds {len(pictures)} pictures and y {len(labels)} labels; every picture needs one.")
        weights = check_weights(sample_weight, len(labels))
        if weights is not None and not weights.all():
            kept = np.flatnonzero(weights)
            pictures, labels, weights = take_rows(pictures, kept), labels[kept], weights[kept]
        self.classes_, codes = np.unique(labels, return_inverse=True)
        check_n_classes(self, self._n_least_classes)
        if not self._changes_images():
            pictures = self._encoded(pictures, self.device, self.precision)[:, None]
        return Examples(pictures, codes, weights)

    def _encoded(self, pictures: Any, device: str, precision: str) -> NDArray[np.float32]:
        """Unit rows of pictures by the tower as it came, (n, d): those of `CLIPFeatures`, and of its store."""
        from skclip.features._extraction import Execution, encode_pictures

        execution = Execution(
            self._model_name(), device, precision, "auto", self.store, n_workers=self.n_workers, verbose=self.verbose
        )
        return unit_rows(encode_pictures(pictures, range(1), execution, seed=0, on_error="raise")[:, 0])

    def _prepare(self, setting: Setting, examples: Examples) -> None:
        if not self._changes_images():
            check_width(examples.X, setting.backbone.card.dim, self._model_name())

    def _inputs(self, examples: Examples, setting: Setting, *, training: bool) -> Inputs:
        import torch

        from skclip.features._extraction import Execution, picture_transform
        from skclip.tuning._batches import PictureInputs

        if not self._changes_images():
            return feature_inputs(examples, setting, training=training)
        seed = int(torch.randint(2**31 - 1, (1,), generator=setting.generator))
        execution = Execution(self._model_name(), self.device, "float32", "auto", None)
        return PictureInputs(
            examples.X,
            picture_transform(execution),
            setting.backbone.pixel_scale,
            augmentation=self._augmentation() if training else None,
            seed=seed,
            n_workers=self.n_workers,
            device=setting.device,
        )

    def _augmentation(self) -> Any:
        """How a training picture differs from epoch to epoch; None is not at all."""
        from skclip._media import Augmentation

        return None if self.augmentation is None else Augmentation(self.augmentation, (self.min_crop, 1.0))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.three_d_array = True
        tags.input_tags.string = True
        return tags


def feature_inputs(examples: Examples, setting: Setting, *, training: bool) -> Inputs:
    """Views of features, for training in turns."""
    import torch

    from skclip.tuning._batches import FeatureInputs

    views = examples.X if training else examples.X[:, :1]
    return FeatureInputs(torch.tensor(views, device=setting.device))


def sgd_recipe(estimator: Any, max_iter: int) -> Recipe:
    """Momentum and a cosine by epochs after one epoch of warm-up, with which CoOp and its successors train."""
    from skclip.tuning._engine import Recipe

    return Recipe(
        max_iter=max_iter,
        batch_size=estimator.batch_size,
        learning_rate=estimator.learning_rate,
        momentum=estimator.momentum,
        weight_decay=estimator.weight_decay,
        n_iter_no_change=estimator.n_iter_no_change if estimator.early_stopping else None,
    )


def label_loss(step: Step) -> torch.Tensor:
    """Weighted mean cross entropy of the logits of a batch."""
    return cross_entropy(step.logits, step.batch.codes, step.batch.weights)


def names_of(class_names: Any, classes: NDArray, who: str) -> list[str]:
    """The name of each of `classes`, underscores read as spaces; without names, labels that are strings are names."""
    if class_names is None:
        if classes.dtype.kind not in "US":
            shown = ", ".join(f"{label!r}: <its name>" for label in classes[:3].tolist())
            raise ValueError(
                f"{who} learns words around the names of the classes, and labels that are numbers are no names. Write "
                f"class_names={{{shown}{', ...' if len(classes) > 3 else ''}}}."
            )
        names = classes.tolist()
    else:
        known, all_names = align_names(class_names, classes)
        named = dict(zip(known.tolist(), all_names))
        names = [named[label] for label in classes.tolist()]
    return [name.replace("_", " ") for name in names]


def check_width(rows: NDArray, width: int, model: str) -> None:
    """Refuse features that the text of `model` cannot be compared with."""
    if rows.shape[-1] != width:
        raise ValueError(
            f"X has {rows.shape[-1]} features, but the text tower of {model!r} gives {width}; both must come from one "
            "model."
        )


def check_pictures(X: Any, who: str) -> Any:
    """`check_images`, which says what to do with features."""
    shape, kind = getattr(X, "shape", ()), getattr(getattr(X, "dtype", None), "kind", "")
    if kind == "f" and len(shape) in (2, 3):
        raise ValueError(
            f"{who} reads the pictures themselves here, but X is a matrix of numbers of shape {shape}. From features "
            "learn CoOpClassifier and the adapters."
        )
    return check_images(X)


def _digest(state: dict[str, NDArray], weights: str) -> str:
    """Names what was learned, on top of which weights."""
    digest = hashlib.blake2b(weights.encode(), digest_size=16)
    for name, value in sorted(state.items()):
        digest.update(f"{name} {value.dtype} {value.shape}".encode())
        digest.update(np.ascontiguousarray(value).data)
    return digest.hexdigest()


def _shown(value: Any) -> str:
    """`repr` without addresses, and of the whole: a function by its name and code, an array by its contents."""
    if isinstance(value, np.ndarray):
        return _hash(np.asarray(value.tolist(), dtype=str) if value.dtype.kind == "O" else value)
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_shown(key)}: {_shown(one)}' for key, one in value.items())}}}"
    if isinstance(value, list | tuple):
        return f"{type(value).__name__}({', '.join(map(_shown, value))})"
    if hasattr(value, "get_params") and not isinstance(value, type):
        return f"{type(value).__name__}{_shown(value.get_params(deep=False))}"
    if isinstance(value, partial):
        return f"partial{_shown((value.func, value.args, value.keywords))}"
    if not isinstance(value, FunctionType):
        return repr(value)
    closed = [cell.cell_contents for cell in value.__closure__ or () if cell.cell_contents is not value]
    text = repr((_code(value.__code__), _shown([value.__defaults__, value.__kwdefaults__, closed])))
    return f"{value.__module__}.{value.__qualname__} {hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}"


def _code(code: CodeType) -> tuple[Any, ...]:
    """What a function does, without where it is written."""
    constants = [
        _code(one) if isinstance(one, CodeType) else sorted(map(repr, one)) if isinstance(one, frozenset) else repr(one)
        for one in code.co_consts
    ]
    return code.co_code, code.co_names, constants


def _hash(values: Any) -> str:
    """Names the content of an array, or pictures: by content in memory, by path, size and time in files."""
    digest = hashlib.blake2b(digest_size=16)
    if isinstance(values, np.ndarray) and values.dtype.kind != "O":
        digest.update(f"{values.dtype} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
        return digest.hexdigest()
    for value in values:
        digest.update(_named(value))
    return digest.hexdigest()


def _named(picture: Any) -> bytes:
    from skclip._media import content_key, unknown_file

    path = unknown_file(picture)
    if path is None:
        return content_key(picture)
    status = path.stat()
    return f"{path} {status.st_size} {status.st_mtime_ns}".encode()
