"""ProGrad: learned words that take no step against what the hand-written prompt says."""

from __future__ import annotations

from numbers import Real
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np

from skclip.templates._templates import Templates
from skclip.tuning._losses import kl_divergence, project_gradients
from skclip.tuning._prompt_text import PromptLayout, initial_context
from skclip.tuning._setting import Setting, Step, Term, scaled_cosines
from skclip.tuning._tuned import Examples, PromptClassifier, sgd_recipe
from skclip.tuning.prompts._context import SharedContext
from skclip.tuning.prompts._coop import BY_SHOTS, CONTEXT_CONSTRAINTS, epochs_by_shots, prompt_template
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames
from skclip.utils._params import Interval

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Recipe

    Tensors = dict[str, torch.Tensor]


@fill_doc
class ProGradClassifier(SharedContext, PromptClassifier):
    """Learn the words around the class names, without steps against a hand-written prompt, from features of pictures.

    Like `CoOpClassifier`, but of each step that part is left out which would make the predictions less like those of
    the hand-written prompt: with ``g_d`` the gradient of the cross entropy and ``g_g`` that of the divergence from the
    zero-shot probabilities, the step follows ``g_d - projection_weight * <g_d, u> u``, ``u = g_g / ||g_g||``, where
    ``<g_d, g_g> < 0``, and ``g_d`` elsewhere [1]_.

    Nearly the gain of `CoOpClassifier` on the classes of `fit` and less loss on new ones; `KgCoOpClassifier` is the
    better for these, and costs half.

    Parameters
    ----------
    %(model_of_text)s
    %(class_names)s
    n_ctx : int, default=16
        M, the learned vectors, each in the place of one token; as many as the tokens of `ctx_init` at least.
    ctx_init : str, default="a photo of a"
        Words to begin with. They stand at the end of the vectors, next to the name, and those before them begin as
        zeros. None draws all from N(0, 0.02^2).
    class_position : {"end", "middle", "front"}, default="end"
        Where the name stands: after the vectors, between their halves, or before them.
    templates : str or list of str, default="a photo of a {}."
        The hand-written prompt, as `ZeroShotClassifier` takes it: best what is known of the pictures, such as "a photo
        of a {}, a type of pet.".
    projection_weight : float, default=1.0
        The share of the opposing part that is left out; lambda in the paper. 0 is `CoOpClassifier`.
    temperature : float, default=1.0
        Of the probabilities that are compared.
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
    ctx_ : ndarray of shape (M, w)
        The learned vectors, of the width of the text tower.
    %(tuned)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    KgCoOpClassifier : Held near the hand-written prompt by a term of the loss.

    Notes
    -----
    The term "general" of `loss_terms_` is the divergence, ``T^2 KL(p0 || p)``, which `loss_curve_` adds to the cross
    entropy though it is not minimised. Momentum and weight decay act after the projection. With `distributed` each
    process projects for its share of a batch.

    Where training starts at the hand-written prompt nearly every step of the labels leads away from it, and most of it
    is left out: of the bundled model's gradients a quarter with 1 or 2 pictures per class and half with 16 remain. At
    the start itself the divergence is zero, its gradient nothing but rounding, and the step that of the labels.

    Features in place of pictures, and their views, are as of `CoOpClassifier`; a step costs one pass of the text tower
    forwards and two backwards.

    References
    ----------
    .. [1] B. Zhu et al., "Prompt-aligned Gradient for Prompt Tuning", ICCV 2023, arXiv:2205.14865.

    Examples
    --------
    >>> from skclip import CLIPFeatures
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import ProGradClassifier
    >>> world = make_picture_world(64, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    >>> X = CLIPFeatures("skclip-tiny").fit_transform(world.images)
    >>> clf = ProGradClassifier("skclip-tiny", n_ctx=4, max_iter=5, random_state=0).fit(X, world.target)
    >>> clf.with_classes(["green circle", "green star"]).predict_proba(X).shape
    (64, 2)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **CONTEXT_CONSTRAINTS,
        "max_iter": BY_SHOTS,
        "templates": [str, "array-like"],
        "projection_weight": [Interval(Real, 0, None, closed="left")],
        "temperature": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(
        self,
        model: str | None = None,
        *,
        class_names: ClassNames | None = None,
        n_ctx: int = 16,
        ctx_init: str | None = "a photo of a",
        class_position: str = "end",
        templates: Templates = "a photo of a {}.",
        projection_weight: float = 1.0,
        temperature: float = 1.0,
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
        self.class_position = class_position
        self.templates = templates
        self.projection_weight = projection_weight
        self.temperature = temperature
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

    def _start(self, setting: Setting) -> Tensors:
        import torch

        words = setting.words(prompt_template(self.ctx_init))
        ctx = initial_context(setting.text, words, len(words.before) or self.n_ctx, setting.generator)
        zeros = torch.zeros((max(self.n_ctx - len(ctx), 0), ctx.shape[1]))
        return {"ctx": torch.cat([zeros, ctx])}

    def _text(self, learned: Tensors, setting: Setting) -> torch.Tensor:
        ctx = learned["ctx"]
        if "layout" not in setting.constants:
            words = setting.words(prompt_template(self.ctx_init))
            setting.constants["layout"] = PromptLayout(
                setting.text, words, setting.names, len(ctx), position=self.class_position
            )
        return setting.text(setting.constants["layout"](ctx))[0]

    def _terms(self, setting: Setting) -> dict[str, Term]:
        hand_written = setting.constants["hand_written"]

        def general(step: Step) -> torch.Tensor:
            teacher = scaled_cosines(step.image, hand_written, setting.logit_scale)
            return kl_divergence(teacher, step.logits, self.temperature, weights=step.batch.weights)

        return {**super()._terms(setting), "general": general}

    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        return sgd_recipe(self, epochs_by_shots(self.max_iter, n_pictures, n_classes))

    def _gradients(self, losses: Tensors, learned: Tensors) -> None:
        from torch.autograd import grad

        tensors = list(learned.values())
        of_labels = grad(losses["cross_entropy"], tensors, retain_graph=True)
        of_knowledge = grad(losses["general"], tensors)
        for tensor, g_d, g_g in zip(tensors, of_labels, of_knowledge):
            tensor.grad = project_gradients(g_d, g_g, self.projection_weight)
