# SPDX-License-Identifier: Apache-2.0
from .contours import label_colour, plot_contours
from .planes import PLANES, as_on_screen, frame_plane, plane_of, scanned_plane, to_ras
from .prompt_attention import PromptAttention, plot_prompt_attention, prompt_attention_maps

__all__ = [
    "PLANES",
    "PromptAttention",
    "as_on_screen",
    "frame_plane",
    "label_colour",
    "plane_of",
    "plot_contours",
    "plot_prompt_attention",
    "prompt_attention_maps",
    "scanned_plane",
    "to_ras",
]
