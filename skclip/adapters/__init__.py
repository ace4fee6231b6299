"""Classifiers on image features that learn from a few labelled pictures, with or without class text."""

from skclip.adapters._gda import GDAClassifier
from skclip.adapters._similarity_vote import SimilarityVoteClassifier

__all__ = ["GDAClassifier", "SimilarityVoteClassifier"]
