# SPDX-License-Identifier: Apache-2.0
"""Measures every case and applies the rules."""

from .measure import load_image, measure_cases
from .rules import apply_rules

__all__ = ["apply_rules", "load_image", "measure_cases"]
