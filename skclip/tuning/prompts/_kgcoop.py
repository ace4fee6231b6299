"""KgCoOp: learned words that stay near the hand-written prompt."""

from __future__ import annotations

from numbers import Integral, Real
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from skclip.templates._templates import Templates
from skclip.tuning._losses import cosine_distance_to
from skclip.tuning._setting import Setting, Step, Term
from skclip.tuning._tuned import Examples, PromptClassifier, sgd_recipe
from skclip.tuning.prompts._context import SharedContext
from skclip.tuning.prompts._coop import CONTEXT_CONSTRAINTS
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames
from skclip.utils._params import Interval

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Recipe


@fill_doc
class KgCoOpClassifier(SharedContext, PromptClassifier):
    """Learn the words around the class names, and stay near a hand-written prompt, from features of pictures.

    `CoOpClassifier` with one more term in the loss: ``kg_weight * (1 - mean_c cos(t_c, t0_c))``, t being the class text
    of the learned prompt and t0 that of the hand-written one [1]_. What is learned can then bend no class far from what
    its name says, and serves classes that were not there to learn from.

    The choice among prompts where new class names are to come (`with_classes`). Gains less than `CoOpClassifier` on the
    classes of `fit`, from 8 pictures per class on.

    Parameters
    ----------
    %(model_of_text)s
    %(class_names)s
    n_ctx : int, default=4
        M, the learned vectors, each in the place of one token. Only with ``ctx_init=None``.
    ctx_init : str, default="a photo of a"
        Words to begin with; M is then the number of their tokens. None draws from N(0, 0.02^2).
    class_position : {"end", "middle", "front"}, default="end"
        Where the name stands: after the vectors, between their halves, or before them.
    templates : str or list of str, default="a photo of a {}."
        The hand-written prompt that the class text is held to, as `ZeroShotClassifier` takes it: best what is known of
        the pictures, such as "a photo of a {}, a type of pet.".
    kg_weight : float, default=8.0
        Of the term. 0 is `CoOpClassifier`. The published scripts give 8; the default of the code is 1.
    max_iter : int, default=100
        Epochs.
    learning_rate : float, default=0.002
        Of stochastic gradient descent; 1e-5 in the first epoch, then from this value down along a cosine, by epochs.
    batch_size : int, default=128
        Pictures per step; what is left over at the end of an epoch waits for the next.
    momentum, weight_decay : float, default=0.9, 5e-4
        Of stochastic gradient descent.
    %(tuning)s

    Attributes
    ----------
    %(classes_)s
    ctx_ : ndarray of shape (M, w)
        The learned vectors, of the width of the text tower.
    %(tuned)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    ProGradClassifier : Leaves out steps that the hand-written prompt opposes.
    BiomedCoOpClassifier : Held to many sentences about each class.

    Notes
    -----
    The paper prints the squared distance of unit vectors, which is twice the term of its code, taken here. The layers
    that the code builds and never calls are left out. Features in place of pictures, their views, and the cost are as
    of `CoOpClassifier`; the hand-written prompt is encoded once.

    References
    ----------
    .. [1] H. Yao, R. Zhang, C. Xu, "Visual-Language Prompt Tuning with Knowledge-guided Context Optimization", CVPR
       2023, arXiv:2303.13283.

    Examples
    --------
    >>> from skclip import CLIPFeatures
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import KgCoOpClassifier
    >>> world = make_picture_world(64, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    >>> X = CLIPFeatures("skclip-tiny").fit_transform(world.images)
    >>> clf = KgCoOpClassifier("skclip-tiny", max_iter=5, random_state=0).fit(X, world.target)
    >>> clf.with_classes(["green circle", "green star"]).predict_proba(X).shape
    (64, 2)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **CONTEXT_CONSTRAINTS,
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "templates": [str, "array-like"],
        "kg_weight": [Interval(Real, 0, None, closed="left")],
    }

    def __init__(
        self,
        model: str | None = None,
        *,
        class_names: ClassNames | None = None,
        n_ctx: int = 4,
        ctx_init: str | None = "a photo of a",
        class_position: str = "end",
        templates: Templates = "a photo of a {}.",
        kg_weight: float = 8.0,
        max_iter: int = 100,
        learning_rate: float = 0.002,
        batch_size: int = 128,
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
        self.class_position = class_position
        self.templates = templates
        self.kg_weight = kg_weight
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

    def _prepare(self, setting: Setting, examples: Examples) -> None:
        super()._prepare(setting, examples)
        setting.constants["hand_written"] = setting.class_text(self.templates)

    def _terms(self, setting: Setting) -> dict[str, Term]:
        hand_written = setting.constants["hand_written"]

        def knowledge(step: Step) -> torch.Tensor:
            return self.kg_weight * cosine_distance_to(step.text, hand_written)

        return {**super()._terms(setting), "knowledge": knowledge}

    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        return sgd_recipe(self, self.max_iter)
