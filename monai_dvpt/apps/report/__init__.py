# SPDX-License-Identifier: Apache-2.0
"""A page about a bundle's data, training, evaluation and inference, for people to look at."""

from .report import report_evaluation, write_report

__all__ = ["report_evaluation", "write_report"]
