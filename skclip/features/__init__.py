"""Feature extraction as transformers, and the store that keeps what was extracted."""

from skclip.features._clip_features import CLIPFeatures
from skclip.features._extraction import MissingDeviceWarning, UnreadablePictureWarning, WorkerStoreWarning
from skclip.features._store import clear_store
from skclip.features._text_features import CLIPTextFeatures

__all__ = [
    "CLIPFeatures",
    "CLIPTextFeatures",
    "MissingDeviceWarning",
    "UnreadablePictureWarning",
    "WorkerStoreWarning",
    "clear_store",
]
