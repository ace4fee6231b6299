"""CLAP: a linear probe that starts at the class text and is held near it, class by class."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import softmax
from sklearn.utils.validation import check_is_fitted

from skclip.adapters._gradient import Pictures, Tensors, fit_by_gradient
from skclip.adapters._prototypes import prepare
from skclip.utils._arrays import check_features, first_view, row_batches, unit_rows
from skclip.utils._base import SkclipBase
from skclip.utils._classifier import LogitsMixin
from skclip.utils._cosine import cosine_logits, linear_logits
from skclip.utils._docs import fill_doc
from skclip.utils._params import HasMethods, Interval, StrOptions, check_parameters

if TYPE_CHECKING:
    import torch


@fill_doc
class CLAPClassifier(LogitsMixin, SkclipBase):
    """Cosine classifier that starts at the class text and is tied to it, more firmly where the text is right.

    A good choice with class text and a few labelled pictures, where nothing is left to choose hyper-parameters on:
    few pictures cannot pull a class far from its text. ``penalty=0`` is the zero-shot initialised linear probe,
    ZS-LP, which may go anywhere.

    ``logits = logit_scale * cos(x, W_k)``, and training minimises the mean cross entropy plus
    ``penalty * mean_k lambda_k * distance(W_k, T_k)`` [1]_. T are the prototypes, of length `prototype_norm`, where W
    starts. lambda_k is the mean probability that they give to class k for its own training pictures.

    Parameters
    ----------
    %(zero_shot)s
        None takes the means of the training rows as prototypes.
    penalty : float or "auto", default="auto"
        Multiplier of the penalty. 0 is ZS-LP, infinity keeps the prototypes. "auto" is the paper's 1 with text and 0
        without: means of the training rows hold nothing that training could forget.
    distance : {"l2", "cosine"}, default="l2"
        ``||W_k - T_k||^2`` or ``1 - cos(W_k, T_k)``.
    multipliers : {"class", "adaptive", "balanced", "constant", "corrected"}, default="class"
        lambda.

        - "class": the mean probabilities.
        - "adaptive": start there, and are raised by ``rho_k h_k`` after every epoch, h_k being the distance and rho_k
          that of the epoch before: augmented Lagrangian steps towards W = T.
        - "balanced": 1 for every class.
        - "constant": their mean, for every class.
        - "corrected": scaled to mean 1.
    %(logit_scale_without_text)s
    prototype_norm : float, default=10.0
        Length of the rows of T. The published learning rate and penalty belong to prototypes as CLIP's text tower
        makes them, whose lengths are about 7 to 11.
    max_iter : int, default=300
        Epochs. 0 keeps the prototypes.
    learning_rate : float, default=0.1
        Of stochastic gradient descent; falls to 0 along a cosine.
    momentum : float, default=0.9
    batch_size : int, default=256
    %(early_stopping)s
    %(validation_fraction)s
    %(n_iter_no_change)s
    random_state : int, RandomState or None, default=None
        Order of the pictures, choice of views, pictures held out.
    %(device)s
    %(verbose)s

    Attributes
    ----------
    %(classes_)s
    coef_ : ndarray of shape (K, d)
        ``logit_scale * W_k / ||W_k||``, to be multiplied with unit rows.
    multipliers_ : ndarray of shape (K,) or None
        lambda_k at the end, without the factor `penalty`; None where that is 0.
    %(prototypes_)s
    logit_scale_ : float
        Multiplier of the cosines.
    %(zero_shot_)s
    loss_curve_ : list of float
        Mean cross entropy plus penalty of each epoch.
    %(validation_scores_)s
    %(n_epochs_)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    LPPlusPlusClassifier : Adds a learned share of the text instead.
    CLIPAdapterClassifier : Moves the pictures instead of the prototypes.

    Notes
    -----
    With X of shape (n, V, d), an epoch draws one view of each picture, which stands for encoding a new random crop;
    lambda is measured on all views. View 0 alone is read outside `fit`.

    Whole-number `sample_weight` means repeated rows exactly where these fit into one batch, else on average.

    A penalty so strong that a step would overshoot T is capped where the step just reaches it.

    Cost of `fit`: O(n K d) per epoch; 4000 pictures of 512 features and 1000 classes take about a minute on one core.
    Prediction is O(n K d).

    References
    ----------
    .. [1] J. Silva-Rodriguez et al., "A Closer Look at the Few-Shot Adaptation of Large Vision-Language Models",
       CVPR 2024, arXiv:2312.12730.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.adapters import CLAPClassifier
    >>> rng = np.random.default_rng(0)
    >>> text = rng.normal(size=(3, 16))
    >>> y = np.repeat([0, 1, 2], 4)
    >>> X = np.repeat(text, 4, axis=0) + rng.normal(size=(12, 16))
    >>> clf = CLAPClassifier(text, random_state=0).fit(X, y)
    >>> clf.predict(text)
    array([0, 1, 2])
    """

    _set_last = "coef_"
    _parameter_constraints: dict[str, list[Any]] = {
        "zero_shot": [HasMethods(["fit"]), "array-like", None],
        "penalty": [Interval(Real, 0, None, closed="both"), StrOptions({"auto"})],
        "distance": [StrOptions({"l2", "cosine"})],
        "multipliers": [StrOptions({"class", "adaptive", "balanced", "constant", "corrected"})],
        "logit_scale": [Interval(Real, 0, None, closed="neither"), None],
        "prototype_norm": [Interval(Real, 0, None, closed="neither")],
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
        penalty: float | str = "auto",
        distance: str = "l2",
        multipliers: str = "class",
        logit_scale: float | None = None,
        prototype_norm: float = 10.0,
        max_iter: int = 300,
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
        self.penalty = penalty
        self.distance = distance
        self.multipliers = multipliers
        self.logit_scale = logit_scale
        self.prototype_norm = prototype_norm
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
        prototypes, logit_scale, pictures, validation, rng = prepare(self, X, y, sample_weight)
        strength = float(self.prototypes_ is not None) if self.penalty == "auto" else float(self.penalty)
        penalised = 0.0 < strength < np.inf
        multipliers = None
        if strength > 0.0:
            confidence = class_confidence(pictures, prototypes, logit_scale)
            multipliers = initial_multipliers(confidence, self.multipliers)
        constants = {"prototypes": self.prototype_norm * prototypes}
        if multipliers is not None:
            constants |= {"multipliers": multipliers, "rho": multipliers}
        final: dict[str, NDArray] = {}
        learned = fit_by_gradient(
            self,
            _scaled_cosines(logit_scale),
            {"weights": constants["prototypes"]},
            pictures,
            max_iter=self.max_iter if strength < np.inf else 0,
            optimizer_options={"momentum": self.momentum},
            constants=constants,
            penalty=self._penalty(strength, len(prototypes)) if penalised else None,
            after_epoch=self._raise_multipliers(final) if penalised and self.multipliers == "adaptive" else None,
            validation=validation,
            random_state=rng,
        )
        self.multipliers_ = final.get("multipliers", multipliers)
        self.coef_ = logit_scale * unit_rows(learned["weights"].astype(np.float64))
        return self

    def _penalty(self, strength: float, n_classes: int) -> Callable[[Tensors, Tensors], torch.Tensor]:
        distance = _DISTANCES[self.distance]
        # beyond it a step of gradient descent would pass the prototypes
        most = n_classes / (2.0 * self.learning_rate) if self.distance == "l2" else np.inf

        def penalty(learned: Tensors, fixed: Tensors) -> torch.Tensor:
            multipliers = (strength * fixed["multipliers"]).clamp(max=most)
            return (multipliers * distance(learned["weights"], fixed["prototypes"])).mean()

        return penalty

    def _raise_multipliers(self, final: dict[str, NDArray]) -> Callable[[Tensors, Tensors], None]:
        distance = _DISTANCES[self.distance]

        def after_epoch(learned: Tensors, fixed: Tensors) -> None:
            h = distance(learned["weights"], fixed["prototypes"])
            fixed["multipliers"] += fixed["rho"] * h
            fixed["rho"] = h
            final["multipliers"] = fixed["multipliers"].cpu().numpy().astype(np.float64)

        return after_epoch

    def logits(self, X: Any) -> NDArray:
        """``logit_scale * cos(x, W_k)``.

        %(logits)s
        """
        check_is_fitted(self)
        return linear_logits(first_view(*check_features(self, X)), self.coef_)


def _scaled_cosines(logit_scale: float) -> Callable[[Tensors, Tensors, torch.Tensor], torch.Tensor]:
    def logits(learned: Tensors, fixed: Tensors, rows: torch.Tensor) -> torch.Tensor:
        import torch

        return logit_scale * (rows @ torch.nn.functional.normalize(learned["weights"], dim=1).T)

    return logits


def _squared_distance(weights: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    return (weights - prototypes).square().sum(dim=1)


def _cosine_distance(weights: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    import torch

    return 1.0 - torch.nn.functional.cosine_similarity(weights, prototypes, dim=1)


_DISTANCES: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "l2": _squared_distance,
    "cosine": _cosine_distance,
}


def class_confidence(pictures: Pictures, prototypes: NDArray, logit_scale: float) -> NDArray:
    """Mean softmax probability of class k for its own rows, every view a row, (K,)."""
    rows, codes, weights = pictures.flat()
    own = np.empty(len(rows))
    for part in row_batches(len(rows), 24 * len(prototypes)):
        probabilities = softmax(cosine_logits(rows[part], prototypes, logit_scale), axis=1)
        own[part] = probabilities[np.arange(len(probabilities)), codes[part]]
    n_classes = len(prototypes)
    return np.bincount(codes, weights * own, n_classes) / np.bincount(codes, weights, n_classes)


def initial_multipliers(confidence: NDArray, kind: str) -> NDArray:
    """lambda from the confidence of each class, (K,)."""
    if kind == "balanced":
        return np.ones_like(confidence)
    if kind == "constant":
        return np.full_like(confidence, confidence.mean())
    if kind == "corrected":
        return confidence / confidence.mean()
    return confidence
