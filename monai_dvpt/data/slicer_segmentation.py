# SPDX-License-Identifier: Apache-2.0
"""Label maps from segmentations of 3D Slicer (``.seg.nrrd``)."""

from __future__ import annotations

import re
from collections.abc import Collection

import numpy as np
import SimpleITK
from monai.config import PathLike

from monai_dvpt.data.dicom.geometry import RAS_TO_LPS, TOLERANCE_MM, corners
from monai_dvpt.data.kinds import file_kind
from monai_dvpt.data.label_overlap import overlap_error
from monai_dvpt.data.text_headers import check_nrrd, nrrd_values
from monai_dvpt.utils import InputError, naming

__all__ = ["Segment", "read_slicer_segmentation", "slicer_segments", "whole_steps"]

Segment = tuple[int, int, str]
"""Layer, from 0; label value in it; and name of a segment."""
FIELD = re.compile(r"Segment(\d+)_(Name|LabelValue|Layer)")


def slicer_segments(path: PathLike) -> list[Segment]:
    """
    Returns:
        the segments that the header of a file describes (``Segment0_Name``, ``Segment0_LabelValue``,
        ``Segment0_Layer``), in their order; none if it is no segmentation of 3D Slicer.

    Raises:
        InputError: if a segment has no name or no value, or two have one value in one layer. A single segment without a
            value has 1; several without values are of an older version of 3D Slicer.
    """
    if file_kind(path) != "nrrd":
        return []
    fields: dict[int, dict[str, str]] = {}
    for key, value in nrrd_values(path).items():
        if match := FIELD.fullmatch(key):
            fields.setdefault(int(match[1]), {})[match[2]] = value
    segments: list[Segment] = []
    with naming(path):
        if len(fields) > 1 and (older := [index for index in sorted(fields) if "LabelValue" not in fields[index]]):
            raise InputError(
                f"Segment{older[0]} must have a LabelValue, has none, as older versions of 3D Slicer wrote it; open "
                "the segmentation in a present version and save it again as .seg.nrrd."
            )
        for index in sorted(fields):
            field = fields[index]
            layer, value = field.get("Layer", "0").strip(), field.get("LabelValue", "1").strip()
            name = field.get("Name", "").strip()
            if not name or not re.fullmatch(r"\d{1,5}", layer) or not re.fullmatch(r"[1-9]\d{0,4}", value):
                got = f"name {name[:40]!r}, value {value[:10]!r}, layer {layer[:10]!r}"
                raise InputError(f"Segment{index} must have a name, a value of at least 1, and a layer, got {got}.")
            if any(segment[:2] == (int(layer), int(value)) for segment in segments):
                raise InputError(f"segments must have different values in a layer, got {value} twice in layer {layer}.")
            segments.append((int(layer), int(value), name))
    return segments


def read_slicer_segmentation(
    path: PathLike, shape: tuple[int, ...], affine_ras: np.ndarray, wanted: Collection[str] | None = None
) -> tuple[np.ndarray, dict[int, str]]:
    """
    Reads a segmentation onto the grid of an image. Its own grid may be a part of that of the image, flipped or
    transposed, or go beyond it where nothing is drawn; its voxels must lie on voxels of the image to 0.1 mm.

    Args:
        path: the file.
        shape: of the image, (x, y, z).
        affine_ras: 4x4 matrix from the image's voxels to patient coordinates (RAS, mm).
        wanted: names of the segments to read, such as those that do not overlap; all by default.

    Returns:
        label map of this shape, uint8 or uint16, in which the segments have numbers from 1 in their order, and the name
        of each number.

    Raises:
        InputError: if it is no such file or cannot be read, lies elsewhere, or has a voxel in two segments, or one
            without a segment.
    """
    with naming(path):
        segments = slicer_segments(path)
        if not segments:
            raise InputError("must be a segmentation of 3D Slicer, with the fields Segment0_Name and so on.")
        check_nrrd(path)
        try:
            image = SimpleITK.ReadImage(str(path), imageIO="NrrdImageIO")
        except RuntimeError as error:
            raise InputError("cannot be read: is truncated or damaged.") from error
        layers = SimpleITK.GetArrayFromImage(image)  # (z, y, x) or (z, y, x, layers)
        layers = layers.reshape(*layers.shape[:3], -1).transpose(3, 2, 1, 0)  # (layers, x, y, z)
        source = np.eye(4)
        source[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
        source[:3, 3] = image.GetOrigin()
        to_voxel = whole_steps(RAS_TO_LPS @ source, layers.shape[1:], affine_ras)
        known = {(layer, value): number for number, (layer, value, _) in enumerate(segments, 1)}
        names = {number: name for number, (_, _, name) in enumerate(segments, 1) if wanted is None or name in wanted}
        label = np.zeros(shape, np.uint8 if len(segments) < 256 else np.uint16)
        for layer, values in enumerate(layers):
            for value in np.unique(values).tolist():
                if value == 0:
                    continue
                if (number := known.get((layer, value))) is None:
                    raise InputError(f"every value must be that of a segment, got {value} in layer {layer}.")
                if number in names:
                    _draw(label, number, np.array((values == value).nonzero()), to_voxel)
        return label, names


def _draw(label: np.ndarray, number: int, voxels: np.ndarray, to_voxel: np.ndarray) -> None:
    at = to_voxel[:3, :3] @ voxels + to_voxel[:3, 3:]
    outside = ((at < 0) | (at >= np.array(label.shape)[:, None])).any(axis=0)
    if outside.any():
        raise InputError(f"{outside.sum()} voxels of segment {number} lie outside the image.")
    there = label[tuple(at)]
    if there.any():
        raise overlap_error("segment", there, (int(there.max()), number))
    label[tuple(at)] = number


def whole_steps(affine: np.ndarray, size: tuple[int, ...], image_affine: np.ndarray) -> np.ndarray:
    """
    4x4 matrix of whole numbers from the voxels of a label map, of this affine and size, to those of an image.

    Raises:
        InputError: if its voxels do not lie on those of the image to ``TOLERANCE_MM``.
    """
    exact = np.linalg.inv(image_affine) @ affine
    whole = np.rint(exact)
    offset = float(np.linalg.norm((image_affine @ (exact - whole) @ corners(size))[:3], axis=0).max())
    turns = np.abs(whole[:3, :3])
    if offset > TOLERANCE_MM or not ((turns.sum(axis=0) == 1).all() and (turns.sum(axis=1) == 1).all()):
        raise InputError(
            f"its voxels must lie on those of the image to {TOLERANCE_MM} mm, are {offset:.3f} mm off, or have another "
            "spacing."
        )
    return whole.astype(int)
