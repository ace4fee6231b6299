"""Fine-tuning of CLIP's towers, whole or of their norms or biases, with interpolation towards the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skclip.tuning._averaging import WiSE
from skclip.tuning._weight_specs import Biases, Full, LayerNorms, WeightSpec
from skclip.tuning.weights._weight_classifier import WEIGHT_CONSTRAINTS, WeightClassifier
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames
from skclip.utils._params import Interval, StrOptions

if TYPE_CHECKING:
    from skclip.tuning._engine import Recipe

_LEARNING_RATES = {"all": 1e-5, "layer_norms": 1e-3, "biases": 1e-3}
# larger gradients are cut to this norm, as published
_CLIP_NORM = 1.0


@fill_doc
class CLIPFineTuneClassifier(WeightClassifier):
    """Tune the weights of CLIP's towers themselves: the baseline of all that tunes less.

    Class text and pictures are encoded anew at every step, and training minimises the cross entropy of their scaled
    cosines. ``wise_alpha`` below 1 takes a mean of the weights before and after, which keeps much of what the model
    knew and most of what it learned: WiSE-FT [1]_.

    With thousands of pictures the most accurate on others like them. With few it forgets the rest of the world: take
    `CLIPLoRAClassifier`, or ``trainable="layer_norms"``.

    Parameters
    ----------
    %(model_to_tune)s
    %(class_names)s
    template : str, default="a photo of a {}."
        The sentence of a class.
    trainable : {"all", "layer_norms", "biases"}, default="all"
        Weights that are trained; "biases" are those of the norms too, as in BitFit [2]_.
    encoder : {"both", "vision", "text"}, default="both"
        Towers to tune. With "text", `fit` takes features in the place of pictures, which it encodes only once.
    wise_alpha : float, default=1.0
        Share of the way from the model to the end of training, in [0, 1].
    max_iter : int, default=20
        Epochs.
    learning_rate : float, default=None
        Of AdamW; rises from 0 in the first tenth of the steps and falls back along a cosine. None is 1e-5 for "all"
        and 1e-3 else. Gradients of a norm above 1 are cut to it.
    weight_decay : float, default=0.1
        Of AdamW: draws the weights towards 0, not to where they were.
    batch_size : int, default=32
        Pictures per step; what is left over at the end of an epoch waits for the next.
    %(tuning_pictures)s
    %(tuning)s

    Attributes
    ----------
    %(classes_)s
    %(tuned)s

    See Also
    --------
    CLIPLoRAClassifier : Few numbers in the place of all weights.
    CLIPSVDClassifier : Fewer still.

    Notes
    -----
    `state_delta_` holds the trained weights by their names in the model: with ``trainable="all"`` as much as the model
    has, 600 MB for ViT-B-16. A `checkpoint` takes three times that, and training four times, beside the model and the
    activations of a batch. Each step costs a pass of both towers forwards and backwards. The scale of the logits stays
    as it is, and so does what is no parameter, such as the running statistics of batch norms.

    The published WiSE-FT trains a linear head that starts at the class text; here the text stays text, so that new
    names can be given. Learning from features of a frozen image tower is what ``encoder="text"`` does.

    References
    ----------
    .. [1] M. Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022, arXiv:2109.01903.
    .. [2] E. Ben Zaken, S. Ravfogel and Y. Goldberg, "BitFit: Simple Parameter-efficient Fine-tuning for
       Transformer-based Masked Language-models", ACL 2022, arXiv:2106.10199.

    Examples
    --------
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import CLIPFineTuneClassifier
    >>> world = make_picture_world(32, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    >>> clf = CLIPFineTuneClassifier("skclip-tiny", trainable="layer_norms", wise_alpha=0.5, max_iter=2, random_state=0)
    >>> clf.fit(world.images, world.target).predict_proba(world.images[:2]).shape
    (2, 4)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **WEIGHT_CONSTRAINTS,
        "trainable": [StrOptions(set(_LEARNING_RATES))],
        "wise_alpha": [Interval(Real, 0, 1, closed="both")],
        "learning_rate": [Interval(Real, 0, None, closed="neither"), None],
    }

    def __init__(
        self,
        model: str | None = None,
        *,
        class_names: ClassNames | None = None,
        template: str = "a photo of a {}.",
        trainable: str = "all",
        encoder: str = "both",
        wise_alpha: float = 1.0,
        max_iter: int = 20,
        learning_rate: float | None = None,
        weight_decay: float = 0.1,
        batch_size: int = 32,
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
        self.template = template
        self.trainable = trainable
        self.encoder = encoder
        self.wise_alpha = wise_alpha
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.batch_size = batch_size
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

    def _spec(self, sides: Sequence[str]) -> WeightSpec:
        if self.trainable == "layer_norms":
            return LayerNorms(tuple(sides))
        return Biases(tuple(sides)) if self.trainable == "biases" else Full(tuple(sides))

    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        from skclip.tuning._engine import Recipe, n_batches

        rate = _LEARNING_RATES[self.trainable] if self.learning_rate is None else self.learning_rate
        recipe = Recipe(
            max_iter=self.max_iter,
            batch_size=self.batch_size,
            learning_rate=rate,
            optimizer="adamw",
            weight_decay=self.weight_decay,
            schedule="warmup_linear_cosine",
            clip_norm=_CLIP_NORM,
            averaging=None if self.wise_alpha == 1 else WiSE(self.wise_alpha),
            n_iter_no_change=self.n_iter_no_change if self.early_stopping else None,
        )
        return replace(recipe, warmup=self.max_iter * n_batches(n_pictures, recipe) // 10)
