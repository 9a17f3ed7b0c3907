# SPDX-License-Identifier: Apache-2.0
"""Cases of the hippocampus as DICOM series, and their labels in the formats that drawing programs write."""

from __future__ import annotations

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
import SimpleITK
from utils_data import save_dicom, shared_data

from monai_dvpt.data import DicomSeriesReader
from monai_dvpt.data.dicom_writers import Model, place, segment_codes, write_dicom_seg, write_rtstruct

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
ORGANS = ["anterior", "posterior"]
MODEL = Model("Test model", "1", segment_codes(["background", *ORGANS], {}))


def read_hippocampus(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The image of a case as uint16 up to 1000, its label map, and the affine of both."""
    image, label = (nib.load(shared_data(f"msd_hippocampus/{part}/{name}.nii.gz")) for part in ("imagesTr", "labelsTr"))
    values = np.asarray(image.dataobj, float)
    np.testing.assert_array_equal(image.affine, label.affine)
    return (values / values.max() * 1000).astype(np.uint16), np.asarray(label.dataobj).astype(np.uint8), image.affine


def save_series(folder: Path, values: np.ndarray, affine_ras: np.ndarray, patient: str = "19") -> Path:
    """Writes a DICOM series of MR; returns its folder."""
    affine = LPS @ affine_ras
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return save_dicom(folder, values, affine[:3, :3] / spacing, affine[:3, 3], tuple(spacing), patient=patient)


def placed_on_series(folder: Path, label: np.ndarray, affine_ras: np.ndarray) -> tuple:
    """Grid of a series, and a label map as its result."""
    reader = DicomSeriesReader()
    _, meta = reader.get_data(reader.read(folder))
    turn = nib.orientations.ornt_transform(
        nib.orientations.io_orientation(affine_ras), nib.orientations.io_orientation(meta["affine"])
    )
    turned = nib.orientations.apply_orientation(label, turn)
    return meta["series_grid"], place(meta["series_grid"], MODEL, meta["affine"], turned)


def save_on_series(kind: str, path: Path, series: Path, label: np.ndarray, affine_ras: np.ndarray) -> None:
    """Writes the segmentation of a series as DICOM; ``kind`` is "SEG" or "RTSTRUCT"."""
    grid, placed = placed_on_series(series, label, affine_ras)
    writer = write_dicom_seg if kind == "SEG" else write_rtstruct
    writer(path, placed, grid, MODEL)


def save_slicer(path: Path, layers: np.ndarray, affine_ras: np.ndarray, segments: list[tuple[str, int, int]]) -> Path:
    """
    Writes a segmentation as 3D Slicer does.

    Args:
        path: of the file.
        layers: of shape (x, y, z), or (layers, x, y, z).
        affine_ras: from voxels to patient coordinates.
        segments: name, value and layer of each.
    """
    affine = LPS @ affine_ras
    vectors = [f"({','.join(f'{value:.12g}' for value in affine[:3, axis])})" for axis in range(3)]
    listed = layers.ndim == 4
    lines = ["NRRD0004", "type: unsigned char", f"dimension: {layers.ndim}", "space: left-posterior-superior"]
    lines += [f"sizes: {' '.join(map(str, layers.shape))}"]
    lines += [f"space directions: {' '.join([*(['none'] if listed else []), *vectors])}"]
    lines += [f"kinds: {'list ' if listed else ''}domain domain domain", "encoding: gzip"]
    lines += [f"space origin: ({','.join(f'{value:.12g}' for value in affine[:3, 3])})"]
    for index, (name, value, layer) in enumerate(segments):
        lines += [f"Segment{index}_Name:={name}", f"Segment{index}_LabelValue:={value}"]
        lines += [f"Segment{index}_Layer:={layer}", f"Segment{index}_ID:=Segment_{index}"]
    path.parent.mkdir(parents=True, exist_ok=True)
    values = gzip.compress(layers.astype(np.uint8).tobytes(order="F"))
    path.write_bytes("\n".join([*lines, "", ""]).encode() + values)
    return path


def save_itk(path: Path, values: np.ndarray, affine_ras: np.ndarray) -> Path:
    """Writes a volume in the format that the name says, such as NRRD; returns ``path``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    written = SimpleITK.GetImageFromArray(values.transpose(2, 1, 0))
    lps = LPS @ affine_ras
    spacing = np.linalg.norm(lps[:3, :3], axis=0)
    written.SetSpacing(spacing.tolist())
    written.SetDirection((lps[:3, :3] / spacing).ravel().tolist())
    written.SetOrigin(lps[:3, 3].tolist())
    SimpleITK.WriteImage(written, str(path))
    return path
