# SPDX-License-Identifier: Apache-2.0
from .attention import FusedSABlock, FusedWindowAttention, WindowGroups, fuse_attention, group_windows
from .dvpt_block import DVPTBlock, DVPTList
from .prompt_reader import PromptHead, PromptReader
from .relative_attention import AXES, OffsetSABlock, RelativeSABlock

__all__ = [
    "AXES",
    "DVPTBlock",
    "DVPTList",
    "FusedSABlock",
    "FusedWindowAttention",
    "OffsetSABlock",
    "PromptHead",
    "PromptReader",
    "RelativeSABlock",
    "WindowGroups",
    "fuse_attention",
    "group_windows",
]
