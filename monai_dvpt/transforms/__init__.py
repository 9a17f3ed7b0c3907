# SPDX-License-Identifier: Apache-2.0
from .group_labels import GroupLabels, GroupLabelsd
from .load_volume import LoadVolume, LoadVolumed

__all__ = ["GroupLabels", "GroupLabelsd", "LoadVolume", "LoadVolumed"]
