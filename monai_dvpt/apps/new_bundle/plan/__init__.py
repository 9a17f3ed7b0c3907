# SPDX-License-Identifier: Apache-2.0
"""Chooses the settings of a bundle, each with its reason."""

from .make_plan import Choice, Plan, check_backbones, make_plan
from .step import TIMEOUT

__all__ = ["TIMEOUT", "Choice", "Plan", "check_backbones", "make_plan"]
