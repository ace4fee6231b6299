"""LP++: a linear probe whose weights blend pictures and class text, with step sizes in closed form."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral, Real
from typing import Any, NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.linalg import eigh
from sklearn.utils.validation import check_is_fitted

from skclip.adapters._gradient import Pictures, pictures_to_train_on
from skclip.utils._arrays import check_features, first_view
from skclip.utils._base import SkclipBase
from skclip.utils._class_text import set_unscaled_text, warn_if_guessing
from skclip.utils._classifier import LogitsMixin
from skclip.utils._cosine import linear_logits
from skclip.utils._docs import fill_doc
from skclip.utils._moments import class_sums
from skclip.utils._params import HasMethods, Interval, StrOptions, check_parameters
from skclip.utils._training import check_training

# of the intercept, counted as a feature, relative to the strongest direction of the pictures
_INTERCEPT_POWER = 0.1


@fill_doc
class LPPlusPlusClassifier(LogitsMixin, SkclipBase):
    """Linear probe with a learned share of the class text, trained on all pictures at once.

    A good choice with a few labelled pictures per class and no data to tune on: step sizes and starting point
    follow from the pictures, so there is no learning rate to choose. Not the right choice where one step over all
    pictures is expensive (more than some ten thousand): `LinearProbeClassifier` needs fewer of them.

    ``logits_k = w_k . x + b_k + alpha_k (x . t_k)``: x and t_k of unit length, no temperature [1]_. w_k starts at
    the **sum** of the rows of class k, all alpha at ``init_scale`` times the mean cosine of pictures with their own
    class text, b at a uniform draw. Each iteration moves w and b by gradient descent with momentum on the mean cross
    entropy, every `alpha_every`-th moves alpha as well.

    Parameters
    ----------
    %(zero_shot)s
        Its logit scale plays no part. None leaves the term with alpha out.
    max_iter : int, default=300
        Iterations, each over all pictures. 0 keeps the starting point.
    momentum : float, default=0.9
        Of the steps of w and b.
    alpha_every : int, default=10
        Alpha moves in iterations `alpha_every`, ``2 * alpha_every``, ...
    init_scale : float, default=250.0
        Starting value of alpha per unit of cosine.
    alpha_grad : {"accumulated", "fresh"}, default="accumulated"
        What alpha moves along. "accumulated" is the sum of the gradients of all iterations so far: the official code
        never resets it, and the published figures rest on it. "fresh" is the gradient of that iteration.
    intercept_step : {"safe", "published"}, default="safe"
        Step size of b. "published" is that of w: the two then overshoot together where there are few classes, as
        pictures of one model all point in a similar direction, along which b and w do the same. "safe" counts b as
        one more feature, of a tenth of the power of that direction.
    early_stopping : bool, default=False
        Whether to hold out pictures and keep the iterate that recognises most of them, the latest of equals.
        Otherwise the last one is kept.
    %(validation_fraction)s
    n_iter_no_change : int, default=50
        With `early_stopping`, iterations without a new best after which training ends.
    random_state : int, RandomState or None, default=None
        Start of b, and the pictures held out.
    %(verbose)s

    Attributes
    ----------
    %(classes_)s
    coef_ : ndarray of shape (K, d)
        ``w_k + alpha_k t_k``, to be multiplied with unit rows.
    intercept_ : ndarray of shape (K,)
        b.
    alpha_ : ndarray of shape (K,) or None
        Weight of the text of each class.
    %(prototypes_)s
    %(zero_shot_)s
    learning_rate_ : float
        Step size of w: ``4 N / lambda_max(X^T X)`` if `intercept_step` is "published", else
        ``4 N / lambda_max([X, c]^T [X, c])`` with ``c^2 = lambda_max(X^T X) / (10 N)``, at most a tenth less.
    intercept_learning_rate_ : float
        Step size of b, `learning_rate_` or c^2 times that.
    alpha_learning_rate_ : float or None
        Step size of alpha, ``N / (4 max_k sum_i (x_i . t_k)^2)``.
    loss_curve_ : list of float
        Mean cross entropy before each iteration.
    validation_scores_ : list of float
        Accuracy on the held-out pictures after each iteration; empty without `early_stopping`.
    n_iter_ : int
        Iterations run.
    %(n_features_in_)s
    %(feature_names_in_)s

    See Also
    --------
    LinearProbeClassifier : The same linear model at the minimum of a penalised loss.
    CLAPClassifier : Starts at the class text and is held near it.

    Notes
    -----
    With X of shape (n, V, d), every view is a row of weight 1 / V in `fit`; view 0 alone is read elsewhere.
    Whole-number `sample_weight` means repeated rows. Weights that sum to less than the effective number of pictures,
    ``(sum w)^2 / sum w^2``, are scaled up to it.

    Without momentum no "safe" step of w and b can raise the loss: the step size is twice the inverse of a bound on the
    curvature. A step of alpha along its fresh gradient cannot either, taken alone.

    Cost of `fit`: O(n V K d) per iteration and O(n V K) memory; 4000 pictures of 512 features and 1000 classes take
    about 40 s on one core. Products are computed in the floating type of X, all else in float64. Prediction is
    O(n K d).

    References
    ----------
    .. [1] Y. Huang et al., "LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP", CVPR 2024,
       arXiv:2404.02285.

    Examples
    --------
    >>> import numpy as np
    >>> from skclip.adapters import LPPlusPlusClassifier
    >>> rng = np.random.default_rng(0)
    >>> text = rng.normal(size=(3, 16))
    >>> y = np.repeat([0, 1, 2], 4)
    >>> X = np.repeat(text, 4, axis=0) + rng.normal(size=(12, 16))
    >>> clf = LPPlusPlusClassifier(text, random_state=0).fit(X, y)
    >>> clf.predict(text)
    array([0, 1, 2])
    >>> clf.coef_.shape, clf.alpha_.shape
    ((3, 16), (3,))
    """

    _set_last = "alpha_"
    _parameter_constraints: dict[str, list[Any]] = {
        "zero_shot": [HasMethods(["fit"]), "array-like", None],
        "max_iter": [Interval(Integral, 0, None, closed="left")],
        "momentum": [Interval(Real, 0, 1, closed="left")],
        "alpha_every": [Interval(Integral, 1, None, closed="left")],
        "init_scale": [Interval(Real, 0, None, closed="left")],
        "alpha_grad": [StrOptions({"accumulated", "fresh"})],
        "intercept_step": [StrOptions({"safe", "published"})],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        zero_shot: Any = None,
        *,
        max_iter: int = 300,
        momentum: float = 0.9,
        alpha_every: int = 10,
        init_scale: float = 250.0,
        alpha_grad: str = "accumulated",
        intercept_step: str = "safe",
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 50,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ) -> None:
        self.zero_shot = zero_shot
        self.max_iter = max_iter
        self.momentum = momentum
        self.alpha_every = alpha_every
        self.init_scale = init_scale
        self.alpha_grad = alpha_grad
        self.intercept_step = intercept_step
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.random_state = random_state
        self.verbose = verbose

    def fit(self, X: Any, y: ArrayLike, sample_weight: ArrayLike | None = None) -> Self:
        """Train by gradient descent over all pictures at once.

        %(fit)s

        Raises
        ------
        %(raises_fit)s
            Also if `early_stopping` meets classes with one picture each only.

        Warns
        -----
        %(warns_chance)s
        """
        check_parameters(self)
        training = check_training(self, X, y, sample_weight)
        text = set_unscaled_text(self)
        warn_if_guessing(training, text)
        pictures, validation, rng = pictures_to_train_on(self, training)

        problem = _Problem.of(pictures, len(self.classes_), self.prototypes_)
        start = _start(problem, self.init_scale, rng)
        safe = self.intercept_step == "safe"
        self.learning_rate_, self.intercept_learning_rate_ = step_sizes(problem.rows, problem.weights, safe=safe)
        self.alpha_learning_rate_ = None if text is None else alpha_step_size(problem)
        self.loss_curve_: list[float] = []
        self.validation_scores_: list[float] = []
        best = start
        for loss, iterate in self._iterates(problem, start):
            self.loss_curve_.append(loss)
            if validation is None:
                best = iterate
                continue
            self.validation_scores_.append(_accuracy(iterate.folded(self.prototypes_), iterate.intercept, validation))
            latest_best = int(np.argmax(self.validation_scores_[::-1]))
            if latest_best == 0:
                best = iterate
            if latest_best >= self.n_iter_no_change:
                break
        self.n_iter_ = len(self.loss_curve_)
        self.coef_, self.intercept_, self.alpha_ = best.folded(self.prototypes_), best.intercept, best.alpha
        return self

    def _iterates(self, problem: _Problem, start: _Weights) -> Iterator[tuple[float, _Weights]]:
        """Loss before each iteration, and the weights after it."""
        from tqdm.auto import tqdm

        coef, intercept, alpha = start
        coef_step, intercept_step = np.zeros_like(coef), np.zeros_like(intercept)
        alpha_gradient = np.zeros(len(intercept))
        iterations = range(1, self.max_iter + 1)
        for iteration in tqdm(iterations, desc=type(self).__name__, disable=not self.verbose, unit="iteration"):
            folded = _Weights(coef, intercept, alpha).folded(problem.prototypes)
            loss, gradient, intercept_gradient = loss_and_gradient(problem, folded, intercept)
            coef_step = self.momentum * coef_step + gradient
            intercept_step = self.momentum * intercept_step + intercept_gradient
            coef = coef - self.learning_rate_ * coef_step
            intercept = intercept - self.intercept_learning_rate_ * intercept_step
            if alpha is not None and problem.prototypes is not None and self.alpha_learning_rate_ is not None:
                if self.alpha_grad == "fresh":
                    alpha_gradient[:] = 0.0
                # coef + alpha t is one matrix, so alpha's gradient is that of coef along t
                alpha_gradient += np.einsum("kd,kd->k", gradient, problem.prototypes)
                if iteration % self.alpha_every == 0:
                    alpha = alpha - self.alpha_learning_rate_ * alpha_gradient
            yield loss, _Weights(coef, intercept, alpha)

    def logits(self, X: Any) -> NDArray:
        """Class scores, ``x . coef_k + intercept_k`` of unit rows x.

        %(logits)s
        """
        check_is_fitted(self)
        return linear_logits(first_view(*check_features(self, X)), self.coef_, self.intercept_)


class _Weights(NamedTuple):
    coef: NDArray  # (K, d) of the pictures
    intercept: NDArray  # (K,)
    alpha: NDArray | None  # (K,) of the text

    def folded(self, prototypes: NDArray | None) -> NDArray:
        """``w_k + alpha_k t_k``, (K, d)."""
        if self.alpha is None or prototypes is None:
            return self.coef
        return self.coef + self.alpha[:, None] * prototypes


class _Problem(NamedTuple):
    """Unit rows and how much each counts."""

    rows: NDArray  # (m, d)
    codes: NDArray  # (m,)
    weights: NDArray  # (m,)
    prototypes: NDArray | None  # (K, d)
    n_classes: int

    @classmethod
    def of(cls, pictures: Pictures, n_classes: int, prototypes: NDArray | None) -> _Problem:
        rows, codes, weights = pictures.flat()
        weights = weights * max(1.0, weights.sum() / np.square(weights).sum()) / pictures.views.shape[1]
        text = None if prototypes is None else prototypes.astype(np.float64)
        return cls(rows, codes, weights, text, n_classes)


def loss_and_gradient(problem: _Problem, coef: NDArray, intercept: NDArray) -> tuple[float, NDArray, NDArray]:
    """Weighted mean cross entropy of ``rows @ coef.T + intercept``, and its gradient in both.

    Returns
    -------
    loss : float
    gradient : ndarray of shape (K, d)
    intercept_gradient : ndarray of shape (K,)
    """
    kind = problem.rows.dtype
    places = np.arange(len(problem.rows)), problem.codes
    shares = (problem.weights / problem.weights.sum()).astype(kind)
    scores = problem.rows @ coef.T.astype(kind)
    scores += intercept.astype(kind)
    scores -= scores.max(axis=1, keepdims=True)
    own = scores[places].astype(np.float64)
    np.exp(scores, out=scores)
    totals = scores.sum(axis=1)
    loss = float(shares @ (np.log(totals, dtype=np.float64) - own))
    scores *= (shares / totals)[:, None]
    scores[places] -= shares
    return loss, (scores.T @ problem.rows).astype(np.float64), scores.sum(axis=0, dtype=np.float64)


def _start(problem: _Problem, init_scale: float, rng: np.random.RandomState) -> _Weights:
    kind = problem.rows.dtype
    sums = class_sums(problem.rows, problem.codes, problem.n_classes, problem.weights.astype(kind)).astype(np.float64)
    bound = 1.0 / np.sqrt(problem.rows.shape[1])  # of torch's linear layers
    intercept = rng.uniform(-bound, bound, problem.n_classes)
    if problem.prototypes is None:
        return _Weights(sums, intercept, None)
    counts = np.bincount(problem.codes, weights=problem.weights, minlength=problem.n_classes)
    cosines = np.einsum("kd,kd->k", sums, problem.prototypes) / counts
    return _Weights(sums, intercept, np.full(problem.n_classes, init_scale * cosines.mean()))


def step_sizes(rows: NDArray, weights: NDArray, *, safe: bool) -> tuple[float, float]:
    """Step sizes of w and b, see ``learning_rate_`` of `LPPlusPlusClassifier`."""
    n_samples = weights.sum()
    columns = rows.astype(np.float64)
    power = _largest_eigenvalue(columns, weights)
    if not safe:
        return 4.0 * n_samples / power, 4.0 * n_samples / power
    length = np.sqrt(_INTERCEPT_POWER * power / n_samples)
    columns = np.column_stack([columns, np.full(len(rows), length)])
    step = 4.0 * n_samples / _largest_eigenvalue(columns, weights)
    return step, length**2 * step


def _largest_eigenvalue(rows: NDArray, weights: NDArray) -> float:
    scaled = np.sqrt(weights)[:, None] * rows
    gram = scaled.T @ scaled if rows.shape[1] <= len(rows) else scaled @ scaled.T
    last = len(gram) - 1
    return float(eigh(gram, eigvals_only=True, subset_by_index=[last, last])[0])


def alpha_step_size(problem: _Problem) -> float:
    """``N / (4 max_k sum_i (x_i . t_k)^2)``, of the official code."""
    assert problem.prototypes is not None
    cosines = problem.rows.astype(np.float64) @ problem.prototypes.T
    return float(problem.weights.sum() / (4.0 * (problem.weights @ np.square(cosines)).max()))


def _accuracy(coef: NDArray, intercept: NDArray, validation: Pictures) -> float:
    guesses = np.argmax(linear_logits(validation.views[:, 0], coef, intercept), axis=1)
    return float(np.average(guesses == validation.codes, weights=validation.weights))
