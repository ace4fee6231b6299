"""Networks, prompts and towers that learn by gradient."""

from skclip.tuning import prompts, weights
from skclip.tuning._checkpoint import CheckpointError
from skclip.tuning._timm_classifier import TimmClassifier
from skclip.tuning._tuned_features import TunedCLIPFeatures
from skclip.tuning.prompts import *
from skclip.tuning.weights import *

__all__ = ["CheckpointError", "TimmClassifier", "TunedCLIPFeatures", *prompts.__all__, *weights.__all__]
