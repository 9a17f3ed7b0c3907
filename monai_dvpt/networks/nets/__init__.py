# SPDX-License-Identifier: Apache-2.0
from .dvpt_unetr import DVPTUNETR

__all__ = ["DVPTUNETR"]
