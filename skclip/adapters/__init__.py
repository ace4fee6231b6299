"""Classifiers on image features that learn from a few labelled pictures, with or without class text."""

from skclip.adapters._caps_adapter import CapSAdapterClassifier
from skclip.adapters._gda import GDAClassifier
from skclip.adapters._similarity_vote import SimilarityVoteClassifier
from skclip.adapters._sus_x import SuSXClassifier
from skclip.adapters._unsupervised_gda import UnsupervisedGDA

__all__ = ["CapSAdapterClassifier", "GDAClassifier", "SimilarityVoteClassifier", "SuSXClassifier", "UnsupervisedGDA"]
