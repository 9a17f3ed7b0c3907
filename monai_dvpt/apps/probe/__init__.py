# SPDX-License-Identifier: Apache-2.0
"""Compares pretrained backbones on labelled images by linear probes of their frozen features."""

from .compare import Candidate, Comparison, Labels, ProbeScore, compare_backbones
from .table import ProbedBackbone, ProbeTable, probe_backbones

__all__ = [
    "Candidate",
    "Comparison",
    "Labels",
    "ProbeScore",
    "ProbeTable",
    "ProbedBackbone",
    "compare_backbones",
    "probe_backbones",
]
