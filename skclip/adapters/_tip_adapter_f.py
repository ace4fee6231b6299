"""Tip-Adapter-F: a key-value cache whose keys are trained."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import check_random_state

from skclip.adapters._cache import Cache
from skclip.adapters._cache_search import cached_pictures, search_alpha_beta
from skclip.adapters._gradient import Pictures, Tensors, fit_by_gradient
from skclip.adapters._held_out import Pictures as DistinctPictures
from skclip.adapters._tip_adapter import set_cache, text_and_cache_logits
from skclip.utils._arrays import unit_rows
from skclip.utils._base import SkclipBase
from skclip.utils._class_text import set_text, warn_if_guessing
from skclip.utils._classifier import LogitsMixin
from skclip.utils._docs import fill_doc
from skclip.utils._params import HasMethods, Interval, StrOptions, check_parameters
from skclip.utils._training import check_training, validation_split

if TYPE_CHECKING:
    import torch

# what the official configurations train with, but for alpha, which they set per data set from 1.17 up
DEFAULTS = ALPHA, BETA = 1.0, 1.0

# mark of a row that meets all keys
NO_KEY = -1


@fill_doc
class TipAdapterFClassifier(LogitsMixin, SkclipBase):
    """Few-shot classification by a cache of labelled pictures whose keys are trained, on top of the zero-shot logits.

    Starts as `TipAdapterClassifier` and moves the keys for a few epochs of gradient descent. Clearly better than the
    cache alone from 4 pictures per class on, for seconds to minutes of training. Not the right choice
    where that is too slow: `GDAClassifier` is close or better and needs no gradient step.

    ``logits = logit_scale * x T^T + alpha * sum_i exp(-beta (1 - x . key_i)) onehot(y_i)`` [1]_. Values, text, alpha
    and beta stay as they are; the trained keys are not normalised again.

    Parameters
    ----------
    %(zero_shot)s
        None is the cache alone.
    alpha : float or "cv", default=1.0
        Weight of the cache. "cv", recommended, chooses it before training, see Notes. 1 is small for a few pictures,
        above all without text: the classes are then hardly told apart, and training has no time to change that.
    beta : float or "cv", default=1.0
        Sharpness of the votes. 1 is what all official configurations train with. A sharp kernel leaves most keys
        without gradient, so that "cv" is rarely better.
    %(logit_scale)s
    normalize_values : bool, default=False
        Divide the votes of a class by its number of pictures.
    leave_own_out : bool, default=True
        Whether a picture is trained on without the vote of its own key, the rest of its class scaled up. Fixed
        features meet their own key at affinity 1, which is right from the start and teaches nothing. False is the
        published recipe, which encodes a fresh random crop at every step. A picture that is alone in its class keeps
        its vote.
    max_iter : int, default=20
        Epochs. 0 is `TipAdapterClassifier`. The paper trains 20, and 100 on EuroSAT.
    learning_rate : float, default=1e-3
        Of AdamW, falling to 0 along a cosine, step by step.
    batch_size : int, default=256
        Pictures per step.
    weight_decay, eps : float, default=0.01, 1e-4
        Of AdamW.
    early_stopping : bool, default=False
        Whether to hold out pictures from the loss and keep the keys of the epoch that recognises most of them. Their
        own keys stay in the cache, and are masked where they are scored.
    %(validation_fraction)s
    %(n_iter_no_change)s
    %(device)s
    %(verbose)s
    random_state : int, RandomState or None, default=None
        Order of the pictures, choice of views, held-out pictures.

    Attributes
    ----------
    %(classes_)s
    keys_ : ndarray of shape (m, d)
        Trained keys of the distinct pictures, sorted by class.
    codes_ : ndarray of shape (m,)
        Position in `classes_` of the label of each key.
    weights_ : ndarray of shape (m,)
        How often each key counts.
    alpha_, beta_ : float
        In use.
    loss_curve_ : list of float
        Mean training loss of each epoch.
    %(validation_scores_)s
    %(n_epochs_)s
    %(prototypes_)s
    %(logit_scale_)s
    %(zero_shot_)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    TipAdapterClassifier : The same cache, untrained.

    Notes
    -----
    With X of shape (n, V, d), the views of a picture are averaged, then normalised, to one key, and each epoch trains
    on one of them, which stands for encoding a new random crop.

    "cv" chooses alpha and beta from the untrained cache, by training pictures that are left out of it: with text by
    their accuracy, as `TipAdapterClassifier` does; without by their log-loss, which training then goes on to minimise.
    They are not searched again afterwards. Where most classes have a single picture both are 1, with one warning.

    The official script evaluates on the test pictures after each epoch, reports the best epoch, and searches alpha and
    beta once more there; its figures are optimistic. Here the last epoch counts, or the best on held-out training
    pictures. To search on a validation set of your own, see the notes of `TipAdapterClassifier`.

    Each epoch costs O(n m d). Two fits with equal `random_state` are equal on one device.

    References
    ----------
    .. [1] R. Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022,
       arXiv:2207.09519, section 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.adapters import TipAdapterFClassifier
    >>> rng = np.random.default_rng(0)
    >>> directions = rng.normal(size=(3, 16))
    >>> y = np.repeat(["cat", "dog", "owl"], 8)
    >>> X = np.repeat(directions, 8, axis=0) + rng.normal(scale=0.5, size=(24, 16))
    >>> clf = TipAdapterFClassifier(alpha="cv", random_state=0)
    >>> clf.fit(X, y).predict(directions)
    array(['cat', 'dog', 'owl'], dtype='<U3')
    >>> clf.keys_.shape
    (24, 16)
    """

    _set_last = "weights_"
    _parameter_constraints: dict[str, list[Any]] = {
        "zero_shot": [HasMethods(["fit"]), "array-like", None],
        "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"cv"})],
        "beta": [Interval(Real, 0, None, closed="neither"), StrOptions({"cv"})],
        "logit_scale": [Interval(Real, 0, None, closed="neither"), None],
        "normalize_values": ["boolean"],
        "leave_own_out": ["boolean"],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "learning_rate": [Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "weight_decay": [Interval(Real, 0, None, closed="left")],
        "eps": [Interval(Real, 0, None, closed="neither")],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "device": [str],
        "verbose": ["verbose"],
        "random_state": ["random_state"],
    }

    def __init__(
        self,
        zero_shot: Any = None,
        *,
        alpha: float | str = ALPHA,
        beta: float | str = BETA,
        logit_scale: float | None = None,
        normalize_values: bool = False,
        leave_own_out: bool = True,
        max_iter: int = 20,
        learning_rate: float = 1e-3,
        batch_size: int = 256,
        weight_decay: float = 0.01,
        eps: float = 1e-4,
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 10,
        device: str = "auto",
        verbose: int = 0,
        random_state: int | np.random.RandomState | None = None,
    ) -> None:
        self.zero_shot = zero_shot
        self.alpha = alpha
        self.beta = beta
        self.logit_scale = logit_scale
        self.normalize_values = normalize_values
        self.leave_own_out = leave_own_out
        self.max_iter = max_iter
        self.learning_rate = learning_rate
        self.batch_size = batch_size
        self.weight_decay = weight_decay
        self.eps = eps
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.device = device
        self.verbose = verbose
        self.random_state = random_state

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fill the cache, choose alpha and beta if asked, and train the keys.

        Parameters
        ----------
        %(X_fit)s
        %(y_fit)s
        %(weights_fit)s
            It counts as a key and in the loss.

        %(self)s

        Raises
        ------
        %(raises_fit)s
            %(raises_also_epochs)s

        Warns
        -----
        %(warns_chance)s
            Also if "cv" meets a class with one picture.
        """
        check_parameters(self)
        training = check_training(self, X, y, sample_weight)
        text = set_text(self)
        warn_if_guessing(training, text)
        self.alpha_, self.beta_ = search_alpha_beta(
            training,
            self.classes_,
            text,
            alpha=self.alpha,
            beta=self.beta,
            normalize_values=self.normalize_values,
            defaults=DEFAULTS,
            start_of_training=True,
            stacklevel=3,
        )
        pictures, cache = cached_pictures(training, len(self.classes_))
        set_cache(self, cache._replace(keys=self._trained_keys(pictures, cache)))
        return self

    def logits(self, X: Any) -> NDArray:
        """Zero-shot logits and weighted votes.

        %(logits)s
            With ``alpha=0`` the zero-shot logits unchanged.
        """
        return text_and_cache_logits(self, X)

    def _trained_keys(self, pictures: DistinctPictures, cache: Cache) -> NDArray:
        rng = check_random_state(self.random_state)
        values = cache.normalized() if self.normalize_values else cache
        several = np.diff(cache.starts())[cache.codes] > 1
        own = np.where(several, np.arange(len(several)), NO_KEY)
        train, held = np.arange(len(own)), None
        if self.early_stopping:
            train, held = validation_split(pictures.codes, self.validation_fraction, rng)
        constants = {"codes": values.codes, "weights": values.weights, "lift": _lifts(values, several)}
        if self.prototypes_ is not None:
            constants["text"] = self.logit_scale_ * self.prototypes_
        learned = fit_by_gradient(
            self,
            _logits(len(self.classes_), self.alpha_, self.beta_),
            {"keys": cache.keys},
            _with_key(pictures.take(train), own[train] if self.leave_own_out else np.full(len(train), NO_KEY)),
            max_iter=self.max_iter,
            optimizer="adamw",
            optimizer_options={"weight_decay": self.weight_decay, "eps": self.eps},
            constants=constants,
            # without its own key in any case, or it would always be right
            validation=None if held is None else _with_key(pictures.take(held), own[held]),
            random_state=rng,
        )
        return learned["keys"]


