# SPDX-License-Identifier: Apache-2.0
from .model import Options
from .new import NewBundle, update_bundle
from .state import new_secret
from .trials import SHIPPED
from .write import check_new

__all__ = ["SHIPPED", "NewBundle", "Options", "check_new", "new_secret", "update_bundle"]
