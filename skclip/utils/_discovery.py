"""Finds every public estimator of the package, so that none escapes the checks."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterable
from importlib import import_module
from types import ModuleType

from sklearn.base import BaseEstimator

from skclip.utils._base import SkclipBase


def public_modules() -> list[ModuleType]:
    """Modules of skclip with no leading underscore in their path, imported; without the checks themselves."""
    import skclip

    modules = []
    folders: list[tuple[Iterable[str], str]] = [(skclip.__path__, "skclip.")]
    while folders:
        path, prefix = folders.pop()
        for info in pkgutil.iter_modules(path, prefix):
            name = info.name.rpartition(".")[2]
            if name.startswith("_") or name == "estimator_checks":
                continue
            module = import_module(info.name)
            modules.append(module)
            if info.ispkg:
                folders.append((module.__path__, f"{info.name}."))
    return sorted(modules, key=lambda module: module.__name__)


def all_estimators() -> list[tuple[str, type]]:
    """Every public estimator class.

    Returns
    -------
    list of (str, type)
        Name and class, by name: what the public modules list in ``__all__`` and that derives from
        `BaseEstimator`.

    Examples
    --------
    >>> from skclip.utils import all_estimators
    >>> "ZeroShotClassifier" in dict(all_estimators())
    True
    """
    found: dict[str, type] = {}
    for module in public_modules():
        for name in getattr(module, "__all__", ()):
            value = getattr(module, name)
            if isinstance(value, type) and issubclass(value, BaseEstimator) and value is not SkclipBase:
                found[name] = value
    return sorted(found.items())
