"""SuS-X: support pictures, labelled, generated or retrieved, compared by cosine and by class distribution."""

from __future__ import annotations

from numbers import Real
from typing import Any, Self

from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from skclip.adapters._signatures import text_signature
from skclip.adapters._support import Support, Weights, fit_support, support_logits
from skclip.utils._arrays import check_features, first_view, unit_rows
from skclip.utils._base import SkclipBase
from skclip.utils._class_text import set_text, warn_if_guessing
from skclip.utils._classifier import LogitsMixin
from skclip.utils._docs import fill_doc
from skclip.utils._params import HasMethods, Interval, StrOptions, check_parameters
from skclip.utils._training import check_training


@fill_doc
class SuSXClassifier(LogitsMixin, SkclipBase):
    """Training-free classification with a support set, which may be generated or retrieved from class names alone:
    the votes of Tip-Adapter, and votes of pictures that the text describes alike.

    For class names without a labelled picture, fit it on pictures made or found for each name; it takes real
    pictures as well (the method of the paper is then called TIP-X). Two pictures are compared by their cosine, and by
    the Kullback-Leibler divergence of their zero-shot class distributions (signatures), which sees nothing but the
    directions that the class names span. Where there are real pictures of the task, `GDAClassifier` is usually better.

    ``logits = logit_scale * x T^T + alpha * sum_j exp(-beta (1 - x . f_j)) onehot(y_j)
    - gamma * sum_j M'_j onehot(y_j)`` [1]_: T the prototypes of `zero_shot`, f_j and y_j the support pictures and
    their labels, ``M_j = KL(softmax(x T^T / tau) || softmax(f_j T^T / tau))``, and M' the same moved from its own
    range to the range of the cosines.

    Parameters
    ----------
    %(zero_shot)s
        With None there are no signatures: the cosine votes are all there is. The paper takes sentences of a language
        model together with seven templates.
    alpha : float or "cv", default=1.0
        Weight of the cosine votes.
    beta : float or "cv", default=1.0
        How fast the votes fall with the distance.
    gamma : float or "cv", default=1.0
        Weight of the votes by signature.
    temperature : float, default=0.5
        tau, of the signatures.
    rescale : {"fit", "batch"}, default="fit"
        Between which pictures the two ranges are taken.

        - "fit": among the support pictures, none with itself, once and for all.
        - "batch": between the queries of a call and the support, as the official code does. The logits of a picture
          then depend on the pictures it is predicted with.
    %(logit_scale)s

    Attributes
    ----------
    %(classes_)s
    alpha_, beta_, gamma_ : float
        Numbers in use; ``gamma_`` is 0 without text.
    keys_ : ndarray of shape (m, d)
        Unit rows of the support pictures, sorted by class; of several views their mean.
    codes_ : ndarray of shape (m,)
        Class of each row of `keys_`, 0..K-1.
    weights_ : ndarray of shape (m,)
        Weight of each.
    signature_sums_ : ndarray of shape (K, K) or None
        Sum of the log signatures of each class: all that the divergences need.
    affinity_range_, divergence_range_ : ndarray of shape (2,) or None
        Smallest and largest cosine and divergence among support pictures; None without text, or with
        ``rescale="batch"``.
    %(prototypes_)s
    %(logit_scale_)s
    %(zero_shot_)s
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    CapSAdapterClassifier : Takes a caption of each support picture as well.
    GDAClassifier : Class means and a shared covariance.

    Notes
    -----
    With X of shape (n, V, d), the views of a picture are averaged in `fit`, and view 0 alone is read elsewhere.

    Divergences are linear in the log signatures of the support, so their sum over a class is one product with the sum
    of these: the signature term costs O(n d K + n K^2), however large the support. The cosine votes cost O(n m d),
    and memory stays within scikit-learn's ``working_memory``. `fit` costs O(m^2 (d + K)) for the ranges; beyond 8192
    different pictures, the pairs of 8192 of them with all others tell them.

    "cv" leaves out one support picture at a time, in closed form, and takes what gives these pictures the lowest
    log-loss, however the logits as a whole are scaled: a convex problem in alpha and gamma for each of nine beta from
    1 to 256. The votes of the class that lacks a picture are scaled up to the whole class. Up to 4096 pictures are
    left out. Pictures that are alone in their class cannot be; where half of the classes or more have a single one,
    the number is 1. Either way there is one warning. What is left out comes from the support: generated pictures tell
    little about which weights suit photographs. Without text this is Tip-Adapter, and so is the search.

    All terms but the first are sums over pictures: the natural alpha and gamma fall with their number. Whole-number
    `sample_weight` means repeated pictures.

    The official code leaves the last ``n mod 100`` queries without divergences, and takes the range of cosines of the
    test set from the validation set; neither is reproduced.

    References
    ----------
    .. [1] V. Udandarao, A. Gupta and S. Albanie, "SuS-X: Training-Free Name-Only Transfer of Vision-Language Models",
       ICCV 2023, arXiv:2211.16198.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.adapters import SuSXClassifier
    >>> rng = np.random.default_rng(0)
    >>> directions = rng.normal(size=(3, 16))
    >>> text = directions + rng.normal(size=(3, 16))
    >>> y = np.repeat([0, 1, 2], 8)
    >>> X = directions[y] + rng.normal(scale=0.5, size=(24, 16))
    >>> SuSXClassifier(text).fit(X, y).predict(directions)
    array([0, 1, 2])
    """

    _set_last = "gamma_"
    _parameter_constraints: dict[str, list[Any]] = {
        "zero_shot": [HasMethods(["fit"]), "array-like", None],
        "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"cv"})],
        "beta": [Interval(Real, 0, None, closed="left"), StrOptions({"cv"})],
        "gamma": [Interval(Real, 0, None, closed="left"), StrOptions({"cv"})],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "rescale": [StrOptions({"fit", "batch"})],
        "logit_scale": [Interval(Real, 0, None, closed="neither"), None],
    }

    def __init__(
        self,
        zero_shot: Any = None,
        *,
        alpha: float | str = 1.0,
        beta: float | str = 1.0,
        gamma: float | str = 1.0,
        temperature: float = 0.5,
        rescale: str = "fit",
        logit_scale: float | None = None,
    ) -> None:
        self.zero_shot = zero_shot
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.temperature = temperature
        self.rescale = rescale
        self.logit_scale = logit_scale

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Keep the support pictures, measure their ranges and, if asked, choose the weights.

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
        support = Support.of(training, len(self.classes_))
        signature = None if text is None else text_signature(text.prototypes, self.temperature)
        fit_support(self, training, support, signature, text, Weights(self.alpha, self.beta, self.gamma))
        return self

    def logits(self, X: Any) -> NDArray:
        """Zero-shot logits and the votes of the support.

        %(logits)s
            With ``alpha=0, gamma=0`` the zero-shot logits unchanged.
        """
        check_is_fitted(self)
        rows = unit_rows(first_view(*check_features(self, X)))
        signature = None if self.prototypes_ is None else text_signature(self.prototypes_, self.temperature)
        return support_logits(self, rows, signature)
