# SPDX-License-Identifier: Apache-2.0
from .warmup_cosine import WarmupCosineRounds

__all__ = ["WarmupCosineRounds"]
