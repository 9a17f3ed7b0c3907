# SPDX-License-Identifier: Apache-2.0
"""DICOM series as NIfTI files, as viewers and networks are given them."""

from __future__ import annotations

from pathlib import Path

from monai_dvpt.data.dicom import DicomSeriesReader
from monai_dvpt.data.nifti import save_nifti
from monai_dvpt.utils import atomic_path, fingerprint

from .dicom_labels import read_series

__all__ = ["nifti_of_series"]


def nifti_of_series(folder: Path, path: Path) -> Path:
    """
    Converts the one volume of a folder of DICOM files, unless that was done and no file has changed since. What the
    file was made of is kept beside it.

    Args:
        folder: of the files.
        path: of the NIfTI file, ``.nii.gz``.

    Returns:
        ``path``.

    Raises:
        InputError: if the series cannot be read, or not be placed to 0.1 mm on a grid that NIfTI can hold.
    """
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    facts = [(str(f.relative_to(folder)), f.stat().st_size, f.stat().st_mtime_ns) for f in files]
    made_of, record = fingerprint(facts), path.with_name(f"{path.name}.sha256")
    if path.is_file() and record.is_file() and record.read_text() == made_of:
        return path
    path.unlink(missing_ok=True)
    values, grid = read_series(folder, DicomSeriesReader())
    save_nifti(path, values, grid.affine_ras, scanner=True)
    with atomic_path(record) as temporary:
        temporary.write_text(made_of)
    return path
