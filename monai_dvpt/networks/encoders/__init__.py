# SPDX-License-Identifier: Apache-2.0
"""The pretrained transformers of the networks: each runs its layers in one loop and has one slot for a method."""

from .encoder import Encoder
from .sam import SAMEncoder
from .slot import Attached, get_tensor, set_tensor
from .swin import MERGINGS, WINDOW_SHIFTS, SwinEncoder, check_swin_sizes
from .tiny_vit import TinyViTEncoder
from .vit import ViTEncoder, check_vit_image, check_vit_sizes
from .vit_layout import ViTLayout

__all__ = [
    "MERGINGS",
    "WINDOW_SHIFTS",
    "Attached",
    "Encoder",
    "SAMEncoder",
    "SwinEncoder",
    "TinyViTEncoder",
    "ViTEncoder",
    "ViTLayout",
    "check_swin_sizes",
    "check_vit_image",
    "check_vit_sizes",
    "get_tensor",
    "set_tensor",
]
