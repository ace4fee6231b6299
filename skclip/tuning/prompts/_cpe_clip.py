"""CPE-CLIP: prompts for both towers that learn new classes in sessions."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from skclip.templates._templates import SLOT
from skclip.tuning._prompt_text import PromptLayout
from skclip.tuning._setting import Setting
from skclip.tuning._tuned import PICTURE_CONSTRAINTS, SGD_CONSTRAINTS, Before, Examples, TowerClassifier
from skclip.tuning.prompts._ivlp import depth_of
from skclip.utils._base import unchanged_on_failure
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames, check_labels, rows_of_labels
from skclip.utils._params import Interval, StrOptions
from skclip.utils._training import check_n_classes

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Recipe

    Tensors = dict[str, torch.Tensor]

_PUBLISHED_DEPTH = 12
_MODES = {"replace", "accumulate", "accumulate_same"}


@fill_doc
class CPECLIPClassifier(TowerClassifier):
    """Learn new classes session by session from a few pictures each, without keeping those of earlier sessions.

    Continual parameter-efficient CLIP [1]_: learned tokens stand in every layer of the text tower, and their images
    under one linear map in every layer of the image tower. Nothing else is learned, and nothing of it belongs to a
    class: a class is known by its name, so that earlier ones are forgotten only as far as the tokens move. Later
    sessions move them less, by the share that their classes have of all.

    `fit` is one session. `partial_fit` is the first or the next; prediction is among the classes of all sessions.

    Parameters
    ----------
    %(model_to_tune)s
    class_names : {label: str} or list of str, default=None
        Name of each class; those of sessions to come may be among them. None takes labels that are strings as names.
    n_ctx : int, default=2
        Learned tokens of each layer, of either tower.
    depth : int, default=None
        Layers with learned tokens of their own; 1 is the input alone. None is 12, as published, or all blocks where a
        tower has fewer.
    text_mode : {"replace", "accumulate", "accumulate_same"}, default="replace"
        What the tokens of a layer of the text tower do to those of the layer before: take the place of what its block
        has made of them; come after that; or come after them as they entered that block. The latter two make every
        layer longer by `n_ctx` than the one before.
    vision_mode : {"replace", "accumulate", "accumulate_same"} or None, default="accumulate"
        The same of the image tower. None leaves that tower as it is, so that X may be features.
    template : str, default="{}."
        The words behind the learned tokens, with ``{}`` for the name.
    max_iter : int, default=5
        Epochs of a session.
    batch_size : int, default=4
        Pictures per step.
    base_max_iter : int, default=None
        Epochs of the first session; None is `max_iter`. Published: 5 for CIFAR-100 and miniImageNet, 6 for CUB-200.
    base_batch_size : int, default=32
        Pictures per step of the first session. Published: 32, and 4 for CUB-200.
    learning_rate : float, default=0.1
        Where the learning rate of stochastic gradient descent would be after 50 epochs: it rises from a hundredth of
        this in a line, by the epoch, anew in each session. The first five epochs have 0.001, 0.00298, 0.00496, 0.00694
        and 0.00892.
    momentum, weight_decay : float, default=0.9, 1e-5
        Of stochastic gradient descent; each session begins without momentum.
    regularization : {"balance", "freeze"} or None, default="balance"
        What holds later sessions back: "balance" multiplies the gradients by the share of new classes among all that
        have been seen, itself included; "freeze" learns nothing but the names of the new classes.
    augmentation : {"crop_flip"} or None, default=None
        Whether each epoch sees a random crop of each picture, mirrored half of the time, or the picture as prediction
        does.
    min_crop : float, default=0.08
        Smallest share of a picture's area that a random crop shows.
    n_workers : int, default=None
        Threads that read pictures. None is one per core, at most 8.
    store : "memory", path or None, default="memory"
        Where features of pictures by the tuned tower are kept, so that no picture is encoded twice.
    %(tuning)s

    Attributes
    ----------
    classes_ : ndarray of shape (K,)
        Labels of all sessions, sorted.
    sessions_ : list of ndarray
        Labels of each session, sorted.
    ctx_ : ndarray of shape (depth, n_ctx, w)
        The tokens of each layer of the text tower.
    visual_ctx_ : ndarray of shape (depth, n_ctx, W)
        Their images, the tokens of each layer of the image tower; not there with ``vision_mode=None``.
    %(tuned)s

    See Also
    --------
    MaPLeClassifier : Much the same for classes that come at once, with one map for each layer.
    skclip.metrics.forgetting : How much a series of sessions has lost.

    Notes
    -----
    ``depth n_ctx w + w W + W`` numbers are learned, 0.4 million for ViT-B-16. Training is among the classes of the
    session alone. Each step costs a pass of both towers forwards and backwards; with "accumulate" the last of 12 layers
    of the image tower holds 24 tokens more than the picture.

    Published after the last session, over all classes: 64.60 % on CUB-200 (100 classes and 10 sessions of 10, 5
    pictures each; 81.58 % after the first), 80.52 % on CIFAR-100 and 82.77 % on miniImageNet (60 and 8 sessions of 5).
    Where paper and code differ, this follows the code: the learning rate above in place of the 0.00325 of the paper.
    Its "freeze" is meant to stop the tokens and the map after the first session, and by a slip stops neither; this one
    stops both, so that later sessions add names alone.

    The image tower must be open_clip's own VisionTransformer, but for ``vision_mode=None``: the text-only ablation of
    the paper goes with every image tower. One `checkpoint` is of one session.

    References
    ----------
    .. [1] M. D'Alessandro, A. Alonso, E. Calabrés and M. Galar, "Multimodal Parameter-Efficient Few-Shot Class
       Incremental Learning", ICCV Workshops 2023, arXiv:2303.04751.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import CPECLIPClassifier
    >>> world = make_picture_world(32, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    >>> labels = np.array(world.target)
    >>> clf = CPECLIPClassifier("skclip-tiny", max_iter=2, random_state=0)
    >>> for color in ("red", "blue"):
    ...     rows = [i for i, label in enumerate(labels) if color in label]
    ...     clf = clf.partial_fit([world.images[i] for i in rows], labels[rows])
    >>> [session.tolist() for session in clf.sessions_]
    [['red circle', 'red star'], ['blue circle', 'blue star']]
    >>> clf.predict_proba(world.images[:2]).shape
    (2, 4)
    """

    _n_least_classes = 1  # a session may have pictures of one class; of the first, `classes` may name others
    _parameter_constraints: dict[str, list[Any]] = {
        **SGD_CONSTRAINTS,
        **PICTURE_CONSTRAINTS,
        "n_ctx": [Interval(Integral, 1, None, closed="left")],
        "depth": [Interval(Integral, 1, None, closed="left"), None],
        "text_mode": [StrOptions(_MODES)],
        "vision_mode": [StrOptions(_MODES), None],
        "template": [str],
        "base_max_iter": [Interval(Integral, 0, None, closed="left"), None],
        "base_batch_size": [Interval(Integral, 1, None, closed="left")],
        "regularization": [StrOptions({"balance", "freeze"}), None],
    }

    def __init__(
        self,
        model: str | None = None,
        *,
        class_names: ClassNames | None = None,
        n_ctx: int = 2,
        depth: int | None = None,
        text_mode: str = "replace",
        vision_mode: str | None = "accumulate",
        template: str = "{}.",
        max_iter: int = 5,
        batch_size: int = 4,
        base_max_iter: int | None = None,
        base_batch_size: int = 32,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-5,
        regularization: str | None = "balance",
        augmentation: str | None = None,
        min_crop: float = 0.08,
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
        self.class_names = class_names
        self.n_ctx = n_ctx
        self.depth = depth
        self.text_mode = text_mode
        self.vision_mode = vision_mode
        self.template = template
        self.max_iter = max_iter
        self.batch_size = batch_size
        self.base_max_iter = base_max_iter
        self.base_batch_size = base_batch_size
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.regularization = regularization
        self.augmentation = augmentation
        self.min_crop = min_crop
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

    def _changes_images(self) -> bool:
        return self.vision_mode is not None

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Learn from labelled pictures as the first session; what other sessions have brought is forgotten.

        Parameters
        ----------
        %(pictures)s
            With ``vision_mode=None`` also features of shape (n, d) or (n, V, d); of V views each epoch draws one.
        %(y_fit)s
        %(weights_fit)s

        %(self)s

        Raises
        ------
        %(raises_tuning)s
            Also if a picture cannot be read, or the model's image tower is of a kind that cannot be tuned so.
        """
        with unchanged_on_failure(self):
            self.sessions_: list[Any] = [None]
            return self._fit(X, y, sample_weight)

    def partial_fit(
        self, X: Any, y: ArrayLike, classes: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Learn from the pictures of one more session, whose classes are new.

        Parameters
        ----------
        %(pictures)s
            Or features, as in `fit`.
        %(y_fit)s
        classes : array-like of shape (k,), default=None
            All labels of this session. None is those of y; others need no picture but a name.
        %(weights_fit)s

        %(self)s

        Raises
        ------
        %(raises_tuning)s
            Also if a label is of an earlier session, or this is a classifier made by `with_classes`. The classifier
            is then as it was before.
        """
        with unchanged_on_failure(self):
            earlier = self.sessions_ if hasattr(self, "state_delta_") else []
            if earlier and not np.array_equal(np.sort(np.concatenate(earlier)), self.classes_):
                raise ValueError(
                    "partial_fit cannot continue a classifier made by with_classes: its classes are not those of its "
                    "sessions. Continue the one that it was made of."
                )
            session = None if classes is None else np.unique(check_labels(classes, name="classes"))
            self.sessions_ = [*earlier, session]
            return self._fit(X, y, sample_weight)

    def _goes_on(self) -> bool:
        return super()._goes_on() if self._is_first() else True

    def _is_first(self) -> bool:
        return len(self.sessions_) == 1

    def _examples(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None) -> Examples:
        *earlier, session = self.sessions_
        examples = super()._examples(X, y, sample_weight)
        if session is not None:
            codes = rows_of_labels(session, self.classes_, source="classes")[examples.codes]
            examples, self.classes_ = examples._replace(codes=codes), session
        if not earlier:
            check_n_classes(self)
        for i, known in enumerate(earlier):
            _check_new(self.classes_, known, i + 1)
        self.sessions_ = [*earlier, self.classes_]
        return examples

    def _start(self, setting: Setting) -> Tensors:
        import torch

        depth = depth_of(self, setting, vision=self._changes_images(), published=_PUBLISHED_DEPTH)
        text = setting.text.width

        def uniform(bound: float, *size: int) -> torch.Tensor:
            return bound * (2 * torch.rand(size, generator=setting.generator) - 1)

        # what torch.nn.init.xavier_uniform_ makes of three dimensions
        start = {"ctx": uniform((6 / (text * (self.n_ctx + depth))) ** 0.5, depth, self.n_ctx, text)}
        if self._changes_images():
            vision = setting.vision.width
            start["projection_weight"] = uniform(text**-0.5, vision, text)
            start["projection_bias"] = uniform(text**-0.5, vision)
        return start

    def _text(self, learned: Tensors, setting: Setting) -> torch.Tensor:
        constants, ctx = setting.constants, learned["ctx"]
        if "layout" not in constants:
            words = setting.words(self._checked_template())
            # the layout puts what is learned in the place of the first words
            words = words._replace(before=[0] * self.n_ctx + words.before)
            constants["layout"] = PromptLayout(setting.text, words, setting.names, self.n_ctx)
        return setting.text(constants["layout"](ctx[0], deep=list(ctx[1:]), deep_mode=self.text_mode))[0]

    def _checked_template(self) -> str:
        if self.template.count(SLOT) != 1:
            raise ValueError(
                f"template={self.template!r} needs one {{}} where the name goes, as in 'a photo of a {{}}.'."
            )
        return self.template

    def _image(
        self, learned: Tensors, setting: Setting, inputs: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        from skclip._backbones import VisualPrompts

        if self.vision_mode is None:
            return inputs
        return setting.vision(inputs, prompts=VisualPrompts(list(visual_tokens(learned)), mode=self.vision_mode))

    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        from skclip.tuning._engine import Recipe

        is_first = self._is_first()
        max_iter = self.base_max_iter if is_first and self.base_max_iter is not None else self.max_iter
        return Recipe(
            max_iter=0 if self.regularization == "freeze" and not is_first else max_iter,
            batch_size=self.base_batch_size if is_first else self.batch_size,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            schedule="cpe_restarts",
            drop_last=False,
            n_iter_no_change=self.n_iter_no_change if self.early_stopping else None,
        )

    def _gradients(self, losses: Tensors, learned: Tensors) -> None:
        import torch

        torch.stack(list(losses.values())).sum().backward()
        if self.regularization == "balance":
            for value in learned.values():
                if value.grad is not None:
                    value.grad *= self._share_of_new()

    def _share_of_new(self) -> float:
        """Of the classes of the last session among all, 1 in the first: lambda of the published code."""
        return len(self.sessions_[-1]) / sum(map(len, self.sessions_))

    def _keep(self, setting: Setting, state: dict[str, NDArray]) -> None:
        classes = np.sort(np.concatenate(self.sessions_))
        super()._keep(replace(setting, classes=classes, names=self._names(classes), constants={}), state)

    def _publish(self, state: dict[str, NDArray], setting: Setting) -> None:
        self.ctx_ = state["ctx"]
        if self._changes_images():
            self.visual_ctx_ = visual_tokens(self._tensors(setting, state)).cpu().numpy()

    def _fingerprint(self, setting: Setting, examples: Examples, before: Before | None) -> dict[str, str]:
        sessions = repr([session.tolist() for session in self.sessions_])
        return {**super()._fingerprint(setting, examples, before), "sessions": sessions}


def visual_tokens(learned: Tensors) -> torch.Tensor:
    """Linear images (depth, n_ctx, W) of the learned tokens of the text."""
    return learned["ctx"] @ learned["projection_weight"].T + learned["projection_bias"]


def _check_new(labels: NDArray, known: NDArray, session: int) -> None:
    """Refuse labels that another session has learned, or that are of another type than its labels."""
    if (labels.dtype.kind in "US") != (known.dtype.kind in "US"):
        raise ValueError(
            f"This session has labels such as {labels[0].item()!r}, session {session} had {known[0].item()!r}; use one "
            "type for all labels."
        )
    again = np.intersect1d(labels, known)
    if again.size:
        raise ValueError(
            f"The class {again[0].item()!r} has been learned in session {session}; a session brings new classes alone. "
            "To learn from more pictures of the same classes, use fit on all of them."
        )
