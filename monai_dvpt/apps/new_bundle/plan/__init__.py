# SPDX-License-Identifier: Apache-2.0
"""Chooses the settings of a bundle, each with its reason."""

from .make_plan import Choice, Plan, make_plan

__all__ = ["Choice", "Plan", "make_plan"]