def _with_key(pictures: DistinctPictures, own: NDArray) -> Pictures:
    """Unit rows with one more column: the key that the row does without.

    Training shuffles rows and knows nothing of keys, so that a row carries its own along.
    """
    n_pictures, n_views, width = pictures.views.shape
    views = unit_rows(pictures.views.reshape(-1, width)).reshape(n_pictures, n_views, width)
    marks = np.broadcast_to(own[:, None, None], (n_pictures, n_views, 1)).astype(views.dtype)
    weights = None if np.all(pictures.weights == pictures.weights[0]) else pictures.weights
    return Pictures(np.concatenate([views, marks], axis=2), pictures.codes, weights)


def _lifts(cache: Cache, several: NDArray) -> NDArray:
    """What the votes of a class are multiplied by when it does without a key, (m,)."""
    counts = cache.counts()[cache.codes]
    return counts / np.where(several, counts - cache.weights, counts)


def _logits(n_classes: int, alpha: float, beta: float) -> Callable[[Tensors, Tensors, torch.Tensor], torch.Tensor]:
    def logits(learned: Tensors, fixed: Tensors, rows: torch.Tensor) -> torch.Tensor:
        import torch

        features, own = rows[:, :-1], rows[:, -1].long()
        codes = fixed["codes"].long()
        # keys by rows: sums over a class are then sums of whole rows
        votes = torch.exp(beta * (learned["keys"] @ features.T - 1.0)) * fixed["weights"][:, None]
        totals = votes.new_zeros(n_classes, len(rows)).index_add(0, codes, votes)
        key = own.clamp(min=0)[None]
        total = totals.gather(0, codes[key])
        rest = (total - votes.gather(0, key)) * fixed["lift"][key]
        totals = totals.scatter(0, codes[key], torch.where(own >= 0, rest, total))
        cache = alpha * totals.T
        return cache if "text" not in fixed else features @ fixed["text"].T + cache

    return logits
