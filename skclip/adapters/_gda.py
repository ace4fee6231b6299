"""Gaussian discriminant analysis on CLIP features, with or without class text."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from numbers import Real
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp
from sklearn.base import clone
from sklearn.utils import check_array
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skclip.adapters._held_out import Pictures, distinct_pictures, leave_one_out_scores, stratified_folds
from skclip.adapters._mixing import HeldOut, alpha_of_spread, best_alpha, most_accurate_alpha
from skclip.utils._arrays import check_features, first_view, row_batches, unit_rows
from skclip.utils._base import SkclipBase, SkclipWarning
from skclip.utils._class_text import ClassText, fitted_text, names_misplaced, set_text, warn_if_guessing
from skclip.utils._classifier import LogitsMixin
from skclip.utils._cosine import cosine_logits
from skclip.utils._covariance import (
    SharedGaussian,
    invert,
    ks_covariance,
    ks_intensity,
)
from skclip.utils._docs import fill_doc
from skclip.utils._moments import ClassMoments
from skclip.utils._names import ClassNames
from skclip.utils._params import HasMethods, Interval, StrOptions, check_parameters
from skclip.utils._shared_gaussian import Rows, class_moments, per_view, product_type, shared_gaussian
from skclip.utils._training import check_chunk, check_training

# from text alone to discriminant analysis alone; the paper searches 1e-4 to 1e2
ALPHA_BOUNDS = (1e-4, 1e4)

# with a single picture per class, when nothing can be held out: the discriminant term's spread over the classes,
# in units of the text's; the same where the names are misplaced; and alpha itself where spreads cannot be measured
ONE_PICTURE_SPREAD = 0.15
MISPLACED_NAMES_SPREAD = 10.0
ONE_PICTURE_ALPHA = 0.01

# base-to-new protocol: base rows that stand for a new class, and copies of its prototype added to their mean
_N_NEIGHBORS = 64
_N_COPIES = 16

# covariances that are functions of the class moments, so that chunks of rows suffice
_OF_MOMENTS = ("ks", "empirical", "oas")


def _is_additive(estimator: GDAClassifier) -> bool:
    """Whether sums over rows are all that the model needs; AttributeError telling why not."""
    if isinstance(estimator.alpha, str):
        raise AttributeError(
            f"partial_fit keeps sums and no rows, so nothing can be held out for alpha={estimator.alpha!r}. "
            "Pass a number, or use fit."
        )
    if not isinstance(estimator.covariance, str) or estimator.covariance not in _OF_MOMENTS:
        raise AttributeError(
            f"partial_fit cannot estimate covariance={estimator.covariance!r} from sums over rows; use "
            f"{', '.join(map(repr, _OF_MOMENTS))}, or fit."
        )
    return True


@fill_doc
class GDAClassifier(LogitsMixin, SkclipBase):
    """Few-shot classification in closed form: class means and one shared covariance, added to the zero-shot
    logits.

    A good first choice with one to a few hundred labelled pictures per class, and fitted in seconds:
    no gradient step, no validation set. Not the right choice where classes have very different shapes (each
    class gets the same covariance), or with so many labels that a `LogisticRegression` on the features is
    affordable and better.

    ``logits = logit_scale * x T^T + alpha * (x W^T + b)``, with ``W = mu P`` and
    ``b_k = log pi_k - mu_k^T P mu_k / 2`` [1]_: T the class prototypes of `zero_shot`, mu the class means, P
    the precision matrix of all rows centred by their class. Rows are scaled to unit length here, in `fit` as
    in `predict`; the means are not.

    Parameters
    ----------
    %(zero_shot)s
        None is discriminant analysis alone.
    alpha : float or "cv", default=1.0
        Weight of the discriminant term. "cv" takes the value that fits held-out training pictures best, see
        Notes.
    %(logit_scale)s
    covariance : {"ks", "pooled", "empirical", "ledoit_wolf", "oas"} or covariance estimator, default="ks"
        How the shared covariance is estimated from the rows centred by class.

        - "ks": shrinkage to a scaled identity with intensity ``rho = d / (N - 1 + d)``, for any number of
          rows [2]_.
        - "pooled": mean of the covariances of the classes with at least two rows, pseudo-inverted: what the
          official code of [1]_ uses for base classes.
        - "empirical": no shrinkage, pseudo-inverted where singular.
        - "ledoit_wolf", "oas": scikit-learn's estimators of the same names.
        - an object with ``fit`` and ``covariance_``, such as `sklearn.covariance.GraphicalLasso`; cloned.
    priors : {"uniform", "empirical"} or array-like of shape (K,), default="uniform"
        Class probabilities pi, in the order of `classes_`. "uniform" corrects for skewed training sets;
        "empirical" is for test data as skewed as the training rows.
    precision_scale : {"paper", "unit"}, default="paper"
        "paper" multiplies the precision of "ks" by rho as [1]_ does. rho falls with the number of rows (0.52
        for 470 rows of 512 features, 0.03 for 16,000), so that equal alphas mean different weights at
        different sample sizes; "unit" leaves the factor out. Other covariances have no such factor.

    Attributes
    ----------
    %(classes_)s
    alpha_ : float
        Weight of the discriminant term in use.
    means_ : ndarray of shape (K, d)
        Means of the unit rows of each class, mu.
    covariance_, precision_ : ndarray of shape (d, d)
        The regularised covariance and its (pseudo-)inverse, without the factor of `precision_scale`.
    log_det_ : float
        Logarithm of the (pseudo-)determinant of `covariance_`.
    rank_ : int
        d, or less where `covariance_` is singular.
    precision_factor_ : float
        What `precision_` is multiplied by in `coef_`: rho for "ks" in "paper" scale, else 1.
    coef_ : ndarray of shape (K, d)
        W, with the factor of `precision_scale`.
    intercept_ : ndarray of shape (K,)
        b; ``-inf`` for a class of which `partial_fit` has seen no row.
    priors_ : ndarray of shape (K,)
        pi.
    %(prototypes_)s
    %(logit_scale_)s
    %(zero_shot_)s
    moments_ : dict of ndarray and float
        Sums over the rows, which `partial_fit` continues.
    X_fit_ : ndarray of shape (n_rows, d), float32
        Unit rows of `fit`, kept for `with_classes` and only where `zero_shot` can encode new names: 2 kB per
        row of 512 features. Not after `partial_fit`.
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    skclip.zero_shot.ZeroShotClassifier : The text term alone.
    sklearn.discriminant_analysis.LinearDiscriminantAnalysis : The same model as ``zero_shot=None, alpha=1,
        precision_scale="unit"`` when ``solver="lsqr"`` and ``shrinkage=rho``, slower and without blocks.

    Notes
    -----
    With X of shape (n, V, d), every view is a row in `fit`, and view 0 alone is read elsewhere.

    ``alpha="cv"`` holds out every picture once, with all its views and its repeats: in closed form for "ks"
    (a change of low rank to mean and scatter matrix), else by stratified folds,
    ``min(5, pictures of the smallest class)`` of them. The held-out class mean rests on fewer pictures than
    the final one; the known part of that handicap is given back. alpha is the value between 1e-4 and 1e4 with
    the highest held-out accuracy, averaged over neighbouring values. Ties, and everything where some class has a
    single picture, are decided by log-loss: alpha near the ratio b / a that minimises that of
    ``softmax(a * text + b * discriminant)``. Without text alpha is that b.

    A class with a single picture cannot lose it. With "ks", a second picture of that class is then imagined,
    at the mean distance at which held-out pictures of other classes lie from theirs. Where no class has two,
    accuracy cannot be measured: the discriminant term then gets 0.15 of the text's spread over the classes, or
    10 times it where the relations among the names recognise the pictures better than the names do (a ridge
    regression of pictures on names, each class left out in turn; two standard errors). These constants did well on
    ImageNet and on drawn pictures. With other covariances alpha is 0.01, and 1 without text. There is one warning.

    Where no class has two different rows there is no within-class scatter; the scatter about the mean of all
    rows, which bounds it, takes its place.

    Whole-number `sample_weight` means repeated rows, also for N. Weights that sum to less than the effective
    number of rows, ``(sum w)^2 / sum w^2``, are scaled up to it.

    Cost of `fit`: O(n d^2 + d^3) time, some tens of megabytes beyond X; ``alpha="cv"`` adds O(n V K d) with
    "ks", and one fit per fold otherwise. Prediction is O(n K d). Float32 rows are multiplied in float32
    blocks and summed in float64.

    References
    ----------
    .. [1] Z. Wang et al., "A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation", ICLR 2024,
       arXiv:2402.04087.
    .. [2] T. Kubokawa and M. Srivastava, "Estimation of the precision matrix of a singular Wishart
       distribution and its application in high-dimensional data", Journal of Multivariate Analysis 99(9),
       2008.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.adapters import GDAClassifier
    >>> rng = np.random.default_rng(0)
    >>> directions = rng.normal(size=(3, 16))
    >>> y = np.repeat(["cat", "dog", "owl"], 8)
    >>> X = np.repeat(directions, 8, axis=0) + rng.normal(scale=0.5, size=(24, 16))
    >>> clf = GDAClassifier().fit(X, y)
    >>> clf.predict(directions)
    array(['cat', 'dog', 'owl'], dtype='<U3')
    >>> clf.logits(directions).shape
    (3, 3)
    """

    _set_last = "alpha_"
    _parameter_constraints: dict[str, list[Any]] = {
        "zero_shot": [HasMethods(["fit"]), "array-like", None],
        "alpha": [Interval(Real, 0, None, closed="left"), StrOptions({"cv"})],
        "logit_scale": [Interval(Real, 0, None, closed="neither"), None],
        "covariance": [StrOptions({"ks", "pooled", "empirical", "ledoit_wolf", "oas"}), HasMethods(["fit"])],
        "priors": [StrOptions({"uniform", "empirical"}), "array-like"],
        "precision_scale": [StrOptions({"paper", "unit"})],
    }

    def __init__(
        self,
        zero_shot: Any = None,
        *,
        alpha: float | str = 1.0,
        logit_scale: float | None = None,
        covariance: Any = "ks",
        priors: str | ArrayLike = "uniform",
        precision_scale: str = "paper",
    ) -> None:
        self.zero_shot = zero_shot
        self.alpha = alpha
        self.logit_scale = logit_scale
        self.covariance = covariance
        self.priors = priors
        self.precision_scale = precision_scale

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Estimate means, shared covariance and, if asked, alpha.

        %(fit)s

        Raises
        ------
        %(raises_fit)s

        Warns
        -----
        %(warns_chance)s
            Also if ``alpha="cv"`` meets a class with one picture.
        """
        check_parameters(self)
        training = check_training(self, X, y, sample_weight)
        warn_if_guessing(training, set_text(self))

        X, codes, weights, n_views, _ = training
        rows = Rows(X, *per_view(codes, weights, n_views))
        moments = class_moments(self.covariance, rows, len(self.classes_))
        self._set_model(moments, shared_gaussian(self.covariance, moments, rows))
        if self.alpha == "cv":
            self.alpha_ = self._search_alpha(X, codes, weights, n_views, moments.inflation)
        if hasattr(self.zero_shot_, "with_classes"):
            self.X_fit_ = unit_rows(X).astype(np.float32, copy=False)
        return self

    @available_if(_is_additive)
    def partial_fit(
        self, X: Any, y: ArrayLike, classes: ArrayLike | None = None, sample_weight: ArrayLike | None = None
    ) -> Self:
        """Continue with a chunk of rows; after all chunks the model is that of one `fit`, up to rounding.

        Only for models that are functions of sums over rows: `covariance` "ks", "empirical" or "oas", and
        alpha a number.

        Parameters
        ----------
        %(X_fit)s
        y : array-like of shape (n,)
            Labels, all among `classes`.
        classes : array-like of shape (K,), default=None
            All labels that will come; needed in the first call. A class without rows yet is never predicted.
        sample_weight : array-like of shape (n,), default=None
            Weight of each picture.

        %(self)s

        Raises
        ------
        AttributeError
            If the parameters are others, saying why.
        ValueError
            If the first call lacks `classes`, a later one changes them, or y holds another label.

        Notes
        -----
        O(n d^2 + d^3) per call: the precision is up to date after each.
        """
        check_parameters(self)
        first = not hasattr(self, "coef_")
        if not first and not hasattr(self, "moments_"):
            raise ValueError("partial_fit cannot continue a model made by with_classes: its new classes have no rows.")
        training = check_chunk(self, X, y, classes, sample_weight, first=first)
        warn_if_guessing(training, set_text(self) if first else fitted_text(self))

        X, codes, weights, n_views, _ = training
        if first:
            moments = ClassMoments.empty(len(self.classes_), self.n_features_in_)
        else:
            state: dict[str, Any] = {name: np.copy(value)[()] for name, value in self.moments_.items()}
            moments = ClassMoments(**state)
        moments.add(X, *per_view(codes, weights, n_views), dtype=product_type(self.covariance, X))
        self._set_model(moments, shared_gaussian(self.covariance, moments, None))
        self.__dict__.pop("X_fit_", None)
        return self

    def with_classes(self, class_names: ClassNames) -> GDAClassifier:
        """A new classifier, fitted, for classes without any labelled picture; this one is left as it is.

        The base-to-new protocol of the paper: the 64 training rows nearest to the prototype of a new class
        stand for it. Its mean is that of these rows and 16 copies of the prototype, its covariance is taken
        about the prototype, and the precisions of the new classes are averaged.

        Parameters
        ----------
        class_names : {label: str} or list of str
            The new classes, all of them, as `ZeroShotClassifier.with_classes` reads them.

        Returns
        -------
        GDAClassifier
            Knows the new classes only. Same alpha, uniform priors.

        Raises
        ------
        ValueError
            If the classifier was fitted without a `zero_shot` that can encode names, or by `partial_fit`.

        Notes
        -----
        In "paper" scale a "ks" model keeps its own factor rho besides, so that alpha means what it meant for
        the base classes; the official code pairs the formula above with "pooled" base classes, which have no
        such factor.
        """
        check_is_fitted(self)
        if not hasattr(self, "X_fit_"):
            raise ValueError(
                "with_classes needs a zero_shot that encodes names (a ZeroShotClassifier of a model) and the "
                "rows of fit; partial_fit keeps none."
            )
        new_text = self.zero_shot_.with_classes(class_names)
        new = clone(self).set_params(zero_shot=new_text)
        new.classes_ = new_text.classes_
        new.n_features_in_ = self.n_features_in_
        if hasattr(self, "feature_names_in_"):
            new.feature_names_in_ = self.feature_names_in_
        assert self.logit_scale_ is not None
        text = ClassText(unit_rows(np.asarray(new_text.prototypes_)), self.logit_scale_, new_text)
        new.prototypes_, new.logit_scale_, new.zero_shot_ = text
        new.X_fit_ = self.X_fit_
        rows = self.X_fit_.astype(np.float64)
        means, precision, rho = new_class_model(rows, text.prototypes.astype(np.float64))
        factor = self.precision_factor_ if hasattr(self, "moments_") else self.precision_factor_ / rho
        inverse = invert(precision)
        gaussian = SharedGaussian(inverse.precision, precision, -inverse.log_det, inverse.rank)
        n_classes = len(new.classes_)
        new.set_params(priors="uniform")
        new._set_gaussian(
            means,
            gaussian,
            factor * rho if self.precision_scale == "paper" else 1.0,
            np.full(n_classes, 1.0 / n_classes),
        )
        new.alpha_ = self.alpha_
        return new

    def logits(self, X: Any) -> NDArray:
        """Ensemble logits.

        %(logits)s
            With ``alpha=0`` the zero-shot logits unchanged.
        """
        check_is_fitted(self)
        X = first_view(*check_features(self, X))
        return mixed_logits(X, self.coef_, self.intercept_, self.alpha_, fitted_text(self))

    def score_samples(self, X: Any) -> NDArray:
        """Log density of the unit rows under the mixture of the classes, larger for more familiar pictures.

        ``log sum_k pi_k N(x; mu_k, S)`` with S = `covariance_`, normaliser included; neither text nor alpha
        enter. On the span of S where that is singular.

        Parameters
        ----------
        %(X)s

        Returns
        -------
        ndarray of shape (n,), float64
        """
        check_is_fitted(self)
        X = first_view(*check_features(self, X))
        scores = np.empty(len(X))
        seen = np.isfinite(self.intercept_)
        means, log_priors = self.means_[seen], np.log(self.priors_[seen])
        for part in row_batches(len(X), 8 * (len(means) + 4 * X.shape[1])):
            rows = unit_rows(X[part].astype(np.float64))
            scores[part] = mixture_log_density(rows, means, self.precision_, log_priors)
        return scores - 0.5 * (self.log_det_ + self.rank_ * np.log(2.0 * np.pi))

    def _set_model(self, moments: ClassMoments, gaussian: SharedGaussian) -> None:
        """Fitted attributes but for the text; alpha where it is a number."""
        priors = check_priors(self.priors, moments.counts)
        factor = precision_factor(self.covariance, self.precision_scale, moments.n_samples, self.n_features_in_)
        self._set_gaussian(moments.means(), gaussian, factor, priors)
        self.moments_ = asdict(moments)
        if self.alpha != "cv":
            self.alpha_ = float(self.alpha)

    def _set_gaussian(self, means: NDArray, gaussian: SharedGaussian, factor: float, priors: NDArray) -> None:
        self.means_, self.priors_, self.precision_factor_ = means, priors, float(factor)
        self.covariance_, self.precision_, self.log_det_, self.rank_ = gaussian
        with np.errstate(divide="ignore"):
            log_priors = np.log(priors)
        self.coef_, self.intercept_ = gda_weights(means, factor * gaussian.precision, log_priors)

    def _search_alpha(
        self, X: NDArray, codes: NDArray, weights: NDArray | None, n_views: int, inflation: float
    ) -> float:
        """The alpha of ``alpha="cv"``, from training rows only."""
        weights = np.ones(len(codes)) if weights is None else weights * inflation
        pictures = distinct_pictures(unit_rows(X), codes, weights, n_views)
        n_pictures = np.bincount(pictures.codes)
        n_fewest, in_closed_form = int(n_pictures.min()), self._has_closed_form()
        if n_fewest < 2:
            alone = self.classes_[n_pictures.argmin()].item()
            measured = in_closed_form and n_pictures.max() > 1
            outcome = "the noise of others stands in" if measured else "alpha follows a fixed rule"
            warnings.warn(
                f'alpha="cv" holds out pictures, but class {alone!r} has a single one: {outcome} '
                "(see the notes of GDAClassifier). Pass a number as alpha to choose it and to silence this.",
                SkclipWarning,
                stacklevel=4,
            )
        with np.errstate(divide="ignore"):
            log_priors = np.log(self.priors_)
        few_shot: Iterable[tuple[NDArray, NDArray | slice]]
        if in_closed_form:
            few_shot = leave_one_out_scores(pictures, log_priors, unit_scale=self.precision_scale == "unit")
        elif n_fewest < 2:
            return ONE_PICTURE_ALPHA if self.prototypes_ is not None else 1.0
        else:
            few_shot = fold_scores(pictures, log_priors, self.covariance, min(5, n_fewest))
        text = fitted_text(self)

        def blocks() -> Iterator[HeldOut]:
            for scores, part in few_shot:
                zero_shot = None
                if text is not None:
                    zero_shot = cosine_logits(pictures.views[part, 0], text.prototypes, text.logit_scale)
                yield HeldOut(zero_shot, scores, pictures.codes[part], pictures.weights[part])

        held_out = list(blocks())
        if text is not None and n_pictures.max() < 2:
            own = pictures.views[np.argsort(pictures.codes), 0]
            misplaced = names_misplaced(own, text.prototypes)
            return alpha_of_spread(held_out, MISPLACED_NAMES_SPREAD if misplaced else ONE_PICTURE_SPREAD, ALPHA_BOUNDS)
        alpha = best_alpha(held_out, ALPHA_BOUNDS)
        # An imagined second picture says too little about accuracy.
        if text is None or n_fewest < 2:
            return alpha
        return most_accurate_alpha(held_out, ALPHA_BOUNDS, tie_break=alpha)

    def _has_closed_form(self) -> bool:
        return isinstance(self.covariance, str) and self.covariance == "ks"


