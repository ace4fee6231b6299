"""Multinomial logistic loss of rows, with L2 penalty, for `minimise`."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from sklearn.utils import gen_batches

from skclip.utils._moments import class_sums

# entries of a block of logits that stays in a processor's own cache
_BLOCK_ENTRIES = 2**17
# sums of float32 products over so many rows are added up in float64
_GRADIENT_ROWS = 4096
# smallest eigenvalue of the curvature between classes, in units of the largest, that is not rounding
_FLATTEST = 1e-7
# iterations after which logits are computed afresh: adding up steps adds up rounding
_FRESH_EVERY = 10


class Design(NamedTuple):
    """Rows in the coordinates in which the scatter of rows about their class is diagonal, and a column of ones.

    Attributes
    ----------
    rows : ndarray of shape (n, r + 1)
    codes : ndarray of shape (n,)
    weights : ndarray of shape (n,) or None
        None for ones.
    weight : float
        Sum of the weights.
    spread : ndarray of shape (r,)
        Mean square of the columns, rows centred by class.
    sums : ndarray of shape (K, r + 1)
        Weighted sums of the rows of each class; the last column holds the class weights.
    basis : ndarray of shape (d, r)
    centre : ndarray of shape (d,)
        Weighted mean of the rows as they were.
    """

    rows: NDArray
    codes: NDArray
    weights: NDArray | None
    weight: float
    spread: NDArray
    sums: NDArray
    basis: NDArray
    centre: NDArray

    @classmethod
    def of(cls, X: NDArray, codes: NDArray, weights: NDArray | None, n_classes: int) -> Design:
        """O(n d^2 + d^3), or O(n^2 d) with fewer rows than columns."""
        weight = float(len(X) if weights is None else weights.sum())
        shares = np.full(len(X), 1.0 / weight) if weights is None else weights / weight
        centre = shares @ X
        X = X - centre.astype(X.dtype)
        basis = np.eye(X.shape[1])
        if len(X) < X.shape[1]:
            # No row has a part outside the span of the rows, so neither has any coefficient.
            basis = np.linalg.qr(X.T.astype(np.float64))[0]
            X = X @ basis.astype(X.dtype)
        scaled = X if weights is None else X * np.sqrt(weights).astype(X.dtype)[:, None]
        sums = class_sums(X, codes, n_classes, weights).astype(np.float64)
        counts = np.bincount(codes, weights=weights, minlength=n_classes).astype(np.float64)
        within = (scaled.T @ scaled).astype(np.float64) - (sums / counts[:, None]).T @ sums
        values, vectors = eigh(within)
        rows = np.empty((len(X), X.shape[1] + 1), dtype=X.dtype)
        np.matmul(X, vectors.astype(X.dtype), out=rows[:, :-1])
        rows[:, -1] = 1.0
        return cls(
            rows=rows,
            codes=codes,
            weights=weights,
            weight=weight,
            spread=np.maximum(values, 0.0) / weight,
            sums=np.column_stack([sums @ vectors, counts]),
            basis=basis @ vectors,
            centre=centre.astype(np.float64),
        )

    def start(self) -> NDArray:
        """No coefficients, and intercepts that fit the class weights, (K, r + 1)."""
        point = np.zeros_like(self.sums)
        point[:, -1] = np.log(self.sums[:, -1])
        return point - point.mean(axis=0)

    def coefficients(self, point: NDArray) -> tuple[NDArray, NDArray]:
        """``coef`` (K, d) and ``intercept`` (K,) for the rows as they were.

        What is common to all classes changes no probability; the penalty wants none of it in `coef`.
        """
        point = point - point.mean(axis=0)
        coef = point[:, :-1] @ self.basis.T
        return coef, point[:, -1] - coef @ self.centre


class SoftmaxObjective:
    """``sum_i w_i (logsumexp_k z_ik - z_iy_i) + penalty / 2 sum_k |coef_k|^2``, a `LineObjective`.

    Logits of the present point and of the direction are kept, so that a step along the line costs no product with
    the rows: an iteration has two of them, one for the direction and one for the gradient.

    The preconditioner inverts ``A (x) S + penalty I``: A, (K, K), is the mean of ``diag(p) - p p^T`` over the rows, and
    S the scatter of the rows about their class. Both are diagonal in coordinates that are known, so that the inverse is
    exact. Intercepts are taken where the probability mass of their class lies: as the rows that matter to class k lie
    about their mean m_k, ``intercept_k + coef_k m_k`` is independent of ``coef_k``. The masses and means are what the
    gradient is made of, and cost nothing.

    Parameters
    ----------
    design : Design
    penalty : float
    """

    def __init__(self, design: Design, penalty: float) -> None:
        self.design = design
        self.penalty = penalty
        self.weight = design.weight
        dtype = design.rows.dtype
        self.rounding = 10.0 * float(np.finfo(dtype).eps)
        shape = len(design.rows), len(design.sums)
        self._logits = np.empty(shape, dtype)
        self._slopes = np.empty(shape, dtype)
        self._residuals = np.empty(shape, dtype)
        self._weights = None if design.weights is None else design.weights.astype(dtype)
        self._blocks = list(gen_batches(shape[0], max(1, _BLOCK_ENTRIES // shape[1])))
        self._n_moves = 0

    def start(self, point: NDArray) -> tuple[float, NDArray]:
        self._point = point.copy()
        self._direction = np.zeros_like(point)
        self._set_logits()
        self._slopes[:] = 0.0
        loss, _ = self.at(0.0)
        gradient = self._gradient()
        self.refresh()
        return loss, gradient

    def aim(self, direction: NDArray) -> None:
        self._direction = direction
        np.matmul(self.design.rows, direction.T.astype(self._slopes.dtype), out=self._slopes)

    def at(self, step: float) -> tuple[float, float]:
        loss, slope = 0.0, 0.0
        for part in self._blocks:
            block_loss, block_slope = self._block_at(part, step)
            loss += block_loss
            slope += block_slope
        coef = self._point[:, :-1] + step * self._direction[:, :-1]
        loss += 0.5 * self.penalty * float(np.vdot(coef, coef))
        return loss, slope + self.penalty * float(np.vdot(coef, self._direction[:, :-1]))

    def _block_at(self, part: slice, step: float) -> tuple[float, float]:
        """Loss and slope of a block of rows; leaves ``w (p - onehot)`` in the residuals."""
        slopes, proba, codes = self._slopes[part], self._residuals[part], self.design.codes[part]
        np.multiply(slopes, slopes.dtype.type(step), out=proba)
        proba += self._logits[part]
        proba -= proba.max(axis=1, keepdims=True)
        rows = np.arange(len(codes))
        target = proba[rows, codes]
        np.exp(proba, out=proba)
        normaliser = proba.sum(axis=1, keepdims=True)
        losses = np.log(normaliser[:, 0]) - target
        proba /= normaliser
        proba[rows, codes] -= 1.0
        if self._weights is not None:
            losses *= self._weights[part]
            proba *= self._weights[part, None]
        along = np.einsum("nk,nk->n", proba, slopes)
        return float(losses.sum(dtype=np.float64)), float(along.sum(dtype=np.float64))

    def move(self, step: float) -> NDArray:
        self._point += step * self._direction
        self._n_moves += 1
        if self._n_moves % _FRESH_EVERY == 0:
            self._set_logits()
        else:
            self._slopes *= self._slopes.dtype.type(step)
            self._logits += self._slopes
        return self._gradient()

    def _set_logits(self) -> None:
        np.matmul(self.design.rows, self._point.T.astype(self._logits.dtype), out=self._logits)

    def _gradient(self) -> NDArray:
        gradient = np.zeros_like(self._point)
        for part in gen_batches(len(self._logits), _GRADIENT_ROWS):
            gradient += self._residuals[part].T @ self.design.rows[part]
        self._masses = gradient + self.design.sums
        gradient[:, :-1] += self.penalty * self._point[:, :-1]
        return gradient

    def refresh(self) -> None:
        # Without coefficients all rows matter alike to every class; what comes next depends on its own ones.
        masses = self._masses if self._point[:, :-1].any() else self.design.sums
        self._means = masses[:, :-1] / np.maximum(masses[:, -1:], np.finfo(np.float64).tiny)
        values, self._vectors = eigh(self._class_curvature())
        scale = self.weight * np.maximum(values, _FLATTEST * values[-1])[:, None]
        self._damping = scale * np.append(self.design.spread, 1.0)
        self._damping[:, :-1] += self.penalty

    def _class_curvature(self) -> NDArray:
        """Weighted mean of ``diag(p) - p p^T``, (K, K), plus any curvature along what is common to all classes.

        That changes no probability: the minimum has none of it, and no step needs any.
        """
        curvature = np.zeros((self._logits.shape[1], self._logits.shape[1]))
        for part in self._blocks:
            proba = self._residuals[part].copy()
            weighted = proba
            if self._weights is not None:
                weights = self._weights[part, None]
                proba /= weights
            proba[np.arange(len(proba)), self.design.codes[part]] += 1.0
            if self._weights is not None:
                weighted = proba * weights
            curvature -= weighted.T @ proba
        mass = self._masses[:, -1]
        curvature[np.diag_indices_from(curvature)] += mass
        return curvature / self.weight + mass.mean() / self.weight / len(mass)

    def precondition(self, vector: NDArray) -> NDArray:
        shifted = vector.copy()
        shifted[:, :-1] -= vector[:, -1:] * self._means
        solved = self._vectors.T @ shifted
        solved /= self._damping
        solved = self._vectors @ solved
        solved[:, -1] -= np.einsum("kd,kd->k", solved[:, :-1], self._means)
        return solved - solved.mean(axis=0)


def penalty_of(C: float, n_classes: int) -> float:
    """scikit-learn's penalty for this C.

    For two classes its objective has one vector w, whose logits are ``[-w x / 2, w x / 2]``: penalising w costs twice
    what penalising the two halves does.
    """
    return (2.0 if n_classes == 2 else 1.0) / C


def first_step(n_classes: int) -> float:
    """The first direction would give a row a logit near K where one near log K is due."""
    return min(1.0, 10.0 / n_classes)
