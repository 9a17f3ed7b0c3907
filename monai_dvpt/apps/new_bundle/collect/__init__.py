# SPDX-License-Identifier: Apache-2.0
"""Finds the cases of a folder of data."""

from .any_task import TASKS, collect

__all__ = ["TASKS", "collect"]
