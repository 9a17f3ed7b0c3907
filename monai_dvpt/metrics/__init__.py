# SPDX-License-Identifier: Apache-2.0
from .cohen_kappa import CohenKappaMetric, compute_cohen_kappa
from .correct_grades import correct_grades
from .dice import DiceOfLabels
from .hausdorff_mm import HausdorffDistanceMm
from .kappa_statistics import KappaComparison, KappaInterval, compare_kappa, kappa_interval

__all__ = [
    "CohenKappaMetric",
    "DiceOfLabels",
    "HausdorffDistanceMm",
    "KappaComparison",
    "KappaInterval",
    "compare_kappa",
    "compute_cohen_kappa",
    "correct_grades",
    "kappa_interval",
]
