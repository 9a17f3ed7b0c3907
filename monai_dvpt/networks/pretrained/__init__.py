# SPDX-License-Identifier: Apache-2.0
"""Loads pretrained weights of many origins into the encoders of this package."""

from .backbone import Backbone, read_backbone
from .describe import WeightsDescription, describe_weights
from .load import MRI_VIT_TINY, PretrainedReport, load_pretrained
from .mae import save_mae_encoder
from .weight_files import find_file as find_weights

__all__ = [
    "MRI_VIT_TINY",
    "Backbone",
    "PretrainedReport",
    "WeightsDescription",
    "describe_weights",
    "find_weights",
    "load_pretrained",
    "read_backbone",
    "save_mae_encoder",
]
