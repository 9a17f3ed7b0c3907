# SPDX-License-Identifier: Apache-2.0
from .label_sets import LabelSetDiceCELoss
from .masked_patch import MaskedPatchLoss
from .ordinal import OrdinalCrossEntropy

__all__ = ["LabelSetDiceCELoss", "MaskedPatchLoss", "OrdinalCrossEntropy"]
