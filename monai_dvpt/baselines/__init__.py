# SPDX-License-Identifier: Apache-2.0
"""The methods that DVPT is compared with, on the same networks and through the same trainer."""

from .methods import METHODS, Method, merge, tune

__all__ = ["METHODS", "Method", "merge", "tune"]
