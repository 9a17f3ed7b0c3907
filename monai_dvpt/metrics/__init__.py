# SPDX-License-Identifier: Apache-2.0
from .calibration import calibration_scores, reliability_bins
from .classwise import (
    ClasswiseMetric,
    ClasswiseROCAUCMetric,
    compute_classwise_metric,
    compute_classwise_roc_auc,
)
from .cohen_kappa import CohenKappaMetric, compute_cohen_kappa
from .conformal import PredictionSets, conformal_threshold, fewest_cases, ordinal_scores
from .correct_grades import correct_grades
from .dice import DiceOfLabels
from .hausdorff_mm import HausdorffDistanceMm
from .kappa_statistics import KappaComparison, KappaInterval, compare_kappa, kappa_interval

__all__ = [
    "ClasswiseMetric",
    "ClasswiseROCAUCMetric",
    "CohenKappaMetric",
    "DiceOfLabels",
    "HausdorffDistanceMm",
    "KappaComparison",
    "KappaInterval",
    "PredictionSets",
    "calibration_scores",
    "compare_kappa",
    "compute_classwise_metric",
    "compute_classwise_roc_auc",
    "compute_cohen_kappa",
    "conformal_threshold",
    "correct_grades",
    "fewest_cases",
    "kappa_interval",
    "ordinal_scores",
    "reliability_bins",
]
