"""CoCoOp: learned words that are moved by each picture."""

from __future__ import annotations

import math
from collections.abc import Iterator
from numbers import Integral
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from sklearn.utils.validation import check_is_fitted

from skclip.tuning._setting import Setting, Step, in_float32
from skclip.tuning._tuned import PromptClassifier, sgd_recipe
from skclip.tuning.prompts._context import SharedContext
from skclip.tuning.prompts._coop import CONTEXT_CONSTRAINTS, context_layout
from skclip.utils._arrays import check_features, first_view, row_batches
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames
from skclip.utils._params import Interval

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Recipe

    Tensors = dict[str, torch.Tensor]

# numbers held per token and unit of width where a layer needs most: its MLP before and after the activation, queries,
# keys, values and scores
_NUMBERS_PER_TOKEN = 20


@fill_doc
class CoCoOpClassifier(SharedContext, PromptClassifier):
    """Learn the words around the class names, moved by what is in the picture, from features of pictures.

    As `CoOpClassifier`, but the vectors of a picture with unit feature f are ``V_m + pi(f)``, with one shift for all of
    them by a small network ``pi(f) = W2 relu(W1 f + b1) + b2`` that is learned along [1]_.

    Bends less to the classes of `fit` than `CoOpClassifier` and serves new ones better (`with_classes`), at a price:
    each picture has class text of its own, so that n pictures of K classes cost n K prompts through the text tower, in
    training as in prediction. `KgCoOpClassifier` does as well on new classes for the price of one matrix product.

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
    max_iter : int, default=10
        Epochs.
    learning_rate : float, default=0.002
        Of stochastic gradient descent; 1e-5 in the first epoch, then from this value down along a cosine, by epochs.
    batch_size : int, default=1
        Pictures per step. The published 1 was a limit of memory; larger batches make fewer steps, and so learn as much
        only with a larger `learning_rate` or more epochs.
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
    CoOpClassifier : The same vectors for all pictures.
    KgCoOpClassifier : Held near the hand-written prompt.

    Notes
    -----
    ``text_features_`` are those of the vectors without a shift; predictions never read them. The network has d // 16
    hidden units, and begins as torch's linear layers do.

    All prompts of a batch run through the tower at once: what stands before the name is one row of tokens per picture,
    read by the names of all classes. At prediction as many pictures at once as scikit-learn's ``working_memory``
    allows. Features in place of pictures, and their views, are as of `CoOpClassifier`.

    References
    ----------
    .. [1] K. Zhou et al., "Conditional Prompt Learning for Vision-Language Models", CVPR 2022, arXiv:2203.05557.

    Examples
    --------
    >>> from skclip import CLIPFeatures
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import CoCoOpClassifier
    >>> world = make_picture_world(32, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    >>> X, y = CLIPFeatures("skclip-tiny").fit_transform(world.images), world.target
    >>> clf = CoCoOpClassifier("skclip-tiny", batch_size=8, max_iter=3, random_state=0).fit(X, y)
    >>> clf.with_classes(["green circle", "green star"]).predict_proba(X).shape
    (32, 2)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **CONTEXT_CONSTRAINTS,
        "max_iter": [Interval(Integral, 0, None, closed="left")],
    }

    def __init__(
        self,
        model: str | None = None,
        *,
        class_names: ClassNames | None = None,
        n_ctx: int = 4,
        ctx_init: str | None = "a photo of a",
        class_position: str = "end",
        max_iter: int = 10,
        learning_rate: float = 0.002,
        batch_size: int = 1,
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

    def logits(self, X: Any) -> NDArray:
        """Scaled cosines of each row with each class, as the row's own prompts name it.

        %(logits)s
        """
        return logits_per_picture(self, X)

    def _start(self, setting: Setting) -> Tensors:
        width = setting.text.dim
        n_hidden = max(1, width // 16)
        return {
            **super()._start(setting),
            **start_of_linear("meta.1", width, n_hidden, setting.generator),
            **start_of_linear("meta.2", n_hidden, setting.text.width, setting.generator),
        }

    def _scores(self, step: Step) -> torch.Tensor:
        return self._cosines(step.image, step.learned, step.setting)

    def _cosines(self, image: torch.Tensor, learned: Tensors, setting: Setting) -> torch.Tensor:
        import torch

        texts = text_per_picture(self, shifts(image, learned), learned, setting)
        return setting.logit_scale * torch.cat([own_cosines(image[part], text) for part, text in texts])

    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        return sgd_recipe(self, self.max_iter)


def shifts(image: torch.Tensor, learned: Tensors) -> torch.Tensor:
    """What each of the unit rows (b, d) adds to all vectors of its prompts, (b, w): CoCoOp's meta network."""
    from torch.nn.functional import linear, relu

    hidden = relu(linear(image, learned["meta.1.weight"], learned["meta.1.bias"]))
    return linear(hidden, learned["meta.2.weight"], learned["meta.2.bias"])


def text_per_picture(
    estimator: Any, shift: torch.Tensor, learned: Tensors, setting: Setting
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Class text of pictures whose vectors are moved by rows of `shift`, (n, w), as many at once as memory allows.

    Yields
    ------
    part : slice
        Of the pictures.
    text : tensor of shape (m, K, d)
        Unit rows.
    """
    from torch.nn.functional import normalize

    layout = context_layout(estimator, setting, len(learned["ctx"]))
    moved = learned["ctx"] + shift[:, None]
    n_tokens = 1 + len(learned["ctx"]) + int(layout.lengths.sum())
    for part in row_batches(len(shift), 4 * _NUMBERS_PER_TOKEN * n_tokens * setting.text.width):
        yield part, normalize(setting.text(layout(moved[part])).float(), dim=-1)


def own_cosines(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Cosines (m, K) of unit rows (m, d) with unit rows (m, K, d) of their own."""
    with in_float32(image):
        return (text @ image[..., None])[..., 0]


def logits_per_picture(estimator: Any, X: Any) -> NDArray:
    """`logits` of a method whose ``_cosines`` gives logits (n, K) of what ``_rows`` makes of X."""
    import torch

    check_is_fitted(estimator)
    rows = estimator._rows(first_view(*check_features(estimator, X)))
    setting = estimator._restored()
    learned = estimator._tensors(setting)
    with torch.inference_mode():
        inputs = torch.tensor(rows, dtype=torch.float32, device=setting.device)
        return estimator._cosines(inputs, learned, setting).cpu().numpy().astype(rows.dtype, copy=False)


def start_of_linear(
    name: str, n_in: int, n_out: int, generator: torch.Generator, *, stack: tuple[int, ...] = ()
) -> Tensors:
    """Weights and bias to begin with, uniform within ``1 / sqrt(n_in)``; of several such maps with `stack`."""
    import torch

    shapes = {"weight": (*stack, n_out, n_in), "bias": (*stack, n_out)}
    return {
        f"{name}.{kind}": (2.0 * torch.rand(shape, generator=generator) - 1.0) / math.sqrt(n_in)
        for kind, shape in shapes.items()
    }
