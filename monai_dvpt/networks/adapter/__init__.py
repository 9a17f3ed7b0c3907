# SPDX-License-Identifier: Apache-2.0
"""Adapter files, which store the tuned parts of a network, and several adapters on one frozen backbone."""

from monai_dvpt.networks.parts import PARTS, TunableNetwork, count_parameters, freeze_backbone, parameter_groups, tune

from .built import build_network
from .file import backbone_sha256, load_adapter, merge, merge_full, save_adapter
from .named import adapter_names, add_adapter, delete_adapter, disable_adapter, predict_adapters, set_adapter
from .peft import load_peft, save_peft
from .rounded import round_backbone
from .shared import encoder_sha256, share_backbone
from .stored import adapter_metadata, prepared_with, tensors_sha256

__all__ = [
    "adapter_metadata",
    "adapter_names",
    "add_adapter",
    "backbone_sha256",
    "build_network",
    "delete_adapter",
    "disable_adapter",
    "encoder_sha256",
    "load_adapter",
    "load_peft",
    "merge",
    "merge_full",
    "predict_adapters",
    "prepared_with",
    "round_backbone",
    "save_adapter",
    "save_peft",
    "set_adapter",
    "share_backbone",
    "tensors_sha256",
    "PARTS",
    "TunableNetwork",
    "count_parameters",
    "freeze_backbone",
    "parameter_groups",
    "tune",
]
