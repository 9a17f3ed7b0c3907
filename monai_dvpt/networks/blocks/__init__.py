# SPDX-License-Identifier: Apache-2.0
from .attention import FusedSABlock, FusedWindowAttention, WindowGroups, fuse_attention, group_windows
from .dvpt_block import DVPTBlock, DVPTList
from .prompt_reader import PromptHead, PromptReader

__all__ = [
    "DVPTBlock",
    "DVPTList",
    "FusedSABlock",
    "FusedWindowAttention",
    "PromptHead",
    "PromptReader",
    "WindowGroups",
    "fuse_attention",
    "group_windows",
]
