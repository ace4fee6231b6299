"""CLIP and the research around it, as scikit-learn estimators.

The names below are loaded on first use: ``import skclip`` needs neither torch nor open_clip.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0.dev0"

_HOMES = {
    "CLIPClassifier": "skclip.zero_shot",
    "CLIPFeatures": "skclip.features",
    "CLIPRetriever": "skclip.retrieval",
    "CLIPTextFeatures": "skclip.features",
    "GDAClassifier": "skclip.adapters",
    "LinearProbeClassifier": "skclip.adapters",
    "TipAdapterClassifier": "skclip.adapters",
    "ZeroShotClassifier": "skclip.zero_shot",
    "clear_backbones": "skclip._backbones",
    "clear_store": "skclip.features",
    "get_card": "skclip._backbones",
    "list_models": "skclip._backbones",
}

__all__ = [*sorted(_HOMES), "__version__"]

if TYPE_CHECKING:
    from skclip._backbones import clear_backbones as clear_backbones
    from skclip._backbones import get_card as get_card
    from skclip._backbones import list_models as list_models
    from skclip.adapters import GDAClassifier as GDAClassifier
    from skclip.adapters import LinearProbeClassifier as LinearProbeClassifier
    from skclip.adapters import TipAdapterClassifier as TipAdapterClassifier
    from skclip.features import CLIPFeatures as CLIPFeatures
    from skclip.features import CLIPTextFeatures as CLIPTextFeatures
    from skclip.features import clear_store as clear_store
    from skclip.retrieval import CLIPRetriever as CLIPRetriever
    from skclip.zero_shot import CLIPClassifier as CLIPClassifier
    from skclip.zero_shot import ZeroShotClassifier as ZeroShotClassifier


def __getattr__(name: str) -> object:
    if name in _HOMES:
        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'skclip' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
