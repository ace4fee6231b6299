"""MaPLe: prompts at many layers of the text tower, and linear images of them in the image tower."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from skclip.tuning._setting import Setting
from skclip.tuning._tuned import TowerClassifier, sgd_recipe
from skclip.tuning.prompts._ivlp import (
    DEEP_CONSTRAINTS,
    depth_of,
    prompted_image,
    prompted_text,
    publish_text,
    start_of_text,
)
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Recipe

    Tensors = dict[str, torch.Tensor]


@fill_doc
class MaPLeClassifier(TowerClassifier):
    """Learn prompts for both towers from a few labelled pictures, those of pictures tied to those of the text.

    Multi-modal prompt learning [1]_: M learned tokens V_0 stand before the words of the class text, and V_i replaces
    what the text tower has made of them before its block i, for the first J layers. The image tower reads the linear
    images F_i(V_i) behind the patches of every picture in the same way. Tokens and maps are learned, the towers stay.

    In the paper a few hundred pictures are enough for nearly the accuracy of `CoOpClassifier` on the classes of `fit`,
    and classes that were not seen lose far less. Whether they do depends on the model and on the pictures: figures of
    the bundled model are in the guide :doc:`/user_guide/adaptation`. Needs pictures, since the image tower changes; for
    features take `KgCoOpClassifier`.

    Parameters
    ----------
    %(model_to_tune)s
    %(class_names)s
    n_ctx : int, default=2
        M, the learned tokens of each layer, of either tower.
    depth : int, default=None
        J, the layers with tokens of their own; 1 is the input alone. None is 9, as published, or all blocks where a
        tower has fewer.
    ctx_init : str, default="a photo of a"
        Words before the name. The first M of their tokens are where V_0 begins, the others stay words, as in the
        published code. None, or fewer words than M, draws V_0 from N(0, 0.02^2), with nothing else before the name.
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
    ctx_ : ndarray of shape (M, w)
        V_0, of the width of the text tower.
    deep_ctx_ : ndarray of shape (J - 1, M, w)
        V_1, V_2, ...
    visual_ctx_ : ndarray of shape (J, M, W)
        F_0(V_0), F_1(V_1), ..., of the width of the image tower.
    %(tuned)s

    See Also
    --------
    IVLPClassifier : Tokens of either tower on their own.
    PromptSRCClassifier : Those, held near the model as it came.

    Notes
    -----
    ``J (M w + w W + W)`` numbers are learned, 3.6 million for ViT-B-16, nearly all of them in the maps F_i. These begin
    as `torch.nn.Linear` does, F_1, F_2, ... as copies of one another. The code of the paper works in half precision
    throughout; here what is learned is float32. For other data sets than that of `fit` it was trained for 2 epochs
    with ``depth=3`` and ``learning_rate=0.0026``.

    Each step costs a pass of both towers forwards and backwards. The image tower must be open_clip's own
    VisionTransformer.

    References
    ----------
    .. [1] M. U. Khattak, H. Rasheed, M. Maaz, S. Khan and F. S. Khan, "MaPLe: Multi-modal Prompt Learning", CVPR 2023,
       arXiv:2210.03117.

    Examples
    --------
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import MaPLeClassifier
    >>> world = make_picture_world(32, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    >>> clf = MaPLeClassifier("skclip-tiny", max_iter=2, random_state=0)
    >>> clf = clf.fit(world.images, world.target)
    >>> clf.predict_proba(world.images[:2]).shape
    (2, 4)
    >>> clf.with_classes(["green circle", "green star"]).predict(world.images[:2]).shape
    (2,)
    """

    _parameter_constraints: dict[str, list[Any]] = DEEP_CONSTRAINTS

    def __init__(
        self,
        model: str | None = None,
        *,
        class_names: ClassNames | None = None,
        n_ctx: int = 2,
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

    def _start(self, setting: Setting) -> Tensors:
        import torch

        depth = depth_of(self, setting)
        text, vision = setting.text.width, setting.vision.width

        def linear(*size: int) -> torch.Tensor:
            """As `torch.nn.Linear` begins, for the input and once for all deeper layers."""
            values = (2 * torch.rand((min(depth, 2), *size), generator=setting.generator) - 1) / text**0.5
            return torch.cat([values, values[-1:].repeat(max(depth - 2, 0), *(1 for _ in size))])

        return {
            **start_of_text(self, setting, depth),
            "projection_weight": linear(vision, text),
            "projection_bias": linear(vision),
        }

    def _text(self, learned: Tensors, setting: Setting) -> torch.Tensor:
        return prompted_text(self, learned, setting)

    def _image(
        self, learned: Tensors, setting: Setting, inputs: torch.Tensor, generator: torch.Generator | None = None
    ) -> torch.Tensor:
        return prompted_image(visual_tokens(learned), setting, inputs)

    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        return sgd_recipe(self, self.max_iter)

    def _publish(self, state: dict[str, NDArray], setting: Setting) -> None:
        publish_text(self, state)
        self.visual_ctx_ = visual_tokens(self._tensors(setting, state)).cpu().numpy()


def visual_tokens(learned: Tensors) -> torch.Tensor:
    """Linear images (J, M, W) of the learned tokens of the text: the coupling of MaPLe, CVPR 2023."""
    import torch

    ctx = learned["ctx"][None]
    tokens = torch.cat([ctx, learned["deep_ctx"]]) if "deep_ctx" in learned else ctx
    return tokens @ learned["projection_weight"].transpose(1, 2) + learned["projection_bias"][:, None]
