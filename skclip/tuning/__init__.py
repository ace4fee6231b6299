"""Networks, prompts and towers that learn by gradient."""

from skclip.tuning._checkpoint import CheckpointError
from skclip.tuning._timm_classifier import TimmClassifier
from skclip.tuning._tuned_features import TunedCLIPFeatures
from skclip.tuning.prompts import (
    BiomedCoOpClassifier,
    CoCoOpClassifier,
    CoOpClassifier,
    CPECLIPClassifier,
    GOProClassifier,
    IVLPClassifier,
    KgCoOpClassifier,
    MaPLeClassifier,
    MoCoOpClassifier,
    NoLAClassifier,
    ProGradClassifier,
    PromptSRCClassifier,
)
from skclip.tuning.weights import CLIPFineTuneClassifier, CLIPLoRAClassifier, CLIPSVDClassifier, TextSpan

__all__ = [
    "BiomedCoOpClassifier",
    "CLIPFineTuneClassifier",
    "CLIPLoRAClassifier",
    "CLIPSVDClassifier",
    "CPECLIPClassifier",
    "CheckpointError",
    "CoCoOpClassifier",
    "CoOpClassifier",
    "GOProClassifier",
    "IVLPClassifier",
    "KgCoOpClassifier",
    "MaPLeClassifier",
    "MoCoOpClassifier",
    "NoLAClassifier",
    "ProGradClassifier",
    "PromptSRCClassifier",
    "TextSpan",
    "TimmClassifier",
    "TunedCLIPFeatures",
]
