"""Classifiers on image features that learn from a few labelled pictures, with or without class text."""

from skclip.adapters._gda import GDAClassifier

__all__ = ["GDAClassifier"]
