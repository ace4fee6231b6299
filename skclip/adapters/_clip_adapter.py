"""CLIP-Adapter: a small residual network on image features, before they meet the class text."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skclip.adapters._gradient import Tensors, fit_by_gradient
from skclip.adapters._prototypes import means_of_others, prepare
from skclip.utils._arrays import check_features, first_view, row_batches, unit_rows
from skclip.utils._base import SkclipBase
from skclip.utils._classifier import LogitsMixin
from skclip.utils._cosine import cosine_logits
from skclip.utils._docs import fill_doc
from skclip.utils._params import HasMethods, Interval, check_parameters

if TYPE_CHECKING:
    import torch


@fill_doc
class CLIPAdapterClassifier(LogitsMixin, SkclipBase):
    """Zero-shot classification of features that a small network has moved.

    For a few labelled pictures per class, with or without class text. The network is shared by all classes, so that
    it also moves pictures of classes with few examples, or of classes that come later with the same text tower. Not the
    first choice for accuracy: `LPPlusPlusClassifier` and `GDAClassifier` are stronger and faster.

    ``A(x) = relu(W2 relu(W1 x))`` with W1 of shape (h, d), W2 of shape (d, h) and no bias;
    ``x' = ratio * A(x) + (1 - ratio) * x``; ``logits = logit_scale * cos(x', t)`` [1]_. Only W1 and W2 learn. A is
    homogeneous, ``A(c x) = c A(x)`` for c > 0, so x at unit length gives the logits and gradients of the official code,
    which applies it to raw features.

    Parameters
    ----------
    %(zero_shot)s
        None takes the means of the training rows as prototypes; in training each picture is compared with the mean of
        the others of its class, as pictures to come will be.
    reduction : int, default=4
        ``h = max(1, d // reduction)``.
    ratio : float, default=0.2
        Share of A(x). 0 is zero-shot.
    %(logit_scale_without_text)s
    max_iter : int, default=200
        Epochs. 0 keeps the random start.
    learning_rate : float, default=0.1
        Of stochastic gradient descent; falls to 0 along a cosine. Published values lie between 1e-5 and 0.1.
    momentum : float, default=0.9
    batch_size : int, default=256
    %(early_stopping)s
    %(validation_fraction)s
    %(n_iter_no_change)s
    random_state : int, RandomState or None, default=None
        Start of W1 and W2, order of the pictures, choice of views, pictures held out.
    %(device)s
    %(verbose)s

    Attributes
    ----------
    %(classes_)s
    down_weights_ : ndarray of shape (h, d)
        W1.
    up_weights_ : ndarray of shape (d, h)
        W2.
    targets_ : ndarray of shape (K, d)
        Unit rows that pictures are compared with: `prototypes_`, or the class means without text.
    %(prototypes_)s
    logit_scale_ : float
        Multiplier of the cosines.
    %(zero_shot_)s
    loss_curve_ : list of float
        Mean cross entropy of each epoch.
    %(validation_scores_)s
    %(n_epochs_)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    CLAPClassifier : Moves the prototypes instead of the pictures.

    Notes
    -----
    With X of shape (n, V, d), an epoch draws one view of each picture, which stands for encoding a new random crop.
    View 0 alone is read outside `fit`.

    Whole-number `sample_weight` means repeated rows exactly where these fit into one batch, else on average.

    W1 and W2 start as torch's linear layers do, uniformly within ``1 / sqrt(columns)``.

    Cost of `fit`: O(n d (K + d)) per epoch; 4000 pictures of 512 features and 1000 classes take about a minute on one
    core. Prediction is O(n d (K + d)).

    References
    ----------
    .. [1] P. Gao et al., "CLIP-Adapter: Better Vision-Language Models with Feature Adapters", International Journal of
       Computer Vision 132, 2024, arXiv:2110.04544.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.adapters import CLIPAdapterClassifier
    >>> rng = np.random.default_rng(0)
    >>> text = rng.normal(size=(3, 16))
    >>> y = np.repeat([0, 1, 2], 4)
    >>> X = np.repeat(text, 4, axis=0) + rng.normal(size=(12, 16))
    >>> clf = CLIPAdapterClassifier(text, random_state=0).fit(X, y)
    >>> clf.predict(text)
    array([0, 1, 2])
    """

    _set_last = "up_weights_"
    _parameter_constraints: dict[str, list[Any]] = {
        "zero_shot": [HasMethods(["fit"]), "array-like", None],
        "reduction": [Interval(Integral, 1, None, closed="left")],
        "ratio": [Interval(Real, 0, 1, closed="both")],
        "logit_scale": [Interval(Real, 0, None, closed="neither"), None],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
        "device": [str],
        "verbose": ["verbose"],
    }

    logit_scale_: float

    def __init__(
        self,
        zero_shot: Any = None,
        *,
        reduction: int = 4,
        ratio: float = 0.2,
        logit_scale: float | None = None,
        max_iter: int = 200,
        learning_rate: float = 0.1,
        momentum: float = 0.9,
        batch_size: int = 256,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        random_state: int | np.random.RandomState | None = None,
        device: str = "auto",
        verbose: int = 0,
    ) -> None:
        self.zero_shot = zero_shot
        self.reduction = reduction
        self.ratio = ratio
        self.logit_scale = logit_scale
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.batch_size = batch_size
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.device = device
        self.verbose = verbose

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train by stochastic gradient descent.

        %(fit)s

        Raises
        ------
        %(raises_fit)s
            %(raises_also_epochs)s

        Warns
        -----
        %(warns_chance)s
        """
        check_parameters(self)
        self.targets_, logit_scale, pictures, validation, rng = prepare(self, X, y, sample_weight)
        constants, training_logits = {"targets": self.targets_}, None
        if self.prototypes_ is None:
            pictures, constants["others"] = means_of_others(pictures, len(self.classes_))
            training_logits = _left_out_cosines(self.ratio, logit_scale, pictures.codes)
        learned = fit_by_gradient(
            self,
            _adapted_cosines(self.ratio, logit_scale),
            _start(self.n_features_in_, max(1, self.n_features_in_ // self.reduction), rng),
            pictures,
            max_iter=self.max_iter if self.ratio > 0 else 0,
            optimizer_options={"momentum": self.momentum},
            constants=constants,
            training_logits=training_logits,
            validation=validation,
            random_state=rng,
        )
        self.down_weights_, self.up_weights_ = learned["down"], learned["up"]
        return self

    def logits(self, X: Any) -> NDArray:
        """``logit_scale * cos(x', t)``.

        %(logits)s
        """
        check_is_fitted(self)
        X = first_view(*check_features(self, X))
        logits = np.empty((len(X), len(self.targets_)))
        down, up = self.down_weights_.astype(np.float64), self.up_weights_.astype(np.float64)
        for part in row_batches(len(X), 8 * (len(self.targets_) + 6 * X.shape[1])):
            moved = adapt(unit_rows(X[part].astype(np.float64)), down, up, self.ratio)
            logits[part] = cosine_logits(unit_rows(moved), self.targets_, self.logit_scale_)
        return logits


def adapt(rows: NDArray, down: NDArray, up: NDArray, ratio: float) -> NDArray:
    """``ratio * relu(up relu(down x)) + (1 - ratio) * x``."""
    moved = np.maximum(np.maximum(rows @ down.T, 0.0) @ up.T, 0.0)
    return ratio * moved + (1.0 - ratio) * rows


def _adapted(ratio: float, learned: Tensors, rows: torch.Tensor) -> torch.Tensor:
    import torch

    moved = torch.relu(torch.relu(rows @ learned["down"].T) @ learned["up"].T)
    return torch.nn.functional.normalize(ratio * moved + (1.0 - ratio) * rows, dim=1)


def _adapted_cosines(ratio: float, logit_scale: float) -> Callable[[Tensors, Tensors, torch.Tensor], torch.Tensor]:
    def logits(learned: Tensors, fixed: Tensors, rows: torch.Tensor) -> torch.Tensor:
        return logit_scale * (_adapted(ratio, learned, rows) @ fixed["targets"].T)

    return logits


def _left_out_cosines(
    ratio: float, logit_scale: float, codes: NDArray
) -> Callable[[Tensors, Tensors, torch.Tensor, torch.Tensor], torch.Tensor]:
    """The same, but that of the own class with the mean of the other pictures."""

    def logits(learned: Tensors, fixed: Tensors, rows: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
        import torch

        adapted = _adapted(ratio, learned, rows)
        own = (adapted * fixed["others"][places]).sum(dim=1, keepdim=True)
        columns = torch.from_numpy(codes).to(places.device)[places, None]
        return logit_scale * (adapted @ fixed["targets"].T).scatter(1, columns, own)

    return logits


def _start(n_features: int, n_hidden: int, rng: np.random.RandomState) -> dict[str, NDArray]:
    """As torch's linear layers start: uniform within 1 / sqrt(columns)."""
    down, up = 1.0 / np.sqrt(n_features), 1.0 / np.sqrt(n_hidden)
    return {
        "down": rng.uniform(-down, down, (n_hidden, n_features)),
        "up": rng.uniform(-up, up, (n_features, n_hidden)),
    }
