"""Weights that are tuned: all of a tower, or the few numbers from which its matrices follow."""

from skclip.tuning.weights._clip_lora import CLIPLoRAClassifier
from skclip.tuning.weights._clip_svd import CLIPSVDClassifier
from skclip.tuning.weights._fine_tune import CLIPFineTuneClassifier
from skclip.tuning.weights._text_span import TextSpan

__all__ = ["CLIPFineTuneClassifier", "CLIPLoRAClassifier", "CLIPSVDClassifier", "TextSpan"]