def gda_weights(means: NDArray, precision: NDArray, log_priors: NDArray) -> tuple[NDArray, NDArray]:
    """``W = mu P`` and ``b_k = log pi_k - mu_k^T P mu_k / 2``: [1]_ of `GDAClassifier`, equations (4) and
    (5).

    Returns
    -------
    coef : ndarray of shape (K, d)
    intercept : ndarray of shape (K,)
    """
    coef = means @ precision
    return coef, log_priors - 0.5 * np.einsum("kd,kd->k", coef, means)


def gda_scores(rows: NDArray, coef: NDArray, intercept: NDArray) -> NDArray:
    """``x W^T + b``, (n, K)."""
    return rows @ coef.T + intercept


def mixed_logits(X: NDArray, coef: NDArray, intercept: NDArray, alpha: float, text: ClassText | None) -> NDArray:
    """``logit_scale * x T^T + alpha * (x W^T + b)`` of rows of any length, (n, K), block by block.

    Float64, as the terms cancel; with ``alpha=0`` the zero-shot logits unchanged.
    """
    if text is not None and alpha == 0:
        return cosine_logits(unit_rows(X), text.prototypes, text.logit_scale)
    logits = np.zeros((len(X), len(coef)))
    if alpha == 0:
        return logits
    for part in row_batches(len(X), 8 * (len(coef) + 3 * X.shape[1])):
        rows = unit_rows(X[part].astype(np.float64))
        logits[part] = alpha * gda_scores(rows, coef, intercept)
        if text is not None:
            logits[part] += cosine_logits(unit_rows(X[part]), text.prototypes, text.logit_scale)
    return logits


