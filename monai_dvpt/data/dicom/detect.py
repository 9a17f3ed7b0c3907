# SPDX-License-Identifier: Apache-2.0
"""Whether a file is, or should be, DICOM."""

from __future__ import annotations

import os
from pathlib import Path

from monai_dvpt.data.kinds import is_regular

__all__ = ["looks_like_dicom"]

SUFFIXES = ("", ".dcm", ".ima")


def looks_like_dicom(path: Path) -> bool:
    """
    Whether a file is DICOM by its first bytes, or should be by its name because it cannot be opened, is empty, or ends
    within its preamble.
    """
    if path.name.upper() == "DICOMDIR":  # an index of other files
        return False
    suffix = path.suffix.lower()
    dicom_name = suffix in SUFFIXES or suffix[1:].isdigit()  # many files have a UID for a name
    if os.path.exists(path) and not is_regular(path) and not os.path.isdir(path):  # a pipe or device is never opened
        return dicom_name
    try:
        with open(path, "rb") as file:
            start = file.read(132)
    except IsADirectoryError:
        return os.path.isdir(path) and not os.access(path, os.R_OK | os.X_OK)
    except OSError:  # no permission, or a link to nowhere
        return dicom_name
    if start[128:] == b"DICM" or suffix in SUFFIXES[1:]:
        return True
    if not start[:128].strip(b"\0"):  # empty, cut within or after the preamble, or never filled
        return dicom_name
    group, element = start[:2], start[2:4]  # of a file without preamble
    return len(start) == 132 and group in (b"\2\0", b"\10\0") and element[1] == 0
