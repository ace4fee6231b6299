"""Backbones: the only place that imports open_clip.

Model strings are ``"<architecture>/<pretrained tag>"``, ``"hf-hub:<repository>"``, ``"local-dir:<folder>"``
or a bundled tiny model. Importing this package imports neither torch nor open_clip; its functions do.
"""

from __future__ import annotations

from skclip._backbones._cards import DEFAULT_MODEL, BackboneCard, get_card, list_models
from skclip._backbones._device import resolve_device, resolve_precision
from skclip._backbones._execution import Backbone
from skclip._backbones._hub import BackboneError
from skclip._backbones._loading import clear_backbones, load_backbone, weights_digest
from skclip._backbones._text import TruncatedTextWarning
from skclip._backbones._tiny import UnknownWordWarning
from skclip._backbones._towers import grid_shape

__all__ = [
    "DEFAULT_MODEL",
    "Backbone",
    "BackboneCard",
    "BackboneError",
    "TruncatedTextWarning",
    "UnknownWordWarning",
    "clear_backbones",
    "get_card",
    "grid_shape",
    "list_models",
    "load_backbone",
    "resolve_device",
    "resolve_precision",
    "weights_digest",
]
