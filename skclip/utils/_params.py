"""The one door to scikit-learn's private parameter validation."""

from __future__ import annotations

from collections.abc import Iterable

from sklearn.base import BaseEstimator
from sklearn.utils._param_validation import (
    HasMethods,
    Interval,
    Options,
    StrOptions,
    validate_parameter_constraints,
)

__all__ = ["HasMethods", "Interval", "Options", "StrOptions", "check_parameters", "check_unrouted"]


def check_parameters(estimator: BaseEstimator) -> None:
    """Raise ``InvalidParameterError`` naming the first parameter outside ``_parameter_constraints``."""
    validate_parameter_constraints(
        estimator._parameter_constraints,
        estimator.get_params(deep=False),
        caller_name=type(estimator).__name__,
    )


def check_unrouted(estimator: BaseEstimator, params: Iterable[str]) -> None:
    """Refuse metadata other than ``sample_weight`` of a ``fit`` that passes on what it is given, without routing."""
    unknown = sorted(set(params) - {"sample_weight"})
    if unknown:
        raise TypeError(
            f"{type(estimator).__name__}.fit got {unknown}; without set_config(enable_metadata_routing=True), "
            "sample_weight alone is passed on."
        )
