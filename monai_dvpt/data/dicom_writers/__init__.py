# SPDX-License-Identifier: Apache-2.0
from .codes import PRIVATE_SCHEME, label_colour, private_code, segment_codes
from .overlay import write_overlay, write_picture
from .report import write_dicom_sr
from .rtstruct import write_rtstruct
from .segmentation import DicomSegWriter, write_dicom_seg, write_dicom_seg_probability
from .source import Source, place_on_frames, read_source, require_highdicom

__all__ = [
    "DicomSegWriter",
    "PRIVATE_SCHEME",
    "Source",
    "label_colour",
    "place_on_frames",
    "private_code",
    "read_source",
    "require_highdicom",
    "segment_codes",
    "write_dicom_seg",
    "write_dicom_seg_probability",
    "write_dicom_sr",
    "write_overlay",
    "write_picture",
    "write_rtstruct",
]
