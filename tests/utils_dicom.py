# SPDX-License-Identifier: Apache-2.0
"""Grids of DICOM files, and outside judges of them."""

from __future__ import annotations

import shutil
import subprocess
import sys
import unittest
from pathlib import Path
from typing import Any

import pydicom

from monai_dvpt.data import SeriesGrid
from monai_dvpt.data.dicom.grid import reference_of
from monai_dvpt.data.dicom.headers import quiet_pydicom, read_header


def grid_of(frames: list, *volume: Any) -> SeriesGrid:
    """What the reader makes of ``[path, number]`` of each frame, and perhaps of the shape and affine of a volume."""
    files = {path: read_header(path) for path, _ in frames}
    with quiet_pydicom():
        read = {path: pydicom.dcmread(path, stop_before_pixels=True, force=True) for path in files}
    headers = {files[path].path: reference_of(header) for path, header in read.items()}
    return SeriesGrid.of([(files[path], files[path].frames[number - 1]) for path, number in frames], headers, *volume)


def validator_errors(path: Path) -> list[str]:
    """Lines of David Clunie's dciodvfy that report an error; skips the test where it is not installed."""
    if shutil.which("dciodvfy") is None:
        raise unittest.SkipTest("needs dciodvfy (Debian package dicom3tools).")
    done = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True)
    lines = (done.stdout + done.stderr).splitlines()
    if not lines:
        raise RuntimeError(f"dciodvfy said nothing: {done}.")
    return [line for line in lines if "Error" in line]


def dcmqi_segments(path: Path, folder: Path) -> dict[int, Path]:
    """The NRRD file of each segment as dcmqi reads them; skips the test where it is not installed."""
    beside_python = Path(sys.executable).parent / "segimage2itkimage"
    tool = str(beside_python) if beside_python.exists() else shutil.which("segimage2itkimage")
    if tool is None:
        raise unittest.SkipTest("needs segimage2itkimage (Python package dcmqi).")
    command = [tool, "--inputDICOM", str(path), "--outputDirectory", str(folder), "-t", "nrrd"]
    subprocess.run(command, check=True, capture_output=True)
    return {int(file.stem.split("-")[-1]): file for file in folder.glob("*.nrrd")}
