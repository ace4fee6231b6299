"""PromptSRC: prompts in both towers, held near what the model says without them."""

from __future__ import annotations

from dataclasses import replace
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skclip.templates._templates import Templates
from skclip.tuning._losses import kl_divergence, mean_absolute
from skclip.tuning._setting import Setting, Step, Term, scaled_cosines
from skclip.tuning._tuned import Examples, TowerClassifier, label_loss, sgd_recipe
from skclip.tuning.prompts._ivlp import DEEP_CONSTRAINTS, TokensOfBoth, text_layout
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames
from skclip.utils._params import Interval

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Recipe

    Tensors = dict[str, torch.Tensor]


@fill_doc
class PromptSRCClassifier(TokensOfBoth, TowerClassifier):
    """Learn prompts for both towers from a few labelled pictures, and stay near what the model says without them.

    The tokens are those of `IVLPClassifier`. Three terms tie what they make of class text, of pictures and of their
    logits to what the frozen model makes of the same, where the frozen text is the mean over many sentences; and the
    tokens of all epochs are averaged, those of late epochs most [1]_:
    ``L = CE + text_weight mean|t - t0| + image_weight mean|f - f0| + logit_weight KL(z0 || z) / (B K)``.

    In the paper the best of the methods that prompt both towers, on the classes of `fit` and on others; here the ties
    can hold it back on the former (:doc:`/user_guide/adaptation`). As published more than four times the work of
    `MaPLeClassifier`, since it trains for 20 epochs and reads each picture without tokens as well.

    Parameters
    ----------
    %(model_to_tune)s
    %(class_names)s
    n_ctx : int, default=4
        Learned tokens of each layer of the text tower; 0 leaves the text as it is.
    n_visual_ctx : int, default=4
        Learned tokens of each layer of the image tower; 0 leaves the pictures as they are.
    depth : int, default=None
        Layers with learned tokens of their own; 1 is the input alone. None is 9, as published, or all blocks where a
        tower has fewer.
    ctx_init : str, default="a photo of a"
        Words before the name. The first `n_ctx` of their tokens are where the first layer begins, the others stay
        words. None, or fewer words than `n_ctx`, draws from N(0, 0.02^2), with nothing else before the name.
    templates : str or list of str, default="openai"
        Sentences of the frozen text, see `skclip.templates.get_templates`. "openai" is CLIP's 80; the published code
        takes 60 of such sentences.
    text_weight, image_weight, logit_weight : float, default=25.0, 10.0, 1.0
        Of the three ties. 0 leaves one out.
    averaging_center : float, default=None
        The epoch, counted from 1, that weighs most in the average. None is three quarters of `max_iter`: 15 of 20, as
        published.
    averaging_width : float, default=1.0
        Standard deviation, in epochs, of the bell that gives the weights; infinity is the plain mean. None keeps the
        last epoch.
    max_iter : int, default=20
        Epochs.
    learning_rate : float, default=0.0025
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
    IVLPClassifier : The same tokens without ties.
    MaPLeClassifier : Tokens of the two towers tied to each other.

    Notes
    -----
    f0 is of the same random crop as f, from the same weights without the tokens: no second model is held. Each step
    costs a pass of both towers forwards and backwards, and one of the image tower forwards. t0 is the normalised mean
    of normalised sentences, as in `ZeroShotClassifier`; the published code does not normalise them first.

    For the few-shot table of the paper it was trained for 50 epochs, with center 30 and width 30 on the sets of common
    objects, and 45 and 5 on the others; for other data sets than that of `fit`, with ``depth=3``, center 6 and width
    10.

    References
    ----------
    .. [1] M. U. Khattak et al., "Self-regulating Prompts: Foundational Model Adaptation without Forgetting", ICCV 2023,
       arXiv:2307.06948.

    Examples
    --------
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import PromptSRCClassifier
    >>> world = make_picture_world(32, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    >>> clf = PromptSRCClassifier("skclip-tiny", templates=["a photo of a {}.", "a {}"], max_iter=2, random_state=0)
    >>> clf = clf.fit(world.images, world.target)
    >>> clf.predict_proba(world.images[:2]).shape
    (2, 4)
    >>> sorted(clf.loss_terms_)
    ['cross_entropy', 'image', 'logits', 'text']
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **DEEP_CONSTRAINTS,
        "n_ctx": [Interval(Integral, 0, None, closed="left")],
        "n_visual_ctx": [Interval(Integral, 0, None, closed="left")],
        "templates": [str, "array-like"],
        "text_weight": [Interval(Real, 0, None, closed="left")],
        "image_weight": [Interval(Real, 0, None, closed="left")],
        "logit_weight": [Interval(Real, 0, None, closed="left")],
        "averaging_center": [Real, None],
        "averaging_width": [Interval(Real, 0, None, closed="right"), None],
    }

    def __init__(
        self,
        model: str | None = None,
        *,
        class_names: ClassNames | None = None,
        n_ctx: int = 4,
        n_visual_ctx: int = 4,
        depth: int | None = None,
        ctx_init: str | None = "a photo of a",
        templates: Templates = "openai",
        text_weight: float = 25.0,
        image_weight: float = 10.0,
        logit_weight: float = 1.0,
        averaging_center: float | None = None,
        averaging_width: float | None = 1.0,
        max_iter: int = 20,
        learning_rate: float = 0.0025,
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
        self.templates = templates
        self.text_weight = text_weight
        self.image_weight = image_weight
        self.logit_weight = logit_weight
        self.averaging_center = averaging_center
        self.averaging_width = averaging_width
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

    def _prepare(self, setting: Setting, examples: Examples) -> None:
        # names that are too long are an error before they are cut for the frozen text
        text_layout(self, setting, self.n_ctx)
        if self.text_weight or self.logit_weight:
            setting.constants["frozen_text"] = setting.class_text(self.templates)

    def _terms(self, setting: Setting) -> dict[str, Term]:
        ties: dict[str, tuple[float, Term]] = {
            "text": (self.text_weight, _text_tie),
            "image": (self.image_weight, _image_tie),
            "logits": (self.logit_weight, _logit_tie),
        }
        weighted = {name: _times(weight, tie) for name, (weight, tie) in ties.items() if weight}
        return {"cross_entropy": label_loss, **weighted}

    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        from skclip.tuning._averaging import Gaussian

        recipe = sgd_recipe(self, self.max_iter)
        if self.averaging_width is None:
            return recipe
        center = 0.75 * self.max_iter if self.averaging_center is None else self.averaging_center
        return replace(recipe, averaging=Gaussian(center, self.averaging_width))


def _text_tie(step: Step) -> torch.Tensor:
    """Mean absolute difference from the text of the model as it came."""
    return mean_absolute(step.text, step.setting.constants["frozen_text"])


def _image_tie(step: Step) -> torch.Tensor:
    return mean_absolute(step.image, step.frozen_image, step.batch.weights)


def _logit_tie(step: Step) -> torch.Tensor:
    """Divergence from the frozen model's predictions of the same pictures, divided by the number of classes too."""
    return kl_divergence(frozen_logits(step), step.logits, reduction="batch_classes", weights=step.batch.weights)


def frozen_logits(step: Step) -> torch.Tensor:
    """Logits of the batch by the model as it came, (b, K)."""
    setting = step.setting
    return scaled_cosines(step.frozen_image, setting.constants["frozen_text"], setting.logit_scale)


def _times(weight: float, term: Term) -> Term:
    return lambda step: weight * term(step)
