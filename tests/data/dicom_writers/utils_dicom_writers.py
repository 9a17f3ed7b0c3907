# SPDX-License-Identifier: Apache-2.0
"""Real DICOM series for the tests of the writers, read without them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
from pydicom.dataset import Dataset
from utils_data import shared_data
from utils_dicom import grid_of

from monai_dvpt.data import SeriesGrid
from monai_dvpt.data.dicom_writers import Model, segment_codes

LABELS = ("background", "liver", "spine", "a name without a code")
CODES = {
    "liver": {"type": ["10200004", "SCT", "Liver"], "region": ["818981001", "SCT", "Abdomen"]},
    "spine": {"type": ["421060004", "SCT", "Vertebral column"], "color": [10, 200, 30]},
}
SEGMENTS = segment_codes(LABELS, {"segment_codes": CODES})
MODEL = Model("Test model", "1.2.3", SEGMENTS)
LIVER = "ct_liver_seg/ct-3slice"
THORAX = "ct_thorax_jpeg2000/dicom"
TILTED = "awkward/failing/gantrytilting/001"
ENHANCED = "awkward/siemens_multiframe/anatomical/001"
ANONYMOUS = "hippocampus_mr"
SERIES = [
    LIVER,
    THORAX,
    TILTED,
    ENHANCED,
    ANONYMOUS,
    "ct_liver_seg/23x38x3/multiframe",
    "awkward/generic/compressed/001",
]


class Series:
    """
    A series as the reader hands it on.

    Args:
        folder: of the shared data, or of a test.

    Attributes:
        frames: ``[path, number]`` in the order of the positions.
        positions: (n, 3), LPS, mm.
        affine_ras: of the volume (columns, rows, n); sheared if the series is tilted.
        shape: of the volume.
        headers: of the files.
    """

    def __init__(self, folder: str | Path) -> None:
        found = []
        self.headers: list[Dataset] = []
        folder = folder if isinstance(folder, Path) else shared_data(f"dicom/{folder}")
        for path in sorted(folder.iterdir()):
            header = pydicom.dcmread(path, stop_before_pixels=True)
            self.headers.append(header)
            if "PerFrameFunctionalGroupsSequence" in header:
                shared = header.get("SharedFunctionalGroupsSequence", [Dataset()])[0]
                for number, group in enumerate(header.PerFrameFunctionalGroupsSequence, start=1):
                    axes = (group if "PlaneOrientationSequence" in group else shared).PlaneOrientationSequence[0]
                    spacing = (group if "PixelMeasuresSequence" in group else shared).PixelMeasuresSequence[0]
                    found.append(([str(path), number], group.PlanePositionSequence[0].ImagePositionPatient))
            else:
                axes = spacing = header
                found.append(([str(path), 1], header.ImagePositionPatient))
        row, column = np.array(axes.ImageOrientationPatient, dtype=float).reshape(2, 3)
        found.sort(key=lambda item: float(np.dot(item[1], np.cross(row, column))))
        self.frames = [frame for frame, _ in found]
        self.positions = np.array([position for _, position in found], dtype=float)
        self.shape = (header.Columns, header.Rows, len(found))
        affine = np.eye(4)
        affine[:3, 0] = row * float(spacing.PixelSpacing[1])
        affine[:3, 1] = column * float(spacing.PixelSpacing[0])
        affine[:3, 2] = (self.positions[-1] - self.positions[0]) / (len(found) - 1)
        affine[:3, 3] = self.positions[0]
        self.affine_ras = np.diag([-1, -1, 1, 1]) @ affine

    def grid(self) -> SeriesGrid:
        """What the reader makes of these frames."""
        return grid_of(self.frames)

    def labels(self) -> np.ndarray:
        """Label map with labels 1 and 2, nothing symmetric; the last slice is empty."""
        columns, rows, slices = self.shape
        labels = np.zeros(self.shape, np.uint8)
        labels[columns // 4 : columns // 2, rows // 5 : rows // 2, : slices - 1] = 2
        labels[columns // 3 : columns // 3 + 2, rows // 3 : rows // 3 + 3, 0] = 0
        labels[-3:, -2:, slices - 2] = 1
        return labels


def instance_uid(header: Dataset) -> str:
    """Of a file, from its file meta information where it was blanked."""
    return header.get("SOPInstanceUID") or header.file_meta.MediaStorageSOPInstanceUID
