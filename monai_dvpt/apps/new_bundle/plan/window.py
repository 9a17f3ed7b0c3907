# SPDX-License-Identifier: Apache-2.0
"""Grid and window of the networks of volumes, by how many tokens a window may have."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["MAX_WINDOWS", "OVERLAP", "Window", "count_windows", "fit_window"]

MAX_WINDOWS = 8
"""Windows that a median image may need; above, the grid gets coarser."""
OVERLAP = 0.25
COARSER = 1.1
"""Factor of one step to a coarser grid."""


@dataclass(frozen=True)
class Window:
    """
    Attributes:
        spacing_mm: of the grid, along each axis.
        roi_size: of the window, in voxels, multiples of the patch.
        tokens: number of patches in it.
        windows: how many cover the median image.
    """

    spacing_mm: tuple[float, ...]
    roi_size: tuple[int, ...]
    tokens: int
    windows: int


def fit_window(
    extent_mm: Sequence[float],
    spacing_mm: Sequence[float],
    patch_size: Sequence[int],
    max_tokens: int,
    max_windows: int = MAX_WINDOWS,
) -> Window:
    """
    The finest grid on which few enough windows cover an image, and the largest window.

    Args:
        extent_mm: of the image.
        spacing_mm: of the images; the finest axes become coarser first.
        patch_size: in voxels.
        max_tokens: of a window.
        max_windows: for the image.
    """
    finest = min(spacing_mm)
    while True:
        spacing = [float(f"{max(side, finest):.3g}") for side in spacing_mm]
        size = [max(1, round(extent / side)) for extent, side in zip(extent_mm, spacing, strict=True)]
        patches = [math.ceil(side / patch) for side, patch in zip(size, patch_size, strict=True)]
        while math.prod(patches) > max_tokens:
            patches[patches.index(max(patches))] -= 1
        roi = [count * patch for count, patch in zip(patches, patch_size, strict=True)]
        windows = count_windows(size, roi)
        if windows <= max_windows:
            return Window(tuple(spacing), tuple(roi), math.prod(patches), windows)
        finest *= COARSER


def count_windows(size: Sequence[int], roi_size: Sequence[int], overlap: float = OVERLAP) -> int:
    """How many windows MONAI's sliding window inference takes for an image."""
    steps = [max(1, int(roi * (1 - overlap))) for roi in roi_size]
    counts = [
        1 if side <= roi else math.ceil((side - roi) / step) + 1
        for side, roi, step in zip(size, roi_size, steps, strict=True)
    ]
    return math.prod(counts)
