# SPDX-License-Identifier: Apache-2.0
from .masked_patch import MaskedPatchLoss
from .ordinal import OrdinalCrossEntropy

__all__ = ["MaskedPatchLoss", "OrdinalCrossEntropy"]
