"""Backbones: the only place that imports open_clip.

Model strings are ``"<architecture>/<pretrained tag>"``, ``"hf-hub:<repository>"``, ``"local-dir:<folder>"``
or a bundled tiny model. Importing this package imports neither torch nor open_clip; its functions do.
"""

from __future__ import annotations

from skclip._backbones._cards import DEFAULT_MODEL, BackboneCard, get_card, list_models
from skclip._backbones._compiling import CompileWarning
from skclip._backbones._device import (
    MissingDeviceWarning,
    SlowPrecisionWarning,
    device_of_fitted,
    resolve_device,
    resolve_precision,
    torch_dtype,
)
from skclip._backbones._execution import Backbone, run_batched
from skclip._backbones._foreign import (
    NetworkCard,
    build_network,
    cached_network,
    head_names,
    keep_network,
    network_card,
    network_weights,
    private_random_numbers,
    weights_file_digest,
)
from skclip._backbones._hub import BackboneError
from skclip._backbones._lanes import n_lanes
from skclip._backbones._loading import clear_backbones, find_weights, load_backbone, weights_digest
from skclip._backbones._opened import OpenedTowerError
from skclip._backbones._opened_text import PromptTokens, TextTower
from skclip._backbones._opened_vision import VisionTower, VisualPrompts
from skclip._backbones._pixels import PixelScale
from skclip._backbones._text import TruncatedTextWarning
from skclip._backbones._tiny import UnknownWordWarning
from skclip._backbones._towers import grid_shape

__all__ = [
    "DEFAULT_MODEL",
    "Backbone",
    "BackboneCard",
    "BackboneError",
    "CompileWarning",
    "MissingDeviceWarning",
    "NetworkCard",
    "OpenedTowerError",
    "PixelScale",
    "PromptTokens",
    "SlowPrecisionWarning",
    "TextTower",
    "TruncatedTextWarning",
    "UnknownWordWarning",
    "VisionTower",
    "VisualPrompts",
    "build_network",
    "cached_network",
    "clear_backbones",
    "device_of_fitted",
    "find_weights",
    "get_card",
    "grid_shape",
    "head_names",
    "keep_network",
    "list_models",
    "load_backbone",
    "n_lanes",
    "network_card",
    "network_weights",
    "private_random_numbers",
    "resolve_device",
    "resolve_precision",
    "run_batched",
    "torch_dtype",
    "weights_digest",
    "weights_file_digest",
]
