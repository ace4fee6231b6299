"""The one door to scikit-learn's private parameter validation."""

from __future__ import annotations

from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    Options,
    StrOptions,
    validate_parameter_constraints,
)

__all__ = ["HasMethods", "Interval", "Options", "StrOptions", "check_parameters"]


def check_parameters(estimator: BaseEstimator) -> None:
    """Raise ``InvalidParameterError`` naming the first parameter outside ``_parameter_constraints``."""
    validate_parameter_constraints(
        estimator._parameter_constraints,
        estimator.get_params(deep=False),
        caller_name=type(estimator).__name__,
    )
