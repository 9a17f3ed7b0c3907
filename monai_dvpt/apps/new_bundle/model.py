# SPDX-License-Identifier: Apache-2.0
"""What is known of a folder of data: its cases, what was measured of them, and what is odd."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from monai_dvpt.data import DicomSeries

__all__ = ["IGNORED", "Case", "Collection", "Finding", "LabelReader", "Measurement", "Options"]

IGNORED = "ignore"
"""Name that a label reader gives to values whose voxels train nothing."""

LabelReader = Callable[[Any], tuple[np.ndarray, dict[int, str]]]
"""
Reads the label map of a case. It takes the loaded image, as :class:`LoadVolume` or :class:`LoadImage2D` return it, and
returns whole numbers of the image's spatial shape, and the name of each value but 0, the background, also of labels
that no voxel has. It raises an :class:`InputError` where the label cannot be placed on the image.
"""


@dataclass(frozen=True)
class Options:
    """
    What a user may say about a folder of data; what is left out is found out.

    Attributes:
        task: "segmentation", "grading" or "classification"; "" to see.
        table: path of the table of grades or masks, relative to the folder of data or absolute; "" to search for it.
        outputs: columns with what is graded.
        columns: the table's own names of "image", "patient", "split" and "mask"; or, as "mask", a pattern of the files
            to take, such as "*_1stHO.png", where pictures have several masks.
        grades: names of the grades in their order, or of the classes.
        labels: for segmentation, the names of the labels to take, in their order; by default all.
        label_names: for segmentation, name of each label value, where the format has no names.
        ignored: for segmentation, names (or values, as text) of labels whose voxels train nothing.
        channels: for volumes, the names of the channels to take, in their order; by default those that the data name.
        drawn: for segmentation, what was drawn of the label maps, see ``drawn.as_drawn``.
        patient_pattern: regular expression that finds the patient in the path of an image below the folder of data: its
            first group that is not empty, else the whole match.
        secret: key of the hashes of patients' identifiers, of this bundle alone.
    """

    task: str = ""
    table: str = ""
    outputs: Sequence[str] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    grades: Sequence[str] = ()
    labels: Sequence[str] = ()
    label_names: Mapping[int, str] = field(default_factory=dict)
    ignored: Sequence[str] = ()
    channels: Sequence[str] = ()
    drawn: Sequence[str] = ()
    patient_pattern: str = ""
    secret: bytes = b""

    def patient(self, identifier: str) -> str:
        """A patient's alias: a keyed hash of the identifier, in 16 hexadecimal digits; "" of an empty one."""
        if not (text := identifier.strip()):
            return ""
        return hashlib.blake2b(text.encode(errors="surrogateescape"), key=self.secret, digest_size=8).hexdigest()


@dataclass(frozen=True)
class Finding:
    """
    Something odd about the data.

    Attributes:
        rule: short name of the rule, such as "no label", the same for all findings of a kind.
        where: case or file, relative to the folder of data; never a patient's name.
        message: one sentence with the value.
        error: whether no bundle can be written before it is mended; else the case is left out, or the sentence says
            what is done.
        dropped: of an error, whether the cases that it is about are no longer among the others, which can be used.
    """

    rule: str
    where: str
    message: str
    error: bool = False
    dropped: bool = False


@dataclass
class Case:
    """
    An image with its label.

    Attributes:
        name: unique, fit for a file name, without a patient's name.
        image: path of a file, or the paths of the files of a DICOM series, or of each channel.
        read_label: for segmentation, reads the label map; None for an image without one.
        labelled: for segmentation, names of the labels that were drawn in this case, where the data say so; None for
            all. A voxel outside them may still be of another label.
        grades: for grades and classes, the value of each output by name; an output without one is left out.
        patient: the same for all cases of a patient, never an identifier that the data hold; "" if not known, and
            then the case is a patient of its own.
        part: "training", "validation", "calibration" or "test" where the data say so, else "".
        modality: as in DICOM, such as "CT", where the data say so, else "".
        series: of a DICOM series, its headers, so that they need not be read again.
    """

    name: str
    image: str | list[str]
    read_label: LabelReader | None = None
    labelled: Sequence[str] | None = None
    grades: Mapping[str, str] = field(default_factory=dict)
    patient: str = ""
    part: str = ""
    modality: str = ""
    series: DicomSeries | None = field(default=None, repr=False)


@dataclass
class Collection:
    """
    The cases of a folder of data.

    Attributes:
        task: "segmentation", "grading" (ordered grades) or "classification" (without an order).
        spatial_dims: 2 for pictures, 3 for volumes.
        root: folder of data.
        cases: in the order of their paths.
        labels: for segmentation, the names of the labels, without the background, in the order of the values they get;
            else the names of the grades or classes, in their order.
        outputs: for grades and classes, what is graded.
        findings: what was odd.
        channels: names of the channels of a volume, in their order; empty where it has one, without a name.
        file_channels: names of all channels that a file with several has, in its order.
    """

    task: str
    spatial_dims: int
    root: Path
    cases: list[Case]
    labels: list[str]
    outputs: list[str] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    channels: list[str] = field(default_factory=list)
    file_channels: list[str] = field(default_factory=list)

    def kinds_of_names(self) -> Sequence[tuple[str, Sequence[str]]]:
        """The names that a bundle has, by what they are of."""
        return (("label", self.labels), ("output", self.outputs), ("channel", self.channels))


@dataclass(frozen=True)
class Measurement:
    """
    What was measured of a case. Of an image with named channels, values are those of the first.

    Attributes:
        size: voxels or pixels along each axis; of a volume in RAS orientation, of a picture rows and columns.
        spacing_mm: of a volume, along the same axes; else None.
        channels: of the image; of a picture 1 or 3.
        range: smallest and largest value.
        percentiles: 0.5, 50 and 99.5 % of the values.
        foreground: 0.5, 50 and 99.5 % of the values inside labels, None without any; with ``mean`` and ``std``.
        mean: of the values inside labels, or of all without any.
        std: their standard deviation.
        zeros: share of values that equal the smallest one.
        voxels: number of voxels of each label by name.
        content: hash of the image's values, the same for copies in other formats.
        label_content: hash of the label map and its names, "" without one.
        by_channel: of an image with several channels, what was measured of each.
        resampled_channels: for each channel, whether it lies on another grid than the first.
        covered_channels: for each channel, share of the voxels that lie inside its field of view.
        alone: of a label map of three planes with labels or more along an axis, for each axis the share of these planes
            that have no other beside them; else 0.
        centres: of an image with several labels, where the middle of each lies, in mm or, of a picture, in pixels.
    """

    size: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    channels: int
    range: tuple[float, float]
    percentiles: tuple[float, float, float]
    foreground: tuple[float, float, float] | None
    mean: float
    std: float
    zeros: float
    voxels: Mapping[str, int]
    content: str
    label_content: str = ""
    by_channel: tuple[Measurement, ...] = ()
    resampled_channels: tuple[bool, ...] = ()
    covered_channels: tuple[float, ...] = ()
    alone: tuple[float, ...] = ()
    centres: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
