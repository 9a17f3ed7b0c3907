# SPDX-License-Identifier: Apache-2.0
from .cases import find_cases
from .datalist import load_datalist
from .gradelist import load_gradelist, select_part
from .mni152 import make_mni152_dataset

__all__ = ["find_cases", "load_datalist", "load_gradelist", "make_mni152_dataset", "select_part"]
