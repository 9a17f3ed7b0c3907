# SPDX-License-Identifier: Apache-2.0
from .prepare_prefix import PreparePrefix
from .run_cases import run_cases

__all__ = ["PreparePrefix", "run_cases"]
