"""Classifiers that know their classes by name, and the front door for raw pictures."""

from skclip.zero_shot._clip_classifier import CLIPClassifier
from skclip.zero_shot._zero_shot import ZeroShotClassifier

__all__ = ["CLIPClassifier", "ZeroShotClassifier"]
