"""Tip-Adapter: labelled pictures as a key-value cache beside the zero-shot logits."""

from __future__ import annotations

from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skclip.adapters._cache import Cache, cache_logits
from skclip.adapters._cache_search import search_alpha_beta
from skclip.utils._arrays import check_features, first_view, row_batches, unit_rows
from skclip.utils._base import SkclipBase
from skclip.utils._class_text import fitted_text, set_text, warn_if_guessing
from skclip.utils._classifier import LogitsMixin
from skclip.utils._cosine import cosine_logits
from skclip.utils._docs import fill_doc
from skclip.utils._params import HasMethods, Interval, StrOptions, check_parameters
from skclip.utils._training import check_chunk, check_training

# what the paper settles on, 16 pictures per class of ImageNet
DEFAULTS = ALPHA, BETA = 1.0, 5.5


def _is_additive(estimator: TipAdapterClassifier) -> bool:
    """Whether more keys leave everything else as it is; AttributeError telling why not."""
    for name in ("alpha", "beta"):
        if isinstance(getattr(estimator, name), str):
            raise AttributeError(
                f'partial_fit sees a chunk at a time, so {name}="cv" has nothing to be searched on. Pass a number, or '
                "use fit."
            )
    return True


@fill_doc
class TipAdapterClassifier(LogitsMixin, SkclipBase):
    """Training-free few-shot classification: labelled pictures vote for their class, on top of the zero-shot
    logits.

    Every training picture is a key, its label the value. A query is compared with all keys; similar ones vote with
    more weight. Nothing is trained: new pictures are added by `partial_fit`, and the pictures behind a decision can
    be looked up. Not the right choice where features share much common noise: a `GDAClassifier`, which learns the
    noise, is more accurate from 4 pictures per class on, and does not keep the pictures.

    ``logits = logit_scale * x T^T + alpha * sum_i exp(-beta (1 - x . key_i)) onehot(y_i)`` [1]_: T the class
    prototypes of `zero_shot`, rows at unit length.

    Parameters
    ----------
    %(zero_shot)s
        None is the cache alone, a kernel vote; alpha then only sharpens the probabilities.
    alpha : float or "cv", default=1.0
        Weight of the cache. The right one depends on `beta`, on the number of pictures and on the text: published
        settings range from 1 to 10. "cv", recommended, chooses it by left-out training pictures, see Notes.
    beta : float or "cv", default=5.5
        Sharpness of the votes: at 100 the nearest picture decides almost alone, below 1 all pictures of a class vote
        almost alike. 5.5 with ``alpha=1`` is the setting of the paper for 16 pictures per class of ImageNet;
        the official search starts from 1.
    %(logit_scale)s
    normalize_values : bool, default=False
        Divide the votes of a class by its number of pictures, for training sets that are imbalanced but stand for
        balanced queries. alpha then counts as many times more as there are pictures per class.

    Attributes
    ----------
    %(classes_)s
    keys_ : ndarray of shape (m, d)
        Unit rows, one per training picture, sorted by class and else in the order of X. In the floating type of X.
    codes_ : ndarray of shape (m,)
        Position in `classes_` of the label of each key. There is no one-hot matrix: a cache of a million keys would
        need gigabytes for it.
    weights_ : ndarray of shape (m,)
        How often each key counts.
    alpha_, beta_ : float
        In use.
    %(prototypes_)s
    %(logit_scale_)s
    %(zero_shot_)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    TipAdapterFClassifier : The same cache with trained keys.
    GDAClassifier : Class means and a shared covariance.
    skclip.zero_shot.ZeroShotClassifier : The text term alone.

    Notes
    -----
    With X of shape (n, V, d), the views of a picture are averaged, then normalised, to one key; view 0 alone is read
    outside `fit`.

    "cv" leaves out training pictures, with all their views and repeats, in closed form: the own key is masked, and the
    votes of its class are scaled up by ``n_k / (n_k - 1)``. Because the class of that key competes with one picture
    less, pictures are also scored with one key of every class masked; without text only so, with up to four different
    choices of keys. The pair with the highest accuracy is taken, averaged over neighbouring pairs: beta between 1 and
    100, alpha such that the cache spreads over the classes between 0.01 and 100 times as much as the text; of equally
    good pairs the one in their middle. Without text alpha does not change a prediction, and is that of the best
    calibrated probabilities. At most 4096 pictures are left out. Pictures that are alone in their class are not; if
    that is so in half of the classes or more, alpha is 1 and beta 5.5. There is one warning.

    The paper searches alpha and beta on validation pictures, and on the test pictures where there are no others, as on
    ImageNet; "cv" sees neither. To follow the published protocol with a validation set, give it to scikit-learn's
    search::

        split = PredefinedSplit(np.r_[np.full(len(X_train), -1), np.zeros(len(X_val), int)])
        grid = {"beta": np.linspace(0.1, 7, 200), "alpha": np.linspace(0.1, 3, 20)}
        search = GridSearchCV(TipAdapterClassifier(zero_shot), grid, cv=split, refit=False)
        search.fit(np.r_[X_train, X_val], np.r_[y_train, y_val])
        clf = TipAdapterClassifier(zero_shot, **search.best_params_).fit(X_train, y_train)

    (the official scales are [7, 3] to [50, 50] for beta and alpha; of equal scores the first is taken, as there).
    ``refit=False``, because the validation pictures do not join the cache.

    Cost: `fit` copies X; "cv" adds O(n^2 d) for n up to 4096 and O(4096 n d) beyond. Prediction is O(m d) per row, in
    tiles within scikit-learn's ``working_memory``, so that neither the (n, m) affinities nor a float64 copy of
    the keys ever exist.

    References
    ----------
    .. [1] R. Zhang et al., "Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification", ECCV 2022,
       arXiv:2207.09519, equations (3) to (5).

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.adapters import TipAdapterClassifier
    >>> rng = np.random.default_rng(0)
    >>> directions = rng.normal(size=(3, 16))
    >>> y = np.repeat(["cat", "dog", "owl"], 8)
    >>> X = np.repeat(directions, 8, axis=0) + rng.normal(scale=0.5, size=(24, 16))
    >>> clf = TipAdapterClassifier().fit(X, y)
    >>> clf.predict(directions)
    array(['cat', 'dog', 'owl'], dtype='<U3')
    >>> clf.partial_fit(directions, ["cat", "dog", "owl"]).keys_.shape
    (27, 16)
    """

    _set_last = "weights_"
    _parameter_constraints: dict[str, list[Any]] = {
        "zero_shot": [HasMethods(["fit"]), "array-like", None],
        "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"cv"})],
        "beta": [Interval(Real, 0, None, closed="neither"), StrOptions({"cv"})],
        "logit_scale": [Interval(Real, 0, None, closed="neither"), None],
        "normalize_values": ["boolean"],
    }

    def __init__(
        self,
        zero_shot: Any = None,
        *,
        alpha: float | str = ALPHA,
        beta: float | str = BETA,
        logit_scale: float | None = None,
        normalize_values: bool = False,
    ) -> None:
        self.zero_shot = zero_shot
        self.alpha = alpha
        self.beta = beta
        self.logit_scale = logit_scale
        self.normalize_values = normalize_values

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fill the cache and, if asked, choose alpha and beta.

        %(fit)s

        Raises
        ------
        %(raises_fit)s

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
            stacklevel=3,
        )
        set_cache(self, Cache.of(training, len(self.classes_)))
        return self

    @available_if(_is_additive)
    def partial_fit(
        self, X: Any, y: ArrayLike, classes: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Add pictures to the cache; after all chunks the model is that of one `fit`.

        Only where alpha and beta are numbers.

        Parameters
        ----------
        %(X_fit)s
        y : array-like of shape (n,)
            Labels, all among `classes`.
        classes : array-like of shape (K,), default=None
            All labels that will come; needed in the first call. A class without pictures yet is known by its text
            alone.
        sample_weight : array-like of shape (n,), default=None
            How often each picture counts.

        %(self)s

        Raises
        ------
        AttributeError
            If alpha or beta is "cv".
        ValueError
            If the first call lacks `classes`, a later one changes them, or y holds another label.

        Notes
        -----
        O(m d) per call: the cache is copied.
        """
        check_parameters(self)
        first = not hasattr(self, "keys_")
        training = check_chunk(self, X, y, classes, sample_weight, first=first)
        text = set_text(self) if first else fitted_text(self)
        warn_if_guessing(training, text)
        cache = Cache.of(training, len(self.classes_))
        self.alpha_, self.beta_ = float(self.alpha), float(self.beta)
        set_cache(self, cache if first else fitted_cache(self).joined(cache))
        return self

    def logits(self, X: Any) -> NDArray:
        """Zero-shot logits and weighted votes.

        %(logits)s
            With ``alpha=0`` the zero-shot logits unchanged.
        """
        return text_and_cache_logits(self, X)


def set_cache(estimator: Any, cache: Cache) -> None:
    """Fitted attributes of a cache."""
    estimator.keys_, estimator.codes_, estimator.weights_ = cache.keys, cache.codes, cache.weights


def fitted_cache(estimator: Any) -> Cache:
    """What `set_cache` has set."""
    order = np.arange(len(estimator.codes_))
    return Cache(estimator.keys_, estimator.codes_, estimator.weights_, order, len(estimator.classes_))


def text_and_cache_logits(estimator: Any, X: Any) -> NDArray:
    """``logit_scale * x T^T + alpha * cache logits`` of a fitted classifier, (n, K)."""
    check_is_fitted(estimator)
    X = first_view(*check_features(estimator, X))
    text = fitted_text(estimator)
    if text is not None and estimator.alpha_ == 0:
        return cosine_logits(unit_rows(X), text.prototypes, text.logit_scale)
    logits = np.zeros((len(X), len(estimator.classes_)))
    if estimator.alpha_ == 0:
        return logits
    cache = fitted_cache(estimator)
    if estimator.normalize_values:
        cache = cache.normalized()
    for part in row_batches(len(X), 8 * (2 * logits.shape[1] + 2 * X.shape[1])):
        rows = unit_rows(X[part])
        logits[part] = estimator.alpha_ * cache_logits(rows, cache, estimator.beta_)
        if text is not None:
            logits[part] += cosine_logits(rows, text.prototypes, text.logit_scale)
    return logits
