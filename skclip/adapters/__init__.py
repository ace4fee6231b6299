"""Classifiers on image features that learn from a few labelled pictures, with or without class text."""

from skclip.adapters._caps_adapter import CapSAdapterClassifier
from skclip.adapters._clap import CLAPClassifier
from skclip.adapters._clip_adapter import CLIPAdapterClassifier
from skclip.adapters._gda import GDAClassifier
from skclip.adapters._inspector import FewShotInspector
from skclip.adapters._linear_probe import LinearProbeClassifier
from skclip.adapters._lp_plus_plus import LPPlusPlusClassifier
from skclip.adapters._similarity_vote import SimilarityVoteClassifier
from skclip.adapters._sus_x import SuSXClassifier
from skclip.adapters._tip_adapter import TipAdapterClassifier
from skclip.adapters._tip_adapter_f import TipAdapterFClassifier
from skclip.adapters._unsupervised_gda import UnsupervisedGDA

__all__ = [
    "CLAPClassifier",
    "CLIPAdapterClassifier",
    "CapSAdapterClassifier",
    "FewShotInspector",
    "GDAClassifier",
    "LPPlusPlusClassifier",
    "LinearProbeClassifier",
    "SimilarityVoteClassifier",
    "SuSXClassifier",
    "TipAdapterClassifier",
    "TipAdapterFClassifier",
    "UnsupervisedGDA",
]
