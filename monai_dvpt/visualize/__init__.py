# SPDX-License-Identifier: Apache-2.0
from .planes import PLANES, frame_plane, plane_of, to_ras
from .prompt_attention import PromptAttention, plot_prompt_attention, prompt_attention_maps

__all__ = [
    "PLANES",
    "PromptAttention",
    "frame_plane",
    "plane_of",
    "plot_prompt_attention",
    "prompt_attention_maps",
    "to_ras",
]
