"""CoOp: the words around the class names, learned."""

from __future__ import annotations

from numbers import Integral
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from skclip.templates._templates import SLOT
from skclip.tuning._prompt_text import POSITIONS, PromptLayout, initial_context
from skclip.tuning._setting import Setting
from skclip.tuning._tuned import SGD_CONSTRAINTS, PromptClassifier, sgd_recipe
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames
from skclip.utils._params import Interval, StrOptions

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Recipe

    Tensors = dict[str, torch.Tensor]

CONTEXT_CONSTRAINTS: dict[str, list[Any]] = {
    **SGD_CONSTRAINTS,
    "n_ctx": [Interval(Integral, 1, None, closed="left")],
    "ctx_init": [str, None],
    "class_position": [StrOptions(set(POSITIONS))],
}
BY_SHOTS: list[Any] = [Interval(Integral, 0, None, closed="left"), None]


@fill_doc
class CoOpClassifier(PromptClassifier):
    """Learn the words around the class names from a few labelled pictures, given as features.

    ``prompt_c = [V_1] ... [V_M] <name of c> .`` with learned vectors V; logits are the scaled cosines of a picture with
    the embeddings of the prompts, and training minimises the cross entropy [1]_. Both towers stay as they are.

    In the papers that followed it is among the best on the classes it has seen from 8 pictures per class on, and loses
    most on others: for new class names take `KgCoOpClassifier` or `ProGradClassifier`. With 1 or 2 pictures per class
    adapters such as `GDAClassifier` with text are better, and fitted in a second. Figures of the bundled model are in
    the guide :doc:`/user_guide/adaptation`.

    Parameters
    ----------
    %(model_of_text)s
    %(class_names)s
    n_ctx : int, default=16
        M, the learned vectors, each in the place of one token.
    ctx_init : str, default=None
        Words to begin with, such as "a photo of a", without a place for the name; M is then the number of their tokens
        (the published code counts words, and so cuts some). None draws from N(0, 0.02^2).
    class_specific : bool, default=False
        Whether each class has vectors of its own. They cannot be used for new classes.
    class_position : {"end", "middle", "front"}, default="end"
        Where the name stands: after the vectors, between their halves, or before them.
    max_iter : int, default=None
        Epochs. None is the published number: 50 for 1 picture per class, 100 for fewer than 8, 200 for more. (On
        ImageNet it is 50 throughout.)
    learning_rate : float, default=0.002
        Of stochastic gradient descent; 1e-5 in the first epoch, then from this value down along a cosine, by epochs.
    batch_size : int, default=32
        Pictures per step; what is left over at the end of an epoch waits for the next.
    momentum, weight_decay : float, default=0.9, 5e-4
        Of stochastic gradient descent.
    %(tuning)s

    Attributes
    ----------
    %(classes_)s
    ctx_ : ndarray of shape (M, w), or (K, M, w) if specific to classes
        The learned vectors, of the width of the text tower.
    %(tuned)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    CoCoOpClassifier : Vectors that depend on the picture.
    KgCoOpClassifier : Held near the hand-written prompt.
    ProGradClassifier : Never learns against the hand-written prompt.

    Notes
    -----
    Learning from features is exact, since the image tower does not change; the published code encodes a new random crop
    at every step, which the views of ``CLIPFeatures(n_views=V)``, X of shape (n, V, d), stand for: each epoch draws one
    of each picture. Names are read with spaces for underscores.

    Each step costs a pass of the text tower forwards and backwards, over the tokens that can matter alone, of which
    those before the names are computed once for all classes: tens of times less than all positions of all prompts.
    Prediction is one matrix product in NumPy.

    References
    ----------
    .. [1] K. Zhou et al., "Learning to Prompt for Vision-Language Models", IJCV 2022, arXiv:2109.01134.

    Examples
    --------
    >>> from skclip import CLIPFeatures
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import CoOpClassifier
    >>> world = make_picture_world(64, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    >>> X = CLIPFeatures("skclip-tiny").fit_transform(world.images)
    >>> clf = CoOpClassifier("skclip-tiny", n_ctx=4, max_iter=5, random_state=0).fit(X, world.target)
    >>> clf.predict_proba(X[:2]).shape
    (2, 4)
    >>> new = clf.with_classes(["green circle", "green star"])
    >>> new.predict(X[:2]).shape
    (2,)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **CONTEXT_CONSTRAINTS,
        "max_iter": BY_SHOTS,
        "class_specific": ["boolean"],
    }

    def __init__(
        self,
        model: str | None = None,
        *,
        class_names: ClassNames | None = None,
        n_ctx: int = 16,
        ctx_init: str | None = None,
        class_specific: bool = False,
        class_position: str = "end",
        max_iter: int | None = None,
        learning_rate: float = 0.002,
        batch_size: int = 32,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
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
        self.ctx_init = ctx_init
        self.class_specific = class_specific
        self.class_position = class_position
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.momentum = momentum
        self.weight_decay = weight_decay
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

    def with_classes(self, class_names: ClassNames) -> Self:
        if hasattr(self, "ctx_") and self.ctx_.ndim == 3:
            raise ValueError("class_specific=True learned vectors for the classes of fit alone; new ones have none.")
        return super().with_classes(class_names)

    with_classes.__doc__ = PromptClassifier.with_classes.__doc__

    def _is_of_classes(self) -> bool:
        return self.class_specific

    def _start(self, setting: Setting) -> Tensors:
        if not self.class_specific:
            return {"ctx": start_of_context(self, setting)}
        n_classes = len(setting.classes)
        return {"ctx": start_of_context(self, setting, n_classes).unflatten(0, (n_classes, -1))}

    def _text(self, learned: Tensors, setting: Setting) -> torch.Tensor:
        ctx = learned["ctx"]
        class_specific = ctx.ndim == 3
        layout = context_layout(self, setting, ctx.shape[-2], class_specific=class_specific)
        return setting.text(layout(ctx.flatten(0, 1) if class_specific else ctx))[0]

    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        return sgd_recipe(self, epochs_by_shots(self.max_iter, n_pictures, n_classes))

    def _publish(self, state: dict[str, NDArray], setting: Setting) -> None:
        self.ctx_ = state["ctx"]


def prompt_template(ctx_init: str | None) -> str:
    """The words around the name, ``{}``.

    Raises
    ------
    ValueError
        If `ctx_init` has a place for the name itself.
    """
    if ctx_init is not None and SLOT in ctx_init:
        raise ValueError(
            f"ctx_init={ctx_init!r} holds words only, and the name of each class is put behind them: leave out "
            f"{SLOT!r} and what follows it, as in ctx_init='a photo of a'."
        )
    return "{}." if ctx_init is None else f"{ctx_init.strip()} {{}}."


def start_of_context(estimator: Any, setting: Setting, n_classes: int | None = None) -> torch.Tensor:
    """Vectors to begin with, (M, w) or (n_classes * M, w), as `n_ctx` and `ctx_init` ask for."""
    words = setting.words(prompt_template(estimator.ctx_init))
    return initial_context(setting.text, words, len(words.before) or estimator.n_ctx, setting.generator, n_classes)


def context_layout(estimator: Any, setting: Setting, n_ctx: int, *, class_specific: bool = False) -> PromptLayout:
    """Where `n_ctx` learned vectors stand, in place of all words before the name; made once per setting."""
    if "layout" not in setting.constants:
        words = setting.words(prompt_template(estimator.ctx_init))
        setting.constants["layout"] = PromptLayout(
            setting.text,
            words._replace(before=words.before[:n_ctx]),
            setting.names,
            n_ctx,
            position=estimator.class_position,
            class_specific=class_specific,
        )
    return setting.constants["layout"]


def epochs_by_shots(max_iter: int | None, n_pictures: int, n_classes: int) -> int:
    """`max_iter`, or the number of epochs that CoOp trains for so many pictures per class."""
    if max_iter is not None:
        return max_iter
    shots = n_pictures / n_classes
    return 50 if shots < 2 else 100 if shots < 8 else 200
