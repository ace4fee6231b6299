"""Classifiers made of several classifiers."""

from skclip.ensemble._cooked import COOkeDClassifier
from skclip.ensemble._trust import TrustOrchestrator

__all__ = ["COOkeDClassifier", "TrustOrchestrator"]
