# SPDX-License-Identifier: Apache-2.0
"""Label maps and probability maps as DICOM Segmentation (DICOM PS3.3 A.51)."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import DtypeLike, NdarrayOrTensor, PathLike
from monai.data import ImageWriter
from monai.utils import convert_to_numpy
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid
from pydicom.valuerep import DS

from monai_dvpt.data.dicom import frames_of
from monai_dvpt.utils import InputError

from .codes import label_colour, long_string
from .source import Source, document, place_on_frames, read_source, require_highdicom, save_document

__all__ = ["DicomSegWriter", "check_labels", "write_dicom_seg", "write_dicom_seg_probability"]

SERIES_NUMBER = 9001


def check_labels(label: np.ndarray, segments: Mapping[int, Any]) -> np.ndarray:
    """
    Args:
        label: label values, 0 is background.
        segments: described label values.

    Returns:
        the same as uint8 or uint16.

    Raises:
        InputError: if a value is not a whole number or not described.
    """
    label = np.asarray(label)
    if found := set(np.unique(label).tolist()) - {0, *segments}:
        raise InputError(f"label values must be 0 or one of {sorted(segments)}, got {sorted(found)[:5]}.")
    return label.astype(np.uint8 if max(segments) < 256 else np.uint16)


def write_dicom_seg(
    path: PathLike,
    label: np.ndarray,
    affine_ras: np.ndarray,
    frames: Sequence[Sequence[Any]],
    segments: Mapping[int, Mapping[str, Any]],
    algorithm_name: str,
    algorithm_version: str,
    series_description: str = "Segmentation",
    algorithm_type: str = "AUTOMATIC",
) -> Path:
    """
    Writes a label map as BINARY segmentation. Segment numbers are label values, whatever labels are present; frames
    without any label are left out, unless all are empty.

    Args:
        path: the file.
        label: label values of shape (x, y, z), 0 is background.
        affine_ras: 4x4 matrix from voxels to patient coordinates (RAS, mm).
        frames: ``[path, number]`` of the source's frames, one for each z, numbers from 1.
        segments: description of each label value, see :func:`segment_codes`.
        algorithm_name: name of the model.
        algorithm_version: version of the model.
        series_description: what viewers list.
        algorithm_type: "AUTOMATIC", or "SEMIAUTOMATIC" where a person had a part in it.

    Raises:
        InputError: if the label map does not lie on the frames, has values that are not described, or a file cannot be
            read or written.
        OptionalImportError: if highdicom is not installed.
        ValueError: if the segments are not numbered from 1 without gaps.
    """
    require_highdicom()
    _check_numbers(segments)
    source = read_source(frames)
    pixels = place_on_frames(check_labels(label, segments), affine_ras, source)
    descriptions = _descriptions(segments, algorithm_name, algorithm_version, algorithm_type)
    about = document(algorithm_name, algorithm_version, series_description, SERIES_NUMBER)
    return _write(path, pixels, "BINARY", source, descriptions, about)


def write_dicom_seg_probability(
    path: PathLike,
    probability: np.ndarray,
    affine_ras: np.ndarray,
    frames: Sequence[Sequence[Any]],
    segments: Mapping[int, Mapping[str, Any]],
    algorithm_name: str,
    algorithm_version: str,
    series_description: str = "Probability",
) -> Path:
    """
    Writes probability maps as FRACTIONAL segmentation, in steps of 1/255.

    Args:
        path: the file.
        probability: in [0, 1], of shape (classes, x, y, z) without background: the first is label value 1.
        affine_ras: see :func:`write_dicom_seg`.
        frames: see :func:`write_dicom_seg`.
        segments: see :func:`write_dicom_seg`.
        algorithm_name: name of the model.
        algorithm_version: version of the model.
        series_description: what viewers list.

    Raises:
        InputError: as for :func:`write_dicom_seg`, or if a probability is outside [0, 1].
        OptionalImportError: if highdicom is not installed.
        ValueError: if the segments are not numbered from 1 without gaps, or not one for each class.
    """
    require_highdicom()
    _check_numbers(segments)
    probability = np.asarray(probability, dtype=np.float32)
    if probability.ndim != 4 or len(probability) != len(segments):
        raise ValueError(f"probability must have shape ({len(segments)}, x, y, z), got {probability.shape}.")
    low, high = float(probability.min()), float(probability.max())
    if not 0 <= low <= high <= 1:
        raise InputError(f"probabilities must be in [0, 1], got {low} to {high}.")
    source = read_source(frames)
    pixels = np.stack([place_on_frames(class_map, affine_ras, source) for class_map in probability], axis=-1)
    descriptions = _descriptions(segments, algorithm_name, algorithm_version, "AUTOMATIC")
    about = document(algorithm_name, algorithm_version, series_description, SERIES_NUMBER)
    return _write(path, pixels, "FRACTIONAL", source, descriptions, about)


class DicomSegWriter(ImageWriter):
    """
    Lets :class:`monai.transforms.SaveImage` write DICOM Segmentations: ``SaveImage(writer=functools.partial(
    DicomSegWriter, segments=..., algorithm_name=..., algorithm_version=...), output_ext=".dcm")``. The metadata must
    have "affine" (RAS) and "dicom_frames", as of :class:`monai_dvpt.data.dicom.DicomSeriesReader`.

    Args:
        segments: description of each label value, see :func:`segment_codes`.
        algorithm_name: name of the model.
        algorithm_version: version of the model.
        probability: whether the data are probability maps (classes, x, y, z) without background, instead of a label
            map (1, x, y, z).
        output_dtype: given by ``SaveImage``; the standard leaves no choice.
        scale: given by ``SaveImage``; must be None.

    Raises:
        ValueError: if ``scale`` is given.
    """

    def __init__(
        self,
        segments: Mapping[int, Mapping[str, Any]],
        algorithm_name: str,
        algorithm_version: str,
        probability: bool = False,
        output_dtype: DtypeLike = None,
        scale: int | None = None,
    ) -> None:
        if scale is not None:
            raise ValueError(f"scale must be None for DICOM Segmentation, got {scale}.")
        super().__init__()
        self.segments = segments
        self.algorithm_name = algorithm_name
        self.algorithm_version = algorithm_version
        self.probability = probability
        self.affine = np.eye(4)
        self.frames: list[list[Any]] = []

    def set_data_array(
        self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, squeeze_end_dims: bool = False, **kwargs: Any
    ) -> None:
        """
        Args:
            data_array: label map or probability maps.
            channel_dim: axis of the channel, or None if a label map has none.
            squeeze_end_dims: not used: all three axes are kept.
            kwargs: none.

        Raises:
            InputError: if a label map has several channels.
        """
        data = convert_to_numpy(data_array)
        self.data_obj = data[None] if channel_dim is None else np.moveaxis(data, channel_dim, 0)
        if not self.probability and len(self.data_obj) != 1:
            raise InputError(f"a label map must have one channel, got shape {self.data_obj.shape}.")

    def set_metadata(self, meta_dict: Mapping | None, resample: bool = False, **options: Any) -> None:
        """
        Args:
            meta_dict: has "affine" and "dicom_frames".
            resample: must be False: labels are placed on the slices of the source, exactly or not at all.
            options: of resampling.

        Raises:
            InputError: if there is no "affine" or "dicom_frames".
            ValueError: if ``resample`` is True.
        """
        if resample:
            raise ValueError("resample must be False for DICOM Segmentation.")
        meta = meta_dict or {}
        if missing := {"affine", "dicom_frames"} - set(meta):
            raise InputError(f"the metadata must have {sorted(missing)} of the DICOM series that was read.")
        self.affine, self.frames = convert_to_numpy(meta["affine"]), frames_of(meta)

    def write(self, filename: PathLike, verbose: bool = True, **kwargs: Any) -> None:
        """
        Args:
            filename: the file.
            verbose: whether to log its path.
            kwargs: none.

        Raises:
            InputError: see :func:`write_dicom_seg`.
        """
        super().write(filename, verbose=verbose)
        data = np.asarray(self.data_obj)
        common = (self.affine, self.frames, self.segments, self.algorithm_name, self.algorithm_version)
        if self.probability:
            write_dicom_seg_probability(filename, data, *common)
        else:
            write_dicom_seg(filename, data[0], *common)


def _check_numbers(segments: Mapping[int, Any]) -> None:
    if not segments or sorted(segments) != list(range(1, len(segments) + 1)):
        numbers = sorted(segments)
        raise ValueError(f"segments must be numbered from 1 without gaps (DICOM PS3.3 C.8.20.2), got {numbers}.")


def _write(
    path: PathLike,
    pixels: np.ndarray,
    kind: str,
    source: Source,
    descriptions: list[Any],
    about: Mapping[str, Any],
) -> Path:
    seg = require_highdicom().seg.Segmentation(
        _stand_ins(source),
        pixels,
        kind,
        descriptions,
        omit_empty_frames=bool(pixels.any()),
        **about,
    )
    if "NumberOfFrames" in source.images[source.paths[0]]:
        for item in _source_items(seg):  # numbered as in the file, not as among the frames that were used
            item.ReferencedFrameNumber = source.numbers[item.ReferencedFrameNumber - 1]
    return save_document(seg, source, path)


def _source_items(seg: Any) -> list[Dataset]:
    groups = seg.PerFrameFunctionalGroupsSequence
    items = [
        item for g in groups for derivation in g.DerivationImageSequence for item in derivation.SourceImageSequence
    ]
    return list({id(item): item for item in items}.values())  # segments of one frame share them


def _descriptions(
    segments: Mapping[int, Mapping[str, Any]], algorithm_name: str, algorithm_version: str, algorithm_type: str
) -> list[Any]:
    highdicom = require_highdicom()
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=long_string(algorithm_name),
        family=codes.DCM.ArtificialIntelligence,
        version=long_string(algorithm_version),
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
            tracking_id=f"{long_string(algorithm_name)}: {long_string(segment['name'])}",
            anatomic_regions=[Code(*segment["region"])] if "region" in segment else None,
            **_colour(highdicom, *label_colour(value, segment)),
        )
        for value, segment in sorted(segments.items())
    ]


def _colour(highdicom: Any, red: int, green: int, blue: int) -> dict[str, Any]:
    """The colour that viewers show; none with highdicom 0.22 (for pydicom 2), which cannot make it from RGB."""
    make = getattr(highdicom.color.CIELabColor, "from_rgb", None)
    return {} if make is None else {"display_color": make(red, green, blue)}


def _stand_ins(source: Source) -> list[Dataset]:
    """The source's images as highdicom reads them: references and geometry; of a multi-frame file the used frames."""
    first, positions = source.geometry[0], source.planes[:, :3, 3]
    thickness = abs(float((positions[1] - positions[0]) @ source.planes[0][:3, 2])) if len(positions) > 1 else 1.0
    plane, measures = Dataset(), Dataset()
    plane.ImageOrientationPatient = _decimals(first["ImageOrientationPatient"])
    measures.PixelSpacing = _decimals(first["PixelSpacing"])
    measures.SpacingBetweenSlices = DS(thickness, auto_format=True)  # which highdicom 0.22 does not work out
    measures.SliceThickness = DS(float(first.get("SliceThickness", 0)) or thickness, auto_format=True)
    references = source.references()
    if len(references) > 1 and any(numbers is not None for _, numbers in references):
        raise InputError(f"{source.paths[0]}: frames of multi-frame images must be in one file, not {len(references)}.")
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
            stand_in.PerFrameFunctionalGroupsSequence = [_positioned(position) for position in positions]
            stand_in.NumberOfFrames = len(positions)
        images.append(stand_in)
    return images


def _positioned(position: np.ndarray) -> Dataset:
    place, group = Dataset(), Dataset()
    place.ImagePositionPatient = _decimals(position)
    group.PlanePositionSequence = [place]
    return group


def _decimals(values: np.ndarray) -> list[Any]:
    return [DS(float(value), auto_format=True) for value in values]
