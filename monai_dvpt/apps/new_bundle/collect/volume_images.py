# SPDX-License-Identifier: Apache-2.0
"""Volumes and files with labels before they are cases, and which of them could belong together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from monai_dvpt.data import DicomSeries
from monai_dvpt.data.dicom.geometry import RAS_TO_LPS
from monai_dvpt.data.slicer_segmentation import slicer_segments, whole_steps
from monai_dvpt.utils import InputError, reason

from .volume_files import header_grid
from .volume_labels import LabelFile
from .volume_names import ImageIndex, PathWords

__all__ = ["VolumeImage", "VolumeLabel", "fitting_images", "leave_out", "volume_label"]


@dataclass(eq=False)
class VolumeImage:
    """A volume, with the labels that were found for it."""

    place: Path
    words: PathWords
    series: DicomSeries | None = None
    labels: list[LabelFile] = field(default_factory=list)
    part: str = ""
    modality: str = ""
    left_out: bool = False  # a finding says why
    channels: list[Path] = field(default_factory=list)  # a file for each, of which the place is the first
    named_after: Path | None = None  # by default its place
    problem: str = ""  # why its channels cannot be used


@dataclass(eq=False)
class VolumeLabel:
    """A file that may have labels, before its image is known."""

    path: Path
    words: PathWords
    segments: dict[int, str] = field(default_factory=dict)  # of 3D Slicer
    values: list[int] | None = None  # of a map
    problem: str = ""  # why it is no label map
    name: str = ""  # where its path names a label
    of_folder: bool = False  # whether a folder around all cases has that name

    def is_label(self) -> bool:
        """Whether its path or its header says that it has labels."""
        return bool(self.segments) or bool(self.problem) or self.words.role == "label"


def leave_out(images: Iterable[VolumeImage]) -> None:
    """Marks images that a finding is about, and that are no cases."""
    for image in images:
        image.left_out = True


def volume_label(path: Path, words: PathWords) -> VolumeLabel:
    """A file that may have labels, with the segments of 3D Slicer or why they cannot be read."""
    try:
        segments = {number: name for number, (*_, name) in enumerate(slicer_segments(path), 1)}
    except InputError as error:
        return VolumeLabel(path, words, problem=reason(error))
    return VolumeLabel(path, words, segments)


def fitting_images(label: VolumeLabel, images: Sequence[VolumeImage], index: ImageIndex) -> list[VolumeImage]:
    """The images that a label could be of by their paths and, where there are several, by their grids."""
    match = index.match(label.words)
    label.name, label.of_folder = match.name, match.of_folder
    found = [images[number] for number in match.images]
    found = [image for image in found if image.channels] or found
    if len(found) > 1 and len(fitting := [image for image in found if _fits(label, image)]) == 1:
        return fitting
    return found


def _fits(label: VolumeLabel, image: VolumeImage) -> bool:
    """Whether the voxels of a label are those of the image, or with 3D Slicer's names some of them."""
    grid = header_grid(label.path)
    if image.series is None:
        of_image = header_grid(image.place)
    else:
        volume = next(iter(image.series.volumes.values()), None)
        of_image = None if volume is None else (volume.size, RAS_TO_LPS @ volume.grid.affine_lps)
    if grid is None or of_image is None or len(of_image[0]) != 3 or len(grid[0]) != 3:
        return False
    try:
        steps = whole_steps(grid[1], grid[0], of_image[1])
    except InputError:
        return False
    ends = np.abs(steps[:3, :3] @ np.array(grid[0]))
    return bool(label.segments) or ends.tolist() == list(of_image[0])
