# SPDX-License-Identifier: Apache-2.0
from .dvpt import DVPTBlock, DVPTList

__all__ = ["DVPTBlock", "DVPTList"]
