"""Weights that are tuned: all of a tower, or the few numbers from which its matrices follow."""

from skclip.tuning.weights._clip_lora import CLIPLoRAClassifier
from skclip.tuning.weights._fine_tune import CLIPFineTuneClassifier

__all__ = ["CLIPFineTuneClassifier", "CLIPLoRAClassifier"]
