# SPDX-License-Identifier: Apache-2.0
from .autocast import AutocastInferer, bfloat16_is_fast

__all__ = ["AutocastInferer", "bfloat16_is_fast"]
