# SPDX-License-Identifier: Apache-2.0
"""2D NIfTI files as pictures, and back."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from monai_dvpt.utils import InputError, naming

from .nifti import Nifti, read_nifti, save_nifti

__all__ = ["read_nifti_picture", "save_nifti_picture"]

MIN_COSINE = 0.8  # of an axis of an image with an axis of the patient: at most 37 degrees


def read_nifti_picture(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    """
    Reads an image as people look at it, see :class:`monai_dvpt.transforms.LoadImage2D`.

    Args:
        path: the file.

    Returns:
        values of shape (rows, columns), and the sides of a pixel along the axes of the file in mm.

    Raises:
        InputError: without the name of the file, if it cannot be read, has not two dimensions, or is turned by more
            than 37 degrees.
    """
    nifti = read_nifti(path)
    axes, flips, swap, spacing = _layout(nifti)
    picture = np.flip(nifti.values.reshape([_sides(nifti)[axis] for axis in axes]), flips)  # (x, y)
    return picture.T if swap else picture, spacing


def save_nifti_picture(path: str | os.PathLike, picture: np.ndarray, source: str | os.PathLike) -> Path:
    """
    Writes an image on the grid of the file that it is about.

    Args:
        path: the file to write.
        picture: of shape (rows, columns), as :func:`read_nifti_picture` returns it.
        source: the file that it is about.

    Raises:
        InputError: if ``source`` cannot be read.
    """
    with naming(source):
        nifti = read_nifti(source)
        _, flips, swap, _ = _layout(nifti)
    values = np.flip(picture.T if swap else picture, flips)
    return save_nifti(path, np.ascontiguousarray(values).reshape(_sides(nifti)), nifti.affine)


def _sides(nifti: Nifti) -> tuple[int, ...]:
    return (*nifti.values.shape, 1, 1)[: max(3, nifti.values.ndim)]


def _layout(nifti: Nifti) -> tuple[list[int], tuple[int, ...], bool, np.ndarray]:
    """The axes of a picture in a file, which of the two to flip, whether to swap them then, and their spacing."""
    sides = _sides(nifti)
    if len(sides) > 3 or sides.count(1) != 1:
        raise InputError(f"must have two dimensions, or three with one slice, got size {nifti.values.shape}.")
    axes = [axis for axis, side in enumerate(sides) if side != 1]
    spacing = np.linalg.norm(nifti.affine[:3, axes], axis=0)
    directions = nifti.affine[:3, axes] / spacing
    nearest = np.abs(directions).argmax(axis=0)  # 0 right, 1 anterior, 2 superior
    towards = directions[nearest, [0, 1]]
    if not (np.abs(towards) >= MIN_COSINE).all() or nearest[0] == nearest[1]:
        raise InputError(
            f"axes must lie along axes of the patient (cosine at least {MIN_COSINE}), "
            f"got the directions {directions.T.round(3).tolist()}."
        )
    flips = tuple(axis for axis in (0, 1) if towards[axis] > 0)
    return axes, flips, bool(nearest[0] < nearest[1]), spacing
