# SPDX-License-Identifier: Apache-2.0
from .run_cases import run_cases

__all__ = ["run_cases"]
