# SPDX-License-Identifier: Apache-2.0
"""Planes of a volume as radiologists look at them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from monai.data import MetaTensor
from monai.transforms import Orientation

__all__ = ["PLANES", "frame_plane", "plane_of", "to_ras"]

PLANES = {"axial": (2, 0, 1), "coronal": (1, 0, 2), "sagittal": (0, 1, 2)}
"""Of each plane the axis (of right, anterior, superior) that it cuts, the one across the picture, and the one up."""


def to_ras(volume: torch.Tensor) -> tuple[np.ndarray, list[float]]:
    """
    A volume turned and flipped, not interpolated, so that its axes run as closely as possible to the patient's right,
    anterior and superior.

    Args:
        volume: of shape (C, x, y, z), with its affine; without one it is taken to lie so already, in voxels of 1 mm.

    Returns:
        the values in float32, of shape (C, x, y, z), and the size of a voxel in mm.
    """
    turned = MetaTensor(Orientation(axcodes="RAS", labels=None)(MetaTensor(volume.detach().cpu())))
    return np.asarray(turned, dtype=np.float32), [float(side) for side in turned.pixdim]


def plane_of(volume: np.ndarray, plane: str, centre: Sequence[int] | np.ndarray) -> np.ndarray:
    """
    One slice of a volume, for ``imshow(..., origin="lower")``.

    Args:
        volume: of shape (x, y, z), from :func:`to_ras`.
        plane: "axial", "coronal" or "sagittal".
        centre: voxel (x, y, z) through which it goes.

    Returns:
        values of shape (up, across).
    """
    axis = PLANES[plane][0]
    return np.take(volume, centre[axis], axis=axis).T


def frame_plane(panel: Axes, plane: str, spacing_mm: Sequence[float]) -> None:
    """
    Gives a panel, once its slice is drawn, its true proportions, and the patient's right on the viewer's left.

    Args:
        panel: the panel.
        plane: "axial", "coronal" or "sagittal".
        spacing_mm: size of a voxel.
    """
    _, across, up = PLANES[plane]
    panel.set_aspect(spacing_mm[up] / spacing_mm[across])
    if across == 0:
        panel.invert_xaxis()
    panel.axis("off")
