from __future__ import annotations

from collections import deque

import numpy as np
import pytest
from scipy.optimize import minimize

from skclip.adapters._lbfgs import MEMORY, add_pair, inverse_hessian_product, line_search, minimise


class Quadratic:
    """``x^T A x / 2 - b^T x`` with a given preconditioner."""

    rounding = 1e-15

    def __init__(self, A, b, inverse=None):
        self.A, self.b = A, b
        self.inverse = np.eye(A.shape[1]) if inverse is None else inverse
        self.weight = 1.0
        self.n_refreshed = 0
        self.steps = []

    def value(self, x):
        return 0.5 * x @ self.A @ x - self.b @ x

    def slope_at(self, x):
        return self.A @ x - self.b

    def start(self, point):
        self.point = point.copy()
        return self.value(point), self.slope_at(point)

    def aim(self, direction):
        self.direction = direction

    def at(self, step):
        point = self.point + step * self.direction
        return self.value(point), float(self.slope_at(point) @ self.direction)

    def move(self, step):
        self.steps.append(step)
        self.point = self.point + step * self.direction
        return self.slope_at(self.point)

    def refresh(self):
        self.n_refreshed += 1

    def precondition(self, vector):
        return self.inverse @ vector


class LogCosh(Quadratic):
    """``sum log cosh(B x) + x^T x / 2``: flat far away, so that unit steps overshoot."""

    def value(self, x):
        z = self.A @ x - self.b
        return float(np.sum(np.logaddexp(z, -z))) + 0.5 * x @ x

    def slope_at(self, x):
        return self.A.T @ np.tanh(self.A @ x - self.b) + x


def hard_quadratic(n=30, condition=1e4, seed=0):
    rng = np.random.default_rng(seed)
    Q = np.linalg.qr(rng.normal(size=(n, n)))[0]
    return (Q * np.geomspace(1.0, condition, n)) @ Q.T, rng.normal(size=n)


def test_exact_inverse_needs_one_step():
    A, b = hard_quadratic()
    found = minimise(Quadratic(A, b, np.linalg.inv(A)), np.zeros(30), tol=1e-9, max_iter=50)
    assert found.converged
    assert len(found.losses) == 2
    np.testing.assert_allclose(found.point, np.linalg.solve(A, b), atol=1e-10)


def test_a_good_preconditioner_saves_most_iterations():
    A, b = hard_quadratic()
    near = np.linalg.inv(A + np.diag(np.random.default_rng(1).uniform(0.0, 5.0, 30)))
    plain = minimise(Quadratic(A, b), np.zeros(30), tol=1e-6, max_iter=1000)
    helped = minimise(Quadratic(A, b, near), np.zeros(30), tol=1e-6, max_iter=1000)
    assert plain.converged
    assert helped.converged
    assert len(helped.losses) < 0.5 * len(plain.losses)
    np.testing.assert_allclose(helped.point, np.linalg.solve(A, b), atol=1e-5)


def test_the_scale_of_the_preconditioner_does_not_matter_much():
    A, b = hard_quadratic()
    inverse = np.linalg.inv(A + np.eye(30))
    counts = []
    for scale in (1e-3, 1.0, 1e3):
        found = minimise(Quadratic(A, b, scale * inverse), np.zeros(30), tol=1e-8 * np.sqrt(scale), max_iter=200)
        np.testing.assert_allclose(found.point, np.linalg.solve(A, b), atol=1e-6)
        counts.append(len(found.losses))
    assert max(counts) <= min(counts) + 5


@pytest.mark.parametrize("seed", range(3))
def test_minimum_of_a_function_that_is_not_quadratic(seed):
    rng = np.random.default_rng(seed)
    B, shift = 5.0 * rng.normal(size=(40, 8)), 30.0 * rng.normal(size=40)
    objective = LogCosh(B, shift)
    found = minimise(objective, np.zeros(8), tol=1e-9, max_iter=500)
    assert found.converged
    assert not np.allclose(objective.steps, 1.0)
    assert (np.diff(found.losses) <= 1e-12 * np.abs(found.losses[:-1])).all()
    expected = minimize(objective.value, np.zeros(8), jac=objective.slope_at, method="BFGS", options={"gtol": 1e-8})
    np.testing.assert_allclose(found.point, expected.x, atol=1e-5)


def test_max_iter_and_the_times_of_refreshing():
    A, b = hard_quadratic(condition=1e8)
    objective = Quadratic(A, b)
    found = minimise(objective, np.zeros(30), tol=1e-14, max_iter=45)
    assert not found.converged
    assert len(found.losses) == 46
    assert objective.n_refreshed == 5  # after 2, 5, 10, 20 and 40


def test_a_minimum_stays():
    A, b = hard_quadratic()
    start = np.linalg.solve(A, b)
    found = minimise(Quadratic(A, b), start, tol=1e-6, max_iter=10)
    assert found.converged
    assert len(found.losses) == 1
    np.testing.assert_array_equal(found.point, start)


def test_rounding_that_hides_every_decrease_ends_the_search():
    class Rising(Quadratic):
        def at(self, step):
            return 1.0 + step, 1.0

    A, b = hard_quadratic()
    found = minimise(Rising(A, b), np.zeros(30), tol=1e-9, max_iter=10)
    assert found.stalled
    assert not found.converged


def test_two_loops_are_the_bfgs_formula():
    rng = np.random.default_rng(0)
    A, _ = hard_quadratic(n=6)
    pairs = deque(maxlen=MEMORY)
    for step in rng.normal(size=(4, 6)):
        add_pair(pairs, step, A @ step)
    preconditioner = np.diag(rng.uniform(0.5, 2.0, 6))
    last = pairs[-1]
    H = preconditioner * (last.step @ last.change) / (last.change @ preconditioner @ last.change)
    for step, change, scale in pairs:
        V = np.eye(6) - scale * np.outer(change, step)
        H = V.T @ H @ V + scale * np.outer(step, step)
    g = rng.normal(size=6)
    np.testing.assert_allclose(inverse_hessian_product(g, pairs, lambda v: preconditioner @ v), H @ g, rtol=1e-8)


def test_pairs_without_curvature_are_left_out():
    pairs = deque(maxlen=MEMORY)
    add_pair(pairs, np.array([1.0, 0.0]), np.array([0.0, 1.0]))
    assert not pairs


@pytest.mark.parametrize("trial", [1e-3, 1.0, 1e3])
def test_line_search_finds_the_root_of_the_slope(trial):
    def at(step):  # flat on the left, steep on the right, minimum at 2
        return np.exp(step - 2.0) - step, np.exp(step - 2.0) - 1.0

    with np.errstate(over="ignore"):
        step, value = line_search(at, *at(0.0), trial, 1e-15)
    assert value < at(0.0)[0]
    assert abs(at(step)[1]) <= 0.4 * abs(at(0.0)[1])
