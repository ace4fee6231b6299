"""Feature extraction as transformers, the store that keeps what was extracted, and what can go wrong."""

from skclip._backbones import BackboneError, MissingDeviceWarning, TruncatedTextWarning, UnknownWordWarning
from skclip._media import PictureError
from skclip.features._clip_features import CLIPFeatures
from skclip.features._dense_features import DenseCLIPFeatures
from skclip.features._extraction import UnreadablePictureWarning, WorkerStoreWarning
from skclip.features._store import StoreError, clear_store
from skclip.features._text_features import CLIPTextFeatures

__all__ = [
    "BackboneError",
    "CLIPFeatures",
    "CLIPTextFeatures",
    "DenseCLIPFeatures",
    "MissingDeviceWarning",
    "PictureError",
    "StoreError",
    "TruncatedTextWarning",
    "UnknownWordWarning",
    "UnreadablePictureWarning",
    "WorkerStoreWarning",
    "clear_store",
]
