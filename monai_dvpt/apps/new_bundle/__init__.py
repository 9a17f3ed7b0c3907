# SPDX-License-Identifier: Apache-2.0
from .model import Options
from .new import NewBundle, update_bundle
from .probing import BackboneComparison, data_to_compare
from .state import new_secret
from .trials import SHIPPED
from .write import check_new

__all__ = [
    "SHIPPED",
    "BackboneComparison",
    "NewBundle",
    "Options",
    "check_new",
    "data_to_compare",
    "new_secret",
    "update_bundle",
]
