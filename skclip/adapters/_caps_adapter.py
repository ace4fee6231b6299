"""CapS-Adapter: support pictures with captions, blended where similarities are taken."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils import _safe_indexing, check_array
from sklearn.utils.validation import check_is_fitted

from skclip.adapters._signatures import Signature, feature_signature, text_signature
from skclip.adapters._support import Support, Weights, fit_support, support_logits
from skclip.features import CLIPTextFeatures
from skclip.utils._arrays import FLOATS, check_features, first_view, unit_rows
from skclip.utils._base import SkclipBase
from skclip.utils._class_text import ClassText, fitted_text, set_text, warn_if_guessing
from skclip.utils._classifier import LogitsMixin
from skclip.utils._docs import fill_doc
from skclip.utils._params import HasMethods, Interval, StrOptions, check_parameters
from skclip.utils._training import check_training

# what a text-side estimator tells about how to encode captions
_ENCODER_PARAMETERS = ("device", "precision", "batch_size", "store")


@fill_doc
class CapSAdapterClassifier(LogitsMixin, SkclipBase):
    """Training-free classification with a support set whose pictures have captions: a query is compared with picture
    and caption.

    For support pictures that look unlike the pictures to come, such as generated ones or another style: their
    captions know nothing of the style. Without such a shift the captions add little; without captions this is
    `SuSXClassifier`.

    ``logits = logit_scale * x T^T + alpha * sum_j exp(-beta (1 - a_j)) onehot(y_j) - gamma * sum_j M'_j onehot(y_j)``
    with ``a_j = (1 - delta) x . f_j + delta x . c_j`` [1]_: f_j, c_j and y_j the support pictures, their captions and
    labels, T the prototypes of `zero_shot`, and M'_j the divergence between the signatures of x and f_j, moved from its
    own range to that of a.

    Parameters
    ----------
    %(zero_shot)s
        The model of a classifier encodes captions that are strings. None is the support alone.
    alpha : float or "cv", default=1.0
        Weight of the votes by similarity.
    beta : float or "cv", default=1.0
        How fast these votes fall with the distance.
    gamma : float or "cv", default=1.0
        Weight of the votes by signature.
    delta : float or "cv", default=0.5
        Share of the caption in a similarity, 0 to 1. Not used where `fit` gets no captions.
    temperature : float, default=0.5
        tau, of the signatures.
    signature : {"text", "feature"} or None, default="text"
        What stands for a picture in the divergence ``KL(s(x) || s(f_j))``.

        - "text": ``softmax(x T^T / tau)``, as published; there is none with ``zero_shot=None``.
        - "feature": ``softmax(x / tau)`` over the d coordinates, as in the released code, which gave the published
          figures. Text plays no part in it, and it is nearly a distance of features.
        - None: no divergence term, as in the shorter of the released scripts.
    rescale : {"fit", "batch"}, default="fit"
        Where the two ranges come from: the support pictures among themselves, or, as in the official code, the queries
        of a call, on which logits then depend. See `SuSXClassifier`.
    caption_columns : int, default=None
        If given, X of `fit` holds an image and a caption feature side by side, the caption in the last
        `caption_columns` columns, as many as the image has: for tools that pass on X and y alone. Prediction takes the
        image columns, or all of them, and reads the image columns.
    %(logit_scale)s

    Attributes
    ----------
    %(classes_)s
    alpha_, beta_, gamma_, delta_ : float
        Numbers in use; ``gamma_`` is 0 where there is no signature, ``delta_`` where there are no captions.
    keys_ : ndarray of shape (m, d)
        Unit rows of the support pictures, sorted by class; of several views their mean.
    captions_ : ndarray of shape (m, d) or None
        Unit rows of their captions.
    codes_ : ndarray of shape (m,)
        Class of each row of `keys_`, 0..K-1.
    weights_ : ndarray of shape (m,)
        Weight of each.
    signature_sums_ : ndarray of shape (K, K) or (K, d), or None
        Sum of the log signatures of each class.
    affinity_range_, divergence_range_ : ndarray of shape (2,) or None
        Smallest and largest similarity and divergence among support pictures; None without signatures, or with
        ``rescale="batch"``.
    %(prototypes_)s
    %(logit_scale_)s
    %(zero_shot_)s
    n_features_in_ : int
        d, the width of an image feature.
    %(feature_names_in_)s

    See Also
    --------
    SuSXClassifier : The same without captions; its notes hold here.

    Notes
    -----
    Similarities are blended, not features, but inner products are linear: one product with ``(1 - delta) f + delta c``
    (not normalised) gives them. Cosines of pictures with texts are smaller than those of pictures with pictures, so
    that the votes shrink as delta grows.

    `captions` is metadata of `fit`: under ``sklearn.set_config(enable_metadata_routing=True)`` and
    ``set_fit_request(captions=True)`` searches cut it into folds.

    "cv" leaves out one support picture at a time together with its captions; delta is searched in steps of 0.2.
    Support pictures share a style with one another, so that delta="cv" is of no use where the pictures to come look
    different: there, pass a number.

    References
    ----------
    .. [1] Q. Wang et al., "CapS-Adapter: Caption-based MultiModal Adapter in Zero-Shot Classification", ACM MM 2024,
       arXiv:2405.16591.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.adapters import CapSAdapterClassifier
    >>> rng = np.random.default_rng(0)
    >>> directions = rng.normal(size=(3, 16))
    >>> y = np.repeat([0, 1, 2], 8)
    >>> drawn = directions[y] + 2 * rng.normal(size=16) + rng.normal(scale=0.5, size=(24, 16))
    >>> captions = directions[y] + rng.normal(scale=0.5, size=(24, 16))
    >>> clf = CapSAdapterClassifier(directions, delta=0.8).fit(drawn, y, captions=captions)
    >>> clf.predict(directions)
    array([0, 1, 2])
    """

    _set_last = "delta_"
    _parameter_constraints: dict[str, list[Any]] = {
        "zero_shot": [HasMethods(["fit"]), "array-like", None],
        "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"cv"})],
        "beta": [Interval(Real, 0, None, closed="left"), StrOptions({"cv"})],
        "gamma": [Interval(Real, 0, None, closed="left"), StrOptions({"cv"})],
        "delta": [Interval(Real, 0, 1, closed="both"), StrOptions({"cv"})],
        "temperature": [Interval(Real, 0, None, closed="neither")],
        "signature": [StrOptions({"text", "feature"}), None],
        "rescale": [StrOptions({"fit", "batch"})],
        "caption_columns": [Interval(Integral, 1, None, closed="left"), None],
        "logit_scale": [Interval(Real, 0, None, closed="neither"), None],
    }

    def __init__(
        self,
        zero_shot: Any = None,
        *,
        alpha: float | str = 1.0,
        beta: float | str = 1.0,
        gamma: float | str = 1.0,
        delta: float | str = 0.5,
        temperature: float = 0.5,
        signature: str | None = "text",
        rescale: str = "fit",
        caption_columns: int | None = None,
        logit_scale: float | None = None,
    ) -> None:
        self.zero_shot = zero_shot
        self.alpha = alpha
        self.beta = beta
        self.gamma = gamma
        self.delta = delta
        self.temperature = temperature
        self.signature = signature
        self.rescale = rescale
        self.caption_columns = caption_columns
        self.logit_scale = logit_scale

    def fit(
        self,
        X: Any,
        y: ArrayLike,
        captions: ArrayLike | Sequence[str] | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Keep the support pictures and captions, measure their ranges and, if asked, choose the weights.

        Parameters
        ----------
        %(X_fit)s
            With `caption_columns`, (n, 2d) or (n, V, 2d), of which the captions of view 0 are read.
        %(y_fit)s
        captions : array-like of shape (n, d) or sequence of n str, default=None
            Caption of each picture: text features, or strings, which the model of `zero_shot` encodes. None is the
            support pictures alone.
        %(weights_fit)s

        %(self)s

        Raises
        ------
        ValueError
            If captions and pictures differ in number or width, a caption holds NaN or only zeros, strings meet a
            `zero_shot` without model, captions are given twice, y holds one class only or a label without prototype,
            every row of a class is all zeros, or the weights are negative or all zero.
        TypeError
            If one of several captions that are strings is none.

        Warns
        -----
        %(warns_chance)s
            Also if "cv" meets a class with one picture.
        """
        check_parameters(self)
        if self.caption_columns is not None:
            if captions is not None:
                raise ValueError(
                    f"caption_columns={self.caption_columns} says that X holds the captions; leave captions=None, or "
                    "caption_columns=None."
                )
            X, captions = split_columns(X, self.caption_columns)
        training = check_training(self, X, y, sample_weight)
        text = set_text(self)
        warn_if_guessing(training, text)
        rows = None
        if captions is not None:
            n_passed = len(X) if hasattr(X, "__len__") else X.shape[0]
            rows = check_captions(captions, n_passed, self.n_features_in_, text)[training.kept]
        support = Support.of(training, len(self.classes_), rows)
        self.captions_ = support.captions
        asked = Weights(self.alpha, self.beta, self.gamma, 0.0 if rows is None else self.delta)
        self.delta_ = float(fit_support(self, training, support, self._signature(text), text, asked).delta)
        return self

    def logits(self, X: Any) -> NDArray:
        """Zero-shot logits and the votes of the support.

        Parameters
        ----------
        %(X)s
            With `caption_columns` also of width 2d, of which the image columns are read.

        Returns
        -------
        %(logits_array)s
            With ``alpha=0, gamma=0`` the zero-shot logits unchanged.
        """
        check_is_fitted(self)
        if self.caption_columns is not None and _width(X) == self.n_features_in_ + self.caption_columns:
            X = split_columns(X, self.caption_columns)[0]
        rows = unit_rows(first_view(*check_features(self, X)))
        return support_logits(self, rows, self._signature(fitted_text(self)), self.captions_, self.delta_)

    def _signature(self, text: ClassText | None) -> Signature | None:
        if self.signature == "feature":
            return feature_signature(self.temperature)
        if self.signature is None or text is None:
            return None
        return text_signature(text.prototypes, self.temperature)


