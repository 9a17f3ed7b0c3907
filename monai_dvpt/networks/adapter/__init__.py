# SPDX-License-Identifier: Apache-2.0
"""What of a network is trained, the small file that keeps it, and several such adapters on one frozen backbone."""

from .built import build_network
from .file import backbone_sha256, load_adapter, merge_full, save_adapter
from .named import adapter_names, add_adapter, delete_adapter, disable_adapter, predict_adapters, set_adapter
from .rounded import round_backbone
from .shared import encoder_sha256, share_backbone
from .stored import adapter_metadata, tensors_sha256
from .tunable import PARTS, TunableNetwork, check_decoder_tuning, count_parameters, freeze_backbone, parameter_groups

__all__ = [
    "PARTS",
    "TunableNetwork",
    "adapter_metadata",
    "adapter_names",
    "add_adapter",
    "backbone_sha256",
    "build_network",
    "check_decoder_tuning",
    "count_parameters",
    "delete_adapter",
    "disable_adapter",
    "encoder_sha256",
    "freeze_backbone",
    "load_adapter",
    "merge_full",
    "parameter_groups",
    "predict_adapters",
    "round_backbone",
    "save_adapter",
    "set_adapter",
    "share_backbone",
    "tensors_sha256",
]