def mixture_log_density(rows: NDArray, means: NDArray, precision: NDArray, log_priors: NDArray) -> NDArray:
    """``log sum_k pi_k exp(-(x - mu_k)^T P (x - mu_k) / 2)``, (n,): the density without its normaliser.

    Rows and means are taken relative to the mean of the means, or the squares would cancel digits.
    """
    origin = means.mean(axis=0)
    rows = rows - origin
    scores = gda_scores(rows, *gda_weights(means - origin, precision, log_priors))
    return logsumexp(scores, axis=1) - 0.5 * np.einsum("nd,nd->n", rows @ precision, rows)


def precision_factor(covariance: Any, precision_scale: str, n_samples: float, n_features: int) -> float:
    """What the inverse covariance is multiplied by: rho for "ks" in the scale of the paper, else 1."""
    if precision_scale == "paper" and isinstance(covariance, str) and covariance == "ks":
        return ks_intensity(n_samples, n_features)
    return 1.0


def check_priors(priors: str | ArrayLike, counts: NDArray) -> NDArray:
    """Class probabilities, (K,); a class without rows gets none where they are not given.

    Raises
    ------
    ValueError
        If an array has another length than the classes, a negative entry, or does not sum to 1.
    """
    if isinstance(priors, str):
        shares = counts if priors == "empirical" else (counts > 0).astype(np.float64)
        return shares / shares.sum()
    given = check_array(priors, ensure_2d=False, dtype=np.float64, input_name="priors")
    if given.shape != counts.shape:
        raise ValueError(f"priors has shape {given.shape}, but y holds {len(counts)} classes; pass one number each.")
    if (given < 0).any() or abs(given.sum() - 1.0) > 1e-6:
        raise ValueError(
            f"priors must be non-negative and sum to 1; got {given.tolist()}, which sum to {given.sum():g}."
        )
    return np.where(counts > 0, given, 0.0)


