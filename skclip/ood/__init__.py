"""Refuse what was never seen: out-of-distribution detectors on features, logits and class text."""

from skclip.ood._energy import EnergyDetector
from skclip.ood._ensemble import OODEnsemble
from skclip.ood._entropy import EntropyDetector
from skclip.ood._gen import GENDetector
from skclip.ood._gl_mcm import GLMCMDetector
from skclip.ood._gradnorm import GradNormDetector
from skclip.ood._kl_matching import KLMatchingDetector
from skclip.ood._knn import KNNDetector
from skclip.ood._mahalanobis import MahalanobisDetector
from skclip.ood._max_logit import MaxLogitDetector
from skclip.ood._mcm import MCMDetector
from skclip.ood._msp import MSPDetector
from skclip.ood._neg_label import NegLabelDetector
from skclip.ood._nn_guide import NNGuideDetector
from skclip.ood._open_set import OpenSetClassifier
from skclip.ood._outlier_view import OutlierView
from skclip.ood._react import ReActDetector
from skclip.ood._relative_mahalanobis import RelativeMahalanobisDetector
from skclip.ood._residual import ResidualDetector
from skclip.ood._she import SHEDetector
from skclip.ood._variance import VarianceDetector
from skclip.ood._vim import ViMDetector

__all__ = [
    "EnergyDetector",
    "EntropyDetector",
    "GENDetector",
    "GLMCMDetector",
    "GradNormDetector",
    "KLMatchingDetector",
    "KNNDetector",
    "MCMDetector",
    "MSPDetector",
    "MahalanobisDetector",
    "MaxLogitDetector",
    "NNGuideDetector",
    "NegLabelDetector",
    "OODEnsemble",
    "OpenSetClassifier",
    "OutlierView",
    "ReActDetector",
    "RelativeMahalanobisDetector",
    "ResidualDetector",
    "SHEDetector",
    "VarianceDetector",
    "ViMDetector",
]
