# SPDX-License-Identifier: Apache-2.0
"""Chooses settings by trials on the training cases: the backbone by linear probes, the rates by short trainings."""

from .backbones import SHIPPED, Probing, backbone_names, choose_file, count_drawn
from .rates import search_rates

__all__ = ["SHIPPED", "Probing", "backbone_names", "choose_file", "count_drawn", "search_rates"]
