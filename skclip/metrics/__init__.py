"""Calibration, robustness, out-of-distribution, incremental and retrieval measures, as functions and as scorers."""

from skclip.metrics._association import cab_score, swap_rate
from skclip.metrics._calibration import (
    adaptive_calibration_error,
    area_under_risk_coverage,
    brier_score_multiclass,
    confidence_correctness_correlation,
    expected_calibration_error,
    negative_log_likelihood,
    overconfidence_rate,
    reliability_curve,
    risk_coverage_curve,
)
from skclip.metrics._groups import factor_accuracy, factor_gap, group_accuracy, shape_bias, worst_group_accuracy
from skclip.metrics._incremental import (
    average_incremental_accuracy,
    forgetting,
    incremental_accuracy,
    incremental_accuracy_matrix,
    performance_drop,
)
from skclip.metrics._ood import detection_error, fpr_at_tpr, near_far_average, ood_aupr, ood_auroc
from skclip.metrics._open_set import oscr_curve, oscr_score
from skclip.metrics._retrieval import retrieval_average_precision, retrieval_recall
from skclip.metrics._robustness import (
    effective_robustness,
    mean_corruption_error,
    relative_mean_corruption_error,
    relative_robustness,
)
from skclip.metrics._scorers import get_scorer, scorer_names

__all__ = [
    "adaptive_calibration_error",
    "area_under_risk_coverage",
    "average_incremental_accuracy",
    "brier_score_multiclass",
    "cab_score",
    "confidence_correctness_correlation",
    "detection_error",
    "effective_robustness",
    "expected_calibration_error",
    "factor_accuracy",
    "factor_gap",
    "forgetting",
    "fpr_at_tpr",
    "get_scorer",
    "group_accuracy",
    "incremental_accuracy",
    "incremental_accuracy_matrix",
    "mean_corruption_error",
    "near_far_average",
    "negative_log_likelihood",
    "ood_aupr",
    "ood_auroc",
    "oscr_curve",
    "oscr_score",
    "overconfidence_rate",
    "performance_drop",
    "relative_mean_corruption_error",
    "relative_robustness",
    "reliability_curve",
    "retrieval_average_precision",
    "retrieval_recall",
    "risk_coverage_curve",
    "scorer_names",
    "shape_bias",
    "swap_rate",
    "worst_group_accuracy",
]