def fold_scores(
    pictures: Pictures, log_priors: NDArray, covariance: Any, n_folds: int
) -> Iterator[tuple[NDArray, NDArray]]:
    """Class scores of view 0 of each fold under the model of the others, and the places of its pictures."""
    folds = stratified_folds(pictures.codes, n_folds)
    for fold in range(n_folds):
        held_out = np.flatnonzero(folds == fold)
        rows = Rows(*pictures.take(folds != fold).flat())
        moments = class_moments(covariance, rows, len(log_priors))
        gaussian = shared_gaussian(covariance, moments, rows)
        weights = gda_weights(moments.means(), gaussian.precision, log_priors)
        yield gda_scores(pictures.views[held_out, 0].astype(np.float64), *weights), held_out


def new_class_model(rows: NDArray, prototypes: NDArray) -> tuple[NDArray, NDArray, float]:
    """Means and shared precision of classes known by their prototypes alone (base-to-new protocol of the
    official code).

    Parameters
    ----------
    rows : ndarray of shape (n, d)
        Unit rows of the base classes.
    prototypes : ndarray of shape (K, d)
        Unit rows of the new classes.

    Returns
    -------
    means : ndarray of shape (K, d)
        Of the 64 rows nearest to each prototype and 16 copies of it.
    precision : ndarray of shape (d, d)
        Mean over the classes of the "ks" precisions of these rows about the prototype, without the factor
        rho.
    rho : float
        The factor.
    """
    n_neighbors, n_features = min(_N_NEIGHBORS, len(rows)), rows.shape[1]
    rho = ks_intensity(n_neighbors, n_features)
    means = np.empty_like(prototypes)
    precision = np.zeros((n_features, n_features))
    similarities = prototypes @ rows.T
    nearest = np.argpartition(-similarities, n_neighbors - 1, axis=1)[:, :n_neighbors]
    for k, prototype in enumerate(prototypes):
        neighbors = rows[nearest[k]]
        means[k] = (neighbors.sum(axis=0) + _N_COPIES * prototype) / (n_neighbors + _N_COPIES)
        centred = neighbors - prototype
        precision += invert(ks_covariance(centred.T @ centred, n_neighbors)).precision
    return means, precision / len(prototypes), rho
