# SPDX-License-Identifier: Apache-2.0
"""Planes of a volume as radiologists see them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from monai.data import MetaTensor
from monai.transforms import Orientation

__all__ = ["PLANES", "as_on_screen", "frame_plane", "plane_of", "scanned_plane", "to_ras"]

PLANES = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}
"""For each plane the axes (0 right, 1 anterior, 2 superior) that it cuts, that run across, and that run up."""

MIN_STRETCH = 1.05  # longest over shortest side of a voxel from which a volume has slices


def to_ras(volume: torch.Tensor) -> tuple[np.ndarray, list[float]]:
    """
    Turns and flips a volume, without interpolation, so that its axes run as closely as possible to the patient's right,
    anterior and superior.

    Args:
        volume: of shape (C, x, y, z), with its affine; by default it lies so already, in voxels of 1 mm.

    Returns:
        the values in float32, of shape (C, x, y, z), and the voxel size in mm.
    """
    turned = MetaTensor(Orientation(axcodes="RAS", labels=None)(MetaTensor(volume.detach().cpu())))
    return np.asarray(turned, dtype=np.float32), [float(side) for side in turned.pixdim]


def plane_of(volume: np.ndarray, plane: str, centre: Sequence[int] | np.ndarray) -> np.ndarray:
    """
    One slice of a volume, for ``imshow(..., origin="lower")``.

    Args:
        volume: of shape (x, y, z), from :func:`to_ras`.
        plane: "axial", "coronal" or "sagittal".
        centre: voxel (x, y, z) on the slice.

    Returns:
        values of shape (up, across).
    """
    axis = PLANES[plane][0]
    return np.take(volume, centre[axis], axis=axis).T


def frame_plane(panel: Axes, plane: str, spacing_mm: Sequence[float]) -> None:
    """
    Sets true proportions on a panel with a drawn slice, and the patient's right on the viewer's left.

    Args:
        panel: the panel.
        plane: "axial", "coronal" or "sagittal".
        spacing_mm: voxel size.
    """
    _, across, up = PLANES[plane]
    panel.set_aspect(spacing_mm[up] / spacing_mm[across])
    if across == 0:
        panel.invert_xaxis()
    panel.axis("off")


def scanned_plane(spacing_mm: Sequence[float]) -> str:
    """The plane that shows a volume best: across the axis with the largest voxel side, axial where all are alike."""
    thickest = max(PLANES, key=lambda plane: spacing_mm[PLANES[plane][0]])  # axial is the first, so wins a tie
    return thickest if max(spacing_mm) > MIN_STRETCH * min(spacing_mm) else "axial"


def as_on_screen(volume: np.ndarray, plane: str, centre: Sequence[int] | np.ndarray) -> np.ndarray:
    """
    One slice of a volume as :func:`frame_plane` shows it, with its first row on top.

    Args:
        volume, plane, centre: see :func:`plane_of`.

    Returns:
        values of shape (rows, columns).
    """
    shown = plane_of(volume, plane, centre)[::-1]
    return shown[:, ::-1] if PLANES[plane][1] == 0 else shown
