# SPDX-License-Identifier: Apache-2.0
"""Grades and volumes as DICOM Structured Report (Comprehensive SR, DICOM PS3.3 A.35.3; template PS3.16 TID 1500)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydicom
from monai.config import PathLike
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from monai_dvpt.data.dicom import SeriesGrid
from monai_dvpt.utils import InputError

from .codes import long_string, private_code
from .document import Model, Placed, document, require_highdicom, save_document

__all__ = ["write_dicom_sr"]

SERIES_NUMBER = 9002
PREDICTION_SET = "prediction set"  # no standard code; once for each grade that is in it
MILLILITRE = Code("mL", "UCUM", "milliliter")


def write_dicom_sr(path: PathLike, placed: Placed, source: SeriesGrid, model: Model) -> Path:
    """
    Writes a report of measurements: for each graded output a qualitative evaluation with the probability of the grade;
    where it has a prediction set, an evaluation for each grade of the set and, as 1 minus coverage, the level of
    significance (DCM 121403); and for each label its volume, which refers to the DICOM SEG if there is one. It is
    preliminary and unverified.

    Raises:
        InputError: if the segmentation is not of these segments and this study.
        ValueError: if there is nothing to report, or a volume is of no segment of the model.
    """
    highdicom = require_highdicom()
    sr, grades, volumes_ml = highdicom.sr, placed.grades, placed.volumes_ml
    by_name = {segment["name"]: (value, segment) for value, segment in model.segments.items()}
    if not grades and not volumes_ml:
        raise ValueError("grades or volumes_ml must hold something to report, got neither.")
    if unknown := sorted(set(volumes_ml) - set(by_name)):
        raise ValueError(f"volumes_ml must be of the segments {sorted(by_name)}, got {unknown}.")
    seg = None if placed.segmentation is None else _read_segmentation(placed.segmentation, model, source)
    name, version = model.algorithm_name, model.algorithm_version
    algorithm = sr.AlgorithmIdentification(long_string(name), long_string(version))
    groups = [_grade(sr, output, found, source, algorithm) for output, found in grades.items()]
    groups += [_volume(sr, *by_name[label], volume, source, seg, algorithm) for label, volume in volumes_ml.items()]
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=generate_uid(entropy_srcs=[name, version]),
        name=long_string(name),
        manufacturer_name="monai_dvpt",
        model_name=long_string(f"{name} {version}"),
    )
    observer = sr.ObserverContext(observer_type=codes.DCM.Device, observer_identifying_attributes=device)
    content = sr.MeasurementReport(
        observation_context=sr.ObservationContext(observer_device_context=observer),
        procedure_reported=codes.SCT.ImagingProcedure,
        imaging_measurements=groups,
        title=codes.DCM.ImagingMeasurementReport,
    )
    evidence = [*source.images.values(), *([] if seg is None else [seg])]
    about = document(model, "Report", SERIES_NUMBER)
    return save_document(sr.ComprehensiveSR(evidence, content, is_complete=True, **about), source, path)


def _grade(sr: Any, output: str, found: Mapping[str, Any], source: SeriesGrid, algorithm: Any) -> Any:
    evaluations = [(output, found["grade"]), *((PREDICTION_SET, grade) for grade in found.get("set", ()))]
    measured = {codes.DCM.Probability: float(found["confidence"])}
    if "set" in found:
        measured[codes.DCM.LevelOfSignificance] = round(1 - found["coverage"], 6)
    return sr.MeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(uid=generate_uid(), identifier=long_string(output)),
        algorithm_id=algorithm,
        qualitative_evaluations=[
            sr.QualitativeEvaluation(*(Code(*private_code(str(text))) for text in pair)) for pair in evaluations
        ],
        measurements=[sr.Measurement(name, value, codes.UCUM.NoUnits) for name, value in measured.items()],
        source_images=_source_images(sr, source),
    )


def _volume(
    sr: Any, value: int, segment: Mapping, volume: float, source: SeriesGrid, seg: Dataset | None, algorithm: Any
) -> Any:
    common = {
        "finding_category": Code(*segment["category"]),
        "finding_type": Code(*segment["type"]),
        "finding_sites": [sr.FindingSite(Code(*segment["region"]))] if "region" in segment else None,
        "algorithm_id": algorithm,
        "measurements": [sr.Measurement(codes.SCT.Volume, float(volume), MILLILITRE)],
    }
    if seg is None:
        tracking = sr.TrackingIdentifier(uid=generate_uid(), identifier=long_string(segment["name"]))
        images = _source_images(sr, source)
        return sr.MeasurementsAndQualitativeEvaluations(tracking, source_images=images, **common)
    description = seg.SegmentSequence[value - 1]
    series = sr.SourceSeriesForSegmentation(source.first.SeriesInstanceUID)
    return sr.VolumetricROIMeasurementsAndQualitativeEvaluations(
        sr.TrackingIdentifier(uid=description.TrackingUID, identifier=description.TrackingID),
        referenced_segment=sr.ReferencedSegment(seg.SOPClassUID, seg.SOPInstanceUID, value, source_series=series),
        **common,
    )


def _source_images(sr: Any, source: SeriesGrid) -> list[Any]:
    return [
        sr.SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID, numbers)
        for image, numbers in source.references()
    ]


def _read_segmentation(path: PathLike, model: Model, source: SeriesGrid) -> Dataset:
    try:
        seg = pydicom.dcmread(path, stop_before_pixels=True)
        names = {item.SegmentNumber: item.SegmentLabel for item in seg.SegmentSequence}
        study = seg.StudyInstanceUID
    except Exception as error:
        raise InputError(f"{path}: cannot be read as DICOM SEG: {type(error).__name__}.") from None
    expected = {value: long_string(segment["name"]) for value, segment in model.segments.items()}
    if names != expected or study != source.first.StudyInstanceUID:
        raise InputError(f"{path}: must be of the segments {expected} and the study of the source, got {names}.")
    return seg
