"""What accuracy under shift standard models keep at a given accuracy without shift."""

from __future__ import annotations

from numbers import Real
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, logit, ndtr, ndtri
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from skclip.metrics import effective_robustness
from skclip.metrics._checks import as_weights, check_accuracies
from skclip.utils._base import SkclipBase
from skclip.utils._params import Interval, StrOptions, check_parameters

# an accuracy on each scale, and the way back
_SCALES = {"probit": (ndtri, ndtr), "logit": (logit, expit), "linear": (np.asarray, lambda z: np.clip(z, 0.0, 1.0))}


class RobustnessLine(SkclipBase):
    """Accuracy under shift as a function of accuracy without, fitted to a pool of standard models.

    Over many models ``g(acc_shift) = slope * g(acc_id) + intercept``, with g the probit or logit, is close to a
    line [1]_; what a model has beyond it is its effective robustness. The pool is yours: models trained on
    in-distribution data without any measure for robustness, a dozen or more, of spread accuracies.

    Parameters
    ----------
    scale : {"probit", "logit", "linear"}, default="probit"
        g, in which the line is straight.
    clip : float, default=1e-4
        Accuracies are moved this far away from 0 and 1, where probit and logit are infinite.

    Attributes
    ----------
    slope_, intercept_ : float
        The line.
    n_models_ : int
        Models in the pool.
    r2_ : float
        Share of the variance of ``g(acc_shift)`` that the line explains; NaN where that does not vary.

    See Also
    --------
    skclip.metrics.effective_robustness : The same difference for any line.
    RobustnessReport : Uses one line per shift.

    References
    ----------
    .. [1] R. Taori et al., "Measuring Robustness to Natural Distribution Shifts in Image Classification", NeurIPS
       2020, arXiv:2007.00644.

    Examples
    --------
    >>> from skclip.evaluation import RobustnessLine
    >>> line = RobustnessLine().fit([0.55, 0.65, 0.75, 0.85], [0.40, 0.52, 0.63, 0.76])
    >>> line.predict([0.70]).round(2)
    array([0.57])
    >>> round(line.effective_robustness(0.70, 0.67), 2)
    0.1
    """

    _parameter_constraints = {
        "scale": [StrOptions(set(_SCALES))],
        "clip": [Interval(Real, 0, 0.5, closed="neither")],
    }

    def __init__(self, scale: Literal["probit", "logit", "linear"] = "probit", *, clip: float = 1e-4):
        self.scale = scale
        self.clip = clip

    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Fit the line by least squares.

        Parameters
        ----------
        X : array-like of shape (m,)
            Accuracy of each model on in-distribution pictures, between 0 and 1.
        y : array-like of shape (m,)
            Accuracy of the same models on the shifted pictures.
        sample_weight : array-like of shape (m,), default=None
            Weights of the models.

        Returns
        -------
        self

        Raises
        ------
        ValueError
            If there are fewer than two different accuracies in X, or an entry is no accuracy.
        """
        check_parameters(self)
        ids, shifts = check_accuracies("X", X), check_accuracies("y", y)
        if ids.ndim != 1 or shifts.ndim != 1:
            raise ValueError("X and y hold one accuracy per model of the pool; got single numbers.")
        check_consistent_length(ids, shifts)
        weights = as_weights(sample_weight, len(ids))
        z_id, z_shift = self._forward(ids), self._forward(shifts)
        centred = z_id - np.average(z_id, weights=weights)
        spread = weights @ centred**2
        if spread <= 1e-12 * weights.sum():
            raise ValueError("X needs models of different accuracies; through one point there is no line.")
        self.slope_ = float(weights @ (centred * z_shift) / spread)
        self.intercept_ = float(np.average(z_shift - self.slope_ * z_id, weights=weights))
        around = weights @ (z_shift - np.average(z_shift, weights=weights)) ** 2
        left = weights @ (z_shift - self.slope_ * z_id - self.intercept_) ** 2
        self.r2_ = float(1.0 - left / around) if around > 1e-12 * weights.sum() else float("nan")
        self.n_models_ = int(np.count_nonzero(weights))
        return self

    def predict(self, X: ArrayLike) -> NDArray:
        """Accuracy under shift that standard models of these accuracies have.

        Parameters
        ----------
        X : array-like of shape (m,)
            Accuracies on in-distribution pictures.

        Returns
        -------
        ndarray of shape (m,)
        """
        check_is_fitted(self)
        ids = np.atleast_1d(check_accuracies("X", X))
        return _SCALES[self.scale][1](self.slope_ * self._forward(ids) + self.intercept_)

    def effective_robustness(self, accuracy_id: ArrayLike, accuracy_shift: ArrayLike) -> Any:
        """Accuracy under shift beyond the line.

        Parameters
        ----------
        accuracy_id, accuracy_shift : float or array-like of shape (m,)
            Accuracies of each model without and with shift.

        Returns
        -------
        float or ndarray of shape (m,)
            0 on the line.
        """
        return effective_robustness(accuracy_id, accuracy_shift, self)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.input_tags.one_d_array, tags.input_tags.two_d_array = True, False
        return tags

    def _forward(self, accuracies: NDArray) -> NDArray:
        return _SCALES[self.scale][0](np.clip(accuracies, self.clip, 1.0 - self.clip))