def split_columns(X: Any, n_columns: int) -> tuple[Any, NDArray]:
    """Images and captions of ``[image | caption]`` rows of width ``2 * n_columns``; of views, the captions of the
    first."""
    if not hasattr(X, "shape"):
        X = np.asarray(X)
    width = _width(X)
    if width != 2 * n_columns:
        raise ValueError(
            f"caption_columns={n_columns}, but X has shape {X.shape}: an image and a caption of {n_columns} columns "
            f"each are {2 * n_columns} columns."
        )
    if X.ndim == 3:
        return X[..., :n_columns], X[:, 0, n_columns:]
    images = _safe_indexing(X, slice(0, n_columns), axis=1)
    return images, np.asarray(_safe_indexing(X, slice(n_columns, width), axis=1))


def check_captions(captions: Any, n_pictures: int, n_features: int, text: ClassText | None) -> NDArray:
    """Captions as unit rows, (n_pictures, n_features); strings are encoded by the model of `text`."""
    n_captions = captions.shape[0] if hasattr(captions, "shape") else len(captions)
    if n_captions != n_pictures:
        raise ValueError(f"captions holds {n_captions} captions, but X {n_pictures} pictures; pass one caption each.")
    if _are_strings(captions):
        captions = caption_encoder(text).transform(captions)
    rows = check_array(captions, dtype=FLOATS, input_name="captions", ensure_all_finite=False)
    unknown = np.argwhere(~np.isfinite(rows))
    if len(unknown):
        row, column = unknown[0]
        raise ValueError(f"captions[{row}, {column}] is {rows[row, column]}; every entry must be finite.")
    if rows.shape[1] != n_features:
        raise ValueError(
            f"captions holds rows of width {rows.shape[1]}, but X has {n_features} features; both must come from one "
            "model."
        )
    zero = np.flatnonzero(~rows.any(axis=1))
    if zero.size:
        raise ValueError(f"captions[{zero[0]}] is all zeros; features have a direction. Was this caption encoded?")
    return unit_rows(rows)


def caption_encoder(text: ClassText | None) -> CLIPTextFeatures:
    """What encodes captions as class text was encoded."""
    estimator = None if text is None else text.estimator
    model, prototypes = getattr(estimator, "model", None), getattr(estimator, "prototypes", None)
    if not hasattr(estimator, "model") or (model is None and prototypes is not None):
        raise ValueError(
            "captions holds strings, which need the model of the features to encode them: pass zero_shot="
            "ZeroShotClassifier(model, ...), or the features of the captions by CLIPTextFeatures(model)."
        )
    return CLIPTextFeatures(model, **{name: getattr(estimator, name) for name in _ENCODER_PARAMETERS})


def _are_strings(captions: Any) -> bool:
    first = captions.iloc[0] if hasattr(captions, "iloc") else captions[0]
    return isinstance(first, str)


def _width(X: Any) -> int:
    shape = np.shape(X)
    return shape[-1] if len(shape) > 1 else 0
