# SPDX-License-Identifier: Apache-2.0
from .masked_patch import MaskedPatchLoss

__all__ = ["MaskedPatchLoss"]
