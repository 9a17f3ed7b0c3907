# SPDX-License-Identifier: Apache-2.0
"""
Results as DICOM files.

Every writer is called with the path of the file, the :class:`Placed` result, the grid of the series that it belongs to,
and the :class:`Model` that made it, and returns the path. All raise an InputError if a file cannot be read or written,
and an OptionalImportError if highdicom is not installed.
"""

from .codes import PRIVATE_SCHEME, label_colour, private_code, segment_codes
from .document import Model, Placed, place, require_highdicom
from .rtstruct import write_rtstruct
from .secondary_capture import write_secondary_capture
from .segmentation import write_dicom_seg, write_dicom_seg_probability
from .structured_report import write_dicom_sr

__all__ = [
    "PRIVATE_SCHEME",
    "Model",
    "Placed",
    "label_colour",
    "place",
    "private_code",
    "require_highdicom",
    "segment_codes",
    "write_dicom_seg",
    "write_dicom_seg_probability",
    "write_dicom_sr",
    "write_rtstruct",
    "write_secondary_capture",
]
