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

from .choose_series import choose_series
from .geometry import RAS_TO_LPS
from .grid import SeriesGrid
from .pixels import read_values, straighten
from .series import DicomSeries, find_series
from .volumes import DicomVolume

__all__ = ["DicomSeriesReader"]


class DicomSeriesReader(ImageReader):
    """
    Reads one volume of a folder, or of files, of DICOM images (PS3.3 A.3, A.4, A.36, A.38 and those like them), as
    ``LoadImage(reader=DicomSeriesReader())`` or from a config. Slices are ordered along their normal; every corner of
    every slice then lies within 0.1 mm of where its own header has it, or the series is refused. Each slice is rescaled
    by its own header; MONOCHROME1 is not inverted, since rescaled values are quantities. Padding (PixelPaddingValue, to
    PixelPaddingRangeLimit, of each slice's own header) becomes 0, in CT -1000, or the least other value if it is lower.

    Refused, naming the series or file, are: slices missing, repeated or unevenly spaced; several orientations,
    spacings, sizes, acquisitions or time points where none is chosen; a tilted gantry, unless it is resampled; files
    that are truncated, have no position, are coloured, a mosaic or without pixels; and folders in which the choice is
    not unique.

    Args:
        uid: Series Instance UID of what to read.
        description: pattern of its Series Description as in a shell, in upper or lower case.
        modality: such as "MR".
        num_slices: its number of slices.
        time_point: which of several volumes at one place, from 1, in the order of what tells them apart: image
            type, temporal position, trigger time, b-value, echo time, acquisition, or time.
        stack: which of several volumes at different places or of different kinds, from 1.
        tilt: what to do with a straight gantry tilt: "refuse", or "resample" the slices, moved within their planes,
            on a straight grid.
        merge_acquisitions: take slices of several acquisitions (AcquisitionNumber) as one volume; or "true", "false".

    Raises:
        ValueError: if ``tilt`` or ``merge_acquisitions`` is something else, or a number is below 1.
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
    ) -> None:
        super().__init__()
        if tilt not in ("refuse", "resample"):
            raise ValueError(f"tilt must be refuse or resample, got {tilt}.")
        for name, number in (("num_slices", num_slices), ("time_point", time_point), ("stack", stack)):
            if number is not None and int(number) < 1:
                raise ValueError(f"{name} must be at least 1, got {number}.")
        self.wishes: dict[str, Any] = {
            "uid": uid,
            "description": description,
            "modality": modality,
            "num_slices": num_slices,
        }
        self.time_point, self.stack = time_point, stack
        self.tilt = tilt
        self.merge_acquisitions = as_bool("merge_acquisitions", merge_acquisitions)

    def verify_suffix(self, filename: Sequence[PathLike] | PathLike) -> bool:
        """Whether a path is a folder, or a file that is not NIfTI: DICOM files need no extension."""
        return not any(str(path).lower().endswith((".nii", ".nii.gz")) for path in ensure_tuple(filename))

    def read(self, data: Sequence[PathLike] | PathLike, **_: Any) -> tuple[Path, ...]:
        """
        Args:
            data: a folder, a file of the series, or all its files.

        Returns:
            what :meth:`get_data` takes. Nothing is read yet: an error there reaches the user of ``LoadImage`` as it is.
        """
        return tuple(Path(os.fspath(path)) for path in ensure_tuple(data))

    def get_data(self, img: tuple[Path, ...]) -> tuple[np.ndarray, dict[str, Any]]:
        """
        Args:
            img: what :meth:`read` gave.

        Returns:
            values of shape (columns, rows, slices), float32, and metadata that names no patient: "affine" and
            "original_affine" (RAS+, mm), "spatial_shape", "space", "modality", "tilt_degrees" as acquired,
            "resampled" (whether it was put straight), "lossy" (whether pixels were compressed with loss),
            "padding_voxels" (how many of the slices' voxels were padding), "set_aside" (JSON: files of the series that
            are in no volume, such as localizers, each with the reason), and "series_grid", a :class:`SeriesGrid`.

        Raises:
            InputError: if a rule of the class is broken.
        """
        source = img[0] if len(img) == 1 else img
        with naming(f"{len(img)} DICOM files" if len(img) > 1 else img[0], outer=True):
            series = self.choose(find_series(source, self.merge_acquisitions))
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
        The series that is asked for.

        Args:
            found: of :func:`find_series`.

        Raises:
            InputError: if it cannot be read, or it is not said which.
        """
        series = choose_series(found, **self.wishes)
        self.volume_of(series)
        return series

    def volume_of(self, series: DicomSeries) -> DicomVolume:
        """
        The volume of a series that is asked for.

        Raises:
            InputError: if there is none, or it is not said which.
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
