"""Networks that learn from pictures."""

from skclip.tuning._timm_classifier import TimmClassifier

__all__ = ["TimmClassifier"]
