# SPDX-License-Identifier: Apache-2.0
from .load_volume import LoadVolume, LoadVolumed

__all__ = ["LoadVolume", "LoadVolumed"]
