"""The linear probe: multinomial logistic regression on unit rows."""

from __future__ import annotations

import warnings
from numbers import Integral, Real
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import log_softmax
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import compute_class_weight
from sklearn.utils.validation import check_is_fitted

from skclip.adapters._held_out import Pictures, distinct_pictures, stratified_folds
from skclip.adapters._lbfgs import minimise
from skclip.adapters._softmax import Design, SoftmaxObjective, first_step, penalty_of
from skclip.utils._arrays import check_features, first_view, unit_rows
from skclip.utils._base import SkclipBase, SkclipWarning
from skclip.utils._classifier import LogitsMixin
from skclip.utils._cosine import linear_logits
from skclip.utils._docs import fill_doc
from skclip.utils._params import Interval, StrOptions, check_parameters
from skclip.utils._training import check_training

# from strong to weak regularisation of unit rows
GRID = (0.1, 1.0, 10.0, 100.0, 1e3, 1e4, 1e5)
# tried beside the best of these
_HALF_A_DECADE = 10.0**0.5

# with a single picture per class, when nothing can be held out
ONE_PICTURE_C = 1e4

# what ranks values of C needs no more digits
_PATH_TOL = 1e-3


@fill_doc
class LinearProbeClassifier(LogitsMixin, SkclipBase):
    """Multinomial logistic regression on image features: the baseline of every few-shot table.

    A good choice from some ten labelled pictures per class on, and the better the more there are; it knows nothing of
    class text. With fewer, or where text exists, `GDAClassifier` and the adapters that start from text are stronger.

    The model is that of `sklearn.linear_model.LogisticRegression` on unit rows: minimise
    ``sum_i w_i loss_i + |coef|^2 / (2 C)``, intercepts unpenalised [1]_. The solver is another: L-BFGS in the
    coordinates in which the scatter of the rows within their classes is diagonal, preconditioned by the curvature
    between the classes, several times fewer and cheaper iterations.

    Parameters
    ----------
    C : float or "cv", default=31.6
        Inverse strength of the regularisation, as in scikit-learn, of *unit* rows: C on raw features of norm r is
        ``C r^2`` here. The default is the 0.316 that CLIP's documentation uses on features of norm 10. "cv" takes the
        value with the smallest log-loss on held-out training pictures, see Notes.
    class_weight : dict {label: float} or "balanced", default=None
        Factor of the weights of each class; "balanced" makes all classes weigh the same.
    tol : float, default=1e-4
        Stop when logits are this close to the minimum, root mean square over the pictures, as far as the solver's model
        of the curvature can tell.
    max_iter : int, default=1000
        Most iterations of one fit.
    verbose : int, default=0
        1 prints how each fit ended.

    Attributes
    ----------
    %(classes_)s
    coef_ : ndarray of shape (K, d)
        Of unit rows. Sums to 0 over the classes; for two classes ``coef_[1] - coef_[0]`` is scikit-learn's vector.
    intercept_ : ndarray of shape (K,)
        Sums to 0.
    C_ : float
        C in use.
    C_grid_ : ndarray of shape (m,)
        With ``C="cv"``, the values that were tried, sorted; only where pictures could be held out.
    held_out_loss_ : ndarray of shape (m,)
        Mean log-loss of held-out pictures at these.
    n_iter_ : int
        Iterations of the final fit.
    loss_curve_ : list of float
        The objective, divided by the sum of the weights, at the start and after each iteration.
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    sklearn.linear_model.LogisticRegression : The same model of rows as they are, with other penalties.
    GDAClassifier : In closed form; stronger with few pictures.

    Notes
    -----
    With X of shape (n, V, d), every view is a row of weight 1/V in `fit`, so that C means the same for any number of
    views; view 0 alone is read elsewhere.

    ``C="cv"`` fits a path of growing C on each of ``min(5, pictures of the smallest class)`` stratified folds, every
    fit from the one before, their rows weighted up to the whole training set: decades from 0.1 to 1e5 until the
    held-out loss rises, then half a decade to both sides. All views and repeats of a picture share a fold. A class with
    a single picture cannot lose it: C is then 1e4, with a warning.

    Float32 rows are multiplied in float32, vectors are float64; float64 rows are float64 throughout. Where float32
    hides the next step - tolerances much below 1e-5, hardly any regularisation - the fit starts again in float64.

    Cost of `fit`: O(n d^2 + d^3) once and O(n K d) per iteration, about 15 at C = 1 and 65 at C = 100; three arrays of
    (n, K) and two copies of X in memory. ``C="cv"`` costs some tens of short fits and five copies of X. Prediction
    is O(n K d).

    References
    ----------
    .. [1] A. Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", ICML 2021,
       arXiv:2103.00020, section 3.2.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.adapters import LinearProbeClassifier
    >>> rng = np.random.default_rng(0)
    >>> directions = rng.normal(size=(3, 16))
    >>> y = np.repeat(["cat", "dog", "owl"], 8)
    >>> X = np.repeat(directions, 8, axis=0) + rng.normal(scale=0.5, size=(24, 16))
    >>> clf = LinearProbeClassifier().fit(X, y)
    >>> clf.predict(directions)
    array(['cat', 'dog', 'owl'], dtype='<U3')
    >>> clf.logits(directions).shape
    (3, 3)
    """

    _set_last = "n_iter_"

    _parameter_constraints: dict[str, list[Any]] = {
        "C": [Interval(Real, 0, None, closed="neither"), StrOptions({"cv"})],
        "class_weight": [dict, StrOptions({"balanced"}), None],
        "tol": [Interval(Real, 0, None, closed="neither")],
        "max_iter": [Interval(Integral, 1, None, closed="left")],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        C: float | str = 31.6,
        *,
        class_weight: dict | str | None = None,
        tol: float = 1e-4,
        max_iter: int = 1000,
        verbose: int = 0,
    ) -> None:
        self.C = C
        self.class_weight = class_weight
        self.tol = tol
        self.max_iter = max_iter
        self.verbose = verbose

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the coefficients, and choose C if asked.

        %(fit)s

        Raises
        ------
        ValueError
            If y holds one class only, every row of a class is all zeros, `class_weight` names a label that is not in y,
            or the weights are negative or all zero.

        Warns
        -----
        ConvergenceWarning
            If `max_iter` iterations do not reach `tol`, or rounding hides it.
        SkclipWarning
            If ``C="cv"`` meets a class with one picture.
        """
        check_parameters(self)
        X, codes, weights, n_views, _ = check_training(self, X, y, sample_weight)
        weights = self._weights(codes, weights)
        rows = unit_rows(X)
        self.C_ = float(self.C) if not isinstance(self.C, str) else self._search(rows, codes, weights, n_views)

        if n_views > 1:
            codes = np.repeat(codes, n_views)
            weights = np.repeat(np.ones(len(codes) // n_views) if weights is None else weights, n_views) / n_views
        self._minimise(rows, codes, weights)
        return self

    def logits(self, X: Any) -> NDArray:
        """``x coef^T + intercept`` of unit rows.

        %(logits)s
        """
        check_is_fitted(self)
        return linear_logits(first_view(*check_features(self, X)), self.coef_, self.intercept_)

    def _weights(self, codes: NDArray, weights: NDArray | None) -> NDArray | None:
        """Weights of the pictures with the factors of their classes; None where all are 1."""
        if self.class_weight is None:
            return weights
        factors = compute_class_weight(
            self.class_weight, classes=self.classes_, y=self.classes_[codes], sample_weight=weights
        )
        factors = np.asarray(factors, dtype=np.float64)
        if not (factors > 0.0).all():
            at = np.flatnonzero(~(factors > 0.0))[0]
            raise ValueError(
                f"class_weight of class {self.classes_[at].item()!r} is {factors[at]:g}; every class needs a positive "
                "one. Leave the class out of y instead."
            )
        return factors[codes] if weights is None else factors[codes] * weights

    def _minimise(self, rows: NDArray, codes: NDArray, weights: NDArray | None) -> None:
        """Fit at C, and set what the user reads."""
        n_classes = len(self.classes_)
        design = Design.of(rows, codes, weights, n_classes)
        objective = SoftmaxObjective(design, penalty_of(self.C_, n_classes))
        found = minimise(
            objective, design.start(), tol=self.tol, max_iter=self.max_iter, first_step=first_step(n_classes)
        )
        if found.stalled and rows.dtype != np.float64:
            self._minimise(rows.astype(np.float64), codes, weights)
            return
        self.coef_, self.intercept_ = design.coefficients(found.point)
        self.loss_curve_ = [loss / design.weight for loss in found.losses]
        self.n_iter_ = max(1, len(found.losses) - 1)
        if self.verbose:
            print(f"LinearProbeClassifier: C={self.C_:g}, {self.n_iter_} iterations, loss {self.loss_curve_[-1]:.6g}")
        if not found.converged:
            rounded = f"float64 cannot resolve tol={self.tol:g}; pass a larger tol"
            advice = rounded if found.stalled else "increase max_iter or tol"
            warnings.warn(
                f"The linear probe did not converge in {self.n_iter_} iterations: {advice}.",
                ConvergenceWarning,
                stacklevel=4,
            )

    def _search(self, rows: NDArray, codes: NDArray, weights: NDArray | None, n_views: int) -> float:
        """The C of ``C="cv"``, from training rows only."""
        weights = np.ones(len(codes)) if weights is None else weights
        pictures = distinct_pictures(rows, codes, weights, n_views)
        n_pictures = np.bincount(pictures.codes)
        if n_pictures.min() < 2:
            alone = self.classes_[n_pictures.argmin()].item()
            warnings.warn(
                f'C="cv" holds out pictures, but class {alone!r} has a single one: C is {ONE_PICTURE_C:g}. Pass a '
                "number as C to choose it and to silence this.",
                SkclipWarning,
                stacklevel=3,
            )
            return ONE_PICTURE_C
        losses = held_out_losses(pictures, min(5, int(n_pictures.min())), self.max_iter, min(_PATH_TOL, 10 * self.tol))
        tried = sorted(losses)
        self.C_grid_ = np.array(tried)
        self.held_out_loss_ = np.array([losses[C] for C in tried]) / pictures.weights.sum()
        return float(self.C_grid_[self.held_out_loss_.argmin()])


class _Fold(NamedTuple):
    """One fold of a search: what is fitted, and what is held out."""

    design: Design
    rows: NDArray  # (m, d)
    codes: NDArray  # (m,)
    weights: NDArray  # (m,)

    def loss(self, point: NDArray) -> float:
        """Log-loss of the held-out pictures, summed."""
        coef, intercept = self.design.coefficients(point)
        log_proba = log_softmax(self.rows @ coef.T + intercept, axis=1)
        return -float(self.weights @ log_proba[np.arange(len(self.codes)), self.codes])


def held_out_losses(pictures: Pictures, n_folds: int, max_iter: int, tol: float) -> dict[float, float]:
    """Log-loss of held-out pictures, summed, for each C of a search from strong to weak regularisation.

    Decades of `GRID` until the loss rises, then half a decade below and above the best. Every fit starts where a
    neighbour of it ended.
    """
    n_classes = int(pictures.codes.max()) + 1
    folds = _folds(pictures, n_folds, n_classes)
    points = [fold.design.start() for fold in folds]
    losses: dict[float, float] = {}
    best_C, best_points = GRID[0], points
    trial = first_step(n_classes)
    for C in GRID:
        points = _fit_folds(folds, points, C, max_iter, tol, trial)
        losses[C] = sum(fold.loss(point) for fold, point in zip(folds, points))
        if losses[C] > losses[best_C]:
            break
        best_C, best_points, trial = C, points, 1.0
    for C in (best_C / _HALF_A_DECADE, best_C * _HALF_A_DECADE):
        points = _fit_folds(folds, best_points, C, max_iter, tol, 1.0)
        losses[C] = sum(fold.loss(point) for fold, point in zip(folds, points))
    return losses


def _fit_folds(
    folds: list[_Fold], points: list[NDArray], C: float, max_iter: int, tol: float, trial: float
) -> list[NDArray]:
    found = []
    for fold, point in zip(folds, points):
        objective = SoftmaxObjective(fold.design, penalty_of(C, len(point)))
        found.append(minimise(objective, point, tol=tol, max_iter=max_iter, first_step=trial).point)
    return found


def _folds(pictures: Pictures, n_folds: int, n_classes: int) -> list[_Fold]:
    place = stratified_folds(pictures.codes, n_folds)
    folds = []
    for k in range(n_folds):
        rows, codes, weights = pictures.take(place != k).flat()
        held_out = pictures.take(place == k)
        # as much loss beside the penalty as in the fit of all pictures
        weights = weights * (pictures.weights.sum() / weights.sum())
        design = Design.of(rows, codes, weights, n_classes)
        folds.append(_Fold(design, held_out.views[:, 0].astype(np.float64), held_out.codes, held_out.weights))
    return folds
