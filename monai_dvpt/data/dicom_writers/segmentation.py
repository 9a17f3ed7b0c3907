# SPDX-License-Identifier: Apache-2.0
"""Label maps and probability maps as DICOM Segmentation (DICOM PS3.3 A.51)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import PathLike
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from pydicom.valuerep import DS

from monai_dvpt.data.dicom import SeriesGrid
from monai_dvpt.utils import InputError

from .codes import label_colour, long_string
from .document import Model, Placed, document, require_highdicom, save_document

__all__ = ["write_dicom_seg", "write_dicom_seg_probability"]

SERIES_NUMBER = 9001


def write_dicom_seg(path: PathLike, placed: Placed, source: SeriesGrid, model: Model) -> Path:
    """
    Writes a label map as BINARY segmentation. Segment numbers are label values, whichever labels are present; frames
    without a label are left out, unless all are empty. Labels that a person corrected are SEMIAUTOMATIC.

    Raises:
        ValueError: if the segments are not numbered from 1 without gaps.
    """
    return _write(path, placed.labels, "BINARY", "Segmentation", source, model, placed.corrected)


def write_dicom_seg_probability(path: PathLike, placed: Placed, source: SeriesGrid, model: Model) -> Path:
    """
    Writes probability maps as FRACTIONAL segmentation, in steps of 1/255.

    Raises:
        ValueError: if the segments are not numbered from 1 without gaps.
    """
    return _write(path, placed.probability, "FRACTIONAL", "Probability", source, model)


def _write(
    path: PathLike, pixels: np.ndarray, kind: str, name: str, source: SeriesGrid, model: Model, corrected: bool = False
) -> Path:
    highdicom, numbers = require_highdicom(), sorted(model.segments)
    if not numbers or numbers != list(range(1, len(numbers) + 1)):
        raise ValueError(f"segments must be numbered from 1 without gaps (DICOM PS3.3 C.8.20.2), got {numbers}.")
    seg = highdicom.seg.Segmentation(
        _stand_ins(source),
        pixels,
        kind,
        _descriptions(model, "SEMIAUTOMATIC" if corrected else "AUTOMATIC"),
        omit_empty_frames=bool(pixels.any()),
        **document(model, name, SERIES_NUMBER),
    )
    if "NumberOfFrames" in source.first:
        for item in _source_items(seg):  # highdicom counts the used frames, the standard those of the file
            item.ReferencedFrameNumber = source.frames[item.ReferencedFrameNumber - 1][1].number
    return save_document(seg, source, path)


def _source_items(seg: Any) -> list[Dataset]:
    groups = seg.PerFrameFunctionalGroupsSequence
    items = [
        item for g in groups for derivation in g.DerivationImageSequence for item in derivation.SourceImageSequence
    ]
    return list({id(item): item for item in items}.values())  # segments of one frame share them


def _descriptions(model: Model, algorithm_type: str) -> list[Any]:
    highdicom, name = require_highdicom(), long_string(model.algorithm_name)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=name,
        family=codes.DCM.ArtificialIntelligence,
        version=long_string(model.algorithm_version),
    )
    return [
        highdicom.seg.SegmentDescription(
            segment_number=value,
            segment_label=long_string(segment["name"]),
            segmented_property_category=Code(*segment["category"]),
            segmented_property_type=Code(*segment["type"]),
            algorithm_type=algorithm_type,
            algorithm_identification=algorithm,
            tracking_uid=generate_uid(),
            tracking_id=f"{name}: {long_string(segment['name'])}",
            anatomic_regions=[Code(*segment["region"])] if "region" in segment else None,
            **_colour(highdicom, *label_colour(value, segment)),
        )
        for value, segment in sorted(model.segments.items())
    ]


def _colour(highdicom: Any, red: int, green: int, blue: int) -> dict[str, Any]:
    """The colour in viewers; none with highdicom 0.22 (for pydicom 2), which cannot make it from RGB."""
    make = getattr(highdicom.color.CIELabColor, "from_rgb", None)
    return {} if make is None else {"display_color": make(red, green, blue)}


def _stand_ins(source: SeriesGrid) -> list[Dataset]:
    """What highdicom reads of the source's images: references and the geometry of the used frames."""
    path, positions = source.frames[0][0], source.planes[:, :3, 3]
    first: Any = source.frames[0][1]
    thickness = abs(float((positions[1] - positions[0]) @ source.planes[0][:3, 2])) if len(positions) > 1 else 1.0
    plane, measures = Dataset(), Dataset()
    plane.ImageOrientationPatient = _decimals(first.orientation_stated)
    measures.PixelSpacing = _decimals(first.spacing_mm[::-1])
    measures.SpacingBetweenSlices = DS(thickness, auto_format=True)  # highdicom 0.22 does not compute it
    measures.SliceThickness = DS(first.thickness_mm or thickness, auto_format=True)
    references = source.references()
    if len(references) > 1 and any(numbers is not None for _, numbers in references):
        raise InputError(f"{path}: frames of multi-frame images must be in one file, not {len(references)}.")
    images: list[Dataset] = []
    for image, numbers in references:
        stand_in = copy.deepcopy(image)
        if numbers is None:
            stand_in.update({**plane, **measures})
            stand_in.ImagePositionPatient = _decimals(positions[len(images)])
        else:
            shared = Dataset()
            shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [plane], [measures]
            stand_in.SharedFunctionalGroupsSequence = [shared]
            stand_in.PerFrameFunctionalGroupsSequence = groups = [Dataset() for _ in positions]
            for group, position in zip(groups, positions, strict=True):
                group.PlanePositionSequence = [Dataset()]
                group.PlanePositionSequence[0].ImagePositionPatient = _decimals(position)
            stand_in.NumberOfFrames = len(positions)
        images.append(stand_in)
    return images


def _decimals(values: Iterable[float]) -> list[Any]:
    return [DS(float(value), auto_format=True) for value in values]
