# SPDX-License-Identifier: Apache-2.0
"""The grid of a volume's slices: an affine that is right at every corner of every slice to 0.1 mm, or an error."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from .headers import Frame

__all__ = [
    "RAS_TO_LPS",
    "TOLERANCE_MM",
    "Grid",
    "GridError",
    "corner_offsets_mm",
    "corners",
    "corners_lps",
    "in_plane",
    "lay_out",
    "order_along_normal",
    "plane_lps",
]

RAS_TO_LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
"""From the patient coordinates of MONAI and NIfTI to those of DICOM, and back."""
TOLERANCE_MM = 0.1
"""Largest distance between the places of one corner by two grids, such as a volume and the header of a slice."""
MAX_TILT_DEGREES = 45
"""Of a gantry; with more, slices rather lie beside each other."""


class GridError(ValueError):
    """Slices that form no regular grid; the message says why."""


@dataclass(frozen=True)
class Grid:
    """
    A regular grid of slices.

    Attributes:
        affine_lps: 4x4, from indices (column, row, slice) to patient coordinates in mm; its third column is the step
            from slice to slice and is perpendicular to the slices only where ``tilt_degrees`` is 0.
        spacing_mm: distance between columns, between rows, and between the planes of the slices.
        tilt_degrees: between the step and the normal of the slices; 0 where it shifts no slice by ``TOLERANCE_MM``.
    """

    affine_lps: np.ndarray
    spacing_mm: tuple[float, float, float]
    tilt_degrees: float

    @property
    def shift_pixels(self) -> np.ndarray:
        """Shift from each slice to the next within the plane, in columns and rows; of shape (2,)."""
        if self.tilt_degrees == 0:
            return np.zeros(2)
        return np.linalg.lstsq(self.affine_lps[:3, :2], self.affine_lps[:3, 2], rcond=None)[0]


def in_plane(frame: Frame) -> np.ndarray:
    """Steps from column to column and from row to row in mm, of shape (3, 2)."""
    return np.array(frame.orientation_lps).T * np.array(frame.spacing_mm)


def plane_lps(position: Sequence[float], orientation: Any, spacing_mm: Sequence[float]) -> np.ndarray:
    """
    The 4x4 matrix from (column, row, distance along the normal) to patient coordinates (LPS, mm), by the centre of the
    first pixel, the directions along a row and along a column (six numbers), and the distances of columns and of rows.
    """
    plane, (row, column) = np.eye(4), np.reshape(orientation, (2, 3))
    plane[:3, 0], plane[:3, 1] = row * spacing_mm[0], column * spacing_mm[1]
    plane[:3, 2], plane[:3, 3] = np.cross(row, column), position
    return plane


def corners(size: Sequence[int]) -> np.ndarray:
    """Indices of the corners of a grid, of two or three axes, as columns (x, y, z, 1), of shape (4, 4 or 8)."""
    ends = [*((0, count - 1) for count in size), *[(0,)] * (3 - len(size)), (1,)]
    return np.array(list(itertools.product(*ends[::-1])), dtype=float).T[::-1]  # x changes first


def corner_offsets_mm(affine: np.ndarray, other: np.ndarray, size: Sequence[int]) -> np.ndarray:
    """
    The largest distance in mm, of shape (...), between the places of a corner by two affines of shape (..., 4, 4); the
    size is that of the grid, or of a plane.
    """
    return np.linalg.norm(((affine - other) @ corners(size))[..., :3, :], axis=-2).max(axis=-1)


def corners_lps(frame: Frame, size: tuple[int, int]) -> np.ndarray:
    """Patient coordinates of the centres of the corner pixels, of shape (4, 3); the size is columns and rows."""
    return np.array(frame.position_lps) + corners(size)[:2].T @ in_plane(frame).T


def order_along_normal(frames: Sequence[Frame]) -> tuple[np.ndarray, np.ndarray]:
    """The order of the frames along the normal of the first one, and their positions on it in mm, in that order."""
    positions = np.array([frame.position_lps for frame in frames])
    along = positions @ np.cross(*np.array(frames[0].orientation_lps))
    order = np.argsort(along, kind="stable")
    return order, along[order]


def lay_out(frames: Sequence[Frame], size: tuple[int, int]) -> Grid:
    """
    Fits a grid to slices of one orientation, spacing and size (columns and rows).

    Args:
        frames: at least two, in the order along their normal.

    Raises:
        GridError: if no grid has every corner of every slice within ``TOLERANCE_MM`` of its place by its header.
    """
    planes = np.array([plane_lps(f.position_lps, f.orientation_lps, f.spacing_mm) for f in frames])  # type: ignore
    middles = np.array([corners_lps(frame, size) for frame in frames]).mean(axis=1)  # (slices, 3)
    index = np.arange(len(frames))
    centred = index - index.mean()
    centre, step = middles.mean(axis=0), centred @ middles / (centred @ centred)  # the line that fits the middles best
    normal = np.cross(*np.array(frames[0].orientation_lps))
    straight = (step @ normal) * normal
    affine, pixels = np.eye(4), in_plane(frames[0])
    affine[:3, :2] = pixels
    for third in (straight, step):
        affine[:3, 2] = third
        affine[:3, 3] = centre - third * index.mean() - pixels @ ((np.array(size) - 1) / 2)
        laid = np.repeat(affine[None], len(frames), axis=0)
        laid[:, :3, 3] += index[:, None] * third
        if corner_offsets_mm(laid, planes, size).max() <= TOLERANCE_MM:
            break
    else:
        raise GridError(_irregularity(middles, normal))
    cosine = np.clip(step @ normal / np.linalg.norm(step), -1, 1)
    tilt = 0.0 if third is straight else float(np.degrees(np.arccos(cosine)))
    if tilt > MAX_TILT_DEGREES:
        raise GridError(f"its slices must be tilted by at most {MAX_TILT_DEGREES} degrees, are by {tilt:.1f}")
    columns, rows = np.linalg.norm(pixels, axis=0)
    return Grid(affine, (float(columns), float(rows), float(step @ normal)), tilt)


def _irregularity(middles: np.ndarray, normal: np.ndarray) -> str:
    gaps = np.diff(middles @ normal)
    usual = float(np.median(gaps))
    if len(gaps) > 1 and (gaps > 1.5 * usual).any() and np.allclose(gaps / usual, np.round(gaps / usual), atol=0.1):
        missing = int((np.round(gaps / usual) - 1).sum())
        wide = int(gaps.argmax())
        return (
            f"{missing} of its slices missing: distances must be equal, got {usual:.3f} mm "
            f"and, between slices {wide + 1} and {wide + 2}, {gaps[wide]:.3f} mm"
        )
    if gaps.max() - gaps.min() > TOLERANCE_MM:
        return f"distances of its slices must be equal, got {gaps.min():.3f} to {gaps.max():.3f} mm"
    return f"its slices must lie on one straight line to {TOLERANCE_MM} mm, and do not"
