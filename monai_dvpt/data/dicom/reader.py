# SPDX-License-Identifier: Apache-2.0
"""A MONAI image reader for DICOM series that places every slice to 0.1 mm or refuses."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from monai.data import ImageReader
from monai.utils import SpaceKeys, ensure_tuple

from monai_dvpt.utils import InputError, as_bool, naming

from .geometry import RAS_TO_LPS
from .grid import SeriesGrid
from .pixels import read_values, straighten
from .series import DicomSeries, choose_series, find_series
from .volumes import DicomVolume

__all__ = ["DicomSeriesReader"]


class DicomSeriesReader(ImageReader):
    """
    Reads one volume from a folder or files of DICOM images (PS3.3 A.3, A.4, A.36, A.38 and similar ones), as
    ``LoadImage(reader=DicomSeriesReader())`` or from a config. Slices are ordered along their normal; every corner of
    every slice then lies within 0.1 mm of its place by its own header, or the series is refused. Each slice is rescaled
    by its own header; MONOCHROME1 is not inverted, since rescaled values are quantities. Padding (PixelPaddingValue, to
    PixelPaddingRangeLimit, of each slice's own header) becomes 0, in CT -1000, or the least other value if it is lower.

    It refuses, and names the series or file: slices that are missing, repeated or unevenly spaced; several
    orientations, spacings, sizes, acquisitions or time points if none is chosen; a tilted gantry, unless it is
    resampled; files that are truncated, coloured, a mosaic, or without position or pixels; and a folder with more than
    one series to choose from.

    Args:
        uid: Series Instance UID.
        description: pattern of the Series Description as in a shell; case does not matter.
        modality: such as "MR".
        num_slices: number of slices of the series.
        time_point: one of several volumes at one place, from 1, sorted by what tells them apart: image type, temporal
            position, trigger time, b-value, echo time, acquisition, or time.
        stack: one of several volumes at different places or of different kinds, from 1.
        tilt: "refuse" a straight gantry tilt, or "resample" the slices, moved within their planes, on a straight grid.
        merge_acquisitions: join slices of several acquisitions (AcquisitionNumber) into one volume; or "true", "false".
        known: the series that the files are, if :func:`find_series` was asked before; their headers are not read again.

    Raises:
        ValueError: if ``tilt`` or ``merge_acquisitions`` has another value, or a number is below 1.
    """

    def __init__(
        self,
        uid: str | None = None,
        description: str | None = None,
        modality: str | None = None,
        num_slices: int | None = None,
        time_point: int | None = None,
        stack: int | None = None,
        tilt: str = "refuse",
        merge_acquisitions: bool | str = False,
        known: DicomSeries | None = None,
    ) -> None:
        super().__init__()
        if tilt not in ("refuse", "resample"):
            raise ValueError(f"tilt must be refuse or resample, got {tilt}.")
        for name, number in (("num_slices", num_slices), ("time_point", time_point), ("stack", stack)):
            if number is not None and int(number) < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        self.uid, self.description, self.modality, self.num_slices = uid, description, modality, num_slices
        self.time_point, self.stack, self.tilt = time_point, stack, tilt
        self.merge_acquisitions = as_bool("merge_acquisitions", merge_acquisitions)
        self.known = known

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether a path is a folder, or a file that is not NIfTI: DICOM files need no extension."""
        return not any(str(path).lower().endswith((".nii", ".nii.gz")) for path in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **_: Any) -> tuple[Path, ...]:
        """
        Args:
            data: a folder, a file of the series, or all its files.

        Returns:
            the paths for :meth:`get_data`, which reads them: ``LoadImage`` does not replace its errors.
        """
        return tuple(Path(os.fspath(path)) for path in ensure_tuple(data))

    def get_data(self, img: tuple[Path, ...]) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Args:
            img: what :meth:`read` gave.

        Returns:
            values of shape (columns, rows, slices), float32, and metadata that names no patient: "affine" and
            "original_affine" (RAS+, mm), "spatial_shape", "space", "modality", "tilt_degrees" as acquired, "resampled"
            (whether slices were moved), "lossy" (whether pixels were compressed with loss), "padding_voxels" (how
            many), "set_aside" (JSON: files of the series that are in no volume, such as localizers, each with the
            reason), and "series_grid", a :class:`SeriesGrid`.

        Raises:
            InputError: if a rule of the class is broken.
        """
        source = img[0] if len(img) == 1 else img
        with naming(f"{len(img)} DICOM files" if len(img) > 1 else img[0], outer=True):
            found = [self.known] if self.known is not None else find_series(source, self.merge_acquisitions)
            series = self.choose(found)
            volume = self.volume_of(series)
            values, padding, nothing, references = read_values(volume)
            affine = volume.grid.affine_lps
            if resampled := volume.grid.tilt_degrees > 0:
                values, affine = straighten(values, volume.grid, nothing)
        affine = RAS_TO_LPS @ affine
        return values, {
            "affine": affine,
            "original_affine": affine.copy(),
            "space": SpaceKeys.RAS,
            "spatial_shape": np.array(values.shape),
            "original_channel_dim": float("nan"),  # there is none
            "modality": series.modality,
            "tilt_degrees": volume.grid.tilt_degrees,
            "resampled": resampled,
            "lossy": series.lossy,
            "padding_voxels": padding,
            "set_aside": json.dumps(series.facts()["set_aside"]),
            "series_grid": SeriesGrid.of(volume.slices, references, values.shape, affine.copy()),
        }

    def choose(self, found: Sequence[DicomSeries]) -> DicomSeries:
        """
        The series to read, of those from :func:`find_series`.

        Raises:
            InputError: if it cannot be read, or is not the only one that fits.
        """
        series = choose_series(found, self.uid, self.description, self.modality, self.num_slices)
        self.volume_of(series)
        return series

    def volume_of(self, series: DicomSeries) -> DicomVolume:
        """
        The volume of a series to read.

        Raises:
            InputError: if there is none, or several and none is chosen.
        """
        if series.verdict not in ("ok", "tilted", "choose"):
            raise InputError(f"must be a DICOM volume: {series}.")
        stacks = sorted({stack for stack, _ in series.volumes})
        stack = self.stack or (1 if series.stacks == 1 else None)
        times = sorted({time for each, time in series.volumes if each == stack})
        time = self.time_point or (1 if times == [1] else None)
        if stack is None or time is None or (stack, time) not in series.volumes:
            asked = f"stack {self.stack or 'not given'}, time_point {self.time_point or 'not given'}"
            raise InputError(
                f"must say which volume of the series, of stacks {stacks}, time points {times or 'of each'}; "
                f"got {asked}: {series}."
            )
        volume = series.volumes[stack, time]
        if volume.grid.tilt_degrees and self.tilt == "refuse":
            raise InputError(f"must be straight: {series}.")
        return volume
