# SPDX-License-Identifier: Apache-2.0
from .hausdorff_mm import HausdorffDistanceMm

__all__ = ["HausdorffDistanceMm"]
