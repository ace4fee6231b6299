"""CLIP-LoRA: low-rank updates of the attention matrices of both towers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from numbers import Integral, Real
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from skclip.tuning._setting import Setting
from skclip.tuning._weight_specs import Layers, LowRank
from skclip.tuning.weights._weight_classifier import (
    SHOTS_CONSTRAINTS,
    WeightClassifier,
    checked_targets,
    recipe_by_shots,
)
from skclip.utils._docs import fill_doc
from skclip.utils._names import ClassNames
from skclip.utils._params import Interval

if TYPE_CHECKING:
    import torch

    from skclip.tuning._engine import Recipe

    Tensors = dict[str, torch.Tensor]

_TARGETS = ("q", "k", "v", "o")


@fill_doc
class CLIPLoRAClassifier(WeightClassifier):
    """Tune the attention of CLIP's towers by updates of low rank, from a few labelled pictures.

    Each matrix of the queries, keys and values becomes ``W + alpha / sqrt(r) * B A`` with A and B of rank r, the only
    numbers that are trained [1]_. Class text and pictures are encoded anew at every step, and training minimises the
    cross entropy of their scaled cosines. One recipe for all data sets and numbers of pictures; a merged model costs
    what CLIP costs.

    Among the best from 4 pictures per class on, for minutes of training where adapters on features take a second. Of
    classes that it has not seen it forgets some; see `PromptSRCClassifier` for these.

    Parameters
    ----------
    %(model_to_tune)s
    %(class_names)s
    template : str, default="a photo of a {}."
        The sentence of a class.
    r : int, default=2
        Rank of the updates.
    alpha : float, default=1.0
        Of their factor, which is ``alpha / sqrt(r)``, and not ``alpha / r`` as elsewhere.
    targets : sequence of {"q", "k", "v", "o"}, default=("q", "k", "v")
        Matrices of queries, keys, values and of the attention's output.
    encoder : {"both", "vision", "text"}, default="both"
        Towers to tune. With "text", `fit` takes features in the place of pictures, which it encodes only once.
    layers : str or sequence of str and int, default="all"
        Blocks to tune: "all", one of the thirds "bottom", "middle" and "top" or of "lower_half" and "upper_half", or a
        sequence of these and of positions.
    dropout : float, default=0.25
        Share of the inputs of an update that is left out at random in training. Above 0 the tower must be one of
        open_clip's own; 0 serves those of timm and transformers as well.
    logit_scale : float, default=None
        Multiplier of the cosines. None is the model's own; the published code has 100, which is that of OpenAI's.
    steps_per_shot : int, default=500
        Steps of training per picture of a class; a class counts as having ``n / K`` pictures, rounded.
    max_iter : int, default=None
        Epochs, in the place of `steps_per_shot`.
    learning_rate : float, default=2e-4
        Of AdamW; falls to 1e-6 along a cosine, step by step.
    weight_decay : float, default=0.01
        Of AdamW.
    batch_size : int, default=32
        Pictures per step.
    %(tuning_pictures)s
    %(tuning)s

    Attributes
    ----------
    %(classes_)s
    %(tuned)s

    See Also
    --------
    CLIPSVDClassifier : Tunes the singular values of the same matrices, with fewer numbers.
    CLIPFineTuneClassifier : Tunes every weight.

    Notes
    -----
    ``2 r d`` numbers per matrix of width d: 184,320 for ViT-B-16, a thousandth of the model. `state_delta_` holds
    them by the name of the matrix, with ``.A`` and ``.B`` behind.

    In training an update is a branch beside its matrix, with dropout on what enters it, drawn once for the words that
    stand before all names, since these are run once; for prediction the update is added to the matrix. A step costs
    what the forward pass and the backward pass to the activations of both towers cost.

    The published code adds the updates to the weights themselves for each evaluation and takes them away for training,
    which in half precision does not quite lead back; here the weights of the model are never touched.

    References
    ----------
    .. [1] M. Zanella and I. Ben Ayed, "Low-Rank Few-Shot Adaptation of Vision-Language Models", CVPR Workshops 2024,
       arXiv:2405.18541.

    Examples
    --------
    >>> from skclip.datasets import make_picture_world
    >>> from skclip.tuning import CLIPLoRAClassifier
    >>> world = make_picture_world(32, shapes=["circle", "star"], colors=["red", "blue"], styles=["sketch"])
    >>> clf = CLIPLoRAClassifier("skclip-tiny", max_iter=2, random_state=0).fit(world.images, world.target)
    >>> clf.predict_proba(world.images[:2]).shape
    (2, 4)
    >>> clf.with_classes(["green circle", "green star"]).predict(world.images[:2]).shape
    (2,)
    >>> clf.merge()["visual.transformer.resblocks.0.attn.in_proj_weight"].shape
    (288, 96)
    """

    _parameter_constraints: dict[str, list[Any]] = {
        **SHOTS_CONSTRAINTS,
        "r": [Interval(Integral, 1, None, closed="left")],
        "alpha": [Interval(Real, 0, None, closed="neither")],
        "dropout": [Interval(Real, 0, 1, closed="left")],
    }

    def __init__(
        self,
        model: str | None = None,
        *,
        class_names: ClassNames | None = None,
        template: str = "a photo of a {}.",
        r: int = 2,
        alpha: float = 1.0,
        targets: Sequence[str] = ("q", "k", "v"),
        encoder: str = "both",
        layers: Layers = "all",
        dropout: float = 0.25,
        logit_scale: float | None = None,
        steps_per_shot: int = 500,
        max_iter: int | None = None,
        learning_rate: float = 2e-4,
        weight_decay: float = 0.01,
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
        self.r = r
        self.alpha = alpha
        self.targets = targets
        self.encoder = encoder
        self.layers = layers
        self.dropout = dropout
        self.logit_scale = logit_scale
        self.steps_per_shot = steps_per_shot
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

    def _spec(self, sides: Sequence[str]) -> LowRank:
        targets = checked_targets(self.targets, _TARGETS)
        return LowRank(self.r, self.alpha, targets, self.layers, tuple(sides), self.dropout)

    def _in_place(
        self, learned: Tensors, setting: Setting, side: str, generator: torch.Generator | None = None
    ) -> dict[str, Any]:
        # without dropout updates are as good in the weights, which towers of every kind take
        return super()._in_place(learned, setting, side, generator if self.dropout else None)

    def _recipe(self, n_pictures: int, n_classes: int) -> Recipe:
        return replace(recipe_by_shots(self, n_pictures, n_classes), drop_last=False)
