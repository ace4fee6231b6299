from __future__ import annotations

import pkgutil

import skclip
from skclip.utils import SkclipBase, all_estimators
from skclip.utils._discovery import public_modules


def test_every_public_folder_is_walked():
    names = {module.__name__ for module in public_modules()}
    folders = {f"skclip.{info.name}" for info in pkgutil.iter_modules(skclip.__path__) if not info.name.startswith("_")}
    assert folders <= names
    assert not any("._" in name or name.endswith("estimator_checks") for name in names)


def test_estimators_are_sorted_classes_and_the_base_is_none_of_them():
    found = all_estimators()
    assert found == sorted(found)
    assert all(cls.__name__ == name for name, cls in found)
    assert SkclipBase not in dict(found).values()
    assert "ZeroShotClassifier" in dict(found)
