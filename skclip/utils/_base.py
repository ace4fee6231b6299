"""What every public estimator shares: its documentation link, its warnings."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sklearn.base import BaseEstimator


class SkclipWarning(UserWarning):
    """Category of every warning skclip raises by itself.

    Silence one kind with ``warnings.filterwarnings("ignore", category=...)``.
    """


class SkclipBase(BaseEstimator):
    """`BaseEstimator` whose HTML display links to skclip's own pages."""

    _doc_link_module = "skclip"
    _doc_link_template = "https://skclip.readthedocs.io/en/latest/generated/{estimator_module}.{estimator_name}.html"

    # the attribute that `fit` sets last; None is scikit-learn's rule, any name that ends in "_"
    _set_last: str | None = None

    def __sklearn_is_fitted__(self) -> bool:
        return bool(fitted_names(self)) if self._set_last is None else hasattr(self, self._set_last)


def fitted_names(estimator: Any) -> list[str]:
    """Attributes that `fit` has set."""
    return [name for name in vars(estimator) if name.endswith("_") and not name.startswith("__")]


def forget_fit(estimator: Any) -> None:
    """Delete what an earlier `fit` has set, so that one that fails does not leave the labels of one training set beside
    the weights of another."""
    for name in fitted_names(estimator):
        delattr(estimator, name)


@contextmanager
def unchanged_on_failure(estimator: Any) -> Iterator[None]:
    """Give `estimator` its attributes back where the block raises; it must replace arrays, not write into them."""
    before = dict(vars(estimator))
    try:
        yield
    except BaseException:
        vars(estimator).clear()
        vars(estimator).update(before)
        raise


def stack_level() -> int:
    """The `stacklevel` at which a warning of the function that calls this points at the code outside the package."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").startswith("skclip."):
        level, frame = level + 1, frame.f_back
    return level
