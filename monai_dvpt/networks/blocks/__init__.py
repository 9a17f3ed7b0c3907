# SPDX-License-Identifier: Apache-2.0
from .attention import FusedSABlock, FusedWindowAttention, WindowGroups, fuse_attention, group_windows
from .dvpt_block import DVPTBlock, DVPTList
from .prompt_reader import PromptHead, PromptReader
from .relative_attention import AXES, OffsetSABlock, RelativeSABlock
from .vit_layers import GatedActivation, ViTAttention, rotary_tables

__all__ = [
    "AXES",
    "DVPTBlock",
    "DVPTList",
    "FusedSABlock",
    "FusedWindowAttention",
    "GatedActivation",
    "OffsetSABlock",
    "PromptHead",
    "PromptReader",
    "RelativeSABlock",
    "ViTAttention",
    "WindowGroups",
    "fuse_attention",
    "group_windows",
    "rotary_tables",
]
