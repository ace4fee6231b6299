"""Feature extraction as transformers, the store that keeps what was extracted, and what can go wrong."""

from skclip._backbones import (
    BackboneError,
    CompileWarning,
    MissingDeviceWarning,
    SlowPrecisionWarning,
    TruncatedTextWarning,
    UnknownWordWarning,
)
from skclip._media import PictureError, ReaderDiedError
from skclip.features._batch_encoder import BatchEncoder
from skclip.features._clip_features import CLIPFeatures
from skclip.features._dense_features import DenseCLIPFeatures
from skclip.features._devices import DeviceError
from skclip.features._extract import extract
from skclip.features._extraction import UnreadablePictureWarning, WorkerStoreWarning
from skclip.features._layer_statistics import CLIPLayerStatistics
from skclip.features._outputs import (
    Extraction,
    OutputError,
    UnlockedOutputWarning,
    merge_extractions,
    open_extraction,
)
from skclip.features._sources import SourceError
from skclip.features._store import StoreError, clear_store
from skclip.features._text_features import CLIPTextFeatures

__all__ = [
    "BackboneError",
    "BatchEncoder",
    "CLIPFeatures",
    "CLIPLayerStatistics",
    "CLIPTextFeatures",
    "CompileWarning",
    "DenseCLIPFeatures",
    "DeviceError",
    "Extraction",
    "MissingDeviceWarning",
    "OutputError",
    "PictureError",
    "ReaderDiedError",
    "SlowPrecisionWarning",
    "SourceError",
    "StoreError",
    "TruncatedTextWarning",
    "UnknownWordWarning",
    "UnlockedOutputWarning",
    "UnreadablePictureWarning",
    "WorkerStoreWarning",
    "clear_store",
    "extract",
    "merge_extractions",
    "open_extraction",
]
