"""IVLP: prompts at many layers of both towers, learned side by side."""

from __future__ import annotations

from numbers import Integral
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skclip.tuning._prompt_text import PromptLayout, PromptWords, initial_context
from skclip.tuning._setting import Setting
from skclip.tuning._tuned import PICTURE_CONSTRAINTS, SGD_CONSTRAINTS, TowerClassifier, sgd_recipe
from skclip.tuning.prompts._coop import prompt_template
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames
from skclip.utils._params import Interval

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Recipe

    Tensors = dict[str, torch.Tensor]

_PUBLISHED_DEPTH = 9

DEEP_CONSTRAINTS: dict[str, list[Any]] = {
    **SGD_CONSTRAINTS,
    **PICTURE_CONSTRAINTS,
    "n_ctx": [Interval(Integral, 1, None, closed="left")],
    "depth": [Interval(Integral, 1, None, closed="left"), None],
    "ctx_init": [str, None],
}


class TokensOfBoth:
    """Mixin: tokens of either tower on their own, as `n_ctx`, `n_visual_ctx`, `depth` and `ctx_init` ask for."""

    def _start(self, setting: Setting) -> Tensors:
        return start_of_both(self, setting)

    def _text(self, learned: Tensors, setting: Setting) -> torch.Tensor:
        return prompted_text(self, learned, setting)

    def _image(
        self, learned: Tensors, setting: Setting, inputs: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return prompted_image(learned.get("visual_ctx"), setting, inputs)

    def _publish(self, state: dict[str, NDArray], setting: Setting) -> None:
        publish_text(self, state)
        self.visual_ctx_: Any = state.get("visual_ctx")


@fill_doc
class IVLPClassifier(TokensOfBoth, TowerClassifier):
    """Learn prompts at many layers of both towers from a few labelled pictures.

    Independent vision-language prompting: learned tokens stand before the words of the class text and behind the
    patches of the picture, and are replaced by other learned ones before each of the next blocks [1]_ [2]_.

    In the paper of `MaPLeClassifier`, which ties the tokens of the two towers together, it fits the classes of `fit` as
    well and others worse [2]_; `PromptSRCClassifier` adds what holds it near the model as it came. Figures of the
    bundled model are in the guide :doc:`/user_guide/adaptation`.

    Parameters
    ----------
    %(model_to_tune)s
    %(class_names)s
    n_ctx : int, default=2
        Learned tokens of each layer of the text tower. 0 leaves the text as it is: visual prompt tuning alone.
    n_visual_ctx : int, default=2
        Learned tokens of each layer of the image tower. 0 leaves the pictures as they are: deep text prompts alone.
    depth : int, default=None
        Layers with learned tokens of their own; 1 is the input alone. None is 9, as published, or all blocks where a
        tower has fewer.
    ctx_init : str, default="a photo of a"
        Words before the name. The first `n_ctx` of their tokens are where the first layer begins, the others stay
        words. None, or fewer words than `n_ctx`, draws from N(0, 0.02^2), with nothing else before the name.
    max_iter : int, default=5
        Epochs.
    learning_rate : float, default=0.0035
        Of stochastic gradient descent; 1e-5 in the first epoch, then from this value down along a cosine, by epochs.
    batch_size : int, default=4
        Pictures per step; what is left over at the end of an epoch waits for the next.
    momentum, weight_decay : float, default=0.9, 5e-4
        Of stochastic gradient descent.
    %(tuning_pictures)s
    %(tuning)s

    Attributes
    ----------
    %(classes_)s
    ctx_ : ndarray of shape (n_ctx, w) or None
        The first tokens of the text.
    deep_ctx_ : ndarray of shape (depth - 1, n_ctx, w) or None
        Those before blocks 1, 2, ... of the text tower.
    visual_ctx_ : ndarray of shape (depth, n_visual_ctx, W) or None
        Those before blocks 0, 1, ... of the image tower.
    %(tuned)s

    See Also
    --------
    MaPLeClassifier : The tokens of the image tower are linear images of those of the text tower.
    PromptSRCClassifier : The same tokens, held near the model as it came.

    Notes
    -----
    Each step costs a pass of both towers forwards and backwards. Tokens for pictures need open_clip's own
    VisionTransformer; ``n_visual_ctx=0`` works with every image tower.

    References
    ----------
    .. [1] H. Rasheed et al., "Fine-tuned CLIP Models are Efficient Video Learners", CVPR 2023, arXiv:2212.03640.
    .. [2] M. U. Khattak et al., "MaPLe: Multi-modal Prompt Learning", CVPR 2023, arXiv:2210.03117.

    Examples
    --------
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import IVLPClassifier
    >>> world = make_picture_world(32, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    >>> clf = IVLPClassifier("skclip-tiny", max_iter=2, random_state=0)
    >>> clf = clf.fit(world.images, world.target)
    >>> clf.predict_proba(world.images[:2]).shape
    (2, 4)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **DEEP_CONSTRAINTS,
        "n_ctx": [Interval(Integral, 0, None, closed="left")],
        "n_visual_ctx": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        model: str | None = None,
        *,
        class_names: ClassNames | None = None,
        n_ctx: int = 2,
        n_visual_ctx: int = 2,
        depth: int | None = None,
        ctx_init: str | None = "a photo of a",
        max_iter: int = 5,
        learning_rate: float = 0.0035,
        batch_size: int = 4,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        augmentation: str | None = "crop_flip",
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
        self.n_visual_ctx = n_visual_ctx
        self.depth = depth
        self.ctx_init = ctx_init
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.momentum = momentum
        self.weight_decay = weight_decay
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

    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        return sgd_recipe(self, self.max_iter)


def depth_of(
    estimator: Any, setting: Setting, *, text: bool = True, vision: bool = True, published: int = _PUBLISHED_DEPTH
) -> int:
    """Layers with learned tokens; a number that was asked for must fit the towers that have some."""
    blocks = {}
    if text:
        blocks["text"] = setting.text.n_layers
    if vision:
        blocks["image"] = setting.vision.n_layers
    tower, most = min(blocks.items(), key=lambda item: item[1])
    if estimator.depth is None:
        return min(published, most)
    if estimator.depth > most:
        raise ValueError(
            f"depth={estimator.depth} is more than the {most} blocks of the {tower} tower of "
            f"{setting.backbone.card.name!r}. Use at most {most}, or None."
        )
    return estimator.depth


def start_of_text(estimator: Any, setting: Setting, depth: int) -> Tensors:
    """Tokens of the text tower to begin with: ``ctx`` (M, w) and, where there are more layers, ``deep_ctx``."""
    import torch

    text, n_ctx = setting.text, estimator.n_ctx
    start = {"ctx": initial_context(text, words_before(estimator, setting, n_ctx), n_ctx, setting.generator)}
    if depth > 1:
        start["deep_ctx"] = 0.02 * torch.randn((depth - 1, n_ctx, text.width), generator=setting.generator)
    return start


def start_of_both(estimator: Any, setting: Setting) -> Tensors:
    """Tokens of either tower to begin with, as `n_ctx` and `n_visual_ctx` ask for."""
    import torch

    n_text, n_visual = estimator.n_ctx, estimator.n_visual_ctx
    if not n_text and not n_visual:
        raise ValueError("With n_ctx=0 and n_visual_ctx=0 there is nothing to learn; use ZeroShotClassifier.")
    depth = depth_of(estimator, setting, text=n_text > 0, vision=n_visual > 0)
    start = start_of_text(estimator, setting, depth) if n_text else {}
    if n_visual:
        size = (depth, n_visual, setting.vision.width)
        start["visual_ctx"] = 0.02 * torch.randn(size, generator=setting.generator)
    return start


def words_before(estimator: Any, setting: Setting, n_ctx: int) -> PromptWords:
    """The words around the names: those of `ctx_init` if so many learned tokens can begin as some of them."""
    words = setting.words(prompt_template(estimator.ctx_init))
    return words if len(words.before) >= n_ctx else setting.words(prompt_template(None))


def text_layout(estimator: Any, setting: Setting, n_ctx: int) -> PromptLayout:
    """Where the tokens stand among the words, made once per setting."""
    constants = setting.constants
    if "layout" not in constants:
        words = words_before(estimator, setting, n_ctx)
        constants["layout"] = PromptLayout(setting.text, words, setting.names, n_ctx)
    return constants["layout"]


def prompted_text(estimator: Any, learned: Tensors, setting: Setting) -> torch.Tensor:
    """Projections of the classes (K, d) with what was learned of the text tower."""
    import torch

    ctx, constants = learned.get("ctx"), setting.constants
    layout = text_layout(estimator, setting, 0 if ctx is None else len(ctx))
    if ctx is not None:
        return setting.text(layout(ctx, deep=list(learned.get("deep_ctx", ()))))[0]
    if "plain_text" not in constants:
        nothing = torch.zeros((0, setting.text.width), device=setting.device)
        constants["plain_text"] = setting.text(layout(nothing))[0]
    return constants["plain_text"]


def prompted_image(tokens: torch.Tensor | None, setting: Setting, inputs: torch.Tensor) -> torch.Tensor:
    """Projections of pictures (b, d) with these tokens (J, n, W) behind their patches."""
    from skclip._backbones import VisualPrompts

    return setting.vision(inputs, prompts=None if tokens is None else VisualPrompts(list(tokens)))


def publish_text(estimator: Any, state: dict[str, NDArray]) -> None:
    """Set the attributes of the learned tokens of the text tower; None without any."""
    estimator.ctx_ = ctx = state.get("ctx")
    estimator.deep_ctx_ = None if ctx is None else state.get("deep_ctx", ctx[None][:0])
