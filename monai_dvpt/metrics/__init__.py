# SPDX-License-Identifier: Apache-2.0
from .classwise import (
    ClasswiseMetric,
    ClasswiseROCAUCMetric,
    compute_classwise_metric,
    compute_classwise_roc_auc,
)
from .cohen_kappa import CohenKappaMetric, compute_cohen_kappa
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
    "compare_kappa",
    "compute_classwise_metric",
    "compute_classwise_roc_auc",
    "compute_cohen_kappa",
    "correct_grades",
    "kappa_interval",
]
