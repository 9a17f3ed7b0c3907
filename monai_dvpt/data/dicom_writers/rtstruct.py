# SPDX-License-Identifier: Apache-2.0
"""Label maps as DICOM RT Structure Set (DICOM PS3.3 A.19)."""
# rt-utils 1.2.7 traces through pixel centres (a single pixel has no area), and fails on multi-frame files.

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import numpy as np
from contourpy import FillType, contour_generator
from monai.config import PathLike
from pydicom.dataset import Dataset
from pydicom.uid import ImplicitVRLittleEndian, RTStructureSetStorage
from scipy.spatial.distance import cdist

from monai_dvpt.data.dicom import SeriesGrid

from .codes import label_colour, long_string
from .document import Model, Placed, document, image_items, require_highdicom, save_document

__all__ = ["outlines", "write_rtstruct"]

SERIES_NUMBER = 9003
OUTLINE_AT = 0.51
"""Where outlines lie between a pixel inside (1) and one outside (0): 1/100 of a pixel inward, so that readers find the
same pixels, whether they round to whole pixels or ask whether centres lie inside."""


def write_rtstruct(path: PathLike, placed: Placed, source: SeriesGrid, model: Model) -> Path:
    """
    Writes the outlines of a label map (see :func:`outlines`) on every frame as closed planar contours. ROI numbers are
    label values; a label without any voxel keeps its ROI.
    """
    highdicom, image = require_highdicom(), source.first
    dataset = highdicom.base.SOPClass(
        image.StudyInstanceUID,
        sop_class_uid=RTStructureSetStorage,
        modality="RTSTRUCT",
        transfer_syntax_uid=ImplicitVRLittleEndian,  # in explicit VR no contour could be longer than 64 kB
        **document(model, "Contours", SERIES_NUMBER),
    )
    dataset.OperatorsName = ""
    dataset.StructureSetLabel = "LABELS"
    dataset.StructureSetName = long_string(model.algorithm_name)
    dataset.StructureSetDate, dataset.StructureSetTime = datetime.now().strftime("%Y%m%d %H%M%S").split()
    dataset.ApprovalStatus = "UNAPPROVED"
    dataset.FrameOfReferenceUID = image.FrameOfReferenceUID
    dataset.PositionReferenceIndicator = image.PositionReferenceIndicator
    dataset.ReferencedFrameOfReferenceSequence = [_frame_of_reference(source)]
    dataset.StructureSetROISequence, dataset.ROIContourSequence, dataset.RTROIObservationsSequence = [], [], []
    for value, segment in sorted(model.segments.items()):
        roi, contours, observation = Dataset(), Dataset(), Dataset()
        roi.ROINumber = contours.ReferencedROINumber = observation.ReferencedROINumber = value
        roi.ReferencedFrameOfReferenceUID = image.FrameOfReferenceUID
        roi.ROIName = long_string(segment["name"])
        roi.ROIGenerationAlgorithm = "AUTOMATIC"
        roi.ROIGenerationDescription = long_string(f"{model.algorithm_name}, {model.algorithm_version}")
        contours.ROIDisplayColor = list(label_colour(value, segment))
        contours.ContourSequence = [
            contour for index, frame in enumerate(placed.labels == value) for contour in _contours(frame, index, source)
        ]
        if not contours.ContourSequence:  # it may be absent, but not empty
            del contours.ContourSequence
        observation.ObservationNumber = value
        observation.RTROIInterpretedType, observation.ROIInterpreter = "", ""
        observation.RTROIIdentificationCodeSequence = [highdicom.sr.CodedConcept(*segment["type"])]
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(contours)
        dataset.RTROIObservationsSequence.append(observation)
    return save_document(dataset, source, path)


def outlines(mask: np.ndarray) -> list[np.ndarray]:
    """
    Closed polygons between the pixels of a mask and those around it (``OUTLINE_AT``), one for each connected part. A
    hole is joined to the outline around it by a channel of no width, the keyhole technique of DICOM PS3.3 C.8.8.6.3.

    Args:
        mask: of shape (rows, columns).

    Returns:
        for each polygon its (column, row) coordinates, of shape (points, 2), without the first point at the end.
    """
    if not mask.any():
        return []
    padded = np.pad(mask.astype(float), 1)  # parts at the border are closed too
    filled = contour_generator(z=padded, fill_type=FillType.OuterOffset).filled(OUTLINE_AT, 2)
    found = []
    for points, starts in zip(*filled, strict=True):
        rings = [_corner_points(points[a : b - 1] - 1) for a, b in zip(starts[:-1], starts[1:], strict=True)]
        polygon = rings[0]
        for hole in sorted(rings[1:], key=lambda ring: ring[:, 0].min()):
            distances = cdist(polygon, hole)
            at, start = np.unravel_index(distances.argmin(), distances.shape)
            around = np.concatenate([hole[start:], hole[: start + 1]])
            polygon = np.concatenate([polygon[: at + 1], around, polygon[at:]])
        found.append(polygon)
    return found


def _corner_points(ring: np.ndarray) -> np.ndarray:
    """A closed polygon without the points on its straight lines."""
    before, after = ring - np.roll(ring, 1, axis=0), np.roll(ring, -1, axis=0) - ring
    return ring[np.abs(before[:, 0] * after[:, 1] - before[:, 1] * after[:, 0]) > 1e-9]


def _contours(mask: np.ndarray, index: int, source: SeriesGrid) -> list[Dataset]:
    found = []
    for polygon in outlines(mask):
        contour, plane = Dataset(), source.planes[index]
        points = polygon @ plane[:3, :2].T + plane[:3, 3]  # (points, 3), mm
        contour.ContourGeometricType = "CLOSED_PLANAR"
        contour.NumberOfContourPoints = len(points)
        contour.ContourData = [f"{coordinate:.4f}" for coordinate in points.ravel()]  # below 16 characters
        contour.ContourImageSequence = image_items(source, [index])
        found.append(contour)
    return found


def _frame_of_reference(source: SeriesGrid) -> Dataset:
    image = source.first
    series, study, frame = Dataset(), Dataset(), Dataset()
    series.SeriesInstanceUID = image.SeriesInstanceUID
    series.ContourImageSequence = image_items(source)
    study.ReferencedSOPClassUID = "1.2.840.10008.3.1.2.3.1"  # Detached Study Management
    study.ReferencedSOPInstanceUID = image.StudyInstanceUID
    study.RTReferencedSeriesSequence = [series]
    frame.FrameOfReferenceUID = image.FrameOfReferenceUID
    frame.RTReferencedStudySequence = [study]
    return frame
