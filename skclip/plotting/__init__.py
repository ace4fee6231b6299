"""Displays: figures from an estimator or from its predictions, in scikit-learn's manner. They need matplotlib."""

from skclip.plotting._confusion import ConfusionDisplay
from skclip.plotting._few_shot_curve import FewShotCurveDisplay
from skclip.plotting._neighbours import NeighboursDisplay
from skclip.plotting._ood_histogram import OODHistogramDisplay
from skclip.plotting._reliability import ReliabilityDisplay
from skclip.plotting._risk_coverage import RiskCoverageDisplay

__all__ = [
    "ConfusionDisplay",
    "FewShotCurveDisplay",
    "NeighboursDisplay",
    "OODHistogramDisplay",
    "ReliabilityDisplay",
    "RiskCoverageDisplay",
]
